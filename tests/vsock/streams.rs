//! Stream connections (sections 5.10.6.2 to 5.10.6.5).

use std::time::Duration;

use devisor::virtio::{
    QueueIndex,
    vsock::{SocketKind, VsockOptions},
};

use crate::{machine::BUSES, ring::readable, support::*};

#[test]
fn the_guest_connects_to_who_listens_and_both_talk() {
    for bus in BUSES {
        let mut world = World::new(bus);
        world.host.listen(80, SocketKind::Stream);
        world.send(&A.packet(REQUEST));
        let answer = world.hear();
        assert_eq!(answer.len(), 1);
        let Packet {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            kind,
            op,
            buf_alloc,
            fwd_cnt,
            ..
        } = answer[0];
        assert_eq!((src_cid, dst_cid, src_port, dst_port), (HOST, CID, 80, 1000));
        assert_eq!((kind, op, buf_alloc, fwd_cnt), (STREAM, RESPONSE, 256 << 10, 0));

        let socket = world.host.accept(80, SocketKind::Stream).unwrap();
        world.send(&A.data(b"GET /"));
        assert_eq!(socket.read(), b"GET /");
        assert_eq!(socket.write(b"200"), 3);
        let heard = world.hear();
        assert_eq!(heard.len(), 1);
        assert_eq!(
            (heard[0].op, &heard[0].data[..], heard[0].fwd_cnt),
            (RW, &b"200"[..], 5)
        );
    }
}

#[test]
fn the_host_connects_to_the_guest_and_both_talk() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.host.connect(22, SocketKind::Stream);
        socket.write(b"SSH");
        let asked = world.hear();
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].op, asked[0].dst_port, asked[0].dst_cid), (REQUEST, 22, CID));
        assert!(!socket.is_open());
        let ports = Ports {
            guest: 22,
            host: asked[0].src_port,
            kind: STREAM,
        };
        world.send(&ports.packet(RESPONSE));
        assert!(socket.is_open());
        assert_eq!(socket.port(), Some(ports.host));
        assert_eq!(world.hear()[0].data, b"SSH");
        world.send(&ports.data(b"2.0"));
        assert_eq!(socket.read(), b"2.0");
    }
}

#[test]
fn a_connection_that_nobody_takes_is_refused() {
    for bus in BUSES {
        let mut world = World::new(bus);
        world.send(&A.packet(REQUEST));
        let answer = world.hear();
        assert_eq!(answer.len(), 1);
        assert_eq!((answer[0].op, answer[0].src_port, answer[0].dst_port), (RST, 80, 1000));
        assert_eq!(world.connections(), 0);
        // Of the guest.
        let socket = world.host.connect(22, SocketKind::Stream);
        let asked = world.hear().remove(0);
        let ports = Ports {
            guest: 22,
            host: asked.src_port,
            kind: STREAM,
        };
        world.send(&ports.packet(RST));
        assert!(socket.is_closed());
        assert_eq!((world.connections(), world.ops()), (0, vec![]));
    }
}

#[test]
fn a_guest_that_does_not_answer_in_time_is_asked_no_more() {
    for bus in BUSES {
        let mut world = World::with(
            bus,
            VsockOptions {
                connect_timeout: Duration::from_secs(2),
                ..VsockOptions::default()
            },
        );
        let socket = world.host.connect(22, SocketKind::Stream);
        assert_eq!(world.ops(), [REQUEST]);
        world.advance(Duration::from_millis(1999));
        assert_eq!((world.ops(), socket.is_closed()), (vec![], false));
        world.advance(Duration::from_millis(1));
        assert_eq!((world.ops(), socket.is_closed()), (vec![RST], true));
        assert_eq!(world.connections(), 0);
    }
}

#[test]
fn packets_of_several_connections_in_one_look_arrive_in_order_and_a_wrong_one_harms_its_own() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let other = Ports { guest: 1001, ..A };
        let (first, second) = (world.open(A), world.open(other));
        let wrong = {
            let mut bytes = A.data(b"").bytes();
            bytes[24] = 9;
            bytes
        };
        let packets = [
            [A.data(b"one").bytes(), b"one".to_vec()].concat(),
            [A.data(b"two").bytes(), b"two".to_vec()].concat(),
            [other.data(b"three").bytes(), b"three".to_vec()].concat(),
            [A.data(b"four").bytes(), b"four".to_vec()].concat(),
            wrong,
            [other.data(b"five").bytes(), b"five".to_vec()].concat(),
        ];
        for packet in &packets {
            let at = world.guest.place(TX, packet.len());
            world.guest.fill(at, packet);
            world.guest.rings[usize::from(TX)].request(&[readable(at, packet.len() as u32)]);
        }
        world.guest.used(TX);
        world.guest.transport().process(QueueIndex(TX));
        assert_eq!(world.guest.used(TX), 6);
        assert_eq!(world.guest.counters(TX).malformed, 1);
        assert_eq!(
            (first.read(), second.read()),
            (b"onetwofour".to_vec(), b"threefive".to_vec())
        );
        assert_eq!(world.ops(), [RST]);
        assert!(first.is_closed() && second.is_open());
    }
}
