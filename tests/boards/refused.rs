//! Boards that cannot be: the error names both parts.

use devisor::{
    backends::irqchip::{
        Ppi, Spi,
        gicv3::{self, GicV3Config},
        ioapic::{self, IoApicConfig},
        its,
        lapic::{self, ApicId},
        pc::Gsi,
    },
    description::{
        Acpi, BoardError, Input, Object, Part, PciHost, PortWindow, Region, Space, Wire,
        acpi::{self, Oem},
        arm, check,
        fdt::{self, Boot},
        memory,
    },
    platform::{ged, pl011, pl031, uart16550},
    virtio::transport::mmio,
};

use crate::parts;

fn gic() -> Part {
    gicv3::describe(&GicV3Config::new(1), 0x0800_0000, &[0x080a_0000])
}

/// What all three say of these parts.
fn refused(parts: &[Part]) -> String {
    let error = check(parts).expect_err("it was to be refused");
    assert_eq!(fdt::build(parts, &Boot::default()).as_ref(), Err(&error));
    assert_eq!(acpi::build(parts, 0, &Oem::default()).as_ref(), Err(&error));
    error.to_string()
}

#[test]
fn the_boards_are_not() {
    for board in [parts::pc(), parts::virt(), parts::virt_gicv2(), parts::microvm()] {
        assert_eq!(check(&board), Ok(()));
    }
}

#[test]
fn parts_in_the_same_place_are_refused() {
    let parts = [
        gic(),
        pl011::describe(0x0900_0000, Wire::level(Spi(1))),
        mmio::describe(0x0900_0f00, Wire::level(Spi(2))),
    ];
    assert_eq!(
        refused(&parts),
        "virtio_mmio@9000f00 has 0x200 bytes of memory at 0x9000f00, which overlaps 0x1000 bytes of memory at 0x9000000 of serial@9000000"
    );
    // Next to each other they may be, and a port is not memory.
    let parts = [
        Part::new("a").memory(0x1000, 0x1000),
        Part::new("b").memory(0x2000, 0x1000),
        Part::new("c").memory(0, 0x1000),
        Part::new("d").ports(0x1000, 0x1000),
        Part::new("e").memory(0xffff_ffff_ffff_f000, 0x1000),
    ];
    assert_eq!(check(&parts), Ok(()));
}

#[test]
fn devices_in_ram_are_refused() {
    let parts = [memory(0, 1 << 30), Part::new("framebuffer").memory(0x1000, 0x10)];
    assert!(refused(&parts).starts_with("framebuffer@1000 has 0x10 bytes of memory"));
}

#[test]
fn regions_that_are_none_are_refused() {
    let nothing = [Part::new("a").memory(0x1000, 0)];
    assert!(refused(&nothing).contains("a@1000 has 0x0 bytes of memory at 0x1000"));
    let beyond = [Part::new("a").memory(u64::MAX, 2)];
    assert!(matches!(check(&beyond), Err(BoardError::Bounds { .. })));
    let ports = [Part::new("a").ports(0xffff, 2)];
    assert!(refused(&ports).contains("a@ffff has 0x2 bytes of ports at 0xffff"));
    assert_eq!(check(&[Part::new("a").ports(0xffff, 1)]), Ok(()));
}

#[test]
fn one_input_for_two_is_refused_unless_both_share_it_alike() {
    let two = |first, second| {
        [
            gic(),
            pl011::describe(0x0900_0000, first),
            pl031::describe(0x0901_0000, second),
        ]
    };
    let wire = Wire::level(Spi(1));
    let expected = "rtc@9010000 interrupts by SPI 1, which is serial@9000000's: \
                    both would have to share it, with one trigger and one polarity";
    assert_eq!(refused(&two(wire, wire)), expected);
    assert_eq!(refused(&two(wire.shared(), wire)), expected);
    assert_eq!(refused(&two(wire, wire.shared())), expected);
    assert_eq!(refused(&two(wire.shared(), Wire::edge(Spi(1)).shared())), expected);
    assert_eq!(refused(&two(wire.shared(), wire.active_low().shared())), expected);
    assert_eq!(check(&two(wire.shared(), wire.shared())), Ok(()));
}

#[test]
fn an_input_beyond_the_controllers_is_refused() {
    let with = |wire| [gic(), pl011::describe(0x0900_0000, wire)];
    assert_eq!(
        refused(&with(Wire::level(Spi(96)))),
        "serial@9000000 interrupts by SPI 96: interrupt-controller@8000000 has 96 SPIs and 16 PPIs, from 0 on"
    );
    assert_eq!(check(&with(Wire::level(Spi(95)))), Ok(()));
    assert!(refused(&with(Wire::level(Ppi(16)))).contains("by PPI 16"));
    assert!(refused(&with(Wire::level(Input::Gsi(4)))).contains("by GSI 4"));

    let with = |first, gsi| {
        let ioapic = ioapic::describe(&IoApicConfig::default(), 0xfec0_0000, first);
        [ioapic, uart16550::describe(0x3f8, Wire::edge(Gsi(gsi)))]
    };
    assert_eq!(
        refused(&with(0, 24)),
        "serial@3f8 interrupts by GSI 24: ioapic@fec00000 has 24 GSIs, from 0 on"
    );
    assert_eq!(check(&with(0, 23)), Ok(()));
    assert_eq!(check(&with(8, 24)), Ok(()));
    assert!(refused(&with(8, 7)).contains("by GSI 7"));
}

#[test]
fn interrupts_without_a_controller_are_refused() {
    let parts = [pl011::describe(0x0900_0000, Wire::level(Spi(1)))];
    assert_eq!(
        refused(&parts),
        "serial@9000000 needs an interrupt controller, and the board has none"
    );
    let cpus = [arm::cpus("arm,cortex-a53", &[0])];
    let error = acpi::build(&cpus, 0, &Oem::default()).expect_err("a MADT needs one");
    assert_eq!(
        error.to_string(),
        "cpus needs an interrupt controller, and the board has none"
    );
}

