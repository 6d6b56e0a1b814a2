//! Descriptor chains (virtio 1.2, sections 2.7.5 and 2.7.5.3): walked once, checked whole.

use std::mem;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::Permissions;

use super::{
    ChainError,
    area::{DESCRIPTOR, Descriptor, FlatTable, FlatView, Head, View},
};
use crate::memory::Segment;

/// How many descriptors a chain with an indirect table may have, if the queue is not longer. Linux makes chains that are longer
/// than a short queue; this many is what a vectored system call takes.
pub const MAX_INDIRECT: u16 = 1024;

/// How many segments the chains of a queue may have that are taken and not completed, short ones not counted: what a guest can have a
/// device hold is bounded, 16 MiB of segments. A chain beyond that is given back with a used length of 0.
pub const MAX_SEGMENTS: u32 = 1 << 20;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Segments that every chain has room for.
const ROOM: usize = 6;

/// Segments for which a chain of a queue of `size` keeps room from one use to the next: all together no more than what may be held.
fn kept(size: u16) -> usize {
    (MAX_SEGMENTS / u32::from(size)).min(256) as usize
}

/// What a chain is but for its segments.
#[derive(Clone, Copy, Default)]
pub(super) struct Outline {
    pub head: u16,
    /// How many of the segments are readable; the rest is writable.
    readable: u16,
    count: u16,
    pub readable_len: u32,
    pub writable_len: u32,
}

