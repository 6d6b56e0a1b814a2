//! A disk that is saved and restored.

use std::sync::{Arc, atomic::Ordering};

use devisor::virtio::{
    DeviceStateError,
    block::{Block, BlockError, BlockOptions, MemoryStorage},
};

use crate::{
    configuration::{LIMITS, over_limits},
    support::*,
};

fn refused(restored: Result<Block, DeviceStateError>, why: &BlockError) {
    assert_eq!(restored.err(), Some(DeviceStateError::Otherwise(why.to_string())));
}

#[test]
fn a_restored_disk_is_the_one_that_was_saved() {
    let mut disk = Disk::with(BlockOptions {
        id: "kept".into(),
        ..small_segments()
    });
    disk.activate(disk.offered());
    disk.write_config(32, &[0]);
    let state = saved(&disk.block);

    let mut restored = Disk::from_block(
        restore(Arc::clone(&disk.storage), &state).unwrap(),
        Arc::clone(&disk.storage),
    );
    assert_eq!(saved(&restored.block), state);
    restored.activate(disk.offered());
    assert_eq!(restored.config(0, 60), disk.config(0, 60));
    assert_eq!(restored.config(32, 1), [0]);
    assert_eq!(restored.write(0, &[1; 512]), OK);
    assert_eq!(disk.storage.calls(), WRITE_THEN_FLUSH);
}

#[test]
fn a_storage_that_grew_is_restored_as_the_guest_knows_it_and_a_shrunk_one_refused() {
    let disk = Disk::new(16);
    let state = saved(&disk.block);
    let mut grown = restore(MemoryStorage::new(20 * 512), &state).unwrap();
    assert_eq!(grown.capacity(), 16);
    assert_eq!(grown.refresh_capacity().unwrap(), 20);

    let shrunk = restore(MemoryStorage::new(15 * 512), &state);
    refused(shrunk, &BlockError::Shrunk { saved: 16, present: 15 });
}

#[test]
fn what_the_guest_was_told_stays_over_a_storage_with_other_limits() {
    let disk = over_limits(LIMITS, BlockOptions::default());
    let state = saved(&disk.block);
    // A plain one that can neither discard nor unmap, and is asked to all the same.
    let plain = Arc::new(Rigged::new(256));
    plain.no_discard.store(true, Ordering::SeqCst);
    let mut restored = Disk::from_block(restore(Arc::clone(&plain), &state).unwrap(), plain);
    assert_eq!(restored.offered(), disk.offered());
    assert_eq!(restored.config(0, 60), disk.config(0, 60));
    assert_eq!(saved(&restored.block), state);
    assert_eq!(restored.request(T_DISCARD, 0, &segment(0, 1, 0), 0).0, OK);

    // And the other way round: nothing new is offered.
    let storage = Rigged::new(256);
    storage.no_discard.store(true, Ordering::SeqCst);
    let poor = Disk::over(Arc::new(storage), BlockOptions::default());
    let rich = Arc::new(Rigged::with_limits(256, LIMITS));
    let restored = Disk::from_block(restore(Arc::clone(&rich), &saved(&poor.block)).unwrap(), rich);
    assert_eq!(restored.offered(), poor.offered());
    assert_eq!(restored.config(0, 60), poor.config(0, 60));
}

#[test]
fn a_disk_that_could_be_written_is_not_restored_over_a_storage_that_cannot() {
    let read_only = || {
        let storage = Rigged::new(16);
        storage.read_only.store(true, Ordering::SeqCst);
        storage
    };
    let over_read_only = restore(read_only(), &saved(&Disk::new(16).block));
    refused(over_read_only, &BlockError::ReadOnly);
    // One that could not stays so.
    let state = saved(&Block::new(read_only(), BlockOptions::default()).unwrap());
    let storage = Arc::new(Rigged::new(16));
    let mut restored = Disk::from_block(restore(Arc::clone(&storage), &state).unwrap(), storage);
    assert_eq!(restored.offered() & F_RO, F_RO);
    assert_eq!(restored.write(0, &[1; 512]), IOERR);
}

#[test]
fn a_state_with_impossible_options_or_other_queues_is_refused() {
    let good = saved(&Disk::new(16).block);
    let mut state = good.clone();
    state.options.block_size = Some(3);
    refused(restore(MemoryStorage::new(16 * 512), &state), &BlockError::BlockSize(3));
    // Of these the transport has told the guest.
    for (queues, queue_size) in [(2, 256), (1, 128), (1, 3), (0, 0)] {
        let mut state = good.clone();
        (state.options.queues, state.options.queue_size) = (queues, queue_size);
        let restored = restore(MemoryStorage::new(16 * 512), &state);
        let Err(DeviceStateError::Otherwise(why)) = restored else {
            panic!("{queues} of {queue_size}");
        };
        assert!(why.contains("1 queues of 256"), "{why}");
    }
}
