//! The part of a transport that is the same for all of them. What it does is in files of their own: the status machine, the registers, the
//! device's control face, and the queues.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::{
    control::{Control, this_thread},
    doorbell::Doorbell,
    notice::Notice,
    options::TransportOptions,
    saved::QueueSetup,
    status::{DEVICE_NEEDS_RESET, DRIVER_OK},
};
use crate::{
    memory::{Behind, Memory},
    virtio::{
        Fault, Handle, VirtioDevice,
        device::Attached,
        features,
        queue::VirtioInterrupt,
        run::{
            Lanes,
            order::{Guard, Rank, lock_in_order},
        },
    },
};

/// A device cannot be put behind a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A queue size that the device offers is impossible.
    #[error("the device offers {size} entries for queue {index}: a power of two up to 32768 is needed")]
    QueueSize {
        /// Which queue.
        index: usize,
        /// What the device offers.
        size: u16,
    },
    /// More queues than an index can name.
    #[error("the device has {0} queues: at most 65535 can be addressed")]
    QueueCount(usize),
}

/// The part of a transport that is the same for all of them.
///
/// For the order of locks, see [`run`](super::run).
pub(crate) struct Core<D> {
    // Configured.
    /// Features that queues and transport bring.
    pub(super) common: u64,
    /// What the device offers, and these. A restored device offers what it did where it was saved.
    pub(super) offered: AtomicU64,
    pub(super) queue_sizes: Box<[u16]>,
    /// What a driver has to accept.
    pub(super) needed: u64,
    /// A driver without VERSION_1 is taken.
    pub(super) without_version_1: bool,
    /// The embedder serves the queues again and again.
    pub(super) polled: bool,
    // Plugged in.
    pub(super) memory: Memory,
    pub(super) interrupt: Arc<dyn VirtioInterrupt>,
    pub(super) doorbell: OnceLock<Box<dyn Doorbell>>,
    // What the guest changes.
    pub(super) status: AtomicU32,
    pub(super) registers: Mutex<Registers>,
    /// What the driver has accepted for good; zero before that.
    pub(super) negotiated: AtomicU64,
    pub(super) device: Mutex<D>,
    /// The thread that is inside the control face, by its [name](this_thread).
    pub(super) inside: AtomicUsize,
    pub(super) lanes: Lanes,
    /// Why the device needs a reset.
    pub(super) fault: Mutex<Option<Fault>>,
    /// The device has failed from inside its control face: that is acted on outside, once the driver is ready.
    pub(super) failing: Mutex<Option<Fault>>,
    /// The number that the driver has read last, and [`CONFIG_CHANGED`].
    pub(super) config_generation: AtomicU64,
    /// A configuration interrupt that the driver is to get, and the embedder's pause.
    pub(super) notice: Notice,
    /// Since when a queue is to come to rest.
    pub(super) stopping: Mutex<Option<Instant>>,
    /// The driver has reset the device, which has not come to rest yet.
    pub(super) resetting: AtomicBool,
}

/// Beside the 32 bits of the configuration generation: the space has changed since the driver last read them.
pub(super) const CONFIG_CHANGED: u64 = 1 << 32;

/// What the driver sets up before DRIVER_OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub queue_sel: u32,
    pub driver_features: u64,
    /// The driver accepted a feature of a word that does not exist.
    pub unknown_features: bool,
    pub queues: Vec<QueueSetup>,
}

impl Registers {
    pub fn reset(queue_sizes: &[u16]) -> Self {
        Self {
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            driver_features: 0,
            unknown_features: false,
            queues: queue_sizes.iter().map(|&size| QueueSetup::new(size)).collect(),
        }
    }

    pub fn selected(&self) -> usize {
        usize::try_from(self.queue_sel).unwrap_or(usize::MAX)
    }
}

impl<D: VirtioDevice + 'static> Core<D> {
    /// `transport` are the features that the transport brings.
    pub fn new(
        device: D,
        memory: Memory,
        interrupt: Arc<dyn VirtioInterrupt>,
        options: &TransportOptions,
        transport: u64,
    ) -> Result<Arc<Self>, TransportError> {
        let translated = if memory.is_translated() {
            features::ACCESS_PLATFORM
        } else {
            0
        };
        let common = device.queue_features(options.features() | translated | transport) | translated;
        let queue_sizes: Box<[u16]> = device.queue_sizes().into();
        if queue_sizes.len() > usize::from(u16::MAX) {
            return Err(TransportError::QueueCount(queue_sizes.len()));
        }
        let possible = |size: u16| size.is_power_of_two();
        if let Some(index) = queue_sizes.iter().position(|&size| !possible(size)) {
            return Err(TransportError::QueueSize {
                index,
                size: queue_sizes[index],
            });
        }
        let core = Arc::new(Self {
            common,
            offered: AtomicU64::new(device.features() | common),
            // What the transport brings, it can do without.
            needed: features::VERSION_1 | (options.features() | translated) & common & features::ACCESS_PLATFORM,
            without_version_1: options.without_version_1,
            polled: options.polled,
            memory,
            interrupt,
            doorbell: OnceLock::new(),
            status: AtomicU32::new(0),
            registers: Mutex::new(Registers::reset(&queue_sizes)),
            negotiated: AtomicU64::new(0),
            device: Mutex::new(device),
            inside: AtomicUsize::new(0),
            lanes: Lanes::new(queue_sizes.len()),
            fault: Mutex::new(None),
            failing: Mutex::new(None),
            config_generation: AtomicU64::new(0),
            notice: Notice::new(),
            stopping: Mutex::new(None),
            resetting: AtomicBool::new(false),
            queue_sizes,
        });
        let behind: Weak<dyn Behind> = Arc::downgrade(&core) as _;
        core.memory.add_behind(behind);
        let attached: Weak<dyn Attached> = Arc::downgrade(&core) as _;
        core.control().attach(Handle::new(attached));
        Ok(core)
    }
}

impl<D> Core<D> {
    pub(super) fn ordered<'a, T>(&self, mutex: &'a Mutex<T>, rank: Rank) -> Guard<'a, T> {
        lock_in_order(mutex, std::ptr::from_ref(&*self.lanes.stillness).addr(), rank)
    }

    pub fn registers(&self) -> Guard<'_, Registers> {
        self.ordered(&self.registers, Rank::Registers)
    }

    /// The device's control face.
    pub(super) fn control(&self) -> Control<'_, D> {
        let device = self.ordered(&self.device, Rank::Control);
        self.inside.store(this_thread(), Ordering::Relaxed);
        Control::new(device, &self.inside)
    }

    pub(super) fn has(&self, bits: u32) -> bool {
        self.status.load(Ordering::SeqCst) & bits == bits
    }

    pub fn is_resetting(&self) -> bool {
        self.resetting.load(Ordering::SeqCst)
    }

    /// Whether the device may touch its queues.
    pub(super) fn is_live(&self) -> bool {
        self.status.load(Ordering::SeqCst) & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK && !self.is_resetting()
    }
}

impl<D> Core<D> {
    /// Before the guest runs, and once.
    pub fn set_doorbell(&self, doorbell: Box<dyn Doorbell>) {
        let _ = self.doorbell.set(doorbell);
    }
}

impl<D> fmt::Debug for Core<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("status", &format_args!("{:#x}", self.status.load(Ordering::SeqCst)))
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}
