//! The front end's memory, for a device that gives parts of it back.

use std::{
    fmt, io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    sync::{Arc, Mutex},
};

use super::regions::Regions;
use crate::{
    sync::lock,
    virtio::reclaim::{Discarded, Reclaim},
};

/// The memory of a front end that is to come, for a [balloon](crate::virtio::balloon): it is made first, and then put
/// [behind the socket](super::VhostUserOptions::memory) with this. What is given back becomes a hole in the front end's file, for all that
/// have mapped it.
#[derive(Clone, Default)]
pub struct FrontEndMemory(Arc<Mutex<Regions>>);

impl FrontEndMemory {
    /// Of no front end yet.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn set(&self, regions: &Regions) {
        let before = std::mem::replace(&mut *lock(&self.0), regions.clone());
        drop(before);
    }
}

impl Reclaim for FrontEndMemory {
    fn granularity(&self, address: u64) -> u64 {
        let regions = lock(&self.0).clone();
        let found = regions.overlaps(address, 1).next();
        let size = found.and_then(|(file, ..)| file.metadata().ok()).map(|metadata| metadata.blksize());
        size.filter(|size| size.is_power_of_two()).unwrap_or(4096).max(4096)
    }

    fn discard(&self, address: u64, len: u64) -> io::Result<Discarded> {
        // The files stay open, however long the kernel takes.
        let regions = lock(&self.0).clone();
        let mut discarded = Discarded::default();
        let mut found = 0;
        for (file, offset, here) in regions.overlaps(address, len) {
            found += here;
            let page = file.metadata()?.blksize().max(4096);
            let start = offset.next_multiple_of(page);
            let end = (offset + here) / page * page;
            if start >= end {
                continue;
            }
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // Offsets in a file that there is.
            let (at, bytes) = (start as libc::off_t, (end - start) as libc::off_t);
            // SAFETY: a call that takes numbers.
            if unsafe { libc::fallocate(file.as_raw_fd(), mode, at, bytes) } != 0 {
                return Err(io::Error::last_os_error());
            }
            discarded.bytes += end - start;
        }
        discarded.outside = len - found.min(len);
        Ok(discarded)
    }
}

impl fmt::Debug for FrontEndMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontEndMemory").finish_non_exhaustive()
    }
}
