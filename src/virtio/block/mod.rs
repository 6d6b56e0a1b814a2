//! The block device (virtio 1.2, section 5.2).

mod at_once;
mod disk;
mod later;
mod options;
mod registers;
mod request;
mod storage;

use std::{
    fmt, io,
    sync::{Arc, atomic::Ordering},
};

use super::{
    DeviceId, DeviceState, DeviceStateError, Handle, HostFailures, QueueHandler, QueueIndex, VirtioDevice,
    device::read_config_bytes,
};
use disk::{Behind, Disk, UNWRITTEN};
use registers::{config, feature};

pub use options::{BlockError, BlockOptions, Geometry, RangeLimits, Topology};
#[cfg(target_os = "linux")]
pub use storage::MappedStorage;
#[cfg(all(unix, feature = "nbd-tls"))]
pub use storage::NbdTls;
pub use storage::{
    Abilities, Allowance, AsyncStorage, Buffers, Channel, Ended, Event, Failing, Faulty, Lifetime, Limited, Limits,
    MemoryStorage, Operation, Outcome, Piece, Pool, Pooled, Recorder, Recording, Storage, Synchronous, Tag, Zone,
    ZoneAction, ZoneError, ZoneLimits, ZoneState, ZonedError, ZonedStorage, Zones,
};
#[cfg(unix)]
pub use storage::{FileError, FileStorage};
#[cfg(all(unix, feature = "images"))]
pub use storage::{ImageError, ImageFormat, ImageOptions, ImageStorage, References};
#[cfg(all(unix, feature = "nbd"))]
pub use storage::{NbdError, NbdOptions, NbdServer, NbdStatus, NbdStorage, NbdUri};
#[cfg(all(target_os = "linux", feature = "io-uring"))]
pub use storage::{UringOptions, UringStatus, UringStorage, UringWaiter};
#[cfg(target_os = "linux")]
pub use storage::{ZonedDevice, ZonedDeviceError};

/// A disk.
///
/// *How requests are served* hangs on the storage. Over a [`Storage`] ([`new`](Block::new)) those of a queue are answered in order, one
/// at a time, in the round that finds them; those of different queues at the same time, on as many threads as serve them. Over an
/// [`AsyncStorage`] ([`with_async`](Block::with_async)) all that a queue holds are under way at once, and end in any order: such a
/// device needs a [doorbell](super::transport::Doorbell), an event loop, or an embedder that runs it. Either way a flush covers what
/// was completed before it on any queue.
///
/// *When a queue is stopped* (a pause, a reset, the device is removed) requests under way are [canceled](Channel::cancel): those that
/// come back so are given back as if they had never been taken, and are saved and served again with the queue; the others end.
///
/// *What the guest gets*: S_OK, or S_IOERR for what the storage refuses and for what the driver must not ask (sectors
/// past the end, a part of a sector, a write to a read-only disk, more segments than allowed), or S_UNSUPP for what was
/// not negotiated. A request that is refused has changed nothing. The status is the last device-writable byte, however
/// the driver has cut the request into descriptors. Device-writable bytes before it that the request does not fill are
/// zeroed, so the used length is always all of them: a driver must not look at bytes beyond it (section 2.7.8.2), and
/// the status of a failed read is one. A chain without room for header or status comes back with a used length of 0.
///
/// *Zones* (virtio 1.3): a storage that [has them](Storage::zones) makes a host-managed zoned disk, without discard, write zeroes and secure
/// erase. A driver that does not know of zones is refused.
///
/// *When a write is on stable storage* (section 5.2.6.2): with VIRTIO_BLK_F_FLUSH, after a flush; for a driver that has
/// negotiated neither that nor VIRTIO_BLK_F_CONFIG_WCE, or has written 0 to `writeback`, before it is completed.
///
/// ```
/// use devisor::{
///     interrupt::NoInterrupt,
///     virtio::{
///         VirtioMmio,
///         block::{Block, BlockOptions, MemoryStorage},
///         transport::mmio::Line,
///     },
/// };
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let storage = Arc::new(MemoryStorage::new(1 << 20));
/// let disk = Block::new(Arc::clone(&storage), BlockOptions::default())?;
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let disk = VirtioMmio::new(disk, memory, Line::Edge(Arc::new(NoInterrupt)))?;
///
/// // The disk grows while the guest runs.
/// storage.resize(2 << 20);
/// disk.change_config(|disk| disk.refresh_capacity())?;
/// assert_eq!(disk.with_device(|disk| disk.capacity()), 4096);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Block {
    disk: Arc<Disk>,
    queue_sizes: Box<[u16]>,
    /// Once it is behind a transport.
    handle: Option<Handle>,
}

/// The state of a block device as plain data. What the storage keeps is the embedder's to save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockState {
    /// How the device looks to the guest, with what the storage said where the embedder's options left it open.
    pub options: BlockOptions,
    /// Whether the guest was told that write zeroes may give space back.
    pub unmap: bool,
    /// Whether the guest was told that it can ask how worn the storage is.
    pub lifetime: bool,
    /// What zones the guest was told of.
    pub zones: Option<ZoneLimits>,
    /// Sectors of 512 bytes that the guest knows of.
    pub capacity: u64,
    /// What the driver wrote to `writeback`, if it did.
    pub writeback: Option<bool>,
}

impl Block {
    /// A disk with the data of `storage`, which answers at once. Its capacity is rounded down to whole blocks.
    ///
    /// # Errors
    /// An option is out of range, or the storage does not tell its capacity.
    pub fn new(storage: impl Storage + 'static, options: BlockOptions) -> Result<Self, BlockError> {
        Self::over(Behind::at_once(Arc::new(storage)), options)
    }

