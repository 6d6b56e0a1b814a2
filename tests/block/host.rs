//! A disk over the host's files and devices.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, sync::Arc};

use devisor::virtio::block::{Block, BlockOptions, FileStorage};

use crate::{
    host_file::{LoopDevice, Temporary},
    skip::skipped,
    support::*,
};

/// A disk over a storage that keeps no log.
fn over_host(storage: FileStorage) -> Disk {
    let block = Block::new(storage, BlockOptions::default()).unwrap();
    Disk::from_block(block, Arc::new(Rigged::new(0)))
}

/// A block device of 256 sectors in blocks of 4096 bytes, with [`pattern`] on it.
fn device_of_4k_blocks() -> Option<(LoopDevice, Temporary)> {
    let file = Temporary::new(&pattern(256 * 512));
    match LoopDevice::new(&file, 4096) {
        Ok(device) => Some((device, file)),
        Err(why) => {
            skipped(why);
            None
        }
    }
}

/// Both ways to use it: by the host's cache, and past it.
fn open_cached_and_direct(device: &LoopDevice) -> [FileStorage; 2] {
    let open = |flags| {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(flags).open(device).unwrap();
        FileStorage::new(file).unwrap()
    };
    [open(0), open(libc::O_DIRECT)]
}

#[test]
fn a_sector_of_a_host_block_is_zeroed_and_its_discard_does_nothing() {
    let Some((device, file)) = device_of_4k_blocks() else {
        return;
    };
    for storage in open_cached_and_direct(&device) {
        let mut disk = over_host(storage);
        assert_eq!(disk.write(0, &pattern(256 * 512)), OK);
        let mut expected = pattern(256 * 512);
        assert_eq!(disk.request(T_DISCARD, 0, &segment(9, 1, 0), 0).0, OK);
        assert_eq!(disk.read(0, 256 * 512), (OK, expected.clone()));
        // A sector, across two blocks, and from the middle of one to the middle of another with whole ones between.
        for (sector, sectors, unmap) in [(9, 1, 0), (17, 1, 1), (30, 4, 0), (45, 50, 0), (101, 70, 1)] {
            let segment = segment(sector, sectors, unmap);
            assert_eq!(
                disk.request(T_WRITE_ZEROES, 0, &segment, 0).0,
                OK,
                "{sectors} at {sector}"
            );
            expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
            assert_eq!(disk.read(0, 256 * 512), (OK, expected.clone()), "{sectors} at {sector}");
        }
        // What a discard leaves is undefined; around it nothing changes.
        assert_eq!(disk.request(T_DISCARD, 0, &segment(201, 30, 0), 0).0, OK);
        let contents = disk.read(0, 256 * 512).1;
        assert_eq!(contents[..201 * 512], expected[..201 * 512]);
        assert_eq!(contents[231 * 512..], expected[231 * 512..]);
        assert_eq!(disk.request(T_FLUSH, 0, &[], 0).0, OK);
        assert_eq!(file.contents(), contents);
        assert_eq!(disk.block.host_failures().count, 0);
    }
}

#[test]
fn a_sector_of_a_host_block_is_read_and_written() {
    let Some((device, _file)) = device_of_4k_blocks() else {
        return;
    };
    for (storage, fill) in open_cached_and_direct(&device).into_iter().zip([7, 8]) {
        let mut disk = over_host(storage);
        let mut expected = disk.read(0, 256 * 512).1;
        for (sector, sectors) in [(9, 1), (15, 2), (24, 8), (33, 101), (255, 1)] {
            assert_eq!(
                disk.write(sector, &vec![fill; sectors * 512]),
                OK,
                "{sectors} at {sector}"
            );
            let range = sector as usize * 512..(sector as usize + sectors) * 512;
            expected[range.clone()].fill(fill);
            assert_eq!(disk.read(sector, sectors * 512), (OK, expected[range].to_vec()));
            assert_eq!(disk.read(0, 256 * 512), (OK, expected.clone()));
        }
    }
}

#[test]
fn a_guest_is_told_the_blocks_of_the_host() {
    let Some((device, _file)) = device_of_4k_blocks() else {
        return;
    };
    for storage in open_cached_and_direct(&device) {
        let disk = over_host(storage);
        assert_eq!(disk.config(20, 4), 4096_u32.to_le_bytes(), "blk_size");
        // A multiple of eight sectors.
        let alignment = u32::from_le_bytes(disk.config(44, 4).try_into().unwrap());
        assert!(alignment != 0 && alignment.is_multiple_of(8), "{alignment}");
    }
}
