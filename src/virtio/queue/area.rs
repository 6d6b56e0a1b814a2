//! A piece of a ring in guest memory: its loads and stores.

use std::{ptr::NonNull, sync::atomic::AtomicU16};

use vm_memory::Permissions;

use super::Gone;
use crate::{
    memory::{Outside, Pin, Segment},
    sync::Ordering,
};

/// A piece of guest memory that was looked up, for as long as its pin lives. Without a host address it is reached through the
/// pin, translated each time.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub address: u64,
    pub host: Option<NonNull<u8>>,
}

impl Area {
    /// `align` is what a host pointer needs so that it can be used as one.
    #[inline]
    pub fn find(pin: &Pin, segment: &mut Segment, align: usize, access: Permissions) -> Result<Self, Outside> {
        pin.check(segment, access)?;
        let host = pin
            .host(segment)
            .filter(|host| host.as_ptr().addr().is_multiple_of(align));
        Ok(Self {
            address: segment.address,
            host,
        })
    }

    /// Loads what comes before all later loads.
    ///
    /// # Safety
    /// The two bytes at `offset`, which is even, are in the area, and `pin` is the one that it was found with.
    #[inline]
    pub unsafe fn load(&self, pin: &Pin, offset: u64) -> Result<u16, Gone> {
        let Some(host) = self.host else {
            return self.load_elsewhere(pin, offset);
        };
        // SAFETY: in the area, as the caller says, which is mapped while the pin lives, and aligned.
        Ok(unsafe { load_word(host.add(offset as usize)) })
    }

    /// Stores after all earlier stores.
    ///
    /// # Safety
    /// As [`load`](Self::load).
    #[inline]
    pub unsafe fn store(&self, pin: &Pin, offset: u64, value: u16) -> Result<(), Gone> {
        let Some(host) = self.host else {
            return self.store_elsewhere(pin, offset, value);
        };
        // SAFETY: as in `load`.
        unsafe { store_word(host.add(offset as usize), value) };
        pin.mark_dirty(self.address + offset, 2);
        Ok(())
    }

    #[cold]
    fn load_elsewhere(&self, pin: &Pin, offset: u64) -> Result<u16, Gone> {
        let value = pin.backing().load(self.address + offset);
        value.map(u16::from_le).map_err(|_| Gone)
    }

    #[cold]
    fn store_elsewhere(&self, pin: &Pin, offset: u64, value: u16) -> Result<(), Gone> {
        let stored = pin.backing().store(self.address + offset, value.to_le());
        stored.map_err(|_| Gone)
    }
}

/// Loads a word of a ring before all later loads.
///
/// # Safety
/// It is mapped, and aligned. The guest's other accesses to it are at least as atomic.
#[inline(always)]
pub(super) unsafe fn load_word(place: NonNull<u8>) -> u16 {
    #[cfg(loom)]
    if let Some(word) = crate::sync::seen::word(place.as_ptr().cast()) {
        return word.load(Ordering::Acquire);
    }
    // SAFETY: as the caller says.
    let word = unsafe { AtomicU16::from_ptr(place.as_ptr().cast()) };
    u16::from_le(word.load(Ordering::Acquire))
}

/// Stores a word of a ring after all earlier stores.
///
/// # Safety
/// As [`load_word`].
#[inline(always)]
pub(super) unsafe fn store_word(place: NonNull<u8>, value: u16) {
    #[cfg(loom)]
    if let Some(word) = crate::sync::seen::word(place.as_ptr().cast()) {
        word.store(value, Ordering::Release);
    }
    // SAFETY: as the caller says.
    let word = unsafe { AtomicU16::from_ptr(place.as_ptr().cast()) };
    word.store(value.to_le(), Ordering::Release);
}
