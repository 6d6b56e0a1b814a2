//! Chains of one buffer that a round looks at before their turn: what nearly all packets are. Looking at several in a row has the memory
//! of each on its way while others are worked on, for all of it was last in another core's cache.

use std::{
    ptr::{self, NonNull},
    sync::atomic::{Ordering, compiler_fence},
};

use super::{
    Gone, QueueError, Round,
    chain::Outline,
    counters::Kind,
    format::{FlatView, Format},
    round::Company,
    table::{Descriptor, INDIRECT, NEXT, WRITE},
};
use crate::memory::Stretch;

/// How many are looked at together at most.
const MOST: usize = 32;

/// The beginnings of so many are on their way here at a time: a processor has about two lines for each of them under way.
const SOON: usize = 8;

/// Lines at most of the one that comes next. The rest of a long one processors see coming themselves; to ask for that too costs them more
/// than it saves, in packets of 1500 bytes.
const LINES: usize = 8;

/// Bytes of a cache line.
const LINE: u32 = 64;

/// Room for what an [`Ahead`] looks at. A handler keeps one, so that none allocates.
#[derive(Default)]
pub(crate) struct AheadRoom {
    buffers: Vec<Buffer>,
    /// The first of them that is not given back.
    at: usize,
}

/// A chain of one buffer.
#[derive(Clone, Copy)]
struct Buffer {
    address: u64,
    len: u32,
    head: u16,
}

/// The chains of a round that come next, as far as they are one buffer each of plain memory, all readable or all writable. What else a
/// chain may be is found [by the round](Self::round).
pub(crate) struct Ahead<'r, 'q> {
    round: &'r mut Round<'q>,
    room: &'r mut AheadRoom,
    /// All of them are in it.
    span: &'q Stretch,
    writable: bool,
}

impl<'q> Round<'q> {
    /// Looks ahead for chains that are `writable`, or readable.
    #[inline]
    pub(crate) fn ahead<'r>(&'r mut self, room: &'r mut AheadRoom, writable: bool) -> Ahead<'r, 'q> {
        room.forget();
        Ahead {
            round: self,
            room,
            span: &Stretch::NONE,
            writable,
        }
    }
}

impl AheadRoom {
    #[inline]
    fn forget(&mut self) {
        self.buffers.clear();
        self.at = 0;
    }
}

