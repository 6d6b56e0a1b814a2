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
        #[allow(
            clippy::unnecessary_cast,
            reason = "their types are other ones on other architectures"
        )]
        let (kind, block) = (answer.f_type as i64, answer.f_bsize as u64);
        #[allow(clippy::unnecessary_cast, reason = "as above")]
        let found = match kind {
            _ if kind == libc::TMPFS_MAGIC as i64 => Self::Tmpfs,
            _ if kind == libc::HUGETLBFS_MAGIC as i64 => Self::Hugetlbfs(block),
            _ => Self::Other,
        };
        Ok(found)
    }
}
