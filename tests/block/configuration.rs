//! What the guest is told of the disk, and what an embedder may choose.

use std::sync::{Arc, atomic::Ordering};

use devisor::virtio::block::{Block, BlockError, BlockOptions, Geometry, Limits, MemoryStorage, RangeLimits, Topology};

use crate::support::*;

#[test]
fn the_configuration_space_is_that_of_the_specification() {
    let options = BlockOptions {
        block_size: Some(4096),
        queues: 3,
        queue_size: 64,
        size_max: Some(0x1_0000),
        geometry: Some(Geometry {
            cylinders: 0x1234,
            heads: 16,
            sectors: 63,
        }),
        topology: Some(Topology {
            physical_block_exp: 3,
            alignment_offset: 1,
            minimum_io_blocks: 0x0102,
            optimal_io_blocks: 0x0304_0506,
        }),
        discard: Some(RangeLimits {
            max_sectors: 0x0708_090a,
            max_segments: 11,
        }),
        discard_alignment: Some(8),
        write_zeroes: Some(RangeLimits {
            max_sectors: 0x0b0c_0d0e,
            max_segments: 12,
        }),
        ..BlockOptions::default()
    };
    let disk = Disk::over(Arc::new(Rigged::new(24)), options);
    let fields: [&[u8]; 20] = [
        &24_u64.to_le_bytes(),
        &0x1_0000_u32.to_le_bytes(),
        &62_u32.to_le_bytes(),
        &0x1234_u16.to_le_bytes(),
        &[16, 63],
        &4096_u32.to_le_bytes(),
        &[3, 1],
        &0x0102_u16.to_le_bytes(),
        &0x0304_0506_u32.to_le_bytes(),
        &[1],
        &[0],
        &3_u16.to_le_bytes(),
        &0x0708_090a_u32.to_le_bytes(),
        &11_u32.to_le_bytes(),
        &8_u32.to_le_bytes(),
        &0x0b0c_0d0e_u32.to_le_bytes(),
        &12_u32.to_le_bytes(),
        &[1],
        &[0; 3],
        // Beyond what is offered.
        &[0; 68],
    ];
    assert_eq!(disk.config(0, 128), fields.concat());
    assert_eq!(disk.config(u64::MAX, 8), [0; 8]);
    let all = [1, 2, 4, 6, 9, 10, 11, 12, 13, 14];
    assert_eq!(disk.offered(), all.iter().fold(0, |all, bit| all | 1 << bit));
}

#[test]
fn what_is_not_offered_is_zero_in_the_configuration_space() {
    let options = BlockOptions {
        config_wce: false,
        discard: None,
        write_zeroes: None,
        ..BlockOptions::default()
    };
    let disk = Disk::over(Arc::new(Rigged::new(24)), options);
    let fields: [&[u8]; 6] = [
        &24_u64.to_le_bytes(),
        &[0; 4],
        &254_u32.to_le_bytes(),
        &[0; 4],
        &512_u32.to_le_bytes(),
        &[0; 36],
    ];
    assert_eq!(disk.config(0, 60), fields.concat());
    assert_eq!(disk.offered(), 1 << 2 | 1 << 6 | 1 << 9);
}

#[test]
fn a_storage_that_cannot_discard_does_not_offer_it() {
    let storage = Rigged::new(24);
    storage.no_discard.store(true, Ordering::SeqCst);
    let disk = Disk::over(Arc::new(storage), BlockOptions::default());
    assert_eq!(disk.offered() & (F_DISCARD | F_WRITE_ZEROES), F_WRITE_ZEROES);
    // Its limits are gone, and zeros do not unmap.
    assert_eq!(disk.config(36, 12), [0; 12]);
    assert_eq!(disk.config(56, 1), [0]);
}

/// A storage with these limits, and its disk.
pub fn over_limits(limits: Limits, options: BlockOptions) -> Disk {
    Disk::over(Arc::new(Rigged::with_limits(256, limits)), options)
}

pub const LIMITS: Limits = Limits {
    logical_block: 4096,
    physical_block: 16384,
    alignment_offset: 8192,
    minimum_io: 65536,
    optimal_io: 1 << 20,
    discard_granularity: 32768,
};

/// `blk_size`, `physical_block_exp`, `alignment_offset`, `min_io_size`, `opt_io_size` and `discard_sector_alignment`.
pub fn told(disk: &Disk) -> (u32, u8, u8, u16, u32, u32) {
    let le32 = |at| u32::from_le_bytes(disk.config(at, 4).try_into().unwrap());
    let [exp, offset, min_low, min_high] = disk.config(24, 4).try_into().unwrap();
    let min = u16::from_le_bytes([min_low, min_high]);
    (le32(20), exp, offset, min, le32(28), le32(44))
}

