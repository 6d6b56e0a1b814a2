//! Where entries are, by every way in which a guest may lay out its tables.

use super::{Call::*, command::*, *};

/// The three page sizes: what GITS_BASERn says, and the size.
const PAGES: [(u64, u64); 3] = [(0, 0x1000), (1, 0x4000), (2, 0x1_0000)];

#[test]
fn a_flat_table_has_as_many_entries_as_it_has_room_for() {
    for (page_size, size) in PAGES {
        for pages in [1, 3] {
            let layout = DEVICE_TABLE | page_size << 8 | (pages - 1);
            let world = World::with(CONFIG, layout, COLLECTION_TABLE);
            let entries = (pages * size / 8) as u32;
            for device in [0, 1, entries - 1] {
                world.calls(&[mapd(device, itt(1), 3)]);
                assert_eq!(world.peek(DEVICE_TABLE + u64::from(device) * 8), VALID | itt(1) | 2);
            }
            world.refused(mapd(entries, itt(1), 3));
        }
    }
}

#[test]
fn a_table_of_two_levels_has_a_page_for_each_entry_that_is_valid() {
    for (page_size, size) in PAGES {
        let world = World::with(CONFIG, INDIRECT | DEVICE_TABLE | page_size << 8, COLLECTION_TABLE);
        let per_page = (size / 8) as u32;
        let pages = 0x1_0000 / per_page;
        // Device IDs in the last page of the second level that there are IDs for.
        let device = (pages - 1) * per_page + 5;
        world.refused(mapd(device, itt(1), 3));
        world.poke(DEVICE_TABLE + u64::from(pages - 1) * 8, LEVEL_2);
        world.refused(mapd(device, itt(1), 3));
        // Bits below the page size are reserved.
        world.poke(DEVICE_TABLE + u64::from(pages - 1) * 8, VALID | LEVEL_2 | (size - 1));
        world.calls(&[mapd(device, itt(1), 3)]);
        assert_eq!(world.peek(LEVEL_2 + 5 * 8), VALID | itt(1) | 2);
        world.calls(&[mapc(0, 1), mapti(device, 1, 8192, 0)]);
        assert_eq!(world.calls(&[int(device, 1)]), [SetPending(1, 8192, true)]);
        assert_eq!(world.message(device as u16, 1), [SetPending(1, 8192, true)]);
        world.refused(mapd(0x1_0000, itt(1), 3));
    }
}

#[test]
fn the_first_level_has_as_many_entries_as_it_has_room_for() {
    let config = ItsConfig {
        device_bits: 32,
        ..CONFIG
    };
    let world = World::with(config, INDIRECT | DEVICE_TABLE | 1, COLLECTION_TABLE);
    for entry in 0..1025 {
        world.poke(DEVICE_TABLE + entry * 8, VALID | LEVEL_2);
    }
    let ids = 1024 * 512;
    world.calls(&[mapd(ids - 1, itt(1), 3)]);
    world.refused(mapd(ids, itt(1), 3));
    world.refused(mapd(u32::MAX, itt(1), 3));
}

#[test]
fn collections_have_a_table_of_two_levels_too() {
    let config = ItsConfig {
        collection_bits: 16,
        ..CONFIG
    };
    let world = World::with(config, DEVICE_TABLE, INDIRECT | COLLECTION_TABLE);
    world.poke(COLLECTION_TABLE + 127 * 8, VALID | LEVEL_2);
    world.calls(&[mapc(0xffff, 3), mapd(0, ITTS, 5), mapti(0, 0, 8192, 0xffff)]);
    assert_eq!(world.peek(LEVEL_2 + 511 * 8), VALID | 3 << 16);
    assert_eq!(world.message(0, 0), [SetPending(3, 8192, true)]);
    world.refused(mapc(0, 0));
    world.calls(&[mapti(0, 0, 8192, 0)]);
    world.refused(int(0, 0));
    world.poke(COLLECTION_TABLE, VALID | (LEVEL_2 + 0x1000));
    world.calls(&[mapc(0, 2)]);
    assert_eq!(
        world.message(0, 0),
        [SetPending(2, 8192, true)],
        "there is a page for it now"
    );
}

#[test]
fn without_a_valid_table_everything_is_refused() {
    for (devices, collections) in [(0, VALID), (VALID, 0)] {
        let world = World::fresh(CONFIG);
        world.write(CBASER, VALID | QUEUE);
        world.write(BASER, devices | DEVICE_TABLE);
        world.write(BASER + 8, collections | COLLECTION_TABLE);
        world.write(CTLR, 1);
        let refused = [devices == 0, collections == 0].map(u64::from);
        assert_eq!([world.run(&[mapd(0, ITTS, 5)]), world.run(&[mapc(0, 0)])], refused);
        assert_eq!(world.run(&[mapti(0, 0, 8192, 0)]), 1);
        assert_eq!(world.message(0, 0), []);
    }
}

#[test]
fn with_pages_of_64_kb_bits_15_to_12_are_those_of_an_address_above_48_bits() {
    let memory = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(RAM), RAM_SIZE as usize),
        (GuestAddress(0x000a_0000_0001_0000), 0x1_0000),
    ]);
    let world = World::over(CONFIG, Arc::new(memory.unwrap()), Arc::default());
    world.write(CBASER, VALID | QUEUE);
    world.write(BASER, VALID | 0x1_0000 | 0xa << 12 | 2 << 8);
    world.write(CTLR, 1);
    world.calls(&[mapd(2, itt(1), 5)]);
    assert_eq!(world.peek(0x000a_0000_0001_0010), VALID | itt(1) | 4);
}

#[test]
fn the_entries_are_in_format_1() {
    let world = World::mapped();
    world.calls(&[mapti(3, 5, 0x2345, 0x67)]);
    assert_eq!(world.peek(DEVICE_TABLE + 3 * 8), VALID | itt(3) | 4);
    assert_eq!(world.peek(COLLECTION_TABLE + 3 * 8), VALID | 3 << 16);
    assert_eq!(world.peek(itt(3) + 5 * 8), VALID | 0x67 << 32 | 0x2345);
    assert_eq!(TABLE_FORMAT, 1);
}
