//! Chains that a round lends together: their bytes are moved by one call, and each is given back with its own length.

use std::{fmt, ops::Range, slice};

use vm_memory::{Permissions, VolatileSlice};

use super::{Chain, ChainError, Gone, QueueError, Reader, Round, Writer, chain::Outline, counters::Kind, round::Aside};
use crate::memory::{Pin, Scratch, Segment};

/// How many chains are lent together at most: their pieces are for one system call.
const MOST: usize = 64;

/// How many segments they have at most, if there is more than one.
const MOST_SEGMENTS: usize = 1024;

/// Room for [`Several`] chains. A handler keeps one, so that none allocates.
#[derive(Default)]
pub struct SeveralRoom {
    parts: Vec<Part>,
    segments: Vec<Segment>,
    scratch: Scratch,
}

/// A chain, and which bytes of it are left to be moved.
struct Part {
    aside: Aside,
    /// Its segments begin there.
    segments: u32,
    from: u32,
    len: u32,
}

/// Chains of a round, lent together, in the order of the ring.
///
/// [`next`](Self::next) finds one, and [`push`](Self::push) adds it, with the bytes of it that are meant. All of them are lent as one
/// sequence of host memory, which one call fills or writes. Then the first of them are [put](Self::put), each with its
/// own length. Those that are left when this is dropped are left where they are, as a [`Chain`] that is dropped, and the next look finds
/// them again. The driver sees what was put when the round [publishes](Round::publish) it.
///
/// ```
/// # use devisor::virtio::queue::{QueueError, Round, SeveralRoom};
/// # use std::io::Read;
/// /// Fills buffers with what `source` has, by one call.
/// fn receive(round: &mut Round<'_>, room: &mut SeveralRoom, source: impl Fn(usize) -> usize) -> Result<(), QueueError> {
///     let mut buffers = round.several(room);
///     while let Some(chain) = buffers.next()? {
///         let len = chain.writable_len();
///         buffers.push(0, len);
///     }
///     let moved = buffers.fill(u32::MAX, |slices| source(slices.len()));
///     let mut left = moved.unwrap_or(0) as u32;
///     while left != 0 && let Some(len) = buffers.first_len() {
///         buffers.put(len.min(left))?;
///         left -= len.min(left);
///     }
///     drop(buffers);
///     round.publish()
/// }
/// ```
pub struct Several<'r, 'q> {
    round: &'r mut Round<'q>,
    room: &'r mut SeveralRoom,
    /// How many of the parts were given back.
    done: usize,
    /// What is left to be moved of the others.
    bytes: u32,
    /// A chain was found, and may be added.
    found: bool,
}

/// A chain that is looked at, of [`Several`].
#[derive(Clone, Copy)]
pub struct Found<'a> {
    outline: &'a Outline,
    segments: &'a [Segment],
    pin: &'a Pin,
}

impl<'a> Found<'a> {
    /// What the driver wrote for the device.
    pub fn readable(&self) -> &'a [Segment] {
        &self.segments[..self.outline.counts().0]
    }

    /// Where the device may write.
    pub fn writable(&self) -> &'a [Segment] {
        &self.segments[self.outline.counts().0..]
    }

    /// Bytes in all readable segments.
    #[inline]
    pub fn readable_len(&self) -> u32 {
        self.outline.readable_len
    }

    /// Bytes in all writable segments.
    #[inline]
    pub fn writable_len(&self) -> u32 {
        self.outline.writable_len
    }

    /// The readable bytes, from the first on.
    #[inline]
    pub fn reader(&self) -> Reader<'a> {
        Reader::new(self.pin, self.readable(), self.readable_len())
    }

    /// The writable bytes, from the first on.
    #[inline]
    pub fn writer(&self) -> Writer<'a> {
        Writer::new(self.pin, self.writable(), self.writable_len())
    }

    /// Writes `data` into the first writable bytes.
    ///
    /// # Errors
    /// As [`Writer::write`].
    #[inline]
    pub fn write(&self, data: &[u8]) -> Result<(), ChainError> {
        match *self.writable() {
            [mut first, ..] if first.len as usize >= data.len() => Ok(self.pin.write_to(&mut first, data)?),
            _ => self.writer().write(data),
        }
    }
}

