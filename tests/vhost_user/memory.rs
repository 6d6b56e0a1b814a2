//! The front end's memory: regions that come and go, and the log of what was written.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::{Arc, atomic::Ordering},
};

use devisor::virtio::{
    QueueIndex, VirtioDevice, VirtioTransport,
    features::RING_PACKED,
    net::{Header, Net, NetOptions, Port as _, Switch, SwitchOptions},
    reclaim::Reclaim,
    transport::vhost_user::{FrontEndMemory, VhostUserOptions},
    vhost_user::{protocol_feature as feature, vhost_feature},
};

use vm_memory::VolatileSlice;

use super::{
    devices::Device,
    front::{
        Front, MEMORY, NEED_REPLY, PROTOCOL_FEATURES, USER, VERSION_1, bytes, halves, id, memfd, packed_options, region,
    },
    packed::PackedRing,
    ring::{Ring, readable, writable},
    rings::exchange,
};

const SLOTS: u64 = feature::CONFIGURE_MEM_SLOTS | feature::REPLY_ACK;

fn single(region: &[u8]) -> Vec<u8> {
    [bytes(&[0]), region.to_vec()].concat()
}

#[test]
fn regions_are_added_one_by_one_and_removed() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, SLOTS);
    assert!(front.acknowledged(id::ADD_MEM_REG, &single(&region()), &[front.file.as_raw_fd()]));
    let more = memfd(MEMORY);
    let second = single(&bytes(&[1 << 30, 0x5000, USER + (1 << 30), 0x1000]));
    assert!(front.acknowledged(id::ADD_MEM_REG, &second, &[more.as_raw_fd()]));
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 1);
    // A buffer in the second region, which begins in the second page of its file.
    more.write_all_at(&[41], 0x1000).unwrap();
    ring.request(&[readable(1 << 30, 1), writable((1 << 30) + 0x4fff, 1)]);
    front.kick(0);
    let mut byte = [0];
    more.read_exact_at(&mut byte, 0x5fff).unwrap();
    assert_eq!(byte, [42]);
    // Without it, the same buffer is in no memory.
    assert!(front.acknowledged(id::REM_MEM_REG, &second, &[]));
    ring.request(&[readable(1 << 30, 1), writable(0x9000, 1)]);
    front.kick(0);
    assert_eq!(ring.used().last().unwrap().1, 0);
    assert!(!front.acknowledged(id::REM_MEM_REG, &second, &[]), "it is gone");
    exchange(&front, &mut ring, 2);
}

#[test]
fn a_table_longer_than_its_regions_is_taken() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, 0);
    let table = [halves(&[1, 0]), region(), vec![0; 32]].concat();
    assert_eq!(table.len(), 72, "as user-mode Linux has it");
    front.tell(id::SET_MEM_TABLE, &table, &[front.file.as_raw_fd()]);
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 1);
}

#[test]
fn regions_that_cannot_be_are_refused_and_nothing_has_changed() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, SLOTS);
    front.share_memory();
    let mut ring = front.start(0);
    let file = memfd(0x10000);
    let directory = File::open("/").unwrap();
    let good = [1u64 << 30, 0x1000, USER + (1 << 30), 0];
    let with = |at: usize, value: u64| {
        let mut words = good;
        words[at] = value;
        single(&bytes(&words))
    };
    for (why, payload, descriptor) in [
        ("it overlaps in guest addresses", with(0, MEMORY - 0x1000), &file),
        ("it overlaps in user addresses", with(2, USER + MEMORY - 0x1000), &file),
        ("it wraps", with(0, u64::MAX - 0xfff), &file),
        ("it is empty", with(1, 0), &file),
        ("it is longer than its file", with(1, 0x11000), &file),
        ("it begins after its file", with(3, 0x10000), &file),
        ("it begins in the middle of a page", with(3, 0x10), &file),
        ("its size wraps", with(1, u64::MAX), &file),
        ("it is in a directory", with(1, 0x1000), &directory),
        ("it is half a message", bytes(&[0, 1, 2]), &file),
    ] {
        assert!(
            !front.acknowledged(id::ADD_MEM_REG, &payload, &[descriptor.as_raw_fd()]),
            "{why}"
        );
    }
    assert!(
        !front.acknowledged(id::ADD_MEM_REG, &with(1, 0x1000), &[]),
        "it has no file"
    );
    let two = [file.as_raw_fd(), front.file.as_raw_fd()];
    assert!(
        !front.acknowledged(id::ADD_MEM_REG, &with(1, 0x1000), &two),
        "it has two"
    );
    exchange(&front, &mut ring, 3);
}

