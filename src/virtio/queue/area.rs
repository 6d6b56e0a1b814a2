//! The three areas of a ring, and descriptor tables, where they lie in guest memory.

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use vm_memory::Permissions;

use super::{QueueError, QueueLayout};
use crate::memory::{Outside, Pin, Segment};

/// Bytes of flags and index before the entries of either ring.
pub(super) const RING_HEADER: u64 = 4;
/// Bytes of the event index after the entries of either ring.
const RING_TAIL: u64 = 2;
pub(super) const DESCRIPTOR: u64 = 16;
pub(super) const AVAIL_ENTRY: u64 = 2;
pub(super) const USED_ENTRY: u64 = 8;

/// A piece of guest memory that was looked up, for as long as its pin lives. Without a host address it is reached through the
/// pin, translated each time.
#[derive(Clone, Copy)]
struct Area {
    address: u64,
    len: u64,
    host: Option<NonNull<u8>>,
}

impl Area {
    /// `align` is what a host pointer needs so that it can be used as one.
    fn find(pin: &Pin, segment: &mut Segment, align: usize, access: Permissions) -> Result<Self, Outside> {
        pin.check(segment, access)?;
        let host = pin.host(segment).filter(|host| host.as_ptr().addr().is_multiple_of(align));
        Ok(Self {
            address: segment.address,
            len: segment.len.into(),
            host,
        })
    }

    /// The host address of the `len` bytes at `offset`, or `None` without one.
    #[inline]
    fn host(&self, offset: u64, len: u64) -> Result<Option<NonNull<u8>>, Outside> {
        if offset > self.len || len > self.len - offset {
            return Err(self.outside(offset, len));
        }
        // SAFETY: within the area, which lies in one mapping.
        Ok(self.host.map(|host| unsafe { host.add(offset as usize) }))
    }

    #[cold]
    fn outside(&self, offset: u64, len: u64) -> Outside {
        Outside {
            address: self.address.wrapping_add(offset),
            len,
        }
    }
}

/// The areas of a split ring in one map of guest memory.
#[derive(Clone)]
pub(super) struct View {
    descriptors: Area,
    driver: Area,
    device: Area,
    /// Keeps the areas mapped. Last: it goes last.
    pub pin: Pin,
}

// SAFETY: the areas lead to guest memory that `pin` keeps alive, and are accessed by volatile copies and atomics alone.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

/// Which ring.
#[derive(Clone, Copy)]
pub(super) enum Ring {
    /// The driver area, or available ring.
    Driver,
    /// The device area, or used ring.
    Device,
}

impl View {
    /// Checks a layout as section 2.7 asks for it, sizes, alignment, and all three areas in guest memory; and finds them.
    pub fn new(pin: Pin, layout: &QueueLayout, max: u16) -> Result<Self, QueueError> {
        let &QueueLayout {
            size,
            descriptor_area,
            driver_area,
            device_area,
        } = layout;
        if !size.is_power_of_two() || size > max {
            return Err(QueueError::Size { size, max });
        }
        let n = u64::from(size);
        let find = |area, address: u64, align: u64, len: u64, access| {
            if !address.is_multiple_of(align) {
                return Err(QueueError::Alignment { area, address, align });
            }
            // At most 16 * 32768.
            let mut segment = Segment::new(address, len as u32);
            Ok(Area::find(&pin, &mut segment, align as usize, access)?)
        };
        let descriptors = find("descriptor", descriptor_area, 16, DESCRIPTOR * n, Permissions::Read)?;
        let avail = RING_HEADER + AVAIL_ENTRY * n + RING_TAIL;
        let driver = find("driver", driver_area, 2, avail, Permissions::Read)?;
        let used = RING_HEADER + USED_ENTRY * n + RING_TAIL;
        let device = find("device", device_area, 4, used, Permissions::Write)?;
        Ok(Self {
            descriptors,
            driver,
            device,
            pin,
        })
    }

    #[inline]
    fn area(&self, ring: Ring) -> &Area {
        match ring {
            Ring::Driver => &self.driver,
            Ring::Device => &self.device,
        }
    }

