//! The inputs of the 8259 pair as lines for devices.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Irq, Pic, PicError, Shared};
use crate::interrupt::{Interrupt, LevelInterrupt};

impl Pic {
    /// A level line into an IRQ.
    ///
    /// ELCR decides how it is understood: level-triggered, there is a request while the line is up; edge-triggered, each
    /// rise makes one. Several handles of one IRQ are a wired-OR, and dropping one lets go. The line takes every change,
    /// so its calls are never an `Err`: an INTR that refuses to be told is told again with the next change.
    ///
    /// # Errors
    /// [`PicError::NoSuchIrq`].
    pub fn level_line(&self, irq: Irq) -> Result<LevelLine, PicError> {
        Ok(LevelLine {
            irq: irq.check()?,
            pic: Arc::clone(&self.shared),
            up: AtomicBool::new(false),
        })
    }

    /// An edge line into an IRQ: each trigger is a pulse, whatever the level that a [`LevelLine`] of the same IRQ holds.
    /// On an IRQ that the guest has made level-triggered, a pulse goes by unseen.
    ///
    /// # Errors
    /// [`PicError::NoSuchIrq`].
    pub fn edge_line(&self, irq: Irq) -> Result<EdgeLine, PicError> {
        Ok(EdgeLine {
            irq: irq.check()?,
            pic: Arc::clone(&self.shared),
        })
    }
}

/// A device's level line into a [`Pic`]. Dropping it lets go of the line.
pub struct LevelLine {
    pic: Arc<Shared>,
    irq: u8,
    /// Whether this handle holds the line up. Changes under the lock of the pair only.
    up: AtomicBool,
}

impl LevelLine {
    fn drive(&self, up: bool) {
        let ((), _) = self.pic.with(|model| {
            if self.up.load(Ordering::Relaxed) != up {
                self.up.store(up, Ordering::Relaxed);
                model.hold(self.irq, up);
            }
        });
    }
}

impl Interrupt for LevelLine {
    fn trigger(&self) -> io::Result<()> {
        self.drive(true);
        Ok(())
    }
}

impl LevelInterrupt for LevelLine {
    fn clear(&self) -> io::Result<()> {
        self.drive(false);
        Ok(())
    }
}

impl Drop for LevelLine {
    fn drop(&mut self) {
        self.drive(false);
    }
}

impl fmt::Debug for LevelLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelLine")
            .field("irq", &Irq(self.irq))
            .field("up", &self.up.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// An edge line into a [`Pic`].
pub struct EdgeLine {
    pic: Arc<Shared>,
    irq: u8,
}

/// An `Err` says that INTR refused to be told. The request is there all the same.
impl Interrupt for EdgeLine {
    fn trigger(&self) -> io::Result<()> {
        let ((), told) = self.pic.with(|model| model.pulse(self.irq));
        told
    }
}

impl fmt::Debug for EdgeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLine")
            .field("irq", &Irq(self.irq))
            .finish_non_exhaustive()
    }
}
