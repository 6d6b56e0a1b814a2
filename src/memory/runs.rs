//! What a pin of memory that is translated has learnt.

use std::{
    collections::BTreeMap,
    mem,
    ops::RangeInclusive,
    ptr::NonNull,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use vm_memory::{Permissions, VolatileSlice};

use super::{
    Outside, Pin, Scratch, Segment,
    backing::Backing,
    scattered::Scattered,
    span::Span,
    tally::{Tally, Ticket, VIEWERS},
};

/// So many translations a pin finds again at once. A round that needs more looks the others up each time, and the next begins anew.
const PLACES: usize = 64;

/// Users of the first translation.
const FIRST: usize = VIEWERS + 1;

/// A range of addresses that leads to as many physical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub start: u64,
    /// The last address.
    pub last: u64,
    /// Where `start` leads.
    pub physical: u64,
    pub access: Permissions,
}

/// What comes of asking for a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It was told.
    Found,
    /// There is none.
    Refused,
    /// Who knows it has been asked in turn, and nobody waits for the answer: who needs it looks again when it is there.
    #[cfg_attr(
        not(all(target_os = "linux", feature = "vhost-user")),
        allow(dead_code, reason = "a transport's")
    )]
    Later,
}

/// Who translates the addresses of a device.
pub(crate) trait Translate: Send + Sync {
    /// Tells of a piece in which `address` is, and may be accessed so; with as many of the `len` bytes there as there are, if it can.
    /// While `found` is called, nothing is taken back.
    fn translate(&self, address: u64, len: u64, access: Permissions, found: &mut dyn FnMut(Piece)) -> Asked;
}

/// A translation that a pin has learnt.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    last: u64,
    physical: u64,
    access: Permissions,
    /// Where `start` is, if host addresses are stable.
    host: Option<NonNull<u8>>,
    /// It was taken back.
    is_over: bool,
}

impl Run {
    fn has(&self, address: u64) -> bool {
        (self.start..=self.last).contains(&address)
    }

    /// Bytes from `address` on.
    fn rest(&self, address: u64) -> u64 {
        (self.last - address).saturating_add(1)
    }
}

/// All that a pin has learnt. Nothing is removed, since chains that are out rely on it.
#[derive(Default)]
struct Learnt {
    /// What is in the spans, at the same places.
    first: Vec<Run>,
    /// The rest, by where it begins: each as it was mapped. Two overlap where one was taken back before the other was learnt, or was
    /// asked for with more of what is mapped beside it.
    more: BTreeMap<u64, Run>,
}

impl Learnt {
    fn find(&self, address: u64, access: Permissions) -> Option<Run> {
        let here = |run: &&Run| run.has(address) && run.access.allow(access);
        let first = self.first.iter().rev().filter(here);
        let more = self.more.range(..=address).next_back().map(|(_, run)| run).filter(here);
        let mut old = None;
        for run in first.chain(more) {
            if !run.is_over {
                return Some(*run);
            }
            old.get_or_insert(*run);
        }
        // What was taken back is there for who had it before.
        old
    }

    /// What is in these addresses, and by what its users are counted, if it has a place.
    fn hit<'a>(&'a mut self, addresses: &'a RangeInclusive<u64>) -> impl Iterator<Item = (Option<usize>, &'a mut Run)> {
        let (&from, &to) = (addresses.start(), addresses.end());
        // All of them: a long one can begin before many that end sooner.
        let more = self.more.range_mut(..=to).map(|(_, run)| run);
        let first = self.first.iter_mut().enumerate();
        first
            .map(|(at, run)| (Some(FIRST + at), run))
            .chain(more.map(|run| (None, run)))
            .filter(move |(_, run)| run.start <= to && run.last >= from)
    }
}

/// What a pin knows of translations.
pub(crate) struct Runs {
    /// The first of those that are in one piece of host memory.
    pub(super) spans: Arc<[Span]>,
    filled: AtomicUsize,
    learnt: RwLock<Learnt>,
    /// Rounds that may look here, and chains that are out.
    tally: Tally,
    /// What of these chains is in several translations, or in one beyond the places.
    scattered: Scattered,
    /// Something was taken back.
    stale: AtomicBool,
    /// Something was asked for that comes later.
    awaits: AtomicBool,
    base: Pin,
    source: Weak<dyn Translate>,
}

// SAFETY: host addresses lead to guest memory that `base` keeps mapped, and are accessed as those of a `Map` are.
unsafe impl Send for Runs {}
// SAFETY: as above.
unsafe impl Sync for Runs {}

