//! Seqpacket connections (section 5.10.6.6).

use devisor::virtio::vsock::{Boundary, VsockOptions};

use crate::{machine::BUSES, support::*};

const B: Ports = Ports {
    guest: 7,
    host: 9,
    kind: SEQPACKET,
};

fn piece(data: &[u8], flags: u32) -> Packet {
    Packet { flags, ..B.data(data) }
}

#[test]
fn messages_and_records_of_the_guest_keep_their_boundaries() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(B);
        world.send(&piece(b"one", EOM));
        world.send(&piece(b"tw", 0));
        assert_eq!(socket.read_message(), Some((b"one".to_vec(), Boundary::Message)));
        assert_eq!(socket.read_message(), None, "half of one is none");
        world.send(&piece(b"o", EOM | EOR));
        world.send(&piece(b"", EOM));
        world.send(&piece(b"three", EOR));
        assert_eq!(socket.read_message(), Some((b"two".to_vec(), Boundary::Record)));
        assert_eq!(socket.read_message(), Some((b"".to_vec(), Boundary::Message)));
        assert_eq!(socket.read_message(), Some((b"three".to_vec(), Boundary::Record)));
    }
}

#[test]
fn they_keep_them_also_when_the_host_has_no_room() {
    for bus in BUSES {
        let mut world = World::negotiated(bus, VsockOptions::default(), 6, F_SEQPACKET);
        let socket = world.open(B);
        for (data, flags) in [
            (&b"abcdef"[..], EOM),
            (b"ghi", 0),
            (b"j", EOM),
            (b"", EOM | EOR),
            (b"kl", EOM),
        ] {
            world.send(&piece(data, flags));
        }
        let mut got = Vec::new();
        for _ in 0..10 {
            while let Some((message, boundary)) = socket.read_message() {
                got.push((String::from_utf8(message).unwrap(), boundary));
            }
            world.guest.run();
        }
        let expected = [
            ("abcdef", Boundary::Message),
            ("ghij", Boundary::Message),
            ("", Boundary::Record),
            ("kl", Boundary::Message),
        ];
        assert_eq!(got, expected.map(|(message, boundary)| (message.to_string(), boundary)));
    }
}

#[test]
fn messages_to_the_guest_end_where_they_end() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(B);
        assert!(socket.send_message(b"one", Boundary::Message));
        assert!(socket.send_message(b"", Boundary::Record));
        assert!(socket.send_message(&[3; 100], Boundary::Message));
        world.hear();
        let mut world = World::new(bus);
        let socket = world.open(B);
        // Buffers from the opening are of 4096 bytes.
        world.guest.used(RX);
        socket.send_message(b"one", Boundary::Message);
        socket.send_message(b"", Boundary::Record);
        socket.send_message(&[3; 9000], Boundary::Message);
        let heard = world.hear();
        let parts: Vec<_> = heard.iter().map(|packet| (packet.data.len(), packet.flags)).collect();
        assert_eq!(parts, [(3, EOM), (0, EOM | EOR), (4052, 0), (4052, 0), (896, EOM)]);
    }
}

#[test]
fn messages_that_are_read_into_many_buffers_at_once_end_where_they_end() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(B);
        world.hear();
        // What is left of the buffers of the opening.
        while world.guest.rings[usize::from(RX)].avail_idx() != world.guest.rings[usize::from(RX)].used_idx() {
            socket.send_message(b"x", Boundary::Message);
            world.guest.run();
        }
        world.guest.received(RX);
        for turn in 0..5 {
            (0..if turn == 0 { 12 } else { 8 }).for_each(|_| _ = world.guest.room(RX, 104));
            socket.send_message(&[turn; 300], Boundary::Message);
            socket.send_message(b"", Boundary::Record);
            socket.send_message(&[turn + 100; 61], Boundary::Message);
            let heard = world.hear_in(104);
            let parts: Vec<_> = heard.iter().map(|packet| (packet.data.len(), packet.flags)).collect();
            let long = [(60, 0), (60, 0), (60, 0), (60, 0), (60, EOM)];
            let rest = [(0, EOM | EOR), (60, 0), (1, EOM)];
            assert_eq!(parts, [&long[..], &rest].concat(), "turn {turn}");
            let bytes: Vec<u8> = heard.into_iter().flat_map(|packet| packet.data).collect();
            assert_eq!(bytes, [vec![turn; 300], vec![turn + 100; 61]].concat());
        }
    }
}

