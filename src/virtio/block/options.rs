//! What an embedder decides about a block device.

use std::io;

use super::{
    Abilities, Limits,
    registers::{SECTOR, request},
};

/// How a block device looks to the guest. The defaults suit a disk image in a file, and a disk of the host.
///
/// What is `None` and says so is as the [`limits`](super::Storage::limits) of the storage have it.
///
/// ```
/// use devisor::virtio::block::{BlockOptions, Topology};
///
/// let options = BlockOptions {
///     id: "root".into(),
///     block_size: Some(4096),
///     topology: Some(Topology { optimal_io_blocks: 32, ..Topology::default() }),
///     ..BlockOptions::default()
/// };
/// assert_eq!(options.queue_size, 256);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// The device ID string: up to 20 bytes of ASCII. Linux shows it as `serial`.
    pub id: String,
    /// Refuses writes, also if the storage takes them. A storage that does not makes the device read-only anyway.
    pub read_only: bool,
    /// `blk_size`: bytes of a block, a power of two from 512 to 65536. The capacity is rounded down to whole blocks. If
    /// `None`, as the storage says.
    pub block_size: Option<u32>,
    /// Number of request queues, at least one. The driver must have VIRTIO_BLK_F_MQ to use more than the first.
    pub queues: u16,
    /// Size of each queue, a power of two from 4 to 32768. `seg_max` is two less: what a chain has room for beside
    /// header and status.
    pub queue_size: u16,
    /// `size_max`: bytes of the longest segment that the driver should make, at least 4096.
    pub size_max: Option<u32>,
    /// Cylinders, heads and sectors, for firmware and systems that ask for them.
    pub geometry: Option<Geometry>,
    /// Optimal sizes and alignment, offered if any of it is not zero. If `None`, as the storage says.
    pub topology: Option<Topology>,
    /// Offers VIRTIO_BLK_F_CONFIG_WCE: lets the driver choose between writeback (which it finds) and writethrough.
    pub config_wce: bool,
    /// Offers discard within these limits, if the storage can do it.
    pub discard: Option<RangeLimits>,
    /// `discard_sector_alignment`, in sectors of 512 bytes, at least one. A recommendation: others are discarded too. If
    /// `None`, as the storage says. There is none for write zeroes.
    pub discard_alignment: Option<u32>,
    /// Offers write zeroes within these limits. A storage that cannot do it by itself gets zeros written to it, so
    /// this limits how long one request may take.
    pub write_zeroes: Option<RangeLimits>,
    /// Offers secure erase within these limits, if the storage can do it. Its alignment is that of discard.
    pub secure_erase: Option<RangeLimits>,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            id: "devisor".into(),
            read_only: false,
            block_size: None,
            queues: 1,
            queue_size: 256,
            size_max: None,
            geometry: None,
            topology: None,
            config_wce: true,
            // 2 GiB each.
            discard: Some(RangeLimits {
                max_sectors: 1 << 22,
                max_segments: 32,
            }),
            discard_alignment: None,
            // 32 MiB.
            write_zeroes: Some(RangeLimits {
                max_sectors: 1 << 16,
                max_segments: 1,
            }),
            secure_erase: Some(RangeLimits {
                max_sectors: 1 << 22,
                max_segments: 32,
            }),
        }
    }
}

/// Limits of a discard or write zeroes request. A request beyond them does nothing and gets S_IOERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Sectors of 512 bytes in a segment, at least one.
    pub max_sectors: u32,
    /// Segments in a request, from 1 to [`MAX_SEGMENTS`](Self::MAX_SEGMENTS).
    pub max_segments: u32,
}

impl RangeLimits {
    /// The most segments in a request that can be allowed: its segments are read into memory, 16 bytes each.
    pub const MAX_SEGMENTS: u32 = 1024;
}

/// Disk geometry (`struct virtio_blk_geometry`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    /// Number of cylinders.
    pub cylinders: u16,
    /// Number of heads.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors: u8,
}

/// What sizes and alignment perform well (`struct virtio_blk_topology`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// `physical_block_exp`: a physical block is two to the power of this many blocks.
    pub physical_block_exp: u8,
    /// `alignment_offset`: the first block that is aligned to a physical one.
    pub alignment_offset: u8,
    /// `min_io_size`: the suggested minimum, in blocks.
    pub minimum_io_blocks: u16,
    /// `opt_io_size`: the suggested maximum, in blocks.
    pub optimal_io_blocks: u32,
}

impl Topology {
    /// What a storage says, for a guest that counts in such blocks.
    fn of(limits: Limits, block_size: u32) -> Self {
        let Limits {
            logical_block: _,
            physical_block,
            alignment_offset,
            minimum_io,
            optimal_io,
            discard_granularity: _,
        } = limits;
        let io = Self {
            minimum_io_blocks: u16::try_from(minimum_io / block_size).unwrap_or(u16::MAX),
            optimal_io_blocks: optimal_io / block_size,
            ..Self::default()
        };
        // Physical blocks that the guest cannot be told the place of are better not known.
        let first = u8::try_from(alignment_offset / block_size).ok();
        match first.filter(|_| alignment_offset.is_multiple_of(block_size)) {
            Some(alignment_offset) if physical_block > block_size => Self {
                physical_block_exp: (physical_block / block_size).ilog2() as u8,
                alignment_offset,
                ..io
            },
            _ => io,
        }
    }
}

