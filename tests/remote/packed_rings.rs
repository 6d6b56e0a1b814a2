//! Packed rings, which a back end serves.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    virtio::{
        QueueIndex, VirtioMmio, VirtioTransport, features,
        remote::Remote,
        transport::{TransportOptions, mmio::Line, vhost_user::VhostUserOptions},
    },
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use crate::{
    back::{Back, FEATURE, World, pair},
    front::{Backs, MEMORY, connect_with, memfd, options, shared_memory},
    machine::NEEDS_RESET,
    packed::PackedRing,
    plugged::start_with,
    ring::{readable, writable},
    wire::{Fate, Message, Way, between},
};

fn ask(device: &VirtioMmio<Remote>, ring: &mut PackedRing, memory: &GuestMemoryMmap) {
    let at = 0x20_0000;
    memory.write_obj(7_u64, GuestAddress(at)).unwrap();
    memory.write_obj(0_u64, GuestAddress(at + 8)).unwrap();
    ring.request(&[readable(at, 8), writable(at + 8, 8)]);
    device.write(0x50, &0_u32.to_le_bytes());
    let end = Instant::now() + Duration::from_secs(10);
    while ring.used().is_empty() {
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
fn a_packed_ring_is_served_stopped_and_gone_on_with_and_needs_a_reset_when_its_back_end_goes() {
    let transport = TransportOptions {
        packed: true,
        ..TransportOptions::default()
    };
    let mut back = VhostUserOptions::default();
    back.transport.packed = true;
    let (connect, backs) = connect_with(&Arc::default(), back);
    let memory = shared_memory(1);
    let remote = Remote::new(connect, Arc::clone(&memory), options()).unwrap();
    let line = Line::Edge(Arc::new(NoInterrupt));
    let device = VirtioMmio::with_options(remote, Arc::clone(&memory), line, &transport).unwrap();
    for _ in 0..2 {
        // Nothing is left of the ring before.
        memory.write_slice(&[0; 0x4000], GuestAddress(0x1_0000)).unwrap();
        let mut ring = PackedRing::new(&memory, 0x1_0000, 16);
        start_with(&device, &ring.layout, FEATURE | features::RING_PACKED);
        for round in 0..50 {
            ask(&device, &mut ring, &memory);
            if round % 5 == 0 {
                device.pause();
                assert!(device.wait_until_still(Some(Duration::from_secs(10))));
                device.resume();
            }
        }
        assert_eq!(device.status() & NEEDS_RESET, 0);
        backs.lock().unwrap().clear();
        let end = Instant::now() + Duration::from_secs(10);
        while device.status() & NEEDS_RESET == 0 {
            assert!(Instant::now() < end);
            device.process(QueueIndex(0));
        }
        device.write(0x70, &0_u32.to_le_bytes());
        assert_eq!(device.status(), 0);
    }
}

/// There is no table that says how far a ring has come, nor a state of its own.
fn forget_table(way: Way, message: &mut Message) {
    const PROTOCOL_FEATURES: u32 = 15;
    const INFLIGHT_AND_STATE: u64 = 1 << 12 | 1 << 19;
    if way == Way::ToFront && message.request == PROTOCOL_FEATURES {
        let all = u64::from_ne_bytes(message.payload[..].try_into().unwrap());
        message.payload = (all & !INFLIGHT_AND_STATE).to_ne_bytes().into();
    }
}

/// A back end of packed rings.
fn without_a_table() -> (impl FnMut() -> io::Result<UnixStream> + Send, Backs) {
    let mut with = VhostUserOptions::default();
    with.transport.packed = true;
    let (world, backs) = (Arc::default(), Backs::default());
    let made = Arc::clone(&backs);
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        made.lock().unwrap().push(Back::with(&world, back, with.clone()));
        let _ = between(middle, middle2, |way, message| {
            forget_table(way, message);
            Fate::Pass
        });
        Ok(front)
    };
    (connect, backs)
}

#[test]
fn a_packed_ring_that_was_used_before_its_back_end_said_that_it_has_it_needs_a_reset() {
    const SET_VRING_ENABLE: u32 = 18;
    let transport = TransportOptions {
        packed: true,
        ..TransportOptions::default()
    };
    let mut with = VhostUserOptions::default();
    with.transport.packed = true;
    let (world, mut backs, cuts) = (Arc::<World>::default(), Vec::new(), Arc::new(AtomicBool::new(false)));
    let is_cut = Arc::clone(&cuts);
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::with(&world, back, with.clone()));
        let (world, cuts) = (Arc::clone(&world), Arc::clone(&is_cut));
        let _ = between(middle, middle2, move |way, message| {
            forget_table(way, message);
            if way == Way::ToBack || message.request != SET_VRING_ENABLE || !cuts.swap(false, SeqCst) {
                return Fate::Pass;
            }
            while world.answered.lock().unwrap().len() < 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
            Fate::Cut
        });
        Ok(front)
    };
    let memory = shared_memory(1);
    let remote = Remote::new(connect, Arc::clone(&memory), options()).unwrap();
    let line = Line::Edge(Arc::new(NoInterrupt));
    let device = VirtioMmio::with_options(remote, Arc::clone(&memory), line, &transport).unwrap();
    let at = 0x20_0000;
    let mut ring = PackedRing::new(&memory, 0x1_0000, 16);
    start_with(&device, &ring.layout, FEATURE | features::RING_PACKED);
    ask(&device, &mut ring, &memory);
    // It is handed over anew, with something in it.
    device.pause();
    assert!(device.wait_until_still(Some(Duration::from_secs(10))));
    for _ in 0..2 {
        ring.request(&[readable(at, 8), writable(at + 8, 8)]);
    }
    cuts.store(true, SeqCst);
    device.resume();
    let end = Instant::now() + Duration::from_secs(10);
    let mut used = 0;
    while device.status() & NEEDS_RESET == 0 && used < 3 {
        assert!(
            Instant::now() < end,
            "{used} are used, and nobody says that there is something wrong"
        );
        device.process(QueueIndex(0));
        let before = used;
        used += ring.used().len();
        // It goes on.
        if before < 2 && used == 2 {
            ring.request(&[readable(at, 8), writable(at + 8, 8)]);
        }
    }
    // A reset revives.
    device.write(0x70, &0_u32.to_le_bytes());
    memory.write_slice(&[0; 0x4000], GuestAddress(0x1_0000)).unwrap();
    let mut ring = PackedRing::new(&memory, 0x1_0000, 16);
    start_with(&device, &ring.layout, FEATURE | features::RING_PACKED);
    ask(&device, &mut ring, &memory);
}

