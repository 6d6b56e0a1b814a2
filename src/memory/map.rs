//! A map of guest memory with the host addresses of its regions.

use std::{fmt, mem, ops::Deref, ptr::NonNull};

use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use super::{
    Outside, Scratch, Segment,
    backing::{Backing, Held},
};

/// A region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) host: NonNull<u8>,
}

impl Span {
    /// How far into this span the `len` bytes at `address` begin, if all of them are in it.
    #[inline]
    fn offset(&self, address: u64, len: u64) -> Option<usize> {
        let offset = address.wrapping_sub(self.start);
        let within = offset < self.len && len <= self.len - offset;
        within.then_some(offset as usize)
    }
}

impl Span {
    /// Whether the `len` bytes at `address` are all in this span, or are none at its end.
    #[inline]
    pub fn has(&self, address: u64, len: u32) -> bool {
        let end = address.wrapping_sub(self.start).checked_add(len.into());
        end.is_some_and(|end| end <= self.len)
    }

    /// The host address of the `len` bytes at `address`, if all of them are in this span.
    #[inline]
    pub fn host(&self, address: u64, len: u32) -> Option<NonNull<u8>> {
        let offset = self.offset(address, len.into())?;
        // SAFETY: within the mapping of the span.
        Some(unsafe { self.host.add(offset) })
    }
}

/// Where the last of several segments was found: most of them are near each other.
#[derive(Clone, Copy)]
pub(crate) struct Near {
    span: Span,
    index: u32,
}

pub(super) struct Map {
    /// In the order of guest addresses. None, if host addresses are not stable: `backing` does everything then.
    spans: Box<[Span]>,
    /// Writes by host address are to be marked.
    pub tracks: bool,
    /// Which map of its address space this is.
    pub identity: *const (),
    /// Keeps the spans mapped. Last: it goes last.
    pub backing: Box<dyn Backing>,
}

