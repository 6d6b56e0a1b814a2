//! The available side of a split ring (virtio 1.2, section 2.7.6): what comes next, and whether the driver is to kick for it.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;

use super::{
    QueueError,
    area::{AVAIL_ENTRY, RING_HEADER, Ring, USED_ENTRY, View},
};

/// The device's place in the available ring.
pub(super) struct Available {
    size: u16,
    event_idx: bool,
    /// The next entry to take.
    pub next: u16,
    /// `avail.idx` when it was last read: up to it, entries are there for the taking.
    seen: u16,
    /// The driver was asked not to kick.
    quiet: bool,
    /// Kicks are wanted at all times: there is nobody who looks without one.
    pub kicks_stay: bool,
}

impl Available {
    pub fn new(size: u16, event_idx: bool, next: u16) -> Self {
        Self {
            size,
            event_idx,
            next,
            seen: next,
            quiet: false,
            kicks_stay: false,
        }
    }

    /// The head of the next chain, which is not taken by this.
    #[inline]
    pub fn look(&mut self, view: &View) -> Result<Option<u16>, QueueError> {
        if self.next == self.seen && !self.refresh(view)? {
            return Ok(None);
        }
        let slot = u64::from(self.next & (self.size - 1));
        let head = view.load(Ring::Driver, RING_HEADER + AVAIL_ENTRY * slot)?;
        match head < self.size {
            true => Ok(Some(head)),
            false => Err(QueueError::Head { head, size: self.size }),
        }
    }

    /// Whether there are new entries.
    #[inline]
    fn refresh(&mut self, view: &View) -> Result<bool, QueueError> {
        let idx = view.load(Ring::Driver, 2)?;
        let (ahead, size) = (idx.wrapping_sub(self.next), self.size);
        if ahead > size {
            return Err(QueueError::AvailIndex { ahead, size });
        }
        if ahead == 0 {
            return Ok(false);
        }
        self.seen = idx;
        if self.kicks_stay {
            if self.event_idx {
                self.expect_at(view, idx)?;
            }
        } else if !self.quiet {
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
    fn suppress_kicks(&mut self, view: &View) -> Result<(), QueueError> {
        self.quiet = true;
        if !self.event_idx {
            // With the event index, it does not kick until its index has passed what was said last.
            view.store(Ring::Device, 0, VRING_USED_F_NO_NOTIFY as u16)?;
        }
        Ok(())
    }

    fn expect_at(&self, view: &View, idx: u16) -> Result<(), QueueError> {
        Ok(view.store(Ring::Device, RING_HEADER + USED_ENTRY * u64::from(self.size), idx)?)
    }

    /// Asks the driver to kick for the next entry, and looks whether one has come before it could know.
    #[inline]
    pub fn expect_kicks(&mut self, view: &View) -> Result<bool, QueueError> {
        self.expect_kicks_at(view, self.next)
    }

    /// As [`expect_kicks`](Self::expect_kicks), for what comes after entries that are left where they are.
    pub fn expect_kicks_for_more(&mut self, view: &View) -> Result<bool, QueueError> {
        let idx = view.load(Ring::Driver, 2)?;
        self.expect_kicks_at(view, idx)
    }

    #[inline]
    fn expect_kicks_at(&mut self, view: &View, idx: u16) -> Result<bool, QueueError> {
        self.quiet = false;
        if self.event_idx {
            self.expect_at(view, idx)?;
        } else {
            view.store(Ring::Device, 0, 0)?;
        }
        // Pairs with the driver's barrier between its index and its look at ours.
        fence(Ordering::SeqCst);
        Ok(view.load(Ring::Driver, 2)? != idx)
    }
}
