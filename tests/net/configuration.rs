//! Feature bits and the configuration space (sections 5.1.3 and 5.1.4).

use std::sync::Arc;

use devisor::{
    bus::BusDevice,
    virtio::{
        VirtioTransport, features,
        net::{Net, NetOptions, Offloads, Speed, Wire},
    },
};

use crate::guest::*;

fn off(options: NetOptions, wire: Wire) -> Guest {
    Guest::off([Arc::new(wire)], options).unwrap()
}

#[test]
fn it_is_a_network_device() {
    assert_eq!(off(options(), Wire::new(1)).read(0x8), 1);
}

#[test]
fn what_is_offered_follows_from_the_options() {
    let own = |options| off(options, Wire::new(1)).offered() & !features::COMMON;
    let control =
        CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR | GUEST_ANNOUNCE | NOTF_COAL | VQ_NOTF_COAL;
    let default = STATUS | MRG_RXBUF | control | HASH_REPORT | CSUM;
    assert_eq!(own(NetOptions::default()), default);
    assert_eq!(own(options()), default | MAC);
    let least = NetOptions {
        control_queue_size: 0,
        mergeable: false,
        offloads: false,
        ..NetOptions::default()
    };
    assert_eq!(own(least), STATUS);
    let most = NetOptions {
        pairs: 4,
        mtu: Some(1500),
        speed: Some(Speed {
            megabits: 1000,
            full_duplex: true,
        }),
        ..options()
    };
    assert_eq!(own(most), default | MAC | MTU | SPEED_DUPLEX | MQ | RSS);
}

#[test]
fn what_ports_take_is_offered() {
    let own = |send, receive| {
        let wire = Wire::new(1).with_offloads(send, receive);
        let plain = off(options(), Wire::new(1)).offered();
        off(options(), wire).offered() & !plain
    };
    let host = HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO;
    let guest = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;
    assert_eq!(own(Offloads::ALL, Offloads::NONE), host);
    assert_eq!(own(Offloads::NONE, Offloads::ALL), guest | CTRL_GUEST_OFFLOADS);
    assert_eq!(
        own(Offloads::CHECKSUM, Offloads::CHECKSUM),
        GUEST_CSUM | CTRL_GUEST_OFFLOADS
    );
    // "MUST NOT offer a feature which requires another feature which was not offered."
    let without_checksum = Offloads {
        checksum: false,
        ..Offloads::ALL
    };
    assert_eq!(own(without_checksum, without_checksum), 0);
}

#[test]
fn what_one_of_several_ports_does_not_take_is_not_offered() {
    let several = NetOptions { pairs: 2, ..options() };
    let wire = |offloads| Arc::new(Wire::new(1).with_offloads(offloads, offloads));
    let guest = Guest::off([wire(Offloads::ALL), wire(Offloads::CHECKSUM)], several).unwrap();
    assert_eq!(guest.offered() & (HOST_TSO4 | GUEST_TSO4 | GUEST_CSUM), GUEST_CSUM);
}

#[test]
fn a_feature_is_taken_only_with_those_that_it_needs() {
    let several = NetOptions { pairs: 2, ..options() };
    let wire = Arc::new(Wire::new(1).with_offloads(Offloads::ALL, Offloads::ALL));
    let needs: [(u64, &[u64]); 22] = [
        (GUEST_TSO4, &[GUEST_CSUM]),
        (GUEST_TSO6, &[GUEST_CSUM]),
        (GUEST_ECN, &[GUEST_TSO4 | GUEST_CSUM, GUEST_TSO6 | GUEST_CSUM]),
        (GUEST_UFO, &[GUEST_CSUM]),
        (GUEST_USO4, &[GUEST_CSUM]),
        (GUEST_USO6, &[GUEST_CSUM]),
        (HOST_TSO4, &[CSUM]),
        (HOST_TSO6, &[CSUM]),
        (HOST_ECN, &[HOST_TSO4 | CSUM, HOST_TSO6 | CSUM]),
        (HOST_UFO, &[CSUM]),
        (HOST_USO, &[CSUM]),
        (CTRL_RX, &[CTRL_VQ]),
        (CTRL_RX_EXTRA, &[CTRL_VQ]),
        (CTRL_VLAN, &[CTRL_VQ]),
        (GUEST_ANNOUNCE, &[CTRL_VQ]),
        (MQ, &[CTRL_VQ]),
        (CTRL_MAC_ADDR, &[CTRL_VQ]),
        (CTRL_GUEST_OFFLOADS, &[CTRL_VQ]),
        (NOTF_COAL, &[CTRL_VQ]),
        (VQ_NOTF_COAL, &[CTRL_VQ]),
        (HASH_REPORT, &[CTRL_VQ]),
        (RSS, &[CTRL_VQ]),
    ];
    let mut guest = Guest::off([wire], several).unwrap();
    for (feature, others) in needs {
        guest.write(0x70, 0);
        assert!(!guest.negotiate(feature), "{feature:#x} alone");
        assert_eq!(guest.read(0x70), 3);
        for &other in others {
            guest.write(0x70, 0);
            assert!(guest.negotiate(feature | other), "{feature:#x} with {other:#x}");
        }
    }
}

