//! The device status and what hangs on it (virtio 1.2, sections 2.1 and 3.1.1).

use std::sync::atomic::Ordering;

use super::{
    common::{Core, Registers},
    status::{self, DEVICE_NEEDS_RESET, DRIVER_OK, FAILED, FEATURES_OK},
};
use crate::virtio::{Fault, VirtioDevice, features};

impl<D: VirtioDevice> Core<D> {
    /// As the driver reads it: what it has reset reads zero once it is still.
    pub fn status(&self) -> u32 {
        self.finish_reset();
        self.status.load(Ordering::SeqCst)
    }

    /// The driver writes the status, and not zero: bits are added in the order of section 3.1.1, and one that
    /// comes before its time is left out. The driver cannot take a bit away, nor set DEVICE_NEEDS_RESET. FAILED is noted and
    /// means nothing to the device: a driver is to reset it before it tries again, but Linux does not.
    pub fn write_status(&self, value: u32) {
        let mut registers = self.registers();
        if self.is_resetting() {
            return;
        }
        // Now, and not at the end, where another thread may have reset the device.
        self.status.fetch_or(value & FAILED, Ordering::SeqCst);
        for (bit, after) in status::ORDER {
            let broken = self.has(DEVICE_NEEDS_RESET);
            if value & bit == 0 || self.has(bit) || !self.has(after) || broken {
                continue;
            }
            match bit {
                FEATURES_OK if !self.negotiate(&registers) => continue,
                DRIVER_OK => {
                    let fault = self.activate(&mut registers);
                    drop(registers);
                    if let Some(fault) = fault {
                        self.fail(fault);
                    }
                    self.act_on_failure();
                    self.tell_config_if_owed();
                    self.kick_all();
                    break;
                }
                _ => _ = self.status.fetch_or(bit, Ordering::SeqCst),
            }
        }
    }

    /// Whether the device can work with what the driver has accepted. It is told so then.
    pub(super) fn negotiate(&self, registers: &Registers) -> bool {
        let accepted = self.as_modern(registers.driver_features);
        let known = accepted & !self.offered() == 0 && !registers.unknown_features;
        let mut device = self.control();
        let agreed = known && self.accepts_enough(accepted) && device.accepts(accepted);
        if agreed {
            device.negotiated(accepted);
            self.negotiated.store(accepted, Ordering::SeqCst);
            self.note_config_change();
        }
        agreed
    }

    /// Whether nothing is missing that the device does not work without.
    pub(super) fn accepts_enough(&self, accepted: u64) -> bool {
        accepted & self.needed == self.needed
    }

    /// What a driver has accepted that writes these features.
    pub(super) fn as_modern(&self, features: u64) -> u64 {
        match self.without_version_1 {
            true => features | features::VERSION_1,
            false => features,
        }
    }

    fn activate(&self, registers: &mut Registers) -> Option<Fault> {
        let mut fault = None;
        for index in 0..registers.queues.len() {
            fault = fault.or(self.start_queue(registers, index).err());
        }
        self.interrupt.ready();
        self.status.fetch_or(DRIVER_OK, Ordering::SeqCst);
        fault
    }
}
