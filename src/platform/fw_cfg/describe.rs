//! The firmware configuration device as its guest is told of it.

use super::{FwCfgMmio, FwCfgPorts};
use crate::description::{Acpi, Object, Part};

const HID: &str = "QEMU0002";

/// At the ports from `base` on (QEMU0002): 0x510 in a PC.
pub fn describe(base: u16) -> Part {
    with_object(Part::new("fw-cfg").ports(base, FwCfgPorts::SIZE))
}

/// In memory (`qemu,fw-cfg-mmio`, QEMU0002).
pub fn describe_in_memory(base: u64) -> Part {
    let part = Part::new("fw-cfg").memory(base, FwCfgMmio::SIZE);
    with_object(part.node(&["qemu,fw-cfg-mmio"], |node| node.flag("dma-coherent")))
}

fn with_object(part: Part) -> Part {
    let object = Object {
        regions: part.regions().to_vec(),
        coherent: true,
        hidden: true,
        ..Object::new("FW", HID)
    };
    part.acpi(Acpi::Device(object))
}
