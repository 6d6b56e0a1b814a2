//! What a virtio device implements, and what it is given.

use std::sync::Weak;

use super::{
    DeviceState, DeviceStateError,
    queue::{Fault, QueueIndex, Round},
};

/// The device type (virtio 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// Network device (section 5.1).
    pub const NET: Self = Self(1);
    /// Block device (section 5.2).
    pub const BLOCK: Self = Self(2);
    /// Console device (section 5.3).
    pub const CONSOLE: Self = Self(3);
    /// Entropy device (section 5.4).
    pub const ENTROPY: Self = Self(4);
    /// Traditional memory balloon device (section 5.5).
    pub const BALLOON: Self = Self(5);
    /// Socket device (section 5.10).
    pub const SOCKET: Self = Self(19);
    /// IOMMU device (section 5.13).
    pub const IOMMU: Self = Self(23);
    /// Memory device (section 5.15).
    pub const MEMORY: Self = Self(24);
    /// PMEM device (section 5.19).
    pub const PMEM: Self = Self(27);
}

/// A shared memory region of a device (virtio 1.2, section 2.10), as the driver is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemoryRegion {
    /// Guest physical address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The control face of a virtio device: what it is, its features, its configuration space.
///
/// The transport calls it with exclusive access, one call at a time, from the thread of a vCPU or of the embedder. No queue is
/// served through it: each queue that the driver enables gets a [`QueueHandler`] of its own, and these run beside the control face and
/// beside each other. So a register answers at once, however busy the queues are. What a device's parts share is in an `Arc` of theirs.
///
/// The device owns no thread and no line. See [the guide](super::guide) for how to write one.
///
/// ```
/// use devisor::virtio::{DeviceId, Fault, QueueHandler, QueueIndex, Round, VirtioDevice};
///
/// /// Answers every request with as many zeros as it has room for.
/// struct Zeros;
///
/// impl VirtioDevice for Zeros {
///     fn device_id(&self) -> DeviceId {
///         DeviceId::ENTROPY
///     }
///
///     fn queue_sizes(&self) -> &[u16] {
///         &[64]
///     }
///
///     fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
///         Box::new(Zeros)
///     }
/// }
///
/// impl QueueHandler for Zeros {
///     fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
///         round.each(|chain| {
///             let mut room = chain.writer();
///             let len = room.remaining();
///             room.fill(0, len)?;
///             Ok(len)
///         })?;
///         Ok(())
///     }
/// }
/// ```
pub trait VirtioDevice: Send {
    /// What kind of device this is.
    fn device_id(&self) -> DeviceId;

    /// The feature bits of the device type. The transport adds what queues and transports bring:
    /// [`features::COMMON`](super::features::COMMON).
    fn features(&self) -> u64 {
        0
    }

    /// Which of these features of queues, that the transport would offer, the queues of this device can have: all of them, where this
    /// crate serves them.
    fn queue_features(&self, features: u64) -> u64 {
        features
    }

    /// The maximum size of each queue, a power of two up to 32768. Their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The device is behind a transport now, which this leads to.
    fn attach(&mut self, handle: Handle) {
        let _ = handle;
    }

    /// Reads the device configuration space. Any offset and length come from the guest; fill what lies beyond the space
    /// with zeros ([`read_config_bytes`] does).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = offset;
        data.fill(0);
    }

    /// Writes the device configuration space. Writes to read-only fields and beyond the space change nothing.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The shared memory region with this ID, if the device has one.
    fn shared_memory(&self, id: u8) -> Option<SharedMemoryRegion> {
        let _ = id;
        None
    }

    /// Whether the device can work with this set of features, all of which it offered. `false` refuses FEATURES_OK.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// The driver has set FEATURES_OK: these features hold until a reset. From here on it may read what depends on them
    /// in the configuration space. Also called when a state is restored in which it had done so.
    fn negotiated(&mut self, features: u64) {
        let _ = features;
    }

    /// The driver has enabled `queue` and is ready, or a state is restored in which it was so: what serves the queue from here on.
    /// It is dropped when the queue is disabled or reset, or the device is. A queue that is enabled again is one as new.
    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler>;

    /// `queue` is being stopped while its handler may be inside a call that takes long: have that call come back soon, if that can
    /// be done. What the handler itself can do is for [`QueueHandler::pause`].
    fn cancel(&mut self, queue: QueueIndex) {
        let _ = queue;
    }

    /// The device is reset: forget the driver. All handlers are gone.
    fn reset(&mut self) {}

    /// What the device itself keeps for its guest, as plain data. Called when it is still.
    fn save(&self) -> DeviceState {
        DeviceState::None
    }

    /// Takes over a saved state, all or nothing, into a device that was just made or reset. What it [offers](Self::features) may be
    /// another than before; its queues are the same. [`negotiated`](Self::negotiated) and [`start`](Self::start) follow, or, if the
    /// transport's state turns out to be impossible, the state from before.
    ///
    /// # Errors
    /// It is not a state of such a device, or contradicts how this one was made.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::None => Ok(()),
            other => Err(DeviceStateError::kind(other, "none")),
        }
    }
}

