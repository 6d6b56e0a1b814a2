//! A virtio-mmio device as its guest is told of it.

use super::REGION_SIZE;
use crate::description::{Acpi, Object, Part, Wire};

/// A device at `base` (`virtio,mmio`, LNRO0005), whatever it is: the guest reads that.
pub fn describe(base: u64, interrupt: Wire) -> Part {
    let part = Part::new("virtio_mmio")
        .memory(base, REGION_SIZE)
        .wire(interrupt)
        .node(&["virtio,mmio"], |node| node.flag("dma-coherent"));
    let object = Object {
        regions: part.regions().to_vec(),
        wires: vec![interrupt],
        coherent: true,
        ..Object::new("VR", "LNRO0005")
    };
    part.acpi(Acpi::Device(object))
}
