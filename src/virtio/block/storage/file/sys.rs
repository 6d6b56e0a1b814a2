//! What only Linux has. Other systems have none of it: discard does nothing, zeros are written, no limit is known.

#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(not(target_os = "linux"))]
pub use other::*;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        fs::{self, File},
        io, mem,
        os::{fd::AsRawFd, unix::fs::MetadataExt},
    };

    #[cfg(feature = "io-uring")]
    use std::os::unix::fs::OpenOptionsExt;

    use crate::{memory::FileSystem, virtio::block::Limits};

    pub use libc::{EREMOTEIO, O_DIRECT};

    /// `BLKROGET`, `BLKDISCARD`, `BLKALIGNOFF` and `BLKZEROOUT` (linux/fs.h): `_IO(0x12, 94)`, `_IO(0x12, 119)`,
    /// `_IO(0x12, 122)` and `_IO(0x12, 127)`. Spelled out, because `_IO` has a direction bit on MIPS, PowerPC and SPARC.
    const BLKROGET: libc::Ioctl = NO_DIRECTION | 0x125e;
    const BLKDISCARD: libc::Ioctl = NO_DIRECTION | 0x1277;
    const BLKALIGNOFF: libc::Ioctl = NO_DIRECTION | 0x127a;
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

    /// Whether a block device refuses writes, as one can that was opened for writing.
    pub fn refuses_writes(file: &File) -> bool {
        number_ioctl(file, BLKROGET).is_some_and(|read_only| read_only != 0)
    }

    /// What a block device works in. What it does not tell is as by default.
    pub fn device_limits(file: &File) -> Limits {
        let size = |request| number_ioctl(file, request).and_then(|value| u32::try_from(value).ok());
        let block = |request| size(request).filter(|size| size.is_power_of_two());
        let logical_block = block(libc::BLKSSZGET).unwrap_or(512);
        let unknown = Limits::of_blocks(logical_block);
        // A negative offset says that no block is aligned to a physical one, so there is none to speak of.
        let physical = size(BLKALIGNOFF).zip(block(libc::BLKPBSZGET));
        let (alignment_offset, physical_block) = physical.unwrap_or((0, logical_block));
        Limits {
            physical_block,
            alignment_offset,
            minimum_io: size(libc::BLKIOMIN).unwrap_or(unknown.minimum_io),
            optimal_io: size(libc::BLKIOOPT).unwrap_or(unknown.optimal_io),
            discard_granularity: discard_granularity(file).unwrap_or(unknown.discard_granularity),
            ..unknown
        }
    }

    /// No system call tells it. A partition has it from its disk.
    fn discard_granularity(file: &File) -> Option<u32> {
        let number = file.metadata().ok()?.rdev();
        let folder = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
        ["queue", "../queue"].iter().find_map(|queue| {
            let text = fs::read_to_string(format!("{folder}/{queue}/discard_granularity")).ok()?;
            text.trim().parse().ok().filter(|&bytes: &u32| bytes != 0)
        })
    }

    /// Whether a file is one of a file system in memory.
    pub fn is_in_memory(file: &File) -> bool {
        matches!(FileSystem::of(file), Ok(FileSystem::Tmpfs))
    }

    /// Has all of the first `len` bytes of a file be there: holes become zeros.
    pub fn fill_holes(file: &File, len: u64) -> io::Result<()> {
        match len {
            0 => Ok(()),
            _ => fallocate(file, 0, 0, len),
        }
    }

    /// Whether a file has holes. Moves its position.
    pub fn has_holes(file: &File, len: u64) -> io::Result<bool> {
        // SAFETY: takes numbers alone; the file is open.
        let hole = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_HOLE) };
        match hole {
            _ if len == 0 => Ok(false),
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok((hole as u64) < len),
        }
    }

    /// Opens a file in memory once more, so that the kernel counts on it that nothing of it is waited for, and a ring has it done where
    /// it is submitted. A write has to be a direct one besides, or it is one into a cache, for which the kernel has a thread. For the
    /// file system both mean nothing; before Linux 6.6 it refuses the second.
    ///
    /// An open description of its own, as others may share the one that is there. What `memfd_create` gives takes no `O_DIRECT` later, and
    /// with `O_NONBLOCK` alone Linux 5.12 to 5.14 ends writes with `EAGAIN`.
    #[cfg(feature = "io-uring")]
    pub fn open_never_waiting(file: &File, read_only: bool) -> io::Result<File> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(!read_only);
        options.custom_flags(O_DIRECT | libc::O_NONBLOCK);
        // Of this thread: one may have descriptors of its own.
        options.open(format!("/proc/thread-self/fd/{}", file.as_raw_fd()))
    }

    /// What direct I/O must be aligned to, if the kernel tells: offset and length, and memory.
    pub fn direct_alignment(file: &File) -> Option<(u32, u32)> {
        // SAFETY: all of it is numbers, for which zero is a value.
        let mut answer: libc::statx = unsafe { mem::zeroed() };
        // SAFETY: the path is an empty C string, and `answer` is what the kernel fills; the file is open.
        let result = unsafe {
            libc::statx(
                file.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_DIOALIGN,
                &raw mut answer,
            )
        };
        let (block, memory) = (answer.stx_dio_offset_align, answer.stx_dio_mem_align);
        let told = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
        // Zero says that the file falls back to its cache.
        (told && block.is_power_of_two() && memory.is_power_of_two()).then_some((block, memory))
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

    /// One of the requests that tell an `int`, or an unsigned one that is small.
    fn number_ioctl(file: &File, request: libc::Ioctl) -> Option<libc::c_int> {
        let mut value: libc::c_int = 0;
        // SAFETY: each request that this is called with writes one `int` to the pointer, which `value` is.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) };
        (result == 0).then_some(value)
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
mod other {
    use std::{fs::File, io};

    use crate::virtio::block::Limits;

    pub const O_DIRECT: libc::c_int = 0;
    pub const EREMOTEIO: libc::c_int = 0;

    pub use self::{
        unsupported as discard_device, unsupported as punch_hole, unsupported as zero_device, unsupported as zero_range,
    };

    pub fn unsupported(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn refuses_writes(_: &File) -> bool {
        false
    }

    pub fn device_limits(_: &File) -> Limits {
        Limits::default()
    }

    pub fn is_in_memory(_: &File) -> bool {
        false
    }

    pub fn direct_alignment(_: &File) -> Option<(u32, u32)> {
        None
    }
}
