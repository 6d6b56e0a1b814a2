//! Front ends that do wrong, or die: what it costs is their connection.

use std::{
    fs,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::MetadataExt,
    },
    sync::atomic::Ordering,
};

use devisor::virtio::{
    VirtioTransport,
    features::RING_PACKED,
    transport::vhost_user::{ConnectionError, VhostUserOptions},
    vhost_user::{protocol_feature as feature, vhost_feature::LOG_ALL},
};

use super::{
    devices::Device,
    front::{
        Front, PROTOCOL_FEATURES, VERSION, VERSION_1, bytes, eventfd, halves, id, memfd, message, packed_options,
        region, send,
    },
    rings::exchange,
    skip::skipped,
};

/// How many descriptors of this process lead to `file`.
fn descriptors_of(file: &impl AsRawFd) -> usize {
    let target = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let inode = |path: &std::path::Path| {
        fs::metadata(path).ok().map(|metadata| {
            (
                std::os::unix::fs::MetadataExt::dev(&metadata),
                std::os::unix::fs::MetadataExt::ino(&metadata),
            )
        })
    };
    let own = inode(format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref());
    let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
    all.filter(|entry| fs::read_link(entry.path()).is_ok_and(|other| other == target) && inode(&entry.path()) == own)
        .count()
}

#[test]
fn what_is_no_message_costs_the_connection() {
    let cases = [
        ("another version", halves(&[1, 2, 0])),
        ("a payload without end", halves(&[1, VERSION, u32::MAX])),
        ("one byte too many", halves(&[1, VERSION, 4097])),
        ("a request that there is not", message(999, VERSION, &[])),
        ("a request that is zero", message(0, VERSION, &[])),
        ("an answer", message(1, VERSION | 4, &[])),
        ("half a number", message(id::SET_FEATURES, VERSION, &[1, 2, 3])),
        (
            "a feature that was not negotiated",
            message(id::GET_CONFIG, VERSION, &[0; 32]),
        ),
        (
            "another endianness",
            message(id::SET_VRING_ENDIAN, VERSION, &halves(&[0, 1])),
        ),
        ("postcopy", message(id::POSTCOPY_ADVISE, VERSION, &[])),
        (
            "a table without files",
            message(id::SET_MEM_TABLE, VERSION, &[halves(&[1, 0]), region()].concat()),
        ),
        (
            "more regions than there can be",
            message(id::SET_MEM_TABLE, VERSION, &halves(&[9, 0])),
        ),
        (
            "a queue that there is not",
            message(id::SET_VRING_NUM, VERSION, &halves(&[7, 1])),
        ),
        (
            "a kick without a descriptor",
            message(id::SET_VRING_KICK, VERSION, &bytes(&[0])),
        ),
        (
            "neither enabled nor disabled",
            message(id::SET_VRING_ENABLE, VERSION, &halves(&[0, 2])),
        ),
        (
            "features that nobody has offered",
            message(id::SET_FEATURES, VERSION, &bytes(&[1 << 63])),
        ),
    ];
    for (why, sent) in cases {
        let (device, _) = Device::new(1);
        let front = Front::new(device);
        send(&front.socket, &sent, &[]).unwrap();
        assert!(front.pump().is_err(), "{why}");
        assert!(!front.device.is_connected(), "{why}");
        assert_eq!(front.device.status(), 0, "{why}");
    }
}

#[test]
fn a_message_that_is_cut_anywhere_ends_the_connection_when_the_socket_does() {
    let table = message(id::SET_MEM_TABLE, VERSION, &[halves(&[1, 0]), region()].concat());
    for len in 0..table.len() {
        let (device, _) = Device::new(1);
        let mut front = Front::new(device);
        let file = memfd(1 << 20);
        if len != 0 {
            send(&front.socket, &table[..len], &[file.as_raw_fd()]).unwrap();
        }
        front.pump().unwrap();
        // The other end goes.
        front.socket = std::os::unix::net::UnixStream::pair().unwrap().0;
        match front.pump() {
            Err(ConnectionError::Closed) => assert_eq!(len, 0),
            Err(ConnectionError::Socket(_)) => assert_ne!(len, 0),
            other => panic!("{other:?}"),
        }
        assert_eq!(descriptors_of(&file), 1, "of {len} bytes, its descriptor has leaked");
    }
}

