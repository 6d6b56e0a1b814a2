//! The state of an IOAPIC as plain data: taken, checked and put back.

use std::sync::atomic::Ordering;

use super::{
    IoApic,
    model::{Model, Pin, is_level},
    registers::*,
};
use crate::sync::lock;

/// Everything of an [`IoApic`] that a guest can see. Made by [`IoApic::save`], taken by [`IoApic::restore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoApicState {
    /// The ID in IOAPICID, 0 to 15.
    pub id: u8,
    /// IOREGSEL.
    pub select: u32,
    /// The pins, from pin 0 on.
    pub pins: Vec<PinState>,
}

/// One pin and its redirection entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinState {
    /// The entry as the guest reads it, except for Delivery Status: that is set if an edge was accepted whose message
    /// was not. One for a level follows from the line.
    pub entry: u64,
    /// Whether a line holds the pin up: it is high then, or low if it [idles high](IoApic::pull_up).
    pub line: bool,
}

/// An [`IoApicState`] cannot be restored. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoApicStateError {
    /// It is of an IOAPIC with more or fewer pins.
    #[error("state has {saved} pins: this IOAPIC has {this}")]
    Pins {
        /// Of the state.
        saved: usize,
        /// Of the IOAPIC that was to be restored.
        this: usize,
    },
    /// A register has bits that no guest could have set.
    #[error("{register} is {value:#x}: accepted are values within {accepted:#x}")]
    Bits {
        /// Which register.
        register: String,
        /// What it is.
        value: u64,
        /// The bits that it has.
        accepted: u64,
    },
    /// Remote IRR is set where there is none.
    #[error(
        "entry {index} is {entry:#x}: Remote IRR is accepted for level-sensitive entries of fixed or lowest priority delivery"
    )]
    RemoteIrr {
        /// Which entry.
        index: usize,
        /// What it is.
        entry: u64,
    },
}

impl IoApic {
    /// Takes the state. Stop the vCPUs and the devices first, or it is that of some moment in between.
    pub fn save(&self) -> IoApicState {
        lock(&self.shared.model).save()
    }

    /// Puts a state back. Messages are derived from it at once: what was owed when it was saved is sent during the call,
    /// and what the guest has in service is not sent again.
    ///
    /// Restore the devices too, before or after: a line that was up is expected to be driven up again, which is no new
    /// edge for the guest. Until then it counts as up. A line that was down and is up now is a new edge.
    ///
    /// # Errors
    /// [`IoApicStateError`]: the state is refused as a whole.
    pub fn restore(&self, state: &IoApicState) -> Result<(), IoApicStateError> {
        self.check(state)?;
        self.shared.with(|model| {
            model.restore(state);
            self.shared.restores.fetch_add(1, Ordering::Release);
        });
        Ok(())
    }

    pub(in crate::backends::irqchip) fn check(&self, state: &IoApicState) -> Result<(), IoApicStateError> {
        state.check(self.shared.config.pins as usize)
    }
}

impl Model {
    fn save(&self) -> IoApicState {
        // `due` follows from the rest: a restore looks at every pin.
        let Self {
            pins,
            id,
            select,
            remote_irr,
            due: _,
            retries: _,
        } = self;
        let pins = (0..).zip(pins).map(|(index, pin)| {
            let Pin {
                pulled_up: _,
                holders: _,
                restored_up: _,
                latched,
                attempt: _,
                entry,
            } = *pin;
            let remote_irr = u64::from(remote_irr.contains(index)) * REMOTE_IRR;
            let latched = u64::from(latched) * DELIVERY_STATUS;
            PinState {
                entry: entry | remote_irr | latched,
                line: pin.is_up(),
            }
        });
        IoApicState {
            id: *id,
            select: *select,
            pins: pins.collect(),
        }
    }

    /// Puts a checked state back.
    fn restore(&mut self, state: &IoApicState) {
        let IoApicState { id, select, pins } = state;
        self.reset();
        (self.id, self.select) = (*id, *select);
        for (index, PinState { entry, line }) in (0..).zip(pins) {
            if entry & REMOTE_IRR != 0 {
                self.remote_irr.insert(index);
            }
            let pin = &mut self.pins[index as usize];
            pin.entry = entry & WRITABLE;
            pin.latched = entry & DELIVERY_STATUS != 0;
            pin.restored_up = *line;
            // The first line counts from the saved level on, so that what has changed since is an edge.
            if pin.holders != 0 {
                pin.holders -= 1;
                let others = std::mem::take(&mut pin.holders);
                self.hold(index, true);
                self.pins[index as usize].holders += others;
            }
            self.due.insert(index);
        }
    }
}

impl IoApicState {
    fn check(&self, pins: usize) -> Result<(), IoApicStateError> {
        let Self {
            id,
            select,
            pins: saved,
        } = self;
        if saved.len() != pins {
            return Err(IoApicStateError::Pins {
                saved: saved.len(),
                this: pins,
            });
        }
        bits(|| "IOAPICID".into(), u64::from(*id), ID_MAX.into())?;
        bits(
            || "IOREGSEL".into(),
            u64::from(*select),
            Model::select_mask(pins).into(),
        )?;
        for (index, PinState { entry, line: _ }) in saved.iter().enumerate() {
            bits(|| format!("entry {index}"), *entry, WRITABLE | READ_ONLY)?;
            if entry & REMOTE_IRR != 0 && !is_level(*entry) {
                return Err(IoApicStateError::RemoteIrr { index, entry: *entry });
            }
        }
        Ok(())
    }
}

fn bits(register: impl FnOnce() -> String, value: u64, accepted: u64) -> Result<(), IoApicStateError> {
    if value & !accepted == 0 {
        return Ok(());
    }
    Err(IoApicStateError::Bits {
        register: register(),
        value,
        accepted,
    })
}