#[test]
fn a_packed_ring_that_is_paused_when_its_back_end_has_gone_needs_a_reset_here_and_elsewhere() {
    let transport = TransportOptions {
        packed: true,
        ..TransportOptions::default()
    };
    let memory = shared_memory(1);
    let made = || {
        let (connect, backs) = without_a_table();
        let remote = Remote::new(connect, Arc::clone(&memory), options()).unwrap();
        let line = Line::Edge(Arc::new(NoInterrupt));
        let device = VirtioMmio::with_options(remote, Arc::clone(&memory), line, &transport).unwrap();
        (device, backs)
    };
    let (device, backs) = made();
    let mut ring = PackedRing::new(&memory, 0x1_0000, 16);
    start_with(&device, &ring.layout, FEATURE | features::RING_PACKED);
    ask(&device, &mut ring, &memory);
    backs.lock().unwrap().clear();
    device.pause();
    assert!(device.wait_until_still(Some(Duration::from_secs(10))));
    let state = device.save().unwrap();
    let (other, _backs) = made();
    other.restore(&state).unwrap();
    for (device, whose) in [(device, "it"), (other, "another")] {
        device.resume();
        let end = Instant::now() + Duration::from_secs(10);
        while device.status() & NEEDS_RESET == 0 {
            assert!(Instant::now() < end, "{whose} goes on where it was handed over");
            device.process(QueueIndex(0));
        }
    }
}

#[test]
fn a_packed_ring_goes_on_when_its_memory_is_mapped_anew() {
    let transport = TransportOptions {
        packed: true,
        ..TransportOptions::default()
    };
    let file = memfd(MEMORY);
    let mapped = || {
        let file = FileOffset::new(file.try_clone().unwrap(), 0);
        GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY as usize, Some(file))]).unwrap()
    };
    let memory = Arc::new(mapped());
    let space = GuestMemoryAtomic::from(Arc::clone(&memory));
    let (connect, _backs) = without_a_table();
    let remote = Remote::new(connect, space.clone(), options()).unwrap();
    let line = Line::Edge(Arc::new(NoInterrupt));
    let device = VirtioMmio::with_options(remote, space.clone(), line, &transport).unwrap();
    let mut ring = PackedRing::new(&memory, 0x1_0000, 16);
    start_with(&device, &ring.layout, FEATURE | features::RING_PACKED);
    for _ in 0..20 {
        ask(&device, &mut ring, &memory);
        space.lock().unwrap().replace(mapped());
        device.memory_changed();
        device.process(QueueIndex(0));
        assert_eq!(device.fault(), None);
    }
    device.with_device(|device| assert_eq!((device.host_failures().count, device.returns()), (0, 0)));
}
