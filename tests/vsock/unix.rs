//! The host side as Unix sockets.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use devisor::{
    time::ManualClock,
    virtio::vsock::{UnixHost, Vsock, VsockOptions},
};

use crate::{
    machine::{BUSES, Bus, Machine},
    ring::writable,
    support::*,
};

/// A device over a path of its own.
struct Wire {
    guest: Guest,
    path: PathBuf,
    clock: Arc<ManualClock>,
}

impl Wire {
    fn new(bus: Bus, name: &str) -> Self {
        Self::with(bus, name, VsockOptions::default())
    }

    fn with(bus: Bus, name: &str, options: VsockOptions) -> Self {
        Self::negotiated(bus, name, options, F_STREAM | F_SEQPACKET)
    }

    fn negotiated(bus: Bus, name: &str, options: VsockOptions, features: u64) -> Self {
        let path = std::env::temp_dir().join(format!("devisor-vsock-{name}-{bus:?}-{}", std::process::id()));
        let clock = Arc::new(ManualClock::default());
        let host = UnixHost::bind(&path).unwrap();
        let vsock = Vsock::new(host, Arc::clone(&clock) as _, options).unwrap();
        let guest = Machine::new(bus, vsock, features);
        Self { guest, path, clock }
    }

    fn poll(&self) {
        use devisor::time::Clock;
        crate::poll::poll(&self.guest, self.clock.now());
    }

    fn send(&mut self, packet: &Packet) {
        let bytes = packet.bytes();
        self.guest.send(TX, &[&bytes, &packet.data]);
        self.poll();
    }

    fn hear(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        loop {
            self.poll();
            let used = self.guest.received(RX);
            packets.extend(
                used.iter()
                    .filter(|bytes| !bytes.is_empty())
                    .map(|bytes| Packet::decode(bytes)),
            );
            let ring = &self.guest.rings[usize::from(RX)];
            if ring.avail_idx().wrapping_sub(ring.used_idx()) >= 2 {
                return packets;
            }
            self.guest.room(RX, 4096);
        }
    }

    fn listen(&self, suffix: &str) -> Listener {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        let path = PathBuf::from(path);
        let _ = std::fs::remove_file(&path);
        Listener(UnixListener::bind(&path).unwrap(), path)
    }

    /// The guest connects to `ports.host`, where this listens.
    fn open(&mut self, ports: Ports, listener: &Listener) -> UnixStream {
        self.send(&ports.packet(REQUEST));
        assert_eq!(self.hear()[0].op, RESPONSE);
        listener.0.accept().unwrap().0
    }

    fn connect(&self, line: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(line).unwrap();
        stream
    }
}

struct Listener(UnixListener, PathBuf);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let closed = match stream.read(&mut [0]) {
        Ok(len) => len == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).unwrap();
    closed
}

#[test]
fn the_host_asks_by_a_line_and_is_answered_by_one() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "connect");
        // What is behind the line is the guest's already.
        let mut stream = wire.connect(b"CONNECT 22\nhello");
        let asked = wire.hear();
        assert_eq!((asked.len(), asked[0].op, asked[0].dst_port), (1, REQUEST, 22));
        assert!(!is_closed(&mut stream));
        let ports = Ports {
            guest: 22,
            host: asked[0].src_port,
            kind: STREAM,
        };
        wire.send(&ports.packet(RESPONSE));
        let expected = format!("OK {}\n", ports.host);
        assert_eq!(read(&mut stream, expected.len()), expected.as_bytes());
        assert_eq!(wire.hear()[0].data, b"hello");
        wire.send(&ports.data(b"world"));
        assert_eq!(read(&mut stream, 5), b"world");
    }
}