#[test]
fn there_are_so_many_regions_and_no_more() {
    let (device, _) = Device::new(1);
    let options = VhostUserOptions {
        max_regions: 2,
        ..VhostUserOptions::default()
    };
    let mut front = Front::with_options(device, options);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, SLOTS);
    assert_eq!(front.ask_word(id::GET_MAX_MEM_SLOTS, &[]), 2);
    let file = memfd(0x1000);
    let added: Vec<_> = (0..3u64)
        .map(|at| {
            let region = single(&bytes(&[at << 20, 0x1000, USER + (at << 20), 0]));
            front.acknowledged(id::ADD_MEM_REG, &region, &[file.as_raw_fd()])
        })
        .collect();
    assert_eq!(added, [true, true, false]);
}

/// A map is as many mappings as there are regions, of which a process has 65,530.
#[test]
fn regions_that_are_added_under_requests_have_few_maps_held_by_them() {
    let (device, seen) = Device::keeping(1);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, SLOTS);
    front.share_memory();
    let mut ring = front.start(0);
    let mut added = 0;
    for at in 0..25 {
        ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]);
        front.kick(0);
        let region = bytes(&[MEMORY * (at + 1), 0x1000, USER + MEMORY * (at + 1), 0]);
        let sent = front.try_send(id::ADD_MEM_REG, NEED_REPLY, &single(&region), &[front.file.as_raw_fd()]);
        sent.unwrap();
        match front.answer() {
            Some((_, answer, _)) => assert_eq!(answer, bytes(&[0])),
            None => break,
        }
        added += 1;
    }
    let held = front.device.memory().old_maps_held();
    assert!(added >= 4 && held <= 8, "{held} maps are held, of {added}");
    // It is added when they have ended.
    let kept = std::mem::take(&mut *seen.kept.lock().unwrap());
    kept.into_iter().for_each(|chain| chain.complete(1));
    front.pump().unwrap();
    assert_eq!(front.answer().unwrap().1, bytes(&[0]));
    assert_eq!(front.device.memory().old_maps_held(), 0);
    ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]);
    front.kick(0);
    assert_eq!(seen.kept.lock().unwrap().len(), 1);
}

#[test]
fn another_table_is_taken_when_no_request_holds_the_old_one() {
    let (device, seen) = Device::keeping(1);
    let mut front = Front::ready(device, feature::REPLY_ACK);
    let mut ring = front.start(0);
    ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]);
    front.kick(0);
    let table = [halves(&[1, 0]), region()].concat();
    front
        .try_send(
            id::SET_MEM_TABLE,
            super::front::NEED_REPLY,
            &table,
            &[front.file.as_raw_fd()],
        )
        .unwrap();
    assert!(front.answer().is_none());
    let chain = seen.kept.lock().unwrap().pop().unwrap();
    chain.complete(1);
    front.pump().unwrap();
    assert_eq!(front.answer().unwrap().1, bytes(&[0]));
    assert_eq!(front.device.memory().old_maps_held(), 0);
    // The ring goes on in the new one.
    ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]);
    front.kick(0);
    assert_eq!(seen.kept.lock().unwrap().len(), 1);
}

#[test]
fn a_table_that_was_waited_for_when_the_connection_ended_holds_up_none_that_follows() {
    let (device, seen) = Device::keeping(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]);
    front.kick(0);
    front.share_memory();
    front.device.disconnect();
    seen.kept.lock().unwrap().pop().unwrap().complete(1);
    let (socket, theirs) = UnixStream::pair().unwrap();
    front.socket = socket;
    front.pump().unwrap();
    front.device.connect(theirs).unwrap();
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, 0);
    front.share_memory();
    let mut ring = front.ring(1);
    front.describe(0, &ring, 0);
    front.set_kick(0);
    front.enable(0, true);
    ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]);
    front.kick(0);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 2);
}

