//! The device's place among the used descriptors of a packed ring (virtio 1.2, sections 2.8.1, 2.8.9 and 2.8.10).

use std::sync::atomic::{Ordering, fence};

use super::{
    Gone,
    counters::Counters,
    packed_ring::{FlatPacked, PackedView},
    spot::{Spot, wants},
};

/// Where used descriptors go.
pub(super) struct PackedUsed {
    size: u16,
    event_idx: bool,
    /// Where the next one goes.
    pub next: Spot,
    /// How many descriptors were used so far, and how many when the driver was shown the last of them. They wrap.
    pub total: u32,
    published: u32,
    /// How many chains the driver has not been shown.
    chains: u64,
    /// The first used descriptor that it has not been shown, which is written last: it sees none of the others before.
    hidden: Option<(u16, u64)>,
}

impl PackedUsed {
    pub fn new(size: u16, event_idx: bool, next: Spot) -> Self {
        Self {
            size,
            event_idx,
            next,
            total: 0,
            published: 0,
            chains: 0,
            hidden: None,
        }
    }

    pub fn is_published(&self) -> bool {
        self.chains == 0
    }

    /// Adds a used descriptor for a chain of so many, which the driver does not see yet.
    pub fn put(&mut self, view: PackedView<'_>, id: u16, descriptors: u16, written: u32) -> Result<(), Gone> {
        let rest = self.next.used(id, written);
        match self.hidden {
            None => self.hidden = Some((self.next.slot, rest)),
            Some(_) => view.set_used(self.next.slot, rest)?,
        }
        self.skip(descriptors);
        self.chains += 1;
        Ok(())
    }

    #[inline(always)]
    fn skip(&mut self, descriptors: u16) {
        self.next = self.next.after(descriptors, self.size);
        self.total = self.total.wrapping_add(descriptors.into());
    }

    /// The short way to put a chain and, if `PUBLISH`, to show it: whether the driver is to be told.
    #[inline(always)]
    pub fn use_near<const PUBLISH: bool>(
        &mut self,
        view: &FlatPacked<'_>,
        id: u16,
        descriptors: u16,
        written: u32,
        counters: &Counters,
    ) -> bool {
        let (slot, rest) = (self.next.slot, self.next.used(id, written));
        self.skip(descriptors);
        self.chains += 1;
        if !PUBLISH {
            match self.hidden {
                None => self.hidden = Some((slot, rest)),
                Some(_) => view.set_used(slot, rest),
            }
            return false;
        }
        view.set_used(slot, rest);
        if let Some((slot, rest)) = self.hidden.take() {
            view.set_used(slot, rest);
        }
        // As in `publish`.
        fence(Ordering::SeqCst);
        let (shown, wanted) = self.shown(view.driver_event());
        counters.used(shown, wanted);
        wanted
    }

    /// Shows the driver what was [put](Self::put), which is something: how many chains, and whether it wants to hear.
    pub fn publish(&mut self, view: PackedView<'_>) -> Result<(u64, bool), Gone> {
        if let Some((slot, rest)) = self.hidden {
            view.set_used(slot, rest)?;
            self.hidden = None;
        }
        // The flags are out before it is asked what the driver wants: a driver that asks to be told and then finds nothing new is
        // told. Pairs with the driver's barrier between the two.
        fence(Ordering::SeqCst);
        let event = view.driver_event()?;
        Ok(self.shown(event))
    }

    #[inline(always)]
    fn shown(&mut self, event: u32) -> (u64, bool) {
        // More than a lap at once is of a driver that has not waited to see them used.
        let used = self.total.wrapping_sub(self.published).min(self.size.into());
        self.published = self.total;
        let wanted = wants(event, self.event_idx, used, self.next, self.size.into());
        (std::mem::take(&mut self.chains), wanted)
    }
}
