//! The socket device (virtio 1.2, section 5.10).

mod connection;
mod event;
mod host;
mod memory;
mod options;
mod outbound;
mod receive;
mod registers;
mod table;
mod transmit;
#[cfg(target_os = "linux")]
mod unix;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    DeviceId, DeviceState, DeviceStateError, Handle, HostFailures, QueueHandler, QueueIndex, VirtioDevice,
    device::read_config_bytes,
};
use crate::time::Clock;
use event::Events;
use receive::Receive;
use registers::{CONFIG_LEN, EVENT, RX, TX, feature, is_guest_cid};
use table::{Shared, Table};
use transmit::Transmit;

pub use host::{Boundary, Direction, Host, Incoming, Ready, Received, SocketKind, Stream, Token, Waker};
pub use memory::{MemoryHost, MemorySocket};
pub use options::{VsockError, VsockOptions};
#[cfg(target_os = "linux")]
pub use unix::UnixHost;

/// Sockets between the guest and its host.
///
/// Where the guest's connections lead, and where those to the guest come from, is the [`Host`]'s: Unix sockets ([`UnixHost`]), or a
/// program's own ([`MemoryHost`], or an implementation of the trait).
///
/// *Flow*: what the guest sends goes straight from its memory to the host side. What that has no room for is held, up to `buf_alloc`
/// bytes a connection; the guest knows how much of it there is and is told of room in time. What is read from the host side goes
/// straight into the guest's buffers, as far as it has credit and room. A packet of the guest is taken whether or not there is room for
/// packets to it (section 5.10.6.1.2), up to [`max_resets`](VsockOptions::max_resets) refusals.
///
/// *Closing*: what was under way when a side shuts down arrives first, in both directions. A connection that both sides have shut down
/// is reset if it does not end in time.
///
/// *What is refused* with VIRTIO_VSOCK_OP_RST: packets that belong to no connection, a type that is unknown or was not negotiated, a
/// CID that is not the host's, an operation that is unknown or out of order, more data than there is credit for or than the packet has,
/// a message that is too long. A packet with a source that is not the guest is dropped.
///
/// *Restoring*: connections do not survive it. The driver is told so by VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (section 5.10.6.7), and to
/// read its CID again, which may be another.
///
/// Input comes by itself, so this device needs a [doorbell](super::transport::Doorbell), an event loop, or an embedder that
/// [runs](super::VirtioTransport::run) it.
///
/// ```
/// use devisor::{
///     interrupt::NoInterrupt,
///     time::HostClock,
///     virtio::{
///         VirtioMmio,
///         transport::mmio::Line,
///         vsock::{MemoryHost, SocketKind, Vsock, VsockOptions},
///     },
/// };
/// use std::{sync::Arc, time::Duration};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let host = MemoryHost::new(4096);
/// let clock = Arc::new(HostClock::starting_at(Duration::ZERO));
/// let vsock = Vsock::new(host.clone(), clock, VsockOptions::default())?;
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let device = VirtioMmio::new(vsock, memory, Line::Edge(Arc::new(NoInterrupt)))?;
///
/// // The guest can connect to port 1024, once it is there; and a connection to its port 22 waits for it.
/// host.listen(1024, SocketKind::Stream);
/// let socket = host.connect(22, SocketKind::Stream);
/// assert!(!socket.is_open());
/// # drop(device);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Vsock {
    shared: Arc<Shared>,
    queue_sizes: [u16; 3],
}

/// The state of a socket device as plain data. Connections are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockState {
    /// The guest's CID. It may get another one where it is restored.
    pub guest_cid: u32,
    /// A driver was there, which may have had connections.
    pub in_use: bool,
    /// The driver does not know yet that its connections are gone.
    pub event_owed: bool,
}

impl Vsock {
    /// A device whose connections lead to `host`. Its timeouts are by `clock`, which has to be that of who [waits](super::Wait::Until)
    /// for it.
    ///
    /// # Errors
    /// An option is out of range.
    pub fn new(host: impl Host + 'static, clock: Arc<dyn Clock>, options: VsockOptions) -> Result<Self, VsockError> {
        options.check()?;
        Ok(Self {
            queue_sizes: [options.queue_size; 3],
            shared: Arc::new(Shared {
                options,
                host: Box::new(host),
                clock,
                handle: OnceLock::new(),
                failures: Arc::default(),
                negotiated: AtomicU64::new(0),
                event_owed: AtomicBool::new(false),
                table: Mutex::new(Table::default()),
            }),
        })
    }

    /// The guest's CID.
    pub fn guest_cid(&self) -> u32 {
        self.shared.options.guest_cid
    }

    /// How many connections there are, those included that are being opened or reset.
    pub fn connections(&self) -> usize {
        self.shared.connections()
    }

    /// What the host side has failed at. The guest's connection is shut down.
    pub fn host_failures(&self) -> HostFailures {
        self.shared.failures.get()
    }

    fn save_shared(shared: &Shared) -> VsockState {
        let Shared {
            options,
            // The embedder's.
            host: _,
            clock: _,
            handle: _,
            // A count of this process.
            failures: _,
            negotiated,
            event_owed,
            // Connections end where they are.
            table: _,
        } = shared;
        VsockState {
            guest_cid: options.guest_cid,
            in_use: negotiated.load(Ordering::SeqCst) != 0,
            event_owed: event_owed.load(Ordering::SeqCst),
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> DeviceId {
        DeviceId::SOCKET
    }

    fn features(&self) -> u64 {
        let seqpacket = if self.shared.options.seqpacket {
            feature::SEQPACKET
        } else {
            0
        };
        feature::STREAM | feature::NO_IMPLIED_STREAM | seqpacket
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, handle: Handle) {
        let failures = Arc::clone(&self.shared.failures);
        self.shared.host.attach(Waker::new(handle.clone(), failures));
        // Once: a device is put behind one transport.
        let _ = self.shared.handle.set(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config: [u8; CONFIG_LEN] = u64::from(self.guest_cid()).to_le_bytes();
        read_config_bytes(&config, offset, data);
    }

    fn negotiated(&mut self, features: u64) {
        self.shared.negotiated.store(features, Ordering::SeqCst);
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        let shared = Arc::clone(&self.shared);
        match queue.0 {
            RX => Box::new(Receive::new(shared)),
            TX => Box::new(Transmit::new(shared)),
            queue => {
                debug_assert_eq!(queue, EVENT);
                Box::new(Events(shared))
            }
        }
    }

    fn reset(&mut self) {
        self.shared.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(Self::save_shared(&self.shared))
    }

    /// The device may have another CID than the one that was saved: the driver reads it again.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Vsock(state) = state else {
            return Err(DeviceStateError::kind(state, "a socket device's"));
        };
        let VsockState {
            guest_cid,
            in_use,
            event_owed,
        } = *state;
        if !is_guest_cid(guest_cid.into()) {
            let why = format!("for a guest, where the state has CID {guest_cid}, which is reserved");
            return Err(DeviceStateError::Otherwise(why));
        }
        if event_owed && !in_use {
            let why = "for drivers that are there before they hear of events, and the state's is not";
            return Err(DeviceStateError::Otherwise(why.into()));
        }
        self.shared.event_owed.store(in_use, Ordering::SeqCst);
        Ok(())
    }
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("options", &self.shared.options)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
