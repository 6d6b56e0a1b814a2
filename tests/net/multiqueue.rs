//! Several queue pairs: automatic steering, receive-side scaling, hashes (sections 5.1.6.5.5 to 5.1.6.5.7 and 5.1.6.4.3).

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use devisor::virtio::{
    QueueIndex, VirtioTransport,
    net::{Header, NetFrame, NetOptions, Port, Progress, Received, Wire, toeplitz},
};
use vm_memory::VolatileSlice;

use crate::guest::*;

const PAIRS: u16 = 4;
const FEATURES: u64 = CTRL_VQ | MQ | RSS;
const TCP: u8 = 6;
const UDP: u8 = 17;
const NOWHERE: [usize; 0] = [];

fn several() -> NetOptions {
    NetOptions {
        pairs: PAIRS,
        ..options()
    }
}

/// A guest with four pairs over one cable each, or over one for all.
fn guest(ports: usize, features: u64) -> (Vec<Arc<Wire>>, Guest) {
    let wires: Vec<_> = (0..ports).map(|_| Arc::new(Wire::new(64))).collect();
    let guest = Guest::over(wires.clone(), several(), features);
    (wires, guest)
}

fn fill(guest: &mut Guest) {
    for pair in 0..usize::from(PAIRS) {
        for _ in 0..4 {
            guest.buffer(pair, 1526);
        }
    }
}

/// Where a frame that comes in by a wire goes.
fn goes_to(guest: &mut Guest, wire: &Wire, data: &[u8]) -> Vec<usize> {
    let frame = NetFrame {
        header: Header::default(),
        data: data.to_vec(),
    };
    assert!(wire.put(frame));
    guest.nic.run();
    let got = |pair: &usize| !guest.received(*pair).is_empty();
    (0..usize::from(PAIRS)).filter(got).collect()
}

fn set_pairs(guest: &mut Guest, pairs: u16) -> u8 {
    guest.command(4, 0, &pairs.to_le_bytes())
}

/// `struct virtio_net_rss_config`.
fn rss(types: u32, unclassified: u16, table: &[u16], key: &[u8]) -> Vec<u8> {
    let mut data = types.to_le_bytes().to_vec();
    data.extend((table.len().wrapping_sub(1) as u16).to_le_bytes());
    data.extend(unclassified.to_le_bytes());
    table.iter().for_each(|pair| data.extend(pair.to_le_bytes()));
    data.extend(PAIRS.to_le_bytes());
    data.push(key.len() as u8);
    data.extend(key);
    data
}

fn key() -> Vec<u8> {
    (1..=40).map(|n: u8| n.wrapping_mul(83)).collect()
}

#[test]
fn a_device_begins_with_one_pair() {
    let (wires, mut guest) = guest(4, FEATURES);
    fill(&mut guest);
    assert_eq!(guest.nic.with_device(|nic| nic.active_pairs()), 1);
    let active: Vec<_> = wires.iter().map(|wire| wire.is_active()).collect();
    assert_eq!(active, [true, false, false, false]);
    assert_eq!(goes_to(&mut guest, &wires[0], &packet(TCP, 1, 2)), [0]);
    assert_eq!(
        goes_to(&mut guest, &wires[2], &packet(TCP, 1, 2)),
        NOWHERE,
        "one that is not in use"
    );
}

#[test]
fn pairs_are_enabled_up_to_all_and_not_beyond() {
    let (wires, mut guest) = guest(4, FEATURES);
    for pairs in [0, 5, 0x8000, 0xffff] {
        assert_eq!(set_pairs(&mut guest, pairs), ERR, "{pairs}");
    }
    for pairs in [4, 1, 2, 3] {
        assert_eq!(set_pairs(&mut guest, pairs), OK);
        assert_eq!(guest.nic.with_device(|nic| nic.active_pairs()), pairs);
        let active = wires.iter().filter(|wire| wire.is_active()).count();
        assert_eq!(active, usize::from(pairs));
    }
    guest.start(FEATURES);
    assert_eq!(guest.nic.with_device(|nic| nic.active_pairs()), 1);
    assert_eq!(wires.iter().filter(|wire| wire.is_active()).count(), 1);
}

#[test]
fn without_the_feature_pairs_cannot_be_set() {
    let (_, mut guest) = guest(4, CTRL_VQ | RSS);
    assert_eq!(set_pairs(&mut guest, 2), ERR);
}

#[test]
fn each_pair_sends_and_receives_by_its_own_port() {
    let (wires, mut guest) = guest(4, FEATURES);
    fill(&mut guest);
    assert_eq!(set_pairs(&mut guest, 4), OK);
    for (pair, wire) in wires.iter().enumerate() {
        guest.transmit_on(pair, Header::default(), &frame(OTHER, 60 + pair));
        assert_eq!(wire.take().unwrap().data.len(), 60 + pair);
        assert_eq!(goes_to(&mut guest, wire, &frame(OWN, 60)), [pair], "of no flow");
    }
}

