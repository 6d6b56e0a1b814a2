//! The queues of a device behind a transport: started, kicked, brought to rest, and taken away.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    Core, QueueSetup, Registers,
    status::{DEVICE_NEEDS_RESET, DRIVER_OK, FEATURES_OK},
};
use crate::{
    sync::lock,
    virtio::{
        Fault, QueueIndex, VirtioDevice, Wait, features,
        queue::{Queue, QueueCounters, Stop},
        run::{Around, Lane, Running, Untold},
    },
};

impl<D: VirtioDevice> Core<D> {
    /// Nobody looks at a queue but for a kick.
    pub(super) fn kicks_stay(&self) -> bool {
        self.doorbell.get().is_none()
    }

    /// Makes a queue as the driver has set it up, and its handler, if it is ready.
    pub(super) fn start_queue(&self, registers: &Registers, index: usize) -> Result<(), Fault> {
        let QueueSetup {
            layout, ready: true, ..
        } = registers.queues[index]
        else {
            return Ok(());
        };
        let Some(lane) = self.lanes.get(index) else {
            return Ok(());
        };
        let (name, max) = (QueueIndex(index as u16), self.queue_sizes[index]);
        let interrupt = Arc::clone(&self.interrupt);
        let queue = Queue::new(name, max, layout, registers.driver_features, &self.memory, interrupt)?;
        let queue = queue.run_by(Arc::clone(&lane.word), self.kicks_stay());
        let handler = self.control().start(name);
        lane.start(Running { handler, queue });
        Ok(())
    }

    // Kicks.

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

    // Rest.

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

    // Reset (section 2.4). It begins, comes to rest, and is finished by whoever looks next.

    /// Works at every stage. From here on the driver is not heard, nor told of anything, until everything is as at power-on.
    pub fn begin_reset(&self) {
        let untold = {
            // In one step, or the end of another reset could come between.
            let _registers = self.registers();
            self.resetting.store(true, Ordering::SeqCst);
            self.notice.forget();
            self.interrupt.reset();
            self.begin_stop(Stop::Device)
        };
        self.tell(untold);
        self.cancel(0..self.queue_sizes.len());
        self.finish_reset();
        self.interrupt.settle();
    }

    /// Waits until the reset has ended, until `deadline` at the latest; not at all on a thread that serves a queue, which could
    /// be the one that is waited for.
    pub fn wait_for_reset(&self, deadline: Option<Instant>) {
        if self.is_resetting() {
            // Another thread may see that it is at rest, and end it.
            self.lanes
                .wait_for(deadline, || !self.is_resetting() || self.lanes.are_still());
            self.finish_reset();
        }
    }

    /// Ends a reset, if all is at rest.
    pub fn finish_reset(&self) {
        if !self.is_resetting() || !self.lanes.are_still() {
            return;
        }
        let mut registers = self.registers();
        if !self.is_resetting() {
            return;
        }
        for (index, lane) in self.lanes.iter() {
            lane.finish(&self.beside(index.0.into()));
        }
        let mut device = self.control();
        *registers = Registers::reset(&self.queue_sizes);
        self.negotiated.store(0, Ordering::SeqCst);
        *lock(&self.failing) = None;
        device.reset();
        self.note_config_change();
        {
            let mut fault = lock(&self.fault);
            *fault = None;
            self.notice.forget();
            self.status.store(0, Ordering::SeqCst);
            self.resetting.store(false, Ordering::SeqCst);
            for reason in [Stop::Queue, Stop::Broken, Stop::Device] {
                self.lanes.resume(reason);
            }
        }
        drop((device, registers));
        // For whoever waits for this reset.
        self.lanes.stillness.reached();
    }

    // A queue by itself.

    /// Enables the selected queue. One that was stopped or reset begins as new.
    pub fn enable_queue(&self) {
        // The guard is gone before it is locked again.
        let selected = self.registers().selected();
        self.finish_queue(selected);
        let mut registers = self.registers();
        let selected = registers.selected();
        let Some(queue) = self.unfrozen(&mut registers) else {
            return;
        };
        (queue.ready, queue.was_reset) = (true, false);
        if self.is_live() {
            let started = self.start_queue(&registers, selected);
            drop(registers);
            if let Err(fault) = started {
                self.fail(fault);
            }
            self.act_on_failure();
            self.tell_config_if_owed();
            self.kick(selected);
        }
    }

