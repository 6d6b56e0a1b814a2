//! Chains of a queue whose bytes are moved by one call.

use std::slice;

use vm_memory::{Permissions, VolatileSlice};

use super::queue::{ChainError, OwnedChain};
use crate::memory::{Scratch, Segment};

/// How many chains are put together at most: their pieces are for one system call.
pub(super) const MOST: usize = 64;

/// Chains that were taken from one round, and which bytes of each are moved. It is empty between two rounds.
#[derive(Default)]
pub(super) struct Gathered {
    parts: Vec<Part>,
    /// Of all parts.
    bytes: u32,
    scratch: Scratch,
}

/// A chain, and what of it is left to be moved.
pub(super) struct Part {
    pub chain: OwnedChain,
    pub from: u32,
    pub len: u32,
}

impl Gathered {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether there is room for no more chains.
    pub fn is_full(&self) -> bool {
        self.parts.len() == MOST
    }

    /// Bytes that are left to be moved.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// `len` bytes of `chain`, which has them, from byte `from` on.
    pub fn push(&mut self, chain: OwnedChain, from: u32, len: u32) {
        self.bytes = self.bytes.saturating_add(len);
        self.parts.push(Part { chain, from, len });
    }

    /// Takes all chains out, in order. Those that are dropped are given back untouched.
    pub fn drain(&mut self) -> impl Iterator<Item = Part> {
        self.bytes = 0;
        self.parts.drain(..)
    }

    /// Takes the first `n` chains out, in order.
    pub fn drain_first(&mut self, n: usize) -> impl Iterator<Item = Part> {
        let parts = self.parts.drain(..n);
        self.bytes -= parts.as_slice().iter().map(|part| part.len).sum::<u32>();
        parts
    }

    /// The first `len` bytes have been moved. How many chains are done with, from the first on, in which nothing is left.
    pub fn moved(&mut self, len: u32) -> usize {
        let mut left = len.min(self.bytes);
        self.bytes -= left;
        let mut done = 0;
        for part in &mut self.parts {
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

    /// Lends the first `limit` bytes as slices of host memory, in order: to be read, or to be written.
    ///
    /// # Errors
    /// [`ChainError::Outside`] if the embedder has taken memory away; `f` did not run.
    pub fn with_slices<R>(
        &mut self,
        access: Permissions,
        limit: u32,
        f: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, ChainError> {
        let Self { parts, scratch, .. } = self;
        let Some(first) = parts.first() else {
            return Ok(f(&[]));
        };
        let mut segments = Segments {
            parts: parts.iter(),
            segments: [].iter(),
            skip: 0,
            here: 0,
            left: limit,
            access,
        };
        // All are of one round, and so of one map.
        Ok(first.chain.pin().lend(&mut segments, access, scratch, f)?)
    }
}

/// What is left of parts, as one sequence, without empty pieces.
struct Segments<'a> {
    parts: slice::Iter<'a, Part>,
    /// Of the current part.
    segments: slice::Iter<'a, Segment>,
    /// Bytes of them that come first, and are not meant.
    skip: u32,
    /// Bytes of them that are.
    here: u32,
    /// Bytes of all parts that are meant.
    left: u32,
    access: Permissions,
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        loop {
            while self.here == 0 {
                let part = self.parts.next()?;
                let segments = match self.access {
                    Permissions::Write => part.chain.writable(),
                    _ => part.chain.readable(),
                };
                self.segments = segments.iter();
                (self.skip, self.here) = (part.from, part.len.min(self.left));
                self.left -= self.here;
            }
            let segment = self.segments.next()?;
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

/// How much a source that is read again and again is expected to have: what it had last time until there was no more.
#[derive(Default)]
pub(super) struct Burst {
    expected: u32,
    /// Since there was no more.
    read: u32,
}

impl Burst {
    /// The most that is read at a time.
    pub const MOST: u32 = 256 << 10;

    pub fn expected(&self) -> u32 {
        self.expected
    }

    /// So many bytes were read. `all`: with room for more.
    pub fn has_read(&mut self, len: u32, all: bool) {
        self.read = self.read.saturating_add(len);
        if all {
            self.expected = self.read.min(Self::MOST);
            self.read = 0;
        } else {
            self.expected = self.expected.max(self.read.saturating_mul(4)).min(Self::MOST);
        }
    }

    /// There was nothing.
    pub fn was_empty(&mut self) {
        if self.read != 0 {
            self.has_read(0, true);
        }
    }
}
