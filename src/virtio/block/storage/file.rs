//! A storage in a file or on a block device of the host.

mod sys;

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use vm_memory::VolatileSlice;

use super::{Abilities, Limits, Storage, direct::Direct, write_zeros};
#[cfg(target_os = "linux")]
use crate::memory::Mapping;

/// A storage in a regular file or on a block device: vectored I/O at a position, straight between the file and guest
/// memory.
///
/// *Capacity*: the size of the file or device. What is left over after the last whole block is out of the guest's reach
/// and stays as it is. *Flush* is `fdatasync`. *Discard* punches a hole or is passed on to the device; where the host
/// cannot do it, nothing happens. *Write zeroes* is the host's own if it has one, and zeros are written if not; also to
/// the parts of blocks at both ends of a range, if the host's own is for whole blocks. The file's position is not used,
/// and the file is not locked: that nobody else writes it is the embedder's care.
///
/// *Limits*: those of a block device are the kernel's word. A regular file has blocks of 512 bytes, as nobody knows in
/// what blocks its partitions were counted, and the file system's block as minimum I/O and discard granularity.
///
/// *Direct I/O*: a file that is open with `O_DIRECT` is used with it. Buffers that are aligned as the host wants them go
/// straight, others through at most 64 KiB (or one block) at a time. Writing a part of a block reads the block, and
/// keeps other writes through the same storage waiting; a guest is told the host's block, so that it need not do so. A file in
/// memory (tmpfs, `memfd_create`) has no cache to go past: nothing of it is aligned.
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
    limits: Limits,
    /// If the file is open for direct I/O.
    direct: Option<Direct>,
    /// The file as it is open for rings, if its data is in memory and nowhere else.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    never_waits: Option<File>,
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
    /// It is open for direct I/O and for writing, and its last block is not whole: the host would make it so.
    #[error(
        "{len} bytes are no whole blocks of {block}, and the file is open for direct I/O: it must be without O_DIRECT"
    )]
    DirectLength {
        /// Bytes of the file.
        len: u64,
        /// Bytes of a block.
        block: usize,
    },
    /// It is to be mapped, and is not in a file system in memory.
    #[error("the file is not in memory: it must be one of tmpfs or of memfd_create")]
    NotInMemory,
    /// It is to be mapped, has holes, and is open for reading alone.
    #[error("the file has holes: it must have none, or be open for writing, so that they can be filled")]
    Holes,
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

    /// Takes an open file or block device. One that is open for reading alone makes the guest's device read-only, and so does
    /// a block device that takes no writes.
    ///
    /// # Errors
    /// It is neither, or is open in a way that does not serve.
    pub fn new(file: File) -> Result<Self, FileError> {
        let metadata = file.metadata()?;
        let file_type = metadata.file_type();
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
        let mut limits = match kind {
            Kind::Regular => file_limits(metadata.blksize()),
            Kind::BlockDevice => sys::device_limits(&file),
        };
        let in_memory = is_in_memory(&file, kind);
        // There is no cache to go past then, and nothing to align.
        let is_direct = flags & sys::O_DIRECT != 0 && !in_memory;
        let direct = is_direct.then(|| direct(&file, kind, &mut limits));
        let read_only = access == libc::O_RDONLY || kind == Kind::BlockDevice && sys::refuses_writes(&file);
        let storage = Self {
            file,
            kind,
            read_only,
            limits,
            direct,
            #[cfg(all(target_os = "linux", feature = "io-uring"))]
            never_waits: None,
        };
        if let Some(direct) = &storage.direct
            && !storage.read_only
        {
            let (len, block) = (storage.len()?, direct.block());
            if !len.is_multiple_of(block as u64) {
                return Err(FileError::DirectLength { len, block });
            }
        }
        Ok(storage)
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What direct I/O is aligned to, if the file is open for that: offsets and lengths, and memory.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub(super) fn direct_alignment(&self) -> Option<(u64, usize)> {
        self.direct
            .as_ref()
            .map(|direct| (direct.block() as u64, direct.memory()))
    }

    /// What a direct write must be aligned to in all, memory included, so that it can be polled for. The file system waits for the end of
    /// one that is not of whole blocks of its own, and then nobody polls.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub(super) fn polled_alignment(&self) -> u64 {
        let block = self.direct.as_ref().map_or(1, |direct| direct.block() as u64);
        match self.kind {
            Kind::Regular => block.max(self.limits.minimum_io.into()),
            Kind::BlockDevice => block,
        }
    }

    /// Whether its data is in memory, and nowhere else.
    #[cfg(target_os = "linux")]
    pub(super) fn is_in_memory(&self) -> bool {
        is_in_memory(&self.file, self.kind)
    }

    /// All of it, in the memory of this process. Nothing of it is a hole then: a page that is not there yet might not be had once it is
    /// accessed, and that ends a process.
    #[cfg(target_os = "linux")]
    pub(super) fn map(&self) -> Result<Mapping, FileError> {
        let bytes = self.len()?;
        let len = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        match self.read_only {
            true if sys::has_holes(&self.file, bytes)? => return Err(FileError::Holes),
            true => {}
            false => sys::fill_holes(&self.file, bytes)?,
        }
        Ok(Mapping::new(&self.file, len, !self.read_only)?)
    }

    /// Has rings move the data of a file in memory where they are asked to. The kernel would have a thread of its own do that, as
    /// anything might be waited for, and to wake that thread costs more than the data. Where the file cannot be opened once more, it is
    /// so still.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub(super) fn move_at_once(&mut self) {
        if self.is_in_memory() {
            self.never_waits = sys::open_never_waiting(&self.file, self.read_only).ok();
        }
    }

    /// The file as it is open for rings.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub(super) fn for_rings(&self) -> &File {
        self.never_waits.as_ref().unwrap_or(&self.file)
    }

    /// Whether the file is open for direct I/O.
    #[cfg(target_os = "linux")]
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    fn len(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Regular => Ok(self.file.metadata()?.len()),
            // Its metadata has no length. The position that this moves is nobody's.
            Kind::BlockDevice => (&self.file).seek(SeekFrom::End(0)),
        }
    }

    /// The part of a range that the host discards and zeroes: a block device does so in blocks alone.
    pub(super) fn whole_blocks(&self, offset: u64, len: u64) -> io::Result<Range<u64>> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let block = match self.kind {
            Kind::Regular => 1,
            Kind::BlockDevice => u64::from(self.limits.logical_block),
        };
        // Where the next block would begin beyond all numbers, there is no whole one.
        let start = offset.checked_next_multiple_of(block).unwrap_or(end);
        Ok(start..start.max(end / block * block))
    }

    /// Has the host do something to whole blocks that it need not know. `None` if it does not, or there are none.
    fn optional(&self, blocks: &Range<u64>, operation: Operation) -> Option<io::Result<()>> {
        if blocks.is_empty() {
            return None;
        }
        let _changing = self.direct.as_ref().map(Direct::change);
        if_supported(operation(&self.file, blocks.start, blocks.end - blocks.start))
    }

    fn read_vectored(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.vectored(offset, buffers, libc::preadv)
    }

    fn write_vectored(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.vectored(offset, buffers, libc::pwritev)
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
        let len = self.len()?;
        match &self.direct {
            // A file that grew: writing a part of its last block would make it grow again.
            Some(direct) if !self.read_only => Ok(len - len % direct.block() as u64),
            _ => Ok(len),
        }
    }

    fn abilities(&self) -> Abilities {
        let can = cfg!(target_os = "linux") && !self.read_only;
        Abilities {
            read_only: self.read_only,
            discard: can,
            unmap: can,
            ..Abilities::default()
        }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let read = |offset, buffers: &[VolatileSlice<'_>]| self.read_vectored(offset, buffers);
        match &self.direct {
            Some(direct) => direct.read(offset, buffers, read),
            None => read(offset, buffers),
        }
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let read = |offset, buffers: &[VolatileSlice<'_>]| self.read_vectored(offset, buffers);
        let write = |offset, buffers: &[VolatileSlice<'_>]| self.write_vectored(offset, buffers);
        match &self.direct {
            Some(direct) => direct.write(offset, buffers, read, write),
            None => write(offset, buffers),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let blocks = self.whole_blocks(offset, len)?;
        let operation = match self.kind {
            Kind::Regular => sys::punch_hole,
            Kind::BlockDevice => sys::discard_device,
        };
        self.optional(&blocks, operation).unwrap_or(Ok(()))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let blocks = self.whole_blocks(offset, len)?;
        let zero = match self.kind {
            Kind::Regular => sys::zero_range,
            Kind::BlockDevice => sys::zero_device,
        };
        let unmapped = may_unmap.then(|| self.optional(&blocks, sys::punch_hole)).flatten();
        match unmapped.or_else(|| self.optional(&blocks, zero)) {
            Some(zeroed) => {
                zeroed?;
                write_zeros(self, offset, blocks.start - offset)?;
                write_zeros(self, blocks.end, offset + len - blocks.end)
            }
            None => write_zeros(self, offset, len),
        }
    }
}

/// Something that a host can do to a range of a file, or not.
type Operation = fn(&File, u64, u64) -> io::Result<()>;

/// The node of a device may well be in a file system in memory: its data is not.
fn is_in_memory(file: &File, kind: Kind) -> bool {
    kind == Kind::Regular && sys::is_in_memory(file)
}

/// What is known of a regular file in a file system of such blocks.
fn file_limits(file_system_block: u64) -> Limits {
    let block = u32::try_from(file_system_block).unwrap_or(0);
    let sectors = Limits::default();
    match block.is_power_of_two() && block >= sectors.logical_block {
        true => Limits {
            minimum_io: block,
            discard_granularity: block,
            ..sectors
        },
        false => sectors,
    }
}

/// The alignment of direct I/O where the kernel does not tell it (before Linux 6.1): no file system demands more.
const DIRECT_ALIGNMENT: u32 = 4096;

/// How direct I/O on a file goes, with what follows for its limits.
fn direct(file: &File, kind: Kind, limits: &mut Limits) -> Direct {
    let untold = match kind {
        Kind::Regular => DIRECT_ALIGNMENT,
        Kind::BlockDevice => limits.logical_block,
    };
    let (block, memory) = sys::direct_alignment(file).unwrap_or((untold, untold));
    limits.physical_block = limits.physical_block.max(block);
    Direct::new(block as usize, memory as usize)
}

/// `None` if the host, its file system or its driver does not do this, so that another way must be found.
fn if_supported(result: io::Result<()>) -> Option<io::Result<()>> {
    match &result {
        Err(error) if is_refusal(error) => None,
        _ => Some(result),
    }
}

/// Whether the host, its file system or its driver does not do this.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(code) => REFUSALS.contains(&code),
        // One of ours, where the system is known to have no such call.
        None => error.kind() == io::ErrorKind::Unsupported,
    }
}

/// The names of "not this way". The data is as it was, and what may be wrong with it shows when it is written.
const REFUSALS: [libc::c_int; 9] = [
    libc::EOPNOTSUPP,
    libc::ENOSYS,
    // A driver that knows nothing of the request.
    libc::ENOTTY,
    // Not a file for that.
    libc::ENODEV,
    // An alignment or a mode that is not taken.
    libc::EINVAL,
    // Sealed, or filtered by a sandbox.
    libc::EPERM,
    libc::EACCES,
    // Pages of it are in use by others, and must be dropped for that.
    libc::EBUSY,
    // A disk that has the command and refuses it.
    sys::EREMOTEIO,
];

#[cfg(test)]
pub(super) mod tests;
