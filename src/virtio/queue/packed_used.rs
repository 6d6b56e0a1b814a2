//! The device's place among the used descriptors of a packed ring (virtio 1.2, sections 2.8.1, 2.8.9 and 2.8.10).

use std::{
    mem,
    sync::atomic::{Ordering, fence},
};

use super::{
    Gone,
    counters::Counters,
    packed_ring::{FlatPacked, LINE, PackedView},
    spot::{Spot, wants},
    table::WRITE,
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
    /// The total when a chain was put that shares its used descriptor with those before it, as all that the driver has not been shown do if
    /// none has been put since.
    joined: u32,
    hidden: Hidden,
}

/// The first used descriptor that the driver has not been shown, and those in the cache line in which it looks for that one: they are
/// written last, and that one after the others. So it sees none of them before, and the line is taken away from it once.
#[derive(Default)]
struct Hidden {
    slots: [(u16, u64); LINE as usize],
    count: usize,
}

impl Hidden {
    /// Has a used descriptor wait, unless it may be written at once.
    #[inline(always)]
    fn add(&mut self, slot: u16, rest: u64) -> bool {
        let hides = self.count == 0 || slot / LINE == self.slots[0].0 / LINE;
        // As many as there are in a line, unless the driver has not waited to see them used.
        let Some(place) = self.slots.get_mut(self.count).filter(|_| hides) else {
            return false;
        };
        *place = (slot, rest);
        self.count += 1;
        true
    }

    /// Those that wait, the first one last. Once they are written, they are to be [forgotten](Self::forget).
    #[inline(always)]
    fn all(&self) -> impl Iterator<Item = (u16, u64)> {
        self.slots.iter().take(self.count).rev().copied()
    }

    #[inline(always)]
    fn forget(&mut self) {
        self.count = 0;
    }
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
            joined: 0,
            hidden: Hidden::default(),
        }
    }

    pub fn is_published(&self) -> bool {
        self.chains == 0
    }

    /// The [total](Self::total) of what the driver has been shown: what comes after it is written by who shows it.
    pub fn shown_total(&self) -> u32 {
        self.published
    }

    /// Adds a used descriptor for a chain of so many, which the driver does not see yet.
    pub fn put(&mut self, view: PackedView<'_>, id: u16, descriptors: u16, written: u32) -> Result<(), Gone> {
        let rest = self.next.used(id, written);
        if !self.hidden.add(self.next.slot, rest) {
            view.set_used(self.next.slot, rest)?;
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
            if !self.hidden.add(slot, rest) {
                view.set_used(slot, rest);
            }
            return false;
        }
        view.set_used(slot, rest);
        for (slot, rest) in self.hidden.all() {
            view.set_used(slot, rest);
        }
        self.hidden.forget();
        // As in `publish`.
        fence(Ordering::SeqCst);
        let (shown, wanted) = self.shown(view.driver_event());
        counters.used(shown, wanted);
        wanted
    }

    /// As [`use_near`](Self::use_near), of a chain of one descriptor that nothing is written into, where chains are used in order: one used
    /// descriptor is for all of them (section 2.8.8). But the ring's first descriptor is always written: by it, who takes a ring over and is
    /// told no place sees how far it has come.
    #[inline(always)]
    pub fn join_near(&mut self, view: &FlatPacked<'_>, id: u16, counters: &Counters) {
        let (_, first) = &mut self.hidden.slots[0];
        let alone = self.chains == 1 && *first >> 48 & u64::from(WRITE) == 0;
        if self.chains == 0 {
            self.use_near::<false>(view, id, 1, 0, counters);
        } else if self.next.slot != 0 && (alone || self.joined == self.total) {
            *first = *first & !(0xffff << 32) | u64::from(id) << 32;
            self.skip(1);
            self.chains += 1;
        } else {
            // It is not of the kind, or comes after one that is not: each has its own until they are shown.
            self.use_near::<false>(view, id, 1, 0, counters);
            return;
        }
        self.joined = self.total;
    }

    /// Shows the driver what was [put](Self::put), which is something: how many chains, and whether it wants to hear.
    pub fn publish(&mut self, view: PackedView<'_>) -> Result<(u64, bool), Gone> {
        for (slot, rest) in self.hidden.all() {
            view.set_used(slot, rest)?;
        }
        self.hidden.forget();
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
        (mem::take(&mut self.chains), wanted)
    }
}
