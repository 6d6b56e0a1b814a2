//! Several ports, and the control messages that tell of them (section 5.3.6.2).

use std::{
    io,
    sync::{Arc, OnceLock, Weak},
};

use devisor::{
    interrupt::Interrupt,
    virtio::{
        QueueIndex, VirtioTransport,
        console::{Console, ConsoleError, ConsoleOptions, MAX_NAME, MemoryPeer, Port, PortKind, ResizeOrder, Size},
    },
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    machine::{BUSES, Bus, Machine},
    ring::{readable, writable},
    support::*,
};

fn peer() -> MemoryPeer {
    MemoryPeer::new(1 << 16)
}

fn none() -> Vec<u8> {
    Vec::new()
}

#[test]
fn nothing_is_told_before_the_driver_is_ready_and_every_port_is_then() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        ports.plug(0, Port::console(peer())).unwrap();
        ports.plug(2, Port::generic("org.agent", peer())).unwrap();
        assert_eq!(guest.hear(), []);
        guest.say(0, DEVICE_READY, 1);
        assert_eq!(guest.hear(), [(0, DEVICE_ADD, 0, none()), (2, DEVICE_ADD, 0, none())]);
        // "MUST NOT specify a port which exists".
        guest.say(0, DEVICE_READY, 1);
        assert_eq!(guest.hear(), []);
    }
}

#[test]
fn a_driver_that_failed_hears_nothing() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        ports.plug(0, Port::console(peer())).unwrap();
        guest.say(0, DEVICE_READY, 0);
        assert_eq!(guest.hear(), []);
        guest.say(0, DEVICE_READY, 1);
        assert_eq!(guest.hear(), [(0, DEVICE_ADD, 0, none())]);
        guest.say(0, PORT_READY, 0);
        assert_eq!(guest.hear(), []);
        guest.say(0, PORT_READY, 1);
        assert_ne!(guest.hear(), []);
    }
}

#[test]
fn a_port_that_is_ready_is_told_what_it_is() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        let terminal = peer();
        terminal.resize(Size { cols: 80, rows: 25 });
        ports
            .plug(
                1,
                Port {
                    name: "tty".into(),
                    ..Port::console(terminal)
                },
            )
            .unwrap();
        ports.plug(3, Port::generic("org.agent", peer())).unwrap();
        guest.say(0, DEVICE_READY, 1);
        guest.hear();
        guest.ready(1);
        assert_eq!(
            guest.hear(),
            [
                (1, CONSOLE_PORT, 1, none()),
                (1, PORT_NAME, 1, b"tty".to_vec()),
                (1, PORT_OPEN, 1, none()),
                (1, RESIZE, 0, vec![80, 0, 25, 0]),
            ]
        );
        guest.ready(3);
        assert_eq!(
            guest.hear(),
            [(3, PORT_NAME, 1, b"org.agent".to_vec()), (3, PORT_OPEN, 1, none())]
        );
    }
}

#[test]
fn each_port_has_its_own_queues() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        let peers: Vec<_> = (0..4).map(|_| peer()).collect();
        for (index, peer) in (0..).zip(&peers) {
            ports
                .plug(index, Port::generic(format!("port{index}"), peer.clone()))
                .unwrap();
        }
        guest.say(0, DEVICE_READY, 1);
        guest.hear();
        for port in 0..4 {
            guest.ready(port);
            guest.say(port, PORT_OPEN, 1);
        }
        for (port, peer) in (0..4).zip(&peers) {
            let text = format!("of {port}");
            guest.send(tx(port), &[text.as_bytes()]);
            guest.room(rx(port), 16);
            guest.run();
            assert_eq!(peer.output(), text.as_bytes());
            peer.type_in(&[port as u8]);
            guest.run();
            assert_eq!(guest.received(rx(port)), [[port as u8]]);
        }
    }
}

#[test]
fn input_waits_until_the_guest_has_opened_its_end() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        let agent = peer();
        ports.plug(1, Port::generic("agent", agent.clone())).unwrap();
        guest.say(0, DEVICE_READY, 1);
        guest.hear();
        guest.ready(1);
        agent.type_in(b"hello");
        guest.room(rx(1), 16);
        guest.run();
        assert_eq!((guest.used(rx(1)), ports.is_guest_open(1)), (0, false));
        guest.say(1, PORT_OPEN, 1);
        assert!(ports.is_guest_open(1) && agent.is_guest_open());
        assert_eq!(guest.received(rx(1)), [b"hello"]);
        guest.say(1, PORT_OPEN, 0);
        assert!(!agent.is_guest_open());
        agent.type_in(b"again");
        guest.room(rx(1), 16);
        guest.run();
        assert_eq!(guest.used(rx(1)), 0);
    }
}

