//! Guest memory that comes and goes while a back end serves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    virtio::{QueueIndex, VirtioMmio, VirtioTransport, queue::QueueLayout, remote::Remote, transport::mmio::Line},
};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

use crate::{
    back::FEATURE,
    front::{MEMORY, connect_to, memfd, options, shared_memory},
    machine::VERSION_1,
    ring::{Ring, readable, writable},
};

const PLUGGED: u64 = 1 << 32;

fn region(at: u64, len: u64) -> Arc<GuestRegionMmap> {
    let mapping = MmapRegion::from_file(FileOffset::new(memfd(len), 0), len as usize).unwrap();
    Arc::new(GuestRegionMmap::new(mapping, GuestAddress(at)).unwrap())
}

/// Queue 0 alone, with these features and VERSION_1.
pub fn start_with(device: &VirtioMmio<Remote>, layout: &QueueLayout, features: u64) {
    let features = features | VERSION_1;
    let write = |register, value: u64| device.write(register, &(value as u32).to_le_bytes());
    write(0x70, 1);
    write(0x70, 3);
    for (word, features) in [(0, features), (1, features >> 32)] {
        write(0x24, word);
        write(0x20, features);
    }
    write(0x70, 0xb);
    write(0x30, 0);
    write(0x38, layout.size.into());
    for (register, area) in [
        (0x80, layout.descriptor_area),
        (0x90, layout.driver_area),
        (0xa0, layout.device_area),
    ] {
        write(register, area);
        write(register + 4, area >> 32);
    }
    write(0x44, 1);
    write(0x70, 0xf);
    assert_eq!(device.status(), 0xf);
}

/// Has a number answered in this memory.
fn ask(device: &VirtioMmio<Remote>, ring: &mut Ring, memory: &GuestMemoryMmap, at: u64) {
    memory.write_obj(7_u64, GuestAddress(at)).unwrap();
    memory.write_obj(0_u64, GuestAddress(at + 8)).unwrap();
    ring.request(&[readable(at, 8), writable(at + 8, 8)]);
    device.write(0x50, &0_u32.to_le_bytes());
    let end = Instant::now() + Duration::from_secs(10);
    while ring.used_idx() != ring.avail_idx() {
        assert!(
            Instant::now() < end,
            "{:?}",
            device.with_device(|device| device.host_failures())
        );
        device.process(QueueIndex(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(memory.read_obj::<u64>(GuestAddress(at + 8)).unwrap(), 8);
}

#[test]
fn memory_that_is_plugged_is_shared_and_memory_that_is_unplugged_is_let_go_of() {
    let (connect, _backs) = connect_to(&Arc::default());
    let memory = shared_memory(2);
    let space = GuestMemoryAtomic::from(Arc::clone(&memory));
    let remote = Remote::new(connect, space.clone(), options()).unwrap();
    let device = VirtioMmio::new(remote, space.clone(), Line::Edge(Arc::new(NoInterrupt))).unwrap();
    let mut ring = Ring::new(&memory, 0x1_0000, 16);
    start_with(&device, &ring.layout, FEATURE);
    ask(&device, &mut ring, &memory, 0x20_0000);

    for round in 0..3 {
        let plugged = memory.insert_region(region(PLUGGED, 1 << 20)).unwrap();
        space.lock().unwrap().replace(plugged);
        device.memory_changed();
        device.process(QueueIndex(0));
        ask(&device, &mut ring, &space.memory(), PLUGGED + 0x1000 * round);
        // Gone again, of this one and all that have it.
        space.lock().unwrap().replace((*memory).clone());
        device.memory_changed();
        device.process(QueueIndex(0));
        assert_eq!(device.memory().old_maps_held(), 0);
        ask(&device, &mut ring, &memory, MEMORY - 0x1000);
    }
    device.with_device(|device| assert_eq!((device.host_failures().count, device.returns()), (0, 0)));
}