#[test]
fn descriptors_that_nobody_has_asked_for_are_closed() {
    let file = memfd(0x1000);
    for request in 0..50 {
        let (device, _) = Device::new(1);
        let mut front = Front::new(device);
        front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::REPLY_ACK);
        let descriptors = [file.as_raw_fd(); 3];
        let _ = front.try_send(request, super::front::NEED_REPLY, &[0; 40], &descriptors);
        assert_eq!(descriptors_of(&file), 1, "request {request}");
    }
}

#[test]
fn more_descriptors_than_a_message_has_cost_the_connection_and_leak_nothing() {
    let file = memfd(0x1000);
    for count in [9, 16, 100, 253] {
        let (device, _) = Device::new(1);
        let front = Front::new(device);
        let descriptors = vec![file.as_raw_fd(); count];
        let sent = front.try_send(id::SET_OWNER, 0, &[], &descriptors);
        assert!(matches!(sent, Err(ConnectionError::Socket(_))), "{count}");
        assert_eq!(descriptors_of(&file), 1);
    }
}

#[test]
fn all_that_a_connection_had_is_closed_when_it_ends() {
    let (device, _) = Device::new(2);
    let mut front = Front::new(device);
    front.negotiate(
        VERSION_1 | PROTOCOL_FEATURES,
        feature::LOG_SHMFD | feature::INFLIGHT_SHMFD | feature::BACKEND_REQ,
    );
    front.share_memory();
    let log = memfd(0x1000);
    front.ask(id::SET_LOG_BASE, &bytes(&[0x1000, 0]), &[log.as_raw_fd()]);
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 1);
    let error = eventfd();
    front.tell(id::SET_VRING_ERR, &bytes(&[0]), &[error.as_raw_fd()]);
    assert!(descriptors_of(&*front.file) > 1);
    front.device.disconnect();
    assert_eq!(descriptors_of(&*front.file), 1);
    assert_eq!(descriptors_of(&log), 1);
    assert!(front.device.waits(devisor::virtio::QueueIndex(0)).is_empty());
    assert!(front.device.connection_waits().is_empty());
}

#[test]
fn a_front_end_that_reads_no_answers_is_not_heard_until_it_does() {
    let (device, _) = Device::new(1);
    let front = Front::new(device);
    front.socket.set_nonblocking(true).unwrap();
    let asked = message(id::GET_FEATURES, VERSION, &[]);
    let (mut sent, mut idle) = (0, 0);
    // Neither end has room without bound.
    while idle < 3 {
        match send(&front.socket, &asked, &[]) {
            Ok(_) => (sent, idle) = (sent + 1, 0),
            Err(_) => idle += 1,
        }
        front.pump().unwrap();
        assert!(sent < 1_000_000);
    }
    let mut answers = 0;
    while front.answer().is_some() {
        answers += 1;
        front.pump().unwrap();
    }
    assert_eq!(answers, sent);
}

#[test]
fn a_call_descriptor_that_is_full_or_closed_holds_up_nobody() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    // Full: the device's thread would wait for ever.
    std::io::Write::write_all(&mut &front.calls[0], &(u64::MAX - 1).to_ne_bytes()).unwrap();
    exchange(&front, &mut ring, 2);
    // A file that takes no event.
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(reader);
    front.tell(id::SET_VRING_CALL, &bytes(&[0]), &[writer.as_raw_fd()]);
    exchange(&front, &mut ring, 2);
}

/// Has a descriptor waited for, as a front end can that shares it.
fn make_blocking(file: &impl AsRawFd) {
    // SAFETY: a call that takes numbers.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) }, 0);
}

