//! One port without control messages (sections 5.3.4 to 5.3.6).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
};

use devisor::virtio::{
    QueueIndex, Wait,
    console::{Console, ConsoleOptions, Interest, MemoryPeer, Peer, Port, Size, Unheard},
};
use vm_memory::VolatileSlice;

use crate::{
    machine::{BUSES, Bus, Machine},
    ring::{readable, writable},
    support::*,
};

#[test]
fn what_the_guest_puts_out_reaches_the_peer_in_order() {
    for bus in BUSES {
        let (mut guest, peer) = single(bus);
        guest.send(TX, &[b"Linux ", b"version"]);
        guest.send(TX, &[b" 6"]);
        guest.run();
        assert_eq!(peer.output(), b"Linux version 6");
        assert_eq!(guest.used(TX), 2);
    }
}

#[test]
fn what_is_typed_fills_the_guests_buffers_as_far_as_it_goes() {
    for bus in BUSES {
        let (mut guest, peer) = single(bus);
        guest.room(RX, 4);
        guest.room(RX, 16);
        guest.run();
        assert!(guest.received(RX).is_empty());
        peer.type_in(b"root\nls");
        guest.run();
        assert_eq!(guest.received(RX), [&b"root"[..], b"\nls"]);
    }
}

#[test]
fn input_waits_for_room() {
    for bus in BUSES {
        let (mut guest, peer) = single(bus);
        peer.type_in(b"early");
        guest.run();
        guest.room(RX, 16);
        guest.run();
        assert_eq!(guest.received(RX), [b"early"]);
    }
}

#[test]
fn a_peer_without_room_takes_the_rest_later_and_nothing_twice() {
    for bus in BUSES {
        let peer = MemoryPeer::new(5);
        let console = Console::single(Port::console(peer.clone())).unwrap();
        let mut guest = Machine::new(bus, console, 0);
        guest.send(TX, &[b"0123", b"456789"]);
        guest.run();
        assert_eq!(guest.used(TX), 0);
        assert_eq!(peer.output(), b"01234");
        guest.run();
        assert_eq!(guest.used(TX), 1);
        assert_eq!(peer.output(), b"56789");
    }
}

/// Takes so many bytes of each call, and panics in the one of this number.
struct Panics {
    peer: MemoryPeer,
    takes: usize,
    calls: AtomicU32,
    panics: u32,
}

impl Peer for Panics {
    fn read(&self, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        assert_ne!(self.calls.fetch_add(1, SeqCst) + 1, self.panics, "as told");
        let mut taken = 0;
        for slice in data {
            let part = slice.subslice(0, slice.len().min(self.takes - taken)).unwrap();
            taken += self.peer.write(&[part])?;
        }
        Ok(taken)
    }

    fn wait(&self, _: Interest) -> Option<Wait> {
        None
    }
}

#[test]
fn a_peer_that_panics_gets_what_it_has_not_taken_and_nothing_twice() {
    for bus in BUSES {
        for (takes, panics) in [(15, 2), (4, 2), (4, 3), (4, 5), (30, 1)] {
            for chains in [
                &[&b"0123456789"[..]][..],
                &[b"0123456789", b"abcdefghij", b"ABCDEFGHIJ"],
            ] {
                let peer = MemoryPeer::new(1 << 16);
                let console = Console::single(Port::console(Panics {
                    peer: peer.clone(),
                    takes,
                    calls: AtomicU32::new(0),
                    panics,
                }));
                let mut guest = Machine::new(bus, console.unwrap(), 0);
                for chain in chains {
                    guest.send(TX, &[chain]);
                }
                for _ in 0..3 {
                    // A driver that kicks.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| guest.run()));
                }
                guest.run();
                assert_eq!(guest.used(TX), chains.len());
                assert_eq!(peer.output(), chains.concat(), "{takes} a call, {panics}");
            }
        }
    }
}

#[test]
fn a_console_without_a_listener_does_not_hold_the_guest_and_keeps_the_last_of_it() {
    for bus in BUSES {
        let peer = MemoryPeer::new(1 << 16);
        peer.open(false);
        let port = Port {
            unheard: Unheard::Keep(2000),
            ..Port::console(peer.clone())
        };
        let mut guest = Machine::new(bus, Console::single(port).unwrap(), 0);
        guest.send(TX, &[&[b'a'; 1500]]);
        guest.send(TX, &[&[b'b'; 1500]]);
        guest.run();
        assert_eq!(guest.used(TX), 2);
        peer.open(true);
        guest.run();
        let output = peer.output();
        assert_eq!(output.len(), 2000);
        assert!(output.ends_with(&[b'b'; 1500]) && output.starts_with(b"a"));
    }
}

