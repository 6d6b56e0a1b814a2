//! When a ring runs, where it goes on, and who is told.

use std::{
    io::Write,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use devisor::{
    time::ManualClock,
    virtio::{
        QueueIndex, VirtioTransport, Wait,
        features::{IN_ORDER, RING_PACKED},
        net::{Net, NetOptions, Switch, SwitchOptions},
        transport::{
            Doorbell, TransportOptions,
            vhost_user::{VhostUser, VhostUserOptions},
        },
        vhost_user::protocol_feature as feature,
    },
};

use super::{
    devices::Device,
    front::{Front, PROTOCOL_FEATURES, VERSION_1, bytes, eventfd, halves, id, packed_options},
    packed::PackedRing,
    ring::{Ring, readable, writable},
};

const BUFFERS: u64 = 0x8000;

/// So many requests, one after another, are made and answered.
pub fn exchange(front: &Front, ring: &mut Ring, count: u8) {
    for number in 0..count {
        ring.put(BUFFERS, number);
        let head = ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
        front.kick(0);
        assert_eq!(ring.used(), [(head.into(), 1)]);
        assert_eq!(ring.get::<u8>(BUFFERS + 8), number + 1);
    }
}

#[test]
fn a_ring_that_is_described_kicked_and_enabled_serves_requests_and_calls() {
    let (device, seen) = Device::new(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 100);
    assert!(front.called(0) >= 1);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 100);
    assert_eq!(front.base(0), 100);
}

#[test]
fn with_protocol_features_a_ring_waits_to_be_enabled_and_without_it_does_not() {
    for (features, enabled) in [(VERSION_1 | PROTOCOL_FEATURES, false), (VERSION_1, true)] {
        let (device, _) = Device::new(1);
        let mut front = Front::new(device);
        front.negotiate(features, 0);
        front.share_memory();
        let mut ring = front.ring(0);
        front.describe(0, &ring, 0);
        front.set_kick(0);
        ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
        front.kick(0);
        front.device.run();
        assert_eq!(ring.used().len(), usize::from(enabled));
        if !enabled {
            // The kick of before is not lost.
            front.enable(0, true);
            front.serve(0);
            front.device.run();
            assert_eq!(ring.used().len(), 1);
        }
    }
}

/// "Upon receiving a SET_FEATURES message without VHOST_USER_F_PROTOCOL_FEATURES set, the back-end must enable all rings immediately";
/// no such message disables one.
#[test]
fn features_without_protocol_features_enable_all_rings_and_none_disable_any() {
    let (device, _) = Device::new(1);
    let mut front = Front::new(device);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, 0);
    front.share_memory();
    let mut ring = front.ring(0);
    front.describe(0, &ring, 0);
    front.set_kick(0);
    front.enable(0, false);
    front.tell(id::SET_FEATURES, &bytes(&[VERSION_1]), &[]);
    exchange(&front, &mut ring, 2);
    let base = front.base(0);
    front.tell(id::SET_FEATURES, &bytes(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
    front.describe(0, &ring, base);
    front.set_kick(0);
    exchange(&front, &mut ring, 2);
}

#[test]
fn a_ring_that_is_disabled_rests_and_goes_on_where_it_was() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 5);
    front.enable(0, false);
    ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
    front.kick(0);
    assert!(ring.used().is_empty());
    front.enable(0, true);
    front.device.run();
    assert_eq!(ring.used().len(), 1);
    exchange(&front, &mut ring, 5);
}

#[test]
fn a_ring_that_is_stopped_says_where_it_is_and_starts_there_again() {
    let (device, seen) = Device::new(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 7);
    assert_eq!(front.base(0), 7);
    assert!(front.device.waits(QueueIndex(0)).is_empty());
    front.describe(0, &ring, 7);
    front.set_kick(0);
    exchange(&front, &mut ring, 7);
    assert_eq!(front.base(0), 14);
    assert_eq!(seen.resets.load(Ordering::SeqCst), 0);
    assert_eq!(seen.features.lock().unwrap().len(), 1);
}

