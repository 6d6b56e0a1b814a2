//! The block device (virtio 1.2, section 5.2).

mod direct;
mod file;
mod limits;
mod memory;
mod options;
mod registers;
mod request;
mod storage;

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use super::{
    DeviceId, DeviceState, DeviceStateError, FailureLog, Fault, HostFailures, QueueHandler, QueueIndex, Round,
    VirtioDevice, device::read_config_bytes, queue::Slices,
};
use registers::{SECTOR, config, feature};

pub use file::{FileError, FileStorage};
pub use limits::Limits;
pub use memory::MemoryStorage;
pub use options::{BlockError, BlockOptions, Geometry, RangeLimits, Topology};
pub use storage::{Abilities, Storage};

/// A disk.
///
/// The requests of a queue are answered in order, one at a time, in the round that finds them; those of different queues at the same
/// time, on as many threads as serve them. A flush covers what was completed before it on any queue.
///
/// *What the guest gets*: S_OK, or S_IOERR for what the storage refuses and for what the driver must not ask (sectors
/// past the end, a part of a sector, a write to a read-only disk, more segments than allowed), or S_UNSUPP for what was
/// not negotiated. A request that is refused has changed nothing. The status is the last device-writable byte, however
/// the driver has cut the request into descriptors. Device-writable bytes before it that the request does not fill are
/// zeroed, so the used length is always all of them: a driver must not look at bytes beyond it (section 2.7.8.2), and
/// the status of a failed read is one. A chain without room for header or status comes back with a used length of 0.
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
}

/// What the control face and the queues share.
struct Disk {
    // Configured.
    /// All that the guest is told: nothing is left to the storage.
    options: BlockOptions,
    /// `write_zeroes_may_unmap`.
    unmap: bool,
    features: u64,
    // Plugged in.
    storage: Arc<dyn Storage>,
    failures: FailureLog,
    /// Sectors that the guest may touch.
    capacity: AtomicU64,
    // What the guest can change.
    /// What the driver has accepted. From FEATURES_OK on it may read `writeback`, which hangs on it.
    negotiated: AtomicU64,
    /// What the driver wrote to `writeback`; another value, if it did not.
    writeback: AtomicU8,
}

/// Not a value of `writeback`.
const UNWRITTEN: u8 = 2;

/// The state of a block device as plain data. What the storage keeps is the embedder's to save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockState {
    /// How the device looks to the guest, with what the storage said where the embedder's options left it open.
    pub options: BlockOptions,
    /// Whether the guest was told that write zeroes may give space back.
    pub unmap: bool,
    /// Sectors of 512 bytes that the guest knows of.
    pub capacity: u64,
    /// What the driver wrote to `writeback`, if it did.
    pub writeback: Option<bool>,
}