impl<'q> Ahead<'_, 'q> {
    /// The length of the next chain, if it is what this is for, and nothing else is to be done for it.
    #[inline(always)]
    pub fn next_len(&mut self) -> Option<u32> {
        match self.room.buffers.get(self.room.at) {
            Some(buffer) => Some(buffer.len),
            None => self.look(),
        }
    }

    /// The length of the chain that comes so many after the next one, if that is known of.
    #[inline(always)]
    pub fn len_after(&self, by: usize) -> Option<u32> {
        self.room.buffers.get(self.room.at + by).map(|buffer| buffer.len)
    }

    /// How many of the next chains have room for `len` bytes together, if so many are known of, each of them at least `least` long.
    pub fn gather(&mut self, len: usize, least: usize) -> Option<u16> {
        self.enough(len, least).or_else(|| {
            // From the next one on.
            self.look()?;
            self.enough(len, least)
        })
    }

    fn enough(&self, len: usize, least: usize) -> Option<u16> {
        let mut left = len;
        for (number, buffer) in (1..).zip(self.room.buffers.get(self.room.at..)?) {
            let room = buffer.len as usize;
            if room < least {
                return None;
            }
            left = left.saturating_sub(room);
            if left == 0 {
                return Some(number);
            }
        }
        None
    }

    /// The round, for a chain that is something else.
    #[inline]
    pub fn round(&mut self) -> &mut Round<'q> {
        self.room.forget();
        self.round
    }

    /// Looks at those that come now.
    #[inline(never)]
    fn look(&mut self) -> Option<u32> {
        self.room.forget();
        // Otherwise a chain may be one that is out, or may have to be told of; and a round that is over looks at nothing.
        if self.round.company != Company::None || self.round.ring.is_none() || self.round.budget == 0 {
            return None;
        }
        let (round, writable) = (&mut *self.round, self.writable);
        let mut found = Finding {
            buffers: &mut self.room.buffers,
            bytes: round.bytes,
            writable,
        };
        let most = MOST.min(round.budget.into());
        match &round.flat {
            Some(Format::Split(view)) => {
                self.span = view.span();
                let split = &mut round.available.split;
                let there = split.look_ahead(&view.ring, || round.view.pin.tracks());
                for next in 0..most.min(there.into()) as u16 {
                    let entry = view.ring.avail_entry(split.next.wrapping_add(next));
                    let Some(head) = view.ring.head(entry) else { break };
                    let first = view.ring.first(head);
                    if !found.add(view, first, first.flags(), head.index()) {
                        break;
                    }
                }
            }
            Some(Format::Packed(view)) => {
                self.span = view.span();
                let mut available = round.available.packed.next;
                let size = round.available.packed.size;
                // What is used in order is written once, and what is only read stays where the driver can read it too.
                let to_write = writable || !round.shared.in_order();
                for _ in 0..most {
                    if let Some(line) = view.ring.line_ahead(available.slot) {
                        fetch(line, to_write);
                    }
                    let first = round.available.packed.look_near_at(&view.ring, available);
                    let Some(first) = first.filter(|first| view.ring.has(first.id())) else {
                        break;
                    };
                    if !found.add(view, first, first.packed_flags(), first.id()) {
                        break;
                    }
                    available = available.after(1, size);
                }
            }
            None => {}
        }
        self.room.buffers.first().map(|buffer| buffer.len)
    }

    /// Reads the first bytes of the next chain, which has as many. The first of them are also returned, as they were read, once; zeros, if
    /// there are not so many.
    #[inline(always)]
    pub fn read<const N: usize>(&self, data: &mut [u8]) -> [[u8; N]; 2] {
        self.fetch_ahead(data.len());
        let mut start = [[0; N]; 2];
        let Some(host) = self.host(0, 0, data.len()) else {
            return start;
        };
        let read = |from: usize, data: &mut [u8]| {
            // SAFETY: so many bytes of guest memory are there, which the round's pin keeps mapped, and `data` is none of it.
            unsafe { ptr::copy_nonoverlapping(host.as_ptr().add(from), data.as_mut_ptr(), data.len()) };
        };
        match data.split_at_mut_checked(2 * N) {
            Some((first, rest)) => {
                start.iter_mut().zip([0, N]).for_each(|(part, at)| read(at, part));
                // Nobody looks again: the driver may have changed it.
                compiler_fence(Ordering::SeqCst);
                read(2 * N, rest);
                first.copy_from_slice(start.as_flattened());
            }
            None => read(0, data),
        }
        start
    }

    /// Writes what the chain begins with that comes so many after the next one, unless it does so already: a header is most often what it
    /// was when the buffer was used last, and its cache line stays where the driver can read it too. It has so many bytes. (That "a device
    /// SHOULD NOT read" what it may write, section 2.7.5.1, is not kept for these: nothing but whether they are written hangs on what they
    /// were.)
    #[inline(always)]
    pub fn write_start<const N: usize>(&mut self, by: usize, data: &[u8; N]) {
        let Some(host) = self.host(by, 0, N) else { return };
        let mut before = [0; N];
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(host.as_ptr(), before.as_mut_ptr(), N) };
        if before != *data {
            // SAFETY: as in `read`.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), host.as_ptr(), N) };
        }
    }

    /// Writes `data` into the chain that comes so many after the next one, from byte `at` on. It has so many.
    #[inline(always)]
    pub fn write(&mut self, by: usize, at: u32, data: &[u8]) {
        if at != 0 {
            self.fetch_ahead(data.len());
        }
        if let Some(host) = self.host(by, at, data.len()) {
            // SAFETY: as in `read`.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), host.as_ptr(), data.len()) };
        }
    }

    /// The host address of a later chain, and its length.
    #[inline(always)]
    fn later(&self, by: usize) -> Option<(*const u8, u32)> {
        let buffer = self.room.buffers.get(self.room.at + by)?;
        let host = self.span.host(buffer.address, buffer.len)?;
        Some((host.as_ptr(), buffer.len))
    }

    /// Has more of what comes after the next chain on its way: as much as this one takes, for most are alike.
    #[inline(always)]
    fn fetch_ahead(&self, len: usize) {
        if len > 2 * LINE as usize
            && let Some((host, most)) = self.later(1)
        {
            let lines = len.min(most as usize).div_ceil(LINE as usize).min(LINES);
            for line in 2..lines {
                fetch(host.wrapping_add(line * LINE as usize), self.writable);
            }
        }
    }

    /// The guest address of the next chain.
    #[inline(always)]
    pub fn address(&self) -> u64 {
        self.room.buffers.get(self.room.at).map_or(0, |buffer| buffer.address)
    }

    /// The host address of `len` bytes of such a chain from byte `at` on, if it has so many.
    #[inline(always)]
    fn host(&self, by: usize, at: u32, len: usize) -> Option<NonNull<u8>> {
        let buffer = self.room.buffers.get(self.room.at + by)?;
        let there = u64::from(at) + len as u64 <= buffer.len.into();
        there
            .then(|| self.span.find(buffer.address + u64::from(at), len as u64))?
            .map(|(host, _)| host)
    }

    /// Gives the next chain back, as [`Chain::put`](super::Chain::put).
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    #[inline(always)]
    pub fn put(&mut self, written: u32) -> Result<(), QueueError> {
        let Some(&Buffer { address, len, head }) = self.room.buffers.get(self.room.at) else {
            return Ok(());
        };
        if let Some((host, later)) = self.later(SOON)
            && !is_short(later)
        {
            fetch_start(host, later, self.writable);
        }
        self.room.at += 1;
        let written = if self.writable { written.min(len) } else { 0 };
        let round = &mut *self.round;
        if written != 0 && round.view.pin.tracks() {
            round.view.pin.mark_dirty(address, written.into());
        }
        let (Some(ring), Some(flat)) = (&mut round.ring, &round.flat) else {
            return self.put_far(head, len, written);
        };
        let (available, used) = (&mut *round.available, &mut ring.used.ring);
        match flat {
            Format::Split(view) => {
                available.split.advance();
                used.split.renew_near(&view.ring, head, written);
            }
            Format::Packed(view) => {
                available.packed.advance(1);
                let (used, counters) = (&mut used.packed, &round.shared.counters);
                if !self.writable && round.shared.in_order() {
                    used.join_near(&view.ring, head, counters);
                } else {
                    used.use_near::<false>(&view.ring, head, 1, written, counters);
                }
            }
        }
        round.spend_for(len.into());
        Ok(())
    }

    #[cold]
    fn put_far(&mut self, head: u16, len: u32, written: u32) -> Result<(), QueueError> {
        let lens = if self.writable { (0, len) } else { (len, 0) };
        let round = self.round();
        round.outline = Outline {
            head,
            descriptors: 1,
            readable: (lens.0 != 0).into(),
            count: 1,
            readable_len: lens.0,
            writable_len: lens.1,
        };
        round.give_back::<false>(written).map_err(|Gone| round.shared.gone())
    }

    /// Gives the next chain back as one that holds no request, as [`Chain::refuse`](super::Chain::refuse).
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn refuse(&mut self) -> Result<(), QueueError> {
        self.round.shared.counters.malformed(Kind::Request);
        self.put(0)
    }

    /// The next chain is left where it is.
    pub fn leave(&mut self) {
        self.room.forget();
        self.round.leave_next();
    }
}

