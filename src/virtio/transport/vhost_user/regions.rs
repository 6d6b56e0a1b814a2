//! The front end's memory: regions of files, mapped.

use std::{fs::File, os::fd::OwnedFd, sync::Arc};

use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, bitmap::Bitmap, mmap::MmapRegionBuilder,
};

use super::{
    log::{Log, RegionLog},
    shared::{page_of, size_of_file},
};
use crate::{memory::Memory, virtio::vhost_user::Region};

const PAGE: u64 = 4096;

/// Why a region is not taken.
pub(super) type Refused = String;

/// A region and its file.
#[derive(Clone)]
pub(super) struct Mapped {
    pub region: Region,
    file: Arc<File>,
}

impl Mapped {
    /// # Errors
    /// It is empty, not aligned, wraps, or is not in the file.
    pub fn new(region: Region, descriptor: OwnedFd) -> Result<Self, Refused> {
        let Region {
            guest,
            size,
            user,
            offset,
        } = region;
        let file = File::from(descriptor);
        let refused = |what| Err(format!("a region of {size:#x} bytes at {guest:#x}: {what}"));
        let page = page_of(&file).map_err(|error| format!("the file of a region: {error}"))?;
        // Sizes are as front ends have them: what follows in the last page is out of reach; but that of a huge page would be within.
        if size == 0 || !offset.is_multiple_of(page) || page > PAGE && !size.is_multiple_of(page) {
            return refused("it has bytes, and begins with a page of its file, of 4096 bytes, or is all of huge ones");
        }
        if [guest, user, offset]
            .iter()
            .any(|start| start.checked_add(size).is_none())
            || usize::try_from(size).is_err()
        {
            return refused("it ends within 64 bits");
        }
        if size_of_file(&file) < offset + size {
            return refused("it is all of it in a file");
        }
        Ok(Self {
            region,
            file: Arc::new(file),
        })
    }

    fn map<B: Bitmap>(&self, bitmap: B) -> Result<GuestRegionMmap<B>, Refused> {
        let Region {
            guest, size, offset, ..
        } = self.region;
        let builder = MmapRegionBuilder::new_with_bitmap(size as usize, bitmap)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&self.file), offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE);
        let region: MmapRegion<B> = builder
            .build()
            .map_err(|error| format!("a region of {size:#x} bytes cannot be mapped: {error}"))?;
        GuestRegionMmap::new(region, GuestAddress(guest)).ok_or_else(|| "a region wraps".into())
    }
}

/// All regions, and the memory that they are.
#[derive(Clone, Default)]
pub(super) struct Regions(Vec<Mapped>);

impl Regions {
    pub fn new(mut regions: Vec<Mapped>) -> Result<Self, Refused> {
        regions.sort_by_key(|mapped| mapped.region.guest);
        let overlap = |key: fn(&Region) -> u64| {
            let mut ranges: Vec<_> = regions
                .iter()
                .map(|mapped| (key(&mapped.region), mapped.region.size))
                .collect();
            ranges.sort_unstable();
            ranges.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
        };
        if overlap(|region| region.guest) || overlap(|region| region.user) {
            return Err("regions overlap: each address is in one".into());
        }
        Ok(Self(regions))
    }

    /// With one more.
    pub fn with(&self, region: Mapped, max: usize) -> Result<Self, Refused> {
        if self.0.len() >= max {
            return Err(format!("there are {max} regions already, and no more are taken"));
        }
        Self::new(self.0.iter().cloned().chain([region]).collect())
    }

    /// Without one, which has to be there.
    pub fn without(&self, region: Region) -> Result<Self, Refused> {
        let same = |mapped: &Mapped| {
            let Region { guest, size, user, .. } = mapped.region;
            (guest, size, user) == (region.guest, region.size, region.user)
        };
        match self.0.iter().position(same) {
            Some(at) => {
                let mut rest = self.clone();
                rest.0.remove(at);
                Ok(rest)
            }
            None => Err("no such region is there to be removed".into()),
        }
    }

    /// The parts of a guest physical range that are in regions: file, offset and length.
    pub fn overlaps(&self, address: u64, len: u64) -> impl Iterator<Item = (&File, u64, u64)> {
        let end = address.saturating_add(len);
        self.0.iter().filter_map(move |Mapped { region, file }| {
            let start = address.max(region.guest);
            let end = end.min(region.guest + region.size);
            let offset = region.offset + start.checked_sub(region.guest)?;
            (start < end).then(|| (&**file, offset, end - start))
        })
    }

    /// Whether a log has a bit for each page.
    fn is_covered_by(&self, log: &Log) -> bool {
        self.0
            .iter()
            .all(|Mapped { region, .. }| log.covers(region.guest + (region.size - 1)))
    }

    /// The guest address of a user address.
    pub fn translate(&self, user: u64) -> Option<u64> {
        Some(self.around(user)?.0)
    }

    /// The guest address of a user address; and how many bytes before it, and from it on, there are in its region.
    pub fn around(&self, user: u64) -> Option<(u64, u64, u64)> {
        self.0.iter().find_map(|Mapped { region, .. }| {
            let offset = user.checked_sub(region.user)?;
            (offset < region.size).then(|| (region.guest + offset, offset, region.size - offset))
        })
    }

    /// Maps them all.
    pub fn memory(&self, log: Option<&Arc<Log>>) -> Result<Memory, Refused> {
        match log {
            None => memory_of(self.0.iter().map(|mapped| mapped.map(()))),
            Some(log) if !self.is_covered_by(log) => {
                Err("a log that ends before memory does: a bit for each page is needed".into())
            }
            Some(log) => memory_of(self.0.iter().map(|mapped| {
                let log = RegionLog::new(log, mapped.region.guest);
                mapped.map(log)
            })),
        }
    }
}

fn memory_of<B: Bitmap + Send + Sync + 'static>(
    regions: impl Iterator<Item = Result<GuestRegionMmap<B>, Refused>>,
) -> Result<Memory, Refused> {
    let regions = regions.collect::<Result<Vec<_>, _>>()?;
    let memory = match regions.is_empty() {
        true => GuestMemoryMmap::new(),
        false => GuestMemoryMmap::from_regions(regions).map_err(|error| error.to_string())?,
    };
    Ok(Memory::new(Arc::new(memory)))
}