impl Outline {
    /// Bytes in all segments.
    #[inline]
    pub fn len(&self) -> u64 {
        u64::from(self.readable_len) + u64::from(self.writable_len)
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
pub(super) struct Segments(Box<[Segment]>);

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

    /// The first segment of the last chain.
    #[inline]
    pub fn first(&self) -> Segment {
        self.0[0]
    }

    /// Walks the chain that starts at `head`, if it is what nearly all chains are: as short as there is room for here, with its table
    /// and all of its buffers in the span of guest memory in which the last one began. Whether it is. Of one that is not, nothing is
    /// known, and [`walk`](Self::walk) finds what it is.
    #[inline(always)]
    pub fn walk_near(&mut self, outline: &mut Outline, view: &FlatView<'_>, head: Head, indirect: bool) -> bool {
        outline.head = head.index();
        let first = view.ring.first(head);
        let (address, len, flags) = (first.address, first.len(), first.flags());
        if flags & !WRITE != 0 {
            return match flags & INDIRECT != 0 {
                true => flags == INDIRECT && indirect && self.walk_indirect(outline, view, first),
                false => self.walk_ring(outline, view, first),
            };
        }
        // One by itself, as receive queues have them.
        let Some(place) = self.0.first_mut().filter(|_| view.has(address, len)) else {
            return false;
        };
        *place = view.segment(address, len);
        (outline.readable, outline.count) = ((flags == 0).into(), 1);
        (outline.readable_len, outline.writable_len) = if flags == 0 { (len, 0) } else { (0, len) };
        true
    }

    /// Not inlined, so that who calls it saves no registers for it where it is not needed; so the next.
    #[inline(never)]
    fn walk_ring(&mut self, outline: &mut Outline, view: &FlatView<'_>, first: Descriptor) -> bool {
        self.walk_table(outline, view, view.ring.descriptors(), first)
    }

    #[inline(never)]
    fn walk_indirect(&mut self, outline: &mut Outline, view: &FlatView<'_>, outer: Descriptor) -> bool {
        // What is wrong with a table is not said here.
        let inner = view.table(outer.address, outer.len());
        match inner.and_then(|inner| Some((inner, inner.read(0)?))) {
            Some((inner, first)) => self.walk_table(outline, view, inner, first),
            None => false,
        }
    }

    #[inline(always)]
    fn walk_table(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_>,
        table: FlatTable<'_>,
        mut descriptor: Descriptor,
    ) -> bool {
        let Some(room) = self.0.first_chunk_mut::<ROOM>() else {
            return false;
        };
        let (mut count, mut writable, mut readable_len, mut writable_len) = (0, 0, 0, 0);
        for place in room {
            let (address, len, flags) = (descriptor.address, descriptor.len(), descriptor.flags());
            if flags & !(WRITE | NEXT) != 0 || !view.has(address, len) {
                return false;
            }
            *place = view.segment(address, len);
            count += 1;
            if flags & WRITE != 0 {
                writable += 1;
                writable_len += u64::from(len);
            } else if writable != 0 {
                return false;
            } else {
                readable_len += u64::from(len);
            }
            if flags & NEXT == 0 {
                (outline.readable, outline.count) = (count - writable, count);
                (outline.readable_len, outline.writable_len) = (readable_len as u32, writable_len as u32);
                // Else they are cut off.
                return readable_len + writable_len <= u32::MAX.into();
            }
            match table.read(descriptor.next()) {
                Some(next) => descriptor = next,
                None => return false,
            }
        }
        false
    }

    /// Walks the chain that starts at `head`. How many descriptors it has read is added to `read`, whatever it comes to.
    #[cold]
    pub fn walk(
        &mut self,
        outline: &mut Outline,
        view: &View,
        head: u16,
        indirect_allowed: bool,
        read: &mut u32,
    ) -> Result<(), ChainError> {
        // What was looked at counts, also if it comes to nothing.
        *outline = Outline {
            head,
            ..Outline::default()
        };
        let mut table = view.descriptors();
        let mut limit = table.len() as u16;
        let mut index = head;
        let mut indirect = false;
        // Where the chain before this one was found.
        let mut near = view.pin.near(&self.first());
        let (mut readable, mut count) = (0, 0);
        let (mut readable_len, mut writable_len) = (0u64, 0u64);
        loop {
            *read += 1;
            let Some(descriptor) = table.read(index)? else {
                let len = table.len() as u16;
                return Err(ChainError::DescriptorIndex { index, len });
            };
            let flags = descriptor.flags();
            if flags & INDIRECT != 0 {
                check_indirect(&descriptor, indirect_allowed, indirect)?;
                table = view.table(&mut Segment::new(descriptor.address, descriptor.len()))?;
                (indirect, index) = (true, 0);
                limit = limit.max(MAX_INDIRECT);
                continue;
            }
            // This bounds the loop: a chain that runs in circles is one that is too long.
            if count == limit {
                return Err(ChainError::TooLong(limit));
            }
            let access = if flags & WRITE != 0 {
                writable_len += u64::from(descriptor.len());
                Permissions::Write
            } else {
                if readable != count {
                    return Err(ChainError::ReadableAfterWritable);
                }
                readable += 1;
                readable_len += u64::from(descriptor.len());
                Permissions::Read
            };
            (outline.readable_len, outline.writable_len) = (saturated(readable_len), saturated(writable_len));
            let segment = view
                .pin
                .check_near(&mut near, descriptor.address, descriptor.len(), access)?;
            match self.0.get_mut(usize::from(count)) {
                Some(place) => *place = segment,
                None => self.grow(segment),
            }
            count += 1;
            if flags & NEXT == 0 {
                break;
            }
            index = descriptor.next();
        }
        if readable_len + writable_len > u32::MAX.into() {
            return Err(ChainError::TooLarge);
        }
        (outline.readable, outline.count) = (readable, count);
        Ok(())
    }

    /// Lets go of more room than most chains of a queue of `size` need.
    pub fn shrink(&mut self, size: u16) {
        if self.0.len() > kept(size) {
            *self = Self::default();
        }
    }

    /// Makes room for as many segments again, of which `next` is the first.
    #[cold]
    fn grow(&mut self, next: Segment) {
        let mut segments = mem::take(&mut self.0).into_vec();
        let full = segments.len();
        segments.resize(2 * full, Segment::new(0, 0));
        segments[full] = next;
        self.0 = segments.into();
    }
}

/// What an indirect descriptor must be (section 2.7.5.3.1).
fn check_indirect(descriptor: &Descriptor, allowed: bool, nested: bool) -> Result<(), ChainError> {
    let len = u64::from(descriptor.len());
    let wrong = match () {
        _ if !allowed => "the feature was not negotiated",
        _ if nested => "a table inside a table",
        _ if descriptor.flags() & NEXT != 0 => "it has a next descriptor",
        _ if len == 0 || !len.is_multiple_of(DESCRIPTOR) => "its length is no positive multiple of 16",
        _ if len / DESCRIPTOR > 1 << 16 => "more descriptors than an index can name",
        _ => return Ok(()),
    };
    Err(ChainError::Indirect(wrong))
}

fn saturated(len: u64) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
