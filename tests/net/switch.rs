//! The switch in memory, between guests.

use std::{io, sync::Arc};

use devisor::virtio::{
    VirtioTransport,
    net::{
        Header, Holder, Incoming, Mac, NetOptions, Offloads, Port, Progress, Received, Switch, SwitchOptions,
        SwitchPort, Waker, Wire,
    },
};
use vm_memory::VolatileSlice;

use crate::{
    guest::*,
    ring::{readable, writable},
};

fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n]
}

fn guests(switch: &Switch, features: u64) -> [Guest; 3] {
    [0, 1, 2].map(|n| {
        let options = NetOptions {
            mac: Some(Mac(mac(n))),
            ..options()
        };
        let mut guest = Guest::over([switch.port()], options, features);
        (0..8).for_each(|_| _ = guest.buffer(0, 2048));
        guest
    })
}

/// A frame from one of the guests.
fn from(n: u8, to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = frame(to, len);
    frame[6..12].copy_from_slice(&mac(n));
    frame
}

/// Which guests get a frame that one of them sends.
fn reaches(guests: &mut [Guest; 3], n: u8, to: [u8; 6]) -> Vec<usize> {
    guests[usize::from(n)].transmit(Header::default(), &from(n, to, 60));
    let got = |(at, guest): (usize, &mut Guest)| {
        guest.nic.run();
        let received = guest.received(0);
        assert!(received.iter().all(|(_, data)| *data == from(n, to, 60)));
        (received.len() == 1).then_some(at)
    };
    guests.iter_mut().enumerate().filter_map(got).collect()
}

#[test]
fn a_frame_goes_to_all_until_its_address_is_known() {
    let switch = Switch::new(SwitchOptions::default());
    let mut guests = guests(&switch, 0);
    assert_eq!(reaches(&mut guests, 0, mac(1)), [1, 2]);
    assert_eq!(switch.whereabouts(Mac(mac(0))), Some(0));
    assert_eq!(reaches(&mut guests, 1, mac(0)), [0]);
    assert_eq!(reaches(&mut guests, 0, mac(1)), [1]);
    assert_eq!(reaches(&mut guests, 0, BROADCAST), [1, 2]);
    assert_eq!(reaches(&mut guests, 0, MULTICAST), [1, 2]);
    assert_eq!(reaches(&mut guests, 0, mac(0)), [0; 0], "to itself");
}

#[test]
fn an_address_that_moves_is_followed() {
    let switch = Switch::new(SwitchOptions::default());
    let mut guests = guests(&switch, 0);
    reaches(&mut guests, 1, mac(9));
    guests[2].transmit(Header::default(), &from(1, mac(9), 60));
    guests.iter_mut().for_each(|guest| {
        guest.nic.run();
        guest.received(0);
    });
    assert_eq!(reaches(&mut guests, 0, mac(1)), [2]);
}

#[test]
fn an_address_that_has_moved_away_is_not_claimed_by_who_sends_something_else() {
    let switch = Switch::new(SwitchOptions::default());
    let mut guests = guests(&switch, 0);
    // The first guest sends as two stations, one of which moves.
    let mut as_nine = from(0, mac(1), 60);
    as_nine[6..12].copy_from_slice(&mac(9));
    guests[0].transmit(Header::default(), &as_nine);
    guests[2].transmit(Header::default(), &{
        let mut moved = as_nine.clone();
        moved[..6].copy_from_slice(&mac(0));
        moved
    });
    assert_eq!(switch.whereabouts(Mac(mac(9))), Some(2));
    guests[0].transmit(Header::default(), &from(0, mac(1), 60));
    assert_eq!(switch.whereabouts(Mac(mac(9))), Some(2));
    // And back, by a frame like the one before.
    guests[0].transmit(Header::default(), &as_nine);
    assert_eq!(switch.whereabouts(Mac(mac(9))), Some(0));
    guests[2].transmit(Header::default(), &as_nine);
    assert_eq!(switch.whereabouts(Mac(mac(9))), Some(2));
    guests[0].transmit(Header::default(), &as_nine);
    assert_eq!(switch.whereabouts(Mac(mac(9))), Some(0));
}

