//! Descriptor chains (virtio 1.2, sections 2.7.5 and 2.7.5.3): walked once, checked whole.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::Permissions;

use super::{
    ChainError,
    area::{DESCRIPTOR, Descriptor, FlatTable, FlatView, View},
};
use crate::memory::Segment;

/// How many descriptors a chain with an indirect table may have, if the queue is not longer. Linux makes chains that are longer
/// than a short queue; this many is what a vectored system call takes.
pub const MAX_INDIRECT: u16 = 1024;

/// How many segments the chains of a queue may have that are taken and not completed, short ones not counted: what a guest can have a
/// device hold is bounded, 16 MiB of segments. A chain beyond that is given back with a used length of 0.
pub const MAX_SEGMENTS: u32 = 1 << 20;

/// Segments for which a chain keeps room from one use to the next.
const KEPT: usize = 256;

/// Segments that a chain has room for without the heap.
const INLINE: usize = 6;

/// A chain that was taken: device-readable segments, then device-writable ones, all of them in guest memory then.
pub(super) struct Body {
    pub head: u16,
    /// How many of the segments are readable; the rest is writable.
    readable: u16,
    count: u16,
    pub readable_len: u32,
    pub writable_len: u32,
    /// How many descriptors the last [`walk`](Self::walk) has read, whatever it came to.
    pub read: u32,
    inline: [Segment; INLINE],
    /// All segments, if there are too many.
    spill: Vec<Segment>,
}

/// Room for chains that are taken: each is handed on by itself.
#[allow(clippy::vec_box, reason = "they are moved often, and are large")]
pub(super) type Pool = Vec<Box<Body>>;

impl Default for Body {
    fn default() -> Self {
        Self {
            head: 0,
            readable: 0,
            count: 0,
            readable_len: 0,
            writable_len: 0,
            read: 0,
            inline: [Segment::new(0, 0); INLINE],
            spill: Vec::new(),
        }
    }
}

impl Body {
    #[inline]
    fn segments(&self) -> &[Segment] {
        match self.inline.get(..self.count.into()) {
            Some(segments) => segments,
            None => &self.spill,
        }
    }

    #[inline]
    pub fn readable(&self) -> &[Segment] {
        &self.segments()[..self.readable.into()]
    }

    #[inline]
    pub fn writable(&self) -> &[Segment] {
        &self.segments()[self.readable.into()..]
    }

