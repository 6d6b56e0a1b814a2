//! The control queue (section 5.1.6.5): what commands come to, right ones and wrong ones.

use std::sync::Arc;

use devisor::virtio::{
    QueueIndex, VirtioTransport,
    net::{Coalescing, Mac, NetOptions, Offloads, Wire},
};

use crate::guest::*;

const RX: u8 = 0;
const MAC_CLASS: u8 = 1;
const VLAN: u8 = 2;
const ANNOUNCE: u8 = 3;
const MQ_CLASS: u8 = 4;
const OFFLOADS: u8 = 5;
const COAL: u8 = 6;

const ALL: u64 = CTRL_VQ
    | CTRL_RX
    | CTRL_RX_EXTRA
    | CTRL_VLAN
    | CTRL_MAC_ADDR
    | GUEST_ANNOUNCE
    | STATUS
    | MAC
    | NOTF_COAL
    | VQ_NOTF_COAL
    | HASH_REPORT
    | GUEST_CSUM
    | GUEST_TSO4
    | CTRL_GUEST_OFFLOADS;

fn guest(features: u64) -> Guest {
    let wire = Arc::new(Wire::new(8).with_offloads(Offloads::ALL, Offloads::ALL));
    Guest::new(&wire, options(), features)
}

fn hash_config(types: u32, key: &[u8]) -> Vec<u8> {
    let mut data = types.to_le_bytes().to_vec();
    data.extend([0; 8]);
    data.push(key.len() as u8);
    data.extend(key);
    data
}

#[test]
fn commands_that_were_not_negotiated_get_an_error() {
    let mut guest = guest(CTRL_VQ);
    let commands: [(u8, u8, &[u8]); 14] = [
        (RX, 0, &[1]),
        (RX, 1, &[1]),
        (RX, 2, &[1]),
        (RX, 5, &[1]),
        (MAC_CLASS, 0, &[0; 8]),
        (MAC_CLASS, 1, &[2, 0, 0, 0, 0, 1]),
        (VLAN, 0, &[1, 0]),
        (ANNOUNCE, 0, &[]),
        (MQ_CLASS, 0, &[1, 0]),
        (MQ_CLASS, 1, &[0; 64]),
        (MQ_CLASS, 2, &hash_config(1, &[0; 40])),
        (OFFLOADS, 0, &[0; 8]),
        (COAL, 0, &[0; 8]),
        (COAL, 2, &[0; 12]),
    ];
    for (class, command, data) in commands {
        assert_eq!(guest.command(class, command, data), ERR, "{class} {command}");
    }
}

#[test]
fn the_same_commands_are_done_if_they_were() {
    let mut guest = guest(ALL);
    let commands: [(u8, u8, &[u8]); 13] = [
        (RX, 0, &[1]),
        (RX, 1, &[1]),
        (RX, 2, &[1]),
        (RX, 5, &[0]),
        (MAC_CLASS, 0, &[0; 8]),
        (MAC_CLASS, 1, &[2, 0, 0, 0, 0, 1]),
        (VLAN, 0, &[1, 0]),
        (VLAN, 1, &[1, 0]),
        (ANNOUNCE, 0, &[]),
        (MQ_CLASS, 2, &hash_config(1, &[0; 40])),
        (OFFLOADS, 0, &[0; 8]),
        (COAL, 0, &[0; 8]),
        (COAL, 2, &[0; 12]),
    ];
    for (class, command, data) in commands {
        assert_eq!(guest.command(class, command, data), OK, "{class} {command}");
    }
}

#[test]
fn classes_and_commands_that_do_not_exist_get_an_error() {
    let mut guest = guest(ALL);
    for class in 0..=255 {
        for command in [6, 7, 255] {
            assert_eq!(guest.command(class, command, &[0]), ERR, "{class} {command}");
        }
    }
    for class in 7..=255 {
        assert_eq!(guest.command(class, 0, &[1]), ERR, "{class}");
    }
}

