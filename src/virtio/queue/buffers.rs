//! Reading and writing the bytes of a chain, across its segments.

use std::ops::Range;

use vm_memory::{ByteValued, Permissions, VolatileSlice};

use super::ChainError;
use crate::memory::{Outside, Pin, Scratch, Segment};

/// A position in the segments of a chain, and where it ends.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    pin: &'a Pin,
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind us.
    offset: u32,
    remaining: u32,
}

impl Cursor<'_> {
    /// The next contiguous piece of guest memory, at most `limit` bytes of it, which is stepped over.
    #[inline]
    fn step(&mut self, limit: usize) -> Option<Segment> {
        let limit = limit.min(self.remaining as usize) as u32;
        if limit == 0 {
            return None;
        }
        loop {
            let (segment, rest) = self.segments.split_first()?;
            let len = limit.min(segment.len - self.offset);
            if len == 0 {
                (self.segments, self.offset) = (rest, 0);
                continue;
            }
            let mut piece = *segment;
            // Within a segment, which does not wrap.
            piece.address += u64::from(self.offset);
            piece.len = len;
            self.offset += len;
            self.remaining -= len;
            return Some(piece);
        }
    }

    /// Calls `access` for the pieces of the next `len` bytes, with the range of each within these.
    #[inline(always)]
    fn each(
        &mut self,
        len: usize,
        mut access: impl FnMut(&Pin, &mut Segment, Range<usize>) -> Result<(), Outside>,
    ) -> Result<(), ChainError> {
        if len > self.remaining as usize {
            return Err(ChainError::Short(len - self.remaining as usize));
        }
        // Nearly always in the first segment.
        if let [segment, ..] = self.segments
            && len as u64 <= u64::from(segment.len - self.offset)
            && len != 0
        {
            let mut piece = *segment;
            piece.address += u64::from(self.offset);
            piece.len = len as u32;
            self.offset += len as u32;
            self.remaining -= len as u32;
            return Ok(access(self.pin, &mut piece, 0..len)?);
        }
        self.each_of_several(len, access)
    }

    fn each_of_several(
        &mut self,
        len: usize,
        mut access: impl FnMut(&Pin, &mut Segment, Range<usize>) -> Result<(), Outside>,
    ) -> Result<(), ChainError> {
        let mut done = 0;
        while let Some(mut piece) = self.step(len - done) {
            let end = done + piece.len as usize;
            access(self.pin, &mut piece, done..end)?;
            done = end;
        }
        Ok(())
    }

    /// Steps over the next `len` bytes. What comes next begins with its first segment.
    #[inline]
    fn step_over(&mut self, len: u32) -> Result<(), ChainError> {
        let Some(rest) = self.remaining.checked_sub(len) else {
            return Err(ChainError::Short((len - self.remaining) as usize));
        };
        let mut left = len;
        while let [segment, others @ ..] = self.segments {
            let here = segment.len - self.offset;
            if left < here {
                self.offset += left;
                break;
            }
            left -= here;
            (self.segments, self.offset) = (others, 0);
        }
        self.remaining = rest;
        Ok(())
    }

    #[inline]
    fn split_at(self, len: u32) -> Result<(Self, Self), ChainError> {
        let (mut first, mut second) = (self, self);
        second.step_over(len)?;
        first.remaining = len;
        Ok((first, second))
    }
}

impl Iterator for Cursor<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        self.step(usize::MAX)
    }
}