#[test]
#[cfg(unix)]
fn a_pair_that_is_enabled_receives_without_a_kick() {
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| std::os::unix::net::UnixDatagram::pair().unwrap())
        .unzip();
    let ports = ours
        .into_iter()
        .map(|socket| devisor::virtio::net::DatagramSocket::new(socket).unwrap());
    let two = NetOptions { pairs: 2, ..options() };
    let mut guest = Guest::over(ports, two, FEATURES);
    let by_rss = |guest: &mut Guest, _| {
        let data = [2, 0, 0, 0, 0, 0, 1, 0, 1, 0, 2, 0, 0];
        guest.command(4, 1, &data)
    };
    for enable in [set_pairs, by_rss] {
        set_pairs(&mut guest, 1);
        guest.buffer(1, 1526);
        theirs[1].send(&frame(OWN, 60)).unwrap();
        guest.nic.run();
        assert_eq!(guest.received(1), []);
        assert_eq!(enable(&mut guest, 2), OK);
        assert_eq!(guest.received(1).len(), 1);
    }
}

#[test]
fn a_frame_that_waits_for_a_port_of_several_pairs_goes_when_there_is_room() {
    let wire = Arc::new(Wire::new(1));
    let mut guest = Guest::over([Arc::clone(&wire)], several(), FEATURES);
    for pair in [3, 2, 1, 0] {
        guest.transmit_on(pair, Header::default(), &frame(OTHER, 60 + pair));
    }
    let mut lens = Vec::new();
    while let Some(frame) = wire.take() {
        lens.push(frame.data.len());
        guest.nic.run();
    }
    lens.sort_unstable();
    assert_eq!(lens, [60, 61, 62, 63]);
}

