//! A split ring (virtio 1.2, section 2.7): its loads and stores.

use std::{marker::PhantomData, sync::atomic::AtomicU16};

use super::{
    Gone,
    area::{load_word, store_word},
    table::{Descriptor, FlatTable},
    view::{AVAIL_ENTRY, Flat, IDX, RING_HEADER, USED_ENTRY, View},
};
use crate::{
    memory::Pin,
    sync::{Ordering, fence},
};

/// A [`View`] of a split ring. Entries are named by free-running indices, so that none is beyond its area.
#[derive(Clone, Copy)]
pub(super) struct SplitView<'a>(pub(super) &'a View);

impl<'a> SplitView<'a> {
    #[inline]
    pub fn view(self) -> &'a View {
        self.0
    }
}

impl SplitView<'_> {
    fn slot(&self, index: u16) -> u64 {
        u64::from(index & self.0.last)
    }

    fn size(&self) -> u64 {
        self.0.size().into()
    }

    /// `flags` of the available ring.
    #[inline]
    pub fn avail_flags(&self) -> Result<u16, Gone> {
        // SAFETY: every driver area has a header.
        unsafe { self.0.driver.load(&self.0.pin, 0) }
    }

    /// `idx` of the available ring.
    #[inline]
    pub fn avail_idx(&self) -> Result<u16, Gone> {
        // SAFETY: as above.
        unsafe { self.0.driver.load(&self.0.pin, IDX) }
    }

    /// The entry `index` of the available ring: a head.
    #[inline]
    pub fn avail_entry(&self, index: u16) -> Result<u16, Gone> {
        // SAFETY: the slot is below the size.
        unsafe {
            self.0
                .driver
                .load(&self.0.pin, RING_HEADER + AVAIL_ENTRY * self.slot(index))
        }
    }

    /// `used_event`, after the entries of the available ring.
    #[inline]
    pub fn used_event(&self) -> Result<u16, Gone> {
        // SAFETY: every driver area has a tail.
        unsafe { self.0.driver.load(&self.0.pin, RING_HEADER + AVAIL_ENTRY * self.size()) }
    }

    #[inline]
    pub fn set_used_flags(&self, flags: u16) -> Result<(), Gone> {
        // SAFETY: every device area has a header.
        unsafe { self.0.device.store(&self.0.pin, 0, flags) }
    }

    #[inline]
    pub fn set_used_idx(&self, idx: u16) -> Result<(), Gone> {
        // SAFETY: as above.
        unsafe { self.0.device.store(&self.0.pin, IDX, idx) }
    }

    /// `avail_event`, after the entries of the used ring.
    #[inline]
    pub fn set_avail_event(&self, idx: u16) -> Result<(), Gone> {
        // SAFETY: every device area has a tail.
        unsafe {
            self.0
                .device
                .store(&self.0.pin, RING_HEADER + USED_ENTRY * self.size(), idx)
        }
    }

    /// Writes the entry `index` of the used ring (section 2.7.8).
    #[inline]
    pub fn set_used_entry(&self, index: u16, id: u32, len: u32) -> Result<(), Gone> {
        let offset = RING_HEADER + USED_ENTRY * self.slot(index);
        let address = self.0.device.address + offset;
        let Some(host) = self.0.device.host else {
            let mut entry = [0; USED_ENTRY as usize];
            entry[..4].copy_from_slice(&id.to_le_bytes());
            entry[4..].copy_from_slice(&len.to_le_bytes());
            return self.0.pin.write(address, &entry).map_err(|_| Gone);
        };
        // SAFETY: the slot is below the size, so its eight bytes are in the area, aligned to four as that is.
        let entry = unsafe { host.add(offset as usize) }.cast::<[u32; 2]>();
        // SAFETY: as above, and mapped while `pin` lives.
        unsafe { entry.as_ptr().write_volatile([id.to_le(), len.to_le()]) };
        self.0.pin.mark_dirty(address, USED_ENTRY);
        Ok(())
    }
}

/// The index of a descriptor that the ring has.
#[derive(Clone, Copy)]
pub(super) struct Head(u16);

impl Head {
    #[inline]
    pub fn index(self) -> u16 {
        self.0
    }
}

/// A [`SplitView`] all of whose areas have host addresses, which are at hand.
#[derive(Clone, Copy)]
pub(super) struct FlatRing<'a> {
    flat: Flat,
    /// Keeps it mapped.
    pin: PhantomData<&'a Pin>,
}

impl<'a> FlatRing<'a> {
    /// `flat` is of a split ring.
    #[inline]
    pub fn new(flat: Flat) -> Self {
        let pin = PhantomData;
        Self { flat, pin }
    }