#[test]
fn the_base_is_answered_when_the_last_request_has_ended() {
    let (device, seen) = Device::keeping(2);
    let mut front = Front::ready(device, feature::MQ);
    let mut ring = front.start(0);
    let heads = [(); 3].map(|()| ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]));
    front.kick(0);
    assert_eq!(seen.kept.lock().unwrap().len(), 3);
    front.tell(id::GET_VRING_BASE, &halves(&[0, 0]), &[]);
    front.tell(id::GET_QUEUE_NUM, &[], &[]);
    assert!(front.answer().is_none(), "neither is answered");
    let kept = std::mem::take(&mut *seen.kept.lock().unwrap());
    for chain in kept.into_iter().rev() {
        chain.complete(1);
        assert!(front.answer().is_none());
    }
    // The connection waits for that.
    let waits = front.device.connection_waits();
    assert!(matches!(waits[..], [Wait::Readable(descriptor)] if descriptor != front.socket.as_raw_fd()));
    let used: Vec<_> = ring.used().iter().map(|(head, _)| *head as u16).collect();
    assert_eq!(used, [heads[2], heads[1], heads[0]]);
    front.pump().unwrap();
    let (answered, base, _) = front.answer().unwrap();
    assert_eq!((answered, base), (id::GET_VRING_BASE, halves(&[0, 3])));
    assert_eq!(front.answer().unwrap().0, id::GET_QUEUE_NUM);
}

#[test]
fn requests_that_come_back_untouched_are_found_by_whoever_goes_on_from_the_base() {
    let (device, seen) = Device::keeping(1);
    seen.gives_back.store(true, Ordering::SeqCst);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    let heads = [(); 4].map(|()| ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]));
    front.kick(0);
    // One in the middle ends.
    seen.kept.lock().unwrap().remove(2).complete(1);
    assert_eq!(ring.used(), [(heads[2].into(), 1)]);
    let base = front.base(0);
    assert_eq!(base, 1, "as far as was used");
    // Another process, which knows the base and the memory alone.
    let (device, seen) = Device::new(1);
    let mut other = Front::with_memory(device, VhostUserOptions::default(), Arc::clone(&front.file));
    other.negotiate(VERSION_1 | PROTOCOL_FEATURES, 0);
    other.share_memory();
    other.describe(0, &ring, base);
    other.set_kick(0);
    other.enable(0, true);
    other.device.run();
    let used: Vec<_> = ring.used().iter().map(|(head, _)| *head as u16).collect();
    assert_eq!(used, [heads[0], heads[1], heads[3]]);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 3);
}

#[test]
fn in_a_packed_ring_too_requests_that_come_back_untouched_are_found_by_another_process() {
    let packed = VERSION_1 | PROTOCOL_FEATURES | devisor::virtio::features::RING_PACKED;
    let (device, seen) = Device::keeping(1);
    seen.gives_back.store(true, Ordering::SeqCst);
    let mut front = Front::with_options(device, packed_options());
    front.negotiate(packed, 0);
    front.share_memory();
    let mut ring = PackedRing::new(&front.memory, 0x1_0000, 8);
    let place = Ring::at(&front.memory, ring.layout);
    front.describe(0, &place, 0x8000_8000);
    front.set_kick(0);
    front.enable(0, true);
    // Over the end of the ring.
    for _ in 0..3 {
        ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
        front.kick(0);
        seen.kept.lock().unwrap().pop().unwrap().complete(1);
        assert_eq!(ring.used().len(), 1);
    }
    let ids = [(); 4].map(|()| ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]));
    front.kick(0);
    seen.kept.lock().unwrap().remove(2).complete(1);
    assert_eq!(ring.used(), [(ids[2].into(), 1)]);
    let base = front.base(0);
    assert_eq!(base & 0xffff, base >> 16, "as far as was used");
    let (device, seen) = Device::new(1);
    let mut other = Front::with_memory(device, packed_options(), Arc::clone(&front.file));
    other.negotiate(packed, 0);
    other.share_memory();
    other.describe(0, &place, base);
    other.set_kick(0);
    other.enable(0, true);
    other.device.run();
    let used: Vec<_> = ring.used().iter().map(|(id, _)| *id as u16).collect();
    assert_eq!(used, [ids[0], ids[1], ids[3]]);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 3);
}

