//! The common configuration (virtio 1.2, section 4.1.4.3).

use super::{VirtioPci, registers::*};
use crate::virtio::{
    QueueIndex, VirtioDevice, features,
    queue::QueueLayout,
    transport::{
        common::Core,
        registers::{replace_high, replace_low},
    },
};

/// The three addresses of a queue, each a register of 64 bits that is also accessed by halves.
const AREAS: std::ops::Range<u64> = QUEUE_DESC..QUEUE_NOTIFY_DATA;

impl<D: VirtioDevice> VirtioPci<D> {
    fn selected(&self) -> QueueIndex {
        // Written as 16 bits.
        QueueIndex(self.core.registers().queue_sel as u16)
    }

    /// Registers answer to their own width and alignment (section 4.1.3.1), others read as zero. The addresses of a queue
    /// also answer to 8 bytes.
    pub(super) fn read_common(&self, register: u64, len: usize) -> u64 {
        let core = &self.core;
        let queue = || core.selected_queue();
        match (register, len) {
            (DEVICE_FEATURE_SELECT, 4) => core.registers().device_features_sel.into(),
            (DEVICE_FEATURE, 4) => core.device_features().into(),
            (DRIVER_FEATURE_SELECT, 4) => core.registers().driver_features_sel.into(),
            (DRIVER_FEATURE, 4) => core.driver_features().into(),
            (CONFIG_MSIX_VECTOR, 2) => self.interrupt.config_vector().into(),
            (NUM_QUEUES, 2) => core.queue_count().into(),
            (DEVICE_STATUS, 1) => core.status().into(),
            (CONFIG_GENERATION, 1) => (core.read_config_generation() as u8).into(),
            (QUEUE_SELECT, 2) => self.selected().0.into(),
            (QUEUE_SIZE, 2) => queue().map_or(0, |queue| queue.layout.size).into(),
            (QUEUE_MSIX_VECTOR, 2) => self.interrupt.queue_vector(self.selected()).into(),
            (QUEUE_ENABLE, 2) => core.queue_ready().into(),
            // A doorbell each.
            (QUEUE_NOTIFY_OFF, 2) => queue().map_or(0, |_| self.selected().0).into(),
            // The queue's number is as good a name as any. The doorbell knows its queue by the address.
            (QUEUE_NOTIFY_DATA, 2) if core.has_negotiated(features::NOTIF_CONFIG_DATA) => {
                queue().map_or(0, |_| self.selected().0).into()
            }
            (QUEUE_RESET, 2) => core.is_queue_stopping(self.selected()).into(),
            (_, 8) if is_area(register, 8) => area(core, register) | area(core, register + 4) << 32,
            (_, 4) if is_area(register, 4) => area(core, register),
            _ => 0,
        }
    }

    /// As [`read_common`](Self::read_common): what has another width or alignment writes nothing.
    pub(super) fn write_common(&self, register: u64, len: usize, value: u64) {
        let core = &self.core;
        match (register, len) {
            (DEVICE_FEATURE_SELECT, 4) => core.select(|registers| registers.device_features_sel = value as u32),
            (DRIVER_FEATURE_SELECT, 4) => core.select(|registers| registers.driver_features_sel = value as u32),
            (DRIVER_FEATURE, 4) => core.write_driver_features(value as u32),
            (CONFIG_MSIX_VECTOR, 2) if !core.is_resetting() => self.interrupt.map_config(value as u16),
            (DEVICE_STATUS, 1) if value == 0 => self.reset_device(),
            (DEVICE_STATUS, 1) => {
                core.write_status(value as u32);
                self.follow();
            }
            (QUEUE_SELECT, 2) => core.select(|registers| registers.queue_sel = value as u32),
            (QUEUE_SIZE, 2) => core.write_queue_size(value as u32),
            (QUEUE_MSIX_VECTOR, 2) if !core.is_resetting() => self.interrupt.map_queue(self.selected(), value as u16),
            // A driver does not write 0 (section 4.1.4.3.2): it resets the queue.
            (QUEUE_ENABLE, 2) if value == 1 => {
                core.enable_queue();
                self.follow();
            }
            (QUEUE_RESET, 2) if value == 1 => {
                // Back to what it was at first (section 2.6.1), its vector too.
                if let Some(queue) = core.reset_queue() {
                    self.interrupt.map_queue(queue, NO_VECTOR);
                    self.follow();
                    core.wait_for_queue(queue, self.patience());
                }
            }
            (_, 8) if is_area(register, 8) => {
                write_area(core, register, value as u32);
                write_area(core, register + 4, (value >> 32) as u32);
            }
            (_, 4) if is_area(register, 4) => write_area(core, register, value as u32),
            // Read-only, or not there.
            _ => {}
        }
    }
}

fn is_area(register: u64, len: u64) -> bool {
    AREAS.contains(&register) && register.is_multiple_of(len)
}

fn area_of(layout: &mut QueueLayout, register: u64) -> &mut u64 {
    match register {
        ..QUEUE_DRIVER => &mut layout.descriptor_area,
        QUEUE_DRIVER..QUEUE_DEVICE => &mut layout.driver_area,
        _ => &mut layout.device_area,
    }
}

/// Whether `register` is the upper half of an address.
fn is_upper(register: u64) -> bool {
    !register.is_multiple_of(8)
}

fn area<D: VirtioDevice>(core: &Core<D>, register: u64) -> u64 {
    let mut layout = core.selected_queue().map(|queue| queue.layout).unwrap_or_default();
    let address = *area_of(&mut layout, register);
    u64::from(if is_upper(register) {
        (address >> 32) as u32
    } else {
        address as u32
    })
}

fn write_area<D: VirtioDevice>(core: &Core<D>, register: u64, half: u32) {
    core.set_up_queue(|layout| {
        let address = area_of(layout, register);
        if is_upper(register) {
            replace_high(address, half);
        } else {
            replace_low(address, half);
        }
    });
}
