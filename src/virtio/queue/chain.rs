//! What a descriptor chain is (virtio 1.2, sections 2.7.5 and 2.8.6), and room for its segments.

use std::mem;

use vm_memory::Permissions;

use super::ChainError;
use crate::memory::{Pin, Segment};

/// How many descriptors a chain with an indirect table may have, if the queue is not longer. Linux makes chains that are longer
/// than a short queue; this many is what a vectored system call takes.
pub const MAX_INDIRECT: u16 = 1024;

/// How many segments the chains of a queue may have that are taken and not completed, short ones not counted: what a guest can have a
/// device hold is bounded, 16 MiB of segments. A chain beyond that is given back with a used length of 0.
pub const MAX_SEGMENTS: u32 = 1 << 20;

/// Segments that every chain has room for.
pub(super) const ROOM: usize = 6;

/// Segments for which a chain of a queue of `size` keeps room from one use to the next: all together no more than what may be held.
fn kept(size: u16) -> usize {
    (MAX_SEGMENTS / u32::from(size)).min(256) as usize
}

/// What a chain is but for its segments.
#[derive(Clone, Copy, Default)]
pub(super) struct Outline {
    pub head: u16,
    /// How many descriptors of a packed ring it takes.
    pub descriptors: u16,
    /// How many of the segments are readable; the rest is writable.
    pub readable: u16,
    pub count: u16,
    pub readable_len: u32,
    pub writable_len: u32,
}

impl Outline {
    /// Bytes in all segments.
    #[inline]
    pub fn len(&self) -> u64 {
        u64::from(self.readable_len) + u64::from(self.writable_len)
    }

    /// How many of the segments are readable, and how many there are.
    #[inline]
    pub fn counts(&self) -> (usize, usize) {
        (self.readable.into(), self.count.into())
    }

    /// The segments, if there are more than every chain has room for.
    pub fn spilled(&self) -> u32 {
        if usize::from(self.count) > ROOM {
            self.count.into()
        } else {
            0
        }
    }
}

/// Room for the segments of a chain: device-readable ones, then device-writable ones, all of them in guest memory when they were found.
pub(super) struct Segments(pub(super) Box<[Segment]>);

/// Room for chains that are taken: each is handed on by itself.
pub(super) type Pool = Vec<Segments>;

impl Default for Segments {
    fn default() -> Self {
        Self([Segment::new(0, 0); ROOM].into())
    }
}

impl Segments {
    #[inline]
    pub fn readable(&self, outline: &Outline) -> &[Segment] {
        &self.0[..outline.readable.into()]
    }

    #[inline]
    pub fn writable(&self, outline: &Outline) -> &[Segment] {
        &self.0[outline.readable.into()..outline.count.into()]
    }

    #[inline]
    pub fn all(&self, outline: &Outline) -> &[Segment] {
        &self.0[..outline.count.into()]
    }

    /// The first segment of the last chain.
    #[inline]
    pub fn first(&self) -> Segment {
        self.0[0]
    }

    /// Takes over a chain that was found before. Whether it can be accessed still is to be [checked](Self::check).
    #[cold]
    pub fn copy(&mut self, outline: &Outline, found: &Self) {
        let count = usize::from(outline.count);
        while self.0.len() < count {
            self.grow(Segment::new(0, 0));
        }
        self.0[..count].copy_from_slice(&found.0[..count]);
    }

    /// Whether all of a chain is in memory.
    #[cold]
    pub fn check(&mut self, outline: &Outline, pin: &Pin) -> Result<(), ChainError> {
        let (readable, count) = (usize::from(outline.readable), usize::from(outline.count));
        for (number, segment) in self.0[..count].iter_mut().enumerate() {
            let access = if number < readable {
                Permissions::Read
            } else {
                Permissions::Write
            };
            pin.check(segment, access)?;
        }
        Ok(())
    }

    /// A chain of segments from outside, if it can be one in a queue of `size`.
    pub fn restored(
        (head, descriptors): (u16, u16),
        readable: &[Segment],
        writable: &[Segment],
        size: u16,
    ) -> Option<(Outline, Self)> {
        let count = readable.len() + writable.len();
        if count == 0 || count > MAX_INDIRECT.max(size).into() {
            return None;
        }
        let sum = |segments: &[Segment]| segments.iter().map(|segment| u64::from(segment.len)).sum::<u64>();
        let (readable_len, writable_len) = (sum(readable), sum(writable));
        if readable_len + writable_len > u32::MAX.into() {
            return None;
        }
        let outline = Outline {
            head,
            descriptors,
            readable: readable.len() as u16,
            count: count as u16,
            readable_len: readable_len as u32,
            writable_len: writable_len as u32,
        };
        let mut segments = [readable, writable].concat();
        segments.resize(count.max(ROOM), Segment::new(0, 0));
        Some((outline, Self(segments.into())))
    }

    /// Lets go of more room than most chains of a queue of `size` need.
    pub fn shrink(&mut self, size: u16) {
        if self.0.len() > kept(size) {
            *self = Self::default();
        }
    }

    /// Makes room for as many segments again, of which `next` is the first.
    #[cold]
    pub fn grow(&mut self, next: Segment) {
        let mut segments = mem::take(&mut self.0).into_vec();
        let full = segments.len();
        segments.resize(2 * full, Segment::new(0, 0));
        segments[full] = next;
        self.0 = segments.into();
    }
}
