//! Saved states of the registers.

use super::{model::Model, registers::*};

/// The state of an [`AcpiPm`](super::AcpiPm), as plain data. The line follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiPmState {
    /// The timer.
    pub timer: u32,
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, with SCI_EN.
    pub control: u16,
    /// The status registers of GPE0.
    pub gpe_status: Vec<u8>,
    /// The enable registers of GPE0.
    pub gpe_enable: Vec<u8>,
}

/// An [`AcpiPmState`] is not one that this device can have. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiPmStateError {
    /// Bits are set that the register does not have.
    #[error("{register} is {value:#06x}: it has no bits but {mask:#06x}")]
    Bits {
        /// Which one.
        register: &'static str,
        /// What is in the state.
        value: u16,
        /// What can be.
        mask: u16,
    },
    /// It has another number of GPEs.
    #[error("{status} status and {enable} enable registers of GPE0: here are {here} of each")]
    Gpes {
        /// Status registers in the state.
        status: usize,
        /// Enable registers in the state.
        enable: usize,
        /// Registers of this device.
        here: usize,
    },
    /// The timer of this device has fewer bits.
    #[error("the timer is at {timer:#x}: it counts to {mask:#x}")]
    Timer {
        /// What is in the state.
        timer: u32,
        /// What can be.
        mask: u32,
    },
}

impl Model {
    pub(super) fn save(&self) -> AcpiPmState {
        let Self {
            config: _,
            host: _,
            timer,
            status,
            enable,
            control,
            gpes,
            sleep: _,
        } = self;
        AcpiPmState {
            timer: *timer as u32,
            status: *status,
            enable: *enable,
            control: *control,
            gpe_status: gpes.iter().map(|gpes| gpes.status).collect(),
            gpe_enable: gpes.iter().map(|gpes| gpes.enable).collect(),
        }
    }

    pub(super) fn restore(&mut self, state: &AcpiPmState) -> Result<(), AcpiPmStateError> {
        let AcpiPmState {
            timer,
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
        } = state;
        for (register, value, mask) in [
            ("PM1 status", *status, pm1::STATUS),
            ("PM1 enable", *enable, pm1::ENABLES),
            ("PM1 control", *control, control::KEPT | control::SCI_EN),
        ] {
            if value & !mask != 0 {
                return Err(AcpiPmStateError::Bits { register, value, mask });
            }
        }
        let here = self.gpes.len();
        if gpe_status.len() != here || gpe_enable.len() != here {
            return Err(AcpiPmStateError::Gpes {
                status: gpe_status.len(),
                enable: gpe_enable.len(),
                here,
            });
        }
        let (timer, mask) = (*timer, self.config.timer.mask());
        if timer & !mask != 0 {
            return Err(AcpiPmStateError::Timer { timer, mask });
        }
        self.timer = timer.into();
        (self.status, self.enable, self.control) = (*status, *enable, *control);
        for (gpes, (status, enable)) in self.gpes.iter_mut().zip(gpe_status.iter().zip(gpe_enable)) {
            (gpes.status, gpes.enable) = (*status, *enable);
            // What lines hold up here is there, too.
            gpes.clear(0);
        }
        Ok(())
    }
}
