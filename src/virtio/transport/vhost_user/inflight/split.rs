//! The table of a split ring.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::Words;
use crate::virtio::queue::{Taken, Tracker};

/// Bytes before the entries, and of an entry.
pub(super) const LAYOUT: (u64, u64) = (region::DESC as u64, state::SIZE as u64);

/// `QueueRegionSplit`.
mod region {
    pub const VERSION: usize = 8;
    pub const DESC_NUM: usize = 10;
    pub const LAST_BATCH_HEAD: usize = 12;
    pub const USED_IDX: usize = 14;
    pub const DESC: usize = 16;
}

/// `DescStateSplit`.
mod state {
    pub const INFLIGHT: usize = 0;
    pub const NEXT: usize = 6;
    pub const COUNTER: usize = 8;
    pub const SIZE: usize = 16;
}

/// The part of one queue, with a split ring.
pub(in super::super) struct Split {
    words: Words,
    /// How many entries it has.
    count: u16,
    /// The next chain's number.
    counter: AtomicU64,
}

impl Split {
    pub(super) fn new(words: Words, count: u16) -> Self {
        Self {
            words,
            count,
            counter: AtomicU64::new(0),
        }
    }

    fn entry(&self, head: u16) -> Option<usize> {
        (head < self.count).then(|| region::DESC + usize::from(head) * state::SIZE)
    }

    fn is_in_flight(&self, head: u16) -> bool {
        self.entry(head)
            .is_some_and(|entry| self.words.byte(entry + state::INFLIGHT).load(Ordering::SeqCst) != 0)
    }

    /// What was in flight in a ring that has been used up to here, in the order in which it was taken. From here on, the table is this
    /// process's to write.
    pub fn recover(&self, used: u16, size: u16) -> Vec<u16> {
        if self.words.word(region::VERSION).load(Ordering::SeqCst) == 0 {
            self.words.word(region::DESC_NUM).store(self.count, Ordering::SeqCst);
            self.words.word(region::USED_IDX).store(used, Ordering::SeqCst);
            self.words.word(region::VERSION).store(1, Ordering::SeqCst);
        }
        // What the driver has been shown, and was not taken out of the table any more.
        self.end_batch(used);
        let in_flight = (0..size.min(self.count)).filter(|&head| self.is_in_flight(head));
        let number = |head: u16| {
            let entry = self.entry(head)?;
            Some(self.words.long(entry + state::COUNTER).load(Ordering::SeqCst))
        };
        let mut in_flight: Vec<_> = in_flight.map(|head| (number(head), head)).collect();
        in_flight.sort_unstable();
        let next = in_flight
            .last()
            .and_then(|(number, _)| *number)
            .unwrap_or(0)
            .wrapping_add(1);
        self.counter.store(next, Ordering::SeqCst);
        in_flight.into_iter().map(|(_, head)| head).collect()
    }

    /// These, in the order in which they were taken, are at the end of what was used in the available ring again, and not in flight.
    pub fn forget(&self, heads: &[u16]) {
        // Whoever goes on when this process ends in between takes as many as are left as taken, and what comes after them from the ring.
        for entry in heads.iter().rev().filter_map(|&head| self.entry(head)) {
            self.words.byte(entry + state::INFLIGHT).store(0, Ordering::SeqCst);
        }
    }

    /// The driver has been shown what was put last, up to `used`.
    fn end_batch(&self, used: u16) {
        let count = used.wrapping_sub(self.words.word(region::USED_IDX).load(Ordering::SeqCst));
        let mut head = self.words.word(region::LAST_BATCH_HEAD).load(Ordering::SeqCst);
        for _ in 0..count.min(self.count) {
            let Some(entry) = self.entry(head) else { break };
            self.words.byte(entry + state::INFLIGHT).store(0, Ordering::SeqCst);
            head = self.words.word(entry + state::NEXT).load(Ordering::SeqCst);
        }
        self.words.word(region::USED_IDX).store(used, Ordering::SeqCst);
    }
}

impl Split {
    fn take(&self, head: u16) {
        let Some(entry) = self.entry(head) else { return };
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.words.long(entry + state::COUNTER).store(number, Ordering::Relaxed);
        self.words.byte(entry + state::INFLIGHT).store(1, Ordering::SeqCst);
    }
}

impl Tracker for Split {
    fn taken(&self, chain: &Taken<'_>) {
        self.take(chain.head);
    }

    fn put(&self, head: u16, _: u16) {
        let Some(entry) = self.entry(head) else { return };
        let last = self.words.word(region::LAST_BATCH_HEAD);
        self.words
            .word(entry + state::NEXT)
            .store(last.load(Ordering::Relaxed), Ordering::Relaxed);
        last.store(head, Ordering::Release);
        // Before the driver sees it.
        fence(Ordering::SeqCst);
    }

    fn published(&self, next_used: u16) {
        self.end_batch(next_used);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Part, Table, create};
    use super::*;

    fn part(size: u16) -> Arc<Split> {
        let (description, descriptor) = create(2, size, false).unwrap();
        let table = Table::new(description, descriptor, false).unwrap();
        match table.queue(1, size) {
            Some(Part::Split(part)) => part,
            _ => panic!("a split ring's part"),
        }
    }

    #[test]
    fn what_is_taken_and_not_shown_is_found_again_in_its_order() {
        let part = part(8);
        assert!(part.recover(0, 8).is_empty());
        [5, 2, 7].into_iter().for_each(|head| part.take(head));
        part.put(2, 1);
        assert_eq!(part.recover(0, 8), [5, 2, 7], "the driver has not seen it");
        part.published(1);
        assert_eq!(part.recover(1, 8), [5, 7]);
        part.take(2);
        assert_eq!(part.recover(1, 8), [5, 7, 2], "numbers go on");
    }

    #[test]
    fn what_is_in_the_ring_again_is_forgotten_from_the_last_on() {
        let part = part(8);
        part.recover(0, 8);
        [5, 2, 7].into_iter().for_each(|head| part.take(head));
        part.forget(&[7]);
        assert_eq!(part.recover(0, 8), [5, 2], "as many come first in the ring");
        part.forget(&[5, 2]);
        assert!(part.recover(0, 8).is_empty());
    }

    #[test]
    fn a_batch_that_the_driver_has_seen_is_not_repeated() {
        let part = part(8);
        part.recover(65_534, 8);
        (0..4).for_each(|head| part.take(head));
        [3, 0, 1].into_iter().for_each(|head| part.put(head, 1));
        // The process ends after the used index and before the table says so.
        assert_eq!(part.recover(1, 8), [2]);
    }

    #[test]
    fn a_table_that_lies_leads_nowhere() {
        let part = part(4);
        part.recover(0, 4);
        (0..4).for_each(|head| part.take(head));
        part.words.word(region::LAST_BATCH_HEAD).store(0xffff, Ordering::SeqCst);
        assert_eq!(part.recover(60_000, 4), [0, 1, 2, 3]);
        part.words.word(region::LAST_BATCH_HEAD).store(1, Ordering::SeqCst);
        part.words
            .word(part.entry(1).unwrap() + state::NEXT)
            .store(1, Ordering::SeqCst);
        assert_eq!(part.recover(0, 4), [0, 2, 3], "a circle ends");
    }
}