#[test]
fn a_call_or_kick_descriptor_that_the_front_end_has_made_blocking_since_holds_up_nobody() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    // A full counter.
    std::io::Write::write_all(&mut &front.calls[0], &(u64::MAX - 1).to_ne_bytes()).unwrap();
    make_blocking(&front.calls[0]);
    make_blocking(&front.kicks[0]);
    exchange(&front, &mut ring, 3);
    // Looked at without a kick.
    front.device.serve(devisor::virtio::QueueIndex(0));
    front.device.run();
    // A full pipe.
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors, which are this test's.
    let [_reader, writer] = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK), 0);
        ends.map(|end| <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(end))
    };
    let writer = fs::File::from(writer);
    while std::io::Write::write(&mut &writer, &[0; 4096]).is_ok() {}
    front.tell(id::SET_VRING_CALL, &bytes(&[0]), &[writer.as_raw_fd()]);
    make_blocking(&writer);
    exchange(&front, &mut ring, 3);
    // A file can be on a file system that never answers.
    let file = memfd(0x1000);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::REPLY_ACK);
    assert!(!front.acknowledged(id::SET_VRING_CALL, &bytes(&[0]), &[file.as_raw_fd()]));
    exchange(&front, &mut ring, 3);
    // And one that is full of what it has been called with.
    let error = eventfd();
    std::io::Write::write_all(&mut &error, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    front.tell(id::SET_VRING_ERR, &bytes(&[0]), &[error.as_raw_fd()]);
    make_blocking(&error);
    ring.set_avail_idx(5000);
    front.kick(0);
    assert_ne!(front.device.status() & 64, 0);
}

#[test]
fn a_descriptor_that_is_no_eventfd_pipe_or_socket_is_no_kick_or_call() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, feature::REPLY_ACK);
    let mut ring = front.start(0);
    // SAFETY: each call takes numbers; the results are new descriptors, which are this test's.
    let others = unsafe {
        [
            // There is no read of these that says for itself that it is not to wait, on some kernels or on all.
            libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC),
            libc::inotify_init1(libc::IN_CLOEXEC),
            libc::epoll_create1(libc::EPOLL_CLOEXEC),
        ]
        .map(|descriptor| std::os::fd::OwnedFd::from_raw_fd(descriptor))
    };
    for other in &others {
        for request in [id::SET_VRING_KICK, id::SET_VRING_CALL, id::SET_VRING_ERR] {
            let taken = front.acknowledged(request, &bytes(&[0]), &[other.as_raw_fd()]);
            assert!(!taken, "request {request}: {other:?}");
        }
    }
    exchange(&front, &mut ring, 2);
}

#[test]
fn thousands_of_malformed_messages_with_descriptors_leak_none() {
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = memfd(0x3000);
    let mut random = 7u64;
    let mut next = move || {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        random >> 32
    };
    let (mut refused, mut ended) = (0, 0);
    let all = feature::MQ
        | feature::LOG_SHMFD
        | feature::REPLY_ACK
        | feature::BACKEND_REQ
        | feature::CONFIG
        | feature::INFLIGHT_SHMFD
        | feature::CONFIGURE_MEM_SLOTS
        | feature::STATUS
        | feature::DEVICE_STATE;
    for _ in 0..40 {
        let (device, _) = Device::new(2);
        let mut front = Front::with_options(
            device,
            VhostUserOptions {
                max_translations: 16,
                ..VhostUserOptions::default()
            },
        );
        front.negotiate(
            VERSION_1 | PROTOCOL_FEATURES | devisor::virtio::features::ACCESS_PLATFORM,
            all,
        );
        for _ in 0..100 {
            let request = 1 + next() as u32 % 45;
            let words: Vec<u64> = (0..next() % 9)
                .map(|_| match next() % 6 {
                    0 => u64::MAX - next() % 4,
                    1 => super::front::USER + next() % 4 * 0x1000,
                    2 => next() % 4 * 0x1000,
                    _ => next() % 4,
                })
                .collect();
            let descriptors: Vec<_> = (0..next() % 10)
                .map(|at| match at % 3 {
                    0 => file.as_raw_fd(),
                    1 => reader.as_raw_fd(),
                    _ => writer.as_raw_fd(),
                })
                .collect();
            let refusals = front.device.refusals().count;
            if front
                .try_send(request, super::front::NEED_REPLY, &bytes(&words), &descriptors)
                .is_err()
            {
                ended += 1;
                break;
            }
            refused += front.device.refusals().count - refusals;
            while front.answer().is_some() {}
        }
        front.device.disconnect();
        assert_eq!(descriptors_of(&file), 1);
        assert_eq!(descriptors_of(&reader), 1);
        assert_eq!(descriptors_of(&writer), 1);
    }
    assert!(refused > 100 && ended > 10, "{refused} refused, {ended} ended");
}

