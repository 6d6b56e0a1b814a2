//! The three areas of a ring, and descriptor tables, where they lie in guest memory.

use std::{marker::PhantomData, ptr::NonNull, sync::atomic::AtomicU16};

use vm_memory::Permissions;

use super::{
    Gone, QueueError, QueueLayout,
    packed::{FlatPacked, Spot},
};
use crate::{
    memory::{Outside, Pin, Segment, Stretch, Viewed},
    sync::{Ordering, fence},
};

/// Bytes of flags and index before the entries of either ring.
const RING_HEADER: u64 = 4;
/// Bytes of the event index after the entries of either ring.
const RING_TAIL: u64 = 2;
const IDX: u64 = 2;
pub(super) const DESCRIPTOR: u64 = 16;
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;
/// Bytes of either event suppression structure of a packed ring (section 2.8.14).
const EVENT: u64 = 4;
/// The most descriptors that a packed ring has (section 2.8).
const MAX_PACKED: u16 = 1 << 15;

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
    fn find(pin: &Pin, segment: &mut Segment, align: usize, access: Permissions) -> Result<Self, Outside> {
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
unsafe fn load_word(place: NonNull<u8>) -> u16 {
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
unsafe fn store_word(place: NonNull<u8>, value: u16) {
    #[cfg(loom)]
    if let Some(word) = crate::sync::seen::word(place.as_ptr().cast()) {
        word.store(value, Ordering::Release);
    }
    // SAFETY: as the caller says.
    let word = unsafe { AtomicU16::from_ptr(place.as_ptr().cast()) };
    word.store(value.to_le(), Ordering::Release);
}

/// The areas by their host addresses, as most of them have: the short way for what is done for each chain. Everything that can be
/// wrong is left to the long way.
#[derive(Clone, Copy)]
pub(super) struct Flat {
    pub(super) descriptors: NonNull<[u64; 2]>,
    pub(super) driver: NonNull<u8>,
    device: NonNull<u8>,
    /// The size less one: sizes of split rings are powers of two.
    pub(super) mask: u32,
}

/// A [`View`] by the format of its ring.
#[derive(Clone, Copy)]
pub(super) enum Format<S, P> {
    Split(S),
    Packed(P),
}

/// By what chains are found the short way: the format of their ring, or that their buffers are translated. Such may be wherever
/// they were found before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Short {
    Split,
    Packed,
    Translated,
}

/// The areas of a ring in one map of guest memory.
#[derive(Clone)]
pub(super) struct View {
    pub(super) descriptors: Area,
    pub(super) driver: Area,
    pub(super) device: Area,
    /// The size less one.
    last: u16,
    packed: bool,
    /// Which short way chains have.
    pub short: Short,
    /// Of a split ring, and of a packed one.
    flat: Option<Flat>,
    flat_packed: Option<Flat>,
    /// Keeps the areas mapped. Last: it goes last.
    pub pin: Viewed,
}

// SAFETY: the areas lead to guest memory that `pin` keeps alive, and are accessed by volatile copies and atomics alone.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

/// The three areas of a ring: where each is, how long, and how the device accesses it.
pub(crate) fn areas(layout: &QueueLayout, packed: bool) -> [(u64, u64, Permissions); 3] {
    let n = u64::from(layout.size);
    let avail = RING_HEADER + AVAIL_ENTRY * n + RING_TAIL;
    let used = RING_HEADER + USED_ENTRY * n + RING_TAIL;
    let (access, avail, used) = match packed {
        false => (Permissions::Read, avail, used),
        // Used descriptors are written there too.
        true => (Permissions::ReadWrite, EVENT, EVENT),
    };
    [
        (layout.descriptor_area, DESCRIPTOR * n, access),
        (layout.driver_area, avail, Permissions::Read),
        (layout.device_area, used, Permissions::Write),
    ]
}

impl View {
    /// Checks a layout as section 2.7 or, for a packed ring, section 2.8.10.1 asks for it, sizes, alignment, and all three areas in
    /// guest memory; and finds them.
    pub fn new(pin: Pin, layout: &QueueLayout, max: u16, packed: bool) -> Result<Self, QueueError> {
        let &QueueLayout {
            size,
            descriptor_area,
            driver_area,
            device_area,
        } = layout;
        if !is_size(size, max, packed) {
            return Err(QueueError::Size { size, max, packed });
        }
        // Before anything is found.
        let pin = pin.view();
        let find = |area, address: u64, align: u64, (len, access): (u64, Permissions)| {
            if !address.is_multiple_of(align) {
                return Err(QueueError::Alignment { area, address, align });
            }
            // At most 16 * 32768.
            let mut segment = Segment::new(address, len as u32);
            Ok(Area::find(&pin, &mut segment, align as usize, access)?)
        };
        let driver_align = if packed { 4 } else { 2 };
        let [descriptors, driver, device] = areas(layout, packed).map(|(_, len, access)| (len, access));
        let descriptors = find("descriptor", descriptor_area, 16, descriptors)?;
        let driver = find("driver", driver_area, driver_align, driver)?;
        let device = find("device", device_area, 4, device)?;
        let last = size - 1;
        let flat = match (descriptors.host, driver.host, device.host) {
            (Some(descriptors), Some(driver), Some(device)) => Some(Flat {
                descriptors: descriptors.cast(),
                driver,
                device,
                mask: last.into(),
            }),
            _ => None,
        };
        Ok(Self {
            descriptors,
            driver,
            device,
            last,
            packed,
            short: match (packed, pin.is_translated()) {
                (_, true) => Short::Translated,
                (false, false) => Short::Split,
                (true, false) => Short::Packed,
            },
            flat: flat.filter(|_| !packed),
            flat_packed: flat.filter(|_| packed),
            pin,
        })
    }

    /// The ring, by its format.
    #[inline]
    pub fn ring(&self) -> Format<SplitView<'_>, PackedView<'_>> {
        match self.packed {
            false => Format::Split(SplitView(self)),
            true => Format::Packed(PackedView(self)),
        }
    }

    /// The number of descriptors.
    #[inline]
    pub fn size(&self) -> u32 {
        u32::from(self.last) + 1
    }

    /// Marks a split ring's used index, and its used entries from `from` to before `to`.
    #[cold]
    pub fn mark_used(&self, from: u16, to: u16) {
        let (size, first) = (u64::from(self.size()), u64::from(from & self.last));
        let count = u64::from(to.wrapping_sub(from));
        self.pin.mark_dirty(self.device.address, RING_HEADER);
        let until_end = count.min(size - first);
        for (slot, count) in [(first, until_end), (0, count - until_end)] {
            let address = self.device.address + RING_HEADER + USED_ENTRY * slot;
            self.pin.mark_dirty(address, USED_ENTRY * count);
        }
    }

    /// Marks `count` descriptors of a packed ring before `next`.
    #[cold]
    pub fn mark_packed(&self, next: Spot, count: u32) {
        let (size, end) = (u64::from(self.size()), u64::from(next.slot));
        let count = u64::from(count).min(size);
        let before = count.min(end);
        for (slot, count) in [(end - before, before), (size - (count - before), count - before)] {
            let address = self.descriptors.address + DESCRIPTOR * slot;
            self.pin.mark_dirty(address, DESCRIPTOR * count);
        }
    }

    /// The ring's own descriptors.
    #[inline]
    pub fn descriptors(&self) -> Table<'_> {
        Table {
            area: self.descriptors,
            len: self.size(),
            pin: &self.pin,
        }
    }

    /// An indirect table. `segment` is a positive multiple of a descriptor long.
    #[inline]
    pub fn table(&self, segment: &mut Segment) -> Result<Table<'_>, Outside> {
        let area = Area::find(&self.pin, segment, align_of::<[u64; 2]>(), Permissions::Read)?;
        Ok(Table {
            area,
            len: segment.len / DESCRIPTOR as u32,
            pin: &self.pin,
        })
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
        Some(FlatRing {
            flat: self.flat?,
            pin: PhantomData,
        })
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

/// A [`View`] of a split ring. Entries are named by free-running indices, so that none is beyond its area.
#[derive(Clone, Copy)]
pub(super) struct SplitView<'a>(&'a View);

