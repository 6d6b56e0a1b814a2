//! The table of a packed ring: descriptors of what is in flight, which the ring may not have any more.
//!
//! Entries that are free are linked. A chain takes entries from the list, as many as it has descriptors; chains that are put go back
//! to the front of it, and the list, with the place in the ring, is valid from when the driver sees them: two of each are kept, and the
//! ring says which is valid if the process ends in between.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{Ordering::SeqCst, fence},
    },
};

use super::{
    super::found::{self, Unstarted},
    Words,
};
use crate::{
    memory::Segment,
    sync::lock,
    virtio::queue::{ChainState, MAX_INDIRECT, Taken, Tracker},
};

/// Bytes before the entries, and of an entry.
pub(super) const LAYOUT: (u64, u64) = (region::DESC as u64, state::SIZE as u64);

/// `QueueRegionPacked`.
mod region {
    pub const VERSION: usize = 8;
    pub const DESC_NUM: usize = 10;
    pub const FREE_HEAD: usize = 12;
    pub const OLD_FREE_HEAD: usize = 14;
    /// Both places, and where each of them is in there.
    pub const PLACES: usize = 16;
    pub const USED_IDX: usize = 0;
    pub const OLD_USED_IDX: usize = 2;
    pub const USED_WRAP: usize = 4;
    pub const OLD_USED_WRAP: usize = 5;
    pub const DESC: usize = 32;
}

/// `DescStatePacked`.
mod state {
    pub const INFLIGHT: usize = 0;
    pub const NEXT: usize = 2;
    pub const LAST: usize = 4;
    pub const NUM: usize = 6;
    pub const COUNTER: usize = 8;
    pub const ID: usize = 16;
    pub const FLAGS: usize = 18;
    pub const LEN: usize = 20;
    pub const ADDR: usize = 24;
    pub const SIZE: usize = 32;
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// The wrap counter beside a place.
const WRAP: u16 = 1 << 15;

/// The part of one queue, with a packed ring.
pub(in super::super) struct Packed {
    words: Words,
    /// How many entries it has.
    count: u16,
    place: Mutex<Place>,
}

/// What this process knows beside the table.
#[derive(Default)]
struct Place {
    /// Where each chain that is in flight has its first entry, by its ID.
    first: BTreeMap<u16, u16>,
    /// First entries of what is put and not seen by the driver.
    batch: Vec<u16>,
    /// The next chain's number.
    counter: u64,
    /// The ring's size.
    size: u16,
}

/// What was in flight.
pub(in super::super) struct Found {
    pub next_used: u16,
    pub next_avail: u16,
    pub in_flight: Vec<u16>,
    pub chains: Vec<ChainState>,
}

impl Packed {
    pub(super) fn new(words: Words, count: u16) -> Self {
        Self {
            words,
            count,
            place: Mutex::default(),
        }
    }

    /// Where an entry is. One beyond the end, which a list ends with, is the first one's: whoever counts stops before.
    fn at(&self, entry: u16, field: usize) -> usize {
        let entry = if entry < self.count { entry } else { 0 };
        region::DESC + usize::from(entry) * state::SIZE + field
    }

    fn get(&self, entry: u16, field: usize) -> u16 {
        self.words.word(self.at(entry, field)).load(SeqCst)
    }

    fn set(&self, entry: u16, field: usize, value: u16) {
        self.words.set(self.words.word(self.at(entry, field)), value);
    }

    fn header(&self, field: usize) -> u16 {
        self.words.word(field).load(SeqCst)
    }

    fn set_header(&self, field: usize, value: u16) {
        self.words.set(self.words.word(field), value);
    }

    fn set_in_flight(&self, entry: u16, in_flight: bool) {
        let word = self.words.byte(self.at(entry, state::INFLIGHT));
        self.words.set(word, in_flight.into());
    }

    fn is_in_flight(&self, entry: u16) -> bool {
        self.words.byte(self.at(entry, state::INFLIGHT)).load(SeqCst) != 0
    }

    /// Where the next used descriptor goes; and where it went before what is put and may not be seen by the driver.
    fn places(&self) -> (u16, u16) {
        let bytes = self.words.long(region::PLACES).load(SeqCst).to_ne_bytes();
        let place = |index: usize, wrap: usize| {
            let wrap = if bytes[wrap] != 0 { WRAP } else { 0 };
            u16::from_ne_bytes([bytes[index], bytes[index + 1]]) & !WRAP | wrap
        };
        (
            place(region::USED_IDX, region::USED_WRAP),
            place(region::OLD_USED_IDX, region::OLD_USED_WRAP),
        )
    }

