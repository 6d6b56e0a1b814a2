//! Translations that the front end tells, for a device whose addresses its IOMMU translates (ACCESS_PLATFORM).
//!
//! What is here is a part of what the front end knows. What is missing is asked for on the channel of the back end's own requests, and
//! nobody waits for it: a request of the driver stays in its ring until the translation has come, and a ring is not started before all
//! of it is translated. So what a ring that runs needs itself is always here: a translation of it is taken back when the ring has come
//! to rest.

use std::{
    collections::BTreeMap,
    ops::{Bound, RangeInclusive},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use vm_memory::Permissions;

use super::{
    lines::{Event, Lines},
    regions::Regions,
};
use crate::{
    interrupt::Interrupt,
    memory::{Asked, Over, Piece, Ticket, Translate, Translated},
    sync::lock,
    virtio::{
        queue::{QueueLayout, areas},
        vhost_user::{BackRequest, Header, Iotlb as Told, IotlbKind},
    },
};

/// So many translations are asked for at a time. What is beyond is asked for again when who needs it looks again.
const MAX_ASKED: usize = 64;
/// What is asked for is a page.
const PAGE: u64 = 4096;

/// The translations of a device.
pub(super) struct Iotlb {
    /// How many there may be.
    max: usize,
    lines: Arc<Lines>,
    /// The connection has something to send.
    wake: Arc<Event>,
    memory: OnceLock<Arc<Translated>>,
    /// Something was asked for and has not come.
    unanswered: AtomicBool,
    /// Lock order: this, then what a memory knows of translations, or the channel.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    regions: Regions,
    /// By their first address. None overlaps another.
    entries: BTreeMap<u64, Entry>,
    /// Pages that were asked for and have not come, with what is to be done there; and whether it was sent.
    asked: BTreeMap<(u64, u8), bool>,
    /// Where to look for one to forget.
    hand: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    last: u64,
    user: u64,
    /// [`Permissions`], as a number.
    access: u8,
    /// What it does not allow was asked for, and this was the answer.
    refuses: u8,
}

impl Entry {
    fn leads(&self, start: u64, told: &Told) -> bool {
        self.user.wrapping_sub(start) == told.user.wrapping_sub(told.address)
    }
}

impl Table {
    /// The entries in which some of these addresses are, from the last one down.
    fn within(&self, addresses: &Range) -> impl Iterator<Item = (u64, Entry)> {
        let (from, to) = (*addresses.start(), *addresses.end());
        let downwards = self.entries.range(..=to).rev();
        downwards
            .map(|(&start, &entry)| (start, entry))
            .take_while(move |(_, entry)| entry.last >= from)
    }

    fn at(&self, address: u64) -> Option<(u64, Entry)> {
        self.within(&(address..=address)).next()
    }

    /// Takes these addresses out; the rest of an entry stays.
    fn carve(&mut self, addresses: &Range) {
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

    /// The first of these addresses that may not be accessed so, as far as is known, and what of the access is missing.
    fn first_missing(&self, mut address: u64, len: u64, access: u8) -> Option<(u64, u8)> {
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

    fn locate(&self, address: u64) -> Option<(u64, u64)> {
        let (start, entry) = self.at(address)?;
        let (physical, _, after) = self.regions.around(entry.user + (address - start))?;
        Some((physical, after.min((entry.last - address).saturating_add(1))))
    }

    /// Whether these addresses lead to memory.
    fn is_there(&self, mut address: u64, mut len: u64) -> bool {
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
    fn ask(&mut self, address: u64, access: u8) {
        let key = (address & !(PAGE - 1), access);
        if self.asked.contains_key(&key) {
            return;
        }
        if self.asked.len() >= MAX_ASKED {
            self.asked.pop_first();
        }
        self.asked.insert(key, false);
    }
}

/// Addresses that a message is about.
pub(super) type Range = RangeInclusive<u64>;

impl Iotlb {
    /// At most `max` translations.
    pub fn new(max: usize, lines: Arc<Lines>, wake: Arc<Event>) -> Arc<Self> {
        Arc::new(Self {
            max,
            lines,
            wake,
            memory: OnceLock::new(),
            unanswered: AtomicBool::new(false),
            table: Mutex::default(),
        })
    }

    /// Whose addresses they translate.
    pub fn set_memory(&self, memory: Arc<Translated>) {
        let _ = self.memory.set(memory);
    }

    /// Whether devices can be behind an IOMMU.
    pub fn is_offered(&self) -> bool {
        self.max != 0
    }

    pub fn set_regions(&self, regions: &Regions) {
        lock(&self.table).regions = regions.clone();
    }

    /// All addresses that a message takes back: those of an INVALIDATE, and those that an UPDATE maps elsewhere. Without end is as far as
    /// there are addresses, which is what a length of all of them wraps to.
    pub fn takes_back(&self, told: &Told) -> Option<Range> {
        let last = told.address.saturating_add(told.size.wrapping_sub(1));
        let range = told.address..=last;
        match told.kind {
            IotlbKind::INVALIDATE => Some(range),
            IotlbKind::UPDATE if told.size != 0 => {
                let table = lock(&self.table);
                let contradicts = table.within(&range).any(|(start, entry)| !entry.leads(start, told));
                contradicts.then_some(range)
            }
            _ => None,
        }
    }

    /// Takes translations back. `ticket` is kept as long as one is in use.
    pub fn take_back(&self, range: &Range, ticket: &Ticket) {
        let mut over = Over::default();
        let memory = self.memory.get();
        {
            let mut table = lock(&self.table);
            table.carve(range);
            // What was forgotten may be known to a memory.
            if let Some(memory) = memory {
                memory.take_back(range, ticket, &mut over);
            }
        }
        // Queues that are idle have no round to come in which they would find it.
        if over.is_known()
            && let Some(memory) = memory
        {
            memory.let_go();
        }
    }

    /// Adds what an UPDATE tells; what it contradicts was taken back. `kept` are not forgotten for it. Whether somebody has asked for it.
    ///
    /// # Errors
    /// It says what cannot be.
    pub fn update(&self, told: &Told, kept: &[Range]) -> Result<bool, String> {
        let &Told {
            address,
            size,
            user,
            access,
            kind: _,
        } = told;
        let last = size.checked_sub(1).and_then(|more| address.checked_add(more));
        let (Some(last), true, 1..=3) = (last, user.checked_add(size).is_some(), access) else {
            return Err(format!(
                "a translation of {size:#x} bytes at {address:#x} to {user:#x} for access {access}: one that is not empty, \
                 ends within 64 bits and is for reading, writing or both is accepted"
            ));
        };
        let mut table = lock(&self.table);
        let range = address..=last;
        // Some front ends tell what was asked for alone: one after the other adds up.
        let whole = table
            .at(address)
            .filter(|(start, entry)| entry.last >= last && entry.leads(*start, told));
        let access = access | whole.map_or(0, |(_, entry)| entry.access);
        table.carve(&range);
        while table.entries.len() >= self.max {
            let touches = |start: u64, entry: &Entry| {
                kept.iter()
                    .any(|kept| start <= *kept.end() && entry.last >= *kept.start())
            };
            let after = table.entries.range((Bound::Excluded(table.hand), Bound::Unbounded));
            let around = after.chain(table.entries.range(..=table.hand));
            let mut idle = around.filter(|(start, entry)| !touches(**start, entry));
            let Some(one) = idle.next().map(|(&start, _)| start) else {
                return Err(format!("{} translations are of rings: no more are taken", self.max));
            };
            table.hand = one;
            table.entries.remove(&one);
        }
        let pages = (address & !(PAGE - 1), 0)..=(last, u8::MAX);
        let answered: Vec<_> = table.asked.range(pages).map(|(&key, _)| key).collect();
        // Of who was asked for both, one alone may be an answer.
        let refuses = answered
            .iter()
            .filter(|(_, asked)| asked.is_power_of_two())
            .fold(0, |all, (_, asked)| all | asked)
            & !access;
        answered.iter().for_each(|key| _ = table.asked.remove(key));
        table.entries.insert(
            address,
            Entry {
                last,
                user,
                access,
                refuses,
            },
        );
        self.unanswered.store(!table.asked.is_empty(), Ordering::Relaxed);
        Ok(!answered.is_empty())
    }

    /// Where an address of the driver's is in memory, however it may be accessed; and how many bytes from there on.
    pub fn locate(&self, address: u64) -> Option<(u64, u64)> {
        lock(&self.table).locate(address)
    }

    /// Asks for the page of an address that is to be read.
    pub fn ask(&self, address: u64) {
        lock(&self.table).ask(address, Permissions::Read as u8);
        self.send();
    }

    /// Whether all of a ring is translated, and in memory. What is missing first is asked for.
    pub fn has_ring(&self, layout: &QueueLayout, packed: bool) -> bool {
        let mut table = lock(&self.table);
        let missing = areas(layout, packed)
            .into_iter()
            .find_map(|(address, len, access)| table.first_missing(address, len, access as u8));
        if let Some((address, access)) = missing {
            table.ask(address, access);
        }
        let there = missing.is_none()
            && areas(layout, packed)
                .iter()
                .all(|&(address, len, _)| table.is_there(address, len));
        drop(table);
        self.send();
        there
    }

    /// Forgets everything. What was told is told again.
    pub fn forget(&self) {
        let nobody: Ticket = Arc::new(());
        self.take_back(&(0..=u64::MAX), &nobody);
        lock(&self.table).asked.clear();
    }

    /// Whether something was asked for and has not come.
    pub fn is_unanswered(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Asks again for what was asked for and has not come: a driver may have mapped it since, and kicks.
    pub fn ask_again(&self) {
        lock(&self.table).asked.values_mut().for_each(|sent| *sent = false);
        self.send();
    }

    /// Sends what was asked for and is not sent yet. Whether there is room for no more.
    pub fn send(&self) -> bool {
        let mut table = lock(&self.table);
        self.unanswered.store(!table.asked.is_empty(), Ordering::Relaxed);
        for (&(page, access), sent) in table.asked.iter_mut().filter(|(_, sent)| !**sent) {
            match self.say(IotlbKind::MISS, page, access) {
                true => *sent = true,
                false => return true,
            }
        }
        false
    }

    /// Whether it was said, or nobody hears.
    fn say(&self, kind: u8, address: u64, access: u8) -> bool {
        let told = Told {
            address,
            size: 0,
            user: 0,
            access,
            kind,
        };
        let payload = told.to_bytes();
        let header = Header::request(BackRequest::IotlbMsg as u32, payload.len());
        match self.lines.say(header, &payload) {
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            Ok(()) => true,
        }
    }
}

impl Translate for Iotlb {
    fn translate(&self, address: u64, _: u64, access: Permissions, found: &mut dyn FnMut(Piece)) -> Asked {
        let mut table = lock(&self.table);
        let wanted = access as u8;
        match table.at(address) {
            Some((start, entry)) if entry.access & wanted == wanted => {
                // As much of it as is in one region of memory.
                let at = entry.user + (address - start);
                let Some((physical, before, after)) = table.regions.around(at) else {
                    return Asked::Refused;
                };
                let before = before.min(address - start);
                found(Piece {
                    start: address - before,
                    last: entry.last.min(address.saturating_add(after - 1)),
                    physical: physical - before,
                    access: permissions(entry.access),
                });
                Asked::Found
            }
            Some((_, entry)) if entry.refuses & wanted != 0 => {
                drop(table);
                self.say(IotlbKind::ACCESS_FAIL, address, wanted);
                Asked::Refused
            }
            other => {
                table.ask(address, wanted & !other.map_or(0, |(_, entry)| entry.access));
                drop(table);
                if self.send() {
                    // As soon as there is room.
                    let _ = self.wake.trigger();
                }
                Asked::Later
            }
        }
    }
}

fn permissions(access: u8) -> Permissions {
    match access {
        1 => Permissions::Read,
        2 => Permissions::Write,
        3 => Permissions::ReadWrite,
        _ => Permissions::No,
    }
}

/// Wakes who waits for the translations of a request to be in use no more.
pub(super) struct Wake(pub Arc<Event>);

impl Drop for Wake {
    fn drop(&mut self) {
        // A full one wakes too.
        let _ = self.0.trigger();
    }
}
