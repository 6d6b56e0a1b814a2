//! Buffer space (section 5.10.6.3) and the flow of the queues (section 5.10.6.1).

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use devisor::{
    time::ManualClock,
    virtio::{
        Wait,
        vsock::{
            Boundary, Direction, Host, Incoming, MemoryHost, Ready, Received, SocketKind, Stream, Token, Vsock,
            VsockOptions, Waker,
        },
    },
};
use vm_memory::VolatileSlice;

use crate::{
    machine::{BUSES, Machine, NEEDS_RESET},
    support::*,
};

const SMALL: u32 = 4096;

fn small() -> VsockOptions {
    VsockOptions {
        buf_alloc: SMALL,
        ..VsockOptions::default()
    }
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    for bus in BUSES {
        let mut world = World::new(bus);
        world.host.listen(80, SocketKind::Stream);
        world.send(&Packet {
            buf_alloc: 10,
            ..A.packet(REQUEST)
        });
        assert_eq!(world.ops(), [RESPONSE]);
        let socket = world.host.accept(80, SocketKind::Stream).unwrap();
        socket.write(b"0123456789abcdef");
        let heard = world.hear();
        assert_eq!(heard[0].data, b"0123456789");
        assert_eq!(
            heard.iter().map(|packet| packet.op).collect::<Vec<_>>(),
            [RW, CREDIT_REQUEST]
        );
        // Asked once.
        assert_eq!(world.ops(), NONE);
        world.send(&Packet {
            buf_alloc: 10,
            fwd_cnt: 4,
            ..A.packet(CREDIT_UPDATE)
        });
        assert_eq!(world.hear()[0].data, b"abcd");
        // Any packet tells.
        world.send(&Packet {
            buf_alloc: 12,
            fwd_cnt: 4,
            ..A.data(b"x")
        });
        assert_eq!(world.hear()[0].data, b"ef");
    }
}

#[test]
fn a_guest_that_has_forwarded_more_than_it_got_has_no_room() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&Packet {
            fwd_cnt: 5,
            ..A.packet(CREDIT_UPDATE)
        });
        socket.write(b"data");
        assert_eq!(world.ops(), [CREDIT_REQUEST]);
        world.send(&A.packet(CREDIT_UPDATE));
        assert_eq!(world.hear()[0].data, b"data");
    }
}

#[test]
fn counters_wrap_and_buffers_may_be_as_large_as_a_number_can_say() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        let mut total = 0_u32;
        for _ in 0..3 {
            socket.write(&[7; 1000]);
            total += 1000;
            world.send(&Packet {
                buf_alloc: u32::MAX,
                fwd_cnt: total - 1000,
                ..A.packet(CREDIT_UPDATE)
            });
            let heard = world.hear();
            assert_eq!(heard.iter().map(|packet| packet.data.len()).sum::<usize>(), 1000);
        }
        // The guest's buffer shrinks to less than what is under way.
        world.send(&Packet {
            buf_alloc: 0,
            fwd_cnt: 0,
            ..A.packet(CREDIT_UPDATE)
        });
        socket.write(b"more");
        assert_eq!(world.ops(), [CREDIT_REQUEST]);
    }
}

#[test]
fn a_credit_request_is_answered_with_what_was_forwarded() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&A.data(b"12345"));
        assert_eq!(socket.read(), b"12345");
        world.send(&A.packet(CREDIT_REQUEST));
        let heard = world.hear();
        assert_eq!(heard.len(), 1);
        assert_eq!(
            (heard[0].op, heard[0].fwd_cnt, heard[0].buf_alloc),
            (CREDIT_UPDATE, 5, 256 << 10)
        );
    }
}

#[test]
fn what_the_host_has_no_room_for_is_held_and_forwarded_when_it_has() {
    for bus in BUSES {
        let mut world = World::negotiated(bus, small(), 1000, F_STREAM);
        let socket = world.open(A);
        let data: Vec<u8> = (0..4000_u32).map(|byte| byte as u8).collect();
        for part in data.chunks(500) {
            world.send(&A.data(part));
        }
        assert_eq!(world.guest.used(TX), 9, "the queue does not wait for the host");
        let mut got = Vec::new();
        while got.len() < data.len() {
            let part = socket.read();
            assert!(!part.is_empty() && part.len() <= 1000);
            got.extend(part);
            world.guest.run();
        }
        assert_eq!(got, data);
        let last = world.hear().pop().expect("told of room");
        assert_eq!(last.op, CREDIT_UPDATE);
        assert!(4000 - last.fwd_cnt < SMALL / 4);
    }
}