/// What serves a queue: made when the driver enables it, and dropped when it is disabled.
///
/// Calls come one at a time, from the thread that kicks or from the embedder's, and at the same time as those to the handlers of other
/// queues. Device-wide settings are looked at anew in each round.
pub trait QueueHandler: Send {
    /// Handles what is available, until [`Round::next`] finds nothing or the outside world is not ready for what it found.
    ///
    /// Called after the driver's kick, after activation, restore and pause, and when somebody [looks](Handle::look) because the
    /// outside world has something for the driver. Spurious calls are normal.
    ///
    /// # Errors
    /// The device cannot go on, and needs a reset. The failure of a single request is not an `Err`: the device type has a status
    /// field for it, or [`Chain::refuse`](super::queue::Chain::refuse) has.
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault>;

    /// The queue is being stopped: no chain is found any more. Give back untouched what has had no effect yet
    /// ([`OwnedChain::give_back`](super::queue::OwnedChain::give_back)), and have the rest end soon; chains that this handler keeps
    /// hold up the stop. If the queue goes on, [`serve`](Self::serve) is called again.
    fn pause(&mut self) {}
}

impl<D: VirtioDevice + ?Sized> VirtioDevice for Box<D> {
    fn device_id(&self) -> DeviceId {
        (**self).device_id()
    }

    fn features(&self) -> u64 {
        (**self).features()
    }

    fn queue_features(&self, features: u64) -> u64 {
        (**self).queue_features(features)
    }

    fn queue_sizes(&self) -> &[u16] {
        (**self).queue_sizes()
    }

    fn attach(&mut self, handle: Handle) {
        (**self).attach(handle)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        (**self).read_config(offset, data)
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        (**self).write_config(offset, data)
    }

    fn shared_memory(&self, id: u8) -> Option<SharedMemoryRegion> {
        (**self).shared_memory(id)
    }

    fn accepts(&self, features: u64) -> bool {
        (**self).accepts(features)
    }

    fn negotiated(&mut self, features: u64) {
        (**self).negotiated(features)
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        (**self).start(queue)
    }

    fn cancel(&mut self, queue: QueueIndex) {
        (**self).cancel(queue)
    }

    fn reset(&mut self) {
        (**self).reset()
    }

    fn save(&self) -> DeviceState {
        (**self).save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        (**self).restore(state)
    }
}

/// A device's way to its own transport, whatever that is. It may outlive it, and does nothing then.
///
/// None of its calls serves a queue or waits for one, so all of them may be made from anywhere, from inside a handler too; but see
/// [`change_config`](Self::change_config).
#[derive(Clone)]
pub struct Handle(Weak<dyn Attached>);

/// What a transport does for the device behind it.
pub(crate) trait Attached: Send + Sync {
    fn look(&self, queue: QueueIndex);
    fn change_config(&self, change: &mut dyn FnMut());
    fn note_config_change(&self);
    fn fail(&self, fault: Fault);
}

impl Handle {
    pub(crate) fn new(transport: Weak<dyn Attached>) -> Self {
        Self(transport)
    }

    /// Has `queue` looked at again, because the outside world has something for it: marks it, and rings the doorbell. Without a
    /// doorbell it is looked at with the next kick, or when the embedder runs the device.
    pub fn look(&self, queue: QueueIndex) {
        if let Some(transport) = self.0.upgrade() {
            transport.look(queue);
        }
    }

    /// Changes what the configuration space shows, and tells the driver. No configuration access comes between: do not call this
    /// from the methods of [`VirtioDevice`], nor under a lock that they take.
    pub fn change_config(&self, change: impl FnOnce()) {
        if let Some(transport) = self.0.upgrade() {
            let mut change = Some(change);
            transport.change_config(&mut || {
                if let Some(change) = change.take() {
                    change();
                }
            });
        }
    }

    /// What the configuration space shows has changed by what the driver has asked for itself: it reads another configuration
    /// generation next, and no interrupt tells it. Call this together with the change, under a lock that
    /// [`read_config`](VirtioDevice::read_config) takes too, so that no driver reads half of it without noticing.
    pub fn note_config_change(&self) {
        if let Some(transport) = self.0.upgrade() {
            transport.note_config_change();
        }
    }

    /// The device cannot go on: it needs a reset, and the driver is told so.
    pub fn fail(&self, reason: impl Into<String>) {
        if let Some(transport) = self.0.upgrade() {
            transport.fail(Fault::Host(reason.into()));
        }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// Answers a read of `data.len()` bytes at `offset` of a configuration space: its bytes, then zeros.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let tail = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
    if let Some(tail) = tail {
        let len = tail.len().min(data.len());
        data[..len].copy_from_slice(&tail[..len]);
    }
}
