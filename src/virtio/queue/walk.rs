//! The long way to a chain (virtio 1.2, sections 2.7.5 and 2.7.5.3): walked once, checked whole.

use vm_memory::Permissions;

use super::{
    ChainError, Gone, QueueError,
    chain::{MAX_INDIRECT, Outline, Segments},
    packed_ring::PackedView,
    split_ring::SplitView,
    spot::Spot,
    table::{DESCRIPTOR, Descriptor, INDIRECT, NEXT, WRITE},
    view::View,
};
use crate::memory::{Near, Pin, Segment};

impl Segments {
    /// Walks the chain that starts at `head`. How many descriptors it has read is added to `read`, whatever it comes to.
    #[cold]
    pub fn walk(
        &mut self,
        outline: &mut Outline,
        view: SplitView<'_>,
        head: u16,
        indirect_allowed: bool,
        read: &mut u32,
    ) -> Result<(), ChainError> {
        let view = view.view();
        // What was looked at counts, also if it comes to nothing.
        *outline = Outline {
            head,
            ..Outline::default()
        };
        let mut table = view.descriptors();
        let mut limit = table.len() as u16;
        let mut index = head;
        let mut indirect = false;
        let mut adding = Adding::new(&view.pin, self.first());
        loop {
            *read += 1;
            let Some(descriptor) = table.read(index)? else {
                let len = table.len() as u16;
                return Err(ChainError::DescriptorIndex { index, len });
            };
            let flags = descriptor.flags();
            if flags & INDIRECT != 0 {
                check_indirect(&descriptor, indirect_allowed, indirect, flags & NEXT != 0)?;
                table = view.table(&mut Segment::new(descriptor.address, descriptor.len()))?;
                (indirect, index) = (true, 0);
                limit = limit.max(MAX_INDIRECT);
                continue;
            }
            // This bounds the loop: a chain that runs in circles is one that is too long.
            adding.add(self, outline, &descriptor, flags & WRITE != 0, limit)?;
            if flags & NEXT == 0 {
                break;
            }
            index = descriptor.next();
        }
        adding.end(outline)
    }

    /// Walks the chain that starts with `first` at `spot` of a packed ring. [`walk`](Self::walk)'s result, unless the chain has no end
    /// or no ID that can be.
    #[cold]
    pub fn walk_packed(
        &mut self,
        outline: &mut Outline,
        ring: PackedView<'_>,
        first: Descriptor,
        spot: Spot,
        indirect_allowed: bool,
        read: &mut u32,
    ) -> Result<Result<(), ChainError>, Broken> {
        let view = ring.view();
        *outline = Outline::default();
        let size = view.size() as u16;
        let mut adding = Adding::new(&view.pin, self.first());
        let (mut descriptor, mut slot, mut whole) = (first, spot.slot, Ok(()));
        // All of it, whatever is wrong with a part: the ID is in the last one, and says which chain is given back.
        loop {
            *read += 1;
            outline.descriptors += 1;
            let flags = descriptor.packed_flags();
            let alone = outline.descriptors == 1 && flags & NEXT == 0;
            whole = whole.and_then(|()| match flags & INDIRECT {
                0 => adding.add(self, outline, &descriptor, flags & WRITE != 0, size),
                _ => self.walk_packed_table(&mut adding, outline, view, &descriptor, (indirect_allowed, alone), read),
            });
            if flags & NEXT == 0 {
                break;
            }
            if outline.descriptors == size {
                return Err(Broken::Ring(QueueError::Endless(size)));
            }
            slot = if slot + 1 == size { 0 } else { slot + 1 };
            let next = ring.descriptor(slot, None);
            // It is asked for without conditions.
            descriptor = next.map_err(|Gone| Broken::Gone)?.ok_or(Broken::Gone)?;
        }
        outline.head = descriptor.id();
        if outline.head >= size {
            let head = outline.head;
            return Err(Broken::Ring(QueueError::Head { head, size }));
        }
        Ok(whole.and_then(|()| adding.end(outline)))
    }

    /// All descriptors of an indirect table: of their flags, WRITE alone is looked at (section 2.8.7).
    fn walk_packed_table(
        &mut self,
        adding: &mut Adding<'_>,
        outline: &mut Outline,
        view: &View,
        outer: &Descriptor,
        (allowed, alone): (bool, bool),
        read: &mut u32,
    ) -> Result<(), ChainError> {
        check_indirect(outer, allowed, false, !alone)?;
        let table = view.table(&mut Segment::new(outer.address, outer.len()))?;
        let limit = MAX_INDIRECT.max(view.size() as u16);
        for index in 0..table.len() {
            *read += 1;
            let index = index as u16;
            let Some(inner) = table.read(index)? else { break };
            adding.add(self, outline, &inner, inner.packed_flags() & WRITE != 0, limit)?;
        }
        Ok(())
    }
}

/// What leaves no chain to give back.
pub(super) enum Broken {
    Ring(QueueError),
    /// The ring is not in guest memory.
    Gone,
}

impl From<Gone> for Broken {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// A chain whose segments are found one by one.
struct Adding<'a> {
    pin: &'a Pin,
    /// Where the one before was found; at first, that of the chain before this one.
    near: Near,
    readable: u16,
    count: u16,
    readable_len: u64,
    writable_len: u64,
}

impl<'a> Adding<'a> {
    fn new(pin: &'a Pin, near: Segment) -> Self {
        Self {
            pin,
            near: pin.near(&near),
            readable: 0,
            count: 0,
            readable_len: 0,
            writable_len: 0,
        }
    }

    fn add(
        &mut self,
        segments: &mut Segments,
        outline: &mut Outline,
        descriptor: &Descriptor,
        writable: bool,
        limit: u16,
    ) -> Result<(), ChainError> {
        if self.count == limit {
            return Err(ChainError::TooLong(limit));
        }
        let access = if writable {
            self.writable_len += u64::from(descriptor.len());
            Permissions::Write
        } else {
            if self.readable != self.count {
                return Err(ChainError::ReadableAfterWritable);
            }
            self.readable += 1;
            self.readable_len += u64::from(descriptor.len());
            Permissions::Read
        };
        (outline.readable_len, outline.writable_len) = (saturated(self.readable_len), saturated(self.writable_len));
        let segment = self
            .pin
            .check_near(&mut self.near, descriptor.address, descriptor.len(), access)?;
        match segments.0.get_mut(usize::from(self.count)) {
            Some(place) => *place = segment,
            None => segments.grow(segment),
        }
        self.count += 1;
        Ok(())
    }

    fn end(&self, outline: &mut Outline) -> Result<(), ChainError> {
        if self.readable_len + self.writable_len > u32::MAX.into() {
            return Err(ChainError::TooLarge);
        }
        (outline.readable, outline.count) = (self.readable, self.count);
        Ok(())
    }
}

/// What an indirect descriptor must be (sections 2.7.5.3.1 and 2.8.20). `others`: it has others beside it where there must be none.
fn check_indirect(descriptor: &Descriptor, allowed: bool, nested: bool, others: bool) -> Result<(), ChainError> {
    let len = u64::from(descriptor.len());
    let wrong = match () {
        _ if !allowed => "the feature was not negotiated",
        _ if nested => "a table inside a table",
        _ if others => "it has other descriptors beside it",
        _ if len == 0 || !len.is_multiple_of(DESCRIPTOR) => "its length is no positive multiple of 16",
        _ if len / DESCRIPTOR > 1 << 16 => "more descriptors than an index can name",
        _ => return Ok(()),
    };
    Err(ChainError::Indirect(wrong))
}

fn saturated(len: u64) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