impl<'q> Round<'q> {
    /// Several chains at once.
    #[inline]
    pub fn several<'r>(&'r mut self, room: &'r mut SeveralRoom) -> Several<'r, 'q> {
        room.clear();
        Several {
            round: self,
            room,
            done: 0,
            bytes: 0,
            found: false,
        }
    }
}

impl<'r, 'q> Chain<'r, 'q> {
    /// This chain with others that come after it: `len` bytes of it, from byte `from` on.
    #[inline]
    pub fn with_others(self, room: &'r mut SeveralRoom, from: u32, len: u32) -> Several<'r, 'q> {
        let mut several = self.0.several(room);
        several.found = true;
        several.push(from, len);
        several
    }
}

impl SeveralRoom {
    fn clear(&mut self) {
        self.parts.clear();
        self.segments.clear();
        if self.segments.capacity() > MOST_SEGMENTS {
            // Of one that was very long.
            self.segments = Vec::new();
        }
    }
}

impl<'q> Several<'_, 'q> {
    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.done == self.room.parts.len()
    }

    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.room.parts.len() - self.done
    }

    /// Whether there is room for no more.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.room.parts.len() >= MOST
    }

    /// How many bytes are left to be moved.
    #[inline]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// How many of these are of the first one, if there is one.
    #[inline]
    pub fn first_len(&self) -> Option<u32> {
        self.room.parts.get(self.done).map(|part| part.len)
    }

    /// From which byte on the first one is left to be moved; zero, if there is none.
    pub fn first_from(&self) -> u32 {
        self.room.parts.get(self.done).map_or(0, |part| part.from)
    }

    /// Finds the next chain, if there is room for it and it keeps the rules. Called again, it finds the same one, unless that was
    /// [added](Self::push).
    ///
    /// # Errors
    /// The driver broke the ring: as [`Round::next`].
    #[inline]
    #[allow(
        clippy::should_implement_trait,
        reason = "a chain is lent until the next one is looked for"
    )]
    pub fn next(&mut self) -> Result<Option<Found<'_>>, QueueError> {
        self.found = match self.is_empty() {
            true => {
                self.begin_again();
                self.round.next()?.is_some()
            }
            false => !self.is_full() && self.round.find_beside() && self.fits(),
        };
        if !self.found {
            return Ok(None);
        }
        let outline = &self.round.outline;
        Ok(Some(Found {
            outline,
            segments: self.round.hands.segments.all(outline),
            pin: &self.round.view.pin,
        }))
    }

    /// Whether the chain that was found fits in with the others.
    #[inline]
    fn fits(&self) -> bool {
        self.room.segments.len() + self.round.outline.counts().1 <= MOST_SEGMENTS
    }

    #[inline]
    fn begin_again(&mut self) {
        if self.done != 0 {
            self.room.clear();
            self.done = 0;
            self.round.none_aside(true);
        }
    }

    /// Adds the chain that was [found](Self::next) last, if it was not added yet: `len` bytes of it, from byte `from` on, are meant. Of a
    /// chain that has fewer, all that there are.
    #[inline]
    pub fn push(&mut self, from: u32, len: u32) {
        if !std::mem::take(&mut self.found) {
            return;
        }
        let Self { round, room, .. } = self;
        let segments = room.segments.len() as u32;
        match round.hands.segments.all(&round.outline) {
            [one] => room.segments.push(*one),
            all => room.segments.extend_from_slice(all),
        }
        let aside = round.set_aside();
        self.bytes = self.bytes.saturating_add(len);
        room.parts.push(Part {
            aside,
            segments,
            from,
            len,
        });
    }

    /// All of them, in order, and which bytes of each are left to be moved.
    #[inline]
    pub fn chains(&self) -> impl Iterator<Item = (Found<'_>, Range<u32>)> {
        let Self { round, room, done, .. } = self;
        room.parts[*done..].iter().map(|part| {
            let found = Found {
                outline: &part.aside.outline,
                segments: part.segments(room),
                pin: &round.view.pin,
            };
            (found, part.from..part.from.saturating_add(part.len))
        })
    }

    /// The next `len` bytes have been moved. How many chains are done with, from the first on, in which nothing is left.
    pub fn moved(&mut self, len: u32) -> usize {
        let mut left = len.min(self.bytes);
        self.bytes -= left;
        let mut done = 0;
        for part in &mut self.room.parts[self.done..] {
            let here = left.min(part.len);
            part.from += here;
            part.len -= here;
            left -= here;
            if part.len != 0 {
                break;
            }
            done += 1;
        }
        done
    }

    /// Gives the first chain back, with the number of bytes that were written into it. The driver sees it when the round
    /// [publishes](Round::publish).
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    #[inline]
    pub fn put(&mut self, written: u32) -> Result<(), QueueError> {
        let Some(part) = self.room.parts.get(self.done) else {
            return Ok(());
        };
        self.done += 1;
        self.bytes = self.bytes.saturating_sub(part.len);
        let put = self.round.put_aside(&part.aside, written);
        put.map_err(|Gone| self.round.shared.gone())
    }

    /// Gives the first chain back as one that holds no request, as [`Chain::refuse`] does.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn refuse(&mut self) -> Result<(), QueueError> {
        if !self.is_empty() {
            self.round.shared.counters.malformed(Kind::Request);
        }
        self.put(0)
    }

    /// Lends the first `limit` bytes that are left to be moved as slices of host memory, in order, to be written. They count as written
    /// when `f` has returned.
    ///
    /// # Errors
    /// [`ChainError::Outside`] if the embedder has taken memory away; `f` did not run.
    #[inline]
    pub fn fill<R>(&mut self, limit: u32, f: impl FnOnce(&[VolatileSlice<'_>]) -> R) -> Result<R, ChainError> {
        self.with_slices(Permissions::Write, limit, f)
    }

    /// The same, to be read.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    #[inline]
    pub fn read<R>(&mut self, limit: u32, f: impl FnOnce(&[VolatileSlice<'_>]) -> R) -> Result<R, ChainError> {
        self.with_slices(Permissions::Read, limit, f)
    }

    #[inline]
    fn with_slices<R>(
        &mut self,
        access: Permissions,
        limit: u32,
        f: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, ChainError> {
        let SeveralRoom {
            parts,
            segments,
            scratch,
        } = &mut *self.room;
        let pieces = Pieces {
            parts: parts[self.done..].iter(),
            all: segments,
            segments: [].iter(),
            skip: 0,
            here: 0,
            left: limit,
            writes: access == Permissions::Write,
        };
        Ok(self.round.view.pin.lend(pieces, access, scratch, f)?)
    }
}

impl Part {
    #[inline]
    fn segments<'a>(&self, room: &'a SeveralRoom) -> &'a [Segment] {
        let from = self.segments as usize;
        &room.segments[from..from + self.aside.outline.counts().1]
    }
}

impl Drop for Several<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        let left = &self.room.parts[self.done..];
        if let Some(first) = left.first() {
            self.round.set_back(&first.aside, left.iter().map(|part| &part.aside));
            self.round.none_aside(false);
        } else {
            self.round.none_aside(self.done != 0);
        }
        self.room.clear();
    }
}

