//! The LPIs of one redistributor: which are pending, and what their tables in guest memory say (IHI 0069, 5.1).

use std::sync::Arc;

use super::{
    super::gic::{
        Group,
        arbiter::{Candidate, Competitors},
        memory::Tables,
        preemption::implemented,
    },
    config::{INTIDS, LPIS},
    registers::{pendbaser, propbaser},
};
use crate::sync::{AtomicU64, Ordering};

/// An entry of the configuration table: Enable in bit 0, the priority in bits 7:2 (5.1.1).
const ENABLE: u8 = 1;
const PRIORITY: u8 = 0xfc;
/// The first kilobyte of a pending table has the bits of INTIDs that are no LPIs (5.1.2).
const PENDING_OFFSET: u64 = LPIS as u64 / 8;

/// What a redistributor knows of its LPIs.
///
/// While they are enabled, what is pending is kept here and not in the guest's table: 64 KiB in all, with the configuration
/// as it was last read. That of an LPI is read again when it becomes pending and anything was invalidated since, at
/// whichever redistributor: its event may have been elsewhere then.
pub(super) struct Lpis {
    tables: Option<Arc<dyn Tables>>,
    priority_bits: u32,
    /// GICR_PROPBASER.
    pub(super) properties_base: u64,
    /// GICR_PENDBASER, with PTZ as it was written until LPIs are enabled.
    pub(super) pending_base: u64,
    /// GICR_CTLR.EnableLPIs. The rest is empty without.
    enabled: bool,
    /// One more than the last INTID that the tables have room for.
    end: u32,
    /// A bit for each LPI, from INTID 8192 on.
    pending: Vec<u64>,
    /// The configuration table as it was last read.
    configuration: Vec<u8>,
    /// A bit for each LPI whose configuration was read since `invalidations` was `seen`.
    fresh: Vec<u64>,
    seen: u64,
    /// Counts what the guest invalidates, for all redistributors.
    invalidations: Arc<AtomicU64>,
}

impl Lpis {
    pub(super) fn new(tables: Option<Arc<dyn Tables>>, priority_bits: u32) -> Self {
        Self {
            tables,
            priority_bits,
            properties_base: 0,
            pending_base: 0,
            enabled: false,
            end: LPIS,
            pending: Vec::new(),
            configuration: Vec::new(),
            fresh: Vec::new(),
            seen: 0,
            invalidations: Arc::default(),
        }
    }

    /// Hears of what is invalidated at other redistributors.
    pub(super) fn share_invalidations(&mut self, invalidations: &Arc<AtomicU64>) {
        self.invalidations = Arc::clone(invalidations);
    }

    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// GICR_CTLR.EnableLPIs is set: reads the tables. What lies outside of memory reads as zero.
    pub(super) fn enable(&mut self, competing: &mut Competitors) {
        if self.enabled {
            return;
        }
        // With fewer than 14 bits there is no LPI at all.
        let bits = (self.properties_base & propbaser::ID_BITS) as u32 + 1;
        self.end = if bits < 14 {
            LPIS
        } else {
            1 << bits.min(INTIDS.trailing_zeros())
        };
        self.enabled = true;
        let zero = self.pending_base & pendbaser::PTZ != 0;
        // It was about the table as it was when the register was written.
        self.pending_base &= !pendbaser::PTZ;
        let count = (self.end - LPIS) as usize;
        self.configuration = vec![0; count];
        self.pending = vec![0; count / 64];
        self.fresh = vec![0; count / 64];
        if !zero {
            let mut bytes = vec![0; count / 8];
            self.read(self.pending_base & pendbaser::ADDRESS, PENDING_OFFSET, &mut bytes);
            for (word, bytes) in self.pending.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        self.read_configuration();
        self.file_all(competing);
    }

    /// GICR_CTLR.EnableLPIs is cleared: the pending table is the guest's again.
    pub(super) fn disable(&mut self, competing: &mut Competitors) {
        self.write_pending();
        self.forget(competing);
    }

    /// Ends all that was enabled, without a word to the guest's tables.
    pub(super) fn forget(&mut self, competing: &mut Competitors) {
        self.unfile_all(competing);
        self.enabled = false;
        self.end = LPIS;
        self.pending = Vec::new();
        self.configuration = Vec::new();
        self.fresh = Vec::new();
    }

    /// Brings the guest's pending table up to date.
    pub(super) fn write_pending(&self) {
        if !self.enabled {
            return;
        }
        let bytes: Vec<u8> = self.pending.iter().flat_map(|word| word.to_le_bytes()).collect();
        let address = self.pending_base & pendbaser::ADDRESS;
        if let Some(tables) = &self.tables {
            // A guest that has put its table where no memory is loses what it says.
            let _ = tables.write(address + PENDING_OFFSET, &bytes);
        }
    }

    /// An LPI becomes pending, or is pending no more.
    pub(super) fn set_pending(&mut self, intid: u32, pending: bool, competing: &mut Competitors) {
        let Some(index) = self.index(intid) else { return };
        let word = &mut self.pending[index / 64];
        let bit = 1 << (index % 64);
        if (*word & bit != 0) == pending {
            return;
        }
        *word ^= bit;
        if pending {
            self.read_entry(index);
        }
        if let Some(candidate) = self.candidate(index) {
            match pending {
                true => competing.insert(Group::One, candidate),
                false => competing.remove(Group::One, candidate),
            }
        }
    }

    pub(super) fn is_pending(&self, intid: u32) -> bool {
        self.index(intid)
            .is_some_and(|index| self.pending[index / 64] >> (index % 64) & 1 != 0)
    }

    /// All that are pending are so no more: what they were.
    pub(super) fn take_pending(&mut self, competing: &mut Competitors) -> Vec<u32> {
        self.unfile_all(competing);
        let taken = self.indices().map(|index| LPIS + index as u32).collect();
        self.pending.fill(0);
        taken
    }

    /// The configuration of an LPI is read again.
    pub(super) fn invalidate(&mut self, intid: u32, competing: &mut Competitors) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        if self.is_pending(intid) {
            self.set_pending(intid, false, competing);
            self.set_pending(intid, true, competing);
        }
    }