#[test]
fn a_flow_comes_back_to_the_pair_that_has_sent_it() {
    for ports in [1, 4] {
        let (wires, mut guest) = guest(ports, FEATURES);
        fill(&mut guest);
        set_pairs(&mut guest, 4);
        for pair in [2, 0, 3, 1] {
            let mut sent = packet(TCP, 1000 + pair as u16, 80);
            let mut back = packet(TCP, 80, 1000 + pair as u16);
            back[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
            sent[..6].copy_from_slice(&OTHER);
            guest.transmit_on(pair, Header::default(), &sent);
            for wire in &wires {
                while wire.take().is_some() {}
            }
            let by = &wires[pair % ports];
            assert_eq!(goes_to(&mut guest, by, &back), [pair]);
            assert_eq!(goes_to(&mut guest, &wires[0], &back), [pair]);
        }
    }
}

#[test]
fn frames_for_a_pair_that_is_no_longer_in_use_go_to_the_first() {
    let (wires, mut guest) = guest(1, FEATURES);
    set_pairs(&mut guest, 4);
    let sent = packet(TCP, 1000, 80);
    guest.transmit_on(3, Header::default(), &sent);
    guest.buffer(0, 1526);
    // There is no buffer at the fourth.
    assert_eq!(goes_to(&mut guest, &wires[0], &sent), NOWHERE);
    assert_eq!(set_pairs(&mut guest, 1), OK);
    guest.buffer(3, 1526);
    guest.nic.run();
    assert_eq!(guest.received(3), []);
    assert_eq!(guest.received(0).len(), 1);
}

#[test]
fn a_receive_queue_that_is_reset_is_passed_over_by_automatic_steering() {
    let (wires, mut guest) = guest(1, FEATURES);
    fill(&mut guest);
    set_pairs(&mut guest, 4);
    let sent = packet(TCP, 1000, 80);
    guest.transmit_on(3, Header::default(), &sent);
    assert_eq!(goes_to(&mut guest, &wires[0], &sent), [3]);
    guest.stop_queue(6);
    assert_eq!(goes_to(&mut guest, &wires[0], &sent), [0]);
}

#[test]
fn rss_steers_by_hash_and_table() {
    let (wires, mut guest) = guest(1, FEATURES);
    fill(&mut guest);
    let table = [3, 1, 2, 0, 2, 1, 0, 3];
    assert_eq!(guest.command(4, 1, &rss(2, 1, &table, &key())), OK);
    for source in 0..10 {
        let data = packet(TCP, source, 80);
        let hash = toeplitz(&key(), &data[26..38]);
        let expected = table[hash as usize % 8];
        assert_eq!(goes_to(&mut guest, &wires[0], &data), [usize::from(expected)]);
        guest.buffer(expected.into(), 1526);
    }
    assert_eq!(
        goes_to(&mut guest, &wires[0], &packet(UDP, 1, 2)),
        [1],
        "not of an enabled type"
    );
    assert_eq!(goes_to(&mut guest, &wires[0], &frame(OWN, 60)), [1], "no IP packet");
}

#[test]
fn the_last_command_decides_who_steers() {
    let (wires, mut guest) = guest(1, FEATURES);
    fill(&mut guest);
    assert_eq!(guest.command(4, 1, &rss(2, 0, &[3], &key())), OK);
    assert_eq!(goes_to(&mut guest, &wires[0], &packet(TCP, 1, 2)), [3]);
    assert_eq!(set_pairs(&mut guest, 2), OK);
    assert_eq!(goes_to(&mut guest, &wires[0], &packet(TCP, 1, 2)), [0]);
    assert_eq!(guest.command(4, 1, &rss(2, 0, &[2], &key())), OK);
    assert_eq!(goes_to(&mut guest, &wires[0], &packet(TCP, 1, 2)), [2]);
}

#[test]
fn an_rss_configuration_that_cannot_be_changes_nothing() {
    let (wires, mut guest) = guest(1, FEATURES);
    fill(&mut guest);
    assert_eq!(guest.command(4, 1, &rss(2, 0, &[3], &key())), OK);
    let good = rss(2, 1, &[0, 1], &key());
    let mut no_tx = good.clone();
    no_tx[12..14].fill(0);
    let mut many_tx = good.clone();
    many_tx[12..14].copy_from_slice(&5u16.to_le_bytes());
    let longer = [&good[..], &[0]].concat();
    let bad = [
        rss(0x200, 1, &[0, 1], &key()),
        rss(2, 4, &[0, 1], &key()),
        rss(2, 1, &[0, 4], &key()),
        rss(2, 1, &[0x8000], &key()),
        rss(2, 1, &[0, 1, 2], &key()),
        rss(2, 1, &[0; 256], &key()),
        rss(2, 1, &[], &key()),
        rss(2, 1, &[0, 1], &[0; 41]),
        good[..good.len() - 1].to_vec(),
        good[..6].to_vec(),
        no_tx,
        many_tx,
        longer,
    ];
    for data in bad {
        assert_eq!(guest.command(4, 1, &data), ERR, "{data:x?}");
    }
    assert_eq!(goes_to(&mut guest, &wires[0], &packet(TCP, 1, 2)), [3]);
    assert_eq!(
        guest.command(4, 1, &rss(0x1ff, 3, &[3; 128], &key())),
        OK,
        "the most that there can be"
    );
    assert_eq!(guest.command(4, 1, &rss(0, 3, &[0], &[])), OK, "and the least");
}

#[test]
fn rss_drops_what_is_for_a_queue_that_is_being_reset() {
    let (wires, mut guest) = guest(1, FEATURES);
    fill(&mut guest);
    guest.command(4, 1, &rss(2, 0, &[3], &key()));
    guest.stop_queue(6);
    assert_eq!(goes_to(&mut guest, &wires[0], &packet(TCP, 1, 2)), NOWHERE);
    assert_eq!(guest.nic.with_device(|nic| nic.counters().dropped), 1);
}

#[test]
fn what_waits_for_a_queue_is_bounded() {
    let wire = Arc::new(Wire::new(64));
    let few = NetOptions {
        backlog: 3,
        ..several()
    };
    let mut guest = Guest::over([Arc::clone(&wire)], few, FEATURES);
    guest.buffer(0, 1526);
    guest.command(4, 1, &rss(2, 0, &[3], &key()));
    for _ in 0..10 {
        assert_eq!(goes_to(&mut guest, &wire, &packet(TCP, 1, 2)), NOWHERE);
    }
    assert_eq!(guest.nic.with_device(|nic| nic.counters().dropped), 7);
    (0..5).for_each(|_| _ = guest.buffer(3, 1526));
    guest.nic.run();
    assert_eq!(guest.received(3).len(), 3);
}

/// `hash_value` and `hash_report` of the frames that a queue has got.
fn hashes(guest: &mut Guest) -> Vec<(u32, u16)> {
    let used = guest.rings[0].used();
    let of = |(head, _): (u32, u32)| {
        let ring = &guest.rings[0];
        let at: u64 = ring.get(ring.layout.descriptor_area + 16 * u64::from(head));
        assert_eq!(ring.get::<u16>(at + 18), 0, "padding_reserved");
        (ring.get(at + 12), ring.get(at + 16))
    };
    used.into_iter().map(of).collect()
}

#[test]
fn hashes_are_reported_once_they_are_configured() {
    let wire = Arc::new(Wire::new(8));
    let mut guest = Guest::new(&wire, options(), CTRL_VQ | HASH_REPORT);
    let get = |guest: &mut Guest, data: &[u8]| {
        guest.buffer(0, 1534);
        assert!(wire.put(NetFrame {
            header: Header::default(),
            data: data.to_vec()
        }));
        guest.nic.run();
        hashes(guest)[0]
    };
    assert_eq!(get(&mut guest, &packet(TCP, 1, 2)), (0, 0), "none before");
    let mut config = vec![3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40];
    config.extend(key());
    assert_eq!(guest.command(4, 2, &config), OK);
    let tcp = packet(TCP, 1, 2);
    assert_eq!(get(&mut guest, &tcp), (toeplitz(&key(), &tcp[26..38]), 2));
    let udp = packet(UDP, 1, 2);
    assert_eq!(get(&mut guest, &udp), (toeplitz(&key(), &udp[26..34]), 1));
    assert_eq!(get(&mut guest, &frame(OWN, 60)), (0, 0));
}

#[test]
fn rss_reports_the_hash_that_it_steers_by() {
    let wire = Arc::new(Wire::new(8));
    let mut guest = Guest::over([Arc::clone(&wire)], several(), FEATURES | HASH_REPORT);
    guest.command(4, 1, &rss(4, 0, &[0], &key()));
    guest.buffer(0, 1534);
    let udp = packet(UDP, 1, 2);
    assert!(wire.put(NetFrame {
        header: Header::default(),
        data: udp.clone()
    }));
    guest.nic.run();
    assert_eq!(hashes(&mut guest), [(toeplitz(&key(), &udp[26..38]), 3)]);
}

/// A port whose frame takes as long to come as the test wants.
#[derive(Default)]
struct Slow {
    inside: AtomicBool,
    go: Mutex<bool>,
    going: Condvar,
}

impl Port for Slow {
    fn send(&self, _: &Header, _: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        Ok(Progress::Done(()))
    }

    fn receive(&self, room: &[VolatileSlice<'_>], _: &mut [u8]) -> io::Result<Progress<Received>> {
        if self.inside.swap(true, SeqCst) {
            return Ok(Progress::Later(None));
        }
        let go = self.go.lock().unwrap();
        drop(self.going.wait_while(go, |go| !*go).unwrap());
        room[0].copy_from(&frame(OTHER, 60));
        Ok(Progress::Done(Received {
            header: Header::default(),
            len: 60,
        }))
    }
}

#[test]
fn a_command_is_done_when_no_queue_works_by_what_was_before_it() {
    let slow = Arc::new(Slow::default());
    let mut guest = Guest::over([Arc::clone(&slow)], options(), CTRL_VQ | CTRL_RX | MAC);
    guest.command(0, 0, &[1]);
    guest.buffer_quietly(0, 1526);
    // Promiscuous mode ends, while a frame for somebody else is being received.
    use crate::ring::{Ring, readable, writable};
    guest.put(0x1000, &[0, 0, 0]);
    let rings = Ring::new(&guest.memory, 0x8000, 4);
    let mut ring = std::mem::replace(&mut guest.rings[2], rings);
    ring.used();
    ring.request(&[readable(0x1000, 3), writable(0x2000, 1)]);
    let (nic, slow) = (&guest.nic, &slow);
    thread::scope(|scope| {
        scope.spawn(|| nic.process(QueueIndex(0)));
        while !slow.inside.load(SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        nic.process(QueueIndex(2));
        assert!(ring.used().is_empty(), "the command has to wait");
        assert!(
            !nic.with_device(|nic| nic.rx_modes().promiscuous),
            "and nobody else does"
        );
        *slow.go.lock().unwrap() = true;
        slow.going.notify_all();
        let patience = std::time::Instant::now() + Duration::from_secs(60);
        while ring.used_idx() != 2 {
            assert!(std::time::Instant::now() < patience);
            thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(guest.get(0x2000, 1), [OK]);
    assert_eq!(
        guest.used(0),
        [72],
        "what was received by the old settings was there before"
    );
}

#[test]
fn where_the_control_queue_is_elsewhere_those_pairs_are_in_use_whose_queues_were_started() {
    let wires: Vec<_> = (0..4).map(|_| Arc::new(Wire::new(64))).collect();
    let elsewhere = NetOptions {
        control_queue_size: 0,
        front_end_controls: true,
        ..several()
    };
    let active = |wires: &[Arc<Wire>]| wires.iter().filter(|wire| wire.is_active()).count();
    let mut guest = Guest::over(wires.clone(), elsewhere, MQ);
    fill(&mut guest);
    assert_eq!(guest.nic.with_device(|nic| nic.active_pairs()), 4);
    assert_eq!(active(&wires), 4);
    for (pair, wire) in wires.iter().enumerate() {
        assert_eq!(goes_to(&mut guest, wire, &frame(OWN, 60)), [pair]);
    }
    // A driver that has not accepted MQ knows of one, however many queues it starts.
    assert!(guest.start(0));
    assert_eq!(guest.nic.with_device(|nic| nic.active_pairs()), 1);
    assert_eq!(active(&wires), 1);
}
