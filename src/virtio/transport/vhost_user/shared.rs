//! What the front end shares beside its memory: a log, a table of requests in flight.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use vm_memory::{FileOffset, MmapRegion};

/// A part of a file, mapped.
#[derive(Debug)]
pub(super) struct Shared {
    map: MmapRegion<()>,
    /// Where it begins in the map.
    offset: usize,
}

impl Shared {
    /// # Errors
    /// It is not in the file, or cannot be mapped.
    pub fn new(descriptor: OwnedFd, offset: u64, len: u64) -> Result<Self, String> {
        let file = File::from(descriptor);
        let end = offset.checked_add(len).filter(|&end| end <= size_of_file(&file));
        let (Some(end), 1..) = (end, len) else {
            return Err(format!("{len:#x} bytes at {offset:#x}: all of them are in a file"));
        };
        let page = page_of(&file)?;
        let before = offset % page;
        let whole = (end - (offset - before)).next_multiple_of(page);
        let whole = usize::try_from(whole).map_err(|error| error.to_string())?;
        let file = FileOffset::new(file, offset - before);
        let map = MmapRegion::build(Some(file), whole, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        Ok(Self {
            map: map.map_err(|error| format!("{len:#x} bytes at {offset:#x} cannot be mapped: {error}"))?,
            offset: before as usize,
        })
    }

    /// Where it begins. It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: it begins in the map.
        unsafe { self.map.as_ptr().add(self.offset) }
    }
}

/// How long a file is. What is none has no length.
pub(super) fn size_of_file(file: &File) -> u64 {
    let metadata = file.metadata().ok().filter(|metadata| metadata.is_file());
    metadata.map_or(0, |metadata| metadata.size())
}

/// What a file is mapped in. Of huge pages the kernel maps no part, whatever length it is told, and unmaps none: a mapping of another
/// length would stay for good.
pub(super) fn page_of(file: &File) -> Result<u64, String> {
    // SAFETY: all zeros are a valid `statfs`.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: there is room for one.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) } != 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    // Numbers of 32 bits, in types that differ in their length and sign.
    Ok(match found.f_type as u32 == libc::HUGETLBFS_MAGIC as u32 {
        true => found.f_bsize as u64,
        false => 4096,
    })
}