#[test]
fn a_table_is_taken_though_the_device_was_resumed_while_it_was_waited_for() {
    let (device, seen) = Device::keeping(1);
    let mut front = Front::ready(device, feature::REPLY_ACK);
    let mut ring = front.start(0);
    ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]);
    front.kick(0);
    let table = [halves(&[1, 0]), region()].concat();
    let told = front.try_send(id::SET_MEM_TABLE, NEED_REPLY, &table, &[front.file.as_raw_fd()]);
    told.unwrap();
    front.device.pause();
    front.device.resume();
    ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]);
    front.kick(0);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1, "it comes to rest");
    seen.kept.lock().unwrap().pop().unwrap().complete(1);
    front.pump().unwrap();
    assert_eq!(front.answer().unwrap().1, bytes(&[0]));
    front.device.run();
    assert_eq!(seen.requests.load(Ordering::SeqCst), 2);
}

#[test]
fn requests_that_come_back_untouched_are_put_where_their_ring_was_and_found_where_it_is() {
    let (device, seen) = Device::keeping(1);
    seen.gives_back.store(true, Ordering::SeqCst);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::REPLY_ACK);
    // Both halves of memory, and where each of them is for the guest.
    let half = MEMORY / 2;
    let halves_at = |first: u64, second: u64| {
        let regions = [[first, half, USER, 0], [second, half, USER + half, half]];
        let table = [halves(&[2, 0]), regions.map(|region| bytes(&region)).concat()].concat();
        let file = front.file.as_raw_fd();
        (table, [file, file])
    };
    let (table, files) = halves_at(0, half);
    let (moved, _) = halves_at(half, 0);
    front.tell(id::SET_MEM_TABLE, &table, &files);
    let mut ring = front.start(0);
    let heads = [(); 3].map(|()| ring.request(&[readable(0x8000, 1), writable(0x8008, 1)]));
    front.kick(0);
    seen.kept.lock().unwrap().remove(1).complete(1);
    assert_eq!(ring.used(), [(heads[1].into(), 1)]);
    assert!(front.acknowledged(id::SET_MEM_TABLE, &moved, &files));
    front.device.run();
    let kept = std::mem::take(&mut *seen.kept.lock().unwrap());
    assert_eq!(
        kept.iter().map(|chain| chain.head()).collect::<Vec<_>>(),
        [heads[0], heads[2]]
    );
    kept.into_iter().for_each(|chain| chain.complete(1));
}

#[test]
fn what_is_written_is_logged_from_when_it_is_asked_for() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    let plain = VERSION_1 | PROTOCOL_FEATURES;
    front.negotiate(plain, feature::LOG_SHMFD);
    front.share_memory();
    let mut ring = front.start(0);
    let mut log = memfd(0x2000);
    // A bit a page, from the second page of the file on.
    let (answer, _) = front.ask(
        id::SET_LOG_BASE,
        &bytes(&[MEMORY / 4096 / 8, 0x1000]),
        &[log.as_raw_fd()],
    );
    assert_eq!(answer, bytes(&[0]));
    let mut marked = || {
        let mut bits = [0u8; 32];
        log.seek(SeekFrom::Start(0x1000)).unwrap();
        log.read_exact(&mut bits).unwrap();
        let pages = (0..256).filter(|page| bits[page / 8] & 1 << (page % 8) != 0);
        pages.collect::<Vec<_>>()
    };
    exchange(&front, &mut ring, 1);
    assert!(marked().is_empty());
    front.tell(id::SET_FEATURES, &bytes(&[plain | vhost_feature::LOG_ALL]), &[]);
    ring.request(&[readable(0x8000, 1), writable(0xc_0ffe, 4)]);
    front.kick(0);
    let used = (ring.layout.device_area / 4096) as usize;
    assert_eq!(marked(), [used, 0xc0]);
    front.tell(id::SET_FEATURES, &bytes(&[plain]), &[]);
    ring.request(&[readable(0x8000, 1), writable(0xd_0000, 4)]);
    front.kick(0);
    assert_eq!(marked(), [used, 0xc0], "it has ended");
}