/// More than the host takes in one call: what is behind them was not looked for.
#[test]
fn buffers_in_very_many_pieces_are_filled_with_all_that_there_is() {
    const INDIRECT_DESC: u64 = 1 << 28;
    const PIECES: u32 = 300;
    for bus in BUSES {
        let mut wire = Wire::negotiated(bus, "pieces", VsockOptions::default(), F_STREAM | INDIRECT_DESC);
        let listener = wire.listen("_80");
        let mut stream = wire.open(A, &listener);
        let sent: Vec<_> = (0..40_000_u32).map(|at| at as u8).collect();
        stream.write_all(&sent).unwrap();
        let (table, buffer) = (0xe0_0000, 0xe1_0000);
        let pieces: Vec<_> = (0..PIECES).map(|n| writable(buffer + 64 * u64::from(n), 64)).collect();
        let mut got = Vec::new();
        loop {
            wire.poll();
            let ring = &mut wire.guest.rings[usize::from(RX)];
            let used = ring.used();
            // Those of before are in one piece.
            let (heads, head) = (ring.layout.descriptor_area, ring.add_indirect(table, &pieces));
            let place = |head: u32| wire.guest.bytes(heads + 16 * u64::from(head), 8);
            for &(head, len) in &used {
                let at = u64::from_le_bytes(place(head).try_into().unwrap());
                let at = if at == table { buffer } else { at };
                got.extend(Packet::decode(&wire.guest.bytes(at, len as usize)).data);
            }
            if got.len() == sent.len() {
                break;
            }
            assert!(!used.is_empty(), "{bus:?}: nothing after {} bytes", got.len());
            wire.guest.rings[usize::from(RX)].offer(head);
            wire.guest.kick(RX);
        }
        assert_eq!(got, sent);
    }
}

#[test]
fn a_line_may_come_in_pieces_and_one_that_is_none_closes_the_socket() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "line");
        let mut stream = wire.connect(b"CONN");
        assert_eq!(wire.hear(), []);
        stream.write_all(b"ECT 5").unwrap();
        assert_eq!(wire.hear(), []);
        stream.write_all(b"\n").unwrap();
        assert_eq!(wire.hear()[0].dst_port, 5);
        for line in [&b"GET / HTTP/1.1\n"[..], b"CONNECT x\n", b"\n", &[b'C'; 100]] {
            let mut stream = wire.connect(line);
            assert_eq!(wire.hear(), []);
            assert!(is_closed(&mut stream), "{line:?}");
        }
    }
}

#[test]
fn who_says_nothing_is_dropped_in_time_and_keeps_nobody_out_after_that() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "silent");
        let mut silent: Vec<_> = (0..40).map(|_| wire.connect(b"")).collect();
        let mut late = wire.connect(b"CONNECT 1\n");
        assert_eq!(wire.hear(), []);
        assert!(!is_closed(&mut silent[0]));
        wire.clock.advance(Duration::from_secs(2));
        wire.hear();
        assert!(silent[..32].iter_mut().all(is_closed), "those that were let in");
        wire.clock.advance(Duration::from_secs(2));
        assert!(wire.guest.with_device(|vsock| vsock.connections()) == 1);
        assert!(!is_closed(&mut late));
    }
}

#[test]
fn a_guest_that_refuses_closes_the_socket() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "refuse");
        let mut stream = wire.connect(b"CONNECT 22\n");
        let host = wire.hear()[0].src_port;
        wire.send(&Ports { guest: 22, host, ..A }.packet(RST));
        assert!(is_closed(&mut stream));
    }
}

#[test]
fn the_guest_connects_to_the_path_with_its_port() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "guest");
        wire.send(&A.packet(REQUEST));
        assert_eq!(wire.hear()[0].op, RST);
        let listener = wire.listen("_80");
        let mut stream = wire.open(A, &listener);
        wire.send(&A.data(b"GET /"));
        assert_eq!(read(&mut stream, 5), b"GET /");
        stream.write_all(b"200").unwrap();
        assert_eq!(wire.hear()[0].data, b"200");
        assert_eq!(
            wire.guest.with_device(|vsock| vsock.host_failures().count),
            0,
            "nobody there is no failure"
        );
    }
}

#[test]
fn both_sides_half_close_and_what_was_in_flight_arrives() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "half");
        let listener = wire.listen("_80");
        let mut stream = wire.open(A, &listener);
        wire.send(&A.data(&[1; 1000]));
        wire.send(&Packet {
            flags: NO_MORE_SEND,
            ..A.packet(SHUTDOWN)
        });
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, [1; 1000]);
        stream.write_all(&[2; 1000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let heard = wire.hear();
        assert_eq!(heard[0].data, [2; 1000]);
        assert_eq!((heard[1].op, heard[1].flags), (SHUTDOWN, NO_MORE_SEND));
        wire.send(&Packet {
            flags: NO_MORE_RECEIVE,
            ..A.packet(SHUTDOWN)
        });
        assert_eq!(wire.hear()[0].op, RST);
    }
}

#[test]
fn a_socket_that_closes_is_shut_down_both_ways() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "close");
        let listener = wire.listen("_80");
        let mut stream = wire.open(A, &listener);
        stream.write_all(b"last").unwrap();
        drop(stream);
        let heard = wire.hear();
        assert_eq!(heard[0].data, b"last");
        assert_eq!(
            (heard[1].op, heard[1].flags),
            (SHUTDOWN, NO_MORE_SEND | NO_MORE_RECEIVE)
        );
    }
}