    /// Disables the selected queue, which is brought to rest. It may be set up and enabled again. Which one, if there is one.
    pub fn disable_queue(&self) -> Option<QueueIndex> {
        self.stop_queue(|registers, selected| {
            let queue = registers.queues.get_mut(selected)?;
            queue.was_reset |= queue.ready && self.has(DRIVER_OK);
            queue.ready = false;
            Some(())
        })
    }

    /// Resets the selected queue by itself (section 2.6.1), if the driver has negotiated that. Which one, if it was reset.
    pub fn reset_queue(&self) -> Option<QueueIndex> {
        self.stop_queue(|registers, selected| {
            let negotiated = self.has(FEATURES_OK) && registers.driver_features & features::RING_RESET != 0;
            let queue = registers.queues.get_mut(selected).filter(|_| negotiated)?;
            *queue = QueueSetup {
                was_reset: true,
                ..QueueSetup::new(self.queue_sizes[selected])
            };
            Some(())
        })
    }

    fn stop_queue(&self, change: impl FnOnce(&mut Registers, usize) -> Option<()>) -> Option<QueueIndex> {
        let mut registers = self.registers();
        let selected = registers.selected();
        let lane = self.lanes.get(selected)?;
        if self.is_resetting() {
            return None;
        }
        change(&mut registers, selected)?;
        if lane.word.runs() {
            // In one step with the registers, which another thread may change.
            self.note_stop();
            let untold = lane.begin_stop(Stop::Queue);
            drop(registers);
            self.tell(untold.map(|untold| (QueueIndex(selected as u16), untold)));
            self.cancel(selected..selected + 1);
            self.finish_queue(selected);
        }
        Some(QueueIndex(selected as u16))
    }

    /// Waits until a queue that was stopped is at rest, as [`wait_for_reset`](Self::wait_for_reset).
    pub fn wait_for_queue(&self, queue: QueueIndex, deadline: Option<Instant>) {
        let index = usize::from(queue.0);
        if let Some(lane) = self.lanes.get(index)
            && self.is_queue_stopping(queue)
        {
            self.lanes.wait_for(deadline, || {
                !lane.word.is_stopped_for(Stop::Queue) || lane.word.is_still()
            });
            self.finish_queue(index);
        }
    }

    /// Whether a queue that was stopped is not at rest yet.
    pub fn is_queue_stopping(&self, queue: QueueIndex) -> bool {
        let index = usize::from(queue.0);
        self.finish_queue(index);
        self.lanes
            .get(index)
            .is_some_and(|lane| lane.word.is_stopped_for(Stop::Queue))
    }

    fn finish_queue(&self, index: usize) {
        let Some(lane) = self.lanes.get(index) else { return };
        let stopped = || lane.word.is_stopped_for(Stop::Queue) && lane.word.is_still();
        if !stopped() {
            return;
        }
        {
            // So that one thread does it.
            let _registers = self.registers();
            if !stopped() {
                return;
            }
            lane.finish(&self.beside(index));
            lane.word.resume(Stop::Queue);
        }
        // For whoever waits for this queue.
        self.lanes.stillness.reached();
    }

    /// The embedder has changed guest memory.
    pub fn memory_changed(&self) {
        self.lanes.iter().for_each(|(_, lane)| lane.memory_changed());
    }

    pub fn queue_counters(&self, index: QueueIndex) -> Option<QueueCounters> {
        self.lanes.get(index.0.into())?.counters()
    }

    pub fn counters(&self) -> QueueCounters {
        let running = self.lanes.iter().filter_map(|(_, lane)| lane.counters());
        running.fold(QueueCounters::default(), |mut sum, counters| {
            sum += counters;
            sum
        })
    }

    pub fn memory(&self) -> &crate::memory::Memory {
        &self.memory
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
        }
        since.map(|since| since.elapsed())
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
    pub(super) fn beside(&self, index: usize) -> Beside<'_, D> {
        // A lane's.
        let index = QueueIndex(index as u16);
        Beside { core: self, index }
    }

    /// Stops all queues.
    fn stop(&self, reason: Stop) {
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

/// What is around a lane: its device.
pub(super) struct Beside<'a, D> {
    core: &'a Core<D>,
    index: QueueIndex,
}

impl<D> Around for Beside<'_, D> {
    fn failed(&self, fault: Fault) {
        self.core.fail(fault);
    }

    fn waits(&self, waits: &[Wait]) {
        if let Some(bell) = self.core.doorbell.get() {
            bell.wait(self.index, waits);
        }
    }
}
