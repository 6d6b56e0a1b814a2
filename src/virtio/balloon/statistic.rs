//! What a guest tells of its memory (section 5.5.6.2).

use std::time::Duration;

use super::registers::STAT;
use crate::virtio::{ChainError, queue::Reader};

/// Entries of a buffer that are looked at: there are fewer kinds than that.
const MAX_ENTRIES: u32 = 256;

/// What a statistic is of (section 5.5.6.2). The last six are Linux's, younger than virtio 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u16)]
pub enum Statistic {
    /// Bytes that were swapped in.
    SwapIn = 0,
    /// Bytes that were swapped out.
    SwapOut = 1,
    /// Major page faults.
    MajorFaults = 2,
    /// Minor page faults.
    MinorFaults = 3,
    /// Bytes that are used for nothing.
    MemoryFree = 4,
    /// Bytes that there are.
    MemoryTotal = 5,
    /// Bytes that new applications could have without swapping.
    Available = 6,
    /// Bytes that can be had back without input or output.
    Caches = 7,
    /// Huge pages that were allocated.
    HugePageAllocations = 8,
    /// Huge pages that could not be.
    HugePageFailures = 9,
    /// Processes that were ended for want of memory.
    OomKills = 10,
    /// Allocations that had to wait.
    AllocationStalls = 11,
    /// Pages that were looked at to be reclaimed, in the background.
    BackgroundScans = 12,
    /// Pages that were looked at to be reclaimed, while somebody waited.
    DirectScans = 13,
    /// Pages that were reclaimed in the background.
    BackgroundReclaims = 14,
    /// Pages that were reclaimed while somebody waited.
    DirectReclaims = 15,
}

/// Kinds of statistics.
const KINDS: usize = 16;

/// What the guest has told of its memory. Nothing says that it is true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    values: [Option<u64>; KINDS],
    /// How many times the guest has told since it was started: to see that this is new.
    pub count: u64,
    /// When, by the clock of the balloon if it has one.
    pub at: Option<Duration>,
}

impl Statistics {
    /// The value, if the guest has told this one the last time.
    pub fn get(&self, statistic: Statistic) -> Option<u64> {
        self.values[statistic as usize]
    }

    /// Takes what is known of the buffer: tags in any order, unknown ones ignored, and what is left over after whole entries.
    pub(super) fn read(mut buffer: Reader<'_>) -> Result<Self, ChainError> {
        let mut statistics = Self::default();
        for _ in 0..(buffer.remaining() / STAT as u32).min(MAX_ENTRIES) {
            let mut entry = [0; STAT];
            buffer.read(&mut entry)?;
            let [tag_low, tag_high, value @ ..] = entry;
            let tag = u16::from_le_bytes([tag_low, tag_high]);
            if let Some(place) = statistics.values.get_mut(usize::from(tag)) {
                *place = Some(u64::from_le_bytes(value));
            }
        }
        Ok(statistics)
    }
}

/// What is known and wanted of statistics.
#[derive(Default)]
pub(super) struct Asking {
    pub last: Option<Statistics>,
    /// They are to be asked for, once the driver's buffer is there.
    pub asked: bool,
    pub interval: Option<Duration>,
}