#[test]
fn frames_to_several_stations_in_one_round_arrive_in_order() {
    let switch = Switch::new(SwitchOptions::default());
    let mut guests = guests(&switch, 0);
    reaches(&mut guests, 1, mac(0));
    reaches(&mut guests, 2, mac(0));
    guests[0].received(0);
    let to = [1, 1, 2, 1, 1, 1, 2, 2, 1];
    let base = 0x5_0000;
    for (n, to) in to.into_iter().enumerate() {
        let mut bytes = vec![0; 12];
        bytes.extend(from(0, mac(to), 60 + n));
        let at = base + 0x100 * n as u64;
        guests[0].put(at, &bytes);
        guests[0].rings[1].request(&[readable(at, bytes.len() as u32)]);
    }
    guests[0].kick(1);
    assert_eq!(guests[0].used(1).len(), to.len());
    for guest in [1, 2] {
        guests[guest].nic.run();
        let lens = guests[guest].received(0).into_iter().map(|(_, data)| data.len());
        let wanted = (60..)
            .zip(to)
            .filter(|&(_, to)| usize::from(to) == guest)
            .map(|(len, _)| len);
        assert_eq!(lens.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    }
}

#[test]
fn a_group_is_nobodys_address() {
    let switch = Switch::new(SwitchOptions::default());
    let mut guests = guests(&switch, 0);
    let mut frame = from(0, mac(1), 60);
    frame[6..12].copy_from_slice(&BROADCAST);
    guests[0].transmit(Header::default(), &frame);
    assert_eq!(switch.whereabouts(Mac(BROADCAST)), None);
    guests.iter_mut().for_each(|guest| {
        guest.nic.run();
        guest.received(0);
    });
    assert_eq!(reaches(&mut guests, 1, BROADCAST), [0, 2]);
}

#[test]
fn a_port_that_is_gone_is_forgotten_and_its_number_free() {
    let switch = Switch::new(SwitchOptions::default());
    let mut guests = guests(&switch, 0);
    reaches(&mut guests, 1, mac(9));
    let [first, second, third] = guests;
    drop(second);
    assert_eq!(switch.whereabouts(Mac(mac(1))), None);
    assert_eq!(switch.port().number(), 1);
    let mut guests = [first, third];
    guests[0].transmit(Header::default(), &from(0, mac(1), 60));
    guests[1].nic.run();
    assert_eq!(guests[1].received(0).len(), 1, "to all again");
}

#[test]
fn a_guest_that_takes_nothing_holds_up_nobody() {
    let few = SwitchOptions {
        frames: 4,
        ..SwitchOptions::default()
    };
    let switch = Switch::new(few);
    let port = std::sync::Arc::new(switch.port());
    let lazy = Guest::over([std::sync::Arc::clone(&port)], options(), 0);
    let mut other = Guest::over([switch.port()], options(), 0);
    for _ in 0..10 {
        other.transmit(Header::default(), &frame(BROADCAST, 60));
    }
    assert_eq!(other.used(1).len(), 10);
    assert_eq!(port.counters().full, 6);
    drop(lazy);
}

#[test]
fn what_waits_for_a_guest_is_bounded_in_bytes_too() {
    let few = SwitchOptions {
        bytes: 2500,
        ..SwitchOptions::default()
    };
    let switch = Switch::new(few);
    let port = std::sync::Arc::new(switch.port());
    let _lazy = Guest::over([std::sync::Arc::clone(&port)], options(), 0);
    let mut other = Guest::over([switch.port()], options(), 0);
    for _ in 0..10 {
        other.transmit(Header::default(), &frame(BROADCAST, 1000));
    }
    assert_eq!(port.counters().full, 7);
}

#[test]
fn a_guest_that_was_reset_gets_nothing_of_before() {
    let switch = Switch::new(SwitchOptions::default());
    let mut guests = guests(&switch, 0);
    guests[1].write(0x70, 0);
    guests[0].transmit(Header::default(), &from(0, BROADCAST, 60));
    guests[1].start(0);
    guests[1].buffer(0, 2048);
    assert_eq!(guests[1].received(0).len(), 1, "one that came while its link was up");
    guests[1].nic.change_config(|nic| nic.set_link(false));
    guests[0].transmit(Header::default(), &from(0, BROADCAST, 60));
    guests[1].nic.run();
    guests[1].nic.change_config(|nic| nic.set_link(true));
    guests[1].nic.run();
    assert_eq!(guests[1].received(0), []);
}

#[test]
fn checksums_are_left_to_those_who_take_them_and_completed_for_others() {
    let switch = Switch::new(SwitchOptions::default());
    let options = |n| NetOptions {
        mac: Some(Mac(mac(n))),
        ..options()
    };
    let mut sender = Guest::over([switch.port()], options(0), CSUM);
    let mut taker = Guest::over([switch.port()], options(1), GUEST_CSUM);
    let mut other = Guest::over([switch.port()], options(2), 0);
    taker.buffer(0, 2048);
    other.buffer(0, 2048);
    let mut data = packet(17, 1, 2);
    data[..6].copy_from_slice(&BROADCAST);
    data[40..42].fill(0);
    let header = Header {
        flags: 1,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    sender.transmit(header, &data);
    taker.nic.run();
    other.nic.run();
    let taken = taker.received(0);
    assert_eq!((taken[0].0.flags, &taken[0].1), (1, &data));
    let completed = other.received(0);
    assert_eq!(completed[0].0.flags, 0);
    assert_ne!(completed[0].1[40..42], [0, 0]);
}

#[test]
fn a_checksum_is_completed_once_however_long_its_frame_waits() {
    let switch = Switch::new(SwitchOptions::default());
    let mut sender = Guest::over([switch.port()], options(), CSUM);
    let mut other = Guest::over([switch.port()], options(), 0);
    let (header, data) = large(false, false, 100);
    sender.transmit(header, &data);
    for _ in 0..3 {
        other.nic.run();
        other.nic.process(devisor::virtio::QueueIndex(0));
    }
    other.buffer(0, 2048);
    let received = other.received(0);
    let data = &received[0].1;
    let pseudo = sum(&data[26..34], 17 + (data.len() - 34) as u32);
    assert_eq!((received.len(), sum(&data[34..], pseudo.into())), (1, 0xffff));
}

#[test]
fn a_frame_for_which_there_are_not_enough_buffers_waits_for_the_rest() {
    let switch = Switch::new(SwitchOptions::default());
    let mut sender = Guest::over([switch.port()], options(), CSUM | HOST_TSO4);
    let mut taker = Guest::over([switch.port()], options(), MRG_RXBUF | GUEST_CSUM | GUEST_TSO4);
    let (header, data) = large(false, true, 20_000);
    let header = Header {
        gso_type: 1,
        gso_size: 1000,
        ..header
    };
    let places: Vec<_> = (0..3).map(|_| taker.buffer(0, 4096)).collect();
    sender.transmit(header, &data);
    sender.transmit(Header::default(), &frame(BROADCAST, 60));
    taker.nic.run();
    assert!(taker.used(0).is_empty(), "whole or not at all");
    let more = (0..3).map(|_| taker.buffer(0, 4096));
    let places: Vec<_> = places.into_iter().chain(more.collect::<Vec<_>>()).collect();
    let used = taker.used(0);
    assert_eq!((used.len(), used.iter().sum::<u32>()), (6, 12 + 20_054 + 12 + 60));
    let whole: Vec<u8> = places
        .iter()
        .zip(&used)
        .flat_map(|(&at, &len)| taker.get(at, len as usize))
        .collect();
    assert_eq!(whole[10..12], [5, 0], "num_buffers");
    assert_eq!(whole[12..][..data.len()], data);
}

/// Makes a packet with a plain header available, in pieces that are cut there, and does not kick.
fn offer(guest: &mut Guest, at: u64, data: &[u8], cuts: &[usize]) {
    let mut bytes = vec![0; 12];
    bytes.extend(data);
    guest.put(at, &bytes);
    let ends = cuts.iter().copied().chain([bytes.len()]);
    let pieces = ends.scan(0, |begin, end| {
        let piece = readable(at + *begin as u64, (end - *begin) as u32);
        *begin = end;
        Some(piece)
    });
    guest.rings[1].request(&pieces.collect::<Vec<_>>());
}

#[test]
fn chains_of_all_kinds_come_and_go_in_order_in_one_round() {
    let switch = Switch::new(SwitchOptions::default());
    let mut sender = Guest::over([switch.port()], options(), 0);
    let mut taker = Guest::over([switch.port()], options(), 0);
    let base = 0x4_0000;
    let cuts: [&[usize]; 9] = [&[], &[], &[12], &[], &[5, 40], &[], &[12], &[], &[]];
    for (n, cuts) in cuts.into_iter().enumerate() {
        offer(&mut sender, base + 0x400 * n as u64, &frame(BROADCAST, 60 + n), cuts);
        match n {
            // Too short, of the wrong direction, not in memory, and empty: among the others.
            1 => _ = sender.rings[1].request(&[readable(base, 20)]),
            3 => _ = sender.rings[1].request(&[writable(base, 80)]),
            5 => _ = sender.rings[1].request(&[readable(1 << 40, 80)]),
            7 => _ = sender.rings[1].request(&[readable(base, 0)]),
            _ => {}
        }
    }
    sender.kick(1);
    assert_eq!(sender.used(1), [0; 13]);
    assert_eq!(sender.malformed(1), 4);

    // As many kinds of buffers.
    let mut places = Vec::new();
    for n in 0..9 {
        let at = base + 0x1000 * n;
        let body = at + 12;
        let pieces = match n {
            2 => vec![writable(at, 12), writable(body, 2000)],
            4 => vec![writable(at, 30), writable(at + 30, 2000)],
            _ => vec![writable(at, 2048)],
        };
        taker.rings[0].request(&pieces);
        places.push(at);
        match n {
            1 => _ = taker.rings[0].request(&[writable(at, 11)]),
            3 => _ = taker.rings[0].request(&[readable(at, 2048)]),
            5 => _ = taker.rings[0].request(&[writable(1 << 40, 2048)]),
            _ => {}
        }
    }
    taker.kick(0);
    let lens: Vec<_> = taker.used(0).into_iter().filter(|&len| len != 0).collect();
    assert_eq!(lens, (0..9).map(|n| 12 + 60 + n).collect::<Vec<_>>());
    assert_eq!(taker.malformed(0), 3);
    for (n, at) in places.into_iter().enumerate() {
        let packet = taker.get(at, 12 + 60 + n);
        assert_eq!((&packet[..10], &packet[10..12]), (&[0; 10][..], &[1, 0][..]));
        assert_eq!(packet[12..], frame(BROADCAST, 60 + n));
    }
}

#[test]
fn short_frames_and_long_ones_come_in_order_to_buffers_of_any_length() {
    let switch = Switch::new(SwitchOptions::default());
    let mut sender = Guest::over([switch.port()], options(), 0);
    let mut taker = Guest::over([switch.port()], options(), 0);
    let lens = |n: usize| 60 + n * 37 % 80;
    // More than are looked at together; some have room for short ones alone.
    let rooms = |n: usize| if n % 3 == 1 { 120 } else { 2048 };
    let places: Vec<_> = (0..30).map(|n| taker.buffer_quietly(0, rooms(n))).collect();
    taker.kick(0);
    for n in 0..30 {
        offer(
            &mut sender,
            0x4_0000 + 0x400 * n as u64,
            &frame(BROADCAST, lens(n)),
            &[],
        );
    }
    sender.kick(1);
    taker.nic.run();
    let mut next = 0;
    // A frame for which the next buffer has no room is lost, and the buffer is that of another.
    let taken = |n: &usize| {
        let fits = 12 + lens(*n) <= rooms(next) as usize;
        next += usize::from(fits);
        fits
    };
    let taken: Vec<_> = (0..30).filter(taken).collect();
    assert!(taken.len() > 16 && taken.len() < 26, "{}", taken.len());
    let used = taker.used(0);
    assert_eq!(used, taken.iter().map(|&n| 12 + lens(n) as u32).collect::<Vec<_>>());
    for (n, at) in taken.into_iter().zip(places) {
        let packet = taker.get(at, 12 + lens(n));
        assert_eq!((&packet[..10], &packet[10..12]), (&[0; 10][..], &[1, 0][..]));
        assert_eq!(packet[12..], frame(BROADCAST, lens(n)), "frame {n}");
    }
}

/// What is told of a slot of the used ring is of the lap in which it is told, though it is most often what was told of it before.
#[test]
fn each_lap_of_a_ring_tells_its_own_heads_and_lengths() {
    let switch = Switch::new(SwitchOptions::default());
    let [mut sender, mut taker] = [0, 1].map(|_| Guest::over([switch.port()], options(), 0));
    // The same as before; the same heads; the same lengths; nothing.
    let laps = [(0, 0), (0, 0), (0, 3), (1, 3), (1, 3), (3, 5), (0, 0)];
    for (lap, (turn, more)) in laps.into_iter().enumerate() {
        let heads: Vec<_> = (0..SIZE).map(|n| n ^ turn).collect();
        let lens = heads.iter().map(|&head| 60 + usize::from(head) + more);
        let frames: Vec<_> = lens.map(|len| frame(BROADCAST, len)).collect();
        for (&head, frame) in heads.iter().zip(&frames) {
            let at = 0x4_0000 + 0x400 * u64::from(head);
            taker.rings[0].descriptor(head, at, 0x400, 2, 0);
            taker.rings[0].offer(head);
            sender.put(at, &[&[0; 12], &frame[..]].concat());
            sender.rings[1].descriptor(head, at, 12 + frame.len() as u32, 0, 0);
            sender.rings[1].offer(head);
        }
        taker.kick(0);
        sender.kick(1);
        taker.nic.run();
        let expected = |len: &dyn Fn(&Vec<u8>) -> u32| -> Vec<_> {
            let heads = heads.iter().map(|&head| u32::from(head));
            heads.zip(frames.iter().map(len)).collect()
        };
        assert_eq!(sender.rings[1].used(), expected(&|_| 0), "lap {lap}");
        assert_eq!(
            taker.rings[0].used(),
            expected(&|frame| 12 + frame.len() as u32),
            "lap {lap}"
        );
        assert!(taker.received(0).is_empty());
    }
}

/// Sends by a switch, and receives from it and from a cable.
struct Both(SwitchPort, Arc<Wire>);

impl Port for Both {
    fn attach(&self, waker: Waker) {
        self.0.attach(waker.clone());
        self.1.attach(waker);
    }

    fn set_active(&self, by: Holder, active: bool) -> io::Result<()> {
        self.0.set_active(by, active)?;
        self.1.set_active(by, active)
    }

    fn send(&self, header: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        self.0.send(header, frame)
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        self.0.receive(room, overflow)
    }

    fn receive_all(&self, frames: &mut Incoming<'_, '_>) {
        self.0.receive_all(frames);
        self.1.receive_all(frames);
    }
}

#[test]
fn a_ring_that_is_found_broken_stays_so_whoever_receives_next() {
    let switch = Switch::new(SwitchOptions::default());
    let mut sender = Guest::over([switch.port()], options(), 0);
    let mut taker = Guest::over([Both(switch.port(), Arc::new(Wire::new(4)))], options(), 0);
    taker.rings[0].set_avail_idx(1000);
    sender.transmit(Header::default(), &frame(BROADCAST, 60));
    taker.nic.run();
    assert_eq!(taker.read(0x70) & 64, 64, "the device needs a reset");
}

#[test]
fn a_short_frame_that_is_not_for_a_queue_is_not_seen_in_its_buffers() {
    let with_mtu = NetOptions {
        mtu: Some(90),
        ..options()
    };
    let pairs = NetOptions { pairs: 2, ..options() };
    let by_hash = |guest: &mut Guest| {
        // UDP over IPv4 is for the second pair, whatever the hash; all else for the first.
        let mut config = 4_u32.to_le_bytes().to_vec();
        [0_u16, 0, 1, 2]
            .iter()
            .for_each(|word| config.extend(word.to_le_bytes()));
        config.push(40);
        config.extend([0x5a; 40]);
        assert_eq!(guest.command(4, 1, &config), OK);
    };
    type Case = (NetOptions, u64, fn(&mut Guest), Vec<u8>, bool);
    let cases: [Case; 3] = [
        (options(), MAC | CTRL_VQ | CTRL_RX, |_| (), frame(mac(9), 60), false),
        (with_mtu, MTU, |_| (), frame(BROADCAST, 14 + 91), false),
        (pairs, CTRL_VQ | RSS, by_hash, packet(17, 1, 2), true),
    ];
    for (options, features, set_up, other, steered) in cases {
        let switch = Switch::new(SwitchOptions::default());
        let mut sender = Guest::over([switch.port()], crate::guest::options(), 0);
        let mut taker = Guest::over([switch.port()], options, features);
        set_up(&mut taker);
        let places = [0; 3].map(|pair| taker.buffer_quietly(pair, 2048));
        let elsewhere = steered.then(|| taker.buffer_quietly(1, 2048));
        // One before it and one after it, in one round.
        let all = [frame(BROADCAST, 60), other.clone(), frame(BROADCAST, 61)];
        for (n, data) in all.iter().enumerate() {
            offer(&mut sender, 0x4_0000 + 0x400 * n as u64, data, &[]);
        }
        sender.kick(1);
        taker.kick(0);
        assert_eq!(taker.used(0), [12 + 60, 12 + 61], "features {features:#x}");
        assert_eq!(taker.get(places[1] + 12, 61), all[2]);
        assert_eq!(taker.get(places[2], 2048), [0xee; 2048]);
        if let Some(at) = elsewhere {
            assert_eq!(taker.get(at + 12, other.len()), other);
        }
    }
}

#[test]
fn frames_of_one_round_are_spread_over_the_buffers_that_each_takes() {
    let switch = Switch::new(SwitchOptions::default());
    let mut sender = Guest::over([switch.port()], options(), 0);
    let mut taker = Guest::over([switch.port()], options(), MRG_RXBUF);
    let base = 0x4_0000;
    // A buffer that cannot be one is among them, and the last frame lacks one.
    let places: Vec<_> = (0..20).map(|_| taker.buffer_quietly(0, 512)).collect();
    taker.rings[0].request(&[writable(base, 11)]);
    let more: Vec<_> = (0..3).map(|_| taker.buffer_quietly(0, 512)).collect();
    taker.kick(0);
    let lens = [60, 500, 501, 1500, 60, 1500, 1524, 1525, 1500, 1500];
    for (n, len) in lens.into_iter().enumerate() {
        offer(&mut sender, base + 0x1000 * n as u64, &frame(BROADCAST, len), &[]);
    }
    sender.kick(1);
    taker.nic.run();
    let mut places = places.into_iter().chain(more);
    let mut used = taker.used(0).into_iter().filter(|&len| len != 0);
    for len in &lens[..9] {
        let buffers = (12 + len).div_ceil(512);
        let whole: Vec<u8> = places
            .by_ref()
            .zip(used.by_ref())
            .take(buffers)
            .flat_map(|(at, len)| taker.get(at, len as usize))
            .collect();
        assert_eq!(usize::from(whole[10]), buffers, "num_buffers of {len} bytes");
        assert_eq!(whole[12..], frame(BROADCAST, *len), "{len} bytes");
    }
    assert_eq!(used.next(), None, "whole or not at all");
    assert_eq!(taker.malformed(0), 1);
}

#[test]
fn a_header_with_room_for_a_hash_comes_with_frames_of_a_switch() {
    let switch = Switch::new(SwitchOptions::default());
    let mut sender = Guest::over([switch.port()], options(), CTRL_VQ | HASH_REPORT);
    let mut taker = Guest::over([switch.port()], options(), CTRL_VQ | HASH_REPORT);
    taker.buffer(0, 2048);
    sender.transmit(Header::default(), &frame(BROADCAST, 60));
    taker.nic.run();
    let received = taker.received(0);
    assert_eq!(received[0].0.num_buffers, 1);
    assert_eq!(received[0].1, frame(BROADCAST, 60));
}

/// A large packet: an Ethernet header, IP of this version, TCP or UDP, and so many bytes.
fn large(v6: bool, tcp: bool, bytes: usize) -> (Header, Vec<u8>) {
    let mut data = frame(BROADCAST, 14);
    data[6..12].copy_from_slice(&mac(0));
    let (transport, ip) = if v6 { (54, 40) } else { (34, 20) };
    let header_len = if tcp { 20 } else { 8 };
    let len = (header_len + bytes) as u16;
    let protocol = if tcp { 6 } else { 17 };
    if v6 {
        data[12..14].copy_from_slice(&[0x86, 0xdd]);
        data.extend([0x60, 0, 0, 0]);
        data.extend(len.to_be_bytes());
        data.extend([protocol, 64]);
        data.extend((0..32).map(|n| n as u8));
    } else {
        data[12..14].copy_from_slice(&[0x08, 0]);
        data.extend([0x45, 0]);
        data.extend((len + ip).to_be_bytes());
        data.extend([0xff, 0xff, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let at = data.len();
    data.extend([0, 1, 0, 2]);
    if tcp {
        // A number that wraps; CWR, PSH, ACK and FIN.
        data.extend([0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 0x50, 0x99, 1, 0, 0, 0, 0, 0]);
    } else {
        data.extend(len.to_be_bytes());
        data.extend([0, 0]);
    }
    // What the driver leaves in the place of a partial checksum: that of the addresses.
    let place = at + if tcp { 16 } else { 6 };
    let pseudo = sum(
        &data[if v6 { 22..54 } else { 26..34 }],
        u32::from(protocol) + u32::from(len),
    );
    data[place..place + 2].copy_from_slice(&pseudo.to_be_bytes());
    data.extend((0..bytes).map(|n| (n * 13 + n / 256) as u8));
    let header = Header {
        flags: 1,
        gso_type: 0,
        gso_size: 0,
        hdr_len: (transport + header_len) as u16,
        csum_start: transport as u16,
        csum_offset: if tcp { 16 } else { 6 },
        num_buffers: 0,
    };
    (header, data)
}

/// The sum of RFC 1071.
fn sum(bytes: &[u8], first: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum = words.fold(first, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Checks lengths and checksums of a frame as any station does. Where the header after that of IP is.
fn check(data: &[u8], v6: bool, protocol: u8) -> usize {
    let be16 = |at: usize| usize::from(data[at]) << 8 | usize::from(data[at + 1]);
    let (addresses, at) = if v6 { (22..54, 54) } else { (26..34, 34) };
    if v6 {
        assert_eq!((be16(18), data[20]), (data.len() - 54, protocol));
    } else {
        assert_eq!((be16(16), data[23]), (data.len() - 14, protocol));
        assert_eq!(sum(&data[14..34], 0), 0xffff, "of the IPv4 header");
    }
    let pseudo = sum(&data[addresses], u32::from(protocol) + (data.len() - at) as u32);
    assert_eq!(sum(&data[at..], pseudo.into()), 0xffff, "of the payload");
    at
}

/// What a guest that takes nothing gets of it.
fn cut(header: Header, data: &[u8]) -> Vec<Vec<u8>> {
    let switch = Switch::new(SwitchOptions::default());
    let all = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO;
    let mut sender = Guest::over([switch.port()], options(), all);
    let mut other = Guest::over([switch.port()], options(), 0);
    (0..16).for_each(|_| _ = other.buffer(0, 2048));
    sender.transmit(header, data);
    other.nic.run();
    let received = other.received(0);
    assert!(received.iter().all(|(header, _)| *header
        == Header {
            num_buffers: 1,
            ..Header::default()
        }));
    received.into_iter().map(|(_, data)| data).collect()
}

#[test]
fn tcp_is_cut_for_those_who_do_not_take_it_whole() {
    for v6 in [false, true] {
        let (header, data) = large(v6, true, 3001);
        let gso_type = if v6 { 4 } else { 1 } | 0x80;
        let header = Header {
            gso_type,
            gso_size: 1000,
            ..header
        };
        let pieces = cut(header, &data);
        let at = header.hdr_len.into();
        assert_eq!(
            pieces.iter().map(|piece| piece.len() - at).collect::<Vec<_>>(),
            [1000, 1000, 1000, 1]
        );
        let payload: Vec<u8> = pieces.iter().flat_map(|piece| piece[at..].to_vec()).collect();
        assert_eq!(payload, data[at..]);
        for (n, piece) in pieces.iter().enumerate() {
            let tcp = check(piece, v6, 6);
            let sequence = u32::from_be_bytes(piece[tcp + 4..tcp + 8].try_into().unwrap());
            assert_eq!(sequence, 0xffff_fff0_u32.wrapping_add(1000 * n as u32));
            let flags = [0x90, 0x10, 0x10, 0x19][n];
            assert_eq!(piece[tcp + 13], flags, "CWR on the first, PSH and FIN on the last: {n}");
            if !v6 {
                let identification = u16::from_be_bytes([piece[18], piece[19]]);
                assert_eq!(identification, 0xffff_u16.wrapping_add(n as u16));
            }
        }
    }
}

#[test]
fn udp_is_cut_into_datagrams() {
    for v6 in [false, true] {
        let (header, data) = large(v6, false, 2500);
        let header = Header {
            gso_type: 5,
            gso_size: 1200,
            ..header
        };
        let pieces = cut(header, &data);
        let at = usize::from(header.hdr_len);
        assert_eq!(
            pieces.iter().map(|piece| piece.len() - at).collect::<Vec<_>>(),
            [1200, 1200, 100]
        );
        for piece in &pieces {
            let udp = check(piece, v6, 17);
            assert_eq!(piece[udp + 4..udp + 6], ((piece.len() - udp) as u16).to_be_bytes());
        }
    }
}

#[test]
fn udp_is_fragmented() {
    let (header, data) = large(false, false, 3000);
    let header = Header {
        gso_type: 3,
        gso_size: 1003,
        ..header
    };
    let pieces = cut(header, &data);
    let mut datagram: Vec<u8> = Vec::new();
    for (n, piece) in pieces.iter().enumerate() {
        assert_eq!(sum(&piece[14..34], 0), 0xffff);
        let more = if n + 1 == pieces.len() { 0 } else { 0x2000 };
        let place = u16::from_be_bytes([piece[20], piece[21]]);
        assert_eq!(usize::from(place), (datagram.len() / 8) | more, "whole eights");
        datagram.extend(&piece[34..]);
    }
    assert_eq!((pieces.len(), datagram.len()), (4, 3008));
    let pseudo = sum(&data[26..34], 17 + 3008);
    assert_eq!(
        sum(&datagram, pseudo.into()),
        0xffff,
        "the checksum of the whole datagram"
    );
    assert_eq!(datagram[8..], data[42..]);

    let (header, data) = large(true, false, 3000);
    let header = Header {
        gso_type: 3,
        gso_size: 1000,
        ..header
    };
    let pieces = cut(header, &data);
    let mut datagram: Vec<u8> = Vec::new();
    for (n, piece) in pieces.iter().enumerate() {
        assert_eq!((piece[20], &piece[54..56]), (44, &[17, 0][..]), "a fragment header");
        assert_eq!(
            usize::from(u16::from_be_bytes([piece[18], piece[19]])),
            piece.len() - 54
        );
        let more = usize::from(n + 1 != pieces.len());
        assert_eq!(
            usize::from(u16::from_be_bytes([piece[56], piece[57]])),
            datagram.len() | more
        );
        assert_eq!(piece[58..62], pieces[0][58..62], "all of one");
        datagram.extend(&piece[62..]);
    }
    assert_eq!(datagram[8..], data[62..]);
}

#[test]
fn what_is_not_of_its_kind_is_not_cut() {
    let (header, data) = large(false, true, 3000);
    let good = Header {
        gso_type: 1,
        gso_size: 1000,
        ..header
    };
    assert_eq!(cut(good, &data).len(), 3);
    let other = |header: Header| assert_eq!(cut(header, &data), [[0; 0]; 0], "{header:?}");
    other(Header { gso_type: 4, ..good });
    other(Header { gso_type: 3, ..good });
    other(Header { gso_type: 5, ..good });
    other(Header { csum_start: 30, ..good });
    other(Header { csum_offset: 6, ..good });
    for (at, byte) in [
        (12, 0x88),
        (14, 0x44),
        (14, 0x4f),
        (14, 0x65),
        (20, 0x20),
        (23, 17),
        (46, 0x40),
    ] {
        let mut data = data.clone();
        data[at] = byte;
        assert_eq!(cut(good, &data).len(), 0, "byte {at}");
    }
    for len in 14..54 {
        let (start, offset) = (34, 16);
        let long_enough = len >= start + offset + 2;
        assert_eq!(cut(good, &data[..len]), [[0; 0]; 0], "{len} {long_enough}");
    }
    assert_eq!(
        cut(good, &data[..54]),
        cut(good, &data[..54]),
        "headers alone are one frame"
    );
}

#[test]
fn a_packet_in_the_smallest_pieces_is_bounded_by_what_may_wait() {
    let few = SwitchOptions {
        frames: 50,
        ..SwitchOptions::default()
    };
    let switch = Switch::new(few);
    let port = std::sync::Arc::new(switch.port());
    let lazy = Guest::over([std::sync::Arc::clone(&port)], options(), 0);
    let mut sender = Guest::over([switch.port()], options(), CSUM | HOST_TSO4);
    let (header, data) = large(false, true, 60_000);
    let header = Header {
        gso_type: 1,
        gso_size: 1,
        ..header
    };
    sender.transmit(header, &data);
    sender.transmit(header, &data);
    assert_eq!(port.counters().full, 2, "what is left of each");
    drop(lazy);
}

#[test]
fn large_packets_reach_those_who_take_them() {
    let large = SwitchOptions {
        offloads: Offloads::ALL,
        ..SwitchOptions::default()
    };
    let switch = Switch::new(large);
    let ports = [switch.port(), switch.port(), switch.port()].map(std::sync::Arc::new);
    let over = |at: usize, features| Guest::over([std::sync::Arc::clone(&ports[at])], options(), features);
    let mut sender = over(0, CSUM | HOST_TSO4);
    let mut taker = over(1, MRG_RXBUF | GUEST_CSUM | GUEST_TSO4);
    let mut other = over(2, MRG_RXBUF | GUEST_CSUM);
    for _ in 0..17 {
        taker.buffer(0, 4096);
        other.buffer(0, 4096);
    }
    let header = Header {
        flags: 1,
        gso_type: 1,
        gso_size: 1448,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    sender.transmit(header, &frame(BROADCAST, 65_000));
    taker.nic.run();
    other.nic.run();
    assert_eq!(taker.used(0).iter().sum::<u32>(), 65_012);
    assert!(other.used(0).is_empty());
    assert_eq!(ports[2].counters().untaken, 1, "it is none of TCP");
}
