//! Every command, and every reason to refuse it.

use super::{
    Call::*,
    command::{self, *},
    *,
};

#[test]
fn int_sets_and_clear_clears_the_lpi_that_mapti_named() {
    let world = World::mapped();
    assert_eq!(world.calls(&[mapti(1, 7, 8200, 2)]), []);
    assert_eq!(world.calls(&[int(1, 7)]), [SetPending(2, 8200, true)]);
    assert_eq!(world.calls(&[clear(1, 7)]), [SetPending(2, 8200, false)]);
}

#[test]
fn mapi_names_the_lpi_by_the_event() {
    let config = ItsConfig {
        event_bits: 14,
        ..CONFIG
    };
    let world = World::with(config, DEVICE_TABLE, COLLECTION_TABLE);
    world.calls(&[mapc(0, 1), mapd(3, ITTS, 14), mapi(3, 8193, 0)]);
    assert_eq!(world.calls(&[int(3, 8193)]), [SetPending(1, 8193, true)]);
    world.refused(mapi(3, 8191, 0));
}

#[test]
fn mapti_again_replaces_the_mapping() {
    let world = World::mapped();
    world.calls(&[mapti(1, 7, 8200, 2), mapti(1, 7, 8300, 3)]);
    assert_eq!(world.calls(&[int(1, 7)]), [SetPending(3, 8300, true)]);
}

#[test]
fn mapti_into_a_collection_that_is_mapped_later_works_from_then_on() {
    let world = World::mapped();
    world.calls(&[mapti(0, 0, 8192, 9)]);
    world.refused(int(0, 0));
    world.calls(&[mapc(9, 3)]);
    assert_eq!(world.calls(&[int(0, 0)]), [SetPending(3, 8192, true)]);
}

#[test]
fn movi_moves_the_event_and_what_is_pending_of_it() {
    let world = World::mapped();
    world.calls(&[mapti(0, 1, 8193, 0)]);
    assert_eq!(world.calls(&[movi(0, 1, 3)]), [Move(0, 3, 8193)]);
    assert_eq!(world.calls(&[int(0, 1)]), [SetPending(3, 8193, true)]);
    world.calls(&[mapc(4, 3)]);
    assert_eq!(
        world.calls(&[movi(0, 1, 4)]),
        [],
        "another collection at the same redistributor"
    );
    world.calls(&[unmapc(3)]);
    assert_eq!(
        world.calls(&[int(0, 1)]),
        [SetPending(3, 8193, true)],
        "it is of collection 4 now"
    );
}

#[test]
fn movall_moves_what_is_pending_and_no_event() {
    let world = World::mapped();
    world.calls(&[mapti(0, 1, 8193, 1)]);
    assert_eq!(world.calls(&[movall(1, 2)]), [MoveAll(1, 2)]);
    assert_eq!(world.calls(&[movall(2, 2)]), []);
    assert_eq!(world.calls(&[int(0, 1)]), [SetPending(1, 8193, true)]);
}

#[test]
fn inv_and_invall_reach_the_redistributor() {
    let world = World::mapped();
    world.calls(&[mapti(0, 1, 8193, 1)]);
    assert_eq!(world.calls(&[inv(0, 1)]), [Invalidate(1, 8193)]);
    assert_eq!(world.calls(&[invall(2)]), [InvalidateAll(2)]);
}

#[test]
fn discard_clears_what_is_pending_and_unmaps_the_event() {
    let world = World::mapped();
    world.calls(&[mapti(0, 1, 8193, 1)]);
    assert_eq!(world.calls(&[discard(0, 1)]), [SetPending(1, 8193, false)]);
    assert_eq!(world.peek(itt(0) + 8), 0);
    world.refused(int(0, 1));
    world.refused(discard(0, 1));
}

#[test]
fn sync_asks_nothing_of_anybody() {
    assert_eq!(World::mapped().calls(&[sync(0), sync(3)]), []);
}

#[test]
fn unmapped_devices_and_collections_are_no_more() {
    let world = World::mapped();
    world.calls(&[mapti(0, 1, 8193, 1), mapti(2, 1, 8194, 2), unmapd(0), unmapc(2)]);
    assert_eq!((world.peek(DEVICE_TABLE), world.peek(COLLECTION_TABLE + 16)), (0, 0));
    world.refused(int(0, 1));
    world.refused(int(2, 1));
    assert_eq!(world.message(2, 1), []);
    world.calls(&[mapd(0, itt(0), 5), mapc(2, 3)]);
    assert_eq!(
        world.calls(&[int(0, 1)]),
        [SetPending(1, 8193, true)],
        "its table is as it was"
    );
    assert_eq!(world.message(2, 1), [SetPending(3, 8194, true)]);
}

/// Made of a device and an event.
type OfEvent = fn(u32, u32) -> Command;

