//! What keeps the data of a PMEM device.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

/// Makes what the guest has written to the memory stay.
///
/// *For who implements it*: when [`flush`](Self::flush) has returned `Ok`, all that was in the memory when it was called survives the end
/// of this process and of the host. It may be called from several threads.
///
/// ```
/// use devisor::virtio::pmem::{Persist, Pmem, PmemOptions};
/// use std::io;
///
/// /// Memory that stays by itself.
/// struct Battery;
///
/// impl Persist for Battery {
///     fn flush(&self) -> io::Result<()> {
///         Ok(())
///     }
/// }
///
/// let pmem = Pmem::new(Battery, PmemOptions::new(1 << 32..(1 << 32) + (2 << 20)))?;
/// # let _ = pmem;
/// # Ok::<(), devisor::virtio::pmem::PmemError>(())
/// ```
pub trait Persist: Send + Sync {
    /// Returns when all that was written before is on stable storage.
    ///
    /// # Errors
    /// Some of it may be lost.
    fn flush(&self) -> io::Result<()>;
}

/// A file that is mapped shared: what is written to the mapping is in the file's cache, and `fsync(2)` takes it to the disk.
impl Persist for File {
    fn flush(&self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Memory that is lost with the process: for scratch disks and tests. It counts flushes, and fails at them on demand.
#[derive(Debug, Default)]
pub struct Volatile {
    flushes: AtomicU64,
    fails: AtomicBool,
}

impl Volatile {
    /// How often it was flushed, failures included.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(SeqCst)
    }

    /// Whether flushes fail from now on.
    pub fn fail(&self, fails: bool) {
        self.fails.store(fails, SeqCst);
    }
}

impl Persist for Volatile {
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, SeqCst);
        match self.fails.load(SeqCst) {
            true => Err(io::Error::other("told to fail")),
            false => Ok(()),
        }
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<P: Persist + ?Sized> Persist for $pointer {
            fn flush(&self) -> io::Result<()> {
                (**self).flush()
            }
        }
    )*};
}

forward!(&P, Box<P>, Arc<P>);
