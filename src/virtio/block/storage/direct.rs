//! The bridge from transfers of any alignment to a host that takes whole blocks from aligned memory.

use std::{
    io,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use vm_memory::VolatileSlice;

use super::transfer;

/// Direct I/O, whose offsets, lengths and memory must be aligned.
///
/// What is aligned goes straight. Anything else goes through memory of our own, a piece a call, as transfers may be
/// short: so what a request costs is bounded, however long it is. A write of a part of a block reads the block, changes
/// the part and writes the block; no other write is under way meanwhile, as its data could be lost otherwise.
#[derive(Debug)]
pub struct Direct {
    /// Offsets and lengths are multiples of this, a power of two.
    block: usize,
    /// Addresses are multiples of this, a power of two.
    memory: usize,
    /// Held alone by who writes a part of a block, and together by all others that change data.
    changes: RwLock<()>,
}

/// Bytes that are bounced at a time, at least.
const BOUNCE: usize = 64 * 1024;

impl Direct {
    /// For a host that demands so many bytes of alignment from offset and length, and from memory.
    pub fn new(block: usize, memory: usize) -> Self {
        debug_assert!(block.is_power_of_two() && memory.is_power_of_two());
        Self {
            block,
            memory,
            changes: RwLock::new(()),
        }
    }

    /// The unit of offsets and lengths, in bytes.
    pub fn block(&self) -> usize {
        self.block
    }

    /// What addresses are multiples of, in bytes.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// A change of whole blocks is under way as long as this lives.
    pub fn change(&self) -> RwLockReadGuard<'_, ()> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Storage::read_at`](super::Storage::read_at), by way of `read`, which is one on the host.
    pub fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>], read: impl Transfer) -> io::Result<usize> {
        if let Some(straight) = self.straight(offset, buffers) {
            return read(offset, straight);
        }
        let mut piece = self.piece(offset, buffers)?;
        let got = read(piece.start, &[piece.blocks()])?;
        // What lies before the offset was not asked for.
        let asked = piece.head..got.clamp(piece.head, piece.head + piece.len);
        let data = &piece.bounce.bytes()[asked];
        let mut rest = data;
        for buffer in buffers {
            let (now, later) = rest.split_at(rest.len().min(buffer.len()));
            buffer.copy_from(now);
            rest = later;
        }
        Ok(data.len())
    }

    /// As [`Storage::write_at`](super::Storage::write_at), by way of `read` and `write`, which are those on the host.
    pub fn write(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        read: impl Transfer,
        write: impl Transfer,
    ) -> io::Result<usize> {
        if let Some(straight) = self.straight(offset, buffers) {
            let _changing = self.change();
            return write(offset, straight);
        }
        let mut piece = self.piece(offset, buffers)?;
        let Piece { start, head, len, .. } = piece;
        let tail = (head + len) % self.block;
        let in_part = head != 0 || tail != 0;
        let _alone = in_part.then(|| self.changes.write().unwrap_or_else(PoisonError::into_inner));
        let _changing = (!in_part).then(|| self.change());

        let blocks = piece.blocks();
        let (first, last) = (0, blocks.len().saturating_sub(self.block));
        let keep = |at: usize| {
            let block = blocks.subslice(at, self.block).map_err(io::Error::other)?;
            // A part of a block is where the data ends.
            let whole = |offset, rest: &[VolatileSlice<'_>]| {
                Ok(if read(offset, rest)? == self.block {
                    self.block
                } else {
                    0
                })
            };
            transfer(&[block], start + at as u64, whole).1
        };
        if head != 0 {
            keep(first)?;
        }
        if tail != 0 && (head == 0 || last != first) {
            keep(last)?;
        }
        let mut rest = &mut piece.bounce.bytes()[head..head + len];
        for buffer in buffers {
            let (now, later) = rest.split_at_mut(rest.len().min(buffer.len()));
            buffer.copy_to(now);
            rest = later;
        }
        let (moved, result) = transfer(&[piece.blocks()], start, &write);
        // At most the length of the piece.
        match ((moved as usize).saturating_sub(head).min(len), result) {
            (0, Err(error)) => Err(error),
            (written, _) => Ok(written),
        }
    }

    /// The buffers at the beginning that the host takes as they are, if they have any data.
    fn straight<'a, 'b>(&self, offset: u64, buffers: &'b [VolatileSlice<'a>]) -> Option<&'b [VolatileSlice<'a>]> {
        if !offset.is_multiple_of(self.block as u64) {
            return None;
        }
        let fits = |buffer: &&VolatileSlice<'_>| {
            let address = buffer.ptr_guard().as_ptr() as usize;
            address.is_multiple_of(self.memory) && buffer.len().is_multiple_of(self.block)
        };
        let count = buffers.iter().take_while(fits).count();
        let straight = &buffers[..count];
        straight.iter().any(|buffer| !buffer.is_empty()).then_some(straight)
    }

    /// As much of a transfer as is bounced at once.
    fn piece(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<Piece> {
        let head = (offset % self.block as u64) as usize;
        let room = BOUNCE.max(self.block) - head;
        let len = buffers
            .iter()
            .fold(0, |sum: usize, buffer| sum.saturating_add(buffer.len()))
            .min(room);
        let covered = (head + len).next_multiple_of(self.block);
        let start = offset - head as u64;
        if start.checked_add(covered as u64).is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Piece {
            start,
            head,
            len,
            bounce: Aligned::new(covered, self.memory.max(self.block)),
        })
    }
}

/// One transfer on the host. It may be short.
pub trait Transfer: Fn(u64, &[VolatileSlice<'_>]) -> io::Result<usize> {}

impl<F: Fn(u64, &[VolatileSlice<'_>]) -> io::Result<usize>> Transfer for F {}

/// Whole blocks around a part of a transfer.
struct Piece {
    /// Where the first of the blocks is.
    start: u64,
    /// Bytes from there to the data.
    head: usize,
    /// Bytes of data.
    len: usize,
    bounce: Aligned,
}

impl Piece {
    fn blocks(&mut self) -> VolatileSlice<'_> {
        VolatileSlice::from(self.bounce.bytes())
    }
}

/// Memory at an address that is a multiple of something.
struct Aligned {
    bytes: Vec<u8>,
    at: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize, align: usize) -> Self {
        let bytes = vec![0; len + align];
        let at = (bytes.as_ptr() as usize).next_multiple_of(align) - bytes.as_ptr() as usize;
        Self { bytes, at, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..][..self.len]
    }
}

#[cfg(test)]
mod tests;
