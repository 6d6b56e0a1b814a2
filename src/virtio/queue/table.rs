//! Descriptors (virtio 1.2, sections 2.7.5 and 2.8.13) and tables of them, where they lie in guest memory.

use std::{marker::PhantomData, ptr::NonNull};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::area::Area;
use crate::memory::{Outside, Pin};

/// Flags of a descriptor.
pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(super) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u64 = 16;

/// A table of descriptors.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    area: Area,
    len: u32,
    pin: &'a Pin,
}

impl<'a> Table<'a> {
    /// # Safety
    /// `area` was found with `pin`, aligned for descriptors, and has `len` of them, which is some.
    #[inline]
    pub unsafe fn new(area: Area, len: u32, pin: &'a Pin) -> Self {
        Self { area, len, pin }
    }

    /// The table by its host address, if it has one.
    #[inline]
    pub fn flat(&self) -> Option<FlatTable<'a>> {
        let host = self.area.host?.cast();
        // SAFETY: the table is in the area, which is mapped while the pin lives, and aligned.
        Some(unsafe { FlatTable::new(host, self.len - 1) })
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
    /// # Safety
    /// At `host`, as aligned as it says, are descriptors up to the index `last`, which stay mapped for as long as this is there.
    #[inline]
    pub unsafe fn new(host: NonNull<[u64; 2]>, last: u32) -> Self {
        let pin = PhantomData;
        Self { host, last, pin }
    }

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
    #[cfg_attr(
        not(all(target_os = "linux", feature = "vhost-user")),
        allow(dead_code, reason = "a transport's")
    )]
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
