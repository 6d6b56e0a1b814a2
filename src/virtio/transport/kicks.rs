//! Kicks: who looks at a queue, and when.

use std::ops::Range;

use super::common::Core;
use crate::virtio::{QueueIndex, VirtioDevice, Wait, queue::Kicks, run::Lane};

impl<D: VirtioDevice> Core<D> {
    /// When drivers are to kick.
    pub(super) fn kicks(&self) -> Kicks {
        match self.doorbell.get() {
            _ if self.polled => Kicks::Polled,
            Some(_) => Kicks::Drained,
            // Nobody looks at a queue but for a kick.
            None => Kicks::Stay,
        }
    }

    /// The driver has kicked a queue. Before DRIVER_OK this means nothing: every queue is looked at when that is set.
    pub fn notify(&self, queue: u32) {
        match usize::try_from(queue) {
            Ok(index) if index < self.queue_sizes.len() && self.is_live() => {
                match self.lanes.get(index) {
                    Some(lane) if self.doorbell.get().is_none() => _ = lane.kick_and_serve(&self.beside(index)),
                    _ => self.kick_each(index..index + 1),
                }
                // The queue knows what it owes. What else was refused hears of every kick.
                self.tell_what_is_owed();
            }
            // A driver that waits for a device which needs a reset, and whose line refused to say so, gets no further.
            _ => self.tell_what_is_owed(),
        }
    }

    /// Marks a queue, and has it looked at by the embedder, or by this thread if there is no doorbell.
    pub(super) fn kick(&self, index: usize) {
        match self.lanes.get(index) {
            Some(lane) if self.doorbell.get().is_none() => {
                if lane.kick_and_serve(&self.beside(index)) {
                    self.tell_config_if_owed();
                }
            }
            _ => self.kick_each(index..index + 1),
        }
    }

    pub(super) fn kick_all(&self) {
        self.kick_each(0..self.queue_sizes.len());
    }

    /// Marks all of the queues before the first is looked at.
    fn kick_each(&self, queues: Range<usize>) {
        queues.clone().for_each(|index| _ = self.mark(index));
        let rung = self.doorbell.get().map(|bell| {
            let mut queues = queues.clone().map(|index| QueueIndex(index as u16));
            queues.try_for_each(|queue| bell.ring(queue))
        });
        if !matches!(rung, Some(Ok(()))) {
            queues.for_each(|index| self.serve(index, true));
        }
    }

    fn mark(&self, index: usize) -> bool {
        let lane = self.lanes.get(index);
        lane.inspect(|lane| lane.word.kick()).is_some()
    }

    /// Marks a queue, and has the embedder hear of it; it is served by nobody here.
    pub(super) fn mark_and_ring(&self, index: usize) {
        if self.mark(index)
            && let Some(bell) = self.doorbell.get()
        {
            // Marked all the same, for the next that comes.
            let _ = bell.ring(QueueIndex(index as u16));
        }
    }

    /// Serves a queue until nothing is left or another thread goes on with it.
    fn serve(&self, index: usize, patient: bool) {
        if let Some(lane) = self.lanes.get(index)
            && lane.serve(patient, true, &self.beside(index))
        {
            self.tell_config_if_owed();
        }
    }

    /// Marks a queue and works on it now, unless another thread is at it, which then looks again.
    pub fn process(&self, queue: QueueIndex) {
        let index = usize::from(queue.0);
        if self.mark(index) {
            self.tell_what_is_owed();
            self.serve(index, false);
        }
    }

    /// Marks a queue, and serves a round of it unless another thread is at it. Whether it is to be looked at again.
    pub fn serve_once(&self, queue: QueueIndex) -> bool {
        let index = usize::from(queue.0);
        let Some(lane) = self.lanes.get(index) else {
            return false;
        };
        lane.word.kick();
        self.tell_what_is_owed();
        let served = lane.serve(false, false, &self.beside(index));
        self.tell_config_if_owed();
        served && lane.word.is_due()
    }

    /// What a queue waits for besides its driver.
    pub fn waits(&self, queue: QueueIndex) -> Vec<Wait> {
        let lane = self.lanes.get(queue.0.into());
        lane.map(Lane::waits).unwrap_or_default()
    }

    /// Works on every marked queue until none is, or leaves that to the threads which are at it already.
    pub fn run(&self) {
        self.tell_what_is_owed();
        self.lanes
            .run(|index, lane| lane.serve(false, false, &self.beside(index.0.into())));
        self.tell_config_if_owed();
    }

    /// Looks at every queue once, if the driver has set DRIVER_OK.
    pub fn look_again(&self) {
        if self.is_live() {
            self.kick_all();
        }
    }
}