#[test]
fn the_driver_hears_who_comes_and_who_goes_and_of_a_change_both() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        let agent = peer();
        agent.open(false);
        ports.plug(1, Port::generic("agent", agent.clone())).unwrap();
        guest.say(0, DEVICE_READY, 1);
        guest.hear();
        guest.ready(1);
        assert_eq!(guest.hear(), [(1, PORT_NAME, 1, b"agent".to_vec())]);
        agent.open(true);
        assert_eq!(guest.hear(), [(1, PORT_OPEN, 1, none())]);
        agent.open(false);
        agent.open(true);
        assert_eq!(guest.hear(), [(1, PORT_OPEN, 0, none()), (1, PORT_OPEN, 1, none())]);
        agent.open(false);
        assert_eq!(guest.hear(), [(1, PORT_OPEN, 0, none())]);
    }
}

#[test]
fn messages_wait_for_buffers_and_none_is_lost() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        guest.say(0, DEVICE_READY, 1);
        for index in 0..4 {
            ports
                .plug(index, Port::generic(format!("port{index}"), peer()))
                .unwrap();
        }
        guest.run();
        let mut told = Vec::new();
        for _ in 0..12 {
            // One at a time, now and then one that is too short or not to be written.
            guest.room(CONTROL_RX, 7);
            let at = guest.place(CONTROL_RX, 64);
            guest.offer(CONTROL_RX, &[readable(at, 64)]);
            guest.room(CONTROL_RX, 64);
            guest.run();
            for bytes in guest.received(CONTROL_RX) {
                if let Some(port) = bytes.first() {
                    told.push((bytes[4], *port));
                    guest.ready((*port).into());
                }
            }
        }
        let of = |port: u8| {
            told.iter()
                .filter(|(_, other)| *other == port)
                .map(|(event, _)| *event)
                .collect::<Vec<_>>()
        };
        for port in 0..4 {
            assert_eq!(of(port), [DEVICE_ADD as u8, PORT_NAME as u8, PORT_OPEN as u8]);
        }
    }
}

#[test]
fn a_port_is_unplugged_and_another_one_plugged_in_its_place() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        let (old, new) = (peer(), peer());
        ports.plug(1, Port::generic("old", old.clone())).unwrap();
        guest.say(0, DEVICE_READY, 1);
        guest.hear();
        guest.ready(1);
        guest.say(1, PORT_OPEN, 1);
        guest.hear();
        assert_eq!(ports.unplug(1).unwrap().name, "old");
        ports.plug(1, Port::generic("new", new.clone())).unwrap();
        // What it says of the old port before it hears.
        guest.say(1, PORT_OPEN, 1);
        guest.send(tx(1), &[b"for the old"]);
        guest.run();
        assert_eq!(
            (old.output(), new.output(), new.is_guest_open()),
            (none(), none(), false)
        );
        assert!(!old.is_guest_open());
        assert_eq!(guest.used(tx(1)), 1);
        assert_eq!(
            guest.hear(),
            [(1, DEVICE_REMOVE, 0, none()), (1, DEVICE_ADD, 0, none())]
        );
        guest.ready(1);
        guest.say(1, PORT_OPEN, 1);
        assert_eq!(
            guest.hear(),
            [(1, PORT_NAME, 1, b"new".to_vec()), (1, PORT_OPEN, 1, none())]
        );
        guest.send(tx(1), &[b"for the new"]);
        guest.run();
        assert_eq!(new.output(), b"for the new");
    }
}

#[test]
fn a_port_that_goes_before_it_was_told_of_is_never_told_of() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        guest.say(0, DEVICE_READY, 1);
        ports.plug(1, Port::generic("short", peer())).unwrap();
        ports.unplug(1).unwrap();
        assert_eq!(guest.hear(), []);
    }
}

#[test]
fn output_that_waits_for_a_port_that_goes_is_given_back() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        let agent = peer();
        ports.plug(1, Port::generic("agent", agent.clone())).unwrap();
        guest.say(0, DEVICE_READY, 1);
        guest.hear();
        guest.ready(1);
        agent.open(false);
        guest.send(tx(1), &[b"waits"]);
        guest.run();
        assert_eq!(guest.used(tx(1)), 0);
        ports.unplug(1).unwrap();
        guest.run();
        assert_eq!(guest.used(tx(1)), 1);
    }
}

