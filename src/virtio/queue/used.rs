//! The used side of a queue: its lock, and the ring of either format.

use std::{
    ops::{Deref, DerefMut},
    sync::PoisonError,
};

use super::{
    Gone, QueueLayout,
    chain::{Outline, Pool, Segments},
    counters::Counters,
    format::Format,
    in_order::InOrder,
    packed_used::PackedUsed,
    split_used::SplitUsed,
    spot::Spot,
    view::View,
};
use crate::{
    sync::{Guarded, Lock, Locked, Opened},
    virtio::features,
};

/// The used side: under its lock, or without it in a round that nobody else has a part in, which is when no chain is out.
pub(super) struct UsedSide {
    lock: Lock<()>,
    used: Guarded<Used>,
}

/// The used side, locked.
pub(super) struct UsedGuard<'a> {
    used: Opened<'a, Used>,
    _locked: Locked<'a, ()>,
}

impl UsedSide {
    pub fn new(used: Used) -> Self {
        Self {
            lock: Lock::new(()),
            used: Guarded::new(used),
        }
    }

    #[inline(always)]
    pub fn lock(&self) -> UsedGuard<'_> {
        // As `sync::lock`.
        let locked = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        UsedGuard {
            // SAFETY: locked; and a round that opens it without the lock lets go of it before another thread has a part in it.
            used: unsafe { self.used.open() },
            _locked: locked,
        }
    }

    /// Without the lock.
    ///
    /// # Safety
    /// The caller has the queue to itself, no chain is out, and none is taken before it has let go of this.
    #[inline(always)]
    pub unsafe fn alone(&self) -> Opened<'_, Used> {
        // SAFETY: as the caller says: who had it before has given its chain back, in the queue's word, or had the queue to itself too.
        unsafe { self.used.open() }
    }
}

impl Deref for UsedGuard<'_> {
    type Target = Used;

    #[inline(always)]
    fn deref(&self) -> &Used {
        &self.used
    }
}

impl DerefMut for UsedGuard<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Used {
        &mut self.used
    }
}

pub(super) struct Used {
    /// Not there when memory has changed: looked up again when it is needed.
    pub view: Option<View>,
    pub ring: UsedRing,
    /// If they are to be used in order: chains that are not.
    pub order: Option<InOrder>,
    /// Chains that were given back untouched, in the order in which they were taken.
    pub resubmit: Vec<Returned>,
    /// Room for chains that are taken.
    pub pool: Pool,
}

/// A chain that was given back untouched.
pub(super) struct Returned {
    pub head: u16,
    /// What it is, in a packed ring: its descriptors are overwritten by what others have used.
    pub chain: Option<(Outline, Segments)>,
}

/// Where chains are used: one of both, side by side so that nobody has to look which on the short way.
pub(super) struct UsedRing {
    pub split: SplitUsed,
    pub packed: PackedUsed,
    is_packed: bool,
}

impl UsedRing {
    pub fn new(layout: &QueueLayout, features: u64, next: u16) -> Self {
        let event_idx = features & features::EVENT_IDX != 0;
        Self {
            split: SplitUsed::new(event_idx, next),
            packed: PackedUsed::new(layout.size, event_idx, Spot::new(next)),
            is_packed: features & features::RING_PACKED != 0,
        }
    }

    /// Where the next element goes, as it is saved.
    pub fn next(&self) -> u16 {
        match self.is_packed {
            false => self.split.next,
            true => self.packed.next.raw(),
        }
    }

    /// How far it has come, for [`mark`](Self::mark).
    pub fn total(&self) -> u32 {
        match self.is_packed {
            false => self.split.next.into(),
            true => self.packed.total,
        }
    }

    /// Marks what was written since it had come so far.
    pub fn mark(&self, view: &View, from: u32) {
        match self.is_packed {
            _ if from == self.total() => {}
            false => view.mark_used(from as u16, self.split.next),
            true => view.mark_packed(self.packed.next, self.packed.total.wrapping_sub(from)),
        }
    }

    /// Whether the driver has been shown all that was put.
    #[inline]
    pub fn is_published(&self) -> bool {
        match self.is_packed {
            false => self.split.is_published(),
            true => self.packed.is_published(),
        }
    }

    /// Adds a used element, which the driver does not see yet.
    pub fn put(&mut self, view: &View, head: u16, descriptors: u16, written: u32) -> Result<(), Gone> {
        match view.ring() {
            Format::Split(view) => self.split.put(view, head, written),
            Format::Packed(view) => self.packed.put(view, head, descriptors, written),
        }
    }

    pub fn publish(&mut self, view: &View, counters: &Counters) -> Result<bool, Gone> {
        let (used, wanted) = match view.ring() {
            Format::Split(view) => self.split.publish(view)?,
            Format::Packed(view) => self.packed.publish(view)?,
        };
        counters.used(used, wanted);
        Ok(wanted)
    }
}