/// Which pages a log of the front end's memory has, from its beginning.
fn pages(log: &File) -> Vec<u64> {
    let mut bits = [0u8; (MEMORY / 4096 / 8) as usize];
    log.read_exact_at(&mut bits, 0).unwrap();
    let marked = |page: &u64| bits[(page / 8) as usize] & 1 << (page % 8) != 0;
    (0..MEMORY / 4096).filter(marked).collect()
}

#[test]
fn packets_that_come_into_buffers_that_were_looked_at_ahead_are_logged_each_where_it_is() {
    let switch = Switch::new(SwitchOptions::default());
    let net = Net::new([switch.port()], NetOptions::default()).unwrap();
    let other = switch.port();
    let mut front = Front::new(net);
    let plain = VERSION_1 | PROTOCOL_FEATURES;
    front.negotiate(plain, feature::LOG_SHMFD);
    front.share_memory();
    // What is sent is not written, so only the receive queue's memory is.
    let mut sends = front.start(1);
    let mut ring = front.start(0);
    let log = memfd(0x1000);
    let (answer, _) = front.ask(id::SET_LOG_BASE, &bytes(&[MEMORY / 4096 / 8, 0]), &[log.as_raw_fd()]);
    assert_eq!(answer, bytes(&[0]));
    let buffer = |number: u64| 0x8_0000 + 0x2000 * number;
    for number in 0..24 {
        ring.request(&[writable(buffer(number), 0x800)]);
    }
    let send = |count: u64| {
        let mut frame = vec![0x5a; 1500];
        frame[..6].fill(0xff);
        let frame = VolatileSlice::from(&mut frame[..]);
        for _ in 0..count {
            _ = other.send(&Header::default(), &[frame]).unwrap();
        }
    };
    // Before anybody asks for a log, and more buffers are looked at than are used.
    send(3);
    while front.device.serve(QueueIndex(0)) {}
    assert_eq!(ring.used().len(), 3);
    assert!(pages(&log).is_empty());
    front.tell(id::SET_FEATURES, &bytes(&[plain | vhost_feature::LOG_ALL]), &[]);
    for already in [3, 10] {
        send(7);
        sends.request(&[readable(0x7_0000, 12 + 60)]);
        while front.device.serve(QueueIndex(1)) {}
        while front.device.serve(QueueIndex(0)) {}
        assert_eq!((ring.used().len(), sends.used().len()), (7, 1));
        let received = (3..already + 7).map(|number| buffer(number) / 4096);
        let rings = [&ring, &sends].map(|ring| ring.layout.device_area / 4096);
        let mut expected: Vec<_> = rings.into_iter().chain(received).collect();
        expected.sort_unstable();
        assert_eq!(pages(&log), expected);
    }
}

/// A front end with a device behind packed rings, and the log of what is written from here on.
fn logged<D: VirtioDevice + 'static>(device: D, queues: u32) -> (Front<D>, Vec<PackedRing>, File) {
    let mut front = Front::with_options(device, packed_options());
    let features = VERSION_1 | PROTOCOL_FEATURES | RING_PACKED;
    front.negotiate(features, feature::LOG_SHMFD);
    front.share_memory();
    let mut rings = Vec::new();
    for index in 0..queues {
        // Longer than a page, and its areas have others.
        let ring = PackedRing::new(&front.memory, 0x1_0000 * u64::from(index + 1), 260);
        front.describe(index, &Ring::at(&front.memory, ring.layout), 0x8000_8000);
        front.set_kick(index);
        front.enable(index, true);
        rings.push(ring);
    }
    let log = memfd(0x1000);
    let (answer, _) = front.ask(id::SET_LOG_BASE, &bytes(&[MEMORY / 4096 / 8, 0]), &[log.as_raw_fd()]);
    assert_eq!(answer, bytes(&[0]));
    front.tell(id::SET_FEATURES, &bytes(&[features | vhost_feature::LOG_ALL]), &[]);
    (front, rings, log)
}

