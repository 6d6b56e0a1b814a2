//! The available side of a split ring (virtio 1.2, section 2.7.6): what comes next, and whether the driver is to kick for it.

use virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;

use super::{
    Gone, QueueError,
    split_ring::{FlatRing, Head, SplitView},
};
use crate::sync::{Ordering, fence};

/// What comes next in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look<H> {
    /// A head that can be: its index, or in a packed ring its descriptor.
    Head(H),
    /// There is none yet.
    Nothing,
    /// The index, or the head, cannot be.
    Broken(u16),
    /// The ring is not in guest memory.
    Gone,
}

/// The same, as far as the short way comes.
pub(super) enum LookNear {
    Head(Head),
    Nothing,
    /// The long way has to be taken.
    Far,
}

/// Why `avail.idx` was not taken.
enum Refused {
    Idx(u16),
    Gone,
}

impl From<Gone> for Refused {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// The device's place in the available ring.
pub(super) struct SplitAvailable {
    size: u16,
    event_idx: bool,
    /// The next entry to take.
    pub next: u16,
    /// `avail.idx` when it was last read: up to it, entries are there for the taking.
    seen: u16,
    /// How far `avail.idx` may be ahead if nothing is to be done but to take what is there: the size, unless the driver is to be asked not
    /// to kick.
    quiet: u16,
    /// Kicks stay, and the driver has to be told so for each index that is seen.
    announces: bool,
    /// A full fence is between what asks for kicks after `seen` and the next look, if they stay.
    asked: bool,
    /// Kicks were asked for since there is this queue.
    begun: bool,
    /// Kicks are wanted at all times: there is nobody who looks without one.
    kicks_stay: bool,
}

impl SplitAvailable {
    pub fn new(size: u16, event_idx: bool, next: u16) -> Self {
        Self {
            size,
            event_idx,
            next,
            seen: next,
            quiet: 0,
            announces: false,
            asked: false,
            begun: false,
            kicks_stay: false,
        }
    }

    /// Whether kicks are wanted at all times.
    pub fn keep_kicks(&mut self, stay: bool) {
        self.kicks_stay = stay;
        self.announces = stay && self.event_idx;
        self.quiet = if stay && !self.announces { self.size } else { 0 };
    }

    /// Whether the driver kicks for whatever it adds to what was seen, if nothing was left of that when it was last looked.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.begun && self.asked && (self.kicks_stay || self.quiet == 0)
    }

    /// There was a full fence, after which the ring is looked at again.
    #[inline(always)]
    pub fn fenced(&mut self) {
        self.asked = true;
    }

    /// The short way of [`look`](Self::look): the head of the next chain, if nothing is to be done but to find it. `marks`: what is
    /// written is to be marked.
    #[inline(always)]
    pub fn look_near(&mut self, ring: &FlatRing<'_>, marks: impl FnOnce() -> bool) -> LookNear {
        let next = self.next;
        if next == self.seen {
            let idx = ring.avail_idx();
            // None, too many, or the driver has to be told something about kicks.
            if idx.wrapping_sub(next).wrapping_sub(1) >= self.quiet {
                if idx == next {
                    return LookNear::Nothing;
                }
                if idx.wrapping_sub(next) > self.size {
                    return LookNear::Far;
                }
                match (self.announces, self.event_idx && !self.kicks_stay) {
                    (true, _) if !marks() => {
                        ring.set_avail_event(idx);
                        self.asked = false;
                    }
                    // Nothing is to be written for that: see `suppress_kicks`.
                    (false, true) => self.quiet = self.size,
                    _ => return LookNear::Far,
                }
            }
            self.seen = idx;
        }
        ring.head(ring.avail_entry(next)).map_or(LookNear::Far, LookNear::Head)
    }

    /// How many chains are there for the taking, if nothing else is to be done for that.
    #[inline]
    pub fn look_ahead(&mut self, ring: &FlatRing<'_>, marks: impl FnOnce() -> bool) -> u16 {
        match self.look_near(ring, marks) {
            LookNear::Head(_) => self.seen.wrapping_sub(self.next),
            LookNear::Nothing | LookNear::Far => 0,
        }
    }

    /// The head of the next chain, which is not taken by this.
    #[cold]
    pub fn look(&mut self, view: SplitView<'_>) -> Look<u16> {
        if self.next == self.seen {
            match self.refresh(view) {
                Ok(true) => {}
                Ok(false) => return Look::Nothing,
                Err(Refused::Idx(idx)) => return Look::Broken(idx),
                Err(Refused::Gone) => return Look::Gone,
            }
        }
        match view.avail_entry(self.next) {
            Ok(head) if head < self.size => Look::Head(head),
            Ok(head) => Look::Broken(head),
            Err(Gone) => Look::Gone,
        }
    }

    /// What is wrong with an index or a head that [`look`](Self::look) has found.
    #[cold]
    pub fn broken(&self, found: u16) -> QueueError {
        match found.wrapping_sub(self.next) {
            // An entry was looked at.
            _ if self.next != self.seen => QueueError::Head {
                head: found,
                size: self.size,
            },
            ahead => QueueError::AvailIndex { ahead, size: self.size },
        }
    }

    /// Whether there are new entries.
    #[inline]
    fn refresh(&mut self, view: SplitView<'_>) -> Result<bool, Refused> {
        let idx = view.avail_idx()?;
        let ahead = idx.wrapping_sub(self.next);
        if ahead > self.size {
            return Err(Refused::Idx(idx));
        }
        if ahead == 0 {
            return Ok(false);
        }
        self.seen = idx;
        if self.kicks_stay {
            if self.announces {
                view.set_avail_event(idx)?;
                self.asked = false;
            }
        } else if self.quiet == 0 {
            self.suppress_kicks(view)?;
        }
        Ok(true)
    }

    /// The chain at which [`look`](Self::look) looked is taken.
    #[inline]
    pub fn advance(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    /// Asks the driver not to kick, as far as it can be asked (section 2.7.10).
    #[inline]
    fn suppress_kicks(&mut self, view: SplitView<'_>) -> Result<(), Gone> {
        self.quiet = self.size;
        if !self.event_idx {
            // With the event index, it does not kick until its index has passed what was said last.
            view.set_used_flags(VRING_USED_F_NO_NOTIFY as u16)?;
        }
        Ok(())
    }

    /// Asks the driver to kick for the next entry, and looks whether one has come before it could know.
    #[inline]
    pub fn expect_kicks(&mut self, view: SplitView<'_>) -> Result<bool, Gone> {
        self.expect_kicks_at(view, self.next)
    }

    /// As [`expect_kicks`](Self::expect_kicks), for what comes after entries that are left where they are.
    pub fn expect_kicks_for_more(&mut self, view: SplitView<'_>) -> Result<bool, Gone> {
        let idx = view.avail_idx()?;
        self.expect_kicks_at(view, idx)
    }

    #[inline]
    fn expect_kicks_at(&mut self, view: SplitView<'_>, idx: u16) -> Result<bool, Gone> {
        if !self.kicks_stay {
            self.quiet = 0;
        }
        if self.event_idx {
            view.set_avail_event(idx)?;
        } else {
            view.set_used_flags(0)?;
        }
        // Pairs with the driver's barrier between its index and its look at ours.
        fence(Ordering::SeqCst);
        (self.asked, self.begun) = (true, true);
        Ok(view.avail_idx()? != idx)
    }
}
