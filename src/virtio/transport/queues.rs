//! The queues of a device behind a transport: started, stopped, reset by themselves, and what is around each.

use std::{sync::Arc, time::Instant};

use super::{
    common::{Core, Registers},
    saved::QueueSetup,
    status::{DRIVER_OK, FEATURES_OK},
};
use crate::virtio::{
    Fault, QueueIndex, VirtioDevice, Wait, features,
    queue::{Queue, QueueCounters, Stop},
    run::{Around, Running},
};

impl<D: VirtioDevice> Core<D> {
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
        let queue = queue.run_by(Arc::clone(&lane.word), self.kicks());
        let handler = self.control().start(name);
        lane.start(Running { handler, queue });
        Ok(())
    }

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

    pub(super) fn finish_queue(&self, index: usize) {
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
}

impl<D> Core<D> {
    pub(super) fn beside(&self, index: usize) -> Beside<'_, D> {
        // A lane's.
        let index = QueueIndex(index as u16);
        Beside { core: self, index }
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