#[test]
fn in_a_packed_ring_too_what_is_written_is_logged() {
    let (device, _) = Device::new(1);
    let (front, mut rings, log) = logged(device, 1);
    let ring = &mut rings[0];
    let [descriptors, events] = [ring.layout.descriptor_area, ring.layout.device_area].map(|area| area / 4096);
    for number in 0..127 {
        ring.request(&[readable(0x8000, 1), writable(0xc_0ffe, 4)]);
        front.kick(0);
        assert_eq!(ring.used().len(), 1);
        assert_eq!(pages(&log), [descriptors, events, 0xc0], "{number}");
    }
    // The last descriptors of the first page, and the first of the second.
    for expected in [
        vec![descriptors, events, 0xc0, 0xd0],
        vec![descriptors, descriptors + 1, events, 0xc0, 0xd0],
    ] {
        ring.request(&[readable(0x8000, 1), writable(0xd_0000, 4)]);
        front.kick(0);
        assert_eq!(ring.used().len(), 1);
        assert_eq!(pages(&log), expected);
    }
}

#[test]
fn packets_that_come_into_a_packed_ring_are_logged_each_where_it_is() {
    let switch = Switch::new(SwitchOptions::default());
    let net = Net::new([switch.port()], NetOptions::default()).unwrap();
    let other = switch.port();
    let (front, mut rings, log) = logged(net, 1);
    let ring = &mut rings[0];
    let buffer = |number: u64| 0x8_0000 + 0x1000 * number;
    (0..24).for_each(|number| _ = ring.request(&[writable(buffer(number), 0x800)]));
    let mut frame = [0xff; 64];
    for already in [0, 7, 14] {
        for _ in 0..7 {
            let frame = VolatileSlice::from(&mut frame[..]);
            _ = other.send(&Header::default(), &[frame]).unwrap();
        }
        while front.device.serve(QueueIndex(0)) {}
        assert_eq!(ring.used().len(), 7);
        let received: Vec<_> = (0..already + 7).map(|number| buffer(number) / 4096).collect();
        let marked = pages(&log);
        assert!(marked.contains(&(ring.layout.descriptor_area / 4096)));
        assert_eq!(marked[marked.len() - received.len()..], received);
    }
}

#[test]
fn a_log_that_is_too_short_is_refused() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(
        VERSION_1 | PROTOCOL_FEATURES | vhost_feature::LOG_ALL,
        feature::LOG_SHMFD,
    );
    front.share_memory();
    let log = memfd(0x1000);
    let short = front.try_send(
        id::SET_LOG_BASE,
        0,
        &bytes(&[MEMORY / 4096 / 8 - 1, 0]),
        &[log.as_raw_fd()],
    );
    assert!(short.is_err());
}

#[test]
fn memory_that_is_given_back_becomes_a_hole_in_the_front_ends_file() {
    let (device, _) = Device::new(1);
    let memory = FrontEndMemory::new();
    let options = VhostUserOptions {
        memory: Some(memory.clone()),
        ..VhostUserOptions::default()
    };
    let mut front = Front::with_options(device, options);
    assert_eq!(
        memory.discard(0x4000, 0x1000).unwrap().outside,
        0x1000,
        "there is none yet"
    );
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, 0);
    front.share_memory();
    front.file.write_all_at(&[7; 0x4000], 0x4000).unwrap();
    let discarded = memory.discard(0x4800, 0x2000).unwrap();
    assert_eq!((discarded.bytes, discarded.outside), (0x1000, 0));
    let mut bytes = [1; 0x4000];
    front.file.read_exact_at(&mut bytes, 0x4000).unwrap();
    assert!(bytes[0x1000..0x2000].iter().all(|byte| *byte == 0));
    assert!(bytes[..0x1000].iter().chain(&bytes[0x2000..]).all(|byte| *byte == 7));
    drop(Arc::clone(&front.file));
}