/// What is looked at in a row.
struct Finding<'a> {
    buffers: &'a mut Vec<Buffer>,
    /// How many bytes the round may still come to before it ends.
    bytes: u64,
    writable: bool,
}

impl Finding<'_> {
    /// Adds a chain that begins with `first`, if it is of the kind. Whether another one may follow.
    #[inline(always)]
    fn add<R>(&mut self, view: &FlatView<'_, R>, first: Descriptor, flags: u16, head: u16) -> bool {
        let wanted = if self.writable { WRITE } else { 0 };
        let (address, len) = (first.address, first.len());
        if flags & (NEXT | INDIRECT | WRITE) != wanted {
            return false;
        }
        let Some(host) = view.span().host(address, len) else {
            return false;
        };
        if self.buffers.len() < SOON || is_short(len) {
            fetch_start(host.as_ptr(), len, self.writable);
        }
        self.buffers.push(Buffer { address, len, head });
        let spent;
        (self.bytes, spent) = self.bytes.overflowing_sub(len.into());
        !spent
    }
}

/// Whether all of it is on its way at once, without which more would be under way than a processor has room for.
#[inline(always)]
fn is_short(len: u32) -> bool {
    len <= 2 * LINE
}

/// Has a header on its way here, and a short packet or the beginning of a long one. Where little more than the header is in the first
/// line, that is [most often](Ahead::write_start) not written.
#[inline(always)]
fn fetch_start(host: *const u8, len: u32, to_write: bool) {
    let in_first = LINE - host.addr() as u32 % LINE;
    fetch(host, to_write && in_first > 16);
    if len > LINE {
        fetch(host.wrapping_add(LINE as usize), to_write);
    }
}

/// Has the cache line of this address on its way here, to be read; or to be written, which takes it away from who has it.
#[inline(always)]
fn fetch(address: *const u8, to_write: bool) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    match to_write {
        // Processors without it do nothing.
        // SAFETY: a hint, which is no access.
        true => unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        },
        // SAFETY: as above.
        false => unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
        },
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    match to_write {
        // SAFETY: as above.
        true => unsafe {
            std::arch::asm!("prfm pstl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        },
        // SAFETY: as above.
        false => unsafe {
            std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        },
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = (address, to_write);
}
