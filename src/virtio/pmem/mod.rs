//! The PMEM device (virtio 1.2, section 5.19): persistent memory that the guest writes, and has flushed.

mod flushes;
#[cfg(unix)]
mod mapping;
mod persist;
mod registers;
mod shared;

use std::{
    fmt, io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use super::{
    DeviceId, DeviceState, DeviceStateError, FailureLog, HostFailures, QueueHandler, QueueIndex, SharedMemoryRegion,
    VirtioDevice, device::read_config_bytes,
};
use flushes::Flushes;
use registers::{CONFIG, F_SHMEM_REGION, SHMEM_REGION_ID};
use shared::Shared;

#[cfg(unix)]
pub use mapping::FileMapping;
pub use persist::{Persist, Volatile};

/// What a PMEM device has, and how it looks to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmemOptions {
    /// The guest physical addresses of the memory: whole pages of 4096 bytes, at least one. Linux wants both to be multiples of 2 MiB.
    pub region: Range<u64>,
    /// Offers VIRTIO_PMEM_F_SHMEM_REGION (virtio 1.2, section 5.19.3; Linux from 6.9 on): a driver that accepts it looks for the memory
    /// in shared memory region 0. Behind virtio-mmio that is `region` too. Behind virtio-pci it is where the guest places a BAR: the
    /// embedder maps it there
    /// ([`with_shared_memory`](super::VirtioPci::with_shared_memory)), and at `region` for drivers that do not accept it.
    pub shared_memory: bool,
    /// Size of the queue, a power of two up to 32768.
    pub queue_size: u16,
}

impl PmemOptions {
    /// The memory at these guest physical addresses.
    pub fn new(region: Range<u64>) -> Self {
        Self {
            region,
            shared_memory: false,
            queue_size: 64,
        }
    }

    fn check(&self) -> Result<(), PmemError> {
        let Self {
            region,
            shared_memory: _,
            queue_size,
        } = self;
        let whole = |bytes: u64| bytes.is_multiple_of(4096);
        if region.start >= region.end || !whole(region.start) || !whole(region.end) {
            let Range { start, end } = *region;
            return Err(PmemError::Region { start, end });
        }
        if !queue_size.is_power_of_two() {
            return Err(PmemError::QueueSize(*queue_size));
        }
        Ok(())
    }
}

/// A PMEM device, or what is behind it, cannot be made as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PmemError {
    /// No memory, or no whole pages.
    #[error("memory from {start:#x} to {end:#x}: at least one page of 4096 bytes, and whole ones, are accepted")]
    Region {
        /// First address.
        start: u64,
        /// The address after the last.
        end: u64,
    },
    /// No such queue size.
    #[error("queue size {0}: a power of two up to 32768 is accepted")]
    QueueSize(u16),
    /// An empty file, or one that is no whole pages.
    #[error("a file of {0} bytes: whole pages of 4096, at least one, are accepted")]
    FileLength(u64),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Persistent memory.
///
/// The memory itself is the embedder's: it maps a file ([`FileMapping`]) and has the guest see it, and other devices too. The device tells
/// the driver where that is, and flushes.
///
/// *Flushes* that are in the queue together are one for the host. If it fails, each of them fails, and the guest has to take what it has
/// written since the last that did not as lost: another flush may succeed without it.
///
/// *Saving*: have the guest's writes flushed, or copy the memory; the state says where it is, and nothing of what is in it.
///
/// ```
/// use devisor::{
///     interrupt::NoInterrupt,
///     virtio::{VirtioMmio, pmem::{Pmem, PmemOptions, Volatile}, transport::mmio::Line},
/// };
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[
///     (GuestAddress(0), 64 << 20),
///     (GuestAddress(1 << 32), 2 << 20),
/// ])?);
/// let pmem = Pmem::new(Volatile::default(), PmemOptions::new(1 << 32..(1 << 32) + (2 << 20)))?;
/// let pmem = VirtioMmio::new(pmem, memory, Line::Edge(Arc::new(NoInterrupt)))?;
/// assert_eq!(pmem.with_device(|pmem| pmem.host_failures().count), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pmem {
    options: PmemOptions,
    queue_sizes: [u16; 1],
    shared: Arc<Shared>,
}

/// The state of a PMEM device as plain data. What is in the memory is the embedder's to save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmemState {
    /// As the device was made.
    pub options: PmemOptions,
}

impl Pmem {
    /// A PMEM device whose memory is kept by `persist`.
    ///
    /// # Errors
    /// An option is out of range.
    pub fn new(persist: impl Persist + 'static, options: PmemOptions) -> Result<Self, PmemError> {
        options.check()?;
        Ok(Self {
            queue_sizes: [options.queue_size],
            options,
            shared: Arc::new(Shared {
                persist: Box::new(persist),
                failures: FailureLog::default(),
                negotiated: AtomicU64::new(0),
            }),
        })
    }

    /// What could not be flushed. The guest was told so for each request.
    pub fn host_failures(&self) -> HostFailures {
        self.shared.failures.get()
    }

    fn size(&self) -> u64 {
        self.options.region.end - self.options.region.start
    }

    /// Zero for a driver that looks elsewhere (section 5.19.5.1).
    fn config(&self) -> [u8; CONFIG] {
        let mut bytes = [0; CONFIG];
        if self.shared.negotiated.load(SeqCst) & F_SHMEM_REGION == 0 {
            bytes[..8].copy_from_slice(&self.options.region.start.to_le_bytes());
            bytes[8..].copy_from_slice(&self.size().to_le_bytes());
        }
        bytes
    }
}

impl VirtioDevice for Pmem {
    fn device_id(&self) -> DeviceId {
        DeviceId::PMEM
    }

    fn features(&self) -> u64 {
        match self.options.shared_memory {
            true => F_SHMEM_REGION,
            false => 0,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn shared_memory(&self, id: u8) -> Option<SharedMemoryRegion> {
        let region = SharedMemoryRegion {
            base: self.options.region.start,
            len: self.size(),
        };
        (self.options.shared_memory && id == SHMEM_REGION_ID).then_some(region)
    }

    fn negotiated(&mut self, features: u64) {
        self.shared.negotiated.store(features, SeqCst);
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Flushes {
            shared: Arc::clone(&self.shared),
            together: Vec::new(),
        })
    }

    fn reset(&mut self) {
        self.shared.negotiated.store(0, SeqCst);
    }

    fn save(&self) -> DeviceState {
        let Self {
            options,
            queue_sizes: _,
            shared: _,
        } = self;
        DeviceState::Pmem(PmemState {
            options: options.clone(),
        })
    }

    /// All of it has to be the same.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Pmem(PmemState { options }) = state else {
            return Err(DeviceStateError::kind(state, "a PMEM device's"));
        };
        match *options == self.options {
            true => Ok(()),
            false => Err(DeviceStateError::Otherwise(format!(
                "as {:?}, where the state has {options:?}",
                self.options
            ))),
        }
    }
}

impl fmt::Debug for Pmem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pmem")
            .field("options", &self.options)
            .field("failures", &self.shared.failures)
            .finish_non_exhaustive()
    }
}
