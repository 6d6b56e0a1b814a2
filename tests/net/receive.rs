//! Receive buffers and incoming packets (sections 5.1.6.3 and 5.1.6.4).

use std::sync::Arc;

use devisor::virtio::{
    VirtioTransport,
    net::{Header, MAX_FRAME, NetFrame, Offloads, Wire},
};

use crate::{
    guest::*,
    ring::{readable, writable},
};

fn guest(features: u64) -> (Arc<Wire>, Guest) {
    let wire = Arc::new(Wire::new(64).with_offloads(Offloads::ALL, Offloads::ALL));
    let guest = Guest::new(&wire, options(), features);
    (wire, guest)
}

fn put(wire: &Wire, guest: &Guest, frame: NetFrame) {
    assert!(wire.put(frame));
    guest.nic.run();
}

/// The frame of a receive queue that is spread over buffers of these lengths, in the order in which they are used.
fn merged(guest: &mut Guest, places: &[u64]) -> (u16, Vec<u8>, Vec<u32>) {
    let used = guest.used(0);
    let mut bytes = Vec::new();
    for (&at, &len) in places.iter().zip(&used) {
        bytes.extend(guest.get(at, len as usize));
    }
    let header: [u8; 12] = bytes[..12].try_into().unwrap();
    (Header::from_bytes(&header).num_buffers, bytes[12..].to_vec(), used)
}

#[test]
fn a_frame_comes_in_as_it_is_with_one_buffer() {
    let (wire, mut guest) = guest(0);
    guest.buffer(0, 1526);
    put(&wire, &guest, plain(OWN, 60));
    let header = Header {
        num_buffers: 1,
        ..Header::default()
    };
    assert_eq!(guest.received(0), [(header, frame(OWN, 60))]);
}

#[test]
fn a_frame_that_comes_before_its_buffer_waits() {
    let (wire, mut guest) = guest(0);
    put(&wire, &guest, plain(OWN, 60));
    assert_eq!(wire.waiting(), 1, "outside of the device");
    guest.buffer(0, 1526);
    assert_eq!(guest.received(0).len(), 1);
}

#[test]
fn the_used_length_is_that_of_header_and_frame_and_nothing_else_is_written() {
    let (wire, mut guest) = guest(0);
    let at = guest.buffer(0, 1526);
    put(&wire, &guest, plain(OWN, 61));
    assert_eq!(guest.used(0), [73]);
    assert_eq!(guest.get(at + 73, 100), [0xee; 100]);
}

#[test]
fn a_frame_that_is_too_long_for_its_buffer_is_dropped_and_the_buffer_kept() {
    let (wire, mut guest) = guest(0);
    guest.buffer(0, 12 + 100);
    put(&wire, &guest, plain(OWN, 101));
    assert_eq!(guest.received(0), []);
    assert_eq!(guest.nic.with_device(|nic| nic.counters().dropped), 1);
    put(&wire, &guest, plain(OWN, 100));
    assert_eq!(guest.received(0)[0].1, frame(OWN, 100));
}

#[test]
fn a_buffer_without_room_for_a_header_is_refused() {
    for (features, least) in [(0, 12), (MRG_RXBUF, 12), (CTRL_VQ | HASH_REPORT, 20)] {
        let (wire, mut guest) = guest(features);
        for len in [1, least - 1] {
            guest.buffer(0, len);
        }
        put(&wire, &guest, plain(OWN, 60));
        assert_eq!(guest.used(0), [0, 0]);
        assert_eq!(guest.malformed(0), 2);
        guest.buffer(0, 1526);
        assert_eq!(guest.received(0).len(), 1);
    }
}

#[test]
fn a_buffer_that_the_device_may_read_is_refused() {
    let (wire, mut guest) = guest(0);
    guest.buffers(0, &[readable(0x1000, 2000)]);
    guest.buffers(0, &[readable(0x1000, 2000), writable(0x2000, 2000)]);
    put(&wire, &guest, plain(OWN, 60));
    assert_eq!((guest.used(0), guest.malformed(0)), (vec![0, 0], 2));
    assert_eq!(wire.waiting(), 1);
}

#[test]
fn a_buffer_may_be_cut_into_descriptors_anywhere() {
    let (wire, mut guest) = guest(0);
    for cut in [1, 11, 12, 13, 60] {
        guest.buffers(
            0,
            &[writable(0x1000, cut), writable(0x1000 + u64::from(cut), 200 - cut)],
        );
        put(&wire, &guest, plain(OWN, 100));
        assert_eq!(guest.used(0), [112]);
        assert_eq!(guest.get(0x100c, 100), frame(OWN, 100));
    }
}

