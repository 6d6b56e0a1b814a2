//! Chains of a queue whose bytes are moved by one call.

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
        let mut left = limit;
        let mut segments = parts.iter().flat_map(|part| part.segments(access)).map_while(|segment| {
            let len = segment.len.min(left);
            left -= len;
            (len != 0).then(|| segment.at(segment.address, len))
        });
        // All are of one round, and so of one map.
        Ok(first.chain.pin().lend(&mut segments, access, scratch, f)?)
    }
}

impl Part {
    /// What is left of it, without empty pieces.
    fn segments(&self, access: Permissions) -> impl Iterator<Item = Segment> {
        let segments = match access {
            Permissions::Write => self.chain.writable(),
            _ => self.chain.readable(),
        };
        let (mut skip, mut left) = (self.from, self.len);
        segments.iter().filter_map(move |segment| {
            let here = skip.min(segment.len);
            skip -= here;
            let len = left.min(segment.len - here);
            left -= len;
            // Within a segment, which does not wrap.
            (len != 0).then(|| segment.at(segment.address + u64::from(here), len))
        })
    }
}