#[test]
fn an_output_that_waits_stays_with_the_guest() {
    for bus in BUSES {
        let peer = MemoryPeer::new(1 << 16);
        peer.open(false);
        let port = Port {
            unheard: Unheard::Wait,
            ..Port::console(peer.clone())
        };
        let mut guest = Machine::new(bus, Console::single(port).unwrap(), 0);
        guest.send(TX, &[b"later"]);
        guest.run();
        assert_eq!(guest.used(TX), 0);
        peer.open(true);
        guest.run();
        assert_eq!((guest.used(TX), peer.output()), (1, b"later".to_vec()));
    }
}

// Features and configuration space.

#[test]
fn the_configuration_shows_what_is_offered_and_zeros_otherwise() {
    for bus in BUSES {
        let size = Size { cols: 132, rows: 50 };
        for (options, features, bytes) in [
            (
                ConsoleOptions {
                    emergency_write: false,
                    ..Default::default()
                },
                0,
                [0; 12],
            ),
            (
                ConsoleOptions {
                    size: Some(size),
                    ..Default::default()
                },
                F_SIZE | F_EMERG_WRITE,
                [132, 0, 50, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            (
                ConsoleOptions {
                    max_ports: Some(7),
                    ..Default::default()
                },
                F_MULTIPORT | F_EMERG_WRITE,
                [0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
            ),
        ] {
            let guest = Machine::cold(bus, Console::new(options).unwrap());
            assert_eq!(guest.offered() & 0xff, features);
            assert_eq!(guest.read_config(0, 4), bytes[..4]);
            assert_eq!(guest.read_config(4, 8), bytes[4..]);
        }
    }
}

#[test]
fn a_new_size_is_a_change_of_the_configuration() {
    for bus in BUSES {
        let options = ConsoleOptions {
            size: Some(Size { cols: 80, rows: 25 }),
            ..Default::default()
        };
        let console = Console::new(options).unwrap();
        let ports = console.ports();
        let guest = Machine::new(bus, console, F_SIZE);
        let before = guest.config_generation();
        ports.resize(0, Size { cols: 100, rows: 40 }).unwrap();
        assert_ne!(guest.config_generation(), before);
        assert_eq!(guest.read_config(0, 4), [100, 0, 40, 0]);
        ports.resize(0, Size { cols: 100, rows: 40 }).unwrap();
        let again = guest.config_generation();
        assert_eq!(guest.config_generation(), again);
    }
}

#[test]
fn an_emergency_write_works_before_the_driver_has_come_and_takes_the_lower_byte() {
    for bus in BUSES {
        let peer = MemoryPeer::new(64);
        let guest = Machine::cold(bus, Console::single(Port::console(peer.clone())).unwrap());
        guest.write_config(8, &0x1234_5641_u32.to_le_bytes());
        guest.write_config(8, b"B");
        assert_eq!(peer.output(), b"AB");
        guest.set_status(1);
        guest.set_status(3);
        guest.write_config(8, &[b'C', 0]);
        assert_eq!(peer.output(), b"C");
        // Neighbours mean nothing.
        guest.write_config(9, &[b'D', 0, 0]);
        guest.write_config(0, &[b'E'; 8]);
        assert_eq!(peer.output(), b"");
    }
}

#[test]
fn without_the_feature_an_emergency_write_is_nothing() {
    for bus in BUSES {
        let peer = MemoryPeer::new(64);
        let console = Console::new(ConsoleOptions {
            emergency_write: false,
            ..Default::default()
        })
        .unwrap();
        console.ports().plug(0, Port::console(peer.clone())).unwrap();
        let guest = Machine::cold(bus, console);
        guest.write_config(8, b"A");
        assert_eq!(peer.output(), b"");
    }
}

#[test]
fn emergency_writes_that_the_peer_has_no_room_for_are_kept() {
    for bus in BUSES {
        let peer = MemoryPeer::new(2);
        let guest = Machine::new(
            bus,
            Console::single(Port::console(peer.clone())).unwrap(),
            F_EMERG_WRITE,
        );
        for byte in b"panic" {
            guest.write_config(8, &[*byte]);
        }
        let mut output = peer.output();
        for _ in 0..8 {
            guest.run();
            output.extend(peer.output());
        }
        assert_eq!(output, b"panic");
    }
}

// Hostile drivers.

#[test]
fn a_chain_with_the_wrong_direction_costs_itself_alone() {
    for bus in BUSES {
        let (mut guest, peer) = single(bus);
        peer.type_in(b"in");
        let at = guest.place(TX, 64);
        guest.fill(at, b"out");
        guest.offer(TX, &[readable(at, 3), writable(at, 3)]);
        guest.offer(TX, &[writable(at, 3)]);
        guest.offer(TX, &[readable(at, 3)]);
        guest.offer(RX, &[readable(at, 16)]);
        guest.offer(RX, &[readable(at, 16), writable(at + 16, 16)]);
        guest.offer(RX, &[writable(at, 0)]);
        guest.offer(RX, &[writable(at + 32, 16)]);
        guest.run();
        assert_eq!(peer.output(), b"out");
        assert_eq!((guest.counters(TX).requests, guest.counters(TX).malformed), (3, 2));
        assert_eq!((guest.counters(RX).requests, guest.counters(RX).malformed), (4, 3));
        assert_eq!(guest.bytes(at + 32, 2), b"in");
        assert_eq!(guest.transport().status(), 0xf);
    }
}

#[test]
fn an_empty_output_is_used_and_says_nothing() {
    for bus in BUSES {
        let (mut guest, peer) = single(bus);
        let at = guest.place(TX, 16);
        guest.offer(TX, &[readable(at, 0)]);
        guest.run();
        assert_eq!((guest.used(TX), peer.output()), (1, vec![]));
    }
}

#[test]
fn gibibytes_of_output_in_one_chain_hold_nobody_up() {
    for bus in BUSES {
        let peer = MemoryPeer::new(1 << 16);
        peer.open(false);
        let mut guest = Machine::new(bus, Console::single(Port::console(peer.clone())).unwrap(), 0);
        // The same memory, again and again.
        let buffers: Vec<_> = (0..15).map(|_| readable(0, 16 << 20)).collect();
        guest.offer(TX, &buffers);
        guest.run();
        assert_eq!(guest.used(TX), 1);
        peer.open(true);
        guest.offer(TX, &buffers);
        for _ in 0..40 {
            guest.run();
            peer.output();
        }
        assert_eq!(guest.used(TX), 0, "only as much as the peer takes");
        assert_eq!(guest.transport().status(), 0xf);
    }
}

#[test]
fn without_multiport_the_other_queues_are_dead() {
    for bus in BUSES {
        let options = ConsoleOptions {
            max_ports: Some(2),
            ..Default::default()
        };
        let peer = MemoryPeer::new(1 << 10);
        let console = Console::new(options).unwrap();
        console.ports().plug(0, Port::console(peer.clone())).unwrap();
        let mut guest = Machine::new(bus, console, 0);
        guest.room(CONTROL_RX, 64);
        guest.say(0, DEVICE_READY, 1);
        guest.send(tx(1), &[b"x"]);
        guest.send(TX, &[b"y"]);
        guest.run();
        assert_eq!(
            [guest.used(CONTROL_RX), guest.used(CONTROL_TX), guest.used(tx(1))],
            [0, 0, 0]
        );
        assert_eq!(peer.output(), b"y");
    }
}

#[test]
fn output_goes_on_after_a_reset() {
    for bus in BUSES {
        let (mut guest, peer) = single(bus);
        guest.send(TX, &[b"one"]);
        guest.run();
        guest.set_status(0);
        assert_eq!(guest.transport().status(), 0);
        guest.start(0);
        guest.send(TX, &[b"two"]);
        guest.run();
        assert_eq!(peer.output(), b"onetwo");
    }
}

/// A file on a full disk: it stays open, and takes nothing until there is room.
struct Full(MemoryPeer, Arc<AtomicBool>);

impl Peer for Full {
    fn read(&self, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        match self.1.load(SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.0.write(data),
        }
    }

    fn wait(&self, _: Interest) -> Option<Wait> {
        None
    }
}

fn full(bus: Bus) -> (Guest, MemoryPeer, Arc<AtomicBool>) {
    let (peer, is_full) = (MemoryPeer::new(64), Arc::new(AtomicBool::new(true)));
    let port = Port::console(Full(peer.clone(), Arc::clone(&is_full)));
    let guest = Machine::new(bus, Console::single(port).unwrap(), F_EMERG_WRITE);
    (guest, peer, is_full)
}

#[test]
fn a_peer_that_fails_and_stays_holds_no_request() {
    for bus in BUSES {
        let (mut guest, peer, is_full) = full(bus);
        // One look for all of them.
        let ring = usize::from(TX);
        for _ in 0..8 {
            let at = guest.place(TX, 4);
            guest.rings[ring].request(&[readable(at, 4)]);
        }
        guest.transport().process(QueueIndex(TX));
        assert_eq!(guest.used(TX), 8);
        assert_eq!(guest.with_device(|console| console.host_failures().count), 8);
        is_full.store(false, SeqCst);
        guest.send(TX, &[b"back"]);
        guest.run();
        assert_eq!(peer.output(), b"back");
    }
}

#[test]
fn what_a_peer_that_stays_has_refused_of_an_emergency_does_not_hold_the_console() {
    for bus in BUSES {
        let (mut guest, peer, is_full) = full(bus);
        guest.write_config(8, &[b'!', 0, 0, 0]);
        guest.send(TX, &[b"lost"]);
        guest.run();
        assert_eq!(guest.used(TX), 1);
        is_full.store(false, SeqCst);
        guest.send(TX, &[b"back"]);
        guest.run();
        assert_eq!(peer.output(), b"back");
    }
}

/// Counts calls.
struct Counted(MemoryPeer, Arc<[AtomicU32; 2]>);

impl Peer for Counted {
    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.1[0].fetch_add(1, SeqCst);
        self.0.read(room)
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.1[1].fetch_add(1, SeqCst);
        self.0.write(data)
    }

    fn wait(&self, interest: Interest) -> Option<Wait> {
        self.0.wait(interest)
    }
}

#[test]
fn what_is_there_at_once_is_one_call_of_the_peer_and_lengths_are_right() {
    for bus in BUSES {
        let (peer, calls) = (MemoryPeer::new(1 << 12), Arc::<[AtomicU32; 2]>::default());
        let port = Port::console(Counted(peer.clone(), Arc::clone(&calls)));
        let mut guest = Machine::new(bus, Console::single(port).unwrap(), 0);
        let text = guest.place(TX, 16);
        guest.fill(text, b"0123456789abcdef");
        for piece in 0..8 {
            guest.rings[usize::from(TX)].request(&[readable(text + 2 * piece, 2)]);
        }
        guest.transport().process(QueueIndex(TX));
        assert_eq!((guest.used(TX), calls[1].load(SeqCst)), (8, 1));
        assert_eq!(peer.output(), b"0123456789abcdef");
        // The first burst shows how much is to be expected.
        for burst in 0..3 {
            calls[0].store(0, SeqCst);
            assert_eq!(peer.type_in(b"0123456789abcd"), 14);
            let at: Vec<_> = (0..5).map(|_| guest.place(RX, 4)).collect();
            for at in &at {
                guest.rings[usize::from(RX)].request(&[writable(*at, 4)]);
            }
            guest.transport().process(QueueIndex(RX));
            let got = guest.received(RX);
            assert_eq!(got.concat(), b"0123456789abcd");
            assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4, 2]);
            if burst != 0 {
                // And that there is no more.
                assert!(calls[0].load(SeqCst) <= 3, "{calls:?}");
            }
            // The fifth stays for the next.
            peer.type_in(b"x");
            guest.transport().process(QueueIndex(RX));
            assert_eq!(guest.received(RX), [b"x"]);
        }
    }
}

#[test]
fn chains_that_the_peer_has_no_room_for_are_in_order_after_a_restore() {
    for bus in BUSES {
        let (mut guest, peer) = {
            let peer = MemoryPeer::new(10);
            let console = Console::single(Port::console(peer.clone())).unwrap();
            (Machine::new(bus, console, 0), peer)
        };
        let text = guest.place(TX, 24);
        guest.fill(text, b"0123456789abcdefghijklmn");
        for piece in 0..6 {
            guest.rings[usize::from(TX)].request(&[readable(text + 4 * piece, 4)]);
        }
        guest.transport().process(QueueIndex(TX));
        assert_eq!(guest.used(TX), 2);
        let mut output = peer.output();
        let next = Console::single(Port::console(peer.clone())).unwrap();
        let mut guest = guest.move_to(next);
        for _ in 0..3 {
            guest.run();
            output.extend(peer.output());
        }
        guest.run();
        assert_eq!(String::from_utf8_lossy(&output), "0123456789abcdefghijklmn");
        assert_eq!(guest.used(TX), 4);
        assert_eq!(guest.counters(TX).malformed, 0);
    }
}
