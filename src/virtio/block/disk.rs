//! What the control face of a block device and its queues share (virtio 1.2, section 5.2).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use super::{
    Abilities, AsyncStorage, BlockError, BlockOptions, BlockState, Storage, Synchronous, Topology, ZoneLimits, Zones,
    registers::{SECTOR, config, feature},
};
use crate::virtio::FailureLog;

/// What the control face and the queues share.
pub(super) struct Disk {
    // Configured.
    /// All that the guest is told: nothing is left to the storage.
    pub options: BlockOptions,
    /// `write_zeroes_may_unmap`.
    unmap: bool,
    /// The zones are host-managed, of which the guest is told.
    pub zones: Option<ZoneLimits>,
    /// VIRTIO_BLK_F_LIFETIME is offered.
    pub lifetime: bool,
    pub features: u64,
    /// Writes can be stable when they end.
    pub fua: bool,
    // Plugged in.
    pub behind: Behind,
    pub failures: FailureLog,
    /// Sectors that the guest may touch.
    pub capacity: AtomicU64,
    // What the guest can change.
    /// What the driver has accepted. From FEATURES_OK on it may read `writeback`, which hangs on it.
    pub negotiated: AtomicU64,
    /// What the driver wrote to `writeback`; another value, if it did not.
    pub writeback: AtomicU8,
    /// For each queue, that its requests are to be canceled.
    pub cancels: Box<[AtomicBool]>,
}

/// Not a value of `writeback`.
pub(super) const UNWRITTEN: u8 = 2;

/// What keeps the data.
#[derive(Clone)]
pub(super) struct Behind {
    /// Of which everything is asked but its data, in any case.
    pub storage: Arc<dyn AsyncStorage>,
    /// The same, if it answers at once.
    pub at_once: Option<Arc<dyn Storage>>,
}

impl Behind {
    pub fn at_once(storage: Arc<dyn Storage>) -> Self {
        Self {
            storage: Arc::new(Synchronous::from(Arc::clone(&storage))),
            at_once: Some(storage),
        }
    }

    pub fn later(storage: Arc<dyn AsyncStorage>) -> Self {
        Self { storage, at_once: None }
    }
}

impl Disk {
    pub fn told(
        behind: Behind,
        options: BlockOptions,
        abilities: Abilities,
        lifetime: bool,
    ) -> Result<Self, BlockError> {
        let zones = behind.storage.zones().map(Zones::limits);
        let mut options = options.over(abilities, behind.storage.limits())?;
        if zones.is_some() {
            // Zones are reset.
            (options.discard, options.write_zeroes, options.secure_erase) = (None, None, None);
        }
        let more = [(feature::LIFETIME, lifetime), (feature::ZONED, zones.is_some())];
        let more = more.iter().filter(|(_, on)| *on).fold(0, |all, (bit, _)| all | bit);
        let disk = Self {
            features: offered(&options) | more,
            zones,
            lifetime,
            cancels: (0..options.queues).map(|_| AtomicBool::new(false)).collect(),
            options,
            unmap: abilities.unmap,
            fua: abilities.fua,
            behind,
            failures: FailureLog::default(),
            capacity: AtomicU64::new(0),
            negotiated: AtomicU64::new(0),
            writeback: AtomicU8::new(UNWRITTEN),
        };
        disk.capacity.store(disk.present()?, Ordering::SeqCst);
        Ok(disk)
    }

    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::SeqCst)
    }

    /// Sectors that the storage has, of whole blocks.
    pub fn present(&self) -> io::Result<u64> {
        let block_size = u64::from(self.options.blk_size());
        Ok(self.behind.storage.capacity()? / block_size * (block_size / SECTOR))
    }

    pub fn save(&self) -> BlockState {
        let Self {
            options,
            unmap,
            lifetime,
            zones,
            // Follow from the options.
            features: _,
            // The storage's.
            fua: _,
            // The embedder's.
            behind: _,
            // A count of this process.
            failures: _,
            capacity,
            // The transport's, which hands it to us again.
            negotiated: _,
            writeback,
            // Of requests, of which there are none.
            cancels: _,
        } = self;
        BlockState {
            options: options.clone(),
            unmap: *unmap,
            lifetime: *lifetime,
            zones: *zones,
            capacity: capacity.load(Ordering::SeqCst),
            writeback: written(writeback),
        }
    }

    /// Whether a feature was negotiated. One that is not offered never is, whoever claims so.
    pub fn has(&self, feature: u64) -> bool {
        self.negotiated.load(Ordering::SeqCst) & self.features & feature != 0
    }

    pub fn is_read_only(&self) -> bool {
        self.features & feature::RO != 0
    }

    /// Whether completed writes may be volatile until a flush.
    pub fn is_writeback(&self) -> bool {
        match written(&self.writeback) {
            Some(chosen) if self.has(feature::CONFIG_WCE) => chosen,
            // Also the initial value of the register: "If VIRTIO_BLK_F_CONFIG_WCE is negotiated but VIRTIO_BLK_F_FLUSH
            // is not, the device MUST initialize writeback to 0" (section 5.2.5.2).
            _ => self.has(feature::FLUSH),
        }
    }

    /// The configuration space (section 5.2.4). A field whose feature is not offered is zero.
    pub fn config(&self) -> [u8; config::LEN] {
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
        if let Some(limits) = options
            .secure_erase
            .filter(|_| self.features & feature::SECURE_ERASE != 0)
        {
            put(config::MAX_SECURE_ERASE_SECTORS, &limits.max_sectors.to_le_bytes());
            put(config::MAX_SECURE_ERASE_SEG, &limits.max_segments.to_le_bytes());
            put(
                config::SECURE_ERASE_SECTOR_ALIGNMENT,
                &options.discard_sector_alignment().to_le_bytes(),
            );
        }
        if let Some(zones) = self.zones {
            let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX);
            let numbers = [
                sectors(zones.zone_size),
                zones.max_open,
                zones.max_active,
                sectors(zones.max_append.into()),
                zones.write_granularity,
            ];
            for (index, number) in numbers.iter().enumerate() {
                put(config::ZONED + 4 * index, &number.to_le_bytes());
            }
            put(config::ZONED + 20, &[config::HOST_MANAGED]);
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
        (feature::SECURE_ERASE, options.secure_erase.is_some() && !read_only),
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