#[test]
fn a_socket_that_closes_after_it_half_closed_is_noticed() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "later");
        let listener = wire.listen("_80");
        let stream = wire.open(A, &listener);
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(wire.hear()[0].flags, NO_MORE_SEND);
        drop(stream);
        assert_eq!(wire.hear()[0].flags, NO_MORE_RECEIVE);
    }
}

#[test]
fn a_megabyte_goes_both_ways_at_once_through_small_buffers() {
    for bus in BUSES {
        let options = VsockOptions {
            buf_alloc: 16 << 10,
            ..VsockOptions::default()
        };
        let mut wire = Wire::with(bus, "bulk", options);
        let listener = wire.listen("_80");
        let mut stream = wire.open(A, &listener);
        stream.set_nonblocking(true).unwrap();
        const TOTAL: usize = 1 << 20;
        let data = |seed: usize| (0..TOTAL).map(|byte| (byte * seed / 7) as u8).collect::<Vec<u8>>();
        let (down, up) = (data(3), data(5));
        let (mut written, mut sent) = (0, 0);
        let (mut got, mut heard) = (Vec::<u8>::new(), Vec::<u8>::new());
        let mut forwarded = 0_u32;
        let mut idle = 0;
        while got.len() < TOTAL || heard.len() < TOTAL {
            let before = (written, sent, got.len(), heard.len());
            if let Ok(len) = stream.write(&down[written..(written + 10_000).min(TOTAL)]) {
                written += len;
            }
            let mut part = [0; 7000];
            if let Ok(len) = stream.read(&mut part) {
                got.extend(&part[..len]);
            }
            for packet in wire.hear() {
                match packet.op {
                    RW => heard.extend(packet.data),
                    CREDIT_UPDATE | CREDIT_REQUEST => {}
                    other => panic!("{other}"),
                }
                forwarded = packet.fwd_cnt;
            }
            let credit = (16 << 10) - (sent as u32 - forwarded) as usize;
            let len = credit.min(3000).min(TOTAL - sent);
            if len != 0 {
                let packet = Packet {
                    fwd_cnt: heard.len() as u32,
                    ..A.data(&up[sent..sent + len])
                };
                wire.send(&packet);
                sent += len;
            } else {
                wire.send(&Packet {
                    fwd_cnt: heard.len() as u32,
                    ..A.packet(CREDIT_UPDATE)
                });
            }
            let progress = before != (written, sent, got.len(), heard.len());
            idle = if progress { 0 } else { idle + 1 };
            assert!(idle < 10, "neither side gets any further: {before:?}");
        }
        assert!(got == up && heard == down);
    }
}

// Seqpackets, in fragments.

const S: Ports = Ports {
    guest: 7,
    host: 9,
    kind: SEQPACKET,
};

fn fragment(data: &[u8], flags: u32) -> Vec<u8> {
    [&(data.len() as u32 | flags << 30).to_le_bytes()[..], data].concat()
}

#[test]
fn messages_and_records_go_over_a_stream_in_fragments() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "frames");
        let listener = wire.listen("_9_seqpacket");
        let mut stream = wire.open(S, &listener);
        wire.send(&Packet {
            flags: EOM,
            ..S.data(b"one")
        });
        wire.send(&S.data(b"tw"));
        wire.send(&Packet {
            flags: EOM | EOR,
            ..S.data(b"o")
        });
        wire.send(&Packet {
            flags: EOM,
            ..S.packet(RW)
        });
        let expected = [
            fragment(b"one", 1),
            fragment(b"tw", 0),
            fragment(b"o", 3),
            fragment(b"", 1),
        ]
        .concat();
        assert_eq!(read(&mut stream, expected.len()), expected);
        wire.hear();

        let bytes = [
            fragment(b"three", 1),
            fragment(b"", 3),
            fragment(&[4; 6000], 0),
            fragment(b"!", 1),
        ]
        .concat();
        // Headers and data come as they like.
        let (first, rest) = bytes.split_at(30);
        for part in first.chunks(3) {
            stream.write_all(part).unwrap();
            wire.poll();
        }
        stream.write_all(rest).unwrap();
        let heard = wire.hear();
        let mut messages = vec![(Vec::new(), 0)];
        for packet in heard {
            let (message, flags) = messages.last_mut().unwrap();
            message.extend(packet.data);
            *flags = packet.flags;
            if packet.flags != 0 {
                messages.push((Vec::new(), 0));
            }
        }
        messages.pop();
        let long = [vec![4; 6000], b"!".to_vec()].concat();
        assert!(messages == [(b"three".to_vec(), EOM), (vec![], EOM | EOR), (long, EOM)]);
    }
}