    /// The configuration of all is read again.
    pub(super) fn invalidate_all(&mut self, competing: &mut Competitors) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        if self.enabled {
            self.unfile_all(competing);
            self.read_configuration();
            self.file_all(competing);
        }
    }

    /// Reads the configuration of an LPI, unless nothing was invalidated since the last time.
    fn read_entry(&mut self, index: usize) {
        let seen = self.invalidations.load(Ordering::Relaxed);
        if self.seen != seen {
            self.seen = seen;
            self.fresh.fill(0);
        }
        let bit = 1 << (index % 64);
        if self.fresh[index / 64] & bit != 0 {
            return;
        }
        self.fresh[index / 64] |= bit;
        let mut entry = [0];
        self.read(self.properties_base & propbaser::ADDRESS, index as u64, &mut entry);
        [self.configuration[index]] = entry;
    }

    fn read_configuration(&mut self) {
        self.seen = self.invalidations.load(Ordering::Relaxed);
        self.fresh.fill(u64::MAX);
        let mut configuration = std::mem::take(&mut self.configuration);
        self.read(self.properties_base & propbaser::ADDRESS, 0, &mut configuration);
        self.configuration = configuration;
    }

    /// Reads from a table. What lies outside of memory, page by page, reads as zero.
    fn read(&self, base: u64, offset: u64, mut data: &mut [u8]) {
        const PAGE: u64 = 4096;
        let mut address = base + offset;
        while !data.is_empty() {
            let to_next = (PAGE - address % PAGE) as usize;
            let (page, rest) = data.split_at_mut(to_next.min(data.len()));
            let read = self.tables.as_ref().map(|tables| tables.read(address, page));
            if read != Some(Ok(())) {
                page.fill(0);
            }
            address += page.len() as u64;
            data = rest;
        }
    }

    fn index(&self, intid: u32) -> Option<usize> {
        (LPIS..self.end).contains(&intid).then(|| (intid - LPIS) as usize)
    }

    /// What of an LPI competes while it is pending: nothing unless it is enabled.
    fn candidate(&self, index: usize) -> Option<Candidate> {
        let byte = self.configuration[index];
        (byte & ENABLE != 0).then(|| Candidate {
            priority: byte & PRIORITY & implemented(self.priority_bits),
            intid: LPIS + index as u32,
        })
    }

    /// Those that are pending.
    fn indices(&self) -> impl Iterator<Item = usize> {
        self.pending.iter().enumerate().flat_map(|(word, &bits)| {
            let mut left = bits;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(word * 64 + bit)
            })
        })
    }

    fn file_all(&self, competing: &mut Competitors) {
        for candidate in self.indices().filter_map(|index| self.candidate(index)) {
            competing.insert(Group::One, candidate);
        }
    }

    fn unfile_all(&self, competing: &mut Competitors) {
        for candidate in self.indices().filter_map(|index| self.candidate(index)) {
            competing.remove(Group::One, candidate);
        }
    }
}