#[test]
fn packets_that_are_sent_in_order_share_a_used_descriptor_as_far_as_each_is_one_buffer() {
    let options = VhostUserOptions {
        transport: TransportOptions {
            packed: true,
            in_order: true,
            ..TransportOptions::default()
        },
        ..VhostUserOptions::default()
    };
    let switch = Switch::new(SwitchOptions::default());
    let net = Net::new([switch.port()], NetOptions::default()).unwrap();
    let mut front = Front::with_options(net, options);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES | RING_PACKED | IN_ORDER, 0);
    front.share_memory();
    let mut ring = PackedRing::new(&front.memory, 0x2_0000, 8);
    front.describe(1, &Ring::at(&front.memory, ring.layout), 0x8000_8000);
    front.set_kick(1);
    front.enable(1, true);
    let (packet, parts) = (
        [readable(BUFFERS, 12 + 60)],
        [readable(BUFFERS, 12), readable(BUFFERS + 12, 60)],
    );
    // Over the end of the ring, whose first descriptor has one of its own, and a ring full of them.
    for (count, expected) in [
        (3, &[3][..]),
        (4, &[4][..]),
        (5, &[1; 5][..]),
        (8, &[4, 1, 1, 1, 1][..]),
        (1, &[1][..]),
        (8, &[3, 1, 1, 1, 1, 1][..]),
    ] {
        let mut made: Vec<_> = (0..count).map(|_| ring.request(&packet)).collect();
        let after = ring.descriptor_at(ring.used_place().after(1, 8).slot);
        front.kick(1);
        assert_eq!(ring.used_in_order(&mut made), expected);
        if expected == [count] && count != 1 {
            assert_eq!(
                ring.descriptor_at(ring.used_place().after(8 - count as u16 + 1, 8).slot),
                after,
                "it is not written"
            );
        }
    }
    // What is more than one buffer has one of its own, and what comes after it.
    let chains: [&[_]; 5] = [&packet, &packet, &parts, &packet, &packet];
    for _ in 0..3 {
        let mut made: Vec<_> = chains.iter().map(|chain| ring.request(chain)).collect();
        front.kick(1);
        assert_eq!(ring.used_in_order(&mut made), [2, 1, 1, 1]);
        assert!(made.is_empty());
    }
    // It may be the first, whose ID is that of the last then.
    for (chains, expected) in [(&[&packet[..]][..], [1]), (&[&parts, &packet], [2])] {
        let mut made: Vec<_> = chains.iter().map(|chain| ring.request(chain)).collect();
        front.kick(1);
        assert_eq!(ring.used_in_order(&mut made), expected);
    }
}

#[test]
fn who_is_told_no_place_finds_that_of_a_ring_whose_packets_share_used_descriptors() {
    let options = || VhostUserOptions {
        transport: TransportOptions {
            packed: true,
            in_order: true,
            ..TransportOptions::default()
        },
        ..VhostUserOptions::default()
    };
    let net = |switch: &Switch| Net::new([switch.port()], NetOptions::default()).unwrap();
    let features = VERSION_1 | PROTOCOL_FEATURES | RING_PACKED | IN_ORDER;
    let switch = Switch::new(SwitchOptions::default());
    let mut front = Front::with_options(net(&switch), options());
    front.negotiate(features, 0);
    front.share_memory();
    let mut ring = PackedRing::new(&front.memory, 0x2_0000, 4);
    let place = Ring::at(&front.memory, ring.layout);
    front.describe(1, &place, 0x8000_8000);
    front.set_kick(1);
    front.enable(1, true);
    let packet = [readable(BUFFERS, 12 + 60)];
    // Two at the end of the second lap are sent at once, the last one in the ring's first descriptor.
    for count in [1, 1, 1, 1, 3, 2, 3] {
        let mut made: Vec<_> = (0..count).map(|_| ring.request(&packet)).collect();
        front.kick(1);
        ring.used_in_order(&mut made);
        assert!(made.is_empty());
    }
    assert_eq!(front.base(1), 0);
    let mut other = Front::with_memory(net(&switch), options(), Arc::clone(&front.file));
    other.negotiate(features, 0);
    other.share_memory();
    other.describe(1, &place, 0);
    other.set_kick(1);
    other.enable(1, true);
    other.kick(1);
    assert_eq!(other.device.counters().requests, 0, "all of them were sent");
    let mut made = vec![ring.request(&packet)];
    other.kick(1);
    assert_eq!(ring.used_in_order(&mut made), [1]);
}

