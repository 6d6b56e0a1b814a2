//! Sizes and alignments of what keeps the data of a block device.

/// In what units a storage works best. None of it is a demand: whatever the guest asks for is done all the same. A
/// device tells its guest, where [`BlockOptions`](crate::virtio::block::BlockOptions) leave it open.
///
/// By default: sectors of 512 bytes, and nothing that performs better than they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a block as the data counts them (a partition table does): a power of two from 512 to 65536.
    pub logical_block: u32,
    /// Bytes that are written as a whole, so that a part of them costs a read before: a power of two.
    pub physical_block: u32,
    /// Where the first physical block begins, in bytes.
    pub alignment_offset: u32,
    /// Bytes of the smallest transfer that performs well; zero if that is a physical block.
    pub minimum_io: u32,
    /// Bytes of a transfer that performs best; zero if there is no such size.
    pub optimal_io: u32,
    /// Bytes that a discard gives back as a whole.
    pub discard_granularity: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of_blocks(512)
    }
}

impl Limits {
    /// Blocks of so many bytes, and nothing else to say.
    pub fn of_blocks(bytes: u32) -> Self {
        Self {
            logical_block: bytes,
            physical_block: bytes,
            alignment_offset: 0,
            minimum_io: 0,
            optimal_io: 0,
            discard_granularity: bytes,
        }
    }
}
