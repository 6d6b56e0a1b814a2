//! The reset of a device (virtio 1.2, section 2.4). It begins, comes to rest, and is finished by whoever looks next.

use std::{sync::atomic::Ordering, time::Instant};

use super::common::{Core, Registers};
use crate::{
    sync::lock,
    virtio::{VirtioDevice, queue::Stop},
};

impl<D: VirtioDevice> Core<D> {
    /// Works at every stage. From here on the driver is not heard, nor told of anything, until everything is as at power-on.
    pub fn begin_reset(&self) {
        let untold = {
            // In one step, or the end of another reset could come between.
            let _registers = self.registers();
            self.resetting.store(true, Ordering::SeqCst);
            self.forget_notice();
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
            self.forget_notice();
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
}
