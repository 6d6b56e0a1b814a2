//! What is behind a map, by dynamic dispatch: for memory whose host addresses are not stable, and for dirty marks.

use std::{ops::Deref, ptr::NonNull, sync::atomic::Ordering};

use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, Permissions,
    VolatileSlice, bitmap::Bitmap,
};

use super::{Outside, Segment, span::Span};

pub(crate) trait Backing: Send + Sync {
    fn check(&self, address: u64, len: u64, access: Permissions) -> bool;
    fn load(&self, address: u64) -> Result<u16, Outside>;
    /// In the order of all later loads and stores by this thread, if `SeqCst` fences are put between.
    fn store(&self, address: u64, value: u16) -> Result<(), Outside>;
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Outside>;
    fn write(&self, address: u64, data: &[u8]) -> Result<(), Outside>;
    fn lend(
        &self,
        segments: &mut dyn Iterator<Item = Segment>,
        access: Permissions,
        f: &mut dyn FnMut(&[VolatileSlice<'_>]),
    ) -> Result<(), Outside>;
    fn mark_dirty(&self, address: u64, len: u64);
}

/// A guard of an address space, which keeps the map alive.
pub(super) struct Held<T>(pub T);

impl<T> Held<T>
where
    T: Deref,
    T::Target: GuestMemory + Sized,
{
    pub fn identity(&self) -> *const () {
        std::ptr::from_ref(&*self.0).cast()
    }

    /// Whether writes are to be marked. A bitmap without a byte to keep marks in keeps none.
    pub fn tracks(&self) -> bool {
        size_of::<<T::Target as GuestMemory>::Bitmap>() != 0
    }

    /// The regions with their host addresses, in the order of guest addresses; none, if an address is not stable.
    pub fn spans(&self) -> Vec<Span> {
        let Some(memory) = self.0.physical_memory() else {
            return Vec::new();
        };
        let mut spans = Vec::with_capacity(memory.num_regions());
        for region in memory.iter() {
            // Xen's regions that are mapped for the time of an access have no address of their own.
            let host = region.get_host_address(MemoryRegionAddress(0)).ok();
            // What any type may say is no reason to access it: what a slice spans is.
            let len = region.len();
            let slice = region.get_slice(MemoryRegionAddress(0), len as usize).ok();
            let (Some(host), Some(slice)) = (host.and_then(NonNull::new), slice) else {
                return Vec::new();
            };
            if slice.len() as u64 != len || !std::ptr::eq(slice.ptr_guard().as_ptr(), host.as_ptr()) {
                return Vec::new();
            }
            spans.push(Span::new(region.start_addr().0, len, host));
        }
        spans.sort_unstable_by_key(Span::start);
        spans
    }
}

/// Is called when it is dropped, by a panic too.
struct AtLast<F: Fn()>(F);

impl<F: Fn()> Drop for AtLast<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<T> Backing for Held<T>
where
    T: Deref + Send + Sync,
    T::Target: GuestMemory + Sized,
{
    fn check(&self, address: u64, len: u64, access: Permissions) -> bool {
        let fits = usize::try_from(len).ok().filter(|_| address.checked_add(len).is_some());
        fits.is_some_and(|len| self.0.check_range(GuestAddress(address), len, access))
    }

    fn load(&self, address: u64) -> Result<u16, Outside> {
        let value = self.0.load::<u16>(GuestAddress(address), Ordering::Acquire);
        value.map_err(|_| Outside { address, len: 2 })
    }

    fn store(&self, address: u64, value: u16) -> Result<(), Outside> {
        let stored = self.0.store(value, GuestAddress(address), Ordering::Release);
        stored.map_err(|_| Outside { address, len: 2 })
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Outside> {
        let len = data.len() as u64;
        let read = self.0.read_slice(data, GuestAddress(address));
        read.map_err(|_| Outside { address, len })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Outside> {
        let len = data.len() as u64;
        let written = self.0.write_slice(data, GuestAddress(address));
        written.map_err(|_| Outside { address, len })
    }

    fn lend(
        &self,
        segments: &mut dyn Iterator<Item = Segment>,
        access: Permissions,
        f: &mut dyn FnMut(&[VolatileSlice<'_>]),
    ) -> Result<(), Outside> {
        let mut guarded = Vec::new();
        for Segment { address, len, .. } in segments {
            let outside = || Outside {
                address,
                len: len.into(),
            };
            let slices = self.0.get_slices(GuestAddress(address), len as usize, access);
            for slice in slices.map_err(|_| outside())? {
                let slice = slice.map_err(|_| outside())?;
                guarded.push((slice.ptr_guard_mut(), slice));
            }
        }
        let slices: Vec<_> = guarded
            .iter()
            // SAFETY: the pointer and the length are those of a valid volatile slice. Its memory stays mapped as long
            // as the guest memory is borrowed and the guard lives, and both outlive `slices`.
            .map(|(guard, slice)| unsafe { VolatileSlice::new(guard.as_ptr(), slice.len()) })
            .collect();
        // The bare slices go around the bitmap of dirty pages.
        let written = if access.has_write() { &guarded[..] } else { &[] };
        let _marks = AtLast(|| {
            written
                .iter()
                .for_each(|(_, slice)| slice.bitmap().mark_dirty(0, slice.len()))
        });
        f(&slices);
        Ok(())
    }

    fn mark_dirty(&self, mut address: u64, mut len: u64) {
        let Some(memory) = self.0.physical_memory() else { return };
        while len != 0
            && let Some(region) = memory.find_region(GuestAddress(address))
        {
            let offset = address - region.start_addr().0;
            let here = len.min(region.len() - offset);
            region.bitmap().mark_dirty(offset as usize, here as usize);
            (address, len) = (address.wrapping_add(here), len - here);
        }
    }
}
