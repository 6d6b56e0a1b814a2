//! The keyboard controller of a PC as its guest is told of it.

use crate::description::{Acpi, Object, Part, Region, Space, Wire};

/// An 8042 with keyboard (PNP0303) and mouse (PNP0F13), at ports 0x60 and 0x64: GSIs 1 and 12 in a PC.
pub fn describe(keyboard: Wire, mouse: Wire) -> Part {
    let ports = [0x60, 0x64].map(|base| Region {
        space: Space::Ports,
        base,
        len: 1,
    });
    let object = |hid, regions: &[Region], wire| {
        Acpi::Device(Object {
            regions: regions.to_vec(),
            wires: vec![wire],
            ..Object::new("PS", hid)
        })
    };
    Part::new("i8042")
        .ports(0x60, 1)
        .ports(0x64, 1)
        .wire(keyboard)
        .wire(mouse)
        .acpi(object("PNP0303", &ports, keyboard))
        .acpi(object("PNP0F13", &[], mouse))
        .acpi(Acpi::Keyboard)
}
