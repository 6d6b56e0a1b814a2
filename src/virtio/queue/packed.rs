//! A packed ring (virtio 1.2, section 2.8): its places, its loads and stores, and what comes next in it.

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use super::{
    Gone,
    area::{Descriptor, Flat, PackedView},
    split::Look,
};

/// Flags of a descriptor (sections 2.8.1, 2.8.3, 2.8.6 and 2.8.7). The bindings have the first two by their numbers alone.
const AVAIL: u16 = 1 << virtio_bindings::virtio_ring::VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << virtio_bindings::virtio_ring::VRING_PACKED_DESC_F_USED;
const WRITE: u16 = virtio_bindings::virtio_ring::VRING_DESC_F_WRITE as u16;

/// Offset of the second half of a descriptor: length, ID and flags.
const REST: u64 = 8;
const FLAGS: u64 = 14;
const DESCRIPTOR: u64 = 16;

/// In an event suppression structure (section 2.8.14): offset and wrap counter, then flags.
const EVENT_DESC: u64 = 0;
const EVENT_FLAGS: u64 = 2;
/// Values of the flags (section 2.8.10).
const ENABLE: u16 = virtio_bindings::virtio_ring::VRING_PACKED_EVENT_FLAG_ENABLE as u16;
const DISABLE: u16 = virtio_bindings::virtio_ring::VRING_PACKED_EVENT_FLAG_DISABLE as u16;
const DESC: u16 = virtio_bindings::virtio_ring::VRING_PACKED_EVENT_FLAG_DESC as u16;

/// A wrap counter beside an offset.
const WRAP: u16 = 1 << virtio_bindings::virtio_ring::VRING_PACKED_EVENT_F_WRAP_CTR;

/// A place in a packed ring: a slot, below the size, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub slot: u16,
    pub wrap: bool,
}

impl Spot {
    /// Where both sides begin.
    pub const FIRST: Self = Self { slot: 0, wrap: true };

    /// As it is saved and as event structures have it: the offset, and the wrap counter in bit 15.
    pub fn new(raw: u16) -> Self {
        Self {
            slot: raw & !WRAP,
            wrap: raw & WRAP != 0,
        }
    }

    pub fn raw(self) -> u16 {
        self.slot | if self.wrap { WRAP } else { 0 }
    }

    /// So many descriptors further on, at most as many as there are.
    #[inline(always)]
    pub fn after(self, descriptors: u16, size: u16) -> Self {
        let slot = u32::from(self.slot) + u32::from(descriptors);
        match slot.checked_sub(size.into()) {
            Some(slot) => Self {
                slot: slot as u16,
                wrap: !self.wrap,
            },
            None => Self {
                slot: slot as u16,
                wrap: self.wrap,
            },
        }
    }

    /// How many descriptors `later` is ahead, less than twice as many as there are.
    pub fn distance(self, later: Self, size: u16) -> u32 {
        let lap = |spot: Self| u32::from(spot.slot) + if spot.wrap == self.wrap { 0 } else { size.into() };
        let (from, to) = (lap(self), lap(later));
        match to.checked_sub(from) {
            Some(ahead) => ahead,
            None => to + 2 * u32::from(size) - from,
        }
    }

    /// Whether a descriptor with these flags is available here.
    #[inline(always)]
    pub fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == if self.wrap { AVAIL } else { USED }
    }

    /// The second half of a used descriptor that is written here (section 2.8.4).
    #[inline(always)]
    pub fn used(self, id: u16, written: u32) -> u64 {
        let marks = if self.wrap { AVAIL | USED } else { 0 };
        let flags = marks | if written != 0 { WRITE } else { 0 };
        u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48
    }
}

