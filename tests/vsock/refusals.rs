//! What is refused with RST, and what is dropped (sections 5.10.6.2, 5.10.6.4.2 and 5.10.6.5).

use devisor::virtio::vsock::SocketKind;

use crate::{
    machine::{BUSES, NEEDS_RESET},
    ring::{readable, writable},
    support::*,
};

#[test]
fn whatever_belongs_to_no_connection_is_refused_but_a_refusal() {
    for bus in BUSES {
        for op in [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 8, 0xffff] {
            let mut world = World::new(bus);
            world.send(&A.packet(op));
            let heard = world.hear();
            assert_eq!(heard.len(), 1, "{op}");
            let Packet {
                op,
                src_port,
                dst_port,
                src_cid,
                dst_cid,
                kind,
                ..
            } = heard[0];
            assert_eq!((op, src_port, dst_port), (RST, 80, 1000));
            assert_eq!((src_cid, dst_cid, kind), (HOST, CID, STREAM));
        }
        let mut world = World::new(bus);
        world.send(&A.packet(RST));
        assert_eq!((world.guest.used(TX), world.ops()), (1, vec![]));
    }
}

#[test]
fn an_unknown_type_is_refused_with_that_type() {
    for bus in BUSES {
        for kind in [0, 3, 0xffff] {
            let mut world = World::new(bus);
            let socket = world.open(A);
            for op in [REQUEST, RW, RESPONSE] {
                world.send(&Ports { kind, ..A }.packet(op));
                let heard = world.hear();
                assert_eq!((heard.len(), heard[0].op, heard[0].kind), (1, RST, kind));
            }
            world.send(&Ports { kind, ..A }.packet(RST));
            assert_eq!(world.ops(), NONE);
            assert!(socket.is_open(), "another type is another socket");
        }
    }
}

#[test]
fn a_type_that_was_not_negotiated_is_unknown() {
    for bus in BUSES {
        for (features, stream, seqpacket) in [
            (0, true, false),
            (F_STREAM, true, false),
            (F_SEQPACKET, true, true),
            (F_SEQPACKET | F_NO_IMPLIED_STREAM, false, true),
            (F_STREAM | F_NO_IMPLIED_STREAM, true, false),
            (F_STREAM | F_SEQPACKET | F_NO_IMPLIED_STREAM, true, true),
        ] {
            let mut world = World::negotiated(bus, Default::default(), HOST_ROOM, features);
            world.host.listen(80, SocketKind::Stream);
            world.host.listen(80, SocketKind::Seqpacket);
            for (kind, there) in [(STREAM, stream), (SEQPACKET, seqpacket)] {
                let ports = Ports {
                    kind,
                    guest: u32::from(kind),
                    ..A
                };
                world.send(&ports.packet(REQUEST));
                assert_eq!(
                    world.ops(),
                    [if there { RESPONSE } else { RST }],
                    "{features:#x} {kind}"
                );
            }
        }
    }
}

#[test]
fn a_connection_of_a_type_that_the_driver_has_not_is_not_offered_to_it() {
    for bus in BUSES {
        let mut world = World::negotiated(bus, Default::default(), HOST_ROOM, F_STREAM);
        let socket = world.host.connect(22, SocketKind::Seqpacket);
        assert_eq!(world.ops(), NONE);
        assert!(socket.is_closed());
    }
}

#[test]
fn a_packet_from_somebody_else_is_dropped_and_changes_nothing() {
    for bus in BUSES {
        for src_cid in [0, 1, HOST, 4, 0xffff_ffff, u64::MAX, CID | 1 << 32] {
            let mut world = World::new(bus);
            let socket = world.open(A);
            for op in [REQUEST, RW, RST, SHUTDOWN, 99] {
                world.send(&Packet {
                    src_cid,
                    ..A.packet(op)
                });
            }
            assert_eq!((world.ops(), socket.is_open()), (vec![], true), "{src_cid:#x}");
            assert_eq!(world.guest.counters(TX).malformed, 5);
        }
    }
}

#[test]
fn a_packet_to_somebody_else_is_refused_in_their_name() {
    for bus in BUSES {
        for dst_cid in [0, 1, CID, 4, 0xffff_ffff, u64::MAX, HOST | 1 << 32] {
            let mut world = World::new(bus);
            world.host.listen(80, SocketKind::Stream);
            let socket = world.open(A);
            world.send(&Packet {
                dst_cid,
                ..Ports { guest: 2, ..A }.packet(REQUEST)
            });
            world.send(&Packet {
                dst_cid,
                ..A.data(b"x")
            });
            let heard = world.hear();
            assert_eq!(heard.len(), 2, "{dst_cid:#x}");
            assert!(heard.iter().all(|packet| (packet.op, packet.src_cid) == (RST, dst_cid)));
            assert_eq!((socket.is_open(), socket.read()), (true, vec![]));
        }
    }
}