#[test]
fn a_guest_that_sends_more_than_there_is_room_for_loses_the_connection() {
    for bus in BUSES {
        let mut world = World::negotiated(bus, small(), 1000, F_STREAM);
        let socket = world.open(A);
        for _ in 0..5 {
            world.send(&A.data(&[1; 1000]));
        }
        assert!(!socket.is_closed(), "5000 bytes of which the host has 1000");
        world.send(&A.data(&[1; 97]));
        assert_eq!((world.ops().last(), socket.is_closed()), (Some(&RST), true));
        assert_eq!(world.connections(), 0);
    }
}

#[test]
fn a_packet_as_long_as_a_number_can_say_loses_the_connection_and_no_memory() {
    for bus in BUSES {
        for len in [u32::MAX, 1 << 31, 100] {
            let mut world = World::new(bus);
            let socket = world.open(A);
            // A length that the chain does not have.
            world.send(&Packet {
                len,
                ..A.data(b"short")
            });
            assert_eq!((world.ops(), socket.is_closed()), (vec![RST], true));
            assert_eq!(world.guest.counters(TX).malformed, 1);
        }
    }
}

#[test]
fn of_a_chain_that_is_longer_than_its_payload_the_rest_is_nothing() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&Packet {
            len: 3,
            ..A.data(b"abcdef")
        });
        assert_eq!(socket.read(), b"abc");
        // Also on other operations.
        world.send(&Packet {
            data: b"junk".to_vec(),
            ..A.packet(CREDIT_REQUEST)
        });
        assert_eq!(world.ops(), [CREDIT_UPDATE]);
    }
}

// Section 5.10.6.1.2: tx is processed also when rx is full.

#[test]
fn the_guests_packets_are_taken_while_it_gives_no_room_for_answers() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        for round in 0..100 {
            world.send(&A.data(b"x"));
            world.send(&A.packet(CREDIT_REQUEST));
            assert_eq!(world.guest.used(TX), if round == 0 { 3 } else { 2 });
        }
        assert_eq!(socket.read(), [b'x'; 100]);
        // A hundred requests have one answer.
        world.hear();
        assert_eq!(world.ops(), NONE);
    }
}

#[test]
fn refusals_have_a_bound_and_none_is_lost() {
    for bus in BUSES {
        let mut world = World::with(
            bus,
            VsockOptions {
                max_resets: 3,
                ..VsockOptions::default()
            },
        );
        for guest in 1..=5 {
            world.send(&Ports { guest, ..A }.packet(CREDIT_UPDATE));
        }
        // The rx queue has no buffer yet.
        assert_eq!(world.guest.used(TX), 3);
        let refused: Vec<_> = world.hear().iter().map(|packet| (packet.op, packet.dst_port)).collect();
        assert_eq!(refused, [(RST, 1), (RST, 2), (RST, 3), (RST, 4), (RST, 5)]);
        assert_eq!(world.guest.used(TX), 2);
    }
}

#[test]
fn connections_have_a_bound_and_the_hosts_wait() {
    for bus in BUSES {
        let mut world = World::with(
            bus,
            VsockOptions {
                max_connections: 2,
                ..VsockOptions::default()
            },
        );
        world.host.listen(80, SocketKind::Stream);
        for guest in 1..=3 {
            world.send(&Ports { guest, ..A }.packet(REQUEST));
        }
        let mut ops = world.ops();
        ops.sort_unstable();
        assert_eq!(ops, [RESPONSE, RESPONSE, RST]);
        let waiting = world.host.connect(22, SocketKind::Stream);
        assert_eq!((world.ops(), world.connections()), (vec![], 2));
        world.send(&Ports { guest: 1, ..A }.packet(RST));
        assert_eq!(world.ops(), [REQUEST]);
        assert!(!waiting.is_closed());
    }
}