/// Whether the driver wants to hear that `used` descriptors up to before `next` were used, by its event suppression structure.
#[inline(always)]
pub(super) fn wants(event: u32, event_idx: bool, used: u32, next: Spot, size: u32) -> bool {
    let (at, flags) = (event as u16, (event >> 16) as u16 & 3);
    if flags == DESC && event_idx {
        let at = Spot::new(at);
        let lap = if at.wrap == next.wrap { 0 } else { size };
        let behind = (u32::from(next.slot) + lap).wrapping_sub(at.slot.into());
        return behind.wrapping_sub(1) < used;
    }
    // What is reserved is heard.
    flags != DISABLE
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
    fn set_device_event(&self, at: Option<Spot>, flags: u16) -> Result<(), Gone> {
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
    pin: std::marker::PhantomData<&'a crate::memory::Pin>,
}

impl FlatPacked<'_> {
    /// `flat` is of a packed ring.
    pub fn new(flat: Flat) -> Self {
        let pin = std::marker::PhantomData;
        Self { flat, pin }
    }

    #[inline(always)]
    fn at(&self, slot: u16) -> Option<NonNull<[u64; 2]>> {
        // SAFETY: a descriptor of the ring.
        (u32::from(slot) <= self.flat.mask).then(|| unsafe { self.flat.descriptors.add(slot.into()) })
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

/// The device's place among the available descriptors.
pub(super) struct PackedAvailable {
    pub size: u16,
    event_idx: bool,
    /// The next descriptor to take.
    pub next: Spot,
    /// The driver has been told about kicks what it is to know while there is something to take.
    told: bool,
    /// It was told so in this round.
    fresh: bool,
    /// Kicks are wanted at all times: there is nobody who looks without one.
    pub kicks_stay: bool,
}

impl PackedAvailable {
    pub fn new(size: u16, event_idx: bool, next: Spot) -> Self {
        Self {
            size,
            event_idx,
            next,
            told: false,
            fresh: false,
            kicks_stay: false,
        }
    }

    /// The short way of [`look`](Self::look): the first descriptor of the next chain, if nothing is to be done but to find it.
    #[inline(always)]
    pub fn look_near(&self, ring: &FlatPacked<'_>) -> Option<Descriptor> {
        let first = ring.read(self.next.slot)?;
        (self.next.is_available(first.packed_flags()) && self.told).then_some(first)
    }

    /// The first descriptor of the next chain, which is not taken by this.
    #[cold]
    pub fn look(&mut self, view: PackedView<'_>) -> Result<Look<Descriptor>, Gone> {
        let Some(first) = view.descriptor(self.next.slot, Some(self.next))? else {
            return Ok(Look::Nothing);
        };
        if !self.told {
            let flags = if self.kicks_stay { ENABLE } else { DISABLE };
            view.set_device_event(None, flags)?;
            (self.told, self.fresh) = (true, true);
        }
        Ok(Look::Head(first))
    }

    /// The chain of so many descriptors at which [`look`](Self::look) looked is taken.
    #[inline(always)]
    pub fn advance(&mut self, descriptors: u16) {
        self.next = self.next.after(descriptors, self.size);
    }

    /// Asks the driver to kick for the next chain, and looks whether one has come before it could know.
    pub fn expect_kicks(&mut self, view: PackedView<'_>) -> Result<bool, Gone> {
        (self.told, self.fresh) = (false, false);
        if self.event_idx && !self.kicks_stay {
            view.set_device_event(Some(self.next), DESC)?;
        } else {
            view.set_device_event(None, ENABLE)?;
        }
        // Pairs with the driver's barrier between its flags and its look at ours.
        fence(Ordering::SeqCst);
        Ok(view.descriptor(self.next.slot, Some(self.next))?.is_some())
    }

    /// As [`expect_kicks`](Self::expect_kicks), for what comes after chains that are left where they are, by who is kicked for every
    /// one: only what came before the driver knew is still to be looked for.
    pub fn expect_kicks_for_more(&mut self, view: PackedView<'_>) -> Result<bool, Gone> {
        let fresh = std::mem::take(&mut self.fresh);
        if !self.told {
            return self.expect_kicks(view);
        }
        fence(Ordering::SeqCst);
        Ok(fresh)
    }
}
