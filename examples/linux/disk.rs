//! A storage of our own: a disk that notes when it is read.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use devisor::virtio::block::{Abilities, Limits, Storage};
use vm_memory::VolatileSlice;

/// Passes everything on to `S`, and notes when something is read: only so can code get into RAM that the core has not
/// written itself, for [`Machine::forget_translations`](crate::machine::Machine::forget_translations).
pub struct NotedReads<S> {
    storage: S,
    read: Arc<AtomicBool>,
}

impl<S: Storage> NotedReads<S> {
    /// Sets `read` whenever `storage` was read.
    pub fn new(storage: S, read: Arc<AtomicBool>) -> Self {
        Self { storage, read }
    }
}

impl<S: Storage> Storage for NotedReads<S> {
    fn capacity(&self) -> io::Result<u64> {
        self.storage.capacity()
    }

    fn abilities(&self) -> Abilities {
        self.storage.abilities()
    }

    fn limits(&self) -> Limits {
        self.storage.limits()
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.read.store(true, Ordering::SeqCst);
        self.storage.read_at(offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.storage.write_at(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.storage.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.storage.write_zeroes(offset, len, may_unmap)
    }
}