#[test]
fn a_message_that_is_too_long_resets_its_connection() {
    for bus in BUSES {
        let options = VsockOptions {
            max_message: 100,
            ..VsockOptions::default()
        };
        let mut world = World::with(bus, options.clone());
        let socket = world.open(B);
        for _ in 0..3 {
            world.send(&piece(&[1; 50], 0));
            world.send(&piece(&[1; 50], EOM));
        }
        assert!(socket.is_open());
        world.send(&piece(&[1; 51], 0));
        world.send(&piece(&[1; 50], EOM));
        assert_eq!((world.ops().last(), socket.is_closed()), (Some(&RST), true));

        let mut world = World::with(bus, options);
        let socket = world.open(B);
        socket.send_message(&[1; 100], Boundary::Message);
        assert_eq!(world.ops(), [RW]);
        socket.send_message(&[1; 101], Boundary::Message);
        assert_eq!((world.ops(), socket.is_closed()), (vec![RST], true));
    }
}

#[test]
fn a_message_that_the_guest_never_has_room_for_resets_its_connection() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(B);
        world.send(&Packet {
            buf_alloc: 64,
            ..B.packet(CREDIT_UPDATE)
        });
        socket.send_message(&[1; 64], Boundary::Message);
        assert_eq!(world.ops(), [RW, CREDIT_REQUEST]);
        world.send(&Packet {
            buf_alloc: 64,
            fwd_cnt: 64,
            ..B.packet(CREDIT_UPDATE)
        });
        socket.send_message(&[1; 65], Boundary::Message);
        assert_eq!((world.ops(), socket.is_closed()), (vec![RW, RST], true));
    }
}

#[test]
fn a_guest_is_told_of_room_for_a_whole_message_when_there_is() {
    for bus in BUSES {
        let options = VsockOptions {
            buf_alloc: 4096,
            ..VsockOptions::default()
        };
        let mut world = World::with(bus, options);
        let socket = world.open(B);
        world.send(&piece(b"little", EOM));
        let told = world.hear();
        assert_eq!((told.len(), told[0].op, told[0].fwd_cnt), (1, CREDIT_UPDATE, 6));
        world.send(&Packet {
            flags: EOM,
            ..B.data(&[9; 4096])
        });
        assert!(socket.read_message().is_some());
        assert_eq!(socket.read_message().map(|(message, _)| message.len()), Some(4096));
    }
}

#[test]
fn empty_messages_without_end_cost_the_connection_and_not_memory() {
    for bus in BUSES {
        let options = VsockOptions {
            buf_alloc: 4096,
            ..VsockOptions::default()
        };
        let mut world = World::negotiated(bus, options, 1, F_SEQPACKET);
        let socket = world.open(B);
        world.send(&piece(b"ab", EOM));
        for _ in 0..4100 {
            world.send(&piece(b"", EOM));
        }
        assert_eq!(world.ops().last(), Some(&RST));
        assert!(socket.is_closed());
    }
}

#[test]
fn empty_messages_that_nobody_reads_do_not_pile_up() {
    for bus in BUSES {
        let options = VsockOptions {
            buf_alloc: 4096,
            ..VsockOptions::default()
        };
        let mut world = World::negotiated(bus, options, 8, F_SEQPACKET);
        let socket = world.open(B);
        // What the host side holds, and the device.
        for _ in 0..8 + 4096 {
            world.send(&piece(b"", EOM));
        }
        assert!(socket.is_open());
        world.send(&piece(b"", EOM));
        world.send(&piece(b"", EOM));
        assert_eq!(world.ops().last(), Some(&RST));
        let mut held = 0;
        while let Some(message) = socket.read_message() {
            assert_eq!(message, (vec![], Boundary::Message));
            held += 1;
        }
        assert_eq!(held, 8);
    }
}

#[test]
fn a_program_that_reads_bytes_may_go_on_with_messages() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(B);
        world.send(&piece(b"one", EOM));
        assert_eq!(socket.read(), b"one");
        assert_eq!(socket.read_message(), None);
        world.send(&piece(b"two", EOM));
        assert_eq!(socket.read_message(), Some((b"two".to_vec(), Boundary::Message)));
    }
}
