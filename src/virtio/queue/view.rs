//! The three areas of a ring, where they lie in guest memory (virtio 1.2, sections 2.7 and 2.8).

use std::ptr::NonNull;

use vm_memory::Permissions;

use super::{
    QueueError, QueueLayout,
    area::Area,
    spot::Spot,
    table::{DESCRIPTOR, Table},
};
use crate::memory::{Outside, Pin, Segment, Viewed};

/// Bytes of flags and index before the entries of either ring.
pub(super) const RING_HEADER: u64 = 4;
/// Bytes of the event index after the entries of either ring.
const RING_TAIL: u64 = 2;
pub(super) const IDX: u64 = 2;
pub(super) const AVAIL_ENTRY: u64 = 2;
pub(super) const USED_ENTRY: u64 = 8;
/// Bytes of either event suppression structure of a packed ring (section 2.8.14).
const EVENT: u64 = 4;
/// The most descriptors that a packed ring has (section 2.8).
const MAX_PACKED: u16 = 1 << 15;

/// The areas by their host addresses, as most of them have: the short way for what is done for each chain. Everything that can be
/// wrong is left to the long way.
#[derive(Clone, Copy)]
pub(super) struct Flat {
    pub(super) descriptors: NonNull<[u64; 2]>,
    pub(super) driver: NonNull<u8>,
    pub(super) device: NonNull<u8>,
    /// The size less one: sizes of split rings are powers of two.
    pub(super) mask: u32,
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
    pub(super) last: u16,
    pub(super) packed: bool,
    /// Which short way chains have.
    pub short: Short,
    /// Of a split ring, and of a packed one.
    pub(super) flat: Option<Flat>,
    pub(super) flat_packed: Option<Flat>,
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
        // SAFETY: so many are in the area, as it was found.
        unsafe { Table::new(self.descriptors, self.size(), &self.pin) }
    }

    /// An indirect table. `segment` is a positive multiple of a descriptor long.
    #[inline]
    pub fn table(&self, segment: &mut Segment) -> Result<Table<'_>, Outside> {
        let area = Area::find(&self.pin, segment, align_of::<[u64; 2]>(), Permissions::Read)?;
        // SAFETY: so many are in the segment.
        Ok(unsafe { Table::new(area, segment.len / DESCRIPTOR as u32, &self.pin) })
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
