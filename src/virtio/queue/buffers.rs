//! Reading and writing the bytes of a chain, across its segments.

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice, bitmap::Bitmap};

use super::{QueueError, Segment};

/// A position in the segments of a chain, and where it ends.
#[derive(Debug)]
struct Cursor<'a, M> {
    memory: &'a M,
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind us.
    offset: u32,
    remaining: u32,
}

impl<'a, M: GuestMemory> Cursor<'a, M> {
    /// The next contiguous piece of guest memory, at most `limit` bytes of it, which is stepped over.
    fn step(&mut self, limit: usize) -> Option<(GuestAddress, usize)> {
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
            // Within a segment, which does not wrap.
            let address = GuestAddress(segment.address.0 + u64::from(self.offset));
            self.offset += len;
            self.remaining -= len;
            return Some((address, len as usize));
        }
    }

    /// Calls `access` for the pieces of the next `len` bytes, with the range of each within these.
    fn each(
        &mut self,
        len: usize,
        mut access: impl FnMut(&M, GuestAddress, std::ops::Range<usize>) -> Result<(), vm_memory::GuestMemoryError>,
    ) -> Result<(), QueueError> {
        if len > self.remaining as usize {
            return Err(QueueError::Short(len - self.remaining as usize));
        }
        let mut done = 0;
        while let Some((address, piece)) = self.step(len - done) {
            access(self.memory, address, done..done + piece).map_err(|_| outside(address, piece))?;
            done += piece;
        }
        Ok(())
    }

    fn split_at(self, len: u32) -> Result<(Self, Self), QueueError> {
        let Some(rest) = self.remaining.checked_sub(len) else {
            return Err(QueueError::Short((len - self.remaining) as usize));
        };
        let first = Cursor { remaining: len, ..self };
        let mut second = Cursor {
            remaining: self.remaining,
            ..first
        };
        while second.remaining > rest && second.step((second.remaining - rest) as usize).is_some() {}
        Ok((first, second))
    }

    /// Lends all remaining bytes as slices of host memory.
    fn with_slices<R>(
        mut self,
        access: Permissions,
        f: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, QueueError> {
        let mut guarded = Vec::with_capacity(self.segments.len());
        while let Some((address, len)) = self.step(usize::MAX) {
            let slices = self
                .memory
                .get_slices(address, len, access)
                .map_err(|_| outside(address, len))?;
            for slice in slices {
                let slice = slice.map_err(|_| outside(address, len))?;
                guarded.push((slice.ptr_guard_mut(), slice));
            }
        }
        let slices: Vec<_> = guarded
            .iter()
            // SAFETY: the pointer and the length are those of a valid volatile slice. Its memory stays mapped as long
            // as `self.memory` is borrowed and the guard lives, and both outlive `slices`.
            .map(|(guard, slice)| unsafe { VolatileSlice::new(guard.as_ptr(), slice.len()) })
            .collect();
        let result = f(&slices);
        if access.has_write() {
            // The bare slices went around the bitmap of dirty pages.
            for (_, slice) in &guarded {
                slice.bitmap().mark_dirty(0, slice.len());
            }
        }
        Ok(result)
    }
}

fn outside(address: GuestAddress, len: usize) -> QueueError {
    QueueError::Outside {
        address: address.0,
        len: len as u64,
    }
}

/// The device-readable bytes of a chain, read from the front.
#[derive(Debug)]
pub struct Reader<'a, M>(Cursor<'a, M>);

impl<'a, M: GuestMemory> Reader<'a, M> {
    pub(super) fn new(memory: &'a M, segments: &'a [Segment], remaining: u32) -> Self {
        Self(Cursor {
            memory,
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
    /// [`QueueError::Short`] if fewer are left; none is read then.
    pub fn read(&mut self, data: &mut [u8]) -> Result<(), QueueError> {
        self.0.each(data.len(), |memory, address, range| {
            memory.read_slice(&mut data[range], address)
        })
    }

    /// Reads a structure.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_obj<T: ByteValued>(&mut self) -> Result<T, QueueError> {
        let mut object = T::zeroed();
        self.read(object.as_mut_slice())?;
        Ok(object)
    }

    /// Parts the next `len` bytes from those after them.
    ///
    /// # Errors
    /// [`QueueError::Short`] if fewer are left.
    pub fn split_at(self, len: u32) -> Result<(Self, Self), QueueError> {
        let (first, second) = self.0.split_at(len)?;
        Ok((Self(first), Self(second)))
    }

    /// Lends all remaining bytes as slices of host memory, in order: for vectored I/O.
    ///
    /// # Errors
    /// Memory was taken away since the chain was popped; `f` did not run.
    pub fn with_slices<R>(self, f: impl FnOnce(&[VolatileSlice<'_>]) -> R) -> Result<R, QueueError> {
        self.0.with_slices(Permissions::Read, f)
    }
}

/// The device-writable bytes of a chain, written from the front.
#[derive(Debug)]
pub struct Writer<'a, M>(Cursor<'a, M>);

impl<'a, M: GuestMemory> Writer<'a, M> {
    pub(super) fn new(memory: &'a M, segments: &'a [Segment], remaining: u32) -> Self {
        Self(Cursor {
            memory,
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
    /// [`QueueError::Short`] if there is less room; nothing is written then.
    pub fn write(&mut self, data: &[u8]) -> Result<(), QueueError> {
        self.0.each(data.len(), |memory, address, range| {
            memory.write_slice(&data[range], address)
        })
    }

    /// Writes a structure.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_obj<T: ByteValued>(&mut self, object: &T) -> Result<(), QueueError> {
        self.write(object.as_slice())
    }

    /// Writes `len` bytes of `value`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn fill(&mut self, value: u8, len: u32) -> Result<(), QueueError> {
        let block = [value; 512];
        self.0.each(len as usize, |memory, address, range| {
            let mut done = 0;
            while done < range.len() {
                let piece = block.len().min(range.len() - done);
                memory.write_slice(&block[..piece], GuestAddress(address.0 + done as u64))?;
                done += piece;
            }
            Ok(())
        })
    }

    /// Parts the next `len` bytes from those after them.
    ///
    /// # Errors
    /// [`QueueError::Short`] if fewer are left.
    pub fn split_at(self, len: u32) -> Result<(Self, Self), QueueError> {
        let (first, second) = self.0.split_at(len)?;
        Ok((Self(first), Self(second)))
    }

    /// Lends all remaining bytes as slices of host memory, in order: for vectored I/O. They count as written.
    ///
    /// # Errors
    /// Memory was taken away since the chain was popped; `f` did not run.
    pub fn with_slices<R>(self, f: impl FnOnce(&[VolatileSlice<'_>]) -> R) -> Result<R, QueueError> {
        self.0.with_slices(Permissions::Write, f)
    }
}