#[test]
fn a_message_longer_than_the_hosts_buffer_arrives_whole() {
    for bus in BUSES {
        let mut wire = Wire::with(
            bus,
            "long",
            VsockOptions {
                buf_alloc: 1 << 20,
                ..VsockOptions::default()
            },
        );
        let listener = wire.listen("_9_seqpacket");
        let mut stream = wire.open(S, &listener);
        stream.set_nonblocking(true).unwrap();
        let mut expected = Vec::new();
        for index in 0..20 {
            let data = vec![index as u8; 40_000];
            let flags = if index % 4 == 3 { EOM } else { 0 };
            wire.send(&Packet { flags, ..S.data(&data) });
            expected.extend(fragment(&data, flags));
        }
        let mut got = Vec::<u8>::new();
        let mut part = [0; 5000];
        while got.len() < expected.len() {
            match stream.read(&mut part) {
                Ok(len) => got.extend(&part[..len]),
                Err(_) => wire.poll(),
            }
        }
        assert!(got == expected);
    }
}

#[test]
fn the_host_asks_for_a_seqpacket_by_its_name() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "named");
        let _stream = wire.connect(b"CONNECT 22 SEQPACKET\n");
        let asked = wire.hear();
        assert_eq!((asked[0].op, asked[0].kind), (REQUEST, SEQPACKET));
    }
}

#[test]
fn a_listener_that_takes_nobody_holds_nobody_up() {
    for bus in BUSES {
        let mut wire = Wire::new(bus, "backlog");
        let _listener = wire.listen("_80");
        let mut ops = Vec::new();
        for guest in 0..300 {
            wire.send(&Ports { guest, ..A }.packet(REQUEST));
            ops.extend(wire.hear().iter().map(|packet| packet.op));
        }
        assert!(ops.contains(&RESPONSE) && ops.contains(&RST));
        assert_eq!(ops.len(), 300);
    }
}

#[test]
fn what_a_socket_takes_a_part_of_is_not_left_lying() {
    for bus in BUSES {
        let options = VsockOptions {
            buf_alloc: 4 << 20,
            ..VsockOptions::default()
        };
        let mut wire = Wire::with(bus, "part", options);
        let listener = wire.listen("_80");
        let mut stream = wire.open(A, &listener);
        let data: Vec<u8> = (0..40 * 50_000_u32).map(|byte| (byte / 9) as u8).collect();
        for part in data.chunks(50_000) {
            wire.send(&A.data(part));
        }
        stream.set_nonblocking(true).unwrap();
        let (mut got, mut part) = (Vec::<u8>::new(), vec![0; 100_000]);
        let mut idle = 0;
        while got.len() < data.len() {
            match stream.read(&mut part) {
                Ok(len) => {
                    got.extend(&part[..len]);
                    idle = 0;
                }
                Err(_) => {
                    wire.poll();
                    idle += 1;
                    assert!(idle < 10, "{} bytes have come", got.len());
                }
            }
        }
        assert!(got == data);
    }
}

#[test]
fn who_cannot_be_let_in_for_want_of_descriptors_waits_and_nothing_spins() {
    use crate::descriptors::{Hoard, on_own_table};
    use devisor::virtio::{QueueIndex, Wait};

    on_own_table(|| {
        let mut wire = Wire::new(Bus::Mmio, "descriptors");
        wire.poll();
        let _program = wire.connect(b"CONNECT 22\n");
        let hoard = Hoard::all();
        for _ in 0..3 {
            wire.guest.transport().process(QueueIndex(RX));
        }
        let later = Duration::from_millis(100);
        let waits = wire.guest.waits(RX);
        assert!(waits.contains(&Wait::Until(later)), "{waits:?}");
        let over = |wait: &Wait| matches!(wait, Wait::Readable(_));
        assert_eq!(
            waits.iter().filter(|wait| over(wait)).count(),
            1,
            "not for the listener"
        );
        let failures = wire.guest.with_device(|vsock| vsock.host_failures());
        assert_eq!(failures.count, 1);
        assert_eq!(failures.last.unwrap().raw_os_error(), Some(libc::EMFILE));
        drop(hoard);
        wire.poll();
        assert!(wire.hear().is_empty(), "it is not time");
        wire.clock.advance(later);
        assert_eq!(wire.hear()[0].op, REQUEST);
    });
}
