//! What a queue has done so far.

use std::{
    ops::AddAssign,
    sync::atomic::{AtomicU64, Ordering},
};

use super::ChainError;

/// What a queue has done since it was set up: the same for every device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Chains that were given back.
    pub requests: u64,
    /// Bytes in the buffers of the chains that were taken up, as of the end of the last round. A chain that is given back untouched is
    /// taken up again.
    pub bytes: u64,
    /// Of the requests, chains that broke the rules, or held a request that did.
    pub malformed: u64,
    /// How each of these did.
    pub malformed_by: Malformed,
    /// Of the requests, those of which the driver wanted to hear. Several may share an interrupt.
    pub wanted: u64,
    /// The others.
    pub suppressed: u64,
    /// Interrupts that were delivered.
    pub delivered: u64,
    /// Interrupts that the line refused. None of them is lost.
    pub failed: u64,
}

/// How chains broke the rules, by kind of [`ChainError`]: each is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Malformed {
    /// A `next` beyond its table.
    pub descriptor_index: u64,
    /// Too many descriptors, or a loop.
    pub too_long: u64,
    /// 4 GiB or more.
    pub too_large: u64,
    /// A readable descriptor after a writable one.
    pub readable_after_writable: u64,
    /// An indirect table where there must be none, or of a length that cannot be.
    pub indirect: u64,
    /// A buffer or an indirect table that is not in guest memory.
    pub outside: u64,
    /// No room for the header, the status or what else the request has, as the device found.
    pub short: u64,
    /// A request that is not what the device type prescribes, or [refused](super::Chain::refuse) without a reason.
    pub request: u64,
    /// With it, the queue would have had to hold [more segments](super::MAX_SEGMENTS) than it does.
    pub held: u64,
}

/// What the counters of kinds are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    DescriptorIndex,
    TooLong,
    TooLarge,
    ReadableAfterWritable,
    Indirect,
    Outside,
    Short,
    Request,
    Held,
}

const KINDS: usize = Kind::Held as usize + 1;

impl From<&ChainError> for Kind {
    fn from(error: &ChainError) -> Self {
        match error {
            ChainError::DescriptorIndex { .. } => Self::DescriptorIndex,
            ChainError::TooLong(_) => Self::TooLong,
            ChainError::TooLarge => Self::TooLarge,
            ChainError::ReadableAfterWritable => Self::ReadableAfterWritable,
            ChainError::Indirect(_) => Self::Indirect,
            ChainError::Outside(_) => Self::Outside,
            ChainError::Short(_) => Self::Short,
            ChainError::Request(_) => Self::Request,
        }
    }
}

impl Malformed {
    fn new(kinds: [u64; KINDS]) -> Self {
        let of = |kind: Kind| kinds[kind as usize];
        Self {
            descriptor_index: of(Kind::DescriptorIndex),
            too_long: of(Kind::TooLong),
            too_large: of(Kind::TooLarge),
            readable_after_writable: of(Kind::ReadableAfterWritable),
            indirect: of(Kind::Indirect),
            outside: of(Kind::Outside),
            short: of(Kind::Short),
            request: of(Kind::Request),
            held: of(Kind::Held),
        }
    }
}

impl AddAssign for Malformed {
    /// Of several queues together.
    fn add_assign(&mut self, other: Self) {
        let Self {
            descriptor_index,
            too_long,
            too_large,
            readable_after_writable,
            indirect,
            outside,
            short,
            request,
            held,
        } = other;
        self.descriptor_index += descriptor_index;
        self.too_long += too_long;
        self.too_large += too_large;
        self.readable_after_writable += readable_after_writable;
        self.indirect += indirect;
        self.outside += outside;
        self.short += short;
        self.request += request;
        self.held += held;
    }
}

impl AddAssign for QueueCounters {
    /// Of several queues together.
    fn add_assign(&mut self, other: Self) {
        let Self {
            requests,
            bytes,
            malformed,
            malformed_by,
            wanted,
            suppressed,
            delivered,
            failed,
        } = other;
        self.requests += requests;
        self.bytes += bytes;
        self.malformed += malformed;
        self.malformed_by += malformed_by;
        self.wanted += wanted;
        self.suppressed += suppressed;
        self.delivered += delivered;
        self.failed += failed;
    }
}

/// Written by one thread at a time, but for those that are counted rarely; read by any.
#[derive(Default)]
pub(super) struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    /// Of those, chains that the driver wanted to hear of.
    wanted: AtomicU64,
    malformed: [AtomicU64; KINDS],
    delivered: AtomicU64,
    failed: AtomicU64,
}

#[inline(always)]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

impl Counters {
    /// The driver has been shown so many chains, and wants to hear of them or not. The used side is locked.
    #[inline(always)]
    pub fn used(&self, chains: u64, wanted: bool) {
        add(&self.requests, chains);
        if wanted {
            add(&self.wanted, chains);
        }
    }

    /// A round has taken up chains of so many bytes.
    #[inline(always)]
    pub fn bytes(&self, bytes: u64) {
        add(&self.bytes, bytes);
    }

    pub fn malformed(&self, kind: Kind) {
        self.malformed[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// `alone`: no other thread counts this now.
    #[inline(always)]
    pub fn delivered(&self, alone: bool) {
        match alone {
            true => add(&self.delivered, 1),
            false => _ = self.delivered.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn sum(&self) -> QueueCounters {
        let Self {
            requests,
            bytes,
            wanted,
            malformed,
            delivered,
            failed,
        } = self;
        // Those of them that were wanted first: the sum is written before.
        let [wanted, requests, bytes, delivered, failed] =
            [wanted, requests, bytes, delivered, failed].map(|counter| counter.load(Ordering::Relaxed));
        let kinds = malformed.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        QueueCounters {
            requests,
            bytes,
            malformed: kinds.iter().sum(),
            malformed_by: Malformed::new(kinds),
            wanted,
            suppressed: requests.saturating_sub(wanted),
            delivered,
            failed,
        }
    }
}