#[test]
fn the_configuration_space_tells_what_is_offered() {
    let most = NetOptions {
        pairs: 3,
        mtu: Some(9000),
        speed: Some(Speed {
            megabits: 0x0102_0304,
            full_duplex: true,
        }),
        hash_types: 0x3f,
        ..options()
    };
    let guest = off(most, Wire::new(1));
    let mut expected = OWN.to_vec();
    expected.extend([1, 0]);
    expected.extend([3, 0]);
    expected.extend(9000u16.to_le_bytes());
    expected.extend([4, 3, 2, 1, 1]);
    expected.push(40);
    expected.extend([128, 0]);
    expected.extend([0x3f, 0, 0, 0]);
    expected.extend([0; 8]);
    assert_eq!(guest.config::<32>(0), expected[..]);
}

#[test]
fn fields_whose_feature_is_not_offered_are_zero() {
    let least = NetOptions {
        control_queue_size: 0,
        ..NetOptions::default()
    };
    let guest = off(least, Wire::new(1));
    let mut expected = [0; 32];
    expected[6] = 1;
    assert_eq!(guest.config::<32>(0), expected);
}

#[test]
fn the_driver_cannot_write_the_configuration_space() {
    let guest = Guest::new(&Arc::new(Wire::new(1)), options(), MAC | STATUS);
    let before = guest.config::<24>(0);
    for at in 0..32 {
        guest.nic.write(0x100 + at, &[0xff]);
    }
    assert_eq!(guest.config::<24>(0), before);
}

#[test]
fn the_link_is_told_with_an_interrupt_and_another_generation() {
    let guest = Guest::new(&Arc::new(Wire::new(1)), options(), STATUS);
    let generation = guest.read(0xfc);
    assert_eq!(guest.config_u16(6), 1);
    guest.nic.change_config(|nic| nic.set_link(false));
    assert_eq!(guest.read(0x60), 2);
    assert_ne!(guest.read(0xfc), generation);
    assert_eq!(guest.config_u16(6), 0);
    guest.nic.change_config(|nic| nic.set_link(true));
    assert_eq!(guest.config_u16(6), 1);
}

#[test]
fn the_link_stays_as_it_is_over_a_reset() {
    let mut guest = Guest::new(&Arc::new(Wire::new(1)), options(), STATUS);
    guest.nic.change_config(|nic| nic.set_link(false));
    guest.start(STATUS);
    assert_eq!(guest.config_u16(6), 0);
}

#[test]
fn the_control_queue_comes_after_the_pairs_that_the_driver_knows_of() {
    for (pairs, features, queue) in [(1, 0, 2), (4, 0, 2), (4, MQ, 8), (4, RSS, 8), (4, MQ | RSS, 8)] {
        let wire = Arc::new(Wire::new(1));
        let mut guest = Guest::new(&wire, NetOptions { pairs, ..options() }, CTRL_VQ | CTRL_RX | features);
        use crate::ring::{readable, writable};
        guest.put(0x1000, &[0, 0, 1]);
        guest.rings[queue].request(&[readable(0x1000, 3), writable(0x2000, 1)]);
        guest.kick(queue);
        assert_eq!(guest.used(queue), [1]);
        assert!(
            guest.nic.with_device(|nic| nic.rx_modes().promiscuous),
            "{pairs} {features:#x}"
        );
    }
}

#[test]
fn queues_that_the_driver_does_not_know_of_give_everything_back() {
    use crate::ring::{readable, writable};
    let wire = Arc::new(Wire::new(8));
    let mut guest = Guest::new(&wire, NetOptions { pairs: 2, ..options() }, 0);
    for queue in 2..5 {
        guest.rings[queue].request(&[readable(0x1000, 100)]);
        guest.rings[queue].request(&[writable(0x1000, 100)]);
        guest.kick(queue);
        assert_eq!(guest.used(queue), [0, 0]);
        assert_eq!(guest.malformed(queue), 2);
    }
    assert_eq!(wire.take(), None);
    assert_eq!(guest.nic.fault(), None);
}

#[test]
fn a_device_that_is_gone_leaves_its_port() {
    let wire = Arc::new(Wire::new(1));
    let guest = Guest::new(&wire, options(), 0);
    assert!(wire.is_active());
    drop(guest);
    assert!(!wire.is_active());
    drop(Net::new([wire], options()).unwrap());
}
