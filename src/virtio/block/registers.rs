//! Numbers of the block device (virtio 1.2, section 5.2).

use virtio_bindings::virtio_blk as blk;

/// Bytes of a sector: the unit of the protocol, whatever the block size is (section 5.2.5).
pub const SECTOR: u64 = 512;

/// Feature bits (section 5.2.3), as masks.
pub mod feature {
    use super::blk;

    /// `VIRTIO_BLK_F_SIZE_MAX`: the longest segment is in `size_max`.
    pub const SIZE_MAX: u64 = 1 << blk::VIRTIO_BLK_F_SIZE_MAX;
    /// `VIRTIO_BLK_F_SEG_MAX`: the largest number of segments is in `seg_max`.
    pub const SEG_MAX: u64 = 1 << blk::VIRTIO_BLK_F_SEG_MAX;
    /// `VIRTIO_BLK_F_GEOMETRY`: cylinders, heads and sectors.
    pub const GEOMETRY: u64 = 1 << blk::VIRTIO_BLK_F_GEOMETRY;
    /// `VIRTIO_BLK_F_RO`: read-only.
    pub const RO: u64 = 1 << blk::VIRTIO_BLK_F_RO;
    /// `VIRTIO_BLK_F_BLK_SIZE`: the block size is in `blk_size`.
    pub const BLK_SIZE: u64 = 1 << blk::VIRTIO_BLK_F_BLK_SIZE;
    /// `VIRTIO_BLK_F_FLUSH`: flush requests.
    pub const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
    /// `VIRTIO_BLK_F_TOPOLOGY`: optimal sizes and alignment.
    pub const TOPOLOGY: u64 = 1 << blk::VIRTIO_BLK_F_TOPOLOGY;
    /// `VIRTIO_BLK_F_CONFIG_WCE`: the driver chooses between writeback and writethrough.
    pub const CONFIG_WCE: u64 = 1 << blk::VIRTIO_BLK_F_CONFIG_WCE;
    /// `VIRTIO_BLK_F_MQ`: several queues.
    pub const MQ: u64 = 1 << blk::VIRTIO_BLK_F_MQ;
    /// `VIRTIO_BLK_F_DISCARD`: discard requests.
    pub const DISCARD: u64 = 1 << blk::VIRTIO_BLK_F_DISCARD;
    /// `VIRTIO_BLK_F_WRITE_ZEROES`: write zeroes requests.
    pub const WRITE_ZEROES: u64 = 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
    /// `VIRTIO_BLK_F_LIFETIME`: requests that ask how worn the storage is.
    pub const LIFETIME: u64 = 1 << 15;
    /// `VIRTIO_BLK_F_SECURE_ERASE`: secure erase requests.
    pub const SECURE_ERASE: u64 = 1 << blk::VIRTIO_BLK_F_SECURE_ERASE;
    /// `VIRTIO_BLK_F_ZONED` (virtio 1.3): zones, and requests for them.
    pub const ZONED: u64 = 1 << 17;
}

/// Offsets in the configuration space (section 5.2.4).
pub mod config {
    pub const CAPACITY: usize = 0;
    pub const SIZE_MAX: usize = 8;
    pub const SEG_MAX: usize = 12;
    /// `cylinders`, then `heads` at +2 and `sectors` at +3.
    pub const GEOMETRY: usize = 16;
    pub const BLK_SIZE: usize = 20;
    /// `physical_block_exp`, then `alignment_offset` at +1, `min_io_size` at +2 and `opt_io_size` at +4.
    pub const TOPOLOGY: usize = 24;
    pub const WRITEBACK: usize = 32;
    pub const NUM_QUEUES: usize = 34;
    pub const MAX_DISCARD_SECTORS: usize = 36;
    pub const MAX_DISCARD_SEG: usize = 40;
    pub const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    pub const MAX_SECURE_ERASE_SECTORS: usize = 60;
    pub const MAX_SECURE_ERASE_SEG: usize = 64;
    pub const SECURE_ERASE_SECTOR_ALIGNMENT: usize = 68;
    /// `zone_sectors`, then `max_open_zones` at +4, `max_active_zones` at +8, `max_append_sectors` at +12, `write_granularity` at +16
    /// and `model` at +20.
    pub const ZONED: usize = 72;
    /// The `model` of zones that are written from their beginning on alone.
    pub const HOST_MANAGED: u8 = 1;
    pub const LEN: usize = 96;
}

/// Request types (section 5.2.6).
pub mod request {
    use super::blk;

    pub const IN: u32 = blk::VIRTIO_BLK_T_IN;
    pub const OUT: u32 = blk::VIRTIO_BLK_T_OUT;
    pub const FLUSH: u32 = blk::VIRTIO_BLK_T_FLUSH;
    pub const GET_ID: u32 = blk::VIRTIO_BLK_T_GET_ID;
    pub const GET_LIFETIME: u32 = 10;
    pub const SECURE_ERASE: u32 = blk::VIRTIO_BLK_T_SECURE_ERASE;
    pub const DISCARD: u32 = blk::VIRTIO_BLK_T_DISCARD;
    pub const ZONE_APPEND: u32 = 15;
    pub const ZONE_REPORT: u32 = 16;
    pub const ZONE_OPEN: u32 = 18;
    pub const ZONE_CLOSE: u32 = 20;
    pub const ZONE_FINISH: u32 = 22;
    pub const ZONE_RESET: u32 = 24;
    pub const ZONE_RESET_ALL: u32 = 26;
    pub const WRITE_ZEROES: u32 = blk::VIRTIO_BLK_T_WRITE_ZEROES;

    /// Bytes of `type`, `reserved` and `sector`.
    pub const HEADER: usize = 16;
    /// Bytes of the answer to GET_ID.
    pub const ID: usize = 20;
    /// Bytes of `struct virtio_blk_lifetime`.
    pub const LIFETIME: usize = 6;
    /// Bytes of `struct virtio_blk_zone_report` without its zones, and of each `struct virtio_blk_zone_descriptor`.
    pub const ZONE: usize = 64;
    /// The type of zones that must be written in order.
    pub const ZONE_SEQUENTIAL: u8 = 2;
    /// `VIRTIO_BLK_ZT_CONV`.
    pub const ZONE_CONVENTIONAL: u8 = 1;
    /// Bytes of `append_sector`, before the status.
    pub const APPEND_SECTOR: u32 = 8;
    /// Bytes of `struct virtio_blk_discard_write_zeroes`.
    pub const SEGMENT: usize = 16;
    /// The only flag of such a segment that has a meaning.
    pub const FLAG_UNMAP: u32 = 1;
}

/// The `status` byte of a request (section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = blk::VIRTIO_BLK_S_OK as u8,
    IoErr = blk::VIRTIO_BLK_S_IOERR as u8,
    Unsupp = blk::VIRTIO_BLK_S_UNSUPP as u8,
    ZoneInvalidCmd = 3,
    ZoneUnalignedWp = 4,
    ZoneOpenResource = 5,
    ZoneActiveResource = 6,
}