#[test]
fn a_kick_that_comes_while_there_is_more_is_waited_for_until_it_is_taken() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    let kick = front.kicks[0].try_clone().unwrap();
    let is_there = || {
        let mut poll = libc::pollfd {
            fd: kick.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure, as is said.
        (unsafe { libc::poll(&raw mut poll, 1, 0) }) == 1
    };
    front.serve(0);
    // As many as a round has.
    let chain = [writable(BUFFERS + 8, 1)];
    (0..ring.layout.size).for_each(|_| _ = ring.request(&chain));
    (&kick).write_all(&1u64.to_ne_bytes()).unwrap();
    assert!(front.device.serve(QueueIndex(0)));
    assert_eq!((ring.used().len(), is_there()), (64, false));
    // The embedder comes in any case: what is new is served, and the kick for it is there as long as it was not taken.
    ring.request(&chain);
    (&kick).write_all(&1u64.to_ne_bytes()).unwrap();
    while front.device.serve(QueueIndex(0)) {}
    assert_eq!((ring.used().len(), is_there()), (1, true));
    assert_eq!(front.device.waits(QueueIndex(0)).len(), 1);
    while front.device.serve(QueueIndex(0)) {}
    assert!(!is_there());
}

#[test]
fn without_a_kick_descriptor_a_ring_is_polled_or_refused() {
    let (device, _) = Device::new(1);
    let clock = Arc::new(ManualClock::new(Duration::ZERO));
    let options = VhostUserOptions {
        polled: Some((clock, Duration::from_millis(1))),
        ..VhostUserOptions::default()
    };
    let mut front = Front::with_options(device, options);
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, 0);
    front.share_memory();
    let mut ring = front.ring(0);
    front.describe(0, &ring, 0);
    front.tell(id::SET_VRING_KICK, &bytes(&[1 << 8]), &[]);
    front.enable(0, true);
    assert_eq!(
        front.device.waits(QueueIndex(0)),
        [Wait::Until(Duration::from_millis(1))]
    );
    ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
    front.device.serve(QueueIndex(0));
    assert_eq!(ring.used().len(), 1);

    let (device, _) = Device::new(1);
    let front = Front::ready(device, 0);
    assert!(front.try_send(id::SET_VRING_KICK, 0, &bytes(&[1 << 8]), &[]).is_err());
}

#[test]
fn a_ring_that_its_driver_broke_is_told_by_the_error_descriptor_and_the_status() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, feature::STATUS | feature::RESET_DEVICE);
    let mut ring = front.start(0);
    let error = eventfd();
    front.tell(id::SET_VRING_ERR, &bytes(&[0]), &[error.as_raw_fd()]);
    ring.set_avail_idx(1000);
    front.kick(0);
    let mut told = [0; 8];
    assert_eq!(std::io::Read::read(&mut &error, &mut told).unwrap(), 8);
    assert_eq!(front.ask_word(id::GET_STATUS, &[]) & 64, 64);
    assert!(front.device.is_connected());
    // A reset revives.
    front.base(0);
    front.tell(id::RESET_DEVICE, &[], &[]);
    front.tell(id::SET_FEATURES, &bytes(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 3);
}

#[test]
fn a_ring_where_no_ring_can_be_fails_the_device_and_not_the_process() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, feature::STATUS);
    let mut ring = front.ring(0);
    ring.layout.size = 63;
    front.describe(0, &ring, 0);
    front.set_kick(0);
    front.enable(0, true);
    assert_eq!(front.ask_word(id::GET_STATUS, &[]) & 64, 64);
    assert!(front.device.is_connected());
}

#[test]
fn a_kick_that_nobody_has_looked_at_when_another_takes_its_place_is_not_lost() {
    let (device, _) = Device::new(1);
    let mut front = Front::ready(device, 0);
    let mut ring = front.start(0);
    exchange(&front, &mut ring, 2);
    let head = ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
    (&front.kicks[0]).write_all(&1u64.to_ne_bytes()).unwrap();
    front.set_kick(0);
    front.serve(0);
    assert_eq!(ring.used(), [(head.into(), 1)]);
    exchange(&front, &mut ring, 2);
}

