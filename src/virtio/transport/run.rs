//! Running the device: on the thread that kicks or on the embedder's worker, a bounded round of one queue at a time.

use std::{
    ops::Range,
    sync::{MutexGuard, atomic::Ordering},
    thread,
};

use vm_memory::GuestAddressSpace;

use super::{Core, Running, kicks::Pause, status::DRIVER_OK};
use crate::{
    sync::lock,
    virtio::{QueueIndex, Queues, Round, VirtioDevice},
};

/// How often a worker steps back for those who wait for the device before it takes its turn like everybody.
const PATIENCE: u32 = 100;

impl<A, D> Core<A, D>
where
    A: GuestAddressSpace,
    D: VirtioDevice<A::M>,
{
    /// The driver has kicked a queue. Before DRIVER_OK this means nothing: every queue is looked at when that is set.
    pub fn notify(&self, queue: u32) {
        match usize::try_from(queue) {
            Ok(index) if index < self.queue_sizes.len() && self.is_live() => self.kick(index),
            // A driver that waits for a device which needs a reset, and whose line refused to say so, gets no further.
            _ => self.tell_what_is_owed(),
        }
    }

    /// Marks a queue, and has it looked at by whoever runs the device.
    pub(super) fn kick(&self, index: usize) {
        self.kick_each(index..index + 1);
    }

    pub(super) fn kick_all(&self) {
        self.kick_each(0..self.queue_sizes.len());
    }

    /// Marks all of the queues before the first is looked at.
    fn kick_each(&self, queues: Range<usize>) {
        queues.clone().for_each(|index| self.kicks.mark(index));
        let rung = self.doorbell.as_ref().map(|bell| {
            let mut queues = queues.map(|index| QueueIndex(index as u16));
            queues.try_for_each(|queue| bell.ring(queue))
        });
        match rung {
            Some(Ok(())) => {}
            Some(Err(_)) | None => self.run(),
        }
    }

    /// Marks a queue and works on it now, unless another thread is at it, which then looks again.
    pub fn process(&self, queue: QueueIndex) {
        let index = usize::from(queue.0);
        if index < self.queue_sizes.len() {
            self.kicks.mark(index);
            self.run();
        }
    }

    /// Works on every marked queue until none is, or leaves that to the thread which is at it already.
    pub fn run(&self) {
        self.tell_what_is_owed();
        self.kicks.run(|index| self.round(index));
    }

    /// Ends the round that is under way, if one is, and lets none begin. Kicks are kept.
    pub fn pause(&self) {
        self.kicks.pause(Pause::Embedder, true);
        drop(self.stop());
    }

    /// The bus lets the device at memory from here on, or does not: as a [`pause`](Self::pause) of the bus's own. Whether
    /// that is new; then follow the end of it with [`Self::look_again`].
    pub fn set_bus_master(&self, master: bool) -> bool {
        let changed = self.kicks.pause(Pause::Bus, !master);
        if changed && !master {
            drop(self.stop());
        }
        changed
    }

    /// Looks at every queue once, if the driver has set DRIVER_OK.
    pub fn look_again(&self) {
        if self.is_live() {
            self.kick_all();
        }
    }

    fn round(&self, index: usize) -> Round {
        // The lock is not fair: let who waits for the device have it first. But not for ever, for a guest with many vCPUs
        // can see to it that somebody always waits.
        for _ in 0..PATIENCE {
            if self.stopping.load(Ordering::SeqCst) == 0 {
                break;
            }
            thread::yield_now();
        }
        let mut running = lock(&self.device);
        if !self.is_live() {
            return Round::Drained;
        }
        // Who pauses waits for the lock after saying so. This round was decided on before, and is for after the pause.
        if self.kicks.is_paused() {
            return Round::More;
        }
        // As it is now, with the lock held: an embedder that takes memory away and then had the device is done with it.
        let memory = self.space.memory();
        let Running { device, queues, fault } = &mut *running;
        match device.process(QueueIndex(index as u16), &mut Queues::new(queues, &memory)) {
            Ok(round) => round,
            Err(error) => {
                *fault = Some(error);
                self.break_device(&mut running);
                drop(running);
                self.tell_config_if_owed();
                Round::Drained
            }
        }
    }

    /// The device, with no round under way: before the next one, however many the guest has in store.
    pub(super) fn stop(&self) -> MutexGuard<'_, Running<D>> {
        self.stopping.fetch_add(1, Ordering::SeqCst);
        let running = lock(&self.device);
        self.stopping.fetch_sub(1, Ordering::SeqCst);
        running
    }

    /// Tells whatever the line has refused, but for what the queues remember.
    pub(super) fn tell_what_is_owed(&self) {
        self.interrupt.settle();
        self.tell_config_if_owed();
    }

    /// Tells a driver that is ready of a configuration change that it does not know of yet. A refusal is tried again with the next
    /// kick.
    pub(super) fn tell_config_if_owed(&self) {
        if !self.has(DRIVER_OK) {
            return;
        }
        if self.config_owed.swap(false, Ordering::SeqCst) && self.interrupt.config_changed().is_err() {
            self.config_owed.store(true, Ordering::SeqCst);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{io, sync::Arc};

    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::virtio::{
        DeviceId, QueueError, features,
        queue::VirtioInterrupt,
        transport::status::{ACKNOWLEDGE, DRIVER, FEATURES_OK},
    };

    /// Counts its rounds.
    struct Counting(u32);

    impl VirtioDevice<GuestMemoryMmap> for Counting {
        fn device_id(&self) -> DeviceId {
            DeviceId(42)
        }

        fn queue_sizes(&self) -> &[u16] {
            &[8]
        }

        fn process(&mut self, _: QueueIndex, _: &mut Queues<'_, GuestMemoryMmap>) -> Result<Round, QueueError> {
            self.0 += 1;
            Ok(Round::Drained)
        }

        fn reset(&mut self) {}
    }

    struct Silent;

    impl VirtioInterrupt for Silent {
        fn used(&self, _: &[QueueIndex]) -> io::Result<()> {
            Ok(())
        }

        fn config_changed(&self) -> io::Result<()> {
            Ok(())
        }

        fn reset(&self) {}
    }

    #[test]
    fn a_round_that_was_decided_on_before_a_pause_does_not_begin_after_it() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let core = Core::new(Counting(0), Arc::new(memory), Arc::new(Silent), 0).unwrap();
        core.registers().driver_features = features::VERSION_1;
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
            core.write_status(bit);
        }
        let rounds = || core.change_device(|device| (device.0, false));
        let before = rounds();
        let pauses: [[&dyn Fn(); 2]; 2] = [
            [&|| core.pause(), &|| core.resume()],
            [&|| _ = core.set_bus_master(false), &|| {
                core.set_bus_master(true);
                core.look_again();
            }],
        ];
        for [pause, go_on] in pauses {
            let mut paused = false;
            // The thread that works has looked, and comes no further before the pause has returned.
            core.kicks.mark(0);
            core.kicks.run(|index| {
                assert!(!std::mem::replace(&mut paused, true), "again and again");
                pause();
                core.round(index)
            });
            assert_eq!(rounds(), before);
            go_on();
            assert!(rounds() > before, "it was looked at after the pause");
            core.change_device(|device| (device.0 = before, false));
        }
    }
}
