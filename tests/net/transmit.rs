//! Packet transmission (section 5.1.6.2).

use std::sync::Arc;

use devisor::virtio::{
    VirtioTransport,
    net::{Header, MAX_FRAME, Offloads, Wire},
};

use crate::{
    guest::*,
    ring::{readable, writable},
};

const NEEDS_CSUM: u8 = 1;

fn guest(features: u64) -> (Arc<Wire>, Guest) {
    let wire = Arc::new(Wire::new(64).with_offloads(Offloads::ALL, Offloads::ALL));
    let guest = Guest::new(&wire, options(), features);
    (wire, guest)
}

/// Sends a frame that must not be sent, and looks whether it comes back as one that is malformed.
fn assert_refused(features: u64, header: Header, frame: &[u8]) {
    let (wire, mut guest) = guest(features);
    guest.transmit(header, frame);
    assert_eq!(guest.used(1), [0]);
    assert_eq!(guest.malformed(1), 1, "{header:?}");
    assert_eq!(wire.take(), None);
    // And the device goes on.
    guest.transmit(Header::default(), frame);
    assert_eq!(guest.used(1), [0]);
    assert!(wire.take().is_some());
}

#[test]
fn a_frame_goes_out_as_it_is() {
    let (wire, mut guest) = guest(0);
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert_eq!(guest.used(1), [0]);
    let sent = wire.take().unwrap();
    assert_eq!((sent.header, sent.data), (Header::default(), frame(OTHER, 60)));
    assert_eq!(guest.malformed(1), 0);
}

#[test]
fn a_frame_may_be_cut_into_descriptors_anywhere() {
    let (wire, mut guest) = guest(0);
    let mut bytes = vec![0; 12];
    bytes.extend(frame(OTHER, 100));
    for cuts in [[1, 11], [12, 13], [5, 80], [11, 12], [0, 12], [111, 112]] {
        guest.put(0x1000, &bytes);
        let ends = [0, cuts[0], cuts[1], bytes.len()];
        let chain: Vec<_> = ends
            .windows(2)
            .map(|ends| readable(0x1000 + ends[0] as u64, (ends[1] - ends[0]) as u32))
            .collect();
        guest.rings[1].request(&chain);
        guest.kick(1);
        assert_eq!(guest.used(1), [0]);
        assert_eq!(wire.take().unwrap().data, frame(OTHER, 100), "cut at {cuts:?}");
    }
}

#[test]
fn the_longest_frame_is_sent_and_a_longer_one_is_not() {
    let (wire, mut guest) = guest(CSUM | HOST_TSO6);
    guest.transmit(Header::default(), &frame(OTHER, MAX_FRAME));
    assert_eq!(wire.take().unwrap().data.len(), MAX_FRAME);
    guest.transmit(Header::default(), &frame(OTHER, MAX_FRAME + 1));
    assert_eq!(guest.used(1), [0, 0]);
    assert_eq!(guest.malformed(1), 1);
    assert_eq!(wire.take(), None);
}

#[test]
fn what_has_no_room_for_its_headers_is_refused() {
    for len in [1, 11, 12, 13, 25] {
        let (wire, mut guest) = guest(0);
        guest.transmit_bytes(1, &vec![0; len]);
        assert_eq!((guest.used(1), guest.malformed(1)), (vec![0], 1), "{len} bytes");
        assert_eq!(wire.take(), None);
    }
}

#[test]
fn a_chain_that_the_device_may_only_write_is_refused() {
    let (wire, mut guest) = guest(0);
    guest.rings[1].request(&[writable(0x1000, 100)]);
    guest.kick(1);
    assert_eq!((guest.used(1), guest.malformed(1)), (vec![0], 1));
    assert_eq!(wire.take(), None);
}

#[test]
fn nothing_is_written_into_a_chain_of_this_queue() {
    let (wire, mut guest) = guest(0);
    guest.put(0x1000, &[0; 12]);
    guest.put(0x100c, &frame(OTHER, 60));
    guest.put(0x2000, &[0xee; 16]);
    guest.rings[1].request(&[readable(0x1000, 72), writable(0x2000, 16)]);
    guest.kick(1);
    assert_eq!(guest.used(1), [0]);
    assert_eq!(guest.get(0x2000, 16), [0xee; 16]);
    assert_eq!(wire.take().unwrap().data, frame(OTHER, 60));
}

