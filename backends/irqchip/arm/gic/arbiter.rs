//! Priority arbitration: which of the interrupts that compete for a CPU is the most urgent.

use super::Group;

/// The interrupts that compete for one CPU, ordered by priority and then by INTID.
///
/// Each priority level has a bitmap of INTIDs with two summaries above it, and there is a summary of the levels: adding,
/// removing and finding the most urgent take the same few steps however many interrupts there are or compete.
///
/// A bitmap is made in chunks of 1024 INTIDs, where one is first needed, and stays: 144 bytes each.
#[derive(Debug)]
pub(in super::super) struct Arbiter {
    /// A priority's unimplemented low bits.
    unused_bits: u32,
    /// The most urgent level first.
    levels: Vec<Level>,
    /// Which levels have members.
    occupied: [u64; 4],
}

/// The members of one priority level.
#[derive(Debug, Default)]
struct Level {
    chunks: Vec<Option<Box<Chunk>>>,
    /// Which chunks have members.
    occupied: u64,
}

/// 1024 INTIDs.
#[derive(Debug, Default)]
struct Chunk {
    members: [u64; 16],
    /// Which words have members.
    occupied: u16,
}

/// What an [`Arbiter`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Candidate {
    // In this order, so that the derived order is the order of urgency.
    pub priority: u8,
    pub intid: u32,
}

impl Arbiter {
    /// For INTIDs below this, and whatever number of them.
    pub const MAX_INTIDS: u32 = 64 * 1024;

    /// For priorities of which the top `priority_bits` (at most 8) count.
    pub fn new(priority_bits: u32) -> Self {
        Self {
            unused_bits: 8 - priority_bits,
            levels: (0..1 << priority_bits).map(|_| Level::default()).collect(),
            occupied: [0; 4],
        }
    }

    pub fn insert(&mut self, Candidate { priority, intid }: Candidate) {
        let (level, chunk, word) = self.place(priority, intid);
        let Level { chunks, occupied } = &mut self.levels[level];
        if chunks.len() <= chunk {
            chunks.resize_with(chunk + 1, || None);
        }
        let members = chunks[chunk].get_or_insert_default();
        members.members[word] |= 1 << (intid % 64);
        members.occupied |= 1 << word;
        *occupied |= 1 << chunk;
        self.occupied[level / 64] |= 1 << (level % 64);
    }

    pub fn remove(&mut self, Candidate { priority, intid }: Candidate) {
        let (level, chunk, word) = self.place(priority, intid);
        let Level { chunks, occupied } = &mut self.levels[level];
        let Some(Some(members)) = chunks.get_mut(chunk) else {
            return;
        };
        members.members[word] &= !(1 << (intid % 64));
        if members.members[word] != 0 {
            return;
        }
        members.occupied &= !(1 << word);
        if members.occupied == 0 {
            *occupied &= !(1 << chunk);
        }
        if *occupied == 0 {
            self.occupied[level / 64] &= !(1 << (level % 64));
        }
    }

    /// The most urgent: the lowest priority value, and of those that share it the lowest INTID.
    pub fn best(&self) -> Option<Candidate> {
        let group = self.occupied.iter().position(|&levels| levels != 0)?;
        let number = group * 64 + self.occupied[group].trailing_zeros() as usize;
        let level = &self.levels[number];
        let chunk = level.occupied.trailing_zeros();
        let members = level.chunks[chunk as usize].as_ref()?;
        let word = members.occupied.trailing_zeros();
        let bit = members.members[word as usize].trailing_zeros();
        Some(Candidate {
            priority: (number << self.unused_bits) as u8,
            intid: chunk * 1024 + word * 64 + bit,
        })
    }

    fn place(&self, priority: u8, intid: u32) -> (usize, usize, usize) {
        debug_assert!(intid < Self::MAX_INTIDS);
        (
            usize::from(priority >> self.unused_bits),
            intid as usize / 1024,
            intid as usize / 64 % 16,
        )
    }
}

/// What competes for one CPU, in both groups.
#[derive(Debug)]
pub(in super::super) struct Competitors([Arbiter; 2]);

impl Competitors {
    pub fn new(priority_bits: u32) -> Self {
        Self([Arbiter::new(priority_bits), Arbiter::new(priority_bits)])
    }

    pub fn insert(&mut self, group: Group, candidate: Candidate) {
        self.0[group as usize].insert(candidate);
    }

    pub fn remove(&mut self, group: Group, candidate: Candidate) {
        self.0[group as usize].remove(candidate);
    }

    /// The most urgent interrupt of the groups whose [`enable`](Group::enable) bits are set.
    ///
    /// The architecture leaves open whether a pending interrupt of a disabled group hides those of the other: GICv2's
    /// pseudocode calls that `IGNORE_GROUP_ENABLE`. Here it does not.
    pub fn best(&self, enabled: u32) -> Option<(Candidate, Group)> {
        let of = |group: Group| {
            let best = (enabled & group.enable() != 0).then(|| self.0[group as usize].best());
            best.flatten().map(|candidate| (candidate, group))
        };
        match (of(Group::Zero), of(Group::One)) {
            (Some(zero), Some(one)) if one.0 < zero.0 => Some(one),
            (zero, one) => zero.or(one),
        }
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
        let mut arbiter = Arbiter::new(5);
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
            steps in prop::collection::vec((any::<bool>(), any::<u8>(), prop_oneof![0u32..1020, 4096u32..5120, 8192..Arbiter::MAX_INTIDS]), 0..200),
        ) {
            let mut arbiter = Arbiter::new(bits);
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