#[test]
fn buffers_that_are_too_short_for_a_packet_cost_themselves_alone() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        for len in [1, 43, 44] {
            world.guest.room(RX, len);
        }
        let at = world.guest.place(RX, 64);
        world.guest.offer(RX, &[crate::ring::readable(at, 64)]);
        let mut data = Vec::new();
        for byte in b"sixteen" {
            socket.write(&[*byte]);
            data.extend(world.hear().into_iter().flat_map(|packet| packet.data));
        }
        assert_eq!(data, b"sixteen");
        // Of 44 bytes, a header alone has room.
        assert_eq!(world.guest.counters(RX).malformed, 4);
        assert_eq!(world.guest.transport().status() & NEEDS_RESET, 0);
    }
}

/// A host whose streams panic when they are told to, before they take anything.
struct Panics {
    host: MemoryHost,
    now: Arc<AtomicBool>,
}

struct PanicsToo {
    stream: Box<dyn Stream>,
    now: Arc<AtomicBool>,
}

impl Host for Panics {
    fn attach(&self, waker: Waker) {
        Host::attach(&self.host, waker);
    }

    fn connect(&self, port: u32, guest_port: u32, kind: SocketKind, token: Token) -> io::Result<Box<dyn Stream>> {
        let stream = Host::connect(&self.host, port, guest_port, kind, token)?;
        let now = Arc::clone(&self.now);
        Ok(Box::new(PanicsToo { stream, now }))
    }

    fn accept(&self, token: Token) -> Option<Incoming> {
        Host::accept(&self.host, token)
    }

    fn poll(&self, now: Duration, tell: &mut dyn FnMut(Token, Ready)) {
        Host::poll(&self.host, now, tell);
    }

    fn waits(&self, full: bool, wait: &mut dyn FnMut(Wait)) {
        Host::waits(&self.host, full, wait);
    }
}

impl Stream for PanicsToo {
    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<Received> {
        self.stream.read(room)
    }

    fn write(&self, data: &[VolatileSlice<'_>], boundary: Boundary) -> io::Result<usize> {
        assert!(!self.now.swap(false, SeqCst), "as told");
        self.stream.write(data, boundary)
    }

    fn shutdown(&self, direction: Direction) {
        self.stream.shutdown(direction);
    }

    fn is_gone(&self) -> bool {
        self.stream.is_gone()
    }
}

#[test]
fn what_a_stream_panics_at_is_counted_once() {
    for bus in BUSES {
        for ports in [A, Ports { kind: SEQPACKET, ..A }] {
            let kind = if ports.kind == STREAM {
                SocketKind::Stream
            } else {
                SocketKind::Seqpacket
            };
            let (host, now) = (MemoryHost::new(1 << 16), Arc::new(AtomicBool::new(false)));
            let panics = Panics {
                host: host.clone(),
                now: Arc::clone(&now),
            };
            let vsock = Vsock::new(panics, Arc::new(ManualClock::default()), small()).unwrap();
            let mut guest = Machine::new(bus, vsock, F_STREAM | F_SEQPACKET);
            host.listen(80, kind);
            guest.send(TX, &[&ports.packet(REQUEST).bytes()]);
            guest.run();
            let socket = host.accept(80, kind).unwrap();
            let mut sent = Vec::new();
            // One packet in a round, then several.
            for packets in [1, 1, 4, 4] {
                let data = [packets as u8; SMALL as usize];
                for data in data.chunks(data.len() / packets) {
                    sent.extend_from_slice(data);
                    let packet = Packet {
                        flags: if kind == SocketKind::Seqpacket { EOM } else { 0 },
                        ..ports.data(data)
                    };
                    guest.send(TX, &[&packet.bytes(), data]);
                }
                now.store(true, SeqCst);
                let run = catch_unwind(AssertUnwindSafe(|| guest.run()));
                assert!(run.is_err());
                guest.run();
                assert!(
                    socket.is_open(),
                    "{bus:?}, {kind:?}: as if there was more than there is credit for"
                );
            }
            assert_eq!(socket.read(), sent);
        }
    }
}