#[test]
fn two_of_what_a_board_has_one_of_are_refused() {
    let mut parts = parts::virt();
    parts.push(gicv3::describe(
        &GicV3Config::new(1),
        0x2800_0000_0000,
        &[0x2900_0000_0000],
    ));
    assert_eq!(
        refused(&parts),
        "interrupt-controller@8000000 and interrupt-controller@280000000000 are both the interrupt controller: a board has one"
    );
    let parts = [gic(), its::describe(0x0808_0000), its::describe(0x2808_0000_0000)];
    assert!(refused(&parts).contains("are both what takes messages"));
    let uart = |base, spi| pl011::describe(base, Wire::level(Spi(spi))).console();
    assert!(refused(&[gic(), uart(0x0900_0000, 1), uart(0x0901_0000, 2)]).contains("are both the console"));

    let mut parts = parts::microvm();
    parts.push(ged::describe(0xfe00_0000, Some(0xfe00_1000), Wire::level(Gsi(5))));
    let error = acpi::build(&parts, 0, &Oem::default()).expect_err("it has two");
    assert!(
        error
            .to_string()
            .starts_with("generic-events@fea00000 and generic-events@fe000000"),
        "{error}"
    );
}

#[test]
fn what_a_table_has_no_room_for_is_refused() {
    let refused = |part: Part| {
        let error = acpi::build(&[gic(), part], 0, &Oem::default()).expect_err("it does not fit");
        error.to_string()
    };
    let many = Part::new("uart").ports(0x1000, 0x100).object("UA", "PNP0501");
    assert_eq!(
        refused(many),
        "uart@1000: the number of ports is 0x100: the table has 8 bits for it"
    );
    let object = |prefix, hid| Part::new("x").acpi(Acpi::Device(Object::new(prefix, hid)));
    assert!(refused(object("a", "PNP0501")).contains("2 letters A to Z"));
    assert!(refused(object("UA", "no id")).contains("the ACPI ID \"no id\""));
    let ioapic = ioapic::describe(&IoApicConfig::default(), 1 << 32, 0);
    let parts = [lapic::describe(&[ApicId(0)]), ioapic];
    let error = acpi::build(&parts, 0, &Oem::default()).expect_err("32 bits");
    assert_eq!(
        error.to_string(),
        "ioapic@100000000: the address of the IOAPIC is 0x100000000: the table has 32 bits for it"
    );
    let many: Vec<_> = (0..257).map(|_| object("UA", "PNP0501")).collect();
    assert!(acpi::build(&many[1..], 0, &Oem::default()).is_ok());
    assert!(acpi::build(&many, 0, &Oem::default()).is_err());
}

#[test]
fn entries_by_hand_that_cannot_be_are_refused() {
    let refused = |entry| {
        let parts = [gic(), Part::new("by-hand").acpi(entry)];
        acpi::build(&parts, 0, &Oem::default())
            .expect_err("it cannot be")
            .to_string()
    };
    let host = || PciHost {
        ecam: Some(0x3f00_0000),
        config_ports: false,
        buses: 0..=0,
        memory: vec![],
        ports: vec![],
        wires: [3, 4, 5, 6].map(|spi| Wire::level(Spi(spi))),
    };
    for memory in [(0, 0), (u64::MAX, 2)] {
        let memory = vec![memory];
        assert!(refused(Acpi::PciHost(PciHost { memory, ..host() })).starts_with("by-hand has"));
    }
    for (base, len) in [(0, 0), (1, 0x1_0000), (0xffff, 2)] {
        let memory = None;
        let ports = vec![PortWindow { base, len, memory }];
        assert!(refused(Acpi::PciHost(PciHost { ports, ..host() })).starts_with("by-hand has"));
    }
    #[allow(clippy::reversed_empty_ranges, reason = "that is the mistake")]
    for (ecam, buses) in [(Some(0), 1..=0), (Some(0xf_ffff), 1..=2)] {
        let error = refused(Acpi::PciHost(PciHost { ecam, buses, ..host() }));
        assert!(error.starts_with("by-hand: buses"), "{error}");
    }
    for (space, base, len) in [
        (Space::Memory, 0, 0),
        (Space::Memory, 2, u64::MAX),
        (Space::Ports, 0xffff, 2),
        (Space::Ports, u64::MAX, 1),
    ] {
        let object = Object {
            regions: vec![Region { space, base, len }],
            ..Object::new("XX", "PNP0501")
        };
        assert!(refused(Acpi::Device(object)).starts_with("by-hand has"));
    }
    let node = [Part::new("nul").node(&["a\0b"], |node| node)];
    assert!(matches!(fdt::build(&node, &Boot::default()), Err(BoardError::Fdt(_))));
}

#[test]
fn tables_lie_at_a_multiple_of_64() {
    let error = acpi::build(&parts::microvm(), 0xe_0010, &Oem::default()).expect_err("it is not one");
    assert!(error.to_string().contains("must be a multiple of 64"), "{error}");
}

#[test]
fn a_device_tree_has_no_words_for_pins_of_an_ioapic() {
    let parts = [
        ioapic::describe(&IoApicConfig::default(), 0xfec0_0000, 0),
        mmio::describe(0xfeb0_0000, Wire::level(Gsi(16))),
    ];
    let error = fdt::build(&parts, &Boot::default()).expect_err("there is no binding");
    assert!(
        error
            .to_string()
            .starts_with("virtio_mmio@feb00000: GSI 16 has no words"),
        "{error}"
    );
}
