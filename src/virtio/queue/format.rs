//! A ring by its format, and the short way to it and to the buffers that it names.

use std::ptr::NonNull;

use vm_memory::Permissions;

use super::{
    packed_ring::{FlatPacked, PackedView},
    split_ring::{FlatRing, SplitView},
    table::{DESCRIPTOR, FlatTable},
    view::View,
};
use crate::memory::{Pin, Segment, Stretch};

/// A [`View`] by the format of its ring.
#[derive(Clone, Copy)]
pub(super) enum Format<S, P> {
    Split(S),
    Packed(P),
}

impl View {
    /// The ring, by its format.
    #[inline]
    pub fn ring(&self) -> Format<SplitView<'_>, PackedView<'_>> {
        match self.packed {
            false => Format::Split(SplitView(self)),
            true => Format::Packed(PackedView(self)),
        }
    }

    /// The short way to the ring, if there is one.
    #[inline]
    pub fn flat(&self) -> Option<Format<FlatRing<'_>, FlatPacked<'_>>> {
        match self.flat_split() {
            Some(ring) => Some(Format::Split(ring)),
            None => Some(Format::Packed(FlatPacked::new(self.flat_packed?))),
        }
    }

    /// The same of a split ring; of a packed one nothing.
    #[inline]
    pub fn flat_split(&self) -> Option<FlatRing<'_>> {
        Some(FlatRing::new(self.flat?))
    }

    /// And to chains all of which is in the span of guest memory in which `near` was found, or where a translated buffer was before.
    #[inline]
    pub fn flat_near(&self, near: Segment) -> Option<Format<FlatView<'_, FlatRing<'_>>, FlatView<'_, FlatPacked<'_>>>> {
        let (span, pin) = (self.pin.stretch(&near), &*self.pin);
        Some(match self.flat()? {
            Format::Split(ring) => Format::Split(FlatView { ring, span, near, pin }),
            Format::Packed(ring) => Format::Packed(FlatView { ring, span, near, pin }),
        })
    }
}

/// The short way to a ring, with a span of guest memory.
#[derive(Clone, Copy)]
pub(super) struct FlatView<'a, R> {
    pub ring: R,
    span: &'a Stretch,
    near: Segment,
    pin: &'a Pin,
}

impl<'a, R> FlatView<'a, R> {
    /// Whether a buffer is in the span in which short chains have all of theirs.
    #[inline]
    pub fn has(&self, address: u64, len: u32) -> bool {
        self.span.has(address, len)
    }

    /// That span.
    #[inline]
    pub fn span(&self) -> &'a Stretch {
        self.span
    }

    /// Puts a translated buffer that is elsewhere, and was found before, into `place`. Whether it is one.
    #[inline]
    pub fn place(&self, place: &mut Segment, address: u64, len: u32, writable: bool) -> bool {
        let access = if writable {
            Permissions::Write
        } else {
            Permissions::Read
        };
        self.pin.place(place, address, len, access)
    }

    /// [`table`](Self::table), translated.
    pub fn table_elsewhere(&self, address: u64, len: u32) -> Option<FlatTable<'a>> {
        let mut place = self.near;
        let known = self.place(&mut place, address, len, false);
        known
            .then(|| self.pin.host(&mut place))
            .flatten()
            .and_then(|host| Self::table_at(host, len))
    }

    /// A buffer in that span.
    #[inline]
    pub fn segment(&self, address: u64, len: u32) -> Segment {
        self.near.at(address, len)
    }

    /// The indirect table in the `len` bytes at `address`: if it is in that span, aligned, and as long as one can be.
    #[inline]
    pub fn table(&self, address: u64, len: u32) -> Option<FlatTable<'a>> {
        Self::table_at(self.span.host(address, len)?, len)
    }

    #[inline]
    fn table_at(host: NonNull<u8>, len: u32) -> Option<FlatTable<'a>> {
        let possible = len != 0 && len.is_multiple_of(DESCRIPTOR as u32) && len / DESCRIPTOR as u32 <= 1 << 16;
        let aligned = host.as_ptr().addr().is_multiple_of(align_of::<[u64; 2]>());
        // Not before: an impossible table has no last index.
        // SAFETY: so many bytes are there, mapped while the view's pin lives.
        (possible && aligned).then(|| unsafe { FlatTable::new(host.cast(), len / DESCRIPTOR as u32 - 1) })
    }
}
