//! Configuration space: what the guest reads, and what it cannot write.

use devisor::pci::*;

use crate::world::*;

#[test]
fn the_header_says_who_the_function_is() {
    let world = World::new(3);
    assert_eq!(world.read(0x00, 4), 0x1042_1af4);
    assert_eq!(world.read(0x08, 4), 0x0180_0201, "class, interface, revision");
    assert_eq!(world.read(0x0e, 1), 0, "type 0");
    assert_eq!(world.read(0x2c, 4), 0x0040_1af4);
    assert_eq!(world.read(0x3d, 1), 1, "INTA");
    assert_eq!(world.read(STATUS, 2), 0x10, "a capability list");
}

#[test]
fn the_capabilities_are_linked_in_the_order_in_which_they_were_added() {
    let world = World::new(3);
    let mut found = Vec::new();
    let mut at = world.read(0x34, 1);
    while at != 0 {
        found.push((at, world.read(at, 1)));
        at = world.read(at + 1, 1);
    }
    assert_eq!(found, [(MSIX, 0x11), (MSI, 0x05), (VENDOR_SPECIFIC, 0x09)]);
    assert_eq!(world.read(MSIX_CONTROL, 2), 2, "three vectors");
    assert_eq!(world.read(MSIX + 4, 4), 3, "the table at the start of BAR 3");
    assert_eq!(world.read(MSIX + 8, 4), 0x1003, "the PBA on the next page");
}

#[test]
fn a_guest_that_writes_ones_everywhere_changes_what_it_may_and_nothing_else() {
    let world = World::new(3);
    for offset in 0..0x100 {
        world.endpoint.write_config(offset, &[0xff]);
    }
    let expected = |offset: u64| match offset {
        0x00 => 0x1042_1af4,
        0x04 => 0x0010_0547,
        0x08 => 0x0180_0201,
        0x0c => 0xff,
        0x10 => 0xffff_c004,
        0x14 => 0xffff_ffff,
        0x18 => 0xffff_ffe1,
        0x1c => 0xffff_e000,
        0x20 => 0xffff_f000,
        0x2c => 0x0040_1af4,
        0x34 => 0x40,
        0x3c => 0x01ff,
        0x40 => 0xc002_4c11,
        0x44 => 0x0003,
        0x48 => 0x1003,
        0x4c => 0x01f7_6405,
        0x50 => 0xffff_fffc,
        0x54 => 0xffff_ffff,
        0x58 => 0xffff,
        0x5c => 0xff,
        0x64 => 0xaa06_0009,
        0x68 => 0x005f,
        _ => 0,
    };
    for offset in (0..0x100).step_by(4) {
        assert_eq!(world.read(offset, 4), expected(offset), "at {offset:#x}");
    }
}

#[test]
fn a_read_of_any_width_is_made_of_the_bytes_it_covers() {
    let world = World::new(3);
    let bytes: Vec<u8> = (0..0x100).map(|offset| world.read(offset, 1) as u8).collect();
    for offset in 0..0x100 {
        for len in 0..=17 {
            let mut data = vec![0; len];
            world.endpoint.read_config(offset as u64, &mut data);
            let expected: Vec<u8> = (offset..offset + len)
                .map(|at| bytes.get(at).copied().unwrap_or(0xff))
                .collect();
            assert_eq!(data, expected, "{len} bytes at {offset:#x}");
        }
    }
}

#[test]
fn a_write_that_straddles_registers_reaches_each_of_them() {
    let world = World::new(3);
    // Interrupt Line is writable, the capabilities pointer before it is not, nor is the pin after it.
    world.endpoint.write_config(0x39, &[0xff, 0xff, 0xff, 0x5a, 0xff]);
    assert_eq!(world.read(0x3c, 4), 0x015a);
    // The upper half of the command register, and the lower half of the status register.
    world.endpoint.write_config(COMMAND + 1, &[0x04, 0xff]);
    assert_eq!(world.read(COMMAND, 4), 0x0010_0400);
}

#[test]
fn accesses_beyond_the_space_read_ones_and_write_nothing() {
    let world = World::new(3);
    let before = world.endpoint.save();
    for offset in [0x100, 0xfff, u64::MAX - 1, u64::MAX] {
        let mut data = [0; 8];
        world.endpoint.read_config(offset, &mut data[..1]);
        assert_eq!(data[0], 0xff);
        world.endpoint.read_config(offset, &mut data);
        world.endpoint.write_config(offset, &[0xff; 8]);
    }
    assert_eq!(world.endpoint.save(), before);
}

#[test]
fn the_decode_bits_exist_only_with_a_bar_of_their_kind() {
    let mut config = EndpointConfig::new(IDENTITY).unwrap();
    config.bar(BarIndex::Bar0, Bar::io(4)).unwrap();
    let endpoint = Endpoint::new(config, silent_slot(at(1, 0)));
    endpoint.write_config(COMMAND, &[0xff]);
    let mut command = [0];
    endpoint.read_config(COMMAND, &mut command);
    assert_eq!(command, [0x45], "I/O, bus master and parity, without memory");
}

