//! Translations that the front end tells, for a device whose addresses its IOMMU translates (ACCESS_PLATFORM).
//!
//! What is here is a part of what the front end knows. What is missing is asked for on the channel of the back end's own requests, and
//! nobody waits for it: a request of the driver stays in its ring until the translation has come, and a ring is not started before all
//! of it is translated. So what a ring that runs needs itself is always here: a translation of it is taken back when the ring has come
//! to rest.

mod table;

use std::{
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use vm_memory::Permissions;

use super::{channel::Expected, event::Event, lines::Lines, regions::Regions};
use crate::{
    interrupt::Interrupt,
    memory::{Asked, Over, Piece, Ticket, Translate, Translated},
    sync::lock,
    virtio::{
        queue::{QueueLayout, areas},
        vhost_user::{BackRequest, Header, Iotlb as Told, IotlbKind},
    },
};
use table::{Entry, MAX_ASKED, Miss, PAGE, Table};

pub(super) use table::Range;

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
    /// there are addresses, which is what a length of all of them wraps to. One that is refused takes none back.
    pub fn takes_back(&self, told: &Told) -> Option<Range> {
        let last = told.address.saturating_add(told.size.wrapping_sub(1));
        let range = told.address..=last;
        match told.kind {
            IotlbKind::INVALIDATE => Some(range),
            IotlbKind::UPDATE if last_of(told).is_some() => {
                let table = lock(&self.table);
                let contradicts = table.within(&range).any(|(start, entry)| !entry.leads(start, told));
                contradicts.then_some(range)
            }
            _ => None,
        }
    }

    /// Takes translations back. `ticket` is kept as long as one is in use. What is left of one may be two: `kept` are not forgotten for it.
    pub fn take_back(&self, range: &Range, ticket: &Ticket, kept: &[Range]) {
        let mut over = Over::default();
        let memory = self.memory.get();
        {
            let mut table = lock(&self.table);
            table.carve(range);
            table.forget_beyond(self.max, kept);
            let pages = pages(range);
            table.refused.retain(|key| !pages.contains(key));
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
        let Some(last) = last_of(told) else {
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
        let pages = pages(&range);
        let is_known = whole.is_some_and(|(_, entry)| entry.access & access == access && entry.refuses == 0);
        if is_known && table.asked.range(pages.clone()).next().is_none() {
            table.refused.retain(|key| !pages.contains(key));
            return Ok(false);
        }
        let access = access | whole.map_or(0, |(_, entry)| entry.access);
        table.carve(&range);
        if !table.forget_beyond(self.max.saturating_sub(1), kept) {
            return Err(format!("{} translations are of rings: no more are taken", self.max));
        }
        let answered: Vec<_> = table.asked.range(pages.clone()).map(|(&key, _)| key).collect();
        // Of who was asked for both, one alone may be an answer; and what is an answer to one who was asked for by itself is none to another.
        let (met, unmet): (Vec<_>, Vec<_>) = answered.into_iter().partition(|(_, asked)| asked & access != 0);
        let (answered, refuses) = match met.is_empty() {
            true => {
                let refuses = unmet.iter().fold(0, |all, (_, asked)| all | asked);
                (unmet, refuses)
            }
            false => (met, 0),
        };
        answered.iter().for_each(|key| _ = table.asked.remove(key));
        table.refused.retain(|key| !pages.contains(key));
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
        self.take_back(&(0..=u64::MAX), &nobody, &[]);
        let mut table = lock(&self.table);
        table.asked.clear();
        table.refused.clear();
    }

    /// Whether something was asked for and has not come.
    pub fn is_unanswered(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Asks again for what was asked for and has not come: a driver may have mapped it since, and kicks.
    pub fn ask_again(&self) {
        lock(&self.table)
            .asked
            .values_mut()
            .for_each(|miss| *miss = Miss::ToSay);
        self.send();
    }

    /// Sends what was asked for and is not sent yet. Whether there is room for no more.
    pub fn send(&self) -> bool {
        let mut table = lock(&self.table);
        self.unanswered.store(!table.asked.is_empty(), Ordering::Relaxed);
        for (&(page, access), miss) in table.asked.iter_mut().filter(|(_, miss)| **miss == Miss::ToSay) {
            match self.say(IotlbKind::MISS, page, access) {
                true => *miss = Miss::Said,
                false => return true,
            }
        }
        false
    }

    /// The front end has done what there is to do for a page that was asked for. It may have said so on the connection, which is heard
    /// first.
    pub fn hear(&self, page: u64, access: u8) {
        if self.lines.expects(page, access) {
            return;
        }
        // What is to be said again is not answered yet.
        if let Some(miss @ Miss::Said) = lock(&self.table).asked.get_mut(&(page, access)) {
            *miss = Miss::Answered;
        }
    }

    /// Forgets what is not to come: it was so for requests of before, and may be there for those of a ring that starts.
    pub fn refuse_no_more(&self) {
        {
            let mut table = lock(&self.table);
            table.refused.clear();
            let answered = table.asked.values_mut().filter(|miss| **miss == Miss::Answered);
            answered.for_each(|miss| *miss = Miss::ToSay);
        }
        self.send();
    }

    /// What was answered, and has not come, is not to come. Whether there is any.
    pub fn give_up(&self) -> bool {
        let mut table = lock(&self.table);
        let over: Vec<_> = table
            .asked
            .iter()
            .filter(|(_, miss)| **miss == Miss::Answered)
            .map(|(&key, _)| key)
            .collect();
        for key in &over {
            table.asked.remove(key);
            if table.refused.len() >= MAX_ASKED {
                table.refused.pop_first();
            }
            table.refused.insert(*key);
        }
        self.unanswered.store(!table.asked.is_empty(), Ordering::Relaxed);
        !over.is_empty()
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
        let is_asked = match kind {
            IotlbKind::MISS => self
                .lines
                .ask(header, &payload, || Expected::Translation(address, access)),
            _ => Ok(false),
        };
        let said = match is_asked {
            Ok(true) => Ok(()),
            Ok(false) => self.lines.say(header, &payload),
            Err(error) => Err(error),
        };
        match said {
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
                let missing = wanted & !other.map_or(0, |(_, entry)| entry.access);
                if table.refused.remove(&(address & !(PAGE - 1), missing)) {
                    drop(table);
                    self.say(IotlbKind::ACCESS_FAIL, address, missing);
                    return Asked::Refused;
                }
                table.ask(address, missing);
                drop(table);
                if self.send() || self.lines.awaited().is_some() {
                    // As soon as there is room, or an answer.
                    let _ = self.wake.trigger();
                }
                Asked::Later
            }
        }
    }
}

/// What may be asked for or refused of these addresses.
fn pages(range: &Range) -> RangeInclusive<(u64, u8)> {
    (range.start() & !(PAGE - 1), 0)..=(*range.end(), u8::MAX)
}

/// Where an UPDATE ends, if it says what can be.
fn last_of(told: &Told) -> Option<u64> {
    let last = told.address.checked_add(told.size.checked_sub(1)?)?;
    let is_sound = told.user.checked_add(told.size).is_some() && matches!(told.access, 1..=3);
    is_sound.then_some(last)
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
