//! Save and restore in the middle of traffic.

use std::sync::Arc;

use devisor::virtio::{
    DeviceState, VirtioTransport,
    net::{
        Coalescing, Header, Mac, Net, NetFrame, NetOptions, NetState, Offloads, Steering, Switch, SwitchOptions, Wire,
    },
    transport::{RestoreError, SavedDevice},
};

use crate::{guest::*, ring::writable};

const ALL: u64 = CTRL_VQ
    | CTRL_RX
    | CTRL_RX_EXTRA
    | CTRL_VLAN
    | CTRL_MAC_ADDR
    | GUEST_ANNOUNCE
    | STATUS
    | MAC
    | NOTF_COAL
    | MRG_RXBUF
    | GUEST_CSUM
    | GUEST_TSO4
    | CTRL_GUEST_OFFLOADS
    | MQ
    | RSS
    | HASH_REPORT;

/// What is changed in a state, and how.
type Change = (&'static str, fn(&mut NetState));

fn several() -> NetOptions {
    NetOptions { pairs: 2, ..options() }
}

fn wire() -> Arc<Wire> {
    Arc::new(Wire::new(64).with_offloads(Offloads::ALL, Offloads::ALL))
}

fn net(state: &mut SavedDevice) -> &mut NetState {
    match &mut state.device {
        DeviceState::Net(state) => state,
        other => panic!("{other:?}"),
    }
}

/// A guest that has set everything that there is to set.
fn busy() -> Guest {
    let mut guest = Guest::over([wire()], several(), ALL);
    guest.command(0, 1, &[1]);
    guest.command(0, 4, &[1]);
    guest.command(1, 0, &[&[1, 0, 0, 0], &OTHER[..], &[1, 0, 0, 0], &MULTICAST].concat());
    guest.command(1, 1, &[2, 0, 0, 0, 0, 9]);
    guest.command(2, 0, &[5, 0]);
    guest.command(2, 0, &[0xff, 0x0f]);
    guest.command(4, 0, &[2, 0]);
    guest.command(5, 0, &GUEST_CSUM.to_le_bytes());
    guest.command(6, 1, &[1, 0, 0, 0, 2, 0, 0, 0]);
    let mut rss = vec![2, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 2, 0, 40];
    rss.extend([7; 40]);
    guest.command(4, 1, &rss);
    guest.nic.change_config(|nic| nic.announce());
    guest
}

#[test]
fn what_the_driver_has_set_is_in_the_state() {
    let guest = busy();
    let mut state = guest.save();
    let state = net(&mut state);
    assert_eq!(state.options, several());
    assert!(state.link_up && state.announce && state.modes.all_multicast && state.modes.no_unicast);
    assert_eq!(state.mac, Some(Mac([2, 0, 0, 0, 0, 9])));
    assert_eq!(state.unicast.addresses, [Mac(OTHER)]);
    assert_eq!(state.multicast.addresses, [Mac(MULTICAST)]);
    assert_eq!(state.vlans, [5, 4095]);
    assert_eq!((state.pairs, state.offloads), (2, Some(Offloads::CHECKSUM)));
    let hash = state.hash.as_ref().unwrap();
    let steering = Steering {
        unclassified: 1,
        table: vec![0, 1],
        max_tx_vq: 2,
    };
    assert_eq!(
        (hash.types, &hash.key[..], &hash.steering),
        (2, &[7; 40][..], &Some(steering))
    );
    let coalescing = Coalescing {
        max_packets: 1,
        max_usecs: 2,
    };
    assert_eq!(state.coalescing[..2], [coalescing, Coalescing::default()]);
}

#[test]
fn a_state_that_is_taken_over_is_the_same_state() {
    let guest = busy();
    let state = guest.save();
    let wire = wire();
    let guest = guest.moved([Arc::clone(&wire)], several());
    assert_eq!(guest.save(), state);
    assert_eq!(wire.guest_takes(), Offloads::CHECKSUM, "the port is told");
    assert_eq!(guest.config(0), [2, 0, 0, 0, 0, 9]);
    assert_eq!(guest.config_u16(6), 3);
}

#[test]
fn traffic_goes_on_where_it_was() {
    let (old, new) = (wire(), wire());
    let mut guest = Guest::new(&old, options(), MRG_RXBUF);
    let first = guest.buffer(0, 100);
    // A frame that waits for more buffers.
    assert!(old.put(plain(OWN, 150)));
    guest.nic.run();
    let mut guest = guest.moved([Arc::clone(&new)], options());
    assert!(new.put(plain(OWN, 60)));
    guest.nic.run();
    assert!(guest.used(0).is_empty());
    let second = guest.buffer(0, 1526);
    assert_eq!(guest.used(0), [100, 62]);
    let data = [&guest.get(first + 12, 88)[..], &guest.get(second, 62)].concat();
    assert_eq!(data, frame(OWN, 150));
    guest.buffer(0, 1526);
    assert_eq!(guest.received(0)[0].1, frame(OWN, 60));
    guest.transmit(Header::default(), &frame(OTHER, 60));
    assert!(new.take().is_some());
    assert_eq!(old.take(), None);
}

#[test]
fn a_frame_that_the_network_had_no_room_for_is_sent_by_the_next_one() {
    let (old, new) = (Arc::new(Wire::new(1)), Arc::new(Wire::new(8)));
    let mut guest = Guest::new(&old, options(), 0);
    guest.transmit(Header::default(), &frame(OTHER, 60));
    guest.transmit(Header::default(), &frame(OTHER, 61));
    assert_eq!(guest.used(1).len(), 1);
    let mut guest = guest.moved([Arc::clone(&new)], options());
    assert_eq!(new.take().unwrap().data, frame(OTHER, 61));
    assert_eq!(guest.used(1).len(), 1);
}

#[test]
fn frames_that_were_steered_are_saved() {
    let old = wire();
    let mut guest = Guest::over(
        [Arc::clone(&old)],
        several(),
        ALL & !(CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN),
    );
    let mut rss = vec![2, 0, 0, 0, 0, 0, 1, 0, 1, 0, 2, 0, 40];
    rss.extend([7; 40]);
    assert_eq!(guest.command(4, 1, &rss), OK);
    guest.buffer(0, 1534);
    for source in 0..3 {
        assert!(old.put(NetFrame {
            header: Header::default(),
            data: packet(6, source, 9),
        }));
    }
    guest.nic.run();
    let mut guest = guest.moved([wire()], several());
    for source in 0..3 {
        guest.buffer(1, 1534);
        assert_eq!(guest.received(1)[0].1, packet(6, source, 9));
    }
}

#[test]
fn what_the_network_sends_is_no_reason_to_refuse_the_state() {
    let old = wire();
    let mut guest = Guest::over([Arc::clone(&old)], several(), CTRL_VQ | MQ | RSS);
    // All of it is for the second pair, which has no buffer.
    let rss = [2, 0, 0, 0, 0, 0, 1, 0, 1, 0, 2, 0, 0];
    assert_eq!(guest.command(4, 1, &rss), OK);
    guest.buffers(0, &[writable(0x1000, 0x10000), writable(0x1000, 0x10000)]);
    for len in [60, 13, 6, 0, 70_000] {
        let mut frame = plain(OWN, 60);
        frame.data.resize(len, 0);
        assert!(old.put(frame));
    }
    guest.nic.run();
    assert_eq!(old.waiting(), 0);
    let mut guest = guest.moved([wire()], several());
    (0..2).for_each(|_| _ = guest.buffer(1, 1526));
    assert_eq!(guest.received(1).len(), 1);
}

#[test]
fn a_port_serves_the_device_that_has_it_now() {
    let wire = Arc::new(Wire::new(1));
    let guest = Guest::new(&wire, options(), 0);
    let mut guest = guest.moved([Arc::clone(&wire)], options());
    guest.buffer(0, 1526);
    assert!(wire.put(plain(OWN, 60)));
    guest.nic.run();
    assert_eq!(guest.received(0).len(), 1);
    for len in [60, 61] {
        guest.transmit(Header::default(), &frame(OTHER, len));
    }
    assert!(wire.take().is_some());
    guest.nic.run();
    assert!(wire.take().is_some(), "there is room again");
}

#[test]
fn a_device_that_had_a_port_has_nothing_to_say_to_it() {
    let wire = Arc::new(Wire::new(4));
    let old = Guest::new(&wire, options(), CSUM);
    let mut new = Guest::new(&wire, options(), 0);
    assert!(wire.is_active());
    drop(old);
    assert!(wire.is_active(), "it is the new one's");
    new.buffer(0, 1526);
    assert!(wire.put(plain(OWN, 60)));
    new.nic.run();
    assert_eq!(new.received(0).len(), 1);
    drop(new);
    assert!(!wire.is_active());
}

#[test]
fn a_port_of_a_switch_is_with_the_device_that_has_it_now() {
    let switch = Switch::new(SwitchOptions::default());
    let port = Arc::new(switch.port());
    let old = Guest::over([Arc::clone(&port)], options(), 0);
    let mut new = Guest::over([Arc::clone(&port)], options(), 0);
    let mut other = Guest::over([switch.port()], options(), 0);
    drop(old);
    new.buffer(0, 1526);
    other.transmit(Header::default(), &frame(BROADCAST, 60));
    new.nic.run();
    assert_eq!(new.received(0).len(), 1);
    drop(new);
    other.transmit(Header::default(), &frame(BROADCAST, 60));
    let mut next = Guest::over([port], options(), 0);
    next.buffer(0, 1526);
    assert_eq!(next.received(0), [], "nobody was there");
}

#[test]
fn a_paused_device_receives_nothing_and_loses_nothing() {
    let wire = wire();
    let mut guest = Guest::new(&wire, options(), MRG_RXBUF);
    guest.buffer(0, 100);
    assert!(wire.put(plain(OWN, 150)));
    guest.nic.run();
    guest.nic.pause();
    assert!(guest.nic.is_still(), "gathered buffers are given back");
    guest.buffer(0, 100);
    assert!(guest.used(0).is_empty());
    guest.nic.resume();
    assert_eq!(guest.used(0), [100, 62]);
}

#[test]
fn states_that_contradict_themselves_or_the_device_are_refused() {
    let guest = busy();
    let good = guest.save();
    let restore = |state: &SavedDevice, ports: Arc<Wire>, options| {
        let device = Guest::off([ports], options).unwrap();
        let before = device.save();
        let result = device.nic.restore(state);
        if result.is_err() {
            assert_eq!(device.save(), before, "all or nothing");
        }
        result
    };
    assert_eq!(restore(&good, wire(), several()), Ok(()));
    let changes: [Change; 26] = [
        ("the address of a group", |state| state.mac = Some(Mac(MULTICAST))),
        ("no pairs", |state| state.pairs = 0),
        ("too many pairs", |state| state.pairs = 3),
        ("a group among stations", |state| {
            state.unicast.addresses.push(Mac(MULTICAST))
        }),
        ("a station among groups", |state| {
            state.multicast.addresses.push(Mac(OTHER))
        }),
        ("too many addresses", |state| {
            state.unicast.addresses = vec![Mac(OTHER); 65]
        }),
        ("an overflown table with addresses", |state| {
            state.unicast.overflown = true
        }),
        ("VLANs out of order", |state| state.vlans = vec![2, 1]),
        ("a VLAN twice", |state| state.vlans = vec![1, 1]),
        ("a VLAN that cannot be", |state| state.vlans = vec![4096]),
        ("a hash of no type", |state| state.hash.as_mut().unwrap().types = 0x200),
        ("a key that is too long", |state| {
            state.hash.as_mut().unwrap().key = vec![0; 41]
        }),
        ("a table of three", |state| steering(state).table = vec![0; 3]),
        ("a table of none", |state| steering(state).table = vec![]),
        ("a table of too many", |state| steering(state).table = vec![0; 256]),
        ("a pair beyond", |state| steering(state).table = vec![2]),
        ("an unclassified queue beyond", |state| steering(state).unclassified = 2),
        ("no transmit queue", |state| steering(state).max_tx_vq = 0),
        ("coalescing of three queues", |state| _ = state.coalescing.pop()),
        ("frames of one queue", |state| _ = state.frames.pop()),
        ("a frame that is too long", |state| {
            state.frames[0].push(plain(OWN, 70_000))
        }),
        ("a frame that is too short", |state| {
            state.frames[0].push(NetFrame::default())
        }),
        ("too many frames", |state| state.frames[0] = vec![plain(OWN, 60); 300]),
        ("another queue size", |state| state.options.queue_size = 128),
        ("options that cannot be", |state| state.options.mtu = Some(1)),
        ("a feature that is not offered", |state| state.features |= 1 << 40),
    ];
    for (what, change) in changes {
        let mut state = good.clone();
        change(net(&mut state));
        assert!(
            matches!(restore(&state, wire(), several()), Err(RestoreError::Device(_))),
            "{what}"
        );
    }
    // Halves that do not agree.
    let halves: [Change; 2] = [
        ("offloads that were not negotiated", |state| {
            state.offloads = Some(Offloads::ALL)
        }),
        ("a feature less than the driver has", |state| state.features &= !MQ),
    ];
    for (what, change) in halves {
        let mut state = good.clone();
        change(net(&mut state));
        assert!(restore(&state, wire(), several()).is_err(), "{what}");
    }
    assert!(
        restore(&good, Arc::new(Wire::new(1)), several()).is_err(),
        "a port that takes no offloads"
    );
    assert!(restore(&good, wire(), options()).is_err(), "one pair");
    let block = DeviceState::None;
    let mut other = good.clone();
    other.device = block;
    assert!(restore(&other, wire(), several()).is_err());
}

fn steering(state: &mut NetState) -> &mut Steering {
    state.hash.as_mut().unwrap().steering.as_mut().unwrap()
}

#[test]
fn a_state_of_settings_that_its_driver_has_no_features_for_is_refused() {
    let mut plain = Guest::over([wire()], several(), CTRL_VQ | MQ);
    plain.command(4, 0, &[1, 0]);
    let good = plain.save();
    let changes: [Change; 8] = [
        ("announce", |state| state.announce = true),
        ("an address", |state| state.mac = Some(Mac(OTHER))),
        ("a mode", |state| state.modes.promiscuous = true),
        ("another mode", |state| state.modes.no_unicast = true),
        ("a table", |state| state.multicast.overflown = true),
        ("a VLAN", |state| state.vlans = vec![1]),
        ("offloads", |state| state.offloads = Some(Offloads::NONE)),
        ("coalescing", |state| state.coalescing[0].max_usecs = 1),
    ];
    for (what, change) in changes {
        let mut state = good.clone();
        change(net(&mut state));
        let device = Guest::off([wire()], several()).unwrap();
        assert!(
            matches!(device.nic.restore(&state), Err(RestoreError::Features { .. })),
            "{what}"
        );
    }
}

#[test]
fn ports_that_take_more_than_before_change_nothing_for_the_guest() {
    let narrow = Guest::new(&Arc::new(Wire::new(1)), options(), STATUS);
    let offered = narrow.offered();
    let moved = narrow.moved([wire()], options());
    assert_eq!(moved.offered(), offered);
    drop(Net::new([wire()], options()));
}
