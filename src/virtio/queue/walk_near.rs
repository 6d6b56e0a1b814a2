//! The short way to a chain: what nearly all chains are is found without a look at anything else. What is wrong with others is found
//! the [long way](super::walk).

use super::{
    chain::{Outline, ROOM, Segments},
    format::FlatView,
    packed_ring::FlatPacked,
    split_ring::{FlatRing, Head},
    spot::Spot,
    table::{Descriptor, FlatTable, INDIRECT, NEXT, WRITE},
};

impl Segments {
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
}

/// What comes after a descriptor.
enum After {
    Next(Descriptor),
    Nothing,
    /// What the long way finds.
    Broken,
}
