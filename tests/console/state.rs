//! Save, restore and reset, in the middle of traffic.

use devisor::virtio::{
    DeviceState, VirtioDevice,
    console::{Console, ConsoleOptions, ConsoleState, MemoryPeer, Port, PortKind, PortState, Ports, Size},
};

use crate::{
    machine::{BUSES, Bus, Machine},
    support::*,
};

fn four() -> (Console, Ports) {
    let options = ConsoleOptions {
        max_ports: Some(4),
        ..ConsoleOptions::default()
    };
    let console = Console::new(options).unwrap();
    let ports = console.ports();
    (console, ports)
}

fn state(guest: &Guest) -> ConsoleState {
    match guest.device_state() {
        DeviceState::Console(state) => state,
        other => panic!("{other:?}"),
    }
}

/// A guest with a console and an agent that are open.
fn running(bus: Bus, agent: &MemoryPeer) -> Guest {
    let (mut guest, ports) = multiport(bus);
    ports.plug(0, Port::console(MemoryPeer::new(1 << 16))).unwrap();
    ports.plug(1, Port::generic("agent", agent.clone())).unwrap();
    guest.say(0, DEVICE_READY, 1);
    guest.hear();
    guest.ready(0);
    guest.ready(1);
    guest.say(1, PORT_OPEN, 1);
    guest.hear();
    guest
}

#[test]
fn a_chain_that_is_half_sent_goes_on_where_it_was() {
    for bus in BUSES {
        let (here, there) = (MemoryPeer::new(4), MemoryPeer::new(1 << 16));
        let mut guest = Machine::new(bus, Console::single(Port::console(here.clone())).unwrap(), 0);
        guest.send(TX, &[b"01", b"23456789"]);
        guest.send(TX, &[b"next"]);
        guest.run();
        assert_eq!(here.output(), b"0123");
        let mut guest = guest.move_to(Console::single(Port::console(there.clone())).unwrap());
        assert_eq!(there.output(), b"456789next");
        assert_eq!(guest.used(TX), 2);
    }
}

#[test]
fn output_that_was_taken_and_not_delivered_is_delivered_there() {
    for bus in BUSES {
        let (here, there) = (MemoryPeer::new(64), MemoryPeer::new(64));
        here.open(false);
        let mut guest = Machine::new(bus, Console::single(Port::console(here)).unwrap(), 0);
        guest.send(TX, &[b"kept"]);
        guest.run();
        assert_eq!(guest.used(TX), 1);
        let _guest = guest.move_to(Console::single(Port::console(there.clone())).unwrap());
        assert_eq!(there.output(), b"kept");
    }
}

#[test]
fn the_driver_hears_nothing_twice_and_what_it_was_not_told_yet() {
    for bus in BUSES {
        let agent = MemoryPeer::new(64);
        let guest = running(bus, &agent);
        let (device, ports) = four();
        ports.plug(0, Port::console(MemoryPeer::new(64))).unwrap();
        ports.plug(1, Port::generic("agent", agent.clone())).unwrap();
        ports.plug(2, Port::generic("more", MemoryPeer::new(64))).unwrap();
        let mut guest = guest.move_to(device);
        assert_eq!(guest.hear(), [(2, DEVICE_ADD, 0, vec![])]);
        assert!(ports.is_guest_open(1));
        agent.type_in(b"x");
        guest.room(rx(1), 4);
        guest.run();
        assert_eq!(guest.received(rx(1)), [b"x"]);
    }
}

#[test]
fn a_port_that_is_not_there_any_more_is_removed_and_one_that_is_another_is_exchanged() {
    for bus in BUSES {
        let guest = running(bus, &MemoryPeer::new(64));
        let (device, ports) = four();
        ports.plug(1, Port::generic("other", MemoryPeer::new(64))).unwrap();
        let mut guest = guest.move_to(device);
        assert_eq!(
            guest.hear(),
            [
                (0, DEVICE_REMOVE, 0, vec![]),
                (1, DEVICE_REMOVE, 0, vec![]),
                (1, DEVICE_ADD, 0, vec![])
            ]
        );
    }
}

#[test]
fn somebody_who_is_not_there_any_more_has_gone() {
    for bus in BUSES {
        let guest = running(bus, &MemoryPeer::new(64));
        let (device, ports) = four();
        let agent = MemoryPeer::new(64);
        agent.open(false);
        ports.plug(0, Port::console(MemoryPeer::new(64))).unwrap();
        ports.plug(1, Port::generic("agent", agent)).unwrap();
        let mut guest = guest.move_to(device);
        assert_eq!(guest.hear(), [(1, PORT_OPEN, 0, vec![])]);
    }
}

#[test]
fn a_saved_state_is_the_same_where_it_was_restored() {
    for bus in BUSES {
        let agent = MemoryPeer::new(64);
        let guest = running(bus, &agent);
        let before = state(&guest);
        let (device, ports) = four();
        ports.plug(0, Port::console(MemoryPeer::new(1 << 16))).unwrap();
        ports.plug(1, Port::generic("agent", agent)).unwrap();
        assert_eq!(state(&guest.move_to(device)), before);
    }
}