impl fmt::Debug for Several<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Several")
            .field("round", &self.round)
            .field("len", &self.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// What of the parts is meant, as one sequence, without empty pieces.
struct Pieces<'a> {
    parts: slice::Iter<'a, Part>,
    all: &'a [Segment],
    /// Of the current part.
    segments: slice::Iter<'a, Segment>,
    /// Bytes of them that come first, and are not meant.
    skip: u32,
    /// Bytes of them that are.
    here: u32,
    /// Bytes of all parts that are meant.
    left: u32,
    /// It is their writable segments that are.
    writes: bool,
}

impl Iterator for Pieces<'_> {
    type Item = Segment;

    #[inline]
    fn next(&mut self) -> Option<Segment> {
        loop {
            while self.here == 0 {
                let part = self.parts.next()?;
                let (readable, count) = part.aside.outline.counts();
                let of = if self.writes { readable..count } else { 0..readable };
                let all = self.all.get(part.segments as usize..).and_then(|all| all.get(of));
                self.segments = all.unwrap_or_default().iter();
                (self.skip, self.here) = (part.from, part.len.min(self.left));
                self.left -= self.here;
            }
            let Some(segment) = self.segments.next() else {
                // It has fewer.
                self.here = 0;
                continue;
            };
            let skipped = self.skip.min(segment.len);
            self.skip -= skipped;
            let len = self.here.min(segment.len - skipped);
            if len != 0 {
                self.here -= len;
                // Within a segment, which does not wrap.
                return Some(segment.at(segment.address + u64::from(skipped), len));
            }
        }
    }
}
