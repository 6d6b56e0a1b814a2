//! A disk behind virtio-mmio.

use std::sync::{Arc, atomic::Ordering};

use devisor::{
    bus::BusDevice,
    interrupt::{NoInterrupt, from_fn},
    virtio::{
        QueueIndex, VirtioMmio, VirtioTransport,
        block::{Block, BlockOptions, MemoryStorage},
        features,
        transport::{
            mmio::Line,
            status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
        },
    },
};

use crate::{
    rest,
    ring::{Ring, readable, writable},
    support::*,
};

type Mmio = VirtioMmio<Block>;

const STATUS_REGISTER: u64 = 0x70;

fn mmio_read(mmio: &Mmio, register: u64) -> u32 {
    let mut data = [0; 4];
    mmio.read(register, &mut data);
    u32::from_le_bytes(data)
}

fn mmio_write(mmio: &Mmio, register: u64, value: u32) {
    mmio.write(register, &value.to_le_bytes());
}

fn negotiate(mmio: &Mmio, features: u64) {
    for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
        mmio_write(mmio, STATUS_REGISTER, status);
    }
    for sel in 0..2 {
        mmio_write(mmio, 0x24, sel);
        mmio_write(mmio, 0x20, (features >> (32 * sel)) as u32);
    }
    mmio_write(mmio, STATUS_REGISTER, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_ne!(mmio_read(mmio, STATUS_REGISTER) & FEATURES_OK, 0);
}

fn start_queue(mmio: &Mmio, index: u16, ring: &Ring) {
    mmio_write(mmio, 0x30, index.into());
    mmio_write(mmio, 0x38, ring.layout.size.into());
    mmio_write(mmio, 0x80, ring.layout.descriptor_area as u32);
    mmio_write(mmio, 0x90, ring.layout.driver_area as u32);
    mmio_write(mmio, 0xa0, ring.layout.device_area as u32);
    mmio_write(mmio, 0x44, 1);
}

fn go(mmio: &Mmio) {
    mmio_write(mmio, STATUS_REGISTER, mmio_read(mmio, STATUS_REGISTER) | DRIVER_OK);
}

fn silent() -> Line {
    Line::Edge(Arc::new(NoInterrupt))
}

fn read_request(ring: &mut Ring, sector: u64) {
    fill(&ring.memory, HEADER, &header(T_IN, sector));
    ring.request(&[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]);
}

#[test]
fn writeback_has_its_value_as_soon_as_features_are_ok() {
    let memory = guest_memory();
    let disk = Block::new(MemoryStorage::new(512), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, memory, silent()).unwrap();
    for (accepted, writeback) in [(F_CONFIG_WCE, 0), (F_CONFIG_WCE | F_FLUSH, 1)] {
        negotiate(&mmio, features::VERSION_1 | accepted);
        let mut value = [9];
        mmio.read(0x120, &mut value);
        assert_eq!(value, [writeback]);
    }
}

#[test]
fn a_driver_that_writes_writeback_reads_another_generation() {
    let disk = Block::new(MemoryStorage::new(512), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, guest_memory(), silent()).unwrap();
    negotiate(&mmio, features::VERSION_1 | F_CONFIG_WCE | F_FLUSH);
    let generation = || mmio_read(&mmio, 0xfc);
    let before = generation();
    mmio.write(0x120, &[0]);
    assert_ne!(generation(), before);
    assert_eq!(generation(), generation());
}

