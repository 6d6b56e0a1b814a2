//! The inputs of the 8259 pair as lines for devices.

use std::sync::Arc;

use super::{Irq, Pic, PicError, Shared};
use crate::backends::irqchip::lines::{EdgeLine, Held, Inputs, LevelLine};

impl Pic {
    /// A level line into an IRQ.
    ///
    /// ELCR decides how it is understood: level-triggered, there is a request while the line is up; edge-triggered, each
    /// rise makes one. An INTR that refuses to be told is the pair's to tell again, with whatever happens next to it, and not
    /// the device's.
    ///
    /// # Errors
    /// [`PicError::NoSuchIrq`].
    pub fn level_line(&self, irq: Irq) -> Result<LevelLine, PicError> {
        let number = irq.check()?;
        Ok(LevelLine::new(Arc::clone(&self.shared) as _, number.into()))
    }

    /// An edge line into an IRQ: each trigger is a pulse, whatever the level that a [`LevelLine`] of the same IRQ holds.
    /// On an IRQ that the guest has made level-triggered, a pulse goes by unseen.
    ///
    /// # Errors
    /// [`PicError::NoSuchIrq`].
    pub fn edge_line(&self, irq: Irq) -> Result<EdgeLine, PicError> {
        let number = irq.check()?;
        Ok(EdgeLine::new(Arc::clone(&self.shared) as _, number.into()))
    }
}

/// An IRQ is its own number.
impl Inputs for Shared {
    fn hold(&self, irq: u32, held: &Held, up: bool) {
        self.with(|model| {
            if held.set(up) {
                model.hold(irq as u8, up);
            }
        });
    }

    fn pulse(&self, irq: u32) {
        self.with(|model| model.pulse(irq as u8));
    }

    fn name(&self, irq: u32) -> String {
        Irq(irq as u8).to_string()
    }
}
