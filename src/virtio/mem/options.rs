//! What an embedder decides about a memory device.

use std::ops::Range;

/// What an embedder says about the driver reading memory that is unplugged (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnpluggedAccess {
    /// A driver may read it, and is not told otherwise. Linux before 5.17 knows nothing else.
    Allowed,
    /// A driver that can is told not to.
    #[default]
    Discouraged,
    /// A driver that cannot be told so does not get the device: for memory that would be there once it is read.
    Refused,
}

/// What a memory device has, and how it looks to the guest.
///
/// ```
/// use devisor::virtio::{mem::{MemoryDevice, MemoryDeviceOptions}, reclaim::Recorded};
///
/// let options = MemoryDeviceOptions::new(0x1_0000_0000..0x1_4000_0000);
/// let device = MemoryDevice::new(Recorded::new([options.region.clone()]), options)?;
/// assert_eq!(device.plugged_size(), 0);
/// # Ok::<(), devisor::virtio::mem::MemoryDeviceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryDeviceOptions {
    /// The guest physical addresses of the memory that the device manages: whole blocks, at a multiple of the block size. The guest's
    /// memory has to be there, at least where it is plugged.
    pub region: Range<u64>,
    /// Bytes of a block: a power of two, at least 4096, and whole pages of the host.
    pub block_size: u64,
    /// `requested_size` at the beginning: how many bytes the guest is to have plugged. Whole blocks, within the region.
    pub requested_size: u64,
    /// By how many bytes the usable part of the region is larger than what is requested, as far as the region goes: room for the driver
    /// to choose blocks in. Rounded up to whole blocks.
    pub usable_extra: u64,
    /// The ACPI proximity domain of the memory (VIRTIO_MEM_F_ACPI_PXM).
    pub node_id: Option<u16>,
    /// Whether a driver may read what is unplugged.
    pub unplugged_access: UnpluggedAccess,
    /// Size of the queue, a power of two up to 32768.
    pub queue_size: u16,
}

impl MemoryDeviceOptions {
    /// The most blocks that a region may have: there is a bit for each.
    pub const MAX_BLOCKS: u64 = 1 << 26;

    /// The memory at these guest physical addresses, in blocks of 2 MiB, none of it requested.
    pub fn new(region: Range<u64>) -> Self {
        Self {
            region,
            block_size: 2 << 20,
            requested_size: 0,
            usable_extra: 256 << 20,
            node_id: None,
            unplugged_access: UnpluggedAccess::default(),
            queue_size: 64,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.region.end.saturating_sub(self.region.start)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.size() / self.block_size
    }

    /// `usable_region_size`, if so much is requested.
    pub(super) fn usable(&self, requested: u64) -> u64 {
        let extra = self.usable_extra.checked_next_multiple_of(self.block_size);
        let usable = extra.and_then(|extra| requested.checked_add(extra));
        match requested {
            0 => 0,
            _ => usable.map_or(self.size(), |usable| usable.min(self.size())),
        }
    }

    pub(super) fn check(&self, granularity: u64) -> Result<(), MemoryDeviceError> {
        let Self {
            region,
            block_size,
            requested_size,
            usable_extra: _,
            node_id: _,
            unplugged_access: _,
            queue_size,
        } = self;
        let block_size = *block_size;
        if !block_size.is_power_of_two() || block_size < 4096.max(granularity) {
            return Err(MemoryDeviceError::BlockSize {
                block_size,
                granularity,
            });
        }
        let whole = |bytes: u64| bytes.is_multiple_of(block_size);
        if region.start > region.end || !whole(region.start) || !whole(region.end) || self.blocks() > Self::MAX_BLOCKS {
            return Err(MemoryDeviceError::Region {
                start: region.start,
                end: region.end,
                block_size,
            });
        }
        if !queue_size.is_power_of_two() {
            return Err(MemoryDeviceError::QueueSize(*queue_size));
        }
        self.check_requested(*requested_size)
    }

    pub(super) fn check_requested(&self, bytes: u64) -> Result<(), MemoryDeviceError> {
        match bytes.is_multiple_of(self.block_size) && bytes <= self.size() {
            true => Ok(()),
            false => Err(MemoryDeviceError::Requested {
                bytes,
                block_size: self.block_size,
                size: self.size(),
            }),
        }
    }
}

/// A memory device cannot be made, or asked for, as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryDeviceError {
    /// No such block size.
    #[error(
        "blocks of {block_size} bytes: a power of two, at least 4096 and the host's pages of {granularity}, is accepted"
    )]
    BlockSize {
        /// What was asked for.
        block_size: u64,
        /// Bytes of a page of the host's.
        granularity: u64,
    },
    /// The region is no whole blocks.
    #[error(
        "a region from {start:#x} to {end:#x}: up to {} whole blocks of {block_size:#x} bytes, at a multiple of it, are accepted",
        MemoryDeviceOptions::MAX_BLOCKS
    )]
    Region {
        /// First address.
        start: u64,
        /// The address after the last.
        end: u64,
        /// Bytes of a block.
        block_size: u64,
    },
    /// What is requested is no whole blocks, or more than there are.
    #[error("{bytes} bytes are requested: whole blocks of {block_size}, {size} at most, are accepted")]
    Requested {
        /// What was asked for.
        bytes: u64,
        /// Bytes of a block.
        block_size: u64,
        /// Bytes of the region.
        size: u64,
    },
    /// No such queue size.
    #[error("queue size {0}: a power of two up to 32768 is accepted")]
    QueueSize(u16),
}
