//! What an embedder decides about a console device, and about each of its ports.

use std::{fmt, sync::Arc};

use super::Peer;

/// The most ports that a device can have here.
pub const MAX_PORTS: u16 = 512;

/// Bytes of the longest name of a port.
pub const MAX_NAME: usize = 256;

/// How a console device looks to the guest.
///
/// ```
/// use devisor::virtio::console::{ConsoleOptions, Size};
///
/// let options = ConsoleOptions {
///     size: Some(Size { cols: 80, rows: 25 }),
///     max_ports: Some(4),
///     ..ConsoleOptions::default()
/// };
/// assert!(options.emergency_write);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleOptions {
    /// Offers VIRTIO_CONSOLE_F_SIZE: the size of port 0 at first, if its [peer](Peer::size) does not say.
    pub size: Option<Size>,
    /// Offers VIRTIO_CONSOLE_F_MULTIPORT with so many ports at most, from one to [`MAX_PORTS`]. `None` is a device with one port,
    /// which is a console.
    pub max_ports: Option<u16>,
    /// Offers VIRTIO_CONSOLE_F_EMERG_WRITE: what is written to `emerg_wr` goes to port 0.
    pub emergency_write: bool,
    /// Size of each data queue, a power of two up to 32768. Those of control messages have 64 entries.
    pub queue_size: u16,
    /// In which order RESIZE has its two numbers.
    pub resize_order: ResizeOrder,
}

impl Default for ConsoleOptions {
    fn default() -> Self {
        Self {
            size: None,
            max_ports: None,
            emergency_write: true,
            queue_size: 128,
            resize_order: ResizeOrder::ColumnsFirst,
        }
    }
}

/// The order of the two numbers of a VIRTIO_CONSOLE_RESIZE message. The specification has columns first (section 5.3.6.2). Linux
/// reads rows first, but for some releases around 6.15 that followed the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResizeOrder {
    /// As specified.
    #[default]
    ColumnsFirst,
    /// As most Linux guests read it.
    RowsFirst,
}

/// The size of a console, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// What a port is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// A console: Linux makes it `/dev/hvcN`.
    Console,
    /// A channel between processes: Linux makes it `/dev/vportNpM`, and a link by its name.
    Generic,
}

/// What becomes of the guest's output while nobody is at the other end of its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// It is taken from the guest, and the last so many bytes are kept for who comes next. Guests wait for a console with their
    /// processor, so this is for consoles. Zero keeps nothing.
    Keep(usize),
    /// It stays with the guest, whose writers wait.
    Wait,
}

/// A port to plug in.
#[derive(Clone)]
pub struct Port {
    /// What it is to the guest.
    pub kind: PortKind,
    /// The name that the guest finds it by, up to [`MAX_NAME`] bytes without NUL. Empty is none.
    pub name: String,
    /// The other end.
    pub peer: Arc<dyn Peer>,
    /// What becomes of output without a listener.
    pub unheard: Unheard,
    /// The size at first, if the peer does not say.
    pub size: Option<Size>,
}

impl Port {
    /// A console. Of output without a listener, the last 64 KiB are kept.
    pub fn console(peer: impl Peer + 'static) -> Self {
        Self {
            kind: PortKind::Console,
            name: String::new(),
            peer: Arc::new(peer),
            unheard: Unheard::Keep(64 << 10),
            size: None,
        }
    }

    /// A channel with a name. Output without a listener waits.
    pub fn generic(name: impl Into<String>, peer: impl Peer + 'static) -> Self {
        Self {
            kind: PortKind::Generic,
            name: name.into(),
            peer: Arc::new(peer),
            unheard: Unheard::Wait,
            size: None,
        }
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .field("unheard", &self.unheard)
            .finish_non_exhaustive()
    }
}

/// What an embedder asks of a console device that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// `max_ports` is out of range.
    #[error("{0} ports: one to {MAX_PORTS} are possible")]
    MaxPorts(u16),
    /// A queue size that cannot be.
    #[error("queues of {0} entries: a power of two up to 32768 is needed")]
    QueueSize(u16),
    /// There is no such port.
    #[error("port {port}: the device has ports up to {last}")]
    NoSuchPort {
        /// What was named.
        port: u16,
        /// The last that there is.
        last: u16,
    },
    /// Something is plugged in there.
    #[error("port {0} is taken: unplug it first")]
    Taken(u16),
    /// Nothing is plugged in there.
    #[error("port {0} is empty: plug something in first")]
    Empty(u16),
    /// A name is too long, or has a NUL.
    #[error("a port's name of {0} bytes: up to {MAX_NAME} without NUL are possible")]
    Name(usize),
    /// A port of a device without VIRTIO_CONSOLE_F_MULTIPORT is a console.
    #[error("the only port of a device without `max_ports` is a console: a generic port needs `max_ports`")]
    NotAConsole,
}