/// A [`View`] of a packed ring.
#[derive(Clone, Copy)]
pub(super) struct PackedView<'a>(pub(super) &'a View);

impl<'a> PackedView<'a> {
    #[inline]
    pub fn view(self) -> &'a View {
        self.0
    }
}

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
        FlatTable {
            host: self.flat.descriptors,
            last: self.flat.mask,
            pin: PhantomData,
        }
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
        (possible && aligned).then(|| FlatTable {
            host: host.cast(),
            last: len / DESCRIPTOR as u32 - 1,
            pin: PhantomData,
        })
    }
}

/// A table of descriptors.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    area: Area,
    len: u32,
    pin: &'a Pin,
}

impl<'a> Table<'a> {
    /// The table by its host address, if it has one.
    #[inline]
    pub fn flat(&self) -> Option<FlatTable<'a>> {
        Some(FlatTable {
            host: self.area.host?.cast(),
            last: self.len - 1,
            pin: PhantomData,
        })
    }

    /// How many descriptors there are.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The descriptor `index`, read once; `None` if it is beyond the table.
    #[inline]
    pub fn read(&self, index: u16) -> Result<Option<Descriptor>, Outside> {
        if u32::from(index) >= self.len {
            return Ok(None);
        }
        if let Some(flat) = self.flat() {
            return Ok(flat.read(index));
        }
        let mut bytes = [0; DESCRIPTOR as usize];
        self.pin
            .read(self.area.address + DESCRIPTOR * u64::from(index), &mut bytes)?;
        let (low, high) = bytes.split_at(8);
        Ok(Some(Descriptor::new([low, high].map(crate::bus::read_le))))
    }
}