/// The device-readable bytes of a chain, read from the front.
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn new(pin: &'a Pin, segments: &'a [Segment], remaining: u32) -> Self {
        Self(Cursor {
            pin,
            segments,
            offset: 0,
            remaining,
        })
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> u32 {
        self.0.remaining
    }

    /// Reads exactly `data.len()` bytes.
    ///
    /// # Errors
    /// [`ChainError::Short`] if fewer are left; none is read then. [`ChainError::Outside`] if the embedder has taken memory away.
    #[inline]
    pub fn read(&mut self, data: &mut [u8]) -> Result<(), ChainError> {
        self.0
            .each(data.len(), |pin, piece, range| pin.read_from(piece, &mut data[range]))
    }

    /// Reads a structure.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    #[inline]
    pub fn read_obj<T: ByteValued>(&mut self) -> Result<T, ChainError> {
        let mut object = T::zeroed();
        self.read(object.as_mut_slice())?;
        Ok(object)
    }

    /// Parts the next `len` bytes from those after them.
    ///
    /// # Errors
    /// [`ChainError::Short`] if fewer are left.
    #[inline]
    pub fn split_at(self, len: u32) -> Result<(Self, Self), ChainError> {
        let (first, second) = self.0.split_at(len)?;
        Ok((Self(first), Self(second)))
    }

    /// Lends all remaining bytes as slices of host memory, in order: for vectored I/O.
    ///
    /// # Errors
    /// [`ChainError::Outside`] if the embedder has taken memory away; `f` did not run.
    pub fn with_slices<R>(
        mut self,
        room: &mut Slices,
        f: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, ChainError> {
        let pin = self.0.pin;
        Ok(pin.lend(&mut self.0, Permissions::Read, &mut room.0, f)?)
    }
}

/// The device-writable bytes of a chain, written from the front.
pub struct Writer<'a>(Cursor<'a>);

impl<'a> Writer<'a> {
    #[inline]
    pub(super) fn new(pin: &'a Pin, segments: &'a [Segment], remaining: u32) -> Self {
        Self(Cursor {
            pin,
            segments,
            offset: 0,
            remaining,
        })
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> u32 {
        self.0.remaining
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// [`ChainError::Short`] if there is less room; nothing is written then. [`ChainError::Outside`] if the embedder has taken
    /// memory away.
    #[inline]
    pub fn write(&mut self, data: &[u8]) -> Result<(), ChainError> {
        self.0
            .each(data.len(), |pin, piece, range| pin.write_to(piece, &data[range]))
    }

    /// Writes a structure.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    #[inline]
    pub fn write_obj<T: ByteValued>(&mut self, object: &T) -> Result<(), ChainError> {
        self.write(object.as_slice())
    }

    /// Steps over the next `len` bytes, which are left as they are.
    ///
    /// # Errors
    /// [`ChainError::Short`] if fewer are left; none is stepped over then.
    #[inline]
    pub fn skip(&mut self, len: u32) -> Result<(), ChainError> {
        self.0.step_over(len)
    }

    /// Writes `len` bytes of `value`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn fill(&mut self, value: u8, len: u32) -> Result<(), ChainError> {
        let block = [value; 512];
        self.0.each(len as usize, |pin, piece, _| {
            let mut rest = *piece;
            while rest.len != 0 {
                let len = rest.len.min(block.len() as u32);
                pin.write_to(&mut rest, &block[..len as usize])?;
                // Within a segment, which does not wrap.
                rest.address += u64::from(len);
                rest.len -= len;
            }
            Ok(())
        })
    }

    /// Parts the next `len` bytes from those after them.
    ///
    /// # Errors
    /// [`ChainError::Short`] if fewer are left.
    #[inline]
    pub fn split_at(self, len: u32) -> Result<(Self, Self), ChainError> {
        let (first, second) = self.0.split_at(len)?;
        Ok((Self(first), Self(second)))
    }

    /// Lends all remaining bytes as slices of host memory, in order: for vectored I/O. They count as written when `f` has
    /// returned.
    ///
    /// # Errors
    /// [`ChainError::Outside`] if the embedder has taken memory away; `f` did not run.
    pub fn with_slices<R>(
        mut self,
        room: &mut Slices,
        f: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, ChainError> {
        let pin = self.0.pin;
        Ok(pin.lend(&mut self.0, Permissions::Write, &mut room.0, f)?)
    }
}

/// Room for the slices that a [`Reader`] or [`Writer`] lends. A handler keeps one and lends it to each request, so that none
/// allocates.
#[derive(Default)]
pub struct Slices(Scratch);
