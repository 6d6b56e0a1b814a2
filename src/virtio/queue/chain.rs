//! Descriptor chains (virtio 1.2, sections 2.7.5 and 2.7.5.3): walked once, checked whole.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::Permissions;

use super::{
    ChainError,
    area::{DESCRIPTOR, View},
};
use crate::memory::{Pin, Segment};

/// How many descriptors a chain with an indirect table may have, if the queue is not longer. Linux makes chains that are longer
/// than a short queue; this many is what a vectored system call takes.
pub const MAX_INDIRECT: u16 = 1024;

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
    inline: [Segment; INLINE],
    /// All segments, if there are too many.
    spill: Vec<Segment>,
}

impl Default for Body {
    fn default() -> Self {
        Self {
            head: 0,
            readable: 0,
            count: 0,
            readable_len: 0,
            writable_len: 0,
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

    /// Walks the chain that starts at `head`.
    #[inline]
    pub fn walk(&mut self, view: &View, head: u16, indirect_allowed: bool) -> Result<(), ChainError> {
        self.head = head;
        (self.readable, self.count) = (0, 0);
        (self.readable_len, self.writable_len) = (0, 0);
        let mut table = view.descriptors();
        let mut limit = table.len() as u16;
        let mut index = head;
        let mut indirect = false;
        // Where the chain before this one was found.
        let mut segment = self.inline[0];
        loop {
            if u32::from(index) >= table.len() {
                let len = table.len() as u16;
                return Err(ChainError::DescriptorIndex { index, len });
            }
            let descriptor = table.read(index)?;
            let flags = u32::from(descriptor.flags);
            (segment.address, segment.len) = (descriptor.address, descriptor.len);
            if flags & VRING_DESC_F_INDIRECT != 0 {
                if !indirect_allowed {
                    return Err(ChainError::Indirect("the feature was not negotiated"));
                }
                if indirect {
                    return Err(ChainError::Indirect("a table inside a table"));
                }
                if flags & VRING_DESC_F_NEXT != 0 {
                    return Err(ChainError::Indirect("it has a next descriptor"));
                }
                if segment.len == 0 || !u64::from(segment.len).is_multiple_of(DESCRIPTOR) {
                    return Err(ChainError::Indirect("its length is no positive multiple of 16"));
                }
                if u64::from(segment.len) / DESCRIPTOR > 1 << 16 {
                    return Err(ChainError::Indirect("more descriptors than an index can name"));
                }
                table = view.table(&mut segment)?;
                (indirect, index) = (true, 0);
                limit = limit.max(MAX_INDIRECT);
                continue;
            }
            // This bounds the loop: a chain that runs in circles is one that is too long.
            if self.count == limit {
                return Err(ChainError::TooLong(limit));
            }
            self.push(&view.pin, &mut segment, flags & VRING_DESC_F_WRITE != 0)?;
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    #[inline]
    fn push(&mut self, pin: &Pin, segment: &mut Segment, write: bool) -> Result<(), ChainError> {
        let total = u64::from(self.readable_len) + u64::from(self.writable_len) + u64::from(segment.len);
        if total > u32::MAX.into() {
            return Err(ChainError::TooLarge);
        }
        if write {
            pin.check(segment, Permissions::Write)?;
            self.writable_len += segment.len;
        } else {
            if self.readable != self.count {
                return Err(ChainError::ReadableAfterWritable);
            }
            pin.check(segment, Permissions::Read)?;
            self.readable += 1;
            self.readable_len += segment.len;
        }
        match self.inline.get_mut(usize::from(self.count)) {
            Some(place) => *place = *segment,
            None => self.spill(*segment),
        }
        self.count += 1;
        Ok(())
    }

    #[cold]
    fn spill(&mut self, segment: Segment) {
        if usize::from(self.count) == INLINE {
            self.spill.clear();
            self.spill.extend_from_slice(&self.inline);
        }
        self.spill.push(segment);
    }
}