impl Runs {
    /// What has learnt nothing.
    pub fn new(base: Pin, source: Weak<dyn Translate>) -> Self {
        let places = if base.0.is_flat() { PLACES } else { 0 };
        Self {
            spans: (0..places).map(|_| Span::empty()).collect(),
            filled: AtomicUsize::new(0),
            learnt: RwLock::default(),
            tally: Tally::new(FIRST + places),
            scattered: Scattered::default(),
            stale: AtomicBool::new(false),
            awaits: AtomicBool::new(false),
            base,
            source,
        }
    }

    /// What physical addresses are looked up in.
    #[inline]
    pub fn base(&self) -> &Pin {
        &self.base
    }

    pub fn tracks(&self) -> bool {
        self.base.tracks()
    }

    /// Whether more can be looked for here: nothing was taken back, and there are places.
    #[inline]
    pub fn goes_on(&self) -> bool {
        !self.is_stale() && !self.is_full()
    }

    /// Something was taken back.
    #[inline]
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::SeqCst)
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.filled.load(Ordering::Relaxed) == PLACES
    }

    fn learnt(&self) -> RwLockReadGuard<'_, Learnt> {
        self.learnt.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn learnt_mut(&self) -> RwLockWriteGuard<'_, Learnt> {
        self.learnt.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The span in which `len` bytes at `address` are and may be accessed so: what was learnt last has not been taken back.
    pub fn search(&self, address: u64, len: u64, access: Permissions) -> Option<usize> {
        let filled = self.filled.load(Ordering::Acquire);
        (0..filled).rev().find(|&at| {
            let span = &self.spans[at];
            span.offset(address, len).is_some() && span.allows(access)
        })
    }

    /// The host address of `address`, which may be accessed so, and how many bytes there are from there on.
    pub fn host(&self, address: u64, access: Permissions) -> Option<(NonNull<u8>, u64)> {
        let run = self.learnt().find(address, access)?;
        // SAFETY: within the run, all of which is in one piece of mapped memory.
        let host = unsafe { run.host?.add((address - run.start) as usize) };
        Some((host, run.rest(address)))
    }

    /// Calls `each` with the physical pieces of the `len` bytes at `address`, which are asked for if they are not known.
    fn pieces(
        &self,
        mut address: u64,
        mut len: u64,
        access: Permissions,
        each: &mut dyn FnMut(u64, u64) -> Result<(), Outside>,
    ) -> Result<(), Outside> {
        let outside = Outside { address, len };
        if len
            .checked_sub(1)
            .is_some_and(|last| address.checked_add(last).is_none())
        {
            return Err(outside);
        }
        while len != 0 {
            let known = self.learnt().find(address, access);
            let run = known.or_else(|| self.ask(address, 1, access)).ok_or(outside)?;
            let here = run.rest(address).min(len);
            each(run.physical + (address - run.start), here)?;
            len -= here;
            address = address.wrapping_add(here);
        }
        Ok(())
    }

    /// Asks who translates.
    #[cold]
    fn ask(&self, address: u64, len: u64, access: Permissions) -> Option<Run> {
        let mut run = None;
        let mut found = |piece| run = self.learn(piece, address);
        match self.source.upgrade()?.translate(address, len, access, &mut found) {
            Asked::Found => run,
            Asked::Refused => None,
            Asked::Later => {
                self.awaits.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Whether something that was asked for since this was called last comes later.
    pub fn awaits(&self) -> bool {
        self.awaits.swap(false, Ordering::Relaxed)
    }

    /// Keeps as much of `piece` as is in one piece of memory, around `address`.
    fn learn(&self, piece: Piece, address: u64) -> Option<Run> {
        let mut run = Run {
            start: piece.start,
            last: piece.last,
            physical: piece.physical,
            access: piece.access,
            host: None,
            is_over: false,
        };
        if self.base.0.is_flat() {
            let into = address - piece.start;
            let (host, before, after) = self.base.0.extent(piece.physical.checked_add(into)?)?;
            let before = before.min(into);
            run.start = address - before;
            run.physical = piece.physical + (into - before);
            run.last = piece.last.min(address.saturating_add(after - 1));
            // SAFETY: so many bytes before it are in the same span.
            run.host = Some(unsafe { host.sub(before as usize) });
        }
        let mut learnt = self.learnt_mut();
        let same = |other: &&Run| {
            (other.start, other.last, other.physical, other.access, other.is_over)
                == (run.start, run.last, run.physical, run.access, false)
        };
        if let Some(known) = learnt.first.iter().find(same) {
            return Some(*known);
        }
        let at = learnt.first.len();
        match (self.spans.get(at), run.host) {
            (Some(span), Some(host)) => {
                // Not all of the address space, which no memory is.
                span.fill((run.start, run.last - run.start + 1), host, run.access);
                learnt.first.push(run);
                self.filled.store(at + 1, Ordering::Release);
            }
            _ => _ = learnt.more.insert(run.start, run),
        }
        Some(run)
    }

    /// These addresses are looked up no more. `ticket` is kept while one of them is in use.
    pub fn take_back(&self, addresses: &RangeInclusive<u64>, ticket: &Ticket, over: &mut Vec<Ticket>) {
        let mut learnt = self.learnt_mut();
        if learnt.hit(addresses).next().is_none() {
            return;
        }
        self.stale.store(true, Ordering::SeqCst);
        self.tally.end(VIEWERS, ticket, over);
        self.scattered.end(addresses, ticket);
        for (thing, run) in learnt.hit(addresses) {
            run.is_over = true;
            if let Some(thing) = thing {
                self.tally.end(thing, ticket, over);
            }
        }
    }

    // Users.

    #[inline]
    pub fn view(&self) {
        self.tally.enter(VIEWERS);
    }

    #[inline]
    pub fn end_view(&self) {
        self.tally.leave(VIEWERS);
    }

    /// A chain with these segments is taken.
    #[inline(never)]
    pub fn enter(&self, segments: &[Segment]) {
        self.each_use(
            segments,
            |thing| self.tally.enter(thing),
            |segment| self.scattered.enter(segment),
        );
    }

    #[inline(never)]
    pub fn leave(&self, segments: &[Segment]) {
        self.each_use(
            segments,
            |thing| self.tally.leave(thing),
            |segment| self.scattered.leave(segment),
        );
    }

    /// Calls one of both for each segment, the same each time: it says where it was found, or that it was not in one place. Several in a
    /// row that are in one place count once.
    #[inline(always)]
    fn each_use(&self, segments: &[Segment], placed: impl Fn(usize), scattered: impl Fn(&Segment)) {
        let places = self.spans.len();
        // No place is that.
        let mut last = usize::MAX;
        for segment in segments {
            let place = segment.hint as usize;
            if place == last || segment.len == 0 {
                continue;
            }
            if place < places {
                last = place;
                placed(FIRST + place);
            } else {
                scattered(segment);
            }
        }
    }
}

impl Backing for Arc<Runs> {
    fn check(&self, address: u64, len: u64, access: Permissions) -> bool {
        // In one piece, if it is that: several mappings can be.
        let places = !self.is_full() && !self.spans.is_empty() && len != 0;
        if places && self.search(address, len, access).is_none() && self.ask(address, len, access).is_none() {
            return false;
        }
        let base = self.base.backing();
        let mut check = |physical, len| match base.check(physical, len, access) {
            true => Ok(()),
            false => Err(Outside { address, len }),
        };
        self.pieces(address, len, access, &mut check).is_ok()
    }

    fn load(&self, address: u64) -> Result<u16, Outside> {
        let mut value = 0;
        let mut load = |physical, len| match len {
            2 => {
                value = self.base.backing().load(physical)?;
                Ok(())
            }
            _ => Err(Outside { address, len: 2 }),
        };
        self.pieces(address, 2, Permissions::Read, &mut load)?;
        Ok(value)
    }

    fn store(&self, address: u64, value: u16) -> Result<(), Outside> {
        let mut store = |physical, len| match len {
            2 => self.base.backing().store(physical, value),
            _ => Err(Outside { address, len: 2 }),
        };
        self.pieces(address, 2, Permissions::Write, &mut store)
    }

    fn read(&self, address: u64, mut data: &mut [u8]) -> Result<(), Outside> {
        let len = data.len() as u64;
        self.pieces(address, len, Permissions::Read, &mut |physical, len| {
            let (now, rest) = mem::take(&mut data).split_at_mut(len as usize);
            data = rest;
            self.base.read(physical, now)
        })
    }

    fn write(&self, address: u64, mut data: &[u8]) -> Result<(), Outside> {
        self.pieces(address, data.len() as u64, Permissions::Write, &mut |physical, len| {
            let (now, rest) = data.split_at(len as usize);
            data = rest;
            self.base.write(physical, now)
        })
    }

    fn lend(
        &self,
        segments: &mut dyn Iterator<Item = Segment>,
        access: Permissions,
        f: &mut dyn FnMut(&[VolatileSlice<'_>]),
    ) -> Result<(), Outside> {
        let mut there = Vec::new();
        for Segment { address, len, .. } in segments {
            self.pieces(address, len.into(), access, &mut |physical, len| {
                there.push(Segment::new(physical, len as u32));
                Ok(())
            })?;
        }
        self.base
            .lend(&mut there.into_iter(), access, &mut Scratch::default(), f)
    }

    fn mark_dirty(&self, address: u64, len: u64) {
        // It was written there, so it is known.
        let _ = self.pieces(address, len, Permissions::Write, &mut |physical, len| {
            self.base.mark_dirty(physical, len);
            Ok(())
        });
    }
}

impl std::fmt::Debug for Runs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runs")
            .field("learnt", &self.filled)
            .field("stale", &self.is_stale())
            .finish_non_exhaustive()
    }
}