#[test]
fn a_call_that_comes_after_what_it_is_for_says_so_unless_nothing_is_to_be_said() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Meanwhile {
        Runs,
        Stopped,
        Paused,
        Polled,
    }
    for meanwhile in [
        Meanwhile::Runs,
        Meanwhile::Stopped,
        Meanwhile::Paused,
        Meanwhile::Polled,
    ] {
        let (device, _) = Device::new(1);
        let mut front = Front::ready(device, 0);
        let mut ring = front.ring(0);
        ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
        front.tell(id::SET_VRING_NUM, &halves(&[0, 64]), &[]);
        front.tell(id::SET_VRING_ADDR, &Front::<Device>::address(0, &ring), &[]);
        if meanwhile == Meanwhile::Polled {
            front.tell(id::SET_VRING_CALL, &bytes(&[1 << 8]), &[]);
        }
        front.set_kick(0);
        front.enable(0, true);
        front.device.run();
        assert_eq!(ring.used().len(), 1);
        match meanwhile {
            Meanwhile::Stopped => assert_eq!(front.base(0), 1),
            Meanwhile::Paused => front.device.pause(),
            _ => {}
        }
        let call = eventfd();
        let called = || std::io::Read::read(&mut &call, &mut [0; 8]).is_ok();
        front.tell(id::SET_VRING_CALL, &bytes(&[0]), &[call.as_raw_fd()]);
        // The driver may sleep until it hears of it.
        assert_eq!(called(), meanwhile == Meanwhile::Runs, "{meanwhile:?}");
        match meanwhile {
            Meanwhile::Stopped => front.set_kick(0),
            _ => front.device.resume(),
        }
        front.device.run();
        let later = [Meanwhile::Stopped, Meanwhile::Paused].contains(&meanwhile);
        assert_eq!(called(), later, "{meanwhile:?}");
        front.tell(id::SET_VRING_CALL, &bytes(&[0]), &[call.as_raw_fd()]);
        front.device.run();
        assert!(!called(), "there is nothing more");
    }
}

/// Hears that a queue is to be served.
struct Rung(Arc<AtomicUsize>);

impl Doorbell for Rung {
    fn ring(&self, _: QueueIndex) -> std::io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_driver_that_never_ends_does_not_hold_who_is_told_of_another_call() {
    let (device, seen) = Device::new(1);
    let rung = Arc::new(AtomicUsize::new(0));
    let mut front = Front::new(Device::new(1).0);
    let device = VhostUser::new(device, VhostUserOptions::default()).unwrap();
    front.device = device.with_doorbell(Rung(Arc::clone(&rung)));
    let (socket, theirs) = UnixStream::pair().unwrap();
    front.socket = socket;
    front.device.connect(theirs).unwrap();
    front.negotiate(VERSION_1 | PROTOCOL_FEATURES, 0);
    front.share_memory();
    let mut ring = front.start(0);
    // For each request that is answered the driver makes another.
    ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
    let mut more = 0..10_000;
    *seen.each.lock().unwrap() = Some(Box::new(move || {
        if more.next().is_some() {
            ring.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
        }
    }));
    let (call, before) = (eventfd(), rung.load(Ordering::SeqCst));
    front.tell(id::SET_VRING_CALL, &bytes(&[0]), &[call.as_raw_fd()]);
    assert!(seen.requests.load(Ordering::SeqCst) < 1000);
    assert!(rung.load(Ordering::SeqCst) > before, "who serves it is told");
    while front.device.serve(QueueIndex(0)) {}
    assert_eq!(seen.requests.load(Ordering::SeqCst), 10_001);
}

#[test]
fn other_rings_go_on_while_one_is_stopped() {
    let (device, _) = Device::new(2);
    let mut front = Front::ready(device, 0);
    let mut second = front.start(1);
    let mut first = front.start(0);
    exchange(&front, &mut first, 2);
    front.kicks.swap(0, 1);
    second.put(BUFFERS, 9u8);
    second.request(&[readable(BUFFERS, 1), writable(BUFFERS + 8, 1)]);
    assert_eq!(front.base(0), 2);
    front.kick(1);
    front.device.run();
    assert_eq!(second.used().len(), 1);
}
