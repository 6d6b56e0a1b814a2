//! Where files are, as far as their memory hangs on it.

use std::{fs::File, io, mem, os::fd::AsRawFd};

/// What a file is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// tmpfs, which `memfd_create` has too: its data is in memory, and nowhere else.
    Tmpfs,
    /// hugetlbfs, with pages of so many bytes: a part of one is not mapped.
    Hugetlbfs(u64),
    /// Any other.
    Other,
}

impl FileSystem {
    pub fn of(file: &File) -> io::Result<Self> {
        // SAFETY: all of it is numbers, for which zero is a value.
        let mut answer: libc::statfs = unsafe { mem::zeroed() };
        // SAFETY: the file is open, and `answer` is what the kernel fills.
        if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut answer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Numbers of 32 bits, in types that differ in their length and sign.
        #[allow(clippy::unnecessary_cast, reason = "on one architecture or another")]
        let (kind, block) = (answer.f_type as u32, answer.f_bsize as u64);
        let found = match kind {
            _ if kind == libc::TMPFS_MAGIC as u32 => Self::Tmpfs,
            _ if kind == libc::HUGETLBFS_MAGIC as u32 => Self::Hugetlbfs(block),
            _ => Self::Other,
        };
        Ok(found)
    }
}