#[test]
fn a_new_size_is_told_to_each_console_in_either_order() {
    for bus in BUSES {
        for (resize_order, bytes) in [
            (ResizeOrder::ColumnsFirst, [100, 0, 30, 0]),
            (ResizeOrder::RowsFirst, [30, 0, 100, 0]),
        ] {
            let options = ConsoleOptions {
                max_ports: Some(2),
                size: Some(Size { cols: 80, rows: 25 }),
                resize_order,
                ..ConsoleOptions::default()
            };
            let console = Console::new(options).unwrap();
            let ports = console.ports();
            ports.plug(0, Port::console(peer())).unwrap();
            ports.plug(1, Port::generic("agent", peer())).unwrap();
            let mut guest = Machine::new(bus, console, F_MULTIPORT | F_SIZE);
            guest.say(0, DEVICE_READY, 1);
            guest.hear();
            guest.ready(0);
            guest.ready(1);
            guest.hear();
            let size = Size { cols: 100, rows: 30 };
            ports.resize(0, size).unwrap();
            // Of several, the last.
            ports.resize(0, Size { cols: 1, rows: 1 }).unwrap();
            ports.resize(0, size).unwrap();
            // A channel has no size.
            ports.resize(1, size).unwrap();
            assert_eq!(guest.hear(), [(0, RESIZE, 0, bytes.to_vec())]);
            assert_eq!(guest.read_config(0, 4), [100, 0, 30, 0]);
        }
    }
}

#[test]
fn a_terminal_is_asked_for_its_size_when_it_comes_and_when_the_embedder_says_so() {
    for bus in BUSES {
        let options = ConsoleOptions {
            size: Some(Size { cols: 80, rows: 25 }),
            ..ConsoleOptions::default()
        };
        let console = Console::new(options).unwrap();
        let (ports, terminal) = (console.ports(), peer());
        terminal.open(false);
        terminal.resize(Size { cols: 90, rows: 26 });
        ports.plug(0, Port::console(terminal.clone())).unwrap();
        let guest = Machine::new(bus, console, F_SIZE);
        assert_eq!(guest.read_config(0, 4), [80, 0, 25, 0]);
        terminal.open(true);
        guest.run();
        assert_eq!(guest.read_config(0, 4), [90, 0, 26, 0]);
        terminal.resize(Size { cols: 91, rows: 27 });
        ports.refresh_size(0).unwrap();
        assert_eq!(guest.read_config(0, 4), [91, 0, 27, 0]);
    }
}

// Hostile drivers, and embedders that are wrong.

#[test]
fn messages_that_are_none_change_nothing() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        ports.plug(0, Port::console(peer())).unwrap();
        guest.say(0, DEVICE_READY, 1);
        guest.hear();
        let bad = [
            // Not told of, not there, not possible.
            (1, PORT_READY, 1),
            (4, PORT_READY, 1),
            (u32::MAX, PORT_READY, 1),
            (0x1_0000, PORT_READY, 1),
            (0, PORT_OPEN, 1),
            (3, PORT_OPEN, 1),
            // What the device says.
            (0, DEVICE_ADD, 1),
            (0, DEVICE_REMOVE, 1),
            (0, CONSOLE_PORT, 1),
            (0, RESIZE, 1),
            (0, PORT_NAME, 1),
            (0, 8, 1),
            (0, 0xffff, 0xffff),
            // Values that mean nothing.
            (0, PORT_READY, 2),
            (0, DEVICE_READY, 2),
        ];
        for (port, event, value) in bad {
            guest.say(port, event, value);
        }
        let at = guest.place(CONTROL_TX, 64);
        guest.fill(at, &message(0, PORT_READY, 1));
        guest.offer(CONTROL_TX, &[readable(at, 7)]);
        guest.offer(CONTROL_TX, &[readable(at, 0)]);
        guest.offer(CONTROL_TX, &[readable(at, 8), writable(at + 8, 8)]);
        guest.offer(CONTROL_TX, &[writable(at, 8)]);
        guest.run();
        assert_eq!(guest.counters(CONTROL_TX).malformed, bad.len() as u64 + 4);
        assert_eq!(guest.hear(), []);
        guest.ready(0);
        guest.say(0, PORT_OPEN, 2);
        assert!(!ports.is_guest_open(0));
        // More than a message is one.
        guest.send(CONTROL_TX, &[&message(0, PORT_OPEN, 1), b"and so on"]);
        guest.run();
        assert!(ports.is_guest_open(0));
        assert_eq!(guest.transport().status(), 0xf);
    }
}

