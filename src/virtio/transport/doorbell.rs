//! Who hears a driver's kicks, and what queues wait for.

use std::io;

use crate::virtio::{QueueIndex, Wait};

/// Hears the driver's kicks when the embedder wants to run the device elsewhere than on the vCPU's thread.
///
/// *For embedders*: wake your worker here, and call `run` on the transport from it. Any `Fn(QueueIndex) ->
/// io::Result<()>` is a doorbell. Rings may be merged; a ring before the worker waits must not be lost (an eventfd, a
/// channel and a condition with a flag all keep it). If it fails, the device runs on the kicking thread instead.
pub trait Doorbell: Send + Sync {
    /// The driver has kicked `queue`.
    ///
    /// # Errors
    /// Nobody was woken.
    fn ring(&self, queue: QueueIndex) -> io::Result<()>;

    /// `queue` waits for `waits`, besides its driver, and for nothing that it waited for before: once one of them is there, have it
    /// looked at ([`process`](super::VirtioTransport::process)). Each counts once. An empty list is the end of it, also when the device
    /// is stopped without a request under way, or goes. Of a device that was stopped with some, what comes after the last has ended
    /// is for nobody.
    ///
    /// A device may say so from any thread, while it serves that queue: do not call it back from in here.
    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        let _ = (queue, waits);
    }
}

impl<F: Fn(QueueIndex) -> io::Result<()> + Send + Sync> Doorbell for F {
    fn ring(&self, queue: QueueIndex) -> io::Result<()> {
        self(queue)
    }
}
