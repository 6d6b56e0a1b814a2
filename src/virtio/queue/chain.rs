//! Descriptor chains (virtio 1.2, sections 2.7.5 and 2.7.5.3): walked once, checked whole.

use std::mem;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::Permissions;

use super::{
    ChainError, Gone, QueueError,
    area::{DESCRIPTOR, Descriptor, FlatRing, FlatTable, FlatView, Head, PackedView, SplitView, View},
    packed::{FlatPacked, Spot},
};
use crate::memory::{Near, Pin, Segment};

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
    /// How many descriptors of a packed ring it takes.
    pub descriptors: u16,
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

    #[inline]
    pub fn all(&self, outline: &Outline) -> &[Segment] {
        &self.0[..outline.count.into()]
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
    pub fn walk_near<const TRANSLATED: bool>(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_, FlatRing<'_>>,
        head: Head,
        indirect: bool,
    ) -> bool {
        outline.head = head.index();
        let first = view.ring.first(head);
        let (address, len, flags) = (first.address, first.len(), first.flags());
        if flags & !WRITE != 0 {
            return match flags & INDIRECT != 0 {
                true => flags == INDIRECT && indirect && self.walk_indirect::<TRANSLATED>(outline, view, first),
                false => self.walk_ring::<TRANSLATED>(outline, view, first),
            };
        }
        // One by itself, as receive queues have them.
        let Some(place) = self.0.first_mut().filter(|_| view.has(address, len)) else {
            return TRANSLATED && self.walk_one_translated(outline, view, first);
        };
        *place = view.segment(address, len);
        (outline.readable, outline.count) = ((flags == 0).into(), 1);
        (outline.readable_len, outline.writable_len) = if flags == 0 { (len, 0) } else { (0, len) };
        true
    }

    /// Not inlined, so that who calls it saves no registers for it where it is not needed; so the next ones.
    #[inline(never)]
    fn walk_ring<const TRANSLATED: bool>(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_, FlatRing<'_>>,
        first: Descriptor,
    ) -> bool {
        self.walk_table::<TRANSLATED>(outline, view, view.ring.descriptors(), first)
    }

    /// In a span that was found before.
    #[inline(never)]
    fn walk_one_translated<R>(&mut self, outline: &mut Outline, view: &FlatView<'_, R>, first: Descriptor) -> bool {
        let (address, len, writable) = (first.address, first.len(), first.flags() & WRITE != 0);
        (outline.readable, outline.count) = ((!writable).into(), 1);
        (outline.readable_len, outline.writable_len) = if writable { (0, len) } else { (len, 0) };
        let place = self.0.first_mut();
        place.is_some_and(|place| view.place(place, address, len, writable))
    }

    #[inline(never)]
    fn walk_indirect<const TRANSLATED: bool>(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_, FlatRing<'_>>,
        outer: Descriptor,
    ) -> bool {
        // What is wrong with a table is not said here.
        let inner = match view.table(outer.address, outer.len()) {
            None if TRANSLATED => view.table_elsewhere(outer.address, outer.len()),
            inner => inner,
        };
        match inner.and_then(|inner| Some((inner, inner.read(0)?))) {
            Some((inner, first)) => self.walk_table::<TRANSLATED>(outline, view, inner, first),
            None => false,
        }
    }

    #[inline(always)]
    fn walk_table<const TRANSLATED: bool>(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_, FlatRing<'_>>,
        table: FlatTable<'_>,
        mut descriptor: Descriptor,
    ) -> bool {
        let Some(room) = self.0.first_chunk_mut::<ROOM>() else {
            return false;
        };
        let (mut count, mut writable, mut readable_len, mut writable_len) = (0, 0, 0, 0);
        for place in room {
            let (address, len, flags) = (descriptor.address, descriptor.len(), descriptor.flags());
            if flags & !(WRITE | NEXT) != 0 {
                return false;
            }
            match view.has(address, len) {
                true => *place = view.segment(address, len),
                false if TRANSLATED && view.place(place, address, len, flags & WRITE != 0) => {}
                false => return false,
            }
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

    /// [`walk_near`](Self::walk_near) in a packed ring, where `first` was found at `spot`.
    #[inline(always)]
    pub fn walk_packed_near<const TRANSLATED: bool>(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_, FlatPacked<'_>>,
        first: Descriptor,
        spot: Spot,
        indirect: bool,
    ) -> bool {
        let (address, len, flags) = (first.address, first.len(), first.packed_flags());
        if flags & (NEXT | INDIRECT) != 0 {
            return match flags & NEXT == 0 {
                true => indirect && self.walk_packed_indirect::<TRANSLATED>(outline, view, first),
                false => self.walk_packed_ring::<TRANSLATED>(outline, view, first, spot),
            };
        }
        let Some(place) = self.0.first_mut().filter(|_| view.has(address, len)) else {
            return TRANSLATED && self.walk_packed_ring::<TRANSLATED>(outline, view, first, spot);
        };
        *place = view.segment(address, len);
        let readable = flags & WRITE == 0;
        (outline.head, outline.descriptors) = (first.id(), 1);
        (outline.readable, outline.count) = (readable.into(), 1);
        (outline.readable_len, outline.writable_len) = if readable { (len, 0) } else { (0, len) };
        view.ring.has(first.id())
    }

    #[inline(never)]
    fn walk_packed_ring<const TRANSLATED: bool>(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_, FlatPacked<'_>>,
        first: Descriptor,
        spot: Spot,
    ) -> bool {
        let (mut slot, mut walked, mut id) = (spot.slot, 0, 0);
        let next = |descriptor: &Descriptor| {
            walked += 1;
            if descriptor.packed_flags() & NEXT == 0 {
                id = descriptor.id();
                return After::Nothing;
            }
            slot += 1;
            match view.ring.read(slot) {
                Some(next) => After::Next(next),
                None => {
                    slot = 0;
                    view.ring.read(0).map_or(After::Broken, After::Next)
                }
            }
        };
        let whole = self.walk_forward::<TRANSLATED>(outline, view, first, INDIRECT, next);
        (outline.head, outline.descriptors) = (id, walked);
        // A chain that is longer than its ring has run into itself.
        whole && view.ring.has(id) && view.ring.has(walked - 1)
    }

    #[inline(never)]
    fn walk_packed_indirect<const TRANSLATED: bool>(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_, FlatPacked<'_>>,
        outer: Descriptor,
    ) -> bool {
        let inner = match view.table(outer.address, outer.len()) {
            None if TRANSLATED => view.table_elsewhere(outer.address, outer.len()),
            inner => inner,
        };
        let Some((inner, first)) = inner.and_then(|inner| Some((inner, inner.read(0)?))) else {
            return false;
        };
        let mut at = 0;
        let next = |_: &Descriptor| {
            at += 1;
            inner.read(at).map_or(After::Nothing, After::Next)
        };
        (outline.head, outline.descriptors) = (outer.id(), 1);
        self.walk_forward::<TRANSLATED>(outline, view, first, 0, next) && view.ring.has(outer.id())
    }

    /// Walks descriptors of a packed ring or of a table in one. Flags of `never` are for the long way.
    #[inline(always)]
    fn walk_forward<const TRANSLATED: bool>(
        &mut self,
        outline: &mut Outline,
        view: &FlatView<'_, FlatPacked<'_>>,
        mut descriptor: Descriptor,
        never: u16,
        mut next: impl FnMut(&Descriptor) -> After,
    ) -> bool {
        let Some(room) = self.0.first_chunk_mut::<ROOM>() else {
            return false;
        };
        let (mut count, mut writable, mut readable_len, mut writable_len) = (0, 0, 0, 0);
        for place in room {
            let (address, len, flags) = (descriptor.address, descriptor.len(), descriptor.packed_flags());
            if flags & never != 0 {
                return false;
            }
            match view.has(address, len) {
                true => *place = view.segment(address, len),
                false if TRANSLATED && view.place(place, address, len, flags & WRITE != 0) => {}
                false => return false,
            }
            count += 1;
            if flags & WRITE != 0 {
                writable += 1;
                writable_len += u64::from(len);
            } else if writable != 0 {
                return false;
            } else {
                readable_len += u64::from(len);
            }
            match next(&descriptor) {
                After::Next(next) => descriptor = next,
                After::Broken => return false,
                After::Nothing => {
                    (outline.readable, outline.count) = (count - writable, count);
                    (outline.readable_len, outline.writable_len) = (readable_len as u32, writable_len as u32);
                    return readable_len + writable_len <= u32::MAX.into();
                }
            }
        }
        false
    }

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
    fn grow(&mut self, next: Segment) {
        let mut segments = mem::take(&mut self.0).into_vec();
        let full = segments.len();
        segments.resize(2 * full, Segment::new(0, 0));
        segments[full] = next;
        self.0 = segments.into();
    }
}

/// What comes after a descriptor.
enum After {
    Next(Descriptor),
    Nothing,
    /// What the long way finds.
    Broken,
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