    /// A disk with the data of `storage`, whose requests end later. Its capacity is rounded down to whole blocks.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_async(storage: impl AsyncStorage + 'static, options: BlockOptions) -> Result<Self, BlockError> {
        Self::over(Behind::later(Arc::new(storage)), options)
    }

    fn over(behind: Behind, options: BlockOptions) -> Result<Self, BlockError> {
        let abilities = behind.storage.abilities();
        let lifetime = behind.storage.lifetime().is_some();
        let disk = Disk::told(behind, options, abilities, lifetime)?;
        Ok(Self {
            queue_sizes: vec![disk.options.queue_size; disk.options.queues.into()].into(),
            disk: Arc::new(disk),
            handle: None,
        })
    }

    /// Sectors of 512 bytes that the guest may touch.
    pub fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    /// Asks the storage for its capacity again: call this through
    /// [`VirtioMmio::change_config`](super::VirtioMmio::change_config), which tells the driver. Returns the new
    /// capacity in sectors of 512 bytes.
    ///
    /// # Errors
    /// The storage does not tell; the capacity is as it was.
    pub fn refresh_capacity(&mut self) -> io::Result<u64> {
        let capacity = self.disk.present()?;
        self.disk.capacity.store(capacity, Ordering::SeqCst);
        Ok(capacity)
    }

    /// The storage.
    pub fn storage(&self) -> &dyn AsyncStorage {
        &*self.disk.behind.storage
    }

    /// What the storage has failed at. The guest gets S_IOERR for each.
    pub fn host_failures(&self) -> HostFailures {
        self.disk.failures.get()
    }

    /// The disk as it was saved. The guest keeps what it was told, also if this storage has
    /// other limits, or cannot discard: they say what performs well, not what is possible. It keeps the saved capacity if
    /// the storage has grown: [`refresh_capacity`](Self::refresh_capacity) finds that.
    fn restored(&self, state: &BlockState) -> Result<Disk, BlockError> {
        let &BlockState {
            ref options,
            unmap,
            lifetime,
            zones,
            capacity: saved,
            writeback,
        } = state;
        let behind = &self.disk.behind;
        let abilities = behind.storage.abilities();
        if abilities.read_only && !options.read_only {
            return Err(BlockError::ReadOnly);
        }
        let told = Abilities {
            read_only: options.read_only,
            discard: true,
            unmap,
            secure_erase: true,
            fua: abilities.fua,
        };
        if behind.storage.zones().map(Zones::limits) != zones {
            return Err(BlockError::Zones);
        }
        let disk = Disk::told(behind.clone(), options.clone(), told, lifetime)?;
        let present = disk.capacity();
        if saved > present {
            return Err(BlockError::Shrunk { saved, present });
        }
        disk.capacity.store(saved, Ordering::SeqCst);
        disk.writeback
            .store(writeback.map_or(UNWRITTEN, u8::from), Ordering::SeqCst);
        Ok(disk)
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> DeviceId {
        DeviceId::BLOCK
    }

    fn features(&self) -> u64 {
        self.disk.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.disk.config(), offset, data);
    }

    /// Only `writeback` can be written, if VIRTIO_BLK_F_CONFIG_WCE was negotiated, and only with 0 and 1.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let at = (config::WRITEBACK as u64).checked_sub(offset);
        let byte = at.and_then(|at| data.get(usize::try_from(at).ok()?));
        if let Some(&value @ 0..=1) = byte
            && self.disk.has(feature::CONFIG_WCE)
        {
            self.disk.writeback.store(value, Ordering::SeqCst);
        }
    }

    /// A driver has to know of zones that must be written in order.
    fn accepts(&self, features: u64) -> bool {
        self.disk.zones.is_none() || features & feature::ZONED != 0
    }

    fn negotiated(&mut self, features: u64) {
        self.disk.negotiated.store(features, Ordering::SeqCst);
    }

    fn attach(&mut self, handle: Handle) {
        self.handle = Some(handle);
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        match &self.disk.behind.at_once {
            Some(storage) => at_once::handler(&self.disk, storage),
            None => later::handler(&self.disk, queue, self.handle.clone()),
        }
    }

    fn cancel(&mut self, queue: QueueIndex) {
        if self.disk.behind.at_once.is_none()
            && let Some(asked) = self.disk.cancels.get(usize::from(queue.0))
            && let Some(handle) = &self.handle
        {
            // By its handler, in its next round.
            asked.store(true, Ordering::SeqCst);
            handle.look(queue);
        }
    }

    fn reset(&mut self) {
        self.disk.negotiated.store(0, Ordering::SeqCst);
        self.disk.writeback.store(UNWRITTEN, Ordering::SeqCst);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(self.disk.save())
    }

    /// The guest keeps what it was told, also over a storage with other limits or without discard. The number and the size of the
    /// queues have to be the same; a storage that is smaller than the guest knows it is refused, and a read-only one if the
    /// guest's is not.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Block(state) = state else {
            return Err(DeviceStateError::kind(state, "a block device's"));
        };
        let (saved, made) = (&state.options, &self.disk.options);
        if (saved.queues, saved.queue_size) != (made.queues, made.queue_size) {
            return Err(DeviceStateError::Otherwise(format!(
                "{} queues of {} where the state has {} of {}",
                made.queues, made.queue_size, saved.queues, saved.queue_size
            )));
        }
        let disk = self.restored(state);
        self.disk = Arc::new(disk.map_err(|error| DeviceStateError::Otherwise(error.to_string()))?);
        Ok(())
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("options", &self.disk.options)
            .field("capacity", &self.disk.capacity)
            .field("failures", &self.disk.failures)
            .finish_non_exhaustive()
    }
}