    /// Loads what comes before all later loads.
    #[inline]
    pub fn load(&self, ring: Ring, offset: u64) -> Result<u16, Outside> {
        let area = self.area(ring);
        let value = match area.host(offset, 2)? {
            // SAFETY: two bytes of the area, at an even offset of an even address, mapped while `pin` lives. The guest's other
            // accesses to it are at least as atomic.
            Some(host) => unsafe { AtomicU16::from_ptr(host.as_ptr().cast()) }.load(Ordering::Acquire),
            None => self.pin.backing().load(area.address + offset)?,
        };
        Ok(u16::from_le(value))
    }

    /// Stores after all earlier stores.
    #[inline]
    pub fn store(&self, ring: Ring, offset: u64, value: u16) -> Result<(), Outside> {
        let area = self.area(ring);
        match area.host(offset, 2)? {
            Some(host) => {
                // SAFETY: as in `load`.
                unsafe { AtomicU16::from_ptr(host.as_ptr().cast()) }.store(value.to_le(), Ordering::Release);
                self.pin.mark_dirty(area.address + offset, 2);
                Ok(())
            }
            None => self.pin.backing().store(area.address + offset, value.to_le()),
        }
    }

    /// Writes the used element at `offset` of the device area (section 2.7.8).
    #[inline]
    pub fn store_used(&self, offset: u64, id: u32, len: u32) -> Result<(), Outside> {
        let area = &self.device;
        match area.host(offset, USED_ENTRY)? {
            Some(host) => {
                let element = host.cast::<[u32; 2]>();
                // SAFETY: eight bytes of the area, aligned to four as it is, mapped while `pin` lives.
                unsafe { element.as_ptr().write_volatile([id.to_le(), len.to_le()]) };
                self.pin.mark_dirty(area.address + offset, USED_ENTRY);
                Ok(())
            }
            None => {
                let mut element = [0; USED_ENTRY as usize];
                element[..4].copy_from_slice(&id.to_le_bytes());
                element[4..].copy_from_slice(&len.to_le_bytes());
                self.pin.write(area.address + offset, &element)
            }
        }
    }

    /// The ring's own descriptor table.
    #[inline]
    pub fn descriptors(&self) -> Table<'_> {
        Table {
            area: self.descriptors,
            pin: &self.pin,
        }
    }

    /// An indirect table.
    #[inline]
    pub fn table(&self, segment: &mut Segment) -> Result<Table<'_>, Outside> {
        let area = Area::find(&self.pin, segment, align_of::<[u64; 2]>(), Permissions::Read)?;
        Ok(Table { area, pin: &self.pin })
    }
}

/// A table of descriptors.
pub(super) struct Table<'a> {
    area: Area,
    pin: &'a Pin,
}

impl Table<'_> {
    /// How many descriptors there are.
    #[inline]
    pub fn len(&self) -> u32 {
        (self.area.len / DESCRIPTOR) as u32
    }

    /// The descriptor `index`, read once.
    #[inline]
    pub fn read(&self, index: u16) -> Result<Descriptor, Outside> {
        let offset = DESCRIPTOR * u64::from(index);
        let words = match self.area.host(offset, DESCRIPTOR)? {
            Some(host) => {
                let words = host.cast::<[u64; 2]>().as_ptr();
                // SAFETY: 16 bytes of the table, aligned as its beginning was asked to be, mapped while the pin lives.
                unsafe { words.read_volatile() }.map(u64::from_le)
            }
            None => {
                let mut bytes = [0; DESCRIPTOR as usize];
                self.pin.read(self.area.address + offset, &mut bytes)?;
                let (low, high) = bytes.split_at(8);
                [low, high].map(crate::bus::read_le)
            }
        };
        Ok(Descriptor {
            address: words[0],
            len: words[1] as u32,
            flags: (words[1] >> 32) as u16,
            next: (words[1] >> 48) as u16,
        })
    }
}

/// A descriptor (section 2.7.5).
pub(super) struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}
