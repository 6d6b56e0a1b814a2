//! A storage in memory.

use std::{
    fmt, io,
    sync::{Mutex, MutexGuard},
};

use vm_memory::VolatileSlice;

use super::{Abilities, Storage};
use crate::sync::lock;

/// A storage in the memory of this process: for scratch disks, images that are built on the fly, and tests. Give the
/// device an `Arc` of it to keep looking at it.
///
/// ```
/// use devisor::virtio::block::{Block, BlockOptions, MemoryStorage};
/// use std::sync::Arc;
///
/// let storage = Arc::new(MemoryStorage::from(vec![0x55; 4096]));
/// let disk = Block::new(Arc::clone(&storage), BlockOptions::default())?;
/// assert_eq!(disk.capacity(), 8);
/// assert_eq!(storage.contents().len(), 4096);
/// # Ok::<(), devisor::virtio::block::BlockError>(())
/// ```
#[derive(Default)]
pub struct MemoryStorage(Mutex<Vec<u8>>);

impl MemoryStorage {
    /// `len` bytes of zeros.
    pub fn new(len: usize) -> Self {
        vec![0; len].into()
    }

    /// A copy of all data.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().clone()
    }

    /// Makes it longer, with zeros, or shorter. The guest knows when
    /// [`refresh_capacity`](crate::virtio::block::Block::refresh_capacity) was called.
    pub fn resize(&self, len: usize) {
        self.lock().resize(len, 0);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.0)
    }

    /// Lets `each` move bytes between the data from `offset` on and the buffers, as far as the data reaches.
    fn transfer(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        each: impl Fn(&mut [u8], &VolatileSlice<'_>),
    ) -> io::Result<usize> {
        let mut data = self.lock();
        let mut rest = tail(&mut data, offset);
        let before = rest.len();
        for buffer in buffers {
            let (piece, after) = rest.split_at_mut(buffer.len().min(rest.len()));
            each(piece, buffer);
            rest = after;
        }
        Ok(before - rest.len())
    }
}

fn tail(data: &mut [u8], offset: u64) -> &mut [u8] {
    let offset = usize::try_from(offset).ok();
    offset.and_then(|offset| data.get_mut(offset..)).unwrap_or_default()
}

impl From<Vec<u8>> for MemoryStorage {
    fn from(data: Vec<u8>) -> Self {
        Self(Mutex::new(data))
    }
}

impl Storage for MemoryStorage {
    fn capacity(&self) -> io::Result<u64> {
        Ok(self.lock().len() as u64)
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            discard: true,
            ..Abilities::default()
        }
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.transfer(offset, buffers, |piece, buffer| buffer.copy_from(piece))
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.transfer(offset, buffers, |piece, buffer| _ = buffer.copy_to(piece))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Keeps the space, and makes it zero: what a guest reads after a discard does not hang on chance.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        let mut data = self.lock();
        let len = usize::try_from(len).ok();
        let range = len.and_then(|len| tail(&mut data, offset).get_mut(..len));
        match range {
            Some(range) => {
                range.fill(0);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStorage")
            .field("len", &self.lock().len())
            .finish()
    }
}
