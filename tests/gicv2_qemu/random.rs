//! Where the sequence comes from.

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit)) as u32
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// Mostly one of a few, so that some are equal and some differ below the binary point only.
    pub fn priority(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(256),
            _ => self.pick(&[0x00, 0x20, 0x40, 0x41, 0x48, 0x60, 0x80, 0xa0, 0xf0, 0xff]),
        }
    }
}
