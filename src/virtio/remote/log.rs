//! The log of pages that a back end writes: a bit for each of guest memory, in memory that is shared.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use vm_memory::{FileOffset, MmapRegion};

use super::regions::SharedRegion;

/// `VHOST_LOG_PAGE`: a bit of the log is for so many bytes.
pub(super) const PAGE: u64 = 4096;
/// What a log is a multiple of.
const GRAIN: u64 = 4096;

pub(super) struct Log {
    map: MmapRegion<()>,
    file: File,
    len: u64,
}

impl Log {
    /// A log for all of these regions, without a bit set.
    pub fn new(regions: &[SharedRegion]) -> io::Result<Self> {
        let len = Self::needed(regions);
        // SAFETY: the name is a string, and the result is a descriptor that nobody else has, or none.
        let file = unsafe {
            match libc::memfd_create(c"vhost-log".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) {
                ..0 => return Err(io::Error::last_os_error()),
                descriptor => File::from_raw_fd(descriptor),
            }
        };
        file.set_len(len)?;
        // A back end that made it shorter would have us end with SIGBUS.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: the call takes a descriptor and numbers.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let offset = FileOffset::new(file.try_clone()?, 0);
        let map = MmapRegion::from_file(offset, len as usize).map_err(io::Error::other)?;
        Ok(Self { map, file, len })
    }

    fn needed(regions: &[SharedRegion]) -> u64 {
        let ends = regions
            .iter()
            .map(|shared| shared.region.guest.saturating_add(shared.region.size));
        let pages = ends.max().unwrap_or(0).div_ceil(PAGE);
        pages.div_ceil(8).max(1).next_multiple_of(GRAIN)
    }

    /// Whether it has a bit for each page of these.
    pub fn covers(&self, regions: &[SharedRegion]) -> bool {
        Self::needed(regions) <= self.len
    }

    /// In bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(Into::into)
    }

    /// Where it is in the memory of this process.
    pub fn address(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        debug_assert!(8 * at < self.len);
        // SAFETY: within the mapping, which is aligned and lives as long as `self`; all who write there do so atomically.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(8 * at as usize).cast()) }
    }

    /// Clears all bits, and tells the guest addresses of the pages that they were of.
    pub fn take(&self, mut page: impl FnMut(u64)) {
        for at in 0..self.len / 8 {
            let word = self.word(at);
            if word.load(SeqCst) == 0 {
                continue;
            }
            // Bits of bytes: the lowest byte comes first.
            let mut bits = u64::from_le(word.swap(0, SeqCst));
            while bits != 0 {
                page((64 * at + u64::from(bits.trailing_zeros())) * PAGE);
                bits &= bits - 1;
            }
        }
    }

    /// What is in `other` is here too.
    pub fn merge(&self, other: &Self) {
        for at in 0..self.len.min(other.len) / 8 {
            self.word(at).fetch_or(other.word(at).swap(0, SeqCst), SeqCst);
        }
    }
}
