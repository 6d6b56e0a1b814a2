//! Guest memory that comes and goes while a back end serves.

use std::{
    collections::BTreeMap,
    io,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
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
    back::{Back, FEATURE, pair},
    front::{Backs, MEMORY, memfd, options, shared_memory},
    machine::VERSION_1,
    ring::{Ring, readable, writable},
    wire::{Fate, Way, between},
};

const PLUGGED: u64 = 1 << 32;

const SET_MEM_TABLE: u32 = 5;
const ADD_MEM_REG: u32 = 37;

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

/// How often it was told what.
type Told = Arc<Mutex<BTreeMap<u32, usize>>>;

/// Reaches a back end of ours that does not take regions one by one if it does not say so; what it was told is counted.
fn counted(by_region: bool) -> (impl FnMut() -> io::Result<UnixStream> + Send, Told) {
    const GET_PROTOCOL_FEATURES: u32 = 15;
    const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    let told = Told::default();
    let (counts, mut backs) = (Arc::clone(&told), Vec::new());
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&Arc::default(), back));
        let counts = Arc::clone(&counts);
        let _ = between(middle, middle2, move |way, message| {
            match (way, message.request) {
                (Way::ToFront, GET_PROTOCOL_FEATURES) if !by_region => {
                    let all = u64::from_ne_bytes(message.payload[..].try_into().unwrap());
                    message.payload = (all & !CONFIGURE_MEM_SLOTS).to_ne_bytes().into();
                }
                (Way::ToBack, request) => *counts.lock().unwrap().entry(request).or_default() += 1,
                _ => {}
            }
            Fate::Pass
        });
        Ok(front)
    };
    (connect, told)
}

#[test]
fn memory_that_is_plugged_is_shared_and_memory_that_is_unplugged_is_let_go_of() {
    const GET_VRING_BASE: u32 = 11;
    const REM_MEM_REG: u32 = 38;
    for by_region in [true, false] {
        let (connect, told) = counted(by_region);
        plug_and_unplug(connect);
        let told = told.lock().unwrap();
        let count = |request| told.get(&request).copied().unwrap_or(0);
        // Two at first, then each that comes and goes, or all of it as often.
        let expected = if by_region { [0, 2 + 3, 3] } else { [1 + 6, 0, 0] };
        assert_eq!([SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG].map(count), expected);
        // The ring goes on meanwhile: it is stopped once, in the end.
        assert!(count(GET_VRING_BASE) <= 1);
    }
}

#[test]
fn memory_with_more_regions_than_the_back_end_takes_costs_its_connection_and_comes_back_with_fewer() {
    let (connect, _) = counted(false);
    let memory = shared_memory(8);
    let space = GuestMemoryAtomic::from(Arc::clone(&memory));
    let remote = Remote::new(connect, space.clone(), options()).unwrap();
    let device = VirtioMmio::new(remote, space.clone(), Line::Edge(Arc::new(NoInterrupt))).unwrap();
    let mut ring = Ring::new(&memory, 0x1_0000, 16);
    start_with(&device, &ring.layout, FEATURE);
    ask(&device, &mut ring, &memory, 0x10_0000);
    space
        .lock()
        .unwrap()
        .replace(memory.insert_region(region(PLUGGED, 1 << 20)).unwrap());
    device.memory_changed();
    device.process(QueueIndex(0));
    assert!(device.with_device(|device| device.host_failures().count > 0));
    space.lock().unwrap().replace((*memory).clone());
    device.memory_changed();
    ask(&device, &mut ring, &memory, 0x10_0000);
}

/// As those of the crate `vhost-user-backend` do: a region that comes later has none of the log that was told before.
#[test]
fn a_log_is_told_to_a_back_end_that_has_it_of_the_memory_it_knows_by_then() {
    const SET_LOG_BASE: u32 = 6;
    const SET_VRING_ENABLE: u32 = 18;
    let (logged, starts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (has_log, count, backs) = (Arc::clone(&logged), Arc::clone(&starts), Backs::default());
    let made = Arc::clone(&backs);
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        made.lock().unwrap().push(Back::new(&Arc::default(), back));
        let (logged, starts) = (Arc::clone(&has_log), Arc::clone(&count));
        logged.store(false, SeqCst);
        let _ = between(middle, middle2, move |way, message| {
            match (way, message.request) {
                (Way::ToBack, SET_MEM_TABLE | ADD_MEM_REG) => logged.store(false, SeqCst),
                (Way::ToBack, SET_LOG_BASE) => logged.store(true, SeqCst),
                (Way::ToBack, SET_VRING_ENABLE) if logged.load(SeqCst) => _ = starts.fetch_add(1, SeqCst),
                _ => {}
            }
            Fate::Pass
        });
        Ok(front)
    };
    let memory = shared_memory(2);
    let space = GuestMemoryAtomic::from(Arc::clone(&memory));
    let remote = Remote::new(connect, space.clone(), options()).unwrap();
    let device = VirtioMmio::new(remote, space.clone(), Line::Edge(Arc::new(NoInterrupt))).unwrap();
    // Before there is a driver.
    device.with_device(|device| device.start_dirty_log()).unwrap();
    let mut ring = Ring::new(&memory, 0x1_0000, 16);
    start_with(&device, &ring.layout, FEATURE);
    ask(&device, &mut ring, &memory, 0x20_0000);
    assert_eq!(starts.load(SeqCst), 1, "a ring runs whose writes are not logged");
    // To one that comes later.
    backs.lock().unwrap().clear();
    ask(&device, &mut ring, &memory, 0x20_0000);
    assert_eq!(starts.load(SeqCst), 2, "a ring runs whose writes are not logged");
    // And of memory that comes later.
    let plugged = memory.insert_region(region(2 * MEMORY, 1 << 20)).unwrap();
    space.lock().unwrap().replace(plugged);
    device.memory_changed();
    device.process(QueueIndex(0));
    assert!(logged.load(SeqCst), "what is written to a new region is not logged");
    ask(&device, &mut ring, &space.memory(), 2 * MEMORY);
    let mut pages = Vec::new();
    device.with_device(|device| device.take_dirty(|page| pages.push(page)));
    assert!(pages.contains(&(2 * MEMORY)), "{pages:x?}");
}

fn plug_and_unplug(connect: impl FnMut() -> io::Result<UnixStream> + Send + 'static) {
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
