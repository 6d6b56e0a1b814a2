//! A device behind a socket as any transport's.

use std::time::{Duration, Instant};

use super::{
    super::{NotStill, RestoreError, SavedDevice, SavedTransport, VirtioTransport},
    VhostUser,
};
use crate::{
    memory::Memory,
    sync::lock,
    virtio::{Fault, QueueIndex, VirtioDevice, Wait, queue::QueueCounters},
};

impl<D: VirtioDevice> VhostUser<D> {
    /// Takes the kick of a queue that is looked at now. To who polls, it says no more than what is asked for then.
    fn take_kick(&self, queue: QueueIndex) {
        if self.lines.is_polled() && !self.iotlb.is_unanswered() {
            return;
        }
        let kicked = self.lines.take_kick(queue.0.into());
        if kicked && self.iotlb.is_unanswered() {
            self.iotlb.ask_again();
        }
    }
}

impl<D: VirtioDevice> VirtioTransport for VhostUser<D> {
    fn status(&self) -> u32 {
        self.core.status()
    }

    fn fault(&self) -> Option<Fault> {
        self.core.fault()
    }

    fn queue_counters(&self, queue: QueueIndex) -> Option<QueueCounters> {
        self.core.queue_counters(queue)
    }

    fn counters(&self) -> QueueCounters {
        self.core.counters()
    }

    fn is_still(&self) -> bool {
        self.core.is_still()
    }

    fn waiting(&self) -> Vec<(QueueIndex, u64)> {
        self.core.waiting()
    }

    fn waiting_for(&self) -> Option<Duration> {
        self.core.waiting_for()
    }

    fn cancel(&self) {
        self.core.cancel_all();
    }

    fn wait_until_still(&self, limit: Option<Duration>) -> bool {
        self.core
            .wait_until_still(limit.and_then(|limit| Instant::now().checked_add(limit)))
    }

    fn memory_changed(&self) {
        self.core.memory_changed();
    }

    fn memory(&self) -> &Memory {
        self.core.memory()
    }

    fn run(&self) {
        for index in 0..self.core.queue_count() {
            self.process(QueueIndex(index));
        }
    }

    fn process(&self, queue: QueueIndex) {
        self.take_kick(queue);
        self.core.process(queue);
        self.look_for_failure();
        self.lines.tell_again(queue.0.into());
    }

    fn serve(&self, queue: QueueIndex) -> bool {
        self.take_kick(queue);
        let more = self.core.serve_once(queue);
        if more {
            self.lines.will_come(queue.0.into());
        }
        self.look_for_failure();
        self.lines.tell_again(queue.0.into());
        more
    }

    fn waits(&self, queue: QueueIndex) -> Vec<Wait> {
        self.lines.waits(queue.0.into(), &self.core.waits(queue))
    }

    fn pause(&self) {
        self.core.pause();
    }

    fn resume(&self) {
        self.core.resume();
    }

    fn when_still(&self, told: Box<dyn Fn() + Send + Sync>) {
        let before = lock(&self.when_still).replace(told.into());
        drop(before);
    }

    /// Ends the connection too: the rings are the front end's.
    fn reset(&self) {
        // Whether there is one or not, and no other comes between.
        self.end_connection(&mut lock(&self.connection));
        self.lines.tell_found();
        self.core.wait_for_reset(None);
    }

    /// What the device keeps. Rings are the front end's, which keeps how far they have come.
    fn save(&self) -> Result<SavedDevice, NotStill> {
        let (_, device) = self.core.save()?;
        Ok(SavedDevice {
            transport: SavedTransport::VhostUser,
            device,
        })
    }

    fn restore(&self, state: &SavedDevice) -> Result<(), RestoreError> {
        let SavedTransport::VhostUser = &state.transport else {
            return Err(RestoreError::Transport("vhost-user"));
        };
        match self.core.status() {
            0 => Ok(self.with_device(|device| device.restore(&state.device))?),
            status => Err(RestoreError::InUse(status)),
        }
    }
}