#[test]
fn a_reset_forgets_the_driver_and_keeps_what_it_has_put_out() {
    for bus in BUSES {
        let agent = MemoryPeer::new(64);
        let mut guest = running(bus, &agent);
        guest.set_status(0);
        assert!(!agent.is_guest_open());
        guest.start(F_MULTIPORT);
        assert_eq!(guest.hear(), []);
        guest.say(0, DEVICE_READY, 1);
        assert_eq!(guest.hear(), [(0, DEVICE_ADD, 0, vec![]), (1, DEVICE_ADD, 0, vec![])]);

        let peer = MemoryPeer::new(64);
        peer.open(false);
        let mut guest = Machine::new(bus, Console::single(Port::console(peer.clone())).unwrap(), 0);
        guest.send(TX, &[b"last words"]);
        guest.run();
        guest.set_status(0);
        guest.start(0);
        peer.open(true);
        guest.run();
        assert_eq!(peer.output(), b"last words");
    }
}

#[test]
fn a_chain_that_is_half_sent_when_the_driver_resets_is_not_gone_on_with() {
    for bus in BUSES {
        let peer = MemoryPeer::new(4);
        let mut guest = Machine::new(bus, Console::single(Port::console(peer.clone())).unwrap(), 0);
        guest.send(TX, &[b"0123456789"]);
        guest.run();
        guest.set_status(0);
        guest.start(0);
        assert_eq!(peer.output(), b"0123");
        guest.send(TX, &[b"abcd"]);
        guest.run();
        assert_eq!(peer.output(), b"abcd");
    }
}

#[test]
fn states_that_contradict_themselves_or_the_device_are_refused() {
    let (mut device, ports) = four();
    ports.plug(0, Port::console(MemoryPeer::new(8))).unwrap();
    let DeviceState::Console(good) = device.save() else {
        panic!("it is a console")
    };
    let before = device.save();
    let mut refuse = |change: &dyn Fn(&mut ConsoleState)| {
        let mut state = good.clone();
        change(&mut state);
        let error = device
            .restore(&DeviceState::Console(state))
            .expect_err("a state that cannot be");
        assert_eq!(device.save(), before);
        error.to_string()
    };
    let told = |kind| Some((kind, "name".to_string()));
    let console = || PortState {
        told: told(PortKind::Console),
        ready: true,
        ..PortState::default()
    };
    type Change = Box<dyn Fn(&mut ConsoleState)>;
    let port = |port: PortState| -> Change { Box::new(move |state: &mut ConsoleState| state.ports[0] = port.clone()) };
    let changes: Vec<(Change, &str)> = vec![
        (Box::new(|state| state.max_ports = None), "max_ports"),
        (Box::new(|state| state.max_ports = Some(3)), "max_ports"),
        (Box::new(|state| _ = state.ports.pop()), "4 ports"),
        (
            port(PortState {
                ready: true,
                ..PortState::default()
            }),
            "never announced",
        ),
        (
            port(PortState {
                guest_open: true,
                ..PortState::default()
            }),
            "never announced",
        ),
        (
            port(PortState {
                open_told: true,
                ..PortState::default()
            }),
            "never announced",
        ),
        (
            port(PortState {
                console_told: true,
                told: told(PortKind::Generic),
                ..console()
            }),
            "no console",
        ),
        (
            port(PortState {
                name_told: true,
                told: Some((PortKind::Console, String::new())),
                ..console()
            }),
            "without a name",
        ),
        (
            port(PortState {
                was_closed: true,
                ..console()
            }),
            "never open",
        ),
        (
            port(PortState {
                resize_owed: true,
                size: Some(Size::default()),
                ..console()
            }),
            "size is owed",
        ),
        (
            port(PortState {
                resize_owed: true,
                console_told: true,
                ..console()
            }),
            "size is owed",
        ),
        (
            port(PortState {
                told: Some((PortKind::Console, "x".repeat(257))),
                ..console()
            }),
            "too long",
        ),
        (
            port(PortState {
                told: Some((PortKind::Console, "\0".into())),
                ..console()
            }),
            "too long",
        ),
        (
            port(PortState {
                backlog: vec![0; (64 << 10) + 1],
                ..PortState::default()
            }),
            "more output",
        ),
        // Nothing is plugged in there, and so little is kept.
        (Box::new(|state| state.ports[1].backlog = vec![0; 1025]), "more output"),
    ];
    for (change, why) in changes {
        let error = refuse(&*change);
        assert!(error.contains(why), "{error}: {why}");
    }
    let mut single = Console::single(Port::console(MemoryPeer::new(8))).unwrap();
    let DeviceState::Console(mut state) = single.save() else {
        panic!("it is a console")
    };
    state.device_ready = true;
    assert!(single.restore(&DeviceState::Console(state.clone())).is_err());
    state.device_ready = false;
    state.ports[0] = console();
    assert!(single.restore(&DeviceState::Console(state)).is_err());
    assert!(single.restore(&DeviceState::None).is_err());
}

#[test]
fn the_peer_there_hears_that_the_guest_has_its_end_open() {
    for bus in BUSES {
        let (here, there, other) = (MemoryPeer::new(64), MemoryPeer::new(64), MemoryPeer::new(64));
        let guest = running(bus, &here);
        let state = guest.save();
        let (device, ports) = four();
        ports.plug(0, Port::console(MemoryPeer::new(64))).unwrap();
        ports.plug(1, Port::generic("agent", there.clone())).unwrap();
        let guest = guest.try_move(device, &state).unwrap();
        assert!(there.is_guest_open());
        // What the guest knows nothing of, it has not opened.
        let (device, ports) = four();
        ports.plug(1, Port::generic("other", other.clone())).unwrap();
        let _guest = guest.try_move(device, &state).unwrap();
        assert!(!other.is_guest_open());
    }
}