#[test]
fn a_partial_checksum_is_left_to_who_takes_it() {
    let (wire, mut guest) = guest(CSUM);
    let header = Header {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    guest.transmit(header, &frame(OTHER, 60));
    assert_eq!(wire.take().unwrap().header, header);
}

#[test]
fn a_partial_checksum_is_completed_for_who_does_not() {
    let wire = Arc::new(Wire::new(8));
    let mut guest = Guest::new(&wire, options(), CSUM);
    let mut data = packet(17, 1000, 2000);
    // Of a sum with odd length, and with the pseudo header's in place.
    data.push(0x5a);
    data[40..42].copy_from_slice(&[0x12, 0x34]);
    let header = Header {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    guest.transmit(header, &data);
    let sent = wire.take().unwrap();
    assert_eq!(sent.header, Header::default());
    let mut sum = 0u32;
    for pair in data[34..].chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    data[40..42].copy_from_slice(&(!sum as u16).to_be_bytes());
    assert_eq!(sent.data, data);
}

#[test]
fn a_checksum_beyond_the_frame_is_refused() {
    for (csum_start, csum_offset) in [
        (59, 0),
        (60, 0),
        (0, 59),
        (58, 1),
        (65535, 65535),
        (65535, 0),
        (0, 65535),
    ] {
        let header = Header {
            flags: NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Header::default()
        };
        assert_refused(CSUM, header, &frame(OTHER, 60));
    }
}

#[test]
fn the_place_of_a_checksum_that_is_not_asked_for_is_not_looked_at() {
    let (wire, mut guest) = guest(CSUM);
    let header = Header {
        csum_start: 65535,
        csum_offset: 65535,
        ..Header::default()
    };
    guest.transmit(header, &frame(OTHER, 60));
    assert_eq!(wire.take().unwrap().header, Header::default());
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let csum = Header {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    assert_refused(0, csum, &frame(OTHER, 60));
    let large = |gso_type| Header {
        gso_type,
        gso_size: 1000,
        hdr_len: 54,
        ..csum
    };
    let kinds = [(1, HOST_TSO4), (4, HOST_TSO6), (3, HOST_UFO), (5, HOST_USO)];
    for (kind, needed) in kinds {
        assert_refused(
            CSUM | (HOST_TSO4 | HOST_TSO6 | HOST_UFO | HOST_USO) & !needed,
            large(kind),
            &frame(OTHER, 3000),
        );
        let (wire, mut guest) = guest(CSUM | needed);
        guest.transmit(large(kind), &frame(OTHER, 3000));
        assert_eq!(wire.take().unwrap().header, large(kind));
    }
    assert_refused(CSUM | HOST_TSO4, large(0x81), &frame(OTHER, 3000));
    let (wire, mut guest) = guest(CSUM | HOST_TSO4 | HOST_ECN);
    guest.transmit(large(0x81), &frame(OTHER, 3000));
    assert_eq!(wire.take().unwrap().header, large(0x81));
}

#[test]
fn segmentation_that_cannot_be_is_refused() {
    let all = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO;
    let good = Header {
        flags: NEEDS_CSUM,
        gso_type: 1,
        gso_size: 1000,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let bad = [
        Header { gso_size: 0, ..good },
        Header { flags: 0, ..good },
        Header { gso_type: 2, ..good },
        Header { gso_type: 6, ..good },
        Header { gso_type: 0x7f, ..good },
        // ECN is TCP's, and says how something is cut.
        Header { gso_type: 0x80, ..good },
        Header { gso_type: 0x83, ..good },
        Header { gso_type: 0x85, ..good },
        Header {
            csum_start: 2999,
            ..good
        },
    ];
    for header in bad {
        assert_refused(all, header, &frame(OTHER, 3000));
    }
}

#[test]
fn flags_that_a_driver_must_not_set_and_num_buffers_mean_nothing() {
    let (wire, mut guest) = guest(CSUM);
    let header = Header {
        flags: 0xfe,
        num_buffers: 7,
        hdr_len: 65535,
        gso_size: 9,
        ..Header::default()
    };
    guest.transmit(header, &frame(OTHER, 60));
    assert_eq!(wire.take().unwrap().header, Header::default());
}

#[test]
fn hdr_len_is_a_hint_however_wrong() {
    let (wire, mut guest) = guest(CSUM | HOST_TSO4);
    // One that is beyond the frame does not come through: the host would refuse it.
    for (hdr_len, told) in [(0, 0), (1, 1), (3000, 3000), (3001, 0), (65535, 0)] {
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: 1,
            gso_size: 1000,
            hdr_len,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        };
        guest.transmit(header, &frame(OTHER, 3000));
        let told = Header {
            hdr_len: told,
            ..header
        };
        assert_eq!(wire.take().unwrap().header, told);
    }
}

#[test]
fn a_header_with_room_for_a_hash_is_20_bytes() {
    let (wire, mut guest) = guest(CTRL_VQ | HASH_REPORT);
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert_eq!(wire.take().unwrap().data, frame(OTHER, 60));
    guest.transmit_bytes(1, &[0; 33]);
    assert_eq!(guest.malformed(1), 1, "20 bytes and 13");
}

#[test]
fn a_network_without_room_leaves_frames_where_they_are() {
    let wire = Arc::new(Wire::new(2));
    let mut guest = Guest::new(&wire, options(), 0);
    for len in 60..65 {
        guest.transmit(Header::default(), &frame(OTHER, len));
    }
    assert_eq!(guest.used(1).len(), 2);
    for len in 60..65 {
        assert_eq!(wire.take().unwrap().data, frame(OTHER, len), "in order");
        guest.nic.run();
    }
    assert_eq!(guest.used(1).len(), 3);
    assert_eq!(wire.take(), None);
}

#[test]
fn a_full_ring_is_sent_with_one_kick() {
    let (wire, mut guest) = guest(0);
    guest.put(0x1000, &[0; 12]);
    guest.put(0x100c, &frame(OTHER, 60));
    for _ in 0..SIZE {
        guest.rings[1].request(&[readable(0x1000, 72)]);
    }
    guest.kick(1);
    assert_eq!(guest.used(1), [0; SIZE as usize]);
    for _ in 0..SIZE {
        assert!(wire.take().is_some());
    }
}

#[test]
fn a_cable_that_is_pulled_swallows_frames() {
    let (wire, mut guest) = guest(0);
    guest.nic.change_config(|nic| nic.set_link(false));
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert_eq!(guest.used(1), [0]);
    assert_eq!(wire.take(), None);
    assert_eq!(guest.nic.with_device(|nic| nic.counters().link_down), 1);
    guest.nic.change_config(|nic| nic.set_link(true));
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert!(wire.take().is_some());
}

#[test]
fn a_chain_of_megabytes_and_buffers_that_are_one_cost_nothing_but_themselves() {
    let (wire, mut guest) = guest(0);
    guest.rings[1].request(&[readable(0, 0x18_0000)]);
    guest.rings[1].request(&[readable(0x1000, 0x10_0000), readable(0x1000, 0x10_0000)]);
    guest.kick(1);
    assert_eq!((guest.used(1), guest.malformed(1)), (vec![0, 0], 2));
    // A header and a frame at the same place.
    guest.put(0x1000, &[0; 60]);
    guest.rings[1].request(&[readable(0x1000, 12), readable(0x1000, 60)]);
    guest.kick(1);
    assert_eq!(guest.used(1), [0]);
    assert_eq!(wire.take().unwrap().data, [0; 60]);
}

#[test]
fn frames_are_sent_while_the_control_queue_is_used_and_after_a_reset() {
    let (wire, mut guest) = guest(CTRL_VQ | CTRL_RX);
    for _ in 0..3 {
        assert_eq!(guest.command(0, 0, &[1]), OK);
        guest.transmit(Header::default(), &frame(BROADCAST, 1514));
        assert_eq!(wire.take().unwrap().data, frame(BROADCAST, 1514));
        assert!(guest.start(CTRL_VQ | CTRL_RX));
    }
}