#[test]
fn a_flood_of_messages_leads_to_as_many_answers_as_there_is_to_say() {
    for bus in BUSES {
        let (mut guest, ports) = multiport(bus);
        ports.plug(0, Port::generic("one", peer())).unwrap();
        for _ in 0..1000 {
            guest.say(0, DEVICE_READY, 1);
            guest.say(0, PORT_READY, 1);
            guest.say(0, PORT_OPEN, 1);
        }
        assert_eq!(guest.hear().len(), 1);
        for _ in 0..1000 {
            guest.say(0, PORT_READY, 1);
        }
        assert_eq!(guest.hear().len(), 2);
    }
}

#[test]
fn what_an_embedder_asks_for_and_cannot_have_is_said() {
    let make = |max_ports, queue_size| {
        let options = ConsoleOptions {
            max_ports,
            queue_size,
            ..ConsoleOptions::default()
        };
        Console::new(options)
    };
    assert_eq!(make(Some(0), 8).err(), Some(ConsoleError::MaxPorts(0)));
    assert_eq!(make(Some(513), 8).err(), Some(ConsoleError::MaxPorts(513)));
    assert_eq!(make(None, 6).err(), Some(ConsoleError::QueueSize(6)));
    let single = make(None, 8).unwrap().ports();
    assert_eq!(
        single.plug(0, Port::generic("x", peer())),
        Err(ConsoleError::NotAConsole)
    );
    assert_eq!(
        single.plug(1, Port::console(peer())),
        Err(ConsoleError::NoSuchPort { port: 1, last: 0 })
    );
    let ports = make(Some(512), 8).unwrap().ports();
    assert_eq!(ports.plug(511, Port::generic("x", peer())), Ok(()));
    assert_eq!(
        ports.plug(511, Port::generic("y", peer())),
        Err(ConsoleError::Taken(511))
    );
    assert_eq!(ports.unplug(3).err(), Some(ConsoleError::Empty(3)));
    assert_eq!(ports.plug(0, Port::generic("a\0b", peer())), Err(ConsoleError::Name(3)));
    let long = "x".repeat(MAX_NAME + 1);
    assert_eq!(ports.plug(0, Port::generic(long, peer())), Err(ConsoleError::Name(257)));
    assert!(ports.resize(512, Size::default()).is_err() && ports.refresh_size(512).is_err());
    assert_eq!(ports.unplug(511).unwrap().kind, PortKind::Generic);
}

/// A processor of the guest's, whose driver answers at once.
#[derive(Default)]
struct Quick(OnceLock<Weak<dyn VirtioTransport>>);

impl Interrupt for Quick {
    fn trigger(&self) -> io::Result<()> {
        if let Some(device) = self.0.get().and_then(Weak::upgrade) {
            device.process(QueueIndex(CONTROL_TX));
        }
        Ok(())
    }
}

#[test]
fn a_driver_may_answer_as_soon_as_it_sees_a_message() {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap());
    let console = Console::new(ConsoleOptions {
        max_ports: Some(1),
        ..ConsoleOptions::default()
    })
    .unwrap();
    console.ports().plug(0, Port::console(peer())).unwrap();
    let quick = Arc::new(Quick::default());
    let mut guest = Machine::with_interrupt(Bus::Mmio, console, memory, Arc::clone(&quick) as _);
    guest.start(F_MULTIPORT);
    // VIRTQ_AVAIL_F_NO_INTERRUPT: the only interrupt is that of the message.
    let flags = guest.rings[usize::from(CONTROL_TX)].layout.driver_area;
    guest.fill(flags, &[1, 0]);
    guest.say(0, DEVICE_READY, 1);
    // PORT_READY is there, and the device is told when DEVICE_ADD is.
    let at = guest.place(CONTROL_TX, 8);
    guest.fill(at, &message(0, PORT_READY, 1));
    guest.rings[usize::from(CONTROL_TX)].request(&[readable(at, 8)]);
    let device: Weak<dyn VirtioTransport> = Arc::downgrade(&guest.shared());
    quick.0.set(device).ok().unwrap();
    assert_eq!(
        guest.hear()[..2],
        [(0, DEVICE_ADD, 0, none()), (0, CONSOLE_PORT, 1, none())]
    );
}
