//! A packed ring (virtio 1.2, section 2.8): its loads and stores.

use std::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::{
    Gone,
    spot::Spot,
    table::{DESCRIPTOR, Descriptor},
    view::{Flat, View},
};
use crate::memory::Pin;

/// Descriptors in a cache line.
pub(super) const LINE: u16 = 4;

/// Offset of the second half of a descriptor: length, ID and flags.
const REST: u64 = 8;
const FLAGS: u64 = 14;

/// In an event suppression structure (section 2.8.14): offset and wrap counter, then flags.
const EVENT_DESC: u64 = 0;
const EVENT_FLAGS: u64 = 2;

/// A [`View`] of a packed ring.
#[derive(Clone, Copy)]
pub(super) struct PackedView<'a>(pub(super) &'a View);

impl<'a> PackedView<'a> {
    #[inline]
    pub fn view(self) -> &'a View {
        self.0
    }
}

impl PackedView<'_> {
    /// The descriptor in `slot`, which is below the size; of a first one, `at` says where it is to be available.
    pub fn descriptor(&self, slot: u16, at: Option<Spot>) -> Result<Option<Descriptor>, Gone> {
        let Self(view) = self;
        if let Some(at) = at {
            // Before all that is read of the chain.
            // SAFETY: the slot is below the size.
            let flags = unsafe { view.descriptors.load(&view.pin, DESCRIPTOR * u64::from(slot) + FLAGS)? };
            if !at.is_available(flags) {
                return Ok(None);
            }
        }
        let read = view.descriptors().read(slot).map_err(|_| Gone)?;
        // As it was read: the driver may have changed it meanwhile.
        Ok(read.filter(|read| at.is_none_or(|at| at.is_available(read.packed_flags()))))
    }

    /// Writes the second half of a used descriptor, the flags last.
    pub fn set_used(&self, slot: u16, rest: u64) -> Result<(), Gone> {
        let Self(view) = self;
        let offset = DESCRIPTOR * u64::from(slot);
        if let Some(host) = view.descriptors.host {
            // SAFETY: the slot is below the size, so the descriptor is in the area, which is mapped while the view's pin lives.
            let descriptor = unsafe { host.add(offset as usize) }.cast();
            // SAFETY: as above.
            unsafe { store_rest(descriptor, rest) };
            view.pin.mark_dirty(view.descriptors.address + offset, DESCRIPTOR);
            return Ok(());
        }
        let bytes = rest.to_le_bytes();
        let address = view.descriptors.address + offset + REST;
        view.pin.write(address, &bytes[..6]).map_err(|_| Gone)?;
        // SAFETY: as above.
        unsafe { view.descriptors.store(&view.pin, offset + FLAGS, (rest >> 48) as u16) }
    }

    /// The driver's event suppression structure, the flags in the upper half.
    pub fn driver_event(&self) -> Result<u32, Gone> {
        let Self(view) = self;
        // SAFETY: every driver area has both.
        let halves = unsafe {
            [
                view.driver.load(&view.pin, EVENT_DESC)?,
                view.driver.load(&view.pin, EVENT_FLAGS)?,
            ]
        };
        let [desc, flags] = halves.map(u32::from);
        Ok(desc | flags << 16)
    }

    /// Tells the driver when to kick: with a place, when what it makes available passes that.
    pub fn set_device_event(&self, at: Option<Spot>, flags: u16) -> Result<(), Gone> {
        let Self(view) = self;
        // SAFETY: every device area has both.
        unsafe {
            if let Some(at) = at {
                view.device.store(&view.pin, EVENT_DESC, at.raw())?;
            }
            view.device.store(&view.pin, EVENT_FLAGS, flags)
        }
    }
}

/// # Safety
/// `descriptor` leads to a descriptor of a ring that is mapped.
#[inline(always)]
unsafe fn store_rest(descriptor: NonNull<[u64; 2]>, rest: u64) {
    // SAFETY: in the descriptor, aligned as it is. The guest's other accesses to it are at least as atomic.
    let place = unsafe { AtomicU64::from_ptr(descriptor.cast::<u64>().add(1).as_ptr()) };
    place.store(rest.to_le(), Ordering::Release);
}

/// A [`PackedView`] all of whose areas have host addresses, which are at hand.
#[derive(Clone, Copy)]
pub(super) struct FlatPacked<'a> {
    flat: Flat,
    /// Keeps it mapped.
    pin: PhantomData<&'a Pin>,
}

impl FlatPacked<'_> {
    /// `flat` is of a packed ring.
    pub fn new(flat: Flat) -> Self {
        let pin = PhantomData;
        Self { flat, pin }
    }

    #[inline(always)]
    fn at(&self, slot: u16) -> Option<NonNull<[u64; 2]>> {
        // SAFETY: a descriptor of the ring.
        (u32::from(slot) <= self.flat.mask).then(|| unsafe { self.flat.descriptors.add(slot.into()) })
    }

    /// Where the cache line after that of `slot` is, if that one begins there.
    #[inline(always)]
    pub fn line_ahead(&self, slot: u16) -> Option<*const u8> {
        if !slot.is_multiple_of(LINE) {
            return None;
        }
        Some(self.at(slot + LINE)?.as_ptr().cast())
    }

    /// Whether a buffer ID is below the size.
    #[inline(always)]
    pub fn has(&self, id: u16) -> bool {
        u32::from(id) <= self.flat.mask
    }

    /// The descriptor in `slot`, read once, before all later loads.
    #[inline(always)]
    pub fn read(&self, slot: u16) -> Option<Descriptor> {
        let words = self.at(slot)?.cast::<u64>();
        // SAFETY: in the ring, aligned as that is, and mapped while the view's pin lives.
        let rest = unsafe { AtomicU64::from_ptr(words.add(1).as_ptr()) };
        let rest = rest.load(Ordering::Acquire);
        // SAFETY: as above.
        let address = unsafe { words.read_volatile() };
        Some(Descriptor::new([address, rest].map(u64::from_le)))
    }

    /// As [`PackedView::set_used`], but for the mark. Nothing, if there is no such slot.
    #[inline(always)]
    pub fn set_used(&self, slot: u16, rest: u64) {
        if let Some(descriptor) = self.at(slot) {
            // SAFETY: in the ring, mapped while the view's pin lives.
            unsafe { store_rest(descriptor, rest) };
        }
    }

    /// As [`PackedView::driver_event`].
    #[inline(always)]
    pub fn driver_event(&self) -> u32 {
        // SAFETY: the driver area has four bytes, aligned to four, mapped while the view's pin lives.
        let event = unsafe { AtomicU32::from_ptr(self.flat.driver.as_ptr().cast()) };
        u32::from_le(event.load(Ordering::Acquire))
    }
}