    /// All in one: a place of which a half is old would be another one.
    fn set_places(&self, used: u16, old: u16) {
        let word = self.words.long(region::PLACES);
        let mut bytes = word.load(SeqCst).to_ne_bytes();
        for (place, index, wrap) in [
            (used, region::USED_IDX, region::USED_WRAP),
            (old, region::OLD_USED_IDX, region::OLD_USED_WRAP),
        ] {
            bytes[index..index + 2].copy_from_slice(&(place & !WRAP).to_ne_bytes());
            bytes[wrap] = (place & WRAP != 0).into();
        }
        self.words.set(word, u64::from_ne_bytes(bytes));
    }

    /// What was put is valid.
    fn commit(&self, used: u16) {
        self.set_header(region::OLD_FREE_HEAD, self.header(region::FREE_HEAD));
        self.set_places(used, used);
    }

    /// The list of free entries, from its head on.
    fn free(&self, mut entry: u16) -> Vec<u16> {
        let mut free = Vec::new();
        // One that goes in a circle ends.
        while entry < self.count && free.len() < self.count.into() {
            free.push(entry);
            entry = self.get(entry, state::NEXT);
        }
        free
    }

    /// What was in flight in a ring of `size` descriptors at `ring`, in the order in which it was taken. A table that is new begins at
    /// `begin`. From here on, the table is this process's to write.
    ///
    /// # Errors
    /// It contradicts itself.
    pub fn recover(&self, begin: u16, size: u16, ring: u64, memory: &found::Found<'_>) -> Result<Found, Unstarted> {
        let mut place = lock(&self.place);
        *place = Place {
            size,
            ..Place::default()
        };
        if self.header(region::VERSION) == 0 {
            (0..self.count).for_each(|entry| self.set(entry, state::NEXT, entry + 1));
            self.set_header(region::DESC_NUM, self.count);
            self.set_header(region::FREE_HEAD, 0);
            self.commit(begin);
            self.set_header(region::VERSION, 1);
        }
        let (used, old) = self.places();
        if used != old {
            let mut flags = [0; 2];
            let at = ring + 16 * u64::from(old & !WRAP) + 14;
            memory.read(at, &mut flags)?;
            let available = if old & WRAP != 0 { AVAIL } else { USED };
            // The driver has seen it.
            if u16::from_le_bytes(flags) & (AVAIL | USED) != available {
                self.commit(used);
            }
        }
        self.set_header(region::FREE_HEAD, self.header(region::OLD_FREE_HEAD));
        let (_, next_used) = self.places();
        self.set_places(next_used, next_used);
        let free = self.free(self.header(region::FREE_HEAD));
        free.iter().for_each(|&entry| self.set_in_flight(entry, false));
        let mut out: Vec<_> = (0..self.count)
            .filter(|&entry| self.is_in_flight(entry))
            .map(|entry| (self.words.long(self.at(entry, state::COUNTER)).load(SeqCst), entry))
            .collect();
        out.sort_unstable();
        place.counter = out.last().map_or(0, |(number, _)| number.wrapping_add(1));
        let mut found = Found {
            next_used,
            next_avail: next_used,
            in_flight: Vec::new(),
            chains: Vec::new(),
        };
        let mut descriptors = 0u32;
        for (_, first) in out {
            let (id, chain) = self.chain(first, size, memory)?;
            descriptors += u32::from(chain.descriptors);
            place.first.insert(id, first);
            found.in_flight.push(id);
            found.chains.push(chain);
            // Before what is beyond is read, which may be a lot.
            if descriptors > size.into() {
                return Err(Unstarted::Wrong(format!(
                    "{descriptors} descriptors in flight, and more, in a ring of {size}"
                )));
            }
        }
        if next_used & !WRAP >= size {
            return Err(Unstarted::Wrong(format!(
                "a ring of {size} that was used up to {next_used:#x}"
            )));
        }
        found.next_avail = after(next_used, descriptors as u16, size);
        Ok(found)
    }

