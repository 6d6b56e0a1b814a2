//! A map of guest memory with the host addresses of its regions.

use std::{fmt, mem, ops::Deref, ptr::NonNull, sync::Arc};

use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use super::{
    Outside, Scratch, Segment,
    backing::{Backing, Held},
    runs::Runs,
    span::{Near, Span, Stretch},
};

pub(super) struct Map {
    /// In the order of guest addresses. None, if host addresses are not stable: `backing` does everything then.
    spans: Arc<[Span]>,
    /// The same as they are looked at again and again, if they stay as they are; none of a map that is translated.
    stays: Box<[Stretch]>,
    /// Writes by host address are to be marked.
    pub tracks: bool,
    /// Which map of its address space this is.
    pub identity: *const (),
    /// Addresses are translated: what is known of them so far. The spans are filled as it becomes known, and in its order.
    pub runs: Option<Arc<Runs>>,
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
        let spans: Arc<[Span]> = held.spans().into();
        Self {
            stays: spans.iter().filter_map(|span| span.both().copied()).collect(),
            spans,
            tracks: held.tracks(),
            identity: held.identity(),
            runs: None,
            backing: held,
        }
    }

    /// A map that is translated.
    pub fn translated(runs: Arc<Runs>) -> Self {
        Self {
            spans: Arc::clone(&runs.spans),
            stays: Box::default(),
            tracks: runs.tracks(),
            identity: Arc::as_ptr(&runs).cast(),
            backing: Box::new(Arc::clone(&runs)),
            runs: Some(runs),
        }
    }

    /// Whether host addresses are stable, and so are in the spans.
    pub fn is_flat(&self) -> bool {
        !self.spans.is_empty()
    }

    /// The host's memory that is in the spans, if they stay as they are.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub fn host_ranges(&self) -> impl Iterator<Item = (NonNull<u8>, u64)> {
        let spans = self.spans.iter().filter(|_| self.runs.is_none());
        spans.filter_map(|span| Some((span.host()?, span.len())))
    }

    /// The caller has [checked](Self::check) it.
    #[inline]
    pub fn host(&self, segment: &mut Segment) -> Option<NonNull<u8>> {
        self.find(segment, segment.len.into(), Permissions::No)
            .map(|(host, _)| host)
    }

    /// The host address of the first byte of `segment`, if `len` bytes from there on are in one span; and how many there are in
    /// this span: the one in which it was found, or another that may be accessed so.
    #[inline]
    fn find(&self, segment: &mut Segment, len: u64, access: Permissions) -> Option<(NonNull<u8>, u64)> {
        let hit = self.stays.get(segment.hint as usize);
        match hit.and_then(|stretch| stretch.find(segment.address, len)) {
            None => self.find_elsewhere(segment, len, access),
            found => found,
        }
    }

    #[inline]
    fn find_elsewhere(&self, segment: &mut Segment, len: u64, access: Permissions) -> Option<(NonNull<u8>, u64)> {
        let (span, offset) = self.find_span(segment, len, access)?;
        // SAFETY: within the span, as was just found.
        Some((unsafe { span.at(offset) }, span.len() - offset as u64))
    }

    #[inline]
    fn find_span(&self, segment: &mut Segment, len: u64, access: Permissions) -> Option<(&Span, usize)> {
        let hit = self.spans.get(segment.hint as usize);
        match hit.and_then(|span| Some((span, span.offset(segment.address, len)?))) {
            None => self.search(segment, len, access),
            found => found,
        }
    }

    #[cold]
    fn search(&self, segment: &mut Segment, len: u64, access: Permissions) -> Option<(&Span, usize)> {
        let at = match &self.runs {
            Some(runs) => runs.search(segment.address, len, access)?,
            None => {
                let after = self.spans.partition_point(|span| span.start() <= segment.address);
                after.checked_sub(1)?
            }
        };
        let span = &self.spans[at];
        let offset = span.offset(segment.address, len)?;
        segment.hint = at as u32;
        Some((span, offset))
    }

    /// The host address of `address`; and how many bytes before it, and from it on, there are in its span.
    pub fn extent(&self, address: u64) -> Option<(NonNull<u8>, u64, u64)> {
        let (host, after) = self.find(&mut Segment::new(address, 1), 1, Permissions::No)?;
        let span = self.spans.iter().find(|span| span.offset(address, 1).is_some())?;
        Some((host, address - span.start(), after))
    }

    #[inline]
    pub fn check(&self, segment: &mut Segment, access: Permissions) -> Result<(), Outside> {
        let hit = self.stays.get(segment.hint as usize);
        match hit.and_then(|stretch| stretch.find(segment.address, segment.len.into())) {
            Some(_) => Ok(()),
            None => self.check_span(segment, access),
        }
    }

    #[inline(never)]
    fn check_span(&self, segment: &mut Segment, access: Permissions) -> Result<(), Outside> {
        match self.find_span(segment, segment.len.into(), access) {
            Some((span, _)) if span.allows(access) => Ok(()),
            _ => self.check_elsewhere(segment, access),
        }
    }

    /// Across spans, or behind a translation.
    #[cold]
    fn check_elsewhere(&self, segment: &mut Segment, access: Permissions) -> Result<(), Outside> {
        let Segment { address, len, .. } = *segment;
        let len = u64::from(len);
        if !self.backing.check(address, len, access) {
            return Err(Outside { address, len });
        }
        if self.runs.is_some() && self.search(segment, len, access).is_none() {
            // In several, as it stays: see `Runs::enter`.
            segment.hint = u32::MAX;
        }
        Ok(())
    }

    /// Where short chains have all of their buffers, in both directions.
    #[inline]
    pub fn stretch(&self, earlier: &Segment) -> &Stretch {
        match self.stays.get(earlier.hint as usize) {
            Some(stretch) => stretch,
            None => self.stretch_elsewhere(earlier),
        }
    }

    #[inline(never)]
    fn stretch_elsewhere(&self, earlier: &Segment) -> &Stretch {
        let span = self.spans.get(earlier.hint as usize);
        span.and_then(Span::both).unwrap_or(&Stretch::NONE)
    }

    /// Puts a segment into `place` if it is where a pin that is translated knows it to be: nearly always in the span of what was there
    /// before. Whether it is.
    #[inline]
    pub fn place(&self, place: &mut Segment, address: u64, len: u32, access: Permissions) -> bool {
        let mut segment = Segment { address, len, ..*place };
        let found = self.find_span(&mut segment, len.into(), access);
        *place = segment;
        found.is_some_and(|(span, _)| span.allows(access))
    }

    /// Where to begin to look, with the hint of an earlier segment.
    #[inline]
    pub fn near(&self, earlier: &Segment) -> Near {
        let index = earlier.hint;
        Near::new(self.spans.get(index as usize), index)
    }

    /// [`check`](Self::check), beginning where the last segment was found. The segment is made with its place in mind.
    #[inline]
    pub fn check_near(&self, near: &mut Near, address: u64, len: u32, access: Permissions) -> Result<Segment, Outside> {
        if !near.has(address, len, access) {
            self.check_far(near, address, len, access)?;
        }
        let hint = near.index();
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
        match self.find(segment, data.len() as u64, Permissions::Read) {
            Some((host, _)) => {
                // SAFETY: as many bytes from `host` on are in the mapping of a span, which `backing` keeps alive.
                unsafe { VolatileSlice::new(host.as_ptr(), data.len()) }.copy_to(data);
                Ok(())
            }
            None => self.backing.read(segment.address, data),
        }
    }

    #[inline(always)]
    pub fn write(&self, segment: &mut Segment, data: &[u8]) -> Result<(), Outside> {
        match self.find(segment, data.len() as u64, Permissions::Write) {
            Some((host, _)) => {
                match data {
                    // SAFETY: as in `read`.
                    [byte] => unsafe { host.as_ptr().write_volatile(*byte) },
                    // SAFETY: as in `read`.
                    _ => unsafe { VolatileSlice::new(host.as_ptr(), data.len()) }.copy_from(data),
                }
                if self.tracks {
                    self.backing.mark_dirty(segment.address, data.len() as u64);
                }
                Ok(())
            }
            None => self.backing.write(segment.address, data),
        }
    }

    #[inline]
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for TAP interfaces"))]
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
                let found = self.find(&mut segment, 1, access);
                let (host, there) = found
                    .or_else(|| self.runs.as_ref()?.host(segment.address, access))
                    .ok_or(outside)?;
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
