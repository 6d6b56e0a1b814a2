//! Global system interrupts: their names, who has claimed them, and how a claim becomes a line.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    ops::RangeInclusive,
    sync::{Arc, Mutex},
};

use super::{IrqLine, IrqPulse, Irqfd, KvmIrqError, ResampleIrqfd, Shared};
use crate::sync::lock;

/// A global system interrupt: an index into the VM's routing table (`KVM_SET_GSI_ROUTING`).
///
/// Not an INTID of the GIC, for which see [`ArmIrq`](super::ArmIrq), and not a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

/// As a description names it.
impl From<Gsi> for crate::description::Input {
    fn from(Gsi(number): Gsi) -> Self {
        Self::Gsi(number)
    }
}

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

/// Who has which GSI of a range.
pub(super) struct GsiTable {
    range: RangeInclusive<u32>,
    owners: Mutex<Owners>,
}

#[derive(Default)]
struct Owners {
    by_gsi: BTreeMap<Gsi, String>,
    /// All below are owned, so that a free one is found as fast when there are thousands.
    free_from: u32,
}

impl GsiTable {
    pub(super) fn new(range: RangeInclusive<u32>) -> Self {
        let owners = Mutex::default();
        Self { range, owners }
    }

    pub(super) fn range(&self) -> &RangeInclusive<u32> {
        &self.range
    }

    pub(super) fn claim(&self, gsi: Gsi, owner: String) -> Result<(), KvmIrqError> {
        let range = self.range.clone();
        if !range.contains(&gsi.0) {
            return Err(KvmIrqError::OutOfRange { gsi, range });
        }
        match lock(&self.owners).by_gsi.entry(gsi) {
            Entry::Vacant(free) => {
                free.insert(owner);
                Ok(())
            }
            Entry::Occupied(taken) => {
                let owner = taken.get().clone();
                Err(KvmIrqError::Taken { gsi, owner, range })
            }
        }
    }

    pub(super) fn allocate(&self, owner: String) -> Result<Gsi, KvmIrqError> {
        let mut owners = lock(&self.owners);
        let mut left = owners.free_from.max(*self.range.start())..=*self.range.end();
        let gsi = left.find(|gsi| !owners.by_gsi.contains_key(&Gsi(*gsi)));
        let gsi = gsi.map(Gsi).ok_or_else(|| KvmIrqError::Exhausted {
            range: self.range.clone(),
        })?;
        owners.by_gsi.insert(gsi, owner);
        owners.free_from = gsi.0 + 1;
        Ok(gsi)
    }

    pub(super) fn release(&self, gsi: Gsi) {
        let mut owners = lock(&self.owners);
        owners.by_gsi.remove(&gsi);
        owners.free_from = owners.free_from.min(gsi.0);
    }
}

impl fmt::Debug for GsiTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GsiTable")
            .field("range", &self.range)
            .field("owners", &lock(&self.owners).by_gsi)
            .finish()
    }
}

/// A GSI that is nobody else's, until it is dropped. One of the methods makes a line of it, which then holds the claim.
///
/// Claims are exclusive because KVM has *one* level for everything that user space drives on a GSI: a second line
/// would lower what the first holds up.
#[must_use = "dropping the claim frees the GSI"]
pub struct GsiClaim {
    gsi: Gsi,
    pub(super) shared: Arc<Shared>,
}

impl GsiClaim {
    pub(super) fn new(gsi: Gsi, shared: Arc<Shared>) -> Self {
        Self { gsi, shared }
    }

    /// The GSI: what the guest is told in its ACPI tables or device tree (there as the SPI number).
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }

    /// An edge line that signals by one `write(2)` to an eventfd.
    ///
    /// # Errors
    /// [`KvmIrqError::NoIrqchip`], [`KvmIrqError::NoRoute`], [`KvmIrqError::NotAWire`] or [`KvmIrqError::Refused`]; the GSI
    /// is free again.
    pub fn irqfd(self) -> Result<Irqfd, KvmIrqError> {
        Irqfd::new(self)
    }

    /// A level line that signals by a `write(2)` to an eventfd, and that the kernel tells of each EOI.
    ///
    /// # Errors
    /// As [`irqfd`](Self::irqfd).
    pub fn resample_irqfd(self) -> Result<ResampleIrqfd, KvmIrqError> {
        ResampleIrqfd::new(self)
    }

    /// A level line without a file descriptor: an ioctl for each call.
    ///
    /// # Errors
    /// As [`irqfd`](Self::irqfd).
    pub fn irq_line(self) -> Result<IrqLine, KvmIrqError> {
        IrqLine::new(self)
    }

    /// An edge line without a file descriptor: two ioctls for each call.
    ///
    /// # Errors
    /// As [`irqfd`](Self::irqfd).
    pub fn irq_pulse(self) -> Result<IrqPulse, KvmIrqError> {
        IrqPulse::new(self)
    }
}

impl Drop for GsiClaim {
    fn drop(&mut self) {
        self.shared.gsis.release(self.gsi);
    }
}

impl fmt::Debug for GsiClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GsiClaim")
            .field("gsi", &self.gsi)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_takes_the_lowest_gsi_that_nobody_claimed() {
        let gsis = GsiTable::new(5..=8);
        gsis.claim(Gsi(6), "rtc".into()).unwrap();
        assert_eq!(gsis.allocate("a".into()).unwrap(), Gsi(5));
        assert_eq!(gsis.allocate("b".into()).unwrap(), Gsi(7));
        gsis.release(Gsi(5));
        assert_eq!(gsis.allocate("c".into()).unwrap(), Gsi(5));
    }

    #[test]
    fn a_second_claim_is_told_who_has_the_gsi_and_which_range_there_is() {
        let gsis = GsiTable::new(5..=8);
        gsis.claim(Gsi(6), "rtc".into()).unwrap();
        let error = gsis.claim(Gsi(6), "uart".into()).unwrap_err();
        assert_eq!(error.to_string(), "GSI 6 is claimed by `rtc` (devices have 5 to 8)");
        gsis.release(Gsi(6));
        gsis.claim(Gsi(6), "uart".into()).unwrap();
    }

    #[test]
    fn claims_outside_the_range_are_refused() {
        let gsis = GsiTable::new(5..=8);
        for gsi in [4, 9, u32::MAX] {
            let error = gsis.claim(Gsi(gsi), "uart".into()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("GSI {gsi} is not for devices: those are 5 to 8")
            );
        }
    }

    #[test]
    fn a_range_without_a_free_gsi_says_so() {
        let gsis = GsiTable::new(5..=5);
        gsis.allocate("a".into()).unwrap();
        let error = gsis.allocate("b".into()).unwrap_err();
        assert_eq!(error.to_string(), "no GSI is free: all of 5 to 5 are claimed");
    }
}