    /// Walks the chain that starts at `head`, if it is what nearly all chains are: as short as there is room for here, with its table
    /// and all of its buffers in the span of guest memory in which the last one began. Whether it is. Of one that is not, nothing is
    /// known, and [`walk`](Self::walk) finds what it is.
    #[inline(always)]
    pub fn walk_near(&mut self, view: FlatView<'_>, head: u16, indirect_allowed: bool) -> bool {
        let mut table = view.descriptors();
        let hint = self.inline[0];
        let Some(span) = view.pin().span_of(&hint) else {
            return false;
        };
        let (mut index, mut count) = (head, 0);
        // Readable segments, until the first that is writable.
        let mut readable = None;
        let (mut readable_len, mut total) = (0, 0);
        loop {
            let Some(descriptor) = table.read(index) else {
                return false;
            };
            let flags = u32::from(descriptor.flags);
            if flags & VRING_DESC_F_INDIRECT != 0 {
                let inner = FlatTable::new(span, descriptor.address, descriptor.len);
                // In an indirect table there is no other, and what is wrong with this one is not said here.
                let first = count == 0 && flags == VRING_DESC_F_INDIRECT && indirect_allowed && !table.is_inner();
                match inner.filter(|_| first) {
                    Some(inner) => (table, index) = (inner, 0),
                    None => return false,
                }
                continue;
            }
            if !span.has(descriptor.address, descriptor.len) {
                return false;
            }
            let Some(place) = self.inline.get_mut(count) else {
                return false;
            };
            *place = hint.at(descriptor.address, descriptor.len);
            if flags & VRING_DESC_F_WRITE != 0 {
                if readable.is_none() {
                    (readable, readable_len) = (Some(count), total);
                }
            } else if readable.is_some() {
                return false;
            }
            count += 1;
            total += u64::from(descriptor.len);
            if flags & VRING_DESC_F_NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        if total > u32::MAX.into() {
            return false;
        }
        let readable = readable.unwrap_or_else(|| {
            readable_len = total;
            count
        });
        self.head = head;
        (self.readable, self.count) = (readable as u16, count as u16);
        (self.readable_len, self.writable_len) = (readable_len as u32, (total - readable_len) as u32);
        true
    }

    /// Walks the chain that starts at `head`.
    #[cold]
    pub fn walk(&mut self, view: &View, head: u16, indirect_allowed: bool) -> Result<(), ChainError> {
        self.head = head;
        // What was looked at counts, also if it comes to nothing.
        (self.readable_len, self.writable_len, self.read) = (0, 0, 0);
        let mut table = view.descriptors();
        let mut limit = table.len() as u16;
        let mut index = head;
        let mut indirect = false;
        // Where the chain before this one was found.
        let mut near = view.pin.near(&self.inline[0]);
        let (mut readable, mut count) = (0, 0);
        let (mut readable_len, mut writable_len) = (0u64, 0u64);
        loop {
            self.read += 1;
            let Some(descriptor) = table.read(index)? else {
                let len = table.len() as u16;
                return Err(ChainError::DescriptorIndex { index, len });
            };
            let flags = u32::from(descriptor.flags);
            if flags & VRING_DESC_F_INDIRECT != 0 {
                check_indirect(&descriptor, indirect_allowed, indirect)?;
                table = view.table(&mut Segment::new(descriptor.address, descriptor.len))?;
                (indirect, index) = (true, 0);
                limit = limit.max(MAX_INDIRECT);
                continue;
            }
            // This bounds the loop: a chain that runs in circles is one that is too long.
            if count == limit {
                return Err(ChainError::TooLong(limit));
            }
            let access = if flags & VRING_DESC_F_WRITE != 0 {
                writable_len += u64::from(descriptor.len);
                Permissions::Write
            } else {
                if readable != count {
                    return Err(ChainError::ReadableAfterWritable);
                }
                readable += 1;
                readable_len += u64::from(descriptor.len);
                Permissions::Read
            };
            (self.readable_len, self.writable_len) = (saturated(readable_len), saturated(writable_len));
            let segment = view
                .pin
                .check_near(&mut near, descriptor.address, descriptor.len, access)?;
            match self.inline.get_mut(usize::from(count)) {
                Some(place) => *place = segment,
                None => self.spill(segment, count),
            }
            count += 1;
            if flags & VRING_DESC_F_NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        if readable_len + writable_len > u32::MAX.into() {
            return Err(ChainError::TooLarge);
        }
        (self.readable, self.count) = (readable, count);
        Ok(())
    }

    /// Its segments, if there are more than it has room for by itself.
    pub fn spilled(&self) -> u32 {
        if usize::from(self.count) > INLINE {
            self.count.into()
        } else {
            0
        }
    }

    /// Lets go of more room than most chains need.
    pub fn shrink(&mut self) {
        if self.spill.capacity() > KEPT {
            self.spill = Vec::new();
        }
    }

    #[cold]
    fn spill(&mut self, segment: Segment, count: u16) {
        if usize::from(count) == INLINE {
            self.spill.clear();
            self.spill.extend_from_slice(&self.inline);
        }
        self.spill.push(segment);
    }
}

/// What an indirect descriptor must be (section 2.7.5.3.1).
fn check_indirect(descriptor: &Descriptor, allowed: bool, nested: bool) -> Result<(), ChainError> {
    let len = u64::from(descriptor.len);
    let wrong = match () {
        _ if !allowed => "the feature was not negotiated",
        _ if nested => "a table inside a table",
        _ if u32::from(descriptor.flags) & VRING_DESC_F_NEXT != 0 => "it has a next descriptor",
        _ if len == 0 || !len.is_multiple_of(DESCRIPTOR) => "its length is no positive multiple of 16",
        _ if len / DESCRIPTOR > 1 << 16 => "more descriptors than an index can name",
        _ => return Ok(()),
    };
    Err(ChainError::Indirect(wrong))
}

fn saturated(len: u64) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
