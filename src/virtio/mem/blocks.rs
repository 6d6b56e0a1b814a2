//! Which blocks are plugged.

use std::ops::Range;

/// A bit for each block of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    words: Box<[u64]>,
    count: u64,
    plugged: u64,
}

impl Blocks {
    /// So many, all unplugged.
    pub fn new(count: u64) -> Self {
        Self {
            words: vec![0; count.div_ceil(64) as usize].into(),
            count,
            plugged: 0,
        }
    }

    /// From a saved bitmap, if it is one of so many blocks.
    pub fn from_bitmap(count: u64, bitmap: &[u64]) -> Option<Self> {
        let mut blocks = Self::new(count);
        if bitmap.len() != blocks.words.len() {
            return None;
        }
        blocks.words.copy_from_slice(bitmap);
        let ones = |word: &u64| u64::from(word.count_ones());
        blocks.plugged = blocks.words.iter().map(ones).sum();
        // No block is behind the last.
        (blocks.plugged_in(0..count) == blocks.plugged).then_some(blocks)
    }

    /// Block n is bit n % 64 of word n / 64.
    pub fn bitmap(&self) -> Vec<u64> {
        self.words.to_vec()
    }

    pub fn plugged(&self) -> u64 {
        self.plugged
    }

    /// The bits of each word that has some in `range`, as the word's index and a mask.
    fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
        let words = match range.is_empty() {
            true => 0..0,
            false => range.start / 64..range.end.div_ceil(64),
        };
        words.map(move |word| {
            let first = range.start.saturating_sub(word * 64);
            let end = (range.end - word * 64).min(64);
            let mask = u64::MAX >> (64 - (end - first)) << first;
            (word as usize, mask)
        })
    }

    /// How many blocks in `range` are plugged.
    pub fn plugged_in(&self, range: Range<u64>) -> u64 {
        let ones = Self::masks(range).map(|(word, mask)| (self.words[word] & mask).count_ones());
        ones.map(u64::from).sum()
    }

    /// Plugs or unplugs all blocks in `range`.
    pub fn set(&mut self, range: Range<u64>, plugged: bool) {
        self.plugged -= self.plugged_in(range.clone());
        if plugged {
            self.plugged += range.end - range.start;
        }
        for (word, mask) in Self::masks(range) {
            match plugged {
                true => self.words[word] |= mask,
                false => self.words[word] &= !mask,
            }
        }
    }

    /// The next blocks from `from` on that are plugged, as many as follow each other.
    pub fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let start = self.next(from, false)?;
        Some(start..self.next(start, true).unwrap_or(self.count))
    }

    /// The first block from `from` on that is plugged, or is not.
    fn next(&self, from: u64, unplugged: bool) -> Option<u64> {
        let mut masks = Self::masks(from..self.count.max(from));
        masks.find_map(|(word, mask)| {
            let bits = if unplugged { !self.words[word] } else { self.words[word] } & mask;
            (bits != 0).then(|| word as u64 * 64 + u64::from(bits.trailing_zeros()))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_are_found_across_words() {
        let mut blocks = Blocks::new(200);
        blocks.set(60..130, true);
        blocks.set(199..200, true);
        assert_eq!(blocks.next_run(0), Some(60..130));
        assert_eq!(blocks.next_run(64), Some(64..130));
        assert_eq!(blocks.next_run(130), Some(199..200));
        assert_eq!(blocks.next_run(200), None);
    }

    proptest! {
        #[test]
        fn it_is_a_list_of_booleans(
            count in 1..300_u64,
            changes in prop::collection::vec((0..300_u64, 0..300_u64, any::<bool>()), 0..20),
        ) {
            let mut blocks = Blocks::new(count);
            let mut list = vec![false; count as usize];
            for (a, b, plugged) in changes {
                let range = a.min(b) % count..a.max(b).min(count);
                if range.start > range.end {
                    continue;
                }
                blocks.set(range.clone(), plugged);
                list[range.start as usize..range.end as usize].fill(plugged);
                let of = |range: Range<u64>| list[range.start as usize..range.end as usize].iter().filter(|&&p| p).count() as u64;
                prop_assert_eq!(blocks.plugged(), of(0..count));
                prop_assert_eq!(blocks.plugged_in(range.clone()), of(range));
            }
            let restored = Blocks::from_bitmap(count, &blocks.bitmap());
            prop_assert_eq!(restored, Some(blocks));
        }
    }
}
