//! The device's place in the used ring of a split one (virtio 1.2, sections 2.7.7, 2.7.8 and 2.7.10).

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;

use super::{
    Gone,
    counters::Counters,
    split_ring::{FlatRing, SplitView},
};
use crate::sync::{Ordering, fence};

/// The device's place in the used ring of a split one.
pub(super) struct SplitUsed {
    event_idx: bool,
    /// Where the next element goes.
    pub next: u16,
    /// How far the driver has been shown the ring.
    published: u16,
}

impl SplitUsed {
    pub fn new(event_idx: bool, next: u16) -> Self {
        Self {
            event_idx,
            next,
            published: next,
        }
    }

    pub fn is_published(&self) -> bool {
        self.published == self.next
    }

    /// Adds an element, which the driver does not see yet.
    #[inline]
    pub fn put(&mut self, view: SplitView<'_>, head: u16, written: u32) -> Result<(), Gone> {
        view.set_used_entry(self.next, head.into(), written)?;
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// The short way to put a chain and, if `PUBLISH`, to show it: whether the driver is to be told.
    #[inline(always)]
    pub fn use_near<const PUBLISH: bool>(
        &mut self,
        view: &FlatRing<'_>,
        head: u16,
        written: u32,
        counters: &Counters,
    ) -> bool {
        let new = self.next.wrapping_add(1);
        view.set_used_entry(self.next, head.into(), written);
        self.next = new;
        if !PUBLISH {
            return false;
        }
        let added = new.wrapping_sub(self.published);
        self.published = new;
        // As in `publish`.
        view.set_used_idx_and_fence(new);
        let wanted = if self.event_idx {
            new.wrapping_sub(view.used_event()).wrapping_sub(1) < added
        } else {
            u32::from(view.avail_flags()) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        counters.used(added.into(), wanted);
        wanted
    }

    /// As `use_near` without `PUBLISH`, of packets: most drivers of many take their descriptors in turn, and have an entry used for the
    /// same again. It is left as it is then.
    #[inline(always)]
    pub fn renew_near(&mut self, view: &FlatRing<'_>, head: u16, written: u32) {
        view.renew_used_entry(self.next, head.into(), written);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the driver what was [put](Self::put), which is something, and decides whether it is to be told (sections 2.7.7 and
    /// 2.7.10): how many chains it is shown, and that.
    #[inline]
    pub fn publish(&mut self, view: SplitView<'_>) -> Result<(u64, bool), Gone> {
        let (old, new) = (self.published, self.next);
        view.set_used_idx(new)?;
        // The used index is out before it is asked what the driver wants: a driver that asks to be told and then finds nothing
        // new is told. Pairs with the driver's barrier between the two.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            new.wrapping_sub(view.used_event()?).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(view.avail_flags()?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        self.published = new;
        Ok((new.wrapping_sub(old).into(), wanted))
    }
}