#[test]
fn a_reset_brings_every_register_back() {
    let world = World::enabled(3);
    let fresh = World::new(3).endpoint.save();
    world.open(1);
    world.endpoint.write_config(0x10, &[0xff; 8]);
    world.endpoint.intx().update(|_| 1);
    world.msix().trigger(0).unwrap();
    assert_ne!(world.endpoint.save(), fresh);
    world.endpoint.reset();
    assert_eq!(world.endpoint.save(), fresh);
}

#[test]
fn a_layout_that_no_guest_could_use_is_refused_with_what_would_do() {
    let none = Identity {
        vendor: 0xffff,
        ..IDENTITY
    };
    assert_eq!(EndpointConfig::new(none).unwrap_err(), ConfigError::NoVendor);
    let mut config = EndpointConfig::new(IDENTITY).unwrap();
    for (bar, refused) in [
        (Bar::memory32(0x1001), "from 0x10 to 0x80000000"),
        (Bar::memory32(8), "from 0x10 to 0x80000000"),
        (Bar::memory32(0), "from 0x10 to 0x80000000"),
        (Bar::memory32(1 << 32), "from 0x10 to 0x80000000"),
        (Bar::memory64(3), "from 0x10 to 0x8000000000000000"),
        (Bar::io(0x200), "from 0x4 to 0x100"),
    ] {
        let error = config.bar(BarIndex::Bar0, bar).unwrap_err().to_string();
        assert!(error.contains(refused), "{error}");
    }
    let last = config.bar(BarIndex::Bar5, Bar::memory64(0x1000)).unwrap_err();
    assert_eq!(last, ConfigError::NoUpperHalf(BarIndex::Bar5));
    config.bar(BarIndex::Bar2, Bar::memory32(0x1000)).unwrap();
    for (index, bar) in [(BarIndex::Bar2, Bar::io(4)), (BarIndex::Bar1, Bar::memory64(0x1000))] {
        assert_eq!(config.bar(index, bar).unwrap_err(), ConfigError::BarTaken(index));
    }
    for count in [0, 2049] {
        let error = config.msix(BarIndex::Bar0, count).unwrap_err().to_string();
        assert!(error.contains("1 to 2048"), "{error}");
    }
    for count in [0, 3, 64] {
        assert!(matches!(config.msi(count), Err(ConfigError::Vectors { .. })));
    }
    assert!(matches!(
        config.msix(BarIndex::Bar2, 4),
        Err(ConfigError::BarTaken(BarIndex::Bar2))
    ));
    config.msi(32).unwrap();
    assert_eq!(config.msi(32).unwrap_err(), ConfigError::Twice("MSI"));
    config.msix(BarIndex::Bar0, 2048).unwrap();
    assert_eq!(config.msix(BarIndex::Bar1, 1).unwrap_err(), ConfigError::Twice("MSI-X"));
    assert!(matches!(
        config.capability(9, &[0; 2], &[0; 3]),
        Err(ConfigError::MaskLength { .. })
    ));
    let full = config.capability(9, &[0; 0xff], &[0; 0xff]).unwrap_err().to_string();
    assert!(full.contains("156 are left"), "{full}");
}

#[test]
fn a_capability_that_fills_the_space_to_its_last_byte_fits() {
    let mut config = EndpointConfig::new(IDENTITY).unwrap();
    config.capability(9, &[0x5a; 0xbe], &[0; 0xbe]).unwrap();
    let endpoint = Endpoint::new(config, silent_slot(at(1, 0)));
    let mut last = [0];
    endpoint.read_config(0xff, &mut last);
    assert_eq!(last, [0x5a]);
}

#[test]
fn a_function_of_pci_express_has_4096_bytes_of_configuration_space_without_extended_capabilities() {
    let mut config = EndpointConfig::new(IDENTITY).unwrap();
    config.express().unwrap();
    assert_eq!(
        config.express().unwrap_err(),
        ConfigError::Twice("the PCI Express capability")
    );
    let endpoint = Endpoint::new(config, silent_slot(at(1, 0)));
    let read = |offset: u64| {
        let mut data = [0x5a; 4];
        endpoint.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    let capability = 0x40;
    assert_eq!(read(capability), 0x0092_0010, "version 2, integrated endpoint");
    assert_eq!(read(capability + 4), 1 << 15);
    assert_eq!(read(capability + 8), 0x2810);
    for offset in (0x100..0x1000).step_by(4) {
        assert_eq!(read(offset), 0, "at {offset:#x}");
    }
    assert_eq!([read(0xffe), read(0x1000)], [0xffff_0000, 0xffff_ffff]);

    let before = endpoint.save();
    for offset in (0x100..0x1000).chain(capability + 10..capability + 0x3c) {
        endpoint.write_config(offset, &[0xff]);
    }
    assert_eq!(endpoint.save(), before);
    endpoint.write_config(capability + 8, &[0xff; 4]);
    assert_eq!(
        read(capability + 8),
        0x78ff,
        "no reset by the function itself, no status"
    );
    endpoint.reset();
    assert_eq!(endpoint.save(), before);
}
