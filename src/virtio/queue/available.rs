//! The available side of a queue, whatever the format of its ring.

use super::{Gone, format::Format, packed::PackedAvailable, split::SplitAvailable, spot::Spot, view::View};

/// When the driver is to kick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kicks {
    /// At all times: there is nobody who looks without one.
    Stay,
    /// When it adds to a queue in which nothing was left.
    #[default]
    Drained,
    /// Never: somebody looks again and again.
    Polled,
}

/// The device's place among what is available: one of both, side by side so that nobody has to look which on the short way.
pub(super) struct Available {
    pub split: SplitAvailable,
    pub packed: PackedAvailable,
    is_packed: bool,
    kicks: Kicks,
}

impl Available {
    /// `next`: how far the device has come, as it is saved.
    pub fn new(size: u16, event_idx: bool, is_packed: bool, next: u16) -> Self {
        Self {
            split: SplitAvailable::new(size, event_idx, next),
            packed: PackedAvailable::new(size, event_idx, Spot::new(next)),
            is_packed,
            kicks: Kicks::default(),
        }
    }

    /// How far the device has come, as it is saved.
    #[inline(always)]
    pub fn next(&self) -> u16 {
        match self.is_packed {
            false => self.split.next,
            true => self.packed.next.raw(),
        }
    }

    /// [`advance`](Self::advance), and where it was before, for [`go_back`](Self::go_back).
    #[inline(always)]
    pub fn step(&mut self, descriptors: u16) -> u16 {
        let at = self.next();
        self.advance(descriptors);
        at
    }

    /// Goes back to where it was: what was taken since is there for the taking.
    pub fn go_back(&mut self, next: u16) {
        match self.is_packed {
            false => self.split.next = next,
            true => self.packed.next = Spot::new(next),
        }
    }

    pub fn kicks(&self) -> Kicks {
        self.kicks
    }

    /// Whether the driver kicks for whatever it adds to what was seen, if nothing was left of that when it was last looked.
    #[inline]
    pub fn is_asked(&self) -> bool {
        !self.is_packed && self.split.is_asked()
    }

    pub fn set_kicks(&mut self, kicks: Kicks) {
        let stay = kicks == Kicks::Stay;
        self.split.keep_kicks(stay);
        self.packed.kicks_stay = stay;
        self.kicks = kicks;
    }

    /// The chain that was looked at is taken, which has so many descriptors of a packed ring.
    #[inline(always)]
    pub fn advance(&mut self, descriptors: u16) {
        match self.is_packed {
            false => self.split.advance(),
            true => self.packed.advance(descriptors),
        }
    }

    /// Asks the driver to kick for the next chain, and looks whether one has come before it could know.
    #[inline]
    pub fn expect_kicks(&mut self, view: &View) -> Result<bool, Gone> {
        match view.ring() {
            Format::Split(view) => self.split.expect_kicks(view),
            Format::Packed(view) => self.packed.expect_kicks(view),
        }
    }

    /// As [`expect_kicks`](Self::expect_kicks), for what comes after chains that are left where they are.
    pub fn expect_kicks_for_more(&mut self, view: &View) -> Result<bool, Gone> {
        match view.ring() {
            Format::Split(view) => self.split.expect_kicks_for_more(view),
            Format::Packed(view) => self.packed.expect_kicks_for_more(view),
        }
    }
}