    /// The chain whose first entry this is, and its ID.
    fn chain(&self, first: u16, size: u16, memory: &found::Found<'_>) -> Result<(u16, ChainState), Unstarted> {
        let descriptors = self.get(first, state::NUM);
        if descriptors == 0 || descriptors > size {
            return Err(Unstarted::Wrong(format!(
                "a chain of {descriptors} descriptors in a ring of {size}"
            )));
        }
        let mut read = Vec::new();
        let mut entry = first;
        for number in 0..descriptors {
            if number != 0 {
                entry = self.get(entry, state::NEXT);
            }
            if entry >= self.count {
                let count = self.count;
                return Err(Unstarted::Wrong(format!("entry {entry} of {count} is of a chain")));
            }
            let address = self.words.long(self.at(entry, state::ADDR)).load(SeqCst);
            let len = self.words.half(self.at(entry, state::LEN)).load(SeqCst);
            read.push((address, len, self.get(entry, state::FLAGS)));
        }
        let id = self.get(entry, state::ID);
        if let [(table, len, flags)] = read[..]
            && flags & INDIRECT != 0
        {
            read = indirect(table, len, memory)?;
        }
        let segments = |writable: bool| {
            let these = read.iter().filter(move |(.., flags)| (flags & WRITE != 0) == writable);
            these.map(|&(address, len, _)| Segment::new(address, len)).collect()
        };
        let (readable, writable): (Vec<_>, Vec<_>) = (segments(false), segments(true));
        let sum: u64 = readable
            .iter()
            .chain(&writable)
            .map(|segment| u64::from(segment.len))
            .sum();
        // One that is no chain any more is one without a byte, which its device refuses.
        let (readable, writable) = match read.is_empty() || sum > u32::MAX.into() {
            true => (vec![Segment::new(0, 0)], Vec::new()),
            false => (readable, writable),
        };
        Ok((
            id,
            ChainState {
                descriptors,
                readable,
                writable,
            },
        ))
    }
}

/// What is in a table of descriptors now; nothing, if that is none.
fn indirect(table: u64, len: u32, memory: &found::Found<'_>) -> Result<Vec<(u64, u32, u16)>, Unstarted> {
    let count = len / 16;
    if !len.is_multiple_of(16) || count > MAX_INDIRECT.into() {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; len as usize];
    match memory.read(table, &mut bytes) {
        Err(Unstarted::Wrong(_)) => return Ok(Vec::new()),
        read => read?,
    }
    let descriptors = bytes.chunks_exact(16).map(|bytes| {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        (word(0), word(8) as u32, (word(8) >> 48) as u16)
    });
    Ok(descriptors.collect())
}

/// So many descriptors further on.
fn after(place: u16, descriptors: u16, size: u16) -> u16 {
    let at = u32::from(place & !WRAP) + u32::from(descriptors);
    match at.checked_sub(size.into()) {
        Some(at) => at as u16 | (place & WRAP) ^ WRAP,
        None => at as u16 | place & WRAP,
    }
}

impl Tracker for Packed {
    fn taken(&self, chain: &Taken<'_>) {
        let mut place = lock(&self.place);
        let number = place.counter;
        place.counter = number.wrapping_add(1);
        // Not of what is put and may not be valid.
        let first = self.header(region::OLD_FREE_HEAD);
        let (mut entry, mut last) = (first, first);
        for at in 0..chain.descriptors {
            if entry >= self.count {
                // A front end has written into the table.
                return;
            }
            let Some([address, rest]) = chain.descriptor(at) else {
                return;
            };
            self.words.set(self.words.long(self.at(entry, state::ADDR)), address);
            self.words.set(self.words.half(self.at(entry, state::LEN)), rest as u32);
            let more = at + 1 < chain.descriptors;
            let flags = (rest >> 48) as u16 & (WRITE | INDIRECT) | if more { NEXT } else { 0 };
            self.set(entry, state::FLAGS, flags);
            self.set(entry, state::ID, chain.head);
            last = entry;
            entry = self.get(entry, state::NEXT);
        }
        self.set(first, state::NUM, chain.descriptors);
        self.set(first, state::LAST, last);
        self.words.set(self.words.long(self.at(first, state::COUNTER)), number);
        self.set_in_flight(first, true);
        match place.batch.first() {
            None => self.set_header(region::FREE_HEAD, entry),
            // The list that is to become valid leads to the one that is.
            Some(&put) => self.set(self.get(put, state::LAST), state::NEXT, entry),
        }
        self.set_header(region::OLD_FREE_HEAD, entry);
        place.first.insert(chain.head, first);
    }

    fn put(&self, head: u16, descriptors: u16) {
        let mut place = lock(&self.place);
        if let Some(first) = place.first.remove(&head) {
            let last = self.get(first, state::LAST);
            self.set(last, state::NEXT, self.header(region::FREE_HEAD));
            self.set_header(region::FREE_HEAD, first);
            place.batch.push(first);
        }
        let (used, old) = self.places();
        self.set_places(after(used, descriptors, place.size), old);
        // Before the driver sees it.
        fence(SeqCst);
    }

    fn published(&self, next_used: u16) {
        let mut place = lock(&self.place);
        for first in place.batch.drain(..) {
            self.set_in_flight(first, false);
        }
        self.commit(next_used);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
