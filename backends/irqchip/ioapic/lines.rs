//! The pins of an IOAPIC as lines for devices.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{IoApic, IoApicError, Pin, Shared};
use crate::interrupt::{Interrupt, LevelInterrupt};

impl IoApic {
    /// A level line into a pin: `trigger` drives it high and `clear` low.
    ///
    /// The guest decides how it is understood. With the usual polarity, active high: level-sensitive, a message is
    /// sent when the line is up, and again after each EOI while it still is; edge-triggered, with each rise. With the
    /// other polarity it is the low pin that counts. Several handles of one pin are a wired-OR, and dropping one lets go.
    ///
    /// The line takes every change, so its calls are never an `Err`: a message that the sink refuses is owed by the
    /// IOAPIC (see [there](IoApic#messages)) and not by the device.
    ///
    /// # Errors
    /// [`IoApicError::NoSuchPin`].
    pub fn level_line(&self, pin: Pin) -> Result<LevelLine, IoApicError> {
        Ok(LevelLine {
            pin: self.shared.pin(pin)?,
            ioapic: Arc::clone(&self.shared),
            up: AtomicBool::new(false),
        })
    }

    /// An edge line into a pin: each trigger is a pulse, which sends one message, whatever the level that a
    /// [`LevelLine`] of the same pin holds and whatever the polarity.
    ///
    /// While the guest has the pin masked, a pulse is lost, as on the 82093AA. While it has the pin level-sensitive, a
    /// pulse sends a message if none is in service.
    ///
    /// # Errors
    /// [`IoApicError::NoSuchPin`].
    pub fn edge_line(&self, pin: Pin) -> Result<EdgeLine, IoApicError> {
        Ok(EdgeLine {
            pin: self.shared.pin(pin)?,
            ioapic: Arc::clone(&self.shared),
        })
    }
}

/// A device's level line into an [`IoApic`]. Dropping it lets go of the line.
pub struct LevelLine {
    ioapic: Arc<Shared>,
    pin: u32,
    /// Whether this handle holds the line up. Changes under the lock of the IOAPIC only.
    up: AtomicBool,
}

impl LevelLine {
    fn drive(&self, up: bool) {
        self.ioapic.with(|model| {
            if self.up.load(Ordering::Relaxed) != up {
                self.up.store(up, Ordering::Relaxed);
                model.hold(self.pin, up);
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
            .field("pin", &Pin(self.pin))
            .field("up", &self.up.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// An edge line into an [`IoApic`].
pub struct EdgeLine {
    ioapic: Arc<Shared>,
    pin: u32,
}

/// An `Err` is that of the sink. The IOAPIC owes the message all the same, and a further trigger makes it no second one.
impl Interrupt for EdgeLine {
    fn trigger(&self) -> io::Result<()> {
        self.ioapic.with_answer(Some(self.pin), |model| model.pulse(self.pin))
    }
}

impl fmt::Debug for EdgeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLine")
            .field("pin", &Pin(self.pin))
            .finish_non_exhaustive()
    }
}
