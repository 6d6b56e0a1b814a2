//! Bringing the queues of a device to rest, for whatever reason, and letting them go on.

use std::{
    ops::Range,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{common::Core, status::DEVICE_NEEDS_RESET};
use crate::{
    sync::lock,
    virtio::{
        Fault, QueueIndex, VirtioDevice,
        queue::Stop,
        run::{Lane, Untold},
    },
};

impl<D: VirtioDevice> Core<D> {
    /// Has the device come to rest: takes no new request, and lets what is under way end.
    pub fn pause(&self) {
        self.begin_pause();
        self.cancel(0..self.queue_sizes.len());
    }

    fn begin_pause(&self) {
        self.notice.pause();
        self.stop(Stop::Embedder);
    }

    /// Ends a pause, and looks at every queue once: a kick that came before a state was saved is not in it.
    pub fn resume(&self) {
        self.notice.resume();
        self.lanes.resume(Stop::Embedder);
        // A handler's that was made when a state was restored.
        self.act_on_failure();
        self.tell_what_is_owed();
        self.look_again();
    }

    /// The bus lets the device at memory from here on, or does not. Whether that is new; then follow the end of it with
    /// [`Self::look_again`].
    pub fn set_bus_master(&self, master: bool) -> bool {
        let stopped = |index| {
            self.lanes
                .get(index)
                .is_some_and(|lane| lane.word.is_stopped_for(Stop::Bus))
        };
        let changed = stopped(0) == master;
        match (changed, master) {
            (true, true) => self.lanes.resume(Stop::Bus),
            (true, false) => {
                self.stop(Stop::Bus);
                self.cancel(0..self.queue_sizes.len());
            }
            (false, _) => {}
        }
        changed
    }

    /// Whether a device that is paused has come to rest: it changes no byte of guest memory, and no interrupt is under way.
    pub fn is_still(&self) -> bool {
        self.notice.is_still() && self.lanes.are_still()
    }

    /// Waits until a device that is paused has come to rest, until `deadline` at the latest. Whether it has.
    pub fn wait_until_still(&self, deadline: Option<Instant>) -> bool {
        self.lanes.wait_for(deadline, || self.is_still())
    }

    /// Asks the device to have calls of its handlers come back.
    pub(super) fn cancel(&self, queues: Range<usize>) {
        for index in queues {
            let waits = |lane: &Lane| lane.word.is_stopped() && !lane.word.is_still();
            if self.lanes.get(index).is_some_and(waits) {
                self.with_control(|device| device.cancel(QueueIndex(index as u16)));
            }
        }
    }

    /// Finishes what has come to rest meanwhile.
    pub(super) fn finish_all(&self) {
        self.finish_reset();
        for index in 0..self.queue_sizes.len() {
            self.finish_queue(index);
        }
    }

    pub fn waiting(&self) -> Vec<(QueueIndex, u64)> {
        self.lanes.waiting()
    }

    /// For how long a queue that is to come to rest has not.
    pub fn waiting_for(&self) -> Option<Duration> {
        self.finish_all();
        let mut since = lock(&self.stopping);
        if self.all_stopped_are_still() {
            *since = None;
            return None;
        }
        // Who has looked between the note of a stop and the stop itself has forgotten it.
        Some(since.get_or_insert_with(Instant::now).elapsed())
    }

    /// Asks the device again to have what is under way end, on queues that are to come to rest.
    pub fn cancel_all(&self) {
        self.cancel(0..self.queue_sizes.len());
    }

    pub fn when_still(&self, told: Box<dyn Fn() + Send + Sync>) {
        self.lanes.stillness.tell(told);
    }
}

impl<D> Core<D> {
    /// Stops all queues.
    pub(super) fn stop(&self, reason: Stop) {
        self.tell(self.begin_stop(reason));
    }

    /// Begins to stop all queues: see [`Lane::begin_stop`].
    pub(super) fn begin_stop(&self, reason: Stop) -> Vec<(QueueIndex, Untold<'_>)> {
        self.note_stop();
        let begun = self
            .lanes
            .iter()
            .map(|(index, lane)| Some((index, lane.begin_stop(reason)?)));
        begun.flatten().collect()
    }

    fn all_stopped_are_still(&self) -> bool {
        let mut lanes = self.lanes.iter();
        lanes.all(|(_, lane)| !lane.word.is_stopped() || lane.word.is_still())
    }

    /// A stop begins. That another one has been waited for before counts.
    pub(super) fn note_stop(&self) {
        let mut since = lock(&self.stopping);
        if since.is_none() || self.all_stopped_are_still() {
            *since = Some(Instant::now());
        }
    }

    pub(super) fn tell<'a>(&'a self, untold: impl IntoIterator<Item = (QueueIndex, Untold<'a>)>) {
        for (index, untold) in untold {
            untold.tell(&self.beside(index.0.into()));
        }
        // Those that had nobody to tell.
        self.lanes.stillness.reached();
    }

    /// The device needs a reset. No queue is served any more, and what is completed is not shown to the driver; it is
    /// owed a configuration interrupt, which is told without a lock.
    pub(super) fn fail(&self, fault: Fault) {
        if !self.is_live() {
            return;
        }
        let untold = {
            // A reset that ends clears all of this in one step.
            let mut present = lock(&self.fault);
            if !self.is_live() {
                return;
            }
            present.get_or_insert(fault);
            self.status.fetch_or(DEVICE_NEEDS_RESET, Ordering::SeqCst);
            self.notice.owe();
            self.lanes.iter().for_each(|(_, lane)| lane.close());
            self.begin_stop(Stop::Broken)
        };
        self.tell(untold);
    }

    /// The transport goes: nothing is shown to the driver any more, no chain is found, and nothing is waited for.
    pub fn abandon(&self) {
        self.lanes.iter().for_each(|(_, lane)| lane.close());
        self.stop(Stop::Device);
        self.lanes
            .iter()
            .for_each(|(index, lane)| lane.end_waits(&self.beside(index.0.into())));
    }
}