    /// A descriptor of the ring, if it has one of this index.
    #[inline]
    pub fn head(&self, index: u16) -> Option<Head> {
        (u32::from(index) <= self.flat.mask).then_some(Head(index))
    }

    /// The first descriptor of a chain, read once.
    #[inline]
    pub fn first(&self, Head(index): Head) -> Descriptor {
        // SAFETY: the index is one of the ring's, which was made with this view's mask: a queue's size stays.
        unsafe { self.descriptors().read_at(index) }
    }

    #[inline]
    fn slot(&self, index: u16) -> u64 {
        (u32::from(index) & self.flat.mask).into()
    }

    #[inline]
    fn driver(&self, offset: usize) -> u16 {
        // SAFETY: the callers below name bytes of the area, at even offsets of an aligned address, mapped while the view's pin lives.
        unsafe { load_word(self.flat.driver.add(offset)) }
    }

    /// As [`SplitView::avail_idx`].
    #[inline]
    pub fn avail_idx(&self) -> u16 {
        self.driver(IDX as usize)
    }

    /// As [`SplitView::avail_entry`].
    #[inline]
    pub fn avail_entry(&self, index: u16) -> u16 {
        self.driver((RING_HEADER + AVAIL_ENTRY * self.slot(index)) as usize)
    }

    /// As [`SplitView::avail_flags`].
    #[inline]
    pub fn avail_flags(&self) -> u16 {
        self.driver(0)
    }

    /// As [`SplitView::used_event`].
    #[inline]
    pub fn used_event(&self) -> u16 {
        self.driver((RING_HEADER + AVAIL_ENTRY * (u64::from(self.flat.mask) + 1)) as usize)
    }

    /// As [`SplitView::set_used_entry`], but for the mark.
    #[inline]
    pub fn set_used_entry(&self, index: u16, id: u32, len: u32) {
        let offset = RING_HEADER + USED_ENTRY * self.slot(index);
        // SAFETY: the slot is below the size, so its eight bytes are in the area, aligned to four as that is.
        let entry = unsafe { self.flat.device.add(offset as usize) }.cast::<u32>();
        // SAFETY: as above, and mapped while the view's pin lives.
        unsafe {
            entry.write_volatile(id.to_le());
            entry.add(1).write_volatile(len.to_le());
        }
    }

    /// As [`set_used_entry`](Self::set_used_entry), unless it says so already: its cache line, which nobody else writes, stays where the
    /// driver can read it too.
    #[inline]
    pub fn renew_used_entry(&self, index: u16, id: u32, len: u32) {
        let offset = RING_HEADER + USED_ENTRY * self.slot(index);
        // SAFETY: as in `set_used_entry`.
        let entry = unsafe { self.flat.device.add(offset as usize) }.cast::<u32>();
        // SAFETY: as in `set_used_entry`.
        let before = unsafe { [entry.read_volatile(), entry.add(1).read_volatile()] };
        if before != [id.to_le(), len.to_le()] {
            self.set_used_entry(index, id, len);
        }
    }

    /// As [`SplitView::set_used_idx`], but for the mark; and a full fence after it.
    #[inline]
    pub fn set_used_idx_and_fence(&self, idx: u16) {
        // SAFETY: in the header of the area, aligned, mapped while the view's pin lives.
        let place = unsafe { self.flat.device.add(IDX as usize) };
        if cfg!(all(target_arch = "x86_64", not(loom))) {
            // SAFETY: as above.
            let place = unsafe { AtomicU16::from_ptr(place.as_ptr().cast()) };
            // An exchange is a full fence there (Intel SDM, volume 3, section 8.2.3.9), and costs half of `mfence`.
            place.swap(idx.to_le(), Ordering::SeqCst);
        } else {
            // SAFETY: as above.
            unsafe { store_word(place, idx) };
            fence(Ordering::SeqCst);
        }
    }

    /// As [`SplitView::set_avail_event`], but for the mark.
    #[inline]
    pub fn set_avail_event(&self, idx: u16) {
        let offset = RING_HEADER + USED_ENTRY * (u64::from(self.flat.mask) + 1);
        // SAFETY: the tail of the area, aligned, mapped while the view's pin lives.
        unsafe { store_word(self.flat.device.add(offset as usize), idx) };
    }

    /// The ring's own descriptor table.
    #[inline]
    pub fn descriptors(&self) -> FlatTable<'a> {
        // SAFETY: the descriptors of the ring, mapped while the view's pin lives.
        unsafe { FlatTable::new(self.flat.descriptors, self.flat.mask) }
    }
}