impl Block {
    /// A disk with the data of `storage`. Its capacity is rounded down to whole blocks.
    ///
    /// # Errors
    /// An option is out of range, or the storage does not tell its capacity.
    pub fn new(storage: impl Storage + 'static, options: BlockOptions) -> Result<Self, BlockError> {
        let abilities = storage.abilities();
        let disk = Disk::told(Arc::new(storage), options, abilities)?;
        Ok(Self {
            queue_sizes: vec![disk.options.queue_size; disk.options.queues.into()].into(),
            disk: Arc::new(disk),
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
    pub fn storage(&self) -> &dyn Storage {
        &*self.disk.storage
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
            capacity: saved,
            writeback,
        } = state;
        let storage = &self.disk.storage;
        if storage.abilities().read_only && !options.read_only {
            return Err(BlockError::ReadOnly);
        }
        let told = Abilities {
            read_only: options.read_only,
            discard: true,
            unmap,
        };
        let disk = Disk::told(Arc::clone(storage), options.clone(), told)?;
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

impl Disk {
    fn told(storage: Arc<dyn Storage>, options: BlockOptions, abilities: Abilities) -> Result<Self, BlockError> {
        let options = options.over(abilities, storage.limits())?;
        let disk = Self {
            features: offered(&options),
            options,
            unmap: abilities.unmap,
            storage,
            failures: FailureLog::default(),
            capacity: AtomicU64::new(0),
            negotiated: AtomicU64::new(0),
            writeback: AtomicU8::new(UNWRITTEN),
        };
        disk.capacity.store(disk.present()?, Ordering::SeqCst);
        Ok(disk)
    }

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::SeqCst)
    }

    /// Sectors that the storage has, of whole blocks.
    fn present(&self) -> io::Result<u64> {
        let block_size = u64::from(self.options.blk_size());
        Ok(self.storage.capacity()? / block_size * (block_size / SECTOR))
    }

    fn save(&self) -> BlockState {
        let Self {
            options,
            unmap,
            // Follow from the options.
            features: _,
            // The embedder's.
            storage: _,
            // A count of this process.
            failures: _,
            capacity,
            // The transport's, which hands it to us again.
            negotiated: _,
            writeback,
        } = self;
        BlockState {
            options: options.clone(),
            unmap: *unmap,
            capacity: capacity.load(Ordering::SeqCst),
            writeback: written(writeback),
        }
    }

    /// Whether a feature was negotiated. One that is not offered never is, whoever claims so.
    fn has(&self, feature: u64) -> bool {
        self.negotiated.load(Ordering::SeqCst) & self.features & feature != 0
    }

    fn is_read_only(&self) -> bool {
        self.features & feature::RO != 0
    }

    /// Whether completed writes may be volatile until a flush.
    fn is_writeback(&self) -> bool {
        match written(&self.writeback) {
            Some(chosen) if self.has(feature::CONFIG_WCE) => chosen,
            // Also the initial value of the register: "If VIRTIO_BLK_F_CONFIG_WCE is negotiated but VIRTIO_BLK_F_FLUSH
            // is not, the device MUST initialize writeback to 0" (section 5.2.5.2).
            _ => self.has(feature::FLUSH),
        }
    }

    /// The configuration space (section 5.2.4). A field whose feature is not offered is zero.
    fn config(&self) -> [u8; config::LEN] {
        let mut space = [0; config::LEN];
        let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
        let Self { options, .. } = self;
        put(config::CAPACITY, &self.capacity().to_le_bytes());
        put(config::SIZE_MAX, &options.size_max.unwrap_or(0).to_le_bytes());
        put(config::SEG_MAX, &u32::from(options.queue_size - 2).to_le_bytes());
        if let Some(geometry) = options.geometry {
            put(config::GEOMETRY, &geometry.cylinders.to_le_bytes());
            put(config::GEOMETRY + 2, &[geometry.heads, geometry.sectors]);
        }
        put(config::BLK_SIZE, &options.blk_size().to_le_bytes());
        if let Some(topology) = options.topology {
            put(
                config::TOPOLOGY,
                &[topology.physical_block_exp, topology.alignment_offset],
            );
            put(config::TOPOLOGY + 2, &topology.minimum_io_blocks.to_le_bytes());
            put(config::TOPOLOGY + 4, &topology.optimal_io_blocks.to_le_bytes());
        }
        if options.config_wce {
            put(config::WRITEBACK, &[self.is_writeback().into()]);
        }
        if self.features & feature::MQ != 0 {
            put(config::NUM_QUEUES, &options.queues.to_le_bytes());
        }
        if let Some(limits) = options.discard.filter(|_| self.features & feature::DISCARD != 0) {
            put(config::MAX_DISCARD_SECTORS, &limits.max_sectors.to_le_bytes());
            put(config::MAX_DISCARD_SEG, &limits.max_segments.to_le_bytes());
            put(
                config::DISCARD_SECTOR_ALIGNMENT,
                &options.discard_sector_alignment().to_le_bytes(),
            );
        }
        if let Some(limits) = options
            .write_zeroes
            .filter(|_| self.features & feature::WRITE_ZEROES != 0)
        {
            put(config::MAX_WRITE_ZEROES_SECTORS, &limits.max_sectors.to_le_bytes());
            put(config::MAX_WRITE_ZEROES_SEG, &limits.max_segments.to_le_bytes());
            put(config::WRITE_ZEROES_MAY_UNMAP, &[self.unmap.into()]);
        }
        space
    }
}

/// The features of a device with these options, over whatever storage.
fn offered(options: &BlockOptions) -> u64 {
    let &BlockOptions { read_only, .. } = options;
    let topology = options.topology.unwrap_or_default() != Topology::default();
    let optional = [
        (feature::RO, read_only),
        (feature::SIZE_MAX, options.size_max.is_some()),
        (feature::GEOMETRY, options.geometry.is_some()),
        (feature::TOPOLOGY, topology),
        (feature::CONFIG_WCE, options.config_wce),
        (feature::MQ, options.queues > 1),
        (feature::DISCARD, options.discard.is_some() && !read_only),
        (feature::WRITE_ZEROES, options.write_zeroes.is_some() && !read_only),
    ];
    // "Devices SHOULD always offer VIRTIO_BLK_F_FLUSH" (section 5.2.5.2).
    let always = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
    optional
        .iter()
        .fold(always, |all, &(bit, on)| if on { all | bit } else { all })
}

/// What the driver wrote to `writeback`, if it did.
fn written(writeback: &AtomicU8) -> Option<bool> {
    match writeback.load(Ordering::SeqCst) {
        0 => Some(false),
        1 => Some(true),
        _ => None,
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

    fn negotiated(&mut self, features: u64) {
        self.disk.negotiated.store(features, Ordering::SeqCst);
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Requests {
            disk: Arc::clone(&self.disk),
            room: Slices::default(),
        })
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

/// Serves a request queue.
struct Requests {
    disk: Arc<Disk>,
    room: Slices,
}

impl QueueHandler for Requests {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let Self { disk, room } = self;
        Ok(round.each(|chain| disk.answer(chain, room))?)
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
