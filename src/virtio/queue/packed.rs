//! The available side of a packed ring (virtio 1.2, sections 2.8.1 and 2.8.10): what comes next, and whether the driver is to kick for it.

use std::sync::atomic::{Ordering, fence};

use super::{
    Gone,
    packed_ring::{FlatPacked, PackedView},
    split::Look,
    spot::{DESC, DISABLE, ENABLE, Spot},
    table::Descriptor,
};

/// The device's place among the available descriptors.
pub(super) struct PackedAvailable {
    pub size: u16,
    event_idx: bool,
    /// The next descriptor to take.
    pub next: Spot,
    /// The driver has been told about kicks what it is to know while there is something to take.
    told: bool,
    /// It was told so in this round.
    fresh: bool,
    /// Kicks are wanted at all times: there is nobody who looks without one.
    pub kicks_stay: bool,
}

impl PackedAvailable {
    pub fn new(size: u16, event_idx: bool, next: Spot) -> Self {
        Self {
            size,
            event_idx,
            next,
            told: false,
            fresh: false,
            kicks_stay: false,
        }
    }

    /// The short way of [`look`](Self::look): the first descriptor of the next chain, if nothing is to be done but to find it.
    #[inline(always)]
    pub fn look_near(&self, ring: &FlatPacked<'_>) -> Option<Descriptor> {
        self.look_near_at(ring, self.next)
    }

    /// The same of what is at `spot`.
    #[inline(always)]
    pub fn look_near_at(&self, ring: &FlatPacked<'_>, spot: Spot) -> Option<Descriptor> {
        let first = ring.read(spot.slot)?;
        (spot.is_available(first.packed_flags()) && self.told).then_some(first)
    }

    /// The first descriptor of the next chain, which is not taken by this.
    #[cold]
    pub fn look(&mut self, view: PackedView<'_>) -> Result<Look<Descriptor>, Gone> {
        let Some(first) = view.descriptor(self.next.slot, Some(self.next))? else {
            return Ok(Look::Nothing);
        };
        if !self.told {
            let flags = if self.kicks_stay { ENABLE } else { DISABLE };
            view.set_device_event(None, flags)?;
            (self.told, self.fresh) = (true, true);
        }
        Ok(Look::Head(first))
    }

    /// The chain of so many descriptors at which [`look`](Self::look) looked is taken.
    #[inline(always)]
    pub fn advance(&mut self, descriptors: u16) {
        self.next = self.next.after(descriptors, self.size);
    }

    /// Asks the driver to kick for the next chain, and looks whether one has come before it could know.
    pub fn expect_kicks(&mut self, view: PackedView<'_>) -> Result<bool, Gone> {
        (self.told, self.fresh) = (false, false);
        if self.event_idx && !self.kicks_stay {
            view.set_device_event(Some(self.next), DESC)?;
        } else {
            view.set_device_event(None, ENABLE)?;
        }
        // Pairs with the driver's barrier between its flags and its look at ours.
        fence(Ordering::SeqCst);
        Ok(view.descriptor(self.next.slot, Some(self.next))?.is_some())
    }

    /// As [`expect_kicks`](Self::expect_kicks), for what comes after chains that are left where they are, by who is kicked for every
    /// one: only what came before the driver knew is still to be looked for.
    pub fn expect_kicks_for_more(&mut self, view: PackedView<'_>) -> Result<bool, Gone> {
        let fresh = std::mem::take(&mut self.fresh);
        if !self.told {
            return self.expect_kicks(view);
        }
        fence(Ordering::SeqCst);
        Ok(fresh)
    }
}
