//! Memory that is in nobody's hands: what would have been given back.

use std::{
    io,
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Discarded, Reclaim, overlap, whole_pages};
use crate::sync::lock;

/// Keeps a log of what it is asked for, and fails on demand: for tests. The log grows with what a guest does.
///
/// ```
/// use devisor::virtio::reclaim::{Discarded, Reclaim, ReclaimCall, Recorded};
///
/// let pages = Recorded::new([0..0x10_0000]);
/// assert_eq!(pages.discard(0xf_f000, 0x2000)?, Discarded { bytes: 0x1000, outside: 0x1000 });
/// assert_eq!(pages.take_calls(), [ReclaimCall::Discard(0xf_f000..0x10_1000)]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Recorded {
    memory: Vec<Range<u64>>,
    granularity: u64,
    fails: AtomicBool,
    calls: Mutex<Vec<ReclaimCall>>,
}

/// What a [`Recorded`] was asked for, as it was asked: guest physical addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReclaimCall {
    /// To give it back.
    Discard(Range<u64>),
    /// To have it again.
    Populate(Range<u64>),
}

impl Recorded {
    /// These guest physical ranges are memory.
    pub fn new(memory: impl IntoIterator<Item = Range<u64>>) -> Self {
        Self {
            memory: memory.into_iter().collect(),
            granularity: 4096,
            fails: AtomicBool::new(false),
            calls: Mutex::default(),
        }
    }

    /// Pages of the host are of so many bytes, a power of two.
    pub fn with_granularity(self, granularity: u64) -> Self {
        Self { granularity, ..self }
    }

    /// Whether it fails at everything from now on.
    pub fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    /// What it was asked for since this was last asked, also what it has failed at.
    pub fn take_calls(&self) -> Vec<ReclaimCall> {
        std::mem::take(&mut lock(&self.calls))
    }

    fn call(&self, call: ReclaimCall) -> io::Result<()> {
        lock(&self.calls).push(call);
        match self.fails.load(Ordering::SeqCst) {
            true => Err(io::Error::other("told to fail")),
            false => Ok(()),
        }
    }
}

impl Reclaim for Recorded {
    fn granularity(&self, _: u64) -> u64 {
        self.granularity
    }

    fn discard(&self, address: u64, len: u64) -> io::Result<Discarded> {
        let range = address..address.saturating_add(len);
        self.call(ReclaimCall::Discard(range.clone()))?;
        let mut bytes = 0;
        let mut found = 0;
        for here in self.memory.iter().filter_map(|memory| overlap(memory, &range)) {
            found += here.end - here.start;
            bytes += whole_pages(&here, self.granularity).map_or(0, |pages| pages.end - pages.start);
        }
        let outside = len - found.min(len);
        Ok(Discarded { bytes, outside })
    }

    fn populate(&self, address: u64, len: u64) -> io::Result<()> {
        self.call(ReclaimCall::Populate(address..address.saturating_add(len)))
    }
}
