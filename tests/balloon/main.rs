//! The traditional memory balloon device (virtio 1.2, section 5.5), on both transports.
#![allow(clippy::single_range_in_vec_init, reason = "they are lists of what went back")]

#[path = "../support/both.rs"]
mod both;
mod hints;
mod inflate;
mod large_pages;
mod queues;
mod reporting;
#[cfg(target_os = "linux")]
#[path = "../support/residence.rs"]
mod residence;
#[cfg(target_os = "linux")]
mod resident;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;
#[cfg(target_os = "linux")]
#[path = "../support/skip.rs"]
mod skip;
mod state;
mod statistics;

use std::{ops::Range, sync::Arc};

use both::{COMMON, Guest, REQUEST, Transport};
use devisor::virtio::{
    VirtioDevice,
    balloon::{Balloon, BalloonOptions},
    reclaim::{ReclaimCall, Recorded},
};
use ring::readable;
use vm_memory::GuestMemoryMmap;

// Not the device's own constants: a wrong one would go unseen.
pub(crate) const MUST_TELL_HOST: u64 = 1 << 0;
pub(crate) const STATS_VQ: u64 = 1 << 1;
pub(crate) const FREE_PAGE_HINT: u64 = 1 << 3;
pub(crate) const PAGE_REPORTING: u64 = 1 << 5;

pub(crate) const INFLATE: u16 = 0;
pub(crate) const DEFLATE: u16 = 1;
pub(crate) const STATS: u16 = 2;
pub(crate) const HINTS: u16 = 3;
pub(crate) const REPORTING: u16 = 4;

pub(crate) const NUM_PAGES: u64 = 0;
pub(crate) const ACTUAL: u64 = 4;
pub(crate) const CMD_ID: u64 = 8;
pub(crate) const POISON: u64 = 12;

/// One MiB, which the ring's tests have, is memory.
pub(crate) const MEMORY: Range<u64> = 0..0x10_0000;

/// A guest whose pages go into a log.
pub(crate) struct World {
    pub(crate) guest: Guest<Balloon>,
    pub(crate) pages: Arc<Recorded>,
}

impl World {
    pub(crate) fn new(kind: Transport) -> Self {
        Self::with(kind, BalloonOptions::default(), Recorded::new([MEMORY]))
    }

    /// With all queues and all features.
    pub(crate) fn with(kind: Transport, options: BalloonOptions, pages: Recorded) -> Self {
        let pages = Arc::new(pages);
        let balloon = Balloon::new(Arc::clone(&pages), options).expect("valid options");
        let features = balloon.features();
        let queues = balloon.queue_sizes().len() as u16;
        let queues: Vec<_> = (0..queues).filter(|&queue| queue != HINTS).collect();
        let guest = Guest::start(kind, balloon, &ring::memory(), COMMON | features, &queues);
        Self { guest, pages }
    }

    /// A request with these page numbers. Its used length.
    pub(crate) fn pages(&mut self, queue: u16, numbers: &[u32]) -> u32 {
        let bytes: Vec<_> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.guest.put(REQUEST, &bytes);
        self.guest.run(queue, &[readable(REQUEST, bytes.len() as u32)])
    }

    /// What was given back since this was last asked.
    pub(crate) fn discarded(&self) -> Vec<Range<u64>> {
        discarded(&self.pages)
    }
}

pub(crate) fn discarded(pages: &Recorded) -> Vec<Range<u64>> {
    let calls = pages.take_calls().into_iter();
    calls
        .filter_map(|call| match call {
            ReclaimCall::Discard(range) => Some(range),
            ReclaimCall::Populate(_) => None,
        })
        .collect()
}

pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    ring::memory()
}