#[test]
fn a_merged_frame_fills_all_buffers_but_the_last() {
    let (wire, mut guest) = guest(MRG_RXBUF);
    let places: Vec<_> = [40, 12, 50, 1000].map(|len| guest.buffer(0, len)).into();
    put(&wire, &guest, plain(OWN, 120));
    let (buffers, data, used) = merged(&mut guest, &places);
    assert_eq!(used, [40, 12, 50, 30]);
    assert_eq!((buffers, data), (4, frame(OWN, 120)));
}

#[test]
fn a_merged_frame_that_just_fits_takes_no_more_buffers() {
    let (wire, mut guest) = guest(MRG_RXBUF);
    let places: Vec<_> = [62, 50, 50].map(|len| guest.buffer(0, len)).into();
    put(&wire, &guest, plain(OWN, 100));
    let (buffers, data, used) = merged(&mut guest, &places);
    assert_eq!((buffers, data, used), (2, frame(OWN, 100), vec![62, 50]));
    put(&wire, &guest, plain(OWN, 38));
    assert_eq!(guest.used(0), [50], "the third is there for the next");
}

#[test]
fn the_longest_frame_is_merged() {
    let (wire, mut guest) = guest(MRG_RXBUF | GUEST_CSUM | GUEST_TSO6);
    let places: Vec<_> = (0..17).map(|_| guest.buffer(0, 4096)).collect();
    put(&wire, &guest, plain(OWN, MAX_FRAME));
    let (buffers, data, _) = merged(&mut guest, &places);
    assert_eq!(buffers, 17);
    assert!(data == frame(OWN, MAX_FRAME));
}

#[test]
fn the_driver_sees_a_merged_frame_whole_or_not_at_all() {
    let (wire, mut guest) = guest(MRG_RXBUF);
    let mut places = vec![guest.buffer(0, 100), guest.buffer(0, 100)];
    put(&wire, &guest, plain(OWN, 300));
    assert_eq!(guest.rings[0].used_idx(), 0, "there is not room enough");
    assert_eq!(wire.waiting(), 0);
    places.push(guest.buffer(0, 100));
    assert_eq!(guest.rings[0].used_idx(), 0, "still not");
    places.push(guest.buffer(0, 100));
    let (buffers, data, used) = merged(&mut guest, &places);
    assert_eq!((buffers, data, used), (4, frame(OWN, 300), vec![100, 100, 100, 12]));
}

#[test]
fn what_comes_after_a_frame_that_waits_comes_after_it() {
    let (wire, mut guest) = guest(MRG_RXBUF);
    let first = guest.buffer(0, 100);
    put(&wire, &guest, plain(OWN, 150));
    put(&wire, &guest, plain(OWN, 60));
    assert!(guest.used(0).is_empty());
    let second = guest.buffer(0, 100);
    assert_eq!(merged(&mut guest, &[first, second]).1, frame(OWN, 150));
    guest.buffer(0, 100);
    assert_eq!(guest.received(0)[0].1, frame(OWN, 60));
}

#[test]
fn a_full_ring_of_the_smallest_buffers_holds_a_frame() {
    let (wire, mut guest) = guest(MRG_RXBUF);
    let places: Vec<_> = (0..SIZE).map(|_| guest.buffer(0, 12)).collect();
    let len = usize::from(SIZE) * 12 - 12;
    put(&wire, &guest, plain(OWN, len));
    let (buffers, data, _) = merged(&mut guest, &places);
    assert_eq!((buffers, data), (SIZE, frame(OWN, len)));
    assert_eq!(guest.malformed(0), 0);
}

#[test]
fn a_ring_that_is_too_small_for_a_frame_waits_for_ever_and_can_be_reset() {
    let (wire, mut guest) = guest(MRG_RXBUF);
    (0..SIZE).for_each(|_| _ = guest.buffer(0, 12));
    put(&wire, &guest, plain(OWN, 2000));
    assert!(guest.used(0).is_empty());
    assert!(guest.start(0), "a reset");
    guest.buffer(0, 1526);
    put(&wire, &guest, plain(OWN, 60));
    assert_eq!(guest.received(0).len(), 1, "and what was left of before is gone");
}

#[test]
fn a_queue_that_is_reset_under_a_frame_that_waits_receives_it_afterwards() {
    let (wire, mut guest) = guest(MRG_RXBUF);
    guest.buffer(0, 100);
    put(&wire, &guest, plain(OWN, 150));
    guest.restart_queue(0);
    let at = guest.buffer(0, 1000);
    assert_eq!(merged(&mut guest, &[at]).1, frame(OWN, 150));
}

