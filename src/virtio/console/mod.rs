//! The console device (virtio 1.2, section 5.3).

mod control;
#[cfg(unix)]
mod fd;
mod options;
mod peer;
mod ports;
#[cfg(unix)]
mod pty;
mod receive;
mod registers;
mod shared;
mod slot;
#[cfg(unix)]
mod socket;
mod state;
mod transmit;

use std::{fmt, sync::Arc};

use super::{
    DeviceId, DeviceState, DeviceStateError, Handle, HostFailures, QueueHandler, QueueIndex, VirtioDevice,
    device::read_config_bytes,
};
use control::{ControlReceive, ControlTransmit};
use receive::Receive;
use registers::{Role, config, feature};
use shared::Shared;
use transmit::Transmit;

#[cfg(unix)]
pub use fd::{FdPair, Stdio};
pub use options::{ConsoleError, ConsoleOptions, MAX_NAME, MAX_PORTS, Port, PortKind, ResizeOrder, Size, Unheard};
pub use peer::{Interest, MemoryPeer, News, Peer};
pub use ports::Ports;
#[cfg(unix)]
pub use pty::Pty;
#[cfg(unix)]
pub use socket::SocketPeer;
pub use state::{ConsoleState, PortState};

/// Entries of each control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// A console, or a set of ports.
///
/// *Output* goes straight from guest memory to the [`Peer`] of the port. A peer that has no room leaves it in the queue, with how much
/// of it is gone. Without a listener it is kept or waits, as the [port](Port::unheard) says. *Input* is read straight into guest
/// memory, once there is room; with control messages, once the guest has opened the port. *What is written to `emerg_wr`* goes to port
/// 0, at any time (section 5.3.5).
///
/// *Ports* are plugged in and out through [`Ports`], while the guest runs. Messages to the driver follow from what it knows of each
/// port and what there is: none is lost while it has no buffers, and of several changes it hears where they have led; but somebody who
/// has left is always told before somebody who has come.
///
/// Input and messages come by themselves, so a device with [`max_ports`](ConsoleOptions::max_ports) or with a peer that has something
/// to say needs a [doorbell](super::transport::Doorbell), an event loop, or an embedder that [runs](super::VirtioTransport::run) it.
///
/// ```
/// use devisor::{
///     interrupt::NoInterrupt,
///     virtio::{
///         VirtioMmio,
///         console::{Console, MemoryPeer, Port},
///         transport::mmio::Line,
///     },
/// };
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let terminal = MemoryPeer::new(4096);
/// let console = Console::single(Port::console(terminal.clone()))?;
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let console = VirtioMmio::new(console, memory, Line::Edge(Arc::new(NoInterrupt)))?;
///
/// // The guest writes a character to `emerg_wr`, before anything else.
/// # use devisor::bus::BusDevice;
/// console.write(0x108, &[b'!', 0, 0, 0]);
/// assert_eq!(terminal.output(), b"!");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Console {
    shared: Arc<Shared>,
    queue_sizes: Box<[u16]>,
}

impl Console {
    /// A device without anything plugged in yet.
    ///
    /// # Errors
    /// An option is out of range.
    pub fn new(options: ConsoleOptions) -> Result<Self, ConsoleError> {
        let size = options.queue_size;
        let queues = match options.max_ports {
            Some(ports) => 2 * (usize::from(ports) + 1),
            None => 2,
        };
        let shared = Shared::new(options)?;
        let mut queue_sizes = vec![size; queues];
        if queues > 2 {
            queue_sizes[2..4].fill(CONTROL_QUEUE_SIZE);
        }
        Ok(Self {
            shared: Arc::new(shared),
            queue_sizes: queue_sizes.into(),
        })
    }

    /// A device with one port, a console, and the default options otherwise.
    ///
    /// # Errors
    /// As [`Ports::plug`].
    pub fn single(port: Port) -> Result<Self, ConsoleError> {
        let size = port.peer.size().or(port.size);
        let console = Self::new(ConsoleOptions {
            size,
            ..ConsoleOptions::default()
        })?;
        console.ports().plug(0, port)?;
        Ok(console)
    }

    /// The ports, to plug and to unplug.
    pub fn ports(&self) -> Ports {
        Ports(Arc::clone(&self.shared))
    }

    /// What peers have failed at.
    pub fn host_failures(&self) -> HostFailures {
        self.shared.failures.get()
    }

    /// The configuration space (section 5.3.4). A field whose feature is not offered is zero.
    fn config(&self) -> [u8; config::LEN] {
        let mut space = [0; config::LEN];
        let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
        let Shared { options, features, .. } = &*self.shared;
        if features & feature::SIZE != 0 {
            let Size { cols, rows } = self.shared.size();
            put(config::COLS, &cols.to_le_bytes());
            put(config::ROWS, &rows.to_le_bytes());
        }
        if let Some(ports) = options.max_ports {
            put(config::MAX_NR_PORTS, &u32::from(ports).to_le_bytes());
        }
        space
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> DeviceId {
        DeviceId::CONSOLE
    }

    fn features(&self) -> u64 {
        self.shared.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, handle: Handle) {
        self.shared.attach(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    /// Only `emerg_wr` can be written, and only its lower byte means anything.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let at = (config::EMERG_WR as u64).checked_sub(offset);
        let byte = at.and_then(|at| data.get(usize::try_from(at).ok()?));
        if let Some(&byte) = byte
            && self.shared.options.emergency_write
        {
            self.shared.emergency_write(byte);
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.shared.set_negotiated(features);
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        let shared = Arc::clone(&self.shared);
        match Role::of(queue.0) {
            Role::Receive(port) => Box::new(Receive::new(shared, port)),
            Role::Transmit(port) => Box::new(Transmit::new(shared, port)),
            Role::ControlReceive => Box::new(ControlReceive::new(shared)),
            Role::ControlTransmit => Box::new(ControlTransmit(shared)),
        }
    }

    fn reset(&mut self) {
        self.shared.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console(self.shared.save())
    }

    /// The device has to be made with as many ports. What is plugged in may be something else than what the driver knows: then the
    /// driver is told that the one has gone and the other has come.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Console(state) = state else {
            return Err(DeviceStateError::kind(state, "a console device's"));
        };
        self.shared.restore(state)
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("options", &self.shared.options)
            .field("size", &self.shared.size())
            .finish_non_exhaustive()
    }
}