/// A block device cannot be made as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The storage does not tell its capacity.
    #[error("the storage does not tell its capacity: {0}")]
    Capacity(#[from] io::Error),
    /// The ID string is too long or not ASCII.
    #[error("device ID {0:?}: up to 20 bytes of ASCII are accepted")]
    Id(String),
    /// No such block size.
    #[error("block size {0}: a power of two from 512 to 65536 is accepted")]
    BlockSize(u32),
    /// No queue.
    #[error("no request queue: at least one is needed")]
    NoQueue,
    /// No such queue size.
    #[error("queue size {0}: a power of two from 4 to 32768 is accepted")]
    QueueSize(u16),
    /// Segments that drivers do not make.
    #[error("segments of {0} bytes at most: at least 4096 is accepted")]
    SizeMax(u32),
    /// A limit that is zero or too high.
    #[error("{field} is {value}: 1 to {max} is accepted")]
    Limit {
        /// As it is called in the configuration space.
        field: &'static str,
        /// What was asked for.
        value: u32,
        /// The most that there can be.
        max: u32,
    },
    /// The guest may write and the storage refuses it.
    #[error("the guest was told that it can write, and the storage is read-only: a writable one is needed")]
    ReadOnly,
    /// The zones are not those that the guest was told of before its state was saved.
    #[error("the guest knows of other zones than the storage has: a storage with the same is needed")]
    Zones,
    /// The storage is smaller than what the guest was told before its state was saved.
    #[error("the guest knows of {saved} sectors and the storage has {present}: at least as many are needed")]
    Shrunk {
        /// Sectors of 512 bytes in the state.
        saved: u64,
        /// Sectors of 512 bytes in the storage.
        present: u64,
    },
}

impl BlockOptions {
    /// With what the storage says where they leave it open: all that the guest is told.
    pub(super) fn over(self, abilities: Abilities, limits: Limits) -> Result<Self, BlockError> {
        let block_size = self.block_size.unwrap_or(limits.logical_block);
        let told = Self {
            read_only: self.read_only || abilities.read_only,
            block_size: Some(block_size),
            discard: self.discard.filter(|_| abilities.discard),
            secure_erase: self.secure_erase.filter(|_| abilities.secure_erase),
            ..self
        };
        told.check()?;
        let discard = u64::from(limits.discard_granularity.max(block_size)) / SECTOR;
        Ok(Self {
            topology: Some(told.topology.unwrap_or_else(|| Topology::of(limits, block_size))),
            discard_alignment: Some(told.discard_alignment.unwrap_or(discard as u32)),
            ..told
        })
    }

    pub(super) fn blk_size(&self) -> u32 {
        self.block_size.unwrap_or(SECTOR as u32)
    }

    pub(super) fn discard_sector_alignment(&self) -> u32 {
        self.discard_alignment.unwrap_or(1)
    }

    fn check(&self) -> Result<(), BlockError> {
        let Self {
            id,
            read_only: _,
            block_size: _,
            queues,
            queue_size,
            size_max,
            geometry: _,
            topology: _,
            config_wce: _,
            discard,
            discard_alignment: _,
            write_zeroes,
            secure_erase,
        } = self;
        if id.len() > request::ID || !id.is_ascii() {
            return Err(BlockError::Id(id.clone()));
        }
        let block_size = self.blk_size();
        if !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) {
            return Err(BlockError::BlockSize(block_size));
        }
        if *queues == 0 {
            return Err(BlockError::NoQueue);
        }
        if !queue_size.is_power_of_two() || *queue_size < 4 {
            return Err(BlockError::QueueSize(*queue_size));
        }
        if let Some(size @ ..4096) = size_max {
            return Err(BlockError::SizeMax(*size));
        }
        let in_limit = |field, value, max| match value {
            0 => Err(BlockError::Limit { field, value, max }),
            _ if value > max => Err(BlockError::Limit { field, value, max }),
            _ => Ok(()),
        };
        if let Some(limits) = discard {
            in_limit("max_discard_sectors", limits.max_sectors, u32::MAX)?;
            in_limit("max_discard_seg", limits.max_segments, RangeLimits::MAX_SEGMENTS)?;
        }
        in_limit("discard_sector_alignment", self.discard_sector_alignment(), u32::MAX)?;
        if let Some(limits) = write_zeroes {
            in_limit("max_write_zeroes_sectors", limits.max_sectors, u32::MAX)?;
            in_limit("max_write_zeroes_seg", limits.max_segments, RangeLimits::MAX_SEGMENTS)?;
        }
        if let Some(limits) = secure_erase {
            in_limit("max_secure_erase_sectors", limits.max_sectors, u32::MAX)?;
            in_limit("max_secure_erase_seg", limits.max_segments, RangeLimits::MAX_SEGMENTS)?;
        }
        Ok(())
    }

    /// The ID as GET_ID answers it: padded with zeros.
    pub(super) fn id_bytes(&self) -> [u8; request::ID] {
        let mut bytes = [0; request::ID];
        bytes[..self.id.len()].copy_from_slice(self.id.as_bytes());
        bytes
    }
}
