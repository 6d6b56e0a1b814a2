//! What the driver sets up, wherever a transport has its registers.
//!
//! They are frozen as the specification says: features until FEATURES_OK, a queue from FEATURES_OK until it is ready, and everything for
//! good once DRIVER_OK is set, but for a queue that was reset by itself.

use std::sync::atomic::Ordering;

use super::{
    common::{Core, Registers},
    saved::QueueSetup,
    status::{DRIVER, DRIVER_OK, FEATURES_OK},
};
use crate::virtio::{
    VirtioDevice, features,
    queue::{QueueLayout, Stop, is_size},
};

impl<D: VirtioDevice> Core<D> {
    /// The registers, to select by them: not while a reset is under way, which ignores all writes.
    pub fn select(&self, select: impl FnOnce(&mut Registers)) {
        let mut registers = self.registers();
        if !self.is_resetting() {
            select(&mut registers);
        }
    }

    pub fn device_features(&self) -> u32 {
        let sel = self.registers().device_features_sel;
        word(self.offered(), sel)
    }

    pub(super) fn offered(&self) -> u64 {
        self.offered.load(Ordering::SeqCst)
    }

    pub fn driver_features(&self) -> u32 {
        let registers = self.registers();
        word(registers.driver_features, registers.driver_features_sel)
    }

    /// Whether the driver has accepted `features`, for good.
    pub fn has_negotiated(&self, features: u64) -> bool {
        self.negotiated.load(Ordering::SeqCst) & features == features
    }

    pub fn write_driver_features(&self, value: u32) {
        let mut registers = self.registers();
        if !self.has(DRIVER) || self.has(FEATURES_OK) || self.is_resetting() {
            return;
        }
        match registers.driver_features_sel {
            0 => replace_low(&mut registers.driver_features, value),
            1 => replace_high(&mut registers.driver_features, value),
            _ => registers.unknown_features |= value != 0,
        }
    }

    /// The maximum size of the selected queue; zero if there is no such queue.
    pub fn queue_size_max(&self) -> u16 {
        let selected = self.registers().selected();
        self.queue_sizes.get(selected).copied().unwrap_or(0)
    }

    pub fn queue_ready(&self) -> bool {
        self.selected_queue().is_some_and(|queue| queue.ready)
    }

    pub fn queue_count(&self) -> u16 {
        // Checked when it was made.
        self.queue_sizes.len() as u16
    }

    /// The selected queue as the driver has programmed it, if there is one.
    pub fn selected_queue(&self) -> Option<QueueSetup> {
        let registers = self.registers();
        registers.queues.get(registers.selected()).copied()
    }

    /// Whether each queue is one whose kicks mean something: enabled, of a driver that is ready.
    pub fn kickable(&self) -> Vec<bool> {
        let registers = self.registers();
        let live = self.is_live();
        registers.queues.iter().map(|queue| live && queue.ready).collect()
    }

    /// Sets the size of the selected queue, if it is not frozen. One that cannot be becomes zero: what the register reads as
    /// is, of a split ring, "either a value of 0 or a power of 2" (section 4.1.4.3.1), and a queue of size zero is refused when it is
    /// started.
    /// The size of before would not do, for the driver has made its rings for the one that it has written, and the device
    /// would write beyond them.
    pub fn write_queue_size(&self, value: u32) {
        let mut registers = self.registers();
        let selected = registers.selected();
        let packed = registers.driver_features & features::RING_PACKED != 0;
        if let Some(queue) = self.unfrozen(&mut registers) {
            let max = self.queue_sizes[selected];
            let size = u16::try_from(value).unwrap_or(0);
            queue.layout.size = if is_size(size, max, packed) { size } else { 0 };
        }
    }

    /// Changes the layout of the selected queue, if it is not frozen.
    pub fn set_up_queue(&self, change: impl FnOnce(&mut QueueLayout)) {
        let mut registers = self.registers();
        if let Some(queue) = self.unfrozen(&mut registers) {
            change(&mut queue.layout);
        }
    }

    /// The selected queue, if its registers may change.
    pub(super) fn unfrozen<'a>(&self, registers: &'a mut Registers) -> Option<&'a mut QueueSetup> {
        let selected = registers.selected();
        let lane = self.lanes.get(selected)?;
        let queue = registers.queues.get_mut(selected)?;
        let stopping = self.is_resetting() || lane.word.is_stopped_for(Stop::Queue);
        let open = self.has(FEATURES_OK) && (!self.has(DRIVER_OK) || queue.was_reset) && !stopping;
        (open && !queue.ready).then_some(queue)
    }
}

/// The 32 bits of `value` that `sel` selects.
fn word(value: u64, sel: u32) -> u32 {
    match sel {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Replaces the low half of a 64-bit register that the guest writes in two.
pub(crate) fn replace_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

/// Replaces the high half.
pub(crate) fn replace_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}
