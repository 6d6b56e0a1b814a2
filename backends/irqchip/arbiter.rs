//! Priority arbitration: which of the interrupts that compete for a CPU is the most urgent.

/// The interrupts that compete for one CPU, ordered by priority and then by INTID.
///
/// A bitmap of INTIDs for each priority level, a summary of each bitmap, and a summary of the levels: adding, removing
/// and finding the most urgent take the same few steps however many interrupts there are or compete.
///
/// With 5 bits of priority and 1020 interrupts it takes 4 KiB.
#[derive(Debug)]
pub(super) struct Arbiter {
    /// A priority's unimplemented low bits.
    unused_bits: u32,
    /// Bitmaps of INTIDs, `words` for each level, the most urgent level first.
    members: Vec<u64>,
    words: usize,
    /// For each level, which of its words have members.
    occupied_words: Vec<u16>,
    /// Which levels have members.
    occupied_levels: [u64; 4],
}

/// What an [`Arbiter`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    // In this order, so that the derived order is the order of urgency.
    pub(super) priority: u8,
    pub(super) intid: u32,
}

impl Arbiter {
    /// For `interrupts` INTIDs (at most 1024), and priorities of which the top `priority_bits` (at most 8) count.
    pub(super) fn new(interrupts: u32, priority_bits: u32) -> Self {
        let levels = 1 << priority_bits;
        let words = interrupts.div_ceil(64) as usize;
        Self {
            unused_bits: 8 - priority_bits,
            members: vec![0; levels * words],
            words,
            occupied_words: vec![0; levels],
            occupied_levels: [0; 4],
        }
    }

    pub(super) fn insert(&mut self, Candidate { priority, intid }: Candidate) {
        let (level, word) = self.place(priority, intid);
        self.members[level * self.words + word] |= 1 << (intid % 64);
        self.occupied_words[level] |= 1 << word;
        self.occupied_levels[level / 64] |= 1 << (level % 64);
    }

    pub(super) fn remove(&mut self, Candidate { priority, intid }: Candidate) {
        let (level, word) = self.place(priority, intid);
        let members = &mut self.members[level * self.words + word];
        *members &= !(1 << (intid % 64));
        if *members != 0 {
            return;
        }
        self.occupied_words[level] &= !(1 << word);
        if self.occupied_words[level] == 0 {
            self.occupied_levels[level / 64] &= !(1 << (level % 64));
        }
    }

    /// The most urgent: the lowest priority value, and of those that share it the lowest INTID.
    pub(super) fn best(&self) -> Option<Candidate> {
        let group = self.occupied_levels.iter().position(|&levels| levels != 0)?;
        let level = group * 64 + self.occupied_levels[group].trailing_zeros() as usize;
        let word = self.occupied_words[level].trailing_zeros() as usize;
        let bit = self.members[level * self.words + word].trailing_zeros();
        Some(Candidate {
            priority: (level << self.unused_bits) as u8,
            intid: word as u32 * 64 + bit,
        })
    }

    fn place(&self, priority: u8, intid: u32) -> (usize, usize) {
        (usize::from(priority >> self.unused_bits), intid as usize / 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn candidate(priority: u8, intid: u32) -> Candidate {
        Candidate { priority, intid }
    }

    #[test]
    fn of_equal_priorities_the_lowest_intid_wins() {
        let mut arbiter = Arbiter::new(1020, 5);
        for intid in [1019, 64, 63, 500] {
            arbiter.insert(candidate(0xa0, intid));
        }
        assert_eq!(arbiter.best(), Some(candidate(0xa0, 63)));
        arbiter.insert(candidate(0x98, 1019));
        assert_eq!(arbiter.best(), Some(candidate(0x98, 1019)));
    }

    proptest! {
        #[test]
        fn finds_what_a_sorted_set_finds(
            bits in 4u32..=8,
            steps in prop::collection::vec((any::<bool>(), any::<u8>(), 0u32..1020), 0..200),
        ) {
            let mut arbiter = Arbiter::new(1020, bits);
            let mut sorted = BTreeSet::new();
            for (insert, priority, intid) in steps {
                let candidate = candidate(priority & (0xff << (8 - bits)) as u8, intid);
                if insert {
                    arbiter.insert(candidate);
                    sorted.insert(candidate);
                } else {
                    arbiter.remove(candidate);
                    sorted.remove(&candidate);
                }
                prop_assert_eq!(arbiter.best(), sorted.first().copied());
            }
        }
    }
}