/// Each command that names an event.
const OF_EVENTS: [(&str, OfEvent); 6] = [
    ("INT", int),
    ("CLEAR", clear),
    ("INV", inv),
    ("DISCARD", discard),
    ("MOVI", |device, event| movi(device, event, 0)),
    ("MAPTI", |device, event| mapti(device, event, 8192, 0)),
];

#[test]
fn a_device_that_is_not_mapped_or_out_of_range_is_refused() {
    let world = World::mapped();
    for (name, command) in OF_EVENTS {
        println!("{name}");
        world.refused(command(4, 0));
        // The table of 64 KB has 8192 entries, and there are 16 bits.
        world.refused(command(8192, 0));
        world.refused(command(0x1_0000, 0));
        world.refused(command(u32::MAX, 0));
    }
    world.refused(mapd(8192, ITTS, 5));
    world.refused(unmapd(8192));
    world.refused(mapd(0x1_0000, ITTS, 5));
    assert_eq!(
        world
            .calls(&[mapd(8191, itt(0), 5), mapti(8191, 0, 8192, 0), int(8191, 0)])
            .len(),
        1
    );
}

#[test]
fn an_event_that_is_not_mapped_or_out_of_range_is_refused() {
    let world = World::mapped();
    // Behind the table of device 0 there are mapped entries of nobody.
    for event in 32..40 {
        world.poke(itt(0) + event * 8, command::VALID | 8200);
    }
    for (name, command) in OF_EVENTS {
        println!("{name}");
        for event in [32, 39, 0x100, 0x1_0000, u32::MAX] {
            world.refused(command(0, event));
        }
        if name != "MAPTI" {
            world.refused(command(0, 3));
        }
    }
}

#[test]
fn more_bits_of_event_than_there_are_is_refused() {
    let world = World::mapped();
    world.refused(mapd(5, ITTS, CONFIG.event_bits + 1));
    world.refused(mapd(5, ITTS, 32));
    world.calls(&[mapd(5, itt(5), CONFIG.event_bits)]);
    // What a command to unmap says of them does not matter.
    world.calls(&[[5 << 32 | 0x08, 31, 0, 0]]);
    assert_eq!(world.peek(DEVICE_TABLE + 5 * 8), 0);
}

#[test]
fn an_intid_that_is_no_lpi_is_refused() {
    let world = World::mapped();
    for lpi in [0, 32, 1023, 8191, 1 << LPI_BITS, u32::MAX] {
        world.refused(mapti(0, 0, lpi, 0));
    }
    world.calls(&[mapti(0, 0, 8192, 0), mapti(0, 1, (1 << LPI_BITS) - 1, 0)]);
}

#[test]
fn a_collection_that_is_not_mapped_or_out_of_range_is_refused() {
    let world = World::mapped();
    world.calls(&[mapti(0, 0, 8192, 0), mapti(0, 1, 8193, 77)]);
    for collection in [77, 256, u16::MAX] {
        world.refused(movi(0, 0, collection));
        world.refused(invall(collection));
    }
    for command in [int(0, 1), clear(0, 1), inv(0, 1), discard(0, 1), movi(0, 1, 0)] {
        world.refused(command);
    }
    for collection in [256, u16::MAX] {
        world.refused(mapti(0, 0, 8192, collection));
        world.refused(mapc(collection, 0));
        world.refused(unmapc(collection));
    }
    assert_eq!(world.calls(&[int(0, 0)]), [SetPending(0, 8192, true)]);
}

#[test]
fn a_processor_that_does_not_exist_is_refused() {
    let world = World::mapped();
    for processor in [CPUS, 0xffff] {
        world.refused(mapc(0, processor));
        world.refused(movall(0, processor));
        world.refused(movall(processor, 0));
        world.refused(sync(processor));
    }
    // To unmap a collection, none is needed.
    world.calls(&[[0x09, 0, 0xffff << 16, 0]]);
}

#[test]
fn reserved_commands_and_those_of_virtual_lpis_are_refused() {
    let world = World::mapped();
    let known = [0x01, 0x03, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f];
    for opcode in (0..=0xff).filter(|opcode| !known.contains(opcode)) {
        world.refused([opcode, 0, 0, 0]);
        world.refused([u64::MAX << 8 | opcode, u64::MAX, u64::MAX, u64::MAX]);
    }
}

#[test]
fn reserved_bits_of_a_command_do_not_matter() {
    let world = World::mapped();
    world.calls(&[mapti(0, 0, 8192, 1)]);
    let [first, ..] = int(0, 0);
    assert_eq!(
        world.calls(&[[first | 0xffff_ff00, 0xffff_ffff_0000_0000, u64::MAX, u64::MAX]]),
        [SetPending(1, 8192, true)]
    );
}
