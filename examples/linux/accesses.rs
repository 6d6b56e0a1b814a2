//! How often a guest accesses each device: what would be an exit to a VMM.

use std::sync::atomic::{AtomicU64, Ordering};

/// Where each device's part of an address space begins: what is below the next one is its own. The first is all the rest.
pub type Regions = [(u64, &'static str)];

pub struct Accesses {
    regions: &'static Regions,
    counts: Vec<AtomicU64>,
}

impl Accesses {
    pub fn new(regions: &'static Regions) -> Self {
        let counts = regions.iter().map(|_| AtomicU64::new(0)).collect();
        Self { regions, counts }
    }

    pub fn note(&self, address: u64) {
        let next = self.regions.partition_point(|(start, _)| *start <= address);
        if let Some(count) = next.checked_sub(1).and_then(|region| self.counts.get(region)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Those that were accessed.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let names = self.regions.iter().map(|(_, name)| *name);
        names.zip(counts).filter(|(_, count)| *count != 0).collect()
    }
}
