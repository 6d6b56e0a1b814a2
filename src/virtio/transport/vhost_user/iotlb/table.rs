//! What is known of translations, and what was asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, RangeInclusive},
};

use super::super::regions::Regions;
use crate::virtio::vhost_user::Iotlb as Told;

/// So many translations are asked for at a time. What is beyond is asked for again when who needs it looks again.
pub(super) const MAX_ASKED: usize = 64;
/// What is asked for is a page.
pub(super) const PAGE: u64 = 4096;

/// Addresses that a message is about.
pub(in super::super) type Range = RangeInclusive<u64>;

#[derive(Default)]
pub(super) struct Table {
    pub regions: Regions,
    /// By their first address. None overlaps another.
    pub entries: BTreeMap<u64, Entry>,
    /// Pages that were asked for and have not come, with what is to be done there.
    pub asked: BTreeMap<(u64, u8), Miss>,
    /// The same of what is not to come: whoever asks next is refused.
    pub refused: BTreeSet<(u64, u8)>,
    /// Where to look for one to forget.
    pub hand: u64,
}

/// How far it has come to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    ToSay,
    Said,
    /// What was to come for it has come.
    Answered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub last: u64,
    pub user: u64,
    /// `Permissions`, as a number.
    pub access: u8,
    /// What it does not allow was asked for, and this was the answer.
    pub refuses: u8,
}

impl Entry {
    pub fn leads(&self, start: u64, told: &Told) -> bool {
        self.user.wrapping_sub(start) == told.user.wrapping_sub(told.address)
    }
}

impl Table {
    /// The entries in which some of these addresses are, from the last one down.
    pub fn within(&self, addresses: &Range) -> impl Iterator<Item = (u64, Entry)> {
        let (from, to) = (*addresses.start(), *addresses.end());
        let downwards = self.entries.range(..=to).rev();
        downwards
            .map(|(&start, &entry)| (start, entry))
            .take_while(move |(_, entry)| entry.last >= from)
    }

    pub fn at(&self, address: u64) -> Option<(u64, Entry)> {
        self.within(&(address..=address)).next()
    }

    /// Takes these addresses out; the rest of an entry stays.
    pub fn carve(&mut self, addresses: &Range) {
        let touched: Vec<_> = self.within(addresses).collect();
        for (start, entry) in touched {
            self.entries.remove(&start);
            if start < *addresses.start() {
                let last = *addresses.start() - 1;
                self.entries.insert(start, Entry { last, ..entry });
            }
            if entry.last > *addresses.end() {
                let next = *addresses.end() + 1;
                let user = entry.user + (next - start);
                self.entries.insert(next, Entry { user, ..entry });
            }
        }
    }

    /// Forgets what is more than `most`, but none of `kept`. Whether that is enough.
    pub fn forget_beyond(&mut self, most: usize, kept: &[Range]) -> bool {
        let touches = |start: u64, entry: &Entry| {
            kept.iter()
                .any(|kept| start <= *kept.end() && entry.last >= *kept.start())
        };
        while self.entries.len() > most {
            let after = self.entries.range((Bound::Excluded(self.hand), Bound::Unbounded));
            let around = after.chain(self.entries.range(..=self.hand));
            let mut idle = around.filter(|(start, entry)| !touches(**start, entry));
            let Some(one) = idle.next().map(|(&start, _)| start) else {
                return false;
            };
            self.hand = one;
            self.entries.remove(&one);
        }
        true
    }

    /// The first of these addresses that may not be accessed so, as far as is known, and what of the access is missing.
    pub fn first_missing(&self, mut address: u64, len: u64, access: u8) -> Option<(u64, u8)> {
        let Some(last) = len.checked_sub(1).and_then(|more| address.checked_add(more)) else {
            return Some((address, access));
        };
        loop {
            match self.at(address) {
                None => return Some((address, access)),
                Some((_, entry)) if entry.access & access != access => return Some((address, access & !entry.access)),
                Some((_, entry)) if entry.last < last => address = entry.last + 1,
                Some(_) => return None,
            }
        }
    }

    pub fn locate(&self, address: u64) -> Option<(u64, u64)> {
        let (start, entry) = self.at(address)?;
        let (physical, _, after) = self.regions.around(entry.user + (address - start))?;
        Some((physical, after.min((entry.last - address).saturating_add(1))))
    }

    /// Whether these addresses lead to memory.
    pub fn is_there(&self, mut address: u64, mut len: u64) -> bool {
        while len != 0 {
            let Some((_, here)) = self.locate(address) else {
                return false;
            };
            len -= here.min(len);
            address = address.wrapping_add(here);
        }
        true
    }

    /// Notes that a page is to be asked for.
    pub fn ask(&mut self, address: u64, access: u8) {
        let key = (address & !(PAGE - 1), access);
        if self.asked.contains_key(&key) {
            return;
        }
        if self.asked.len() >= MAX_ASKED {
            self.asked.pop_first();
        }
        self.asked.insert(key, Miss::ToSay);
    }
}