#[test]
fn a_malformed_request_costs_that_request_and_is_counted() {
    let memory = guest_memory();
    let disk = Block::new(MemoryStorage::new(1024), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap();
    let mut ring = Ring::new(&memory, 0x1000, 8);
    negotiate(&mmio, features::VERSION_1);
    start_queue(&mmio, 0, &ring);
    go(&mmio);
    let working = mmio.status();
    ring.request(&[readable(HEADER, 16)]);
    read_request(&mut ring, 1);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(ring.used(), [(0, 0), (1, 513)]);
    assert_eq!(get(&memory, STATUS, 1), [OK]);
    assert_eq!((mmio.status(), mmio.fault()), (working, None));
    let counters = mmio.queue_counters(QueueIndex(0)).unwrap();
    assert_eq!((counters.requests, counters.malformed), (2, 1));
}

#[test]
fn a_disk_grows_while_the_guest_runs() {
    let memory = guest_memory();
    let storage = Arc::new(MemoryStorage::new(4 * 512));
    let disk = Block::new(Arc::clone(&storage), BlockOptions::default()).unwrap();
    let raised = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = Arc::clone(&raised);
    let line = from_fn(move || {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), Line::Edge(Arc::new(line))).unwrap();
    let mut ring = Ring::new(&memory, 0x1000, 8);
    negotiate(&mmio, features::VERSION_1);
    start_queue(&mmio, 0, &ring);
    go(&mmio);
    read_request(&mut ring, 5);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(get(&memory, STATUS, 1), [IOERR]);
    let (generation, before) = (mmio_read(&mmio, 0xfc), raised.load(Ordering::SeqCst));

    storage.resize(8 * 512);
    assert_eq!(mmio_read(&mmio, 0x100), 4, "not before it is told");
    assert_eq!(mmio.change_config(|disk| disk.refresh_capacity()).unwrap(), 8);
    assert_eq!(mmio_read(&mmio, 0x100), 8);
    assert_ne!(mmio_read(&mmio, 0xfc), generation);
    assert_eq!(raised.load(Ordering::SeqCst), before + 1);
    assert_ne!(mmio_read(&mmio, 0x60) & 2, 0, "a configuration change");
    read_request(&mut ring, 5);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(get(&memory, STATUS, 1), [OK]);

    storage.resize(2 * 512);
    mmio.change_config(|disk| disk.refresh_capacity()).unwrap();
    read_request(&mut ring, 3);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(get(&memory, STATUS, 1), [IOERR]);
}

#[test]
fn every_queue_of_a_multiqueue_disk_is_served() {
    let memory = guest_memory();
    let options = BlockOptions {
        queues: 2,
        ..BlockOptions::default()
    };
    let disk = Block::new(MemoryStorage::new(1024), options).unwrap();
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap();
    negotiate(&mmio, features::VERSION_1 | F_MQ);
    let mut rings = [Ring::new(&memory, 0x1000, 8), Ring::new(&memory, 0x8000, 8)];
    start_queue(&mmio, 0, &rings[0]);
    start_queue(&mmio, 1, &rings[1]);
    go(&mmio);
    for (index, ring) in (0..).zip(&mut rings) {
        fill(&memory, STATUS, &[0xee]);
        read_request(ring, 1);
        mmio_write(&mmio, 0x50, index);
        assert_eq!(ring.used(), [(0, 513)]);
        assert_eq!(get(&memory, STATUS, 1), [OK]);
    }
}

#[test]
fn a_disk_behind_a_transport_goes_on_where_it_was_saved() {
    let memory = guest_memory();
    let storage = Arc::new(Rigged::new(16));
    let disk = Block::new(Arc::clone(&storage), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap();
    let mut ring = Ring::new(&memory, 0x1000, 8);
    negotiate(&mmio, features::VERSION_1 | F_FLUSH | F_CONFIG_WCE);
    start_queue(&mmio, 0, &ring);
    go(&mmio);
    mmio.write(0x120, &[0]);
    read_request(&mut ring, 1);
    mmio_write(&mmio, 0x50, 0);
    assert_eq!(ring.used().len(), 1);
    let state = rest::at_rest(&mmio);
    drop(mmio);

    // Made available while nobody looks.
    fill(&memory, HEADER, &header(T_OUT, 0));
    ring.request(&[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)]);
    let disk = Block::new(Arc::clone(&storage), BlockOptions::default()).unwrap();
    let mmio = VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap();
    mmio.restore(&state).unwrap();
    storage.forget_calls();
    mmio.resume();
    assert_eq!(ring.used(), [(3, 1)]);
    // What the driver chose before holds.
    assert_eq!(storage.calls(), WRITE_THEN_FLUSH);
}

#[test]
fn a_disk_behind_a_transport_keeps_what_its_guest_was_told_over_another_storage() {
    let memory = guest_memory();
    let storage = |discards: bool| {
        let storage = Rigged::new(16);
        storage.no_discard.store(!discards, Ordering::SeqCst);
        Arc::new(storage)
    };
    let over = |storage| {
        let disk = Block::new(storage, BlockOptions::default()).unwrap();
        VirtioMmio::new(disk, Arc::clone(&memory), silent()).unwrap()
    };
    let offered = |mmio: &Mmio| mmio_read(mmio, 0x10);
    let [rich, poor] = [true, false].map(|discards| over(storage(discards)));
    assert_ne!(offered(&rich), offered(&poor));
    negotiate(&rich, features::VERSION_1 | F_DISCARD);
    let state = rest::at_rest(&rich);

    poor.restore(&state).unwrap();
    assert_eq!(offered(&poor), offered(&rich));
    assert_eq!(poor.save(), Ok(state));
    poor.reset();
    assert_eq!(offered(&poor), offered(&rich), "also after a reset");

    // Nothing new is offered, and what was not can not have been accepted.
    let [rich, poor] = [true, false].map(|discards| over(storage(discards)));
    negotiate(&poor, features::VERSION_1);
    let mut state = rest::at_rest(&poor);
    let before = (offered(&rich), rest::saved(&rich));
    rest::mmio(&mut state).transport.driver_features |= F_DISCARD;
    assert!(rich.restore(&state).is_err());
    assert_eq!((offered(&rich), rest::saved(&rich)), before, "it is as it was");
    rest::mmio(&mut state).transport.driver_features &= !F_DISCARD;
    rich.restore(&state).unwrap();
    assert_eq!(offered(&rich), offered(&poor));
}
