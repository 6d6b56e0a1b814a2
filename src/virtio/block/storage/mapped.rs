//! A storage in a file in memory, moved without the kernel.

use std::io;

use vm_memory::VolatileSlice;

use super::{Abilities, FileError, FileStorage, Limits, Storage};
use crate::memory::Mapping;

/// A file in memory (tmpfs, `memfd_create`), mapped: a request is a copy between it and guest memory, and no system call.
///
/// For disks in memory that others are to see as files: who maps or reads the file sees what the guest writes, and the guest what
/// they write. It is a [`Storage`]: the thread that handles a queue copies its requests, and waits for pages that the host has swapped out.
///
/// *Capacity*: the size of the file as it was mapped. *Flush* does nothing: memory is where the file is. *Discard* does nothing, and *write
/// zeroes* writes them: what there is of the file stays. So that this needs no memory later that there may not be then, **a
/// file that has holes has none any more** once it is mapped.
///
/// **Nobody may make the file shorter** or punch holes into it meanwhile: who accesses what is no longer there is ended by a signal
/// (SIGBUS). A file of `memfd_create` can be sealed against the first (`F_SEAL_SHRINK`). The same is so of guest memory in a file.
///
/// ```no_run
/// use devisor::virtio::block::{Block, BlockOptions, FileStorage, MappedStorage};
///
/// let storage = MappedStorage::new(FileStorage::open("/dev/shm/disk.img")?)?;
/// let disk = Block::new(storage, BlockOptions::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MappedStorage {
    file: FileStorage,
    mapping: Mapping,
}

impl MappedStorage {
    /// Fills the holes of a file, and maps it.
    ///
    /// # Errors
    /// It is not in memory; has holes that cannot be filled, as it is open for reading alone or there is no room; is sealed against
    /// writes and open for them.
    pub fn new(file: FileStorage) -> Result<Self, FileError> {
        if !file.is_in_memory() {
            return Err(FileError::NotInMemory);
        }
        let mapping = file.map()?;
        Ok(Self { file, mapping })
    }

    /// The file itself.
    pub fn file(&self) -> &FileStorage {
        &self.file
    }

    /// Where it is mapped, and how many bytes: for an embedder that handles SIGBUS, to know whose it was.
    pub fn as_ptr_range(&self) -> std::ops::Range<*mut u8> {
        let start = self.mapping.as_ptr();
        start..start.wrapping_add(self.mapping.len())
    }

    /// Has `copy` move bytes between the mapping from `offset` on and the buffers, as far as the mapping reaches.
    #[inline]
    fn transfer(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        copy: impl Fn(&VolatileSlice<'_>, &VolatileSlice<'_>),
    ) -> usize {
        let len = self.mapping.len();
        // SAFETY: the mapping is as long as that, and there while this slice is, which is not returned.
        let all = unsafe { VolatileSlice::new(self.mapping.as_ptr(), len) };
        let begin = usize::try_from(offset).map_or(len, |offset| offset.min(len));
        let mut at = begin;
        for buffer in buffers {
            let Ok(data) = all.subslice(at, buffer.len().min(len - at)) else {
                break;
            };
            // As many bytes as the shorter has.
            copy(&data, buffer);
            at += data.len();
        }
        at - begin
    }
}

impl Storage for MappedStorage {
    fn capacity(&self) -> io::Result<u64> {
        Ok(self.mapping.len() as u64)
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            read_only: self.file.abilities().read_only,
            ..Abilities::default()
        }
    }

    fn limits(&self) -> Limits {
        self.file.limits()
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Ok(self.transfer(offset, buffers, |data, buffer| data.copy_to_volatile_slice(*buffer)))
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        if self.file.abilities().read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(self.transfer(offset, buffers, |data, buffer| buffer.copy_to_volatile_slice(*data)))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
