//! The available side of a queue, whatever the format of its ring.

use super::{
    Gone,
    area::{Format, View},
    packed::{PackedAvailable, Spot},
    split::SplitAvailable,
};

/// The device's place among what is available.
pub(super) type Available = Format<SplitAvailable, PackedAvailable>;

impl Available {
    /// `next`: how far the device has come, as it is saved.
    pub fn new(size: u16, event_idx: bool, packed: bool, next: u16) -> Self {
        match packed {
            false => Self::Split(SplitAvailable::new(size, event_idx, next)),
            true => Self::Packed(PackedAvailable::new(size, event_idx, Spot::new(next))),
        }
    }

    /// How far the device has come, as it is saved.
    pub fn next(&self) -> u16 {
        match self {
            Self::Split(available) => available.next,
            Self::Packed(available) => available.next.raw(),
        }
    }

    /// Kicks are wanted at all times: there is nobody who looks without one.
    pub fn kicks_stay(&self) -> bool {
        match self {
            Self::Split(available) => available.kicks_stay,
            Self::Packed(available) => available.kicks_stay,
        }
    }

    pub fn set_kicks_stay(&mut self, stay: bool) {
        match self {
            Self::Split(available) => available.kicks_stay = stay,
            Self::Packed(available) => available.kicks_stay = stay,
        }
    }

    /// The chain that was looked at is taken, which has so many descriptors of a packed ring.
    #[inline(always)]
    pub fn advance(&mut self, descriptors: u16) {
        match self {
            Self::Split(available) => available.advance(),
            Self::Packed(available) => available.advance(descriptors),
        }
    }

    /// Asks the driver to kick for the next chain, and looks whether one has come before it could know.
    #[inline]
    pub fn expect_kicks(&mut self, view: &View) -> Result<bool, Gone> {
        match (self, view.ring()) {
            (Self::Split(available), Format::Split(view)) => available.expect_kicks(view),
            (Self::Packed(available), Format::Packed(view)) => available.expect_kicks(view),
            _ => unreachable!("a queue has one format"),
        }
    }

    /// As [`expect_kicks`](Self::expect_kicks), for what comes after chains that are left where they are.
    pub fn expect_kicks_for_more(&mut self, view: &View) -> Result<bool, Gone> {
        match (self, view.ring()) {
            (Self::Split(available), Format::Split(view)) => available.expect_kicks_for_more(view),
            (Self::Packed(available), Format::Packed(view)) => available.expect_kicks_for_more(view),
            _ => unreachable!("a queue has one format"),
        }
    }
}
