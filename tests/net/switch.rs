//! The switch in memory, between guests.

use devisor::virtio::{
    VirtioTransport,
    net::{Header, Mac, NetOptions, Offloads, Switch, SwitchOptions},
};

use crate::guest::*;

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
    assert_eq!(ports[2].counters().untaken, 1);
}