#[test]
fn the_limits_of_the_storage_are_told_where_the_options_leave_them_open() {
    let disk = over_limits(LIMITS, BlockOptions::default());
    assert_eq!(told(&disk), (4096, 2, 2, 16, 256, 64));
    assert_ne!(disk.offered() & F_TOPOLOGY, 0);
    // In blocks of another size they are other numbers, and no discard is smaller than a block.
    let in_blocks = |size| BlockOptions {
        block_size: Some(size),
        ..BlockOptions::default()
    };
    assert_eq!(told(&over_limits(LIMITS, in_blocks(512))), (512, 5, 16, 128, 2048, 64));
    assert_eq!(told(&over_limits(LIMITS, in_blocks(65536))), (65536, 0, 0, 1, 16, 128));
    let topology = Topology {
        optimal_io_blocks: 9,
        ..Topology::default()
    };
    let chosen = BlockOptions {
        topology: Some(topology),
        discard_alignment: Some(3),
        ..BlockOptions::default()
    };
    assert_eq!(told(&over_limits(LIMITS, chosen)), (4096, 0, 0, 0, 9, 3));
    // A storage with nothing to say, and an embedder who wants nothing said.
    for (limits, topology) in [(Limits::default(), None), (LIMITS, Some(Topology::default()))] {
        let options = BlockOptions {
            topology,
            ..BlockOptions::default()
        };
        assert_eq!(over_limits(limits, options).offered() & F_TOPOLOGY, 0);
    }
}

#[test]
fn limits_that_have_no_room_in_the_configuration_space_are_cut_or_left_out() {
    let limits = |alignment_offset, minimum_io| Limits {
        alignment_offset,
        minimum_io,
        logical_block: 512,
        ..LIMITS
    };
    let told = |limits| told(&over_limits(limits, BlockOptions::default()));
    // Where the first physical block is cannot be said: not a block, or too far.
    for offset in [100, 256 * 512, u32::MAX] {
        assert_eq!(told(limits(offset, 1024)), (512, 0, 0, 2, 2048, 64), "{offset}");
    }
    assert_eq!(told(limits(255 * 512, u32::MAX)), (512, 5, 255, u16::MAX, 2048, 64));
    let odd = Rigged::with_limits(16, Limits::of_blocks(1000));
    let refused = Block::new(odd, BlockOptions::default());
    assert!(matches!(refused, Err(BlockError::BlockSize(1000))));
}

#[test]
fn a_capacity_is_rounded_down_to_whole_blocks() {
    for (bytes, block_size, sectors) in [
        (0, 512, 0),
        (511, 512, 0),
        (512, 512, 1),
        (1535, 512, 2),
        (4096 + 3584, 4096, 8),
        (8192, 4096, 16),
    ] {
        let options = BlockOptions {
            block_size: Some(block_size),
            ..BlockOptions::default()
        };
        let block = Block::new(MemoryStorage::new(bytes), options).unwrap();
        assert_eq!(block.capacity(), sectors, "{bytes} bytes in blocks of {block_size}");
    }
}

#[test]
fn the_odd_end_of_a_storage_is_out_of_reach() {
    let storage = Rigged::new(2);
    storage.data.resize(1024 + 100);
    let mut disk = Disk::over(Arc::new(storage), BlockOptions::default());
    assert_eq!(disk.write(2, &[1; 512]), IOERR);
    assert_eq!(disk.request(T_WRITE_ZEROES, 0, &segment(2, 1, 0), 0).0, IOERR);
    assert_eq!(disk.storage.calls(), []);
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |change: &dyn Fn(&mut BlockOptions)| {
        let mut options = BlockOptions::default();
        change(&mut options);
        let result = Block::new(MemoryStorage::new(512), options);
        result.expect_err("out of range").to_string()
    };
    let limits = |max_sectors, max_segments| {
        Some(RangeLimits {
            max_sectors,
            max_segments,
        })
    };
    for (message, expected) in [
        (refused(&|o| o.id = "a".repeat(21)), "up to 20 bytes"),
        (refused(&|o| o.id = "ö".into()), "ASCII"),
        (refused(&|o| o.block_size = Some(256)), "from 512 to 65536"),
        (refused(&|o| o.block_size = Some(0)), "from 512 to 65536"),
        (refused(&|o| o.block_size = Some(1000)), "power of two"),
        (refused(&|o| o.block_size = Some(1 << 17)), "from 512 to 65536"),
        (refused(&|o| o.queues = 0), "at least one"),
        (refused(&|o| o.queue_size = 0), "power of two from 4"),
        (refused(&|o| o.queue_size = 2), "power of two from 4"),
        (refused(&|o| o.queue_size = 100), "power of two from 4"),
        (refused(&|o| o.size_max = Some(4095)), "at least 4096"),
        (refused(&|o| o.discard = limits(0, 1)), "max_discard_sectors is 0"),
        (refused(&|o| o.discard = limits(1, 0)), "max_discard_seg is 0"),
        (refused(&|o| o.discard = limits(1, 1025)), "1 to 1024"),
        (
            refused(&|o| o.discard_alignment = Some(0)),
            "discard_sector_alignment is 0",
        ),
        (
            refused(&|o| o.write_zeroes = limits(0, 1)),
            "max_write_zeroes_sectors is 0",
        ),
        (refused(&|o| o.write_zeroes = limits(1, 0)), "max_write_zeroes_seg is 0"),
        (refused(&|o| o.write_zeroes = limits(1, 1025)), "1 to 1024"),
    ] {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}