#[test]
fn postcopy_is_not_offered_and_refused_cleanly() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, feature::REPLY_ACK);
    // `VHOST_USER_PROTOCOL_F_PAGEFAULT`.
    assert_eq!(front.ask_word(id::GET_PROTOCOL_FEATURES, &[]) & 1 << 8, 0);
    assert!(!front.acknowledged(id::SET_PROTOCOL_FEATURES, &bytes(&[1 << 8 | feature::REPLY_ACK]), &[]));
    let mut ring = front.start(0);
    let file = memfd(0x1000);
    for request in [28, 29, 30] {
        assert!(!front.acknowledged(request, &[], &[file.as_raw_fd()]), "{request}");
        exchange(&front, &mut ring, 1);
    }
    assert_eq!(descriptors_of(&file), 1);
}

#[test]
fn logs_that_cannot_be_are_refused_and_the_one_before_stays() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    let features = VERSION_1 | PROTOCOL_FEATURES | LOG_ALL;
    front.negotiate(features, feature::LOG_SHMFD | feature::REPLY_ACK);
    front.share_memory();
    let log = memfd(0x1000);
    let (answer, _) = front.ask(id::SET_LOG_BASE, &bytes(&[0x20, 0]), &[log.as_raw_fd()]);
    assert_eq!(answer, bytes(&[0]));
    let mut ring = front.start(0);
    let directory = fs::File::open("/").unwrap();
    for (size, offset, file) in [
        (0, 0, log.as_raw_fd()),
        (0x1001, 0, log.as_raw_fd()),
        (0x20, 0xff1, log.as_raw_fd()),
        (0x20, u64::MAX, log.as_raw_fd()),
        (u64::MAX, 1, log.as_raw_fd()),
        (0x20, 0, directory.as_raw_fd()),
        // A bit for each page of memory is needed.
        (0x1f, 0, log.as_raw_fd()),
    ] {
        let refused = front.acknowledged(id::SET_LOG_BASE, &bytes(&[size, offset]), &[file]);
        assert!(!refused, "{size:#x} at {offset:#x}");
    }
    assert!(!front.acknowledged(id::SET_LOG_BASE, &bytes(&[0x20, 0]), &[]));
    // And stays when memory is mapped anew.
    front.share_memory();
    exchange(&front, &mut ring, 2);
    let mut bits = [0; 32];
    std::os::unix::fs::FileExt::read_exact_at(&log, &mut bits, 0).unwrap();
    assert_ne!(bits, [0; 32], "the first one is in use");
}

#[test]
fn features_that_are_refused_are_not_those_of_rings_that_start_later() {
    let (device, seen) = Device::new(2);
    let mut front = Front::with_options(device, packed_options());
    let features = VERSION_1 | PROTOCOL_FEATURES;
    front.negotiate(features, feature::REPLY_ACK | feature::LOG_SHMFD);
    front.share_memory();
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 2);
    assert!(!front.acknowledged(id::SET_FEATURES, &bytes(&[features | RING_PACKED]), &[]));
    // And those whose log ends before memory does.
    let log = memfd(0x1000);
    front.ask(id::SET_LOG_BASE, &bytes(&[1, 0]), &[log.as_raw_fd()]);
    assert!(!front.acknowledged(id::SET_FEATURES, &bytes(&[features | LOG_ALL]), &[]));
    front.share_memory();
    let mut other = front.start(1);
    other.request(&[super::ring::readable(0x8000, 1), super::ring::writable(0x8008, 1)]);
    front.kick(1);
    assert_eq!(other.used().len(), 1, "it is a split ring");
    assert!(front.acknowledged(id::SET_FEATURES, &bytes(&[features]), &[]));
    assert_eq!(*seen.features.lock().unwrap(), [VERSION_1]);
}