// SAFETY: the pointers of the spans lead to guest memory, which `backing` keeps alive; it is shared with the guest by its nature,
// and accessed by volatile copies and atomics alone. `identity` is compared and never followed.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub fn new<T>(guard: T) -> Self
    where
        T: Deref + Send + Sync + 'static,
        T::Target: GuestMemory + Sized,
    {
        // In its place before it is asked for addresses.
        let held = Box::new(Held(guard));
        Self {
            spans: held.spans().into(),
            tracks: held.tracks(),
            identity: held.identity(),
            backing: held,
        }
    }

    /// Whether host addresses are stable, and so are in the spans.
    fn is_flat(&self) -> bool {
        !self.spans.is_empty()
    }

    #[inline]
    pub fn host(&self, segment: &mut Segment) -> Option<NonNull<u8>> {
        self.find(segment, segment.len.into()).map(|(host, _)| host)
    }

    /// The host address of the first byte of `segment`, if `len` bytes from there on are in one span; and how many there are in
    /// this span.
    #[inline]
    fn find(&self, segment: &mut Segment, len: u64) -> Option<(NonNull<u8>, u64)> {
        let hit = self.spans.get(segment.hint as usize);
        if let Some((span, offset)) = hit.and_then(|span| Some((span, span.offset(segment.address, len)?))) {
            // SAFETY: within the mapping of the span.
            return Some((unsafe { span.host.add(offset) }, span.len - offset as u64));
        }
        self.search(segment, len)
    }

    #[cold]
    fn search(&self, segment: &mut Segment, len: u64) -> Option<(NonNull<u8>, u64)> {
        let after = self.spans.partition_point(|span| span.start <= segment.address);
        let at = after.checked_sub(1)?;
        let span = &self.spans[at];
        let offset = span.offset(segment.address, len)?;
        segment.hint = at as u32;
        // SAFETY: within the mapping of the span.
        Some((unsafe { span.host.add(offset) }, span.len - offset as u64))
    }

    #[inline]
    pub fn check(&self, segment: &mut Segment, access: Permissions) -> Result<(), Outside> {
        match self.find(segment, segment.len.into()) {
            Some(_) => Ok(()),
            None => self.check_elsewhere(segment, access),
        }
    }

    /// Across spans, or behind a translation.
    #[cold]
    fn check_elsewhere(&self, segment: &Segment, access: Permissions) -> Result<(), Outside> {
        let Segment { address, len, .. } = *segment;
        let len = u64::from(len);
        match self.backing.check(address, len, access) {
            true => Ok(()),
            false => Err(Outside { address, len }),
        }
    }

    #[inline]
    pub fn span_of(&self, earlier: &Segment) -> Option<&Span> {
        self.spans.get(earlier.hint as usize)
    }

    /// Where to begin to look, with the hint of an earlier segment.
    #[inline]
    pub fn near(&self, earlier: &Segment) -> Near {
        let nowhere = Span {
            start: 0,
            len: 0,
            host: NonNull::dangling(),
        };
        let index = earlier.hint;
        Near {
            span: self.spans.get(index as usize).copied().unwrap_or(nowhere),
            index,
        }
    }

    /// [`check`](Self::check), beginning where the last segment was found. The segment is made with its place in mind.
    #[inline]
    pub fn check_near(&self, near: &mut Near, address: u64, len: u32, access: Permissions) -> Result<Segment, Outside> {
        if near.span.offset(address, len.into()).is_none() {
            self.check_far(near, address, len, access)?;
        }
        let hint = near.index;
        Ok(Segment { address, len, hint })
    }

    #[cold]
    fn check_far(&self, near: &mut Near, address: u64, len: u32, access: Permissions) -> Result<(), Outside> {
        let mut segment = Segment::new(address, len);
        self.check(&mut segment, access)?;
        *near = self.near(&segment);
        Ok(())
    }

    #[inline]
    pub fn read(&self, segment: &mut Segment, data: &mut [u8]) -> Result<(), Outside> {
        match self.find(segment, data.len() as u64) {
            Some((host, _)) => {
                // SAFETY: as many bytes from `host` on are in the mapping of a span, which `backing` keeps alive.
                unsafe { VolatileSlice::new(host.as_ptr(), data.len()) }.copy_to(data);
                Ok(())
            }
            None => self.backing.read(segment.address, data),
        }
    }

    #[inline]
    pub fn write(&self, segment: &mut Segment, data: &[u8]) -> Result<(), Outside> {
        match self.find(segment, data.len() as u64) {
            Some((host, _)) => {
                // SAFETY: as in `read`.
                unsafe { VolatileSlice::new(host.as_ptr(), data.len()) }.copy_from(data);
                if self.tracks {
                    self.backing.mark_dirty(segment.address, data.len() as u64);
                }
                Ok(())
            }
            None => self.backing.write(segment.address, data),
        }
    }

    #[inline]
    pub fn lend_whole<R>(&self, segment: &mut Segment, f: impl FnOnce(&VolatileSlice<'_>) -> R) -> Option<R> {
        let host = self.host(segment)?;
        // SAFETY: within the mapping of a span, which `backing` keeps alive for longer than the call of `f`.
        let slice = unsafe { VolatileSlice::new(host.as_ptr(), segment.len as usize) };
        if !self.tracks {
            return Some(f(&slice));
        }
        let mut marked = vec![*segment];
        let _marks = Marks(&*self.backing, &mut marked);
        Some(f(&slice))
    }

    pub fn lend<R>(
        &self,
        mut segments: impl Iterator<Item = Segment>,
        access: Permissions,
        scratch: &mut Scratch,
        f: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, Outside> {
        if !self.is_flat() {
            let (mut f, mut result) = (Some(f), None);
            self.backing.lend(&mut segments, access, &mut |slices| {
                result = f.take().map(|f| f(slices));
            })?;
            // It was called once, or there was an error.
            return result.ok_or(Outside { address: 0, len: 0 });
        }
        let mut slices = Emptied(mem::take(&mut scratch.slices));
        scratch.marks.clear();
        for mut segment in segments {
            if access.has_write() && self.tracks {
                scratch.marks.push(segment);
            }
            while segment.len != 0 {
                let outside = Outside {
                    address: segment.address,
                    len: segment.len.into(),
                };
                let (host, there) = self.find(&mut segment, 1).ok_or(outside)?;
                let len = there.min(segment.len.into()) as u32;
                // SAFETY: within the mapping of a span, which `backing` keeps alive for longer than the call of `f`; the slices
                // are forgotten after it.
                slices
                    .0
                    .push(unsafe { VolatileSlice::new(host.as_ptr(), len as usize) });
                segment.len -= len;
                segment.address = segment.address.wrapping_add(len.into());
            }
        }
        let marks = Marks(&*self.backing, &mut scratch.marks);
        let result = f(&slices.0);
        drop(marks);
        scratch.slices = slices.empty();
        Ok(result)
    }
}

/// Marks what was lent when who uses it is done, or panics.
struct Marks<'a>(&'a dyn Backing, &'a mut Vec<Segment>);

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        for segment in self.1.drain(..) {
            self.0.mark_dirty(segment.address, segment.len.into());
        }
    }
}

/// Slices that are forgotten whatever becomes of who uses them.
struct Emptied(Vec<VolatileSlice<'static>>);

impl Emptied {
    fn empty(mut self) -> Vec<VolatileSlice<'static>> {
        self.0.clear();
        self.0
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("spans", &self.spans)
            .field("tracks", &self.tracks)
            .finish_non_exhaustive()
    }
}
