//! Shared memory regions of a device (virtio 1.2, section 2.10) that a back end has files mapped in: a file system's DAX window.

use std::{io, os::fd::OwnedFd};

use crate::virtio::{
    SharedMemoryRegion,
    vhost_user::{MemoryMap, Message},
};

/// What all mappings are a multiple of.
const PAGE: u64 = 4096;

/// How many mappings there may be at a time.
const MOST: usize = 4096;

/// What of a file is where in a shared memory region. All numbers are of bytes, and of whole pages of 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The region.
    pub id: u8,
    /// Where in the region it begins.
    pub offset: u64,
    /// Its length.
    pub len: u64,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Whether the guest may write there.
    pub writable: bool,
}

/// Who puts files in the guest's address space, for the back end: the embedder, who knows its hypervisor.
///
/// Calls come one at a time, on the thread that looks at the device or of a vCPU that waits for the back end, which waits for them. They
/// do not call the device.
pub trait MapShared: Send {
    /// Maps that much of a file there. Nothing else is mapped there, and all of it is within the region.
    ///
    /// # Errors
    /// It cannot be mapped: the back end is told so.
    fn map(&mut self, mapping: &Mapping, file: OwnedFd) -> io::Result<()>;

    /// What was mapped is not any more. Also when the device is reset, and when the back end is gone. What the guest reads there, until
    /// something else is mapped, is of no meaning.
    ///
    /// # Errors
    /// It is as it was: the back end is told so.
    fn unmap(&mut self, mapping: &Mapping) -> io::Result<()>;
}

/// The regions that a device has, and what is mapped in them.
pub(super) struct Windows {
    regions: Vec<(u8, SharedMemoryRegion)>,
    pub mapper: Option<Box<dyn MapShared>>,
    mapped: Vec<Mapping>,
}

impl Windows {
    pub fn new(regions: &[(u8, SharedMemoryRegion)]) -> Self {
        Self {
            regions: regions.to_vec(),
            mapper: None,
            mapped: Vec::new(),
        }
    }

    pub fn are_there(&self) -> bool {
        !self.regions.is_empty()
    }

    pub fn region(&self, id: u8) -> Option<SharedMemoryRegion> {
        let mut regions = self.regions.iter();
        Some(regions.find(|(other, _)| *other == id)?.1)
    }

    /// Does what a back end asks for with SHMEM_MAP.
    pub fn map(&mut self, message: &mut Message) -> io::Result<()> {
        let file = match (message.descriptors.pop(), message.descriptors.is_empty()) {
            (Some(file), true) => file,
            _ => return Err(refused("one file is accepted")),
        };
        let mapping = self.parse(&message.payload)?;
        if self.mapped.iter().any(|other| overlap(other, &mapping)) {
            return Err(refused("something is mapped there already"));
        }
        if self.mapped.len() >= MOST {
            return Err(refused("as much is mapped as can be"));
        }
        let mapper = self.mapper.as_mut().ok_or_else(|| refused("nobody maps anything"))?;
        mapper.map(&mapping, file)?;
        self.mapped.push(mapping);
        Ok(())
    }

    /// The same with SHMEM_UNMAP: all that was mapped in that range, as wholes.
    pub fn unmap(&mut self, message: &Message) -> io::Result<()> {
        let range = self.parse(&message.payload)?;
        let (inside, rest): (Vec<_>, Vec<_>) = self.mapped.iter().partition(|other| overlap(other, &range));
        let is_within =
            |other: &Mapping| range.offset <= other.offset && other.offset + other.len <= range.offset + range.len;
        if inside.is_empty() || !inside.iter().all(is_within) {
            return Err(refused("what was mapped is unmapped as a whole"));
        }
        self.mapped = rest;
        self.unmap_these(inside)
    }

    /// Nothing is mapped any more. What the embedder does not unmap stays as if it were, so that nothing comes there.
    pub fn clear(&mut self) {
        let all = std::mem::take(&mut self.mapped);
        let _ = self.unmap_these(all);
    }

    fn unmap_these(&mut self, all: Vec<Mapping>) -> io::Result<()> {
        let mut result = Ok(());
        for mapping in all {
            let unmapped = match &mut self.mapper {
                Some(mapper) => mapper.unmap(&mapping),
                None => Ok(()),
            };
            if unmapped.is_err() {
                self.mapped.push(mapping);
                result = unmapped;
            }
        }
        result
    }

    /// A range within a region.
    fn parse(&self, payload: &[u8]) -> io::Result<Mapping> {
        let MemoryMap {
            id,
            file_offset,
            offset,
            len,
            flags,
        } = MemoryMap::from_bytes(payload).ok_or_else(|| refused("a payload that is too short"))?;
        let size = self.region(id).ok_or_else(|| refused("no such region"))?.len;
        let is_whole = |number: u64| number.is_multiple_of(PAGE);
        let is_within = offset.checked_add(len).is_some_and(|end| end <= size) && len != 0;
        let is_in_file = file_offset
            .checked_add(len)
            .is_some_and(|end| i64::try_from(end).is_ok());
        if !(is_within && is_in_file && is_whole(offset) && is_whole(len) && is_whole(file_offset)) {
            return Err(refused("whole pages within the region are accepted"));
        }
        Ok(Mapping {
            id,
            offset,
            len,
            file_offset,
            writable: flags & MemoryMap::WRITABLE != 0,
        })
    }
}

fn overlap(one: &Mapping, other: &Mapping) -> bool {
    one.id == other.id && one.offset < other.offset + other.len && other.offset < one.offset + one.len
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