#[test]
fn an_operation_that_is_unknown_or_out_of_order_resets_its_connection() {
    for bus in BUSES {
        for op in [0, 8, 0xffff, REQUEST, RESPONSE] {
            let mut world = World::new(bus);
            let socket = world.open(A);
            world.send(&A.packet(op));
            assert_eq!((world.ops(), socket.is_closed()), (vec![RST], true), "{op}");
            // The ports are free again.
            world.open(A);
        }
        for op in [RW, SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST, REQUEST, 0] {
            let mut world = World::new(bus);
            let socket = world.host.connect(22, SocketKind::Stream);
            let host = world.hear()[0].src_port;
            let ports = Ports { guest: 22, host, ..A };
            world.send(&ports.packet(op));
            assert_eq!(
                (world.ops(), socket.is_closed()),
                (vec![RST], true),
                "{op} before it is open"
            );
        }
    }
}

#[test]
fn an_answer_that_comes_before_the_question_resets_the_connection() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.host.connect(22, SocketKind::Stream);
        world.guest.run();
        // The guest guesses, and has given no room yet.
        let ports = Ports {
            guest: 22,
            host: 1 << 30,
            ..A
        };
        world.send(&ports.packet(RESPONSE));
        assert_eq!((world.ops(), socket.is_closed()), (vec![RST], true));
    }
}

#[test]
fn after_a_reset_by_the_guest_the_connection_is_unknown() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&A.packet(RST));
        assert!(socket.is_closed());
        world.send(&A.data(b"late"));
        assert_eq!((world.ops(), world.connections()), (vec![RST], 0));
    }
}

#[test]
fn while_a_reset_is_on_its_way_the_guest_may_say_what_it_wants() {
    for bus in BUSES {
        let mut world = World::new(bus);
        world.host.listen(80, SocketKind::Stream);
        world.send(&A.packet(REQUEST));
        world.send(&A.packet(REQUEST));
        for op in [REQUEST, RW, SHUTDOWN, CREDIT_REQUEST, 77] {
            world.send(&A.packet(op));
        }
        assert_eq!(world.ops(), [RST]);
        world.send(&A.packet(REQUEST));
        assert_eq!(world.ops(), [RESPONSE]);
    }
}

#[test]
fn any_port_is_a_port() {
    for bus in BUSES {
        for (guest, host) in [(0, 0), (u32::MAX, u32::MAX), (1 << 30, 1 << 30)] {
            let mut world = World::new(bus);
            let ports = Ports { guest, host, ..A };
            let socket = world.open(ports);
            world.send(&ports.data(b"x"));
            assert_eq!(socket.read(), b"x");
        }
    }
}

#[test]
fn packets_that_are_no_packets_cost_themselves_alone() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        let before = world.guest.counters(TX).malformed;
        let at = world.guest.place(TX, 128);
        world.guest.fill(at, &A.data(b"x").bytes());
        world.guest.offer(TX, &[readable(at, 43)]);
        world.guest.offer(TX, &[readable(at, 0)]);
        world.guest.offer(TX, &[writable(at, 64)]);
        world.guest.offer(TX, &[readable(at, 45), writable(at + 64, 8)]);
        world.guest.run();
        assert_eq!(world.guest.counters(TX).malformed - before, 4);
        assert!(socket.is_open());
        // A header in many pieces is one.
        let bytes = [A.data(b"x").bytes(), b"x".to_vec()].concat();
        let pieces: Vec<_> = bytes.chunks(7).collect();
        world.guest.send(TX, &pieces);
        world.guest.run();
        assert_eq!(socket.read(), b"x");
        assert_eq!(world.guest.transport().status() & NEEDS_RESET, 0);
    }
}

#[test]
fn a_flood_of_connections_leaves_nothing_behind() {
    for bus in BUSES {
        let mut world = World::new(bus);
        world.host.listen(80, SocketKind::Stream);
        for guest in 0..2000 {
            let ports = Ports { guest, ..A };
            world.send(&ports.packet(REQUEST));
            world.send(&ports.packet(RST));
            while world.host.accept(80, SocketKind::Stream).is_some() {}
        }
        assert_eq!(world.connections(), 0);
        assert_eq!(world.ops(), NONE);
    }
}

#[test]
fn connections_that_no_program_accepts_do_not_pile_up() {
    for bus in BUSES {
        let mut world = World::new(bus);
        world.host.listen(A.host, devisor::virtio::vsock::SocketKind::Stream);
        let mut answers = [0; 2];
        for guest in 0..200 {
            let ports = Ports { guest, ..A };
            world.send(&ports.packet(REQUEST));
            for packet in world.hear() {
                answers[usize::from(packet.op == RST)] += 1;
            }
            world.send(&ports.packet(RST));
        }
        assert_eq!(answers, [128, 72]);
        assert_eq!(world.connections(), 0);
        let kind = devisor::virtio::vsock::SocketKind::Stream;
        assert_eq!(std::iter::from_fn(|| world.host.accept(A.host, kind)).count(), 128);
        // Nobody listens and has no time: that is no failure of the host.
        assert_eq!(world.guest.with_device(|vsock| vsock.host_failures().count), 0);
    }
}
