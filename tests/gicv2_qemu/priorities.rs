//! Priorities for the sequence.

use crate::beside::Random;

impl Random {
    /// Mostly one of a few, so that some are equal and some differ below the binary point only.
    pub fn priority(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(256),
            _ => self.pick(&[0x00, 0x20, 0x40, 0x41, 0x48, 0x60, 0x80, 0xa0, 0xf0, 0xff]),
        }
    }
}
