//! The state of the 8259 pair as plain data: taken, checked and put back.

use super::{
    Pic,
    chip::{Chip, InitStep},
    model::Model,
    registers::*,
};
use crate::sync::lock;

/// Everything of a [`Pic`] that a guest can see. Made by [`Pic::save`], taken by [`Pic::restore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PicState {
    /// IRQs 0 to 7.
    pub master: ChipState,
    /// IRQs 8 to 15.
    pub slave: ChipState,
}

/// One 8259A. In each bit field, bit n is the chip's input n.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChipState {
    /// The levels of the inputs. The master's input 2 is the slave, and not in here.
    pub lines: u8,
    /// Interrupt request register. Of level-triggered inputs it is the level.
    pub irr: u8,
    /// In-service register.
    pub isr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// ELCR: the level-triggered inputs.
    pub elcr: u8,
    /// ICW2: the vector of input 0, a multiple of 8.
    pub base: u8,
    /// How far the initialization has come.
    pub step: InitStep,
    /// ICW1.SNGL.
    pub single: bool,
    /// ICW1.IC4.
    pub wants_icw4: bool,
    /// ICW4.AEOI.
    pub auto_eoi: bool,
    /// ICW4.SFNM.
    pub special_fully_nested: bool,
    /// Rotate in automatic EOI mode (OCW2).
    pub rotate_in_auto_eoi: bool,
    /// Special mask mode (OCW3).
    pub special_mask: bool,
    /// The next read is a poll (OCW3).
    pub poll: bool,
    /// Reads give ISR and not IRR (OCW3).
    pub read_isr: bool,
    /// The input of the highest priority, 0 to 7. The one before it has the lowest.
    pub first: u8,
}

/// A [`PicState`] cannot be restored. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PicStateError {
    /// A field has bits that no guest could have set.
    #[error("{field} of the {chip} is {value:#x}: accepted are values within {accepted:#x}")]
    Bits {
        /// Master or slave.
        chip: &'static str,
        /// Which field.
        field: &'static str,
        /// What it is.
        value: u8,
        /// The bits that it has.
        accepted: u8,
    },
    /// A level-triggered input has a request without a level, or a level without a request.
    #[error("IRR of the {chip} is {irr:#x}: accepted are {lines:#x} for the level-triggered inputs {elcr:#x}")]
    Level {
        /// Master or slave.
        chip: &'static str,
        /// The request register.
        irr: u8,
        /// What it has to be, for level-triggered inputs.
        lines: u8,
        /// Which inputs those are.
        elcr: u8,
    },
}

impl Pic {
    /// Takes the state. Stop the vCPUs and the devices first, or it is that of some moment in between.
    pub fn save(&self) -> PicState {
        lock(&self.shared.model).save()
    }

    /// Puts a state back. INTR is derived from it at once.
    ///
    /// Restore the devices too, before or after: a line that was up is expected to be driven up again, which is no new
    /// edge for the guest. Until then it counts as up. A line that was down and is up now is a new edge.
    ///
    /// # Errors
    /// [`PicStateError`]: the state is refused as a whole.
    pub fn restore(&self, state: &PicState) -> Result<(), PicStateError> {
        state.check()?;
        self.shared.with(|model| model.restore(state));
        Ok(())
    }
}

impl PicState {
    pub(in crate::backends::irqchip) fn check(&self) -> Result<(), PicStateError> {
        self.master.check("master", true)?;
        self.slave.check("slave", false)
    }
}

impl Model {
    fn save(&self) -> PicState {
        // What holds a line is the embedder's to build again, and what the master has seen of the slave follows.
        let Self {
            holders: _,
            restored_up: _,
            master,
            slave,
            slave_int: _,
        } = self;
        PicState {
            master: master.save(),
            slave: slave.save(),
        }
    }

    /// Puts a checked state back.
    fn restore(&mut self, state: &PicState) {
        let PicState { master, slave } = state;
        self.master.restore(master);
        self.slave.restore(slave);
        self.see_slave();
        self.restored_up = u16::from_le_bytes([master.lines, slave.lines]);
        for irq in 0..16 {
            // The first line counts from the saved level on, so that what has changed since is an edge.
            if let Some(others) = self.holders[usize::from(irq)].checked_sub(1) {
                self.holders[usize::from(irq)] = others;
                self.hold(irq, true);
            }
        }
    }
}

impl Chip {
    fn save(&self) -> ChipState {
        let irr = self.irr();
        let Self {
            is_master: _,
            lines,
            latched: _,
            isr,
            imr,
            elcr,
            base,
            step,
            single,
            wants_icw4,
            auto_eoi,
            special_fully_nested,
            rotate_in_auto_eoi,
            special_mask,
            poll,
            read_isr,
            first,
        } = *self;
        ChipState {
            lines,
            irr,
            isr,
            imr,
            elcr,
            base,
            step,
            single,
            wants_icw4,
            auto_eoi,
            special_fully_nested,
            rotate_in_auto_eoi,
            special_mask,
            poll,
            read_isr,
            first,
        }
    }

    fn restore(&mut self, state: &ChipState) {
        let ChipState {
            lines,
            irr,
            isr,
            imr,
            elcr,
            base,
            step,
            single,
            wants_icw4,
            auto_eoi,
            special_fully_nested,
            rotate_in_auto_eoi,
            special_mask,
            poll,
            read_isr,
            first,
        } = *state;
        *self = Self {
            is_master: self.is_master,
            lines,
            latched: irr & !elcr,
            isr,
            imr,
            elcr,
            base,
            step,
            single,
            wants_icw4,
            auto_eoi,
            special_fully_nested,
            rotate_in_auto_eoi,
            special_mask,
            poll,
            read_isr,
            first,
        };
    }
}

impl ChipState {
    fn check(&self, chip: &'static str, is_master: bool) -> Result<(), PicStateError> {
        let inputs = if is_master { !(1 << CASCADE) } else { u8::MAX };
        for (field, value, accepted) in [
            ("lines", self.lines, inputs),
            ("ELCR", self.elcr, ELCR_WRITABLE[usize::from(!is_master)]),
            ("ICW2", self.base, ICW2_BASE),
            ("highest priority", self.first, OCW2_LEVEL),
        ] {
            if value & !accepted != 0 {
                return Err(PicStateError::Bits {
                    chip,
                    field,
                    value,
                    accepted,
                });
            }
        }
        if self.irr & self.elcr != self.lines & self.elcr {
            return Err(PicStateError::Level {
                chip,
                irr: self.irr,
                lines: self.lines & self.elcr,
                elcr: self.elcr,
            });
        }
        Ok(())
    }
}
