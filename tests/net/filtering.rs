//! Packet receive filtering, address filtering, VLAN filtering (sections 5.1.6.5.1 to 5.1.6.5.3).

use std::sync::Arc;

use devisor::virtio::net::{NetOptions, Wire};

use crate::guest::*;

const PROMISC: u8 = 0;
const ALLMULTI: u8 = 1;
const ALLUNI: u8 = 2;
const NOMULTI: u8 = 3;
const NOUNI: u8 = 4;
const NOBCAST: u8 = 5;

struct Setup {
    wire: Arc<Wire>,
    guest: Guest,
}

impl Setup {
    fn new(features: u64) -> Self {
        Self::with(options(), features)
    }

    fn with(options: NetOptions, features: u64) -> Self {
        let wire = Arc::new(Wire::new(8));
        let guest = Guest::new(&wire, options, features);
        Self { wire, guest }
    }

    /// Which of a frame to the guest, to another station, to a group and to all it gets.
    fn gets(&mut self) -> [bool; 4] {
        [OWN, OTHER, MULTICAST, BROADCAST].map(|to| self.guest.receives(&self.wire, &frame(to, 60)))
    }

    fn set(&mut self, mode: u8, on: bool) {
        assert_eq!(self.guest.command(0, mode, &[on.into()]), OK);
    }

    fn tagged(&mut self, vlan: u16) -> bool {
        let mut data = frame(OWN, 60);
        data[12..14].copy_from_slice(&[0x81, 0]);
        // A priority, which is no part of the number.
        data[14..16].copy_from_slice(&(vlan | 0xa000).to_be_bytes());
        self.guest.receives(&self.wire, &data)
    }
}

const CONTROLLED: u64 = CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | MAC | CTRL_MAC_ADDR;

#[test]
fn a_driver_that_cannot_ask_for_more_gets_everything() {
    assert_eq!(Setup::new(MAC).gets(), [true; 4]);
    assert_eq!(Setup::new(CTRL_VQ | CTRL_VLAN).gets(), [true; 4]);
}

#[test]
fn a_driver_that_can_gets_what_is_for_it_and_for_all() {
    let mut setup = Setup::new(CONTROLLED);
    assert_eq!(setup.gets(), [true, false, false, true]);
    assert_eq!(setup.guest.nic.with_device(|nic| nic.counters().filtered), 2);
}

#[test]
fn modes_let_more_through_and_less() {
    let cases: [(&[u8], [bool; 4]); 10] = [
        (&[PROMISC], [true; 4]),
        (&[ALLMULTI], [true, false, true, true]),
        (&[ALLUNI], [true, true, false, true]),
        (&[NOMULTI], [true, false, false, true]),
        (&[NOUNI], [false, false, false, true]),
        (&[NOBCAST], [true, false, false, false]),
        // The stricter one, where they contradict each other ...
        (&[ALLMULTI, NOMULTI], [true, false, false, true]),
        (&[ALLUNI, NOUNI], [false, false, false, true]),
        (&[ALLMULTI, NOBCAST], [true, false, true, false]),
        // ... and promiscuous mode whatever the others are.
        (&[PROMISC, NOMULTI, NOUNI, NOBCAST], [true; 4]),
    ];
    for (modes, expected) in cases {
        let mut setup = Setup::new(CONTROLLED);
        modes.iter().for_each(|&mode| setup.set(mode, true));
        assert_eq!(setup.gets(), expected, "{modes:?}");
        modes.iter().for_each(|&mode| setup.set(mode, false));
        assert_eq!(setup.gets(), [true, false, false, true], "{modes:?} and off again");
    }
}

#[test]
fn the_tables_let_their_addresses_through() {
    let mut setup = Setup::new(CONTROLLED);
    let table = [&[1, 0, 0, 0], &OTHER[..], &[1, 0, 0, 0], &MULTICAST].concat();
    assert_eq!(setup.guest.command(1, 0, &table), OK);
    assert_eq!(setup.gets(), [true; 4]);
    assert_eq!(setup.guest.command(1, 0, &[0; 8]), OK);
    assert_eq!(setup.gets(), [true, false, false, true]);
    setup.guest.command(1, 0, &table);
    setup.guest.start(CONTROLLED);
    assert_eq!(setup.gets(), [true, false, false, true], "empty on reset");
}

#[test]
fn a_table_with_more_addresses_than_there_is_room_for_lets_all_of_their_kind_through() {
    let many = |group: u8, count: u32| {
        let mut bytes = count.to_le_bytes().to_vec();
        (0..count).for_each(|n| bytes.extend([group, 9, 9, 9, (n >> 8) as u8, n as u8]));
        bytes
    };
    for count in [65, 1000] {
        let mut setup = Setup::new(CONTROLLED);
        setup.guest.command(1, 0, &[many(2, count), many(1, 0)].concat());
        assert_eq!(setup.gets(), [true, true, false, true]);
        setup.guest.command(1, 0, &[many(2, 0), many(1, count)].concat());
        assert_eq!(setup.gets(), [true, false, true, true]);
        setup.guest.command(1, 0, &[many(2, 64), many(1, 64)].concat());
        assert_eq!(setup.gets(), [true, false, false, true]);
    }
}

#[test]
fn an_address_that_is_set_is_let_through_and_the_old_one_is_not() {
    let mut setup = Setup::new(CONTROLLED);
    assert_eq!(setup.guest.command(1, 1, &OTHER), OK);
    assert_eq!(setup.gets(), [false, true, false, true]);
}

#[test]
fn of_an_address_that_the_device_does_not_know_all_are_let_through() {
    let unknown = NetOptions { mac: None, ..options() };
    let mut setup = Setup::with(unknown, CONTROLLED & !MAC);
    assert_eq!(setup.gets(), [true, true, false, true]);
    assert_eq!(setup.guest.command(1, 1, &OWN), OK);
    assert_eq!(setup.gets(), [true, false, false, true]);
    assert_eq!(
        Setup::new(CONTROLLED & !MAC).gets(),
        [true, true, false, true],
        "told, and not taken"
    );
}

#[test]
fn vlans_are_let_through_one_by_one() {
    let mut setup = Setup::new(CTRL_VQ | CTRL_VLAN);
    assert!(setup.guest.receives(&setup.wire, &frame(OWN, 60)), "without a tag");
    for vlan in [0, 1, 63, 64, 4095] {
        assert!(!setup.tagged(vlan));
        assert_eq!(setup.guest.command(2, 0, &vlan.to_le_bytes()), OK);
        assert!(setup.tagged(vlan));
        assert!(!setup.tagged(vlan ^ 2), "another one");
        assert_eq!(setup.guest.command(2, 1, &vlan.to_le_bytes()), OK);
        assert!(!setup.tagged(vlan));
    }
    setup.guest.command(2, 0, &[7, 0]);
    setup.guest.start(CTRL_VQ | CTRL_VLAN);
    assert!(!setup.tagged(7), "empty after a reset");
}

#[test]
fn without_a_vlan_filter_all_are_let_through() {
    let mut setup = Setup::new(CONTROLLED);
    assert!(setup.tagged(5));
}
