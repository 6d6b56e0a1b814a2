//! What the control face of a balloon and its queues share.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use super::{
    hints::{FreePageHints, Hinting},
    partial::Partial,
    registers::{PAGE, feature},
    statistic::Asking,
};
use crate::{sync::lock, time::Clock, virtio::FailureLog, virtio::reclaim::Reclaim};

pub(super) struct Shared {
    // Configured.
    pub max_pages: u32,
    pub max_partial: usize,
    // Plugged in.
    pub reclaim: Box<dyn Reclaim>,
    pub hints: Option<Box<dyn FreePageHints>>,
    pub clock: Option<Box<dyn Clock>>,
    pub failures: FailureLog,
    pub counters: Counters,
    pub asking: Mutex<Asking>,
    // What the guest can change.
    /// What the driver has accepted.
    pub negotiated: AtomicU64,
    /// `poison_val`.
    pub poison: AtomicU32,
    pub partial: Mutex<Partial>,
    pub hinting: Mutex<Hinting>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub inflated: AtomicU64,
    pub deflated: AtomicU64,
    pub reported: AtomicU64,
    pub hinted: AtomicU64,
    pub given_back: AtomicU64,
    pub outside: AtomicU64,
}

/// What a balloon has seen and done since it was made, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonCounters {
    /// In requests to inflate, each page once a request.
    pub inflated: u64,
    /// In requests to deflate.
    pub deflated: u64,
    /// In reports of free pages.
    pub reported: u64,
    /// In hints of free pages that were passed on.
    pub hinted: u64,
    /// What has gone back to the host, by inflating and by reports.
    pub given_back: u64,
    /// In requests to inflate and in reports, at addresses where nothing is that could be given back.
    pub outside: u64,
}

impl Counters {
    pub fn get(&self) -> BalloonCounters {
        let Self {
            inflated,
            deflated,
            reported,
            hinted,
            given_back,
            outside,
        } = self;
        BalloonCounters {
            inflated: inflated.load(SeqCst),
            deflated: deflated.load(SeqCst),
            reported: reported.load(SeqCst),
            hinted: hinted.load(SeqCst),
            given_back: given_back.load(SeqCst),
            outside: outside.load(SeqCst),
        }
    }
}

impl Shared {
    pub fn has(&self, feature: u64) -> bool {
        self.negotiated.load(SeqCst) & feature != 0
    }

    pub fn now(&self) -> Option<Duration> {
        self.clock.as_ref().map(|clock| clock.now())
    }

    /// Gives back whole pages of the host in the range.
    pub fn discard(&self, address: u64, len: u64) {
        match self.reclaim.discard(address, len) {
            Ok(done) => {
                self.counters.given_back.fetch_add(done.bytes, SeqCst);
                self.counters.outside.fetch_add(done.outside, SeqCst);
            }
            Err(error) => self.failures.record(error),
        }
    }

    /// `len` bytes of pages that follow each other are in the balloon.
    pub fn inflate(&self, address: u64, len: u64) {
        self.counters.inflated.fetch_add(len, SeqCst);
        let granularity = self.reclaim.granularity(address);
        if granularity <= PAGE || !self.has(feature::MUST_TELL_HOST) {
            return self.discard(address, len);
        }
        let end = address + len;
        // Held all the time: no page is told to be used again between it being counted and it being given back.
        let mut partial = lock(&self.partial);
        // What a request names whole is given back at once, and the two ends when the rest of them has come.
        let whole = address.next_multiple_of(granularity)..end / granularity * granularity;
        let ends = match whole.is_empty() {
            true => [address..end.min(whole.start), whole.start.min(end)..end],
            false => {
                partial.take(whole.clone());
                self.discard(whole.start, whole.end - whole.start);
                [address..whole.start, whole.end..end]
            }
        };
        for piece in ends.into_iter().filter(|piece| !piece.is_empty()) {
            let base = piece.start / granularity * granularity;
            if partial.give(base, granularity, piece, self.max_partial) {
                self.discard(base, granularity);
            }
        }
    }

    /// The guest is to have them again.
    pub fn deflate(&self, address: u64, len: u64) {
        self.counters.deflated.fetch_add(len, SeqCst);
        lock(&self.partial).take(address..address + len);
        if let Err(error) = self.reclaim.populate(address, len) {
            self.failures.record(error);
        }
    }
}
