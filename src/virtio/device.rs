//! What a virtio device implements, and what it is given.

use vm_memory::GuestMemory;

use super::queue::{Queue, QueueError, QueueIndex, Round};

/// The device type (virtio 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// Block device (section 5.2).
    pub const BLOCK: Self = Self(2);
    /// Entropy device (section 5.4).
    pub const ENTROPY: Self = Self(4);
}

/// A shared memory region of a device (virtio 1.2, section 2.10), as the driver is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemoryRegion {
    /// Guest physical address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A virtio device behind a transport.
///
/// The transport calls it with exclusive access, one call at a time, from the thread that kicks (a vCPU) or from the
/// embedder's worker, whichever the embedder chose. The device owns no thread and no line. Its state that is not the
/// transport's (what [`reset`](Self::reset) clears) stays inside it.
///
/// `M` is the guest memory; a device that does not care implements this for every `M`.
///
/// *Reset and needs-reset*: an `Err` from [`process`](Self::process) says that the driver broke the rules. The transport
/// then sets DEVICE_NEEDS_RESET, tells the driver and takes the queues away; the device is called again after a reset.
/// The failure of a single request is not an `Err`: the device type has a status field for it.
///
/// ```
/// use devisor::virtio::{DeviceId, QueueError, QueueIndex, Queues, Round, VirtioDevice};
/// use vm_memory::GuestMemory;
///
/// /// Answers every request with as many zeros as it has room for.
/// struct Zeros;
///
/// impl<M: GuestMemory> VirtioDevice<M> for Zeros {
///     fn device_id(&self) -> DeviceId {
///         DeviceId::ENTROPY
///     }
///
///     fn queue_sizes(&self) -> &[u16] {
///         &[64]
///     }
///
///     fn process(&mut self, index: QueueIndex, queues: &mut Queues<'_, M>) -> Result<Round, QueueError> {
///         let Some((queue, memory)) = queues.get(index) else { return Ok(Round::Drained) };
///         queue.serve(memory, |chain, memory| {
///             let mut room = chain.writer(memory);
///             let len = room.remaining();
///             room.fill(0, len)?;
///             Ok(len)
///         })
///     }
/// }
/// ```
pub trait VirtioDevice<M: GuestMemory>: Send {
    /// What kind of device this is.
    fn device_id(&self) -> DeviceId;

    /// The feature bits of the device type. The transport adds what queues and transports bring:
    /// [`features::COMMON`](super::features::COMMON).
    fn features(&self) -> u64 {
        0
    }

    /// The maximum size of each queue, a power of two up to 32768. Their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

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

    /// The driver has set DRIVER_OK after accepting `features`. Its queues are looked at right after this.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// Handles what is available on the queue `index`, up to a bounded amount: [`Round::More`] asks to be called again.
    ///
    /// Called after the driver's kick, after activation and restore, and whenever the embedder asks for it because the
    /// outside world has something for the driver. Spurious calls are normal.
    ///
    /// # Errors
    /// The driver broke the rules of the queue or of the request format.
    fn process(&mut self, index: QueueIndex, queues: &mut Queues<'_, M>) -> Result<Round, QueueError>;

    /// The driver has stopped or reset the queue `index` alone: forget what was taken from it. What it is set up as next is a
    /// queue as new.
    fn queue_stopped(&mut self, index: QueueIndex) {
        let _ = index;
    }

    /// The device is reset, or its queues are taken away after it broke: forget the driver, requests in flight included.
    fn reset(&mut self) {}
}

impl<M: GuestMemory, D: VirtioDevice<M> + ?Sized> VirtioDevice<M> for Box<D> {
    fn device_id(&self) -> DeviceId {
        (**self).device_id()
    }

    fn features(&self) -> u64 {
        (**self).features()
    }

    fn queue_sizes(&self) -> &[u16] {
        (**self).queue_sizes()
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

    fn activate(&mut self, features: u64) {
        (**self).activate(features)
    }

    fn queue_stopped(&mut self, index: QueueIndex) {
        (**self).queue_stopped(index)
    }

    fn process(&mut self, index: QueueIndex, queues: &mut Queues<'_, M>) -> Result<Round, QueueError> {
        (**self).process(index, queues)
    }

    fn reset(&mut self) {
        (**self).reset()
    }
}

/// The queues that the driver has set up, and the guest memory that they are in, for the time of one call.
#[derive(Debug)]
pub struct Queues<'a, M> {
    queues: &'a mut [Option<Queue>],
    memory: &'a M,
}

impl<'a, M: GuestMemory> Queues<'a, M> {
    /// Lends `queues` in `memory` to a device. A transport does this; so does a test that drives a device alone.
    pub fn new(queues: &'a mut [Option<Queue>], memory: &'a M) -> Self {
        Self { queues, memory }
    }

    /// The queue `index` and the guest memory, or `None` if the driver has not enabled such a queue.
    pub fn get(&mut self, index: QueueIndex) -> Option<(&mut Queue, &'a M)> {
        let queue = self.queues.get_mut(usize::from(index.0))?.as_mut()?;
        Some((queue, self.memory))
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
