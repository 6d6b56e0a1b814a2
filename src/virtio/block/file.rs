//! A storage in a file or on a block device of the host.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::FileTypeExt,
    },
    path::Path,
};

use vm_memory::VolatileSlice;

use super::{Abilities, Storage, storage};

/// A storage in a regular file or on a block device: vectored I/O at a position, straight between the file and guest
/// memory.
///
/// *Capacity*: the size of the file or device. What is left over after the last whole block is out of the guest's reach
/// and stays as it is. *Flush* is `fdatasync`. *Discard* punches a hole or is passed on to the device; where the host
/// cannot do it, nothing happens. *Write zeroes* is the host's own if it has one, and zeros are written if not. The file's
/// position is not used, and the file is not locked: that nobody else writes it is the embedder's care.
///
/// ```no_run
/// use devisor::virtio::block::{Block, BlockOptions, FileStorage};
///
/// let disk = Block::new(FileStorage::open("disk.img")?, BlockOptions::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    kind: Kind,
    read_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    BlockDevice,
}

/// A file cannot be a storage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A directory, a pipe, a socket, a character device.
    #[error("not something with sectors: a regular file or a block device is accepted")]
    Kind,
    /// It was opened for writing alone.
    #[error("the file is write-only: it must be open for reading, or for reading and writing")]
    WriteOnly,
    /// It was opened for appending, where Linux writes to the end whatever the position.
    #[error("the file is open for appending: it must be open without O_APPEND")]
    Append,
    /// It was opened for direct I/O, whose alignment a guest's buffers need not have.
    #[error("the file is open for direct I/O: it must be open without O_DIRECT")]
    Direct,
}

impl FileStorage {
    /// Opens a file or block device for reading and writing.
    ///
    /// # Errors
    /// It cannot be opened, or has no sectors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        Self::new(OpenOptions::new().read(true).write(true).open(path)?)
    }

    /// Opens a file or block device for reading. The guest's device is read-only.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, FileError> {
        Self::new(File::open(path)?)
    }

    /// Takes an open file or block device. One that is open for reading alone makes the guest's device read-only.
    ///
    /// # Errors
    /// It is neither, or is open in a way that does not serve.
    pub fn new(file: File) -> Result<Self, FileError> {
        let file_type = file.metadata()?.file_type();
        let kind = if file_type.is_file() {
            Kind::Regular
        } else if file_type.is_block_device() {
            Kind::BlockDevice
        } else {
            return Err(FileError::Kind);
        };
        // SAFETY: reads the flags of a descriptor that is open; no memory is involved.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let access = flags & libc::O_ACCMODE;
        if access == libc::O_WRONLY {
            return Err(FileError::WriteOnly);
        }
        if flags & libc::O_APPEND != 0 {
            return Err(FileError::Append);
        }
        if flags & sys::O_DIRECT != 0 {
            return Err(FileError::Direct);
        }
        Ok(Self {
            file,
            kind,
            read_only: access == libc::O_RDONLY,
        })
    }

    /// One vectored transfer of as many buffers as the host takes.
    fn vectored(&self, offset: u64, buffers: &[VolatileSlice<'_>], call: Vectored) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // The guards keep the memory mapped until the call is over.
        let guards: Vec<_> = buffers.iter().take(IOV_MAX).map(VolatileSlice::ptr_guard_mut).collect();
        let vectors: Vec<_> = guards
            .iter()
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: guard.len(),
            })
            .collect();
        // SAFETY: each vector is the memory of a volatile slice, valid for reads and writes of its length and mapped
        // while its guard lives; the kernel makes no reference of it. There are at most IOV_MAX of them, so their
        // number fits. The descriptor is open as long as `self.file` is.
        let moved = unsafe {
            call(
                self.file.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as libc::c_int,
                offset,
            )
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}