/// A table of descriptors at a host address.
#[derive(Clone, Copy)]
pub(super) struct FlatTable<'a> {
    host: NonNull<[u64; 2]>,
    /// Its last index.
    pub last: u32,
    /// Keeps it mapped.
    pin: PhantomData<&'a Pin>,
}

impl FlatTable<'_> {
    /// The descriptor `index`, read once; `None` if it is beyond the table.
    #[inline]
    pub fn read(&self, index: u16) -> Option<Descriptor> {
        // SAFETY: the index is one of the table.
        (u32::from(index) <= self.last).then(|| unsafe { self.read_at(index) })
    }

    /// # Safety
    /// The table has a descriptor of this index.
    #[inline]
    pub unsafe fn read_at(&self, index: u16) -> Descriptor {
        // SAFETY: in the table, as the caller says.
        let words = unsafe { self.host.add(index.into()) }.cast::<u64>();
        // SAFETY: as above, aligned as the table is, and mapped while the pin lives.
        let words = unsafe { [words.read_volatile(), words.add(1).read_volatile()] };
        Descriptor::new(words.map(u64::from_le))
    }
}

/// A descriptor (sections 2.7.5 and 2.8.13), as it was read.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub address: u64,
    /// From the lowest bit on: the length, the flags and the next index; of a packed ring the length, the buffer ID and the flags.
    rest: u64,
}

impl Descriptor {
    #[inline]
    pub fn new([address, rest]: [u64; 2]) -> Self {
        Self { address, rest }
    }

    /// As [`new`](Self::new) has them.
    pub fn words(&self) -> [u64; 2] {
        [self.address, self.rest]
    }

    #[inline]
    pub fn len(&self) -> u32 {
        self.rest as u32
    }

    #[inline]
    pub fn flags(&self) -> u16 {
        (self.rest >> 32) as u16
    }

    #[inline]
    pub fn next(&self) -> u16 {
        (self.rest >> 48) as u16
    }

    /// Of a packed ring.
    #[inline]
    pub fn id(&self) -> u16 {
        (self.rest >> 32) as u16
    }

    /// Of a packed ring.
    #[inline]
    pub fn packed_flags(&self) -> u16 {
        (self.rest >> 48) as u16
    }
}

/// Whether a ring can have so many descriptors.
pub(crate) fn is_size(size: u16, max: u16, packed: bool) -> bool {
    let possible = match packed {
        false => size.is_power_of_two(),
        true => (1..=MAX_PACKED).contains(&size),
    };
    possible && size <= max
}