#[test]
fn commands_that_are_too_short_or_too_long_change_nothing() {
    let mut guest = guest(ALL);
    let commands: [(u8, u8, &[u8]); 10] = [
        (RX, 0, &[1]),
        (MAC_CLASS, 0, &[1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        (MAC_CLASS, 1, &[2, 0, 0, 0, 0, 9]),
        (VLAN, 0, &[1, 0]),
        (ANNOUNCE, 0, &[]),
        (MQ_CLASS, 2, &hash_config(1, &[7; 40])),
        (OFFLOADS, 0, &[0; 8]),
        (COAL, 0, &[1; 8]),
        (COAL, 1, &[1; 8]),
        (COAL, 2, &[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
    ];
    let before = guest.save().device;
    guest.nic.resume();
    for (class, command, data) in commands {
        for len in 0..data.len() {
            assert_eq!(
                guest.command(class, command, &data[..len]),
                ERR,
                "{class} {command} {len}"
            );
        }
        let longer = [data, &[0]].concat();
        assert_eq!(
            guest.command(class, command, &longer),
            ERR,
            "{class} {command} and a byte"
        );
    }
    assert_eq!(guest.save().device, before);
    guest.nic.resume();
    assert_eq!(guest.command_bytes(&[RX], 1), [1], "without a command");
    assert_eq!(guest.command_bytes(&[], 1), [1], "without anything");
    assert_eq!(guest.save().device, before);
}

#[test]
fn a_command_may_be_cut_into_descriptors_anywhere() {
    use crate::ring::{readable, writable};
    let mut guest = guest(ALL);
    guest.put(0x1000, &[MAC_CLASS, 1, 2, 0, 0, 0, 0, 0]);
    for cut in 1..8 {
        guest.put(0x1007, &[cut as u8]);
        guest.rings[2].request(&[
            readable(0x1000, cut),
            readable(0x1000 + u64::from(cut), 8 - cut),
            writable(0x2000, 1),
        ]);
        guest.kick(2);
        assert_eq!((guest.used(2), guest.get(0x2000, 1)), (vec![1], vec![OK]));
        assert_eq!(guest.config(0), [2, 0, 0, 0, 0, cut as u8]);
    }
}

#[test]
fn a_command_without_a_place_for_its_answer_is_refused() {
    let mut guest = guest(ALL);
    assert_eq!(guest.command_bytes(&[RX, 0, 1], 0), [0]);
    assert_eq!(guest.malformed(2), 1);
    assert!(!guest.nic.with_device(|nic| nic.rx_modes().promiscuous));
}

#[test]
fn an_answer_is_one_byte_whatever_room_there_is() {
    let mut guest = guest(ALL);
    let (used, answer) = guest.command_for(RX, 0, &[1], 8);
    assert_eq!((used, answer), (1, vec![OK, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]));
}

#[test]
fn a_command_of_megabytes_is_an_error() {
    use crate::ring::{readable, writable};
    let mut guest = guest(ALL);
    guest.put(0x1000, &[MAC_CLASS, 0]);
    guest.rings[2].request(&[readable(0x1000, 0x18_0000), writable(0x2000, 1)]);
    guest.kick(2);
    assert_eq!((guest.used(2), guest.get(0x2000, 1)), (vec![1], vec![ERR]));
}

#[test]
fn a_mode_is_on_or_off_and_nothing_else() {
    let mut guest = guest(ALL);
    for command in 0..6 {
        assert_eq!(guest.command(RX, command, &[1]), OK);
        assert_eq!(guest.command(RX, command, &[2]), ERR);
    }
    let modes = guest.nic.with_device(|nic| nic.rx_modes());
    assert!(modes.promiscuous && modes.all_multicast && modes.all_unicast);
    assert!(modes.no_multicast && modes.no_unicast && modes.no_broadcast);
}

#[test]
fn tables_that_say_more_than_there_is_get_an_error() {
    let mut guest = guest(ALL);
    for entries in [2u32, 3, 0x2aaa_aaab, 0x8000_0000, u32::MAX] {
        let mut data = entries.to_le_bytes().to_vec();
        data.extend([2, 0, 0, 0, 0, 1]);
        data.extend([0; 4]);
        assert_eq!(guest.command(MAC_CLASS, 0, &data), ERR, "{entries}");
    }
}

#[test]
fn tables_keep_stations_and_groups_apart() {
    let mut guest = guest(ALL);
    let station = [2, 0, 0, 0, 0, 1];
    let table =
        |unicast: &[u8; 6], multicast: &[u8; 6]| [&[1, 0, 0, 0], &unicast[..], &[1, 0, 0, 0], multicast].concat();
    assert_eq!(guest.command(MAC_CLASS, 0, &table(&station, &MULTICAST)), OK);
    assert_eq!(guest.command(MAC_CLASS, 0, &table(&MULTICAST, &MULTICAST)), ERR);
    assert_eq!(guest.command(MAC_CLASS, 0, &table(&station, &station)), ERR);
}

#[test]
fn the_address_is_that_of_a_station() {
    let mut guest = guest(ALL);
    for mac in [[0; 6], MULTICAST, BROADCAST] {
        assert_eq!(guest.command(MAC_CLASS, 1, &mac), ERR);
    }
    assert_eq!(guest.config(0), OWN);
    assert_eq!(guest.command(MAC_CLASS, 1, &OTHER), OK);
    assert_eq!(guest.config(0), OTHER);
    assert_eq!(guest.nic.with_device(|nic| nic.mac()), Some(Mac(OTHER)));
    guest.start(ALL);
    assert_eq!(guest.config(0), OWN, "a reset brings the old one back");
}

#[test]
fn there_are_4096_vlans() {
    let mut guest = guest(ALL);
    for (vlan, ack) in [(0u16, OK), (4095, OK), (4096, ERR), (65535, ERR)] {
        assert_eq!(guest.command(VLAN, 0, &vlan.to_le_bytes()), ack, "{vlan}");
        assert_eq!(guest.command(VLAN, 1, &vlan.to_le_bytes()), ack, "{vlan}");
    }
}

#[test]
fn the_driver_is_asked_to_announce_itself_until_it_has_heard() {
    let mut guest = guest(ALL);
    assert_eq!(guest.config_u16(6), 1);
    assert!(guest.nic.change_config(|nic| nic.announce()));
    assert_eq!(guest.config_u16(6), 3);
    assert_eq!(guest.read(0x60) & 2, 2, "it is interrupted");
    assert_eq!(guest.command(ANNOUNCE, 0, &[]), OK);
    assert_eq!(guest.config_u16(6), 1);
    assert!(!guest.nic.with_device(|nic| nic.is_announcing()));
    let mut other = self::guest(CTRL_VQ);
    assert!(!other.nic.change_config(|nic| nic.announce()), "it cannot");
    assert_eq!(other.config_u16(6), 1);
    assert_eq!(other.command(ANNOUNCE, 0, &[]), ERR);
}

#[test]
fn offloads_that_were_not_negotiated_cannot_be_enabled() {
    let wire = Arc::new(Wire::new(8).with_offloads(Offloads::ALL, Offloads::ALL));
    let mut guest = Guest::new(&wire, options(), ALL);
    let both = Offloads {
        tso4: true,
        ..Offloads::CHECKSUM
    };
    assert_eq!(wire.guest_takes(), both, "as was negotiated");
    assert_eq!(
        guest.command(OFFLOADS, 0, &(GUEST_CSUM | GUEST_TSO6).to_le_bytes()),
        ERR
    );
    assert_eq!(guest.command(OFFLOADS, 0, &(1u64 << 11).to_le_bytes()), ERR);
    assert_eq!(wire.guest_takes(), both);
    assert_eq!(guest.command(OFFLOADS, 0, &GUEST_CSUM.to_le_bytes()), OK);
    assert_eq!(wire.guest_takes(), Offloads::CHECKSUM);
    assert_eq!(guest.command(OFFLOADS, 0, &GUEST_TSO4.to_le_bytes()), OK);
    assert_eq!(
        wire.guest_takes(),
        Offloads::NONE,
        "what needs a checksum is nothing without"
    );
    assert_eq!(guest.command(OFFLOADS, 0, &(GUEST_CSUM | GUEST_TSO4).to_le_bytes()), OK);
    assert_eq!(wire.guest_takes(), both);
    guest.start(ALL);
    assert_eq!(wire.guest_takes(), both);
}

#[test]
fn coalescing_is_kept_for_each_queue() {
    let mut guest = guest(ALL);
    let set = |packets: u32, usecs: u32| [packets.to_le_bytes(), usecs.to_le_bytes()].concat();
    let told = |guest: &Guest, queue| guest.nic.with_device(|nic| nic.coalescing(QueueIndex(queue)));
    let is = |max_packets, max_usecs| Some(Coalescing { max_packets, max_usecs });
    assert_eq!(guest.command(COAL, 0, &set(1, 2)), OK);
    assert_eq!((told(&guest, 0), told(&guest, 1)), (is(0, 0), is(1, 2)));
    assert_eq!(guest.command(COAL, 1, &set(3, 4)), OK);
    assert_eq!((told(&guest, 0), told(&guest, 1)), (is(3, 4), is(1, 2)));
    let of_queue = |queue: u16| [queue.to_le_bytes(), [0xaa, 0xaa]].concat();
    assert_eq!(guest.command(COAL, 2, &[of_queue(1), set(5, 6)].concat()), OK);
    assert_eq!(told(&guest, 1), is(5, 6));
    let (used, answer) = guest.command_for(COAL, 3, &of_queue(1), 9);
    assert_eq!((used, &answer[..8], answer[8]), (9, &set(5, 6)[..], OK));
    for queue in [2, 3, 65535] {
        assert_eq!(guest.command(COAL, 2, &[of_queue(queue), set(7, 8)].concat()), ERR);
        assert_eq!(guest.command(COAL, 3, &of_queue(queue)), ERR);
    }
    assert_eq!(
        guest.command_for(COAL, 3, &of_queue(1), 8),
        (1, vec![ERR, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee])
    );
}

#[test]
fn a_hash_is_configured_as_it_was_told_to_be_possible() {
    let wire = Arc::new(Wire::new(8));
    let few = NetOptions {
        hash_types: 7,
        ..options()
    };
    let mut guest = Guest::new(&wire, few, CTRL_VQ | HASH_REPORT);
    assert_eq!(guest.command(MQ_CLASS, 2, &hash_config(7, &[1; 40])), OK);
    assert_eq!(guest.command(MQ_CLASS, 2, &hash_config(0, &[])), OK);
    assert_eq!(guest.command(MQ_CLASS, 2, &hash_config(8, &[1; 40])), ERR);
    assert_eq!(guest.command(MQ_CLASS, 2, &hash_config(7, &[1; 41])), ERR);
    // Linux 6.12 has the number of its queues where it should have zero.
    let mut reserved = hash_config(7, &[1; 40]);
    reserved[10] = 1;
    assert_eq!(guest.command(MQ_CLASS, 2, &reserved), OK);
}

#[test]
fn commands_are_answered_in_order_while_frames_come_and_go() {
    use crate::ring::{readable, writable};
    let wire = Arc::new(Wire::new(64));
    let mut guest = Guest::new(
        &wire,
        options(),
        ALL & !(HASH_REPORT | GUEST_CSUM | GUEST_TSO4 | CTRL_GUEST_OFFLOADS),
    );
    for on in [1, 0, 1] {
        guest.buffer_quietly(0, 1526);
        assert!(wire.put(plain(OTHER, 60)));
        let at = 0x1000 + u64::from(on) * 16;
        guest.put(at, &[RX, 0, on]);
        guest.rings[2].request(&[readable(at, 3), writable(0x2000, 1)]);
        guest.transmit(Default::default(), &frame(OTHER, 60));
    }
    guest.kick(2);
    assert_eq!(guest.used(2), [1, 1, 1]);
    assert!(guest.nic.with_device(|nic| nic.rx_modes().promiscuous));
    assert_eq!(guest.used(1), [0, 0, 0]);
}
