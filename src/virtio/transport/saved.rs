//! Saved transports as plain data, and why one is refused.

use crate::{
    pci::{EndpointState, StateError},
    virtio::{
        DeviceState, DeviceStateError, QueueIndex,
        queue::{QueueLayout, QueueState, QueueStateError},
    },
};

/// A device cannot be saved while it is not at rest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device is not still: pause it and wait until it is; queues with requests under way, and how many: {0:?}")]
pub struct NotStill(pub Vec<(QueueIndex, u64)>);

/// The state of a transport.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "plain data, of which there is one a device")]
pub enum SavedTransport {
    /// Of a [`VirtioMmio`](super::mmio::VirtioMmio).
    Mmio(VirtioMmioState),
    /// Of a [`VirtioPci`](super::pci::VirtioPci).
    Pci(VirtioPciState),
    /// Of a device behind a vhost-user socket: its front end keeps all of it.
    VhostUser,
}

/// The state of a device and its transport, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedDevice {
    /// What the guest can see of the transport.
    pub transport: SavedTransport,
    /// What the device keeps.
    pub device: DeviceState,
}

/// A queue as the driver has programmed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Where it is and how long.
    pub layout: QueueLayout,
    /// The driver has enabled it.
    pub ready: bool,
    /// The driver has reset it by itself, or stopped it after DRIVER_OK, and may set it up again.
    pub was_reset: bool,
}

impl QueueSetup {
    pub(super) fn new(size: u16) -> Self {
        let layout = QueueLayout {
            size,
            ..QueueLayout::default()
        };
        Self {
            layout,
            ready: false,
            was_reset: false,
        }
    }
}

/// The state of a virtio device's transport as plain data, but for what its registers' layout adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportState {
    /// Device status.
    pub status: u32,
    /// Selected word of device features.
    pub device_features_sel: u32,
    /// Selected word of driver features.
    pub driver_features_sel: u32,
    /// Selected queue.
    pub queue_sel: u32,
    /// What the driver accepted so far.
    pub driver_features: u64,
    /// The driver accepted a feature of a word that does not exist.
    pub unknown_features: bool,
    /// How the driver set up each queue.
    pub setup: Vec<QueueSetup>,
    /// Progress in the queues that run.
    pub queues: Vec<Option<QueueState>>,
    /// Configuration generation, as the driver has last read it.
    pub config_generation: u32,
    /// The configuration space has changed since the driver last read that: its next read moves it on.
    pub config_changed: bool,
    /// A configuration interrupt that was not delivered.
    pub config_owed: bool,
}

/// The state of virtio-mmio, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioMmioState {
    /// Status, features and queues.
    pub transport: TransportState,
    /// InterruptStatus and what is remembered with it.
    pub interrupt: MmioInterruptState,
    /// Selected shared memory region.
    pub shm_sel: u32,
}

/// InterruptStatus as plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmioInterruptState {
    /// Value of the register.
    pub status: u32,
    /// Bits that the driver has read as set and not acknowledged.
    pub seen: u32,
    /// Of those, bits whose event has happened again since.
    pub again: u32,
    /// An edge that was to follow an acknowledgement was refused.
    pub owed: bool,
}

/// The state of virtio-pci, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioPciState {
    /// Status, features and queues.
    pub transport: TransportState,
    /// Configuration space, MSI-X, and the ISR status as the causes of INTx.
    pub endpoint: EndpointState,
    /// `config_msix_vector`.
    pub config_vector: u16,
    /// `queue_msix_vector` of each queue.
    pub queue_vectors: Vec<u16>,
}

/// A saved transport is refused; the transport is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The transport has been used already.
    #[error("the device status is {0:#x}: restore into a device that was just made or reset")]
    InUse(u32),
    /// The status has bits that do not exist, or one without those that come before it.
    #[error(
        "device status {0:#x} cannot be reached by a driver: 1, 2, 8, 4 and 0x40 come in that order, 0x80 at any time"
    )]
    Status(u32),
    /// Features were accepted that this device does not offer, or before its driver was there, or VERSION_1 was not.
    #[error("driver features {accepted:#x} were negotiated, of which the device offers {offered:#x}")]
    Features {
        /// What the state says.
        accepted: u64,
        /// What there is.
        offered: u64,
    },
    /// The number of queues differs.
    #[error("`{field}` has {saved} queues, for a device that has {needed}")]
    QueueCount {
        /// Which list of the state.
        field: &'static str,
        /// In the state.
        saved: usize,
        /// In the device.
        needed: usize,
    },
    /// A queue was enabled before FEATURES_OK, or reset or stopped by itself before that could be, or both at once.
    #[error("queue {0} is enabled or was reset when no driver could do that")]
    Setup(u16),
    /// A queue has a size that its register cannot have.
    #[error("queue {index} is of size {size}: zero, or up to {max} and in a split ring a power of two, is possible")]
    QueueSize {
        /// Which queue.
        index: u16,
        /// What the state says.
        size: u16,
        /// What the device offers.
        max: u16,
    },
    /// A queue runs that is not set up to, or with another layout or other features.
    #[error("queue {0} runs otherwise than the driver has set it up")]
    Contradiction(u16),
    /// A queue is refused.
    #[error("queue {index}: {error}")]
    Queue {
        /// Which queue.
        index: u16,
        /// Why.
        error: QueueStateError,
    },
    /// A register of the transport has bits that do not exist.
    #[error("{register} is {value:#x}: only {possible:#x} can be set")]
    Register {
        /// Its name.
        register: &'static str,
        /// What the state says.
        value: u64,
        /// All bits that there are.
        possible: u64,
    },
    /// A queue, or the configuration, interrupts by a vector that the function does not have.
    #[error("vector {vector:#x} is mapped: the function has {vectors}, and 0xffff is none")]
    Vector {
        /// What the state says.
        vector: u16,
        /// How many there are.
        vectors: u16,
    },
    /// The PCI function is refused.
    #[error(transparent)]
    Function(#[from] StateError),
    /// What the device itself keeps is refused.
    #[error(transparent)]
    Device(#[from] DeviceStateError),
    /// The state is of another transport.
    #[error("the state is of another transport: {0}'s is needed")]
    Transport(&'static str),
}