#[test]
fn features_that_there_are_not_do_not_reset_the_device() {
    let (device, seen) = Device::new(1);
    let mut front = Front::ready(device, feature::REPLY_ACK);
    let resets = seen.resets.load(Ordering::SeqCst);
    assert!(!front.acknowledged(id::SET_FEATURES, &bytes(&[VERSION_1 | 1 << 63]), &[]));
    assert_eq!(seen.resets.load(Ordering::SeqCst), resets);
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 2);
}

/// Files of huge pages are mapped in whole ones, whatever length is said, and a part of one is never unmapped.
#[test]
fn a_part_of_a_huge_page_is_no_memory_and_leaves_no_mapping() {
    // SAFETY: the name is a string, and the result is a new descriptor, or none.
    let file = unsafe {
        match libc::memfd_create(c"huge".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_HUGETLB) {
            ..0 => return skipped("the kernel has no huge pages"),
            descriptor => fs::File::from_raw_fd(descriptor),
        }
    };
    let len = file.metadata().unwrap().blksize();
    file.set_len(2 * len).unwrap();
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains(&inode)).count()
    };
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(
        VERSION_1 | PROTOCOL_FEATURES,
        feature::REPLY_ACK | feature::CONFIGURE_MEM_SLOTS | feature::LOG_SHMFD | feature::INFLIGHT_SHMFD,
    );
    for (size, offset) in [(0x1000, 0), (len + 0x1000, 0), (len, 0x1000)] {
        let region = bytes(&[0, 0, size, super::front::USER, offset]);
        assert!(
            !front.acknowledged(id::ADD_MEM_REG, &region, &[file.as_raw_fd()]),
            "{size:#x}"
        );
    }
    // A log or a table may be a part of one, where there are any.
    front.acknowledged(id::SET_LOG_BASE, &bytes(&[0x20, 0x40]), &[file.as_raw_fd()]);
    let table = [bytes(&[0x1000, 0x2000]), halves(&[1 | 16 << 16, 0])].concat();
    front.acknowledged(id::SET_INFLIGHT_FD, &table, &[file.as_raw_fd()]);
    front.device.disconnect();
    assert_eq!(maps(), 0);
}

#[test]
fn rings_that_point_anywhere_harm_nobody() {
    let addresses = [
        0,
        1,
        0xffff_ffff_ffff_fff0,
        super::front::USER,
        super::front::USER + (1 << 20) - 16,
    ];
    for descriptor in addresses {
        for used in addresses {
            let (device, _) = Device::new(1);
            let mut front = Front::with_options(device, VhostUserOptions::default());
            front.negotiate(VERSION_1 | PROTOCOL_FEATURES, feature::STATUS);
            front.share_memory();
            let address = [
                halves(&[0, 0]),
                bytes(&[descriptor, used, super::front::USER + 0x3000, 0]),
            ]
            .concat();
            front.tell(id::SET_VRING_NUM, &halves(&[0, 1024]), &[]);
            front.tell(id::SET_VRING_ADDR, &address, &[]);
            front.set_kick(0);
            front.enable(0, true);
            front.kick(0);
            front.device.run();
            front.base(0);
        }
    }
}

#[test]
fn a_device_that_is_busy_when_its_front_end_dies_comes_to_rest_and_takes_another() {
    let (device, seen) = Device::keeping(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    ring.request(&[super::ring::readable(0x8000, 1), super::ring::writable(0x8008, 1)]);
    front.kick(0);
    let (socket, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    front.socket = socket;
    assert!(front.pump().is_err());
    // The request is still under way, in memory that is kept for it.
    front.device.connect(theirs).unwrap();
    send(&front.socket, &message(id::GET_FEATURES, VERSION, &[]), &[]).unwrap();
    front.pump().unwrap();
    assert!(front.answer().is_none(), "not before it has ended");
    seen.kept.lock().unwrap().pop().unwrap().complete(1);
    assert_eq!(ring.used_idx(), 1, "a driver that has survived its front end finds it");
    front.pump().unwrap();
    assert_eq!(front.answer().unwrap().0, id::GET_FEATURES);
}