#[test]
fn buffers_that_were_gathered_for_a_frame_that_is_lost_are_for_the_next() {
    let (wire, mut guest) = guest(MRG_RXBUF);
    let first = guest.buffer(0, 100);
    put(&wire, &guest, plain(OWN, 150));
    // It is lost when it is looked at again.
    guest.nic.change_config(|nic| nic.set_link(false));
    let second = guest.buffer(0, 400);
    guest.nic.change_config(|nic| nic.set_link(true));
    put(&wire, &guest, plain(OWN, 450));
    assert_eq!(
        merged(&mut guest, &[first, second]),
        (2, frame(OWN, 450), vec![100, 362])
    );
}

#[test]
fn a_frame_after_one_that_is_lost_takes_no_more_buffers_than_it_needs() {
    let (wire, mut guest) = guest(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4 | CTRL_VQ | CTRL_GUEST_OFFLOADS);
    let places = [100, 100].map(|len| guest.buffer(0, len));
    let large = Header {
        flags: 1,
        gso_type: 1,
        gso_size: 1000,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let data = frame(OWN, 3000);
    put(&wire, &guest, NetFrame { header: large, data });
    put(&wire, &guest, plain(OWN, 60));
    assert_eq!(guest.command(5, 0, &GUEST_CSUM.to_le_bytes()), OK);
    guest.buffer(0, 100);
    assert_eq!(merged(&mut guest, &places), (1, frame(OWN, 60), vec![72]));
}

#[test]
fn a_guest_that_takes_no_checksum_gets_it_complete() {
    let (wire, mut guest) = guest(0);
    guest.buffer(0, 1526);
    let mut data = packet(17, 1, 2);
    data[40..42].fill(0);
    let header = Header {
        flags: 1,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    put(&wire, &guest, NetFrame { header, data });
    let received = guest.received(0);
    assert_eq!(received[0].0.flags, 0);
    let sum = |bytes: &[u8]| {
        let sum = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum: u32 = sum.sum();
        (sum & 0xffff) + (sum >> 16)
    };
    assert_eq!(sum(&received[0].1[34..]), 0xffff);
}

#[test]
fn a_guest_that_takes_checksums_gets_them_as_they_are() {
    let (wire, mut guest) = guest(GUEST_CSUM);
    for flags in [1, 2] {
        guest.buffer(0, 1526);
        let (csum_start, csum_offset) = if flags == 1 { (34, 6) } else { (0, 0) };
        let header = Header {
            flags,
            csum_start,
            csum_offset,
            ..Header::default()
        };
        put(
            &wire,
            &guest,
            NetFrame {
                header,
                data: packet(17, 1, 2),
            },
        );
        let expected = Header {
            num_buffers: 1,
            ..header
        };
        assert_eq!(guest.received(0), [(expected, packet(17, 1, 2))]);
    }
}

#[test]
fn flags_that_mean_nothing_to_the_guest_are_zero() {
    let (wire, mut guest) = guest(0);
    guest.buffer(0, 1526);
    let header = Header {
        flags: 0xfe,
        csum_start: 1,
        csum_offset: 2,
        hdr_len: 3,
        gso_size: 4,
        ..Header::default()
    };
    put(
        &wire,
        &guest,
        NetFrame {
            header,
            data: frame(OWN, 60),
        },
    );
    let expected = Header {
        num_buffers: 1,
        ..Header::default()
    };
    assert_eq!(guest.received(0)[0].0, expected);
}

#[test]
fn large_packets_come_only_to_those_who_take_them() {
    let kinds = [
        (1, GUEST_TSO4),
        (4, GUEST_TSO6),
        (3, GUEST_UFO),
        (5, GUEST_USO4),
        (5, GUEST_USO6),
    ];
    for (gso_type, needed) in kinds {
        let header = Header {
            flags: 1,
            gso_type,
            gso_size: 1000,
            hdr_len: 54,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        };
        for features in [0, GUEST_CSUM, GUEST_CSUM | needed] {
            let (wire, mut guest) = guest(features);
            guest.buffer(0, 4000);
            put(
                &wire,
                &guest,
                NetFrame {
                    header,
                    data: frame(OWN, 3000),
                },
            );
            let received = guest.received(0);
            let expected = Header {
                num_buffers: 1,
                ..header
            };
            match features & needed {
                0 => assert_eq!(received, []),
                _ => assert_eq!(received, [(expected, frame(OWN, 3000))]),
            }
        }
    }
}

#[test]
fn a_header_from_the_network_that_its_frame_contradicts_does_not_reach_the_guest() {
    let all = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO;
    let (wire, mut guest) = guest(all);
    guest.buffer(0, 1526);
    let good = Header {
        flags: 1,
        gso_type: 1,
        gso_size: 1000,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let bad = [
        Header { csum_start: 59, ..good },
        Header { gso_size: 0, ..good },
        Header { gso_type: 9, ..good },
        Header { flags: 0, ..good },
        Header { gso_type: 0x81, ..good },
    ];
    for header in bad {
        put(
            &wire,
            &guest,
            NetFrame {
                header,
                data: frame(OWN, 60),
            },
        );
        assert_eq!(guest.received(0), [], "{header:?}");
    }
    assert_eq!(guest.nic.with_device(|nic| nic.counters().dropped), bad.len() as u64);
}

#[test]
fn what_is_no_frame_does_not_reach_the_guest() {
    let (wire, mut guest) = guest(0);
    guest.buffer(0, 1526);
    for len in [12, 13] {
        put(
            &wire,
            &guest,
            NetFrame {
                header: Header::default(),
                data: vec![0; len],
            },
        );
    }
    put(&wire, &guest, NetFrame::default());
    assert_eq!(guest.received(0), []);
    put(&wire, &guest, plain(OWN, 14));
    assert_eq!(guest.received(0)[0].1, frame(OWN, 14));
}

#[test]
fn frames_beyond_the_mtu_are_dropped_unless_they_are_to_be_cut() {
    let wire = Arc::new(Wire::new(64).with_offloads(Offloads::ALL, Offloads::ALL));
    let with_mtu = || devisor::virtio::net::NetOptions {
        mtu: Some(1500),
        ..options()
    };
    let mut guest = Guest::new(&wire, with_mtu(), MTU | GUEST_CSUM | GUEST_TSO4);
    guest.buffer(0, 4000);
    put(&wire, &guest, plain(OWN, 1515));
    assert_eq!(guest.received(0), []);
    put(&wire, &guest, plain(OWN, 1514));
    assert_eq!(guest.received(0).len(), 1);
    // Of a tagged one the tag belongs to the Ethernet header.
    guest.buffer(0, 4000);
    let mut tagged = plain(OWN, 1518);
    tagged.data[12..14].copy_from_slice(&[0x81, 0]);
    put(&wire, &guest, tagged);
    assert_eq!(guest.received(0).len(), 1);
    guest.buffer(0, 4000);
    let header = Header {
        flags: 1,
        gso_type: 1,
        gso_size: 1000,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    put(
        &wire,
        &guest,
        NetFrame {
            header,
            data: frame(OWN, 3000),
        },
    );
    assert_eq!(guest.received(0).len(), 1);

    let mut guest = Guest::new(&Arc::new(Wire::new(1)), with_mtu(), 0);
    let wire = Arc::new(Wire::new(1));
    assert!(guest.start(0));
    let mut without = Guest::new(&wire, with_mtu(), 0);
    without.buffer(0, 4000);
    put(&wire, &without, plain(OWN, 1515));
    assert_eq!(without.received(0).len(), 1, "whose driver was not told");
}

#[test]
fn a_cable_that_is_pulled_brings_nothing_not_even_later() {
    let (wire, mut guest) = guest(0);
    guest.buffer(0, 1526);
    guest.nic.change_config(|nic| nic.set_link(false));
    put(&wire, &guest, plain(OWN, 60));
    assert_eq!(wire.waiting(), 0);
    guest.nic.change_config(|nic| nic.set_link(true));
    guest.nic.run();
    assert_eq!(guest.received(0), []);
    put(&wire, &guest, plain(OWN, 61));
    assert_eq!(guest.received(0)[0].1.len(), 61);
}

#[test]
fn frames_that_are_not_for_the_guest_do_not_hold_a_round() {
    let wire = Arc::new(Wire::new(10_000));
    let mut guest = Guest::new(&wire, options(), CTRL_VQ | CTRL_RX | MAC);
    for _ in 0..1000 {
        assert!(wire.put(plain(OTHER, 60)));
    }
    guest.buffer_quietly(0, 1526);
    let queue = devisor::virtio::QueueIndex(0);
    assert!(guest.nic.serve(queue), "there is more");
    assert_eq!(wire.waiting(), 1000 - 256);
    guest.nic.run();
    assert_eq!(wire.waiting(), 0, "and it is seen to");
}

#[test]
fn frames_of_one_round_interrupt_once() {
    let (wire, mut guest) = guest(0);
    for len in 60..70 {
        assert!(wire.put(plain(OWN, len)));
        guest.buffer_quietly(0, 1526);
    }
    let before = guest.interrupts.load(std::sync::atomic::Ordering::SeqCst);
    guest.kick(0);
    assert_eq!(guest.received(0).len(), 10);
    assert_eq!(guest.interrupts.load(std::sync::atomic::Ordering::SeqCst) - before, 1);
}
