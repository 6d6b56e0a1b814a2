//! Any transport with any device, to its embedder.

use std::time::Duration;

use super::saved::{NotStill, RestoreError, SavedDevice};
use crate::{
    memory::Memory,
    virtio::{Fault, QueueIndex, Wait, queue::QueueCounters},
};

/// A virtio device behind a transport, whatever either is: what an embedder does with all of them.
///
/// ```
/// use devisor::virtio::transport::{RestoreError, SavedDevice, VirtioTransport};
/// use std::sync::Arc;
///
/// fn save(devices: &[Arc<dyn VirtioTransport>]) -> Vec<SavedDevice> {
///     devices.iter().for_each(|device| device.pause());
///     devices.iter().for_each(|device| _ = device.wait_until_still(None));
///     devices.iter().filter_map(|device| device.save().ok()).collect()
/// }
///
/// fn restore(devices: &[Arc<dyn VirtioTransport>], states: &[SavedDevice]) -> Result<(), RestoreError> {
///     devices.iter().zip(states).try_for_each(|(device, state)| device.restore(state))?;
///     devices.iter().for_each(|device| device.resume());
///     Ok(())
/// }
/// ```
pub trait VirtioTransport: Send + Sync {
    /// The device status (see [`status`](super::status)).
    fn status(&self) -> u32;

    /// Why the device needs a reset, if it does.
    fn fault(&self) -> Option<Fault>;

    /// What a running queue has done since it was set up.
    fn queue_counters(&self, queue: QueueIndex) -> Option<QueueCounters>;

    /// What all running queues have done since they were set up, together.
    fn counters(&self) -> QueueCounters;

    /// Works on every queue that was kicked, a round of each in turn, until none is left: what a worker calls when the doorbell has
    /// rung. Several threads may do so at once. A queue that another thread serves is left to that one.
    fn run(&self);

    /// Has the device look at `queue`, on this thread: because its doorbell was rung or caught, or because the outside world has
    /// something for the driver.
    fn process(&self, queue: QueueIndex);

    /// One bounded round of `queue`, on this thread, unless another thread is at it, which then looks again. Whether there is more:
    /// what an event loop calls which has several queues to serve in turn.
    fn serve(&self, queue: QueueIndex) -> bool;

    /// What `queue` waits for besides its driver: for an embedder that asks. Who is [told](super::Doorbell::wait) need not.
    fn waits(&self, queue: QueueIndex) -> Vec<Wait>;

    /// Begins a pause: no new request is taken, kicks are kept, requests that have had no effect yet are kept for later, and all
    /// others end. This returns at once; see [`is_still`](Self::is_still).
    fn pause(&self);

    /// Whether a device that is paused has come to rest: no byte of guest memory changes, and no interrupt is under way, until it is
    /// [resumed](Self::resume).
    fn is_still(&self) -> bool;

    /// Which queues have not come to rest, and how many requests of each are under way.
    fn waiting(&self) -> Vec<(QueueIndex, u64)>;

    /// For how long a queue that is to come to rest has not: because of a pause, or because the driver resets it and waits. `None` if
    /// all have that are to.
    fn waiting_for(&self) -> Option<Duration>;

    /// Asks the device again to have what is under way end on such queues
    /// ([`VirtioDevice::cancel`](crate::virtio::VirtioDevice::cancel)), as a pause and a reset have done when they began: for an embedder
    /// whose patience ends.
    fn cancel(&self);

    /// Calls `told` whenever something of this device has come to rest, or may have: then ask [`is_still`](Self::is_still). It is
    /// called on the thread that has ended the last request, and must not call this device.
    fn when_still(&self, told: Box<dyn Fn() + Send + Sync>);

    /// Waits until a device that is paused has come to rest, for so long at most. Whether it has. For threads on which no request
    /// ends: not from inside a handler, nor from a line's callback.
    fn wait_until_still(&self, limit: Option<Duration>) -> bool;

    /// Ends a [`pause`](Self::pause), or goes on after a [`restore`](Self::restore): looks at every queue once, and signals
    /// again what the line has refused.
    fn resume(&self);

    /// A reset from outside, as when the machine is reset: the device as by its driver, and the registers that select. Like the
    /// driver's it may take time; the status reads zero when it has ended.
    fn reset(&self);

    /// The state of the device and its transport. Stop the vCPUs first: what happens after this is not in it.
    ///
    /// # Errors
    /// The device is not still.
    fn save(&self) -> Result<SavedDevice, NotStill>;

    /// Takes over a saved state, all or nothing, into a device that was just made or reset; it is paused then. Follow it with
    /// [`resume`](Self::resume) once memory and interrupt controller are restored too.
    ///
    /// # Errors
    /// The state contradicts itself or this device.
    fn restore(&self, state: &SavedDevice) -> Result<(), RestoreError>;

    /// Guest memory is another map than before: every queue lets go of the old one, idle ones too. Requests under way keep it alive
    /// until they end: [`Memory::old_maps_held`] says so.
    fn memory_changed(&self);

    /// The guest memory of the device.
    fn memory(&self) -> &Memory;
}

/// What a transport leaves to its `core` of a [`VirtioTransport`], wherever its registers are.
macro_rules! forward_to_core {
    () => {
        fn status(&self) -> u32 {
            self.core.status()
        }

        fn fault(&self) -> Option<$crate::virtio::Fault> {
            self.core.fault()
        }

        fn queue_counters(&self, queue: $crate::virtio::QueueIndex) -> Option<$crate::virtio::queue::QueueCounters> {
            self.core.queue_counters(queue)
        }

        fn counters(&self) -> $crate::virtio::queue::QueueCounters {
            self.core.counters()
        }

        fn run(&self) {
            self.core.run();
        }

        fn process(&self, queue: $crate::virtio::QueueIndex) {
            self.core.process(queue);
        }

        fn serve(&self, queue: $crate::virtio::QueueIndex) -> bool {
            self.core.serve_once(queue)
        }

        fn waits(&self, queue: $crate::virtio::QueueIndex) -> Vec<$crate::virtio::Wait> {
            self.core.waits(queue)
        }

        fn pause(&self) {
            self.core.pause();
        }

        fn is_still(&self) -> bool {
            self.core.is_still()
        }

        fn waiting(&self) -> Vec<($crate::virtio::QueueIndex, u64)> {
            self.core.waiting()
        }

        fn waiting_for(&self) -> Option<std::time::Duration> {
            self.core.waiting_for()
        }

        fn cancel(&self) {
            self.core.cancel_all();
        }

        fn when_still(&self, told: Box<dyn Fn() + Send + Sync>) {
            self.core.when_still(told);
        }

        fn wait_until_still(&self, limit: Option<std::time::Duration>) -> bool {
            // One that is beyond all time is none.
            self.core
                .wait_until_still(limit.and_then(|limit| std::time::Instant::now().checked_add(limit)))
        }

        fn resume(&self) {
            self.core.resume();
        }

        fn memory_changed(&self) {
            self.core.memory_changed();
        }

        fn memory(&self) -> &$crate::memory::Memory {
            self.core.memory()
        }
    };
}
pub(super) use forward_to_core;