/// `preadv` or `pwritev`.
type Vectored = unsafe extern "C" fn(RawFd, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// The most buffers that one call takes, on Linux and the BSDs.
const IOV_MAX: usize = 1024;

impl Storage for FileStorage {
    fn capacity(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Regular => Ok(self.file.metadata()?.len()),
            // Its metadata has no length. The position that this moves is nobody's.
            Kind::BlockDevice => (&self.file).seek(SeekFrom::End(0)),
        }
    }

    fn abilities(&self) -> Abilities {
        let can = cfg!(target_os = "linux") && !self.read_only;
        Abilities {
            read_only: self.read_only,
            discard: can,
            unmap: can,
        }
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.vectored(offset, buffers, libc::preadv)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.vectored(offset, buffers, libc::pwritev)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let done = match self.kind {
            Kind::Regular => sys::punch_hole(&self.file, offset, len),
            Kind::BlockDevice => sys::discard_device(&self.file, offset, len),
        };
        if_supported(done).unwrap_or(Ok(()))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let unmapped = may_unmap
            .then(|| sys::punch_hole(&self.file, offset, len))
            .and_then(if_supported);
        let zeroed = || {
            if_supported(match self.kind {
                Kind::Regular => sys::zero_range(&self.file, offset, len),
                Kind::BlockDevice => sys::zero_device(&self.file, offset, len),
            })
        };
        unmapped
            .or_else(zeroed)
            .unwrap_or_else(|| storage::write_zeros(self, offset, len))
    }
}

/// `None` if the host or its file system has no such call, so that another way must be found.
fn if_supported(result: io::Result<()>) -> Option<io::Result<()>> {
    match &result {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
        // A device driver that knows nothing of the request.
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => None,
        _ => Some(result),
    }
}

#[cfg(target_os = "linux")]
mod sys {
    //! What only Linux has.

    use std::{fs::File, io, os::fd::AsRawFd};

    pub const O_DIRECT: libc::c_int = libc::O_DIRECT;

    /// `BLKDISCARD` and `BLKZEROOUT` (linux/fs.h): `_IO(0x12, 119)` and `_IO(0x12, 127)`. Spelled out, because `_IO`
    /// has a direction bit on MIPS, PowerPC and SPARC.
    const BLKDISCARD: libc::Ioctl = NO_DIRECTION | 0x1277;
    const BLKZEROOUT: libc::Ioctl = NO_DIRECTION | 0x127f;
    const NO_DIRECTION: libc::Ioctl = libc::BLKSSZGET & !0xffff;

    /// Also works on block devices, for those that then read as zeros.
    pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, offset, len)
    }

    pub fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, offset, len)
    }

    pub fn discard_device(file: &File, offset: u64, len: u64) -> io::Result<()> {
        range_ioctl(file, BLKDISCARD, offset, len)
    }

    pub fn zero_device(file: &File, offset: u64, len: u64) -> io::Result<()> {
        range_ioctl(file, BLKZEROOUT, offset, len)
    }

    fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let signed = |value| libc::off_t::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        let (offset, len) = (signed(offset)?, signed(len)?);
        // SAFETY: changes a file; no memory is involved.
        uninterrupted(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) })
    }

    fn range_ioctl(file: &File, request: libc::Ioctl, offset: u64, len: u64) -> io::Result<()> {
        let range = [offset, len];
        // SAFETY: both requests read two 64-bit numbers from the pointer, which `range` is.
        uninterrupted(|| unsafe { libc::ioctl(file.as_raw_fd(), request, range.as_ptr()) })
    }

    /// Calls again as long as a signal interrupts the call.
    fn uninterrupted(mut call: impl FnMut() -> libc::c_int) -> io::Result<()> {
        loop {
            if call() == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    //! Other systems have none of it: discard does nothing, and zeros are written.

    use std::{fs::File, io};

    pub const O_DIRECT: libc::c_int = 0;

    pub use self::{
        unsupported as discard_device, unsupported as punch_hole, unsupported as zero_device, unsupported as zero_range,
    };

    pub fn unsupported(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests;
