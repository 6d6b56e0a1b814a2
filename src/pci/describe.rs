//! A host bridge and its bus as their guest is told of them. What is on the bus, the guest finds.

use super::{CONFIG_PORTS, ConfigPorts, Ecam};
use crate::description::{Acpi, Cell, Node, Part, PciHost, Value, Wire};

/// Space codes of a PCI address (IEEE 1275 PCI bus binding, 2.2.1.1).
const IO: u32 = 0x0100_0000;
const MEMORY_32: u32 = 0x0200_0000;
const MEMORY_64: u32 = 0x0300_0000;

/// A host bridge (`pci-host-ecam-generic` if it has an ECAM, PNP0A08). Wires are shared, whether or not `host` says so.
pub fn describe(host: PciHost) -> Part {
    let host = PciHost {
        wires: host.wires.map(Wire::shared),
        ..host
    };
    let mut part = Part::new("pcie");
    if let Some(ecam) = host.ecam {
        part = part.memory(ecam, Ecam::SIZE * host.buses.clone().count() as u64);
    }
    if host.config_ports {
        part = part.ports(CONFIG_PORTS as u16, ConfigPorts::SIZE);
    }
    // One wire may be several pins'.
    for (at, &wire) in host.wires.iter().enumerate() {
        if !host.wires[..at].contains(&wire) {
            part = part.wire(wire);
        }
    }
    if let Some(ecam) = host.ecam {
        part = part.with_node(node(ecam, &host));
    }
    for &(base, len) in &host.memory {
        part = part.memory(base, len);
    }
    for window in &host.ports {
        part = match window.memory {
            Some(memory) => part.memory(memory, window.len.into()),
            // The bus decodes what nothing before it does: others may have ports in there.
            None => part,
        };
    }
    part.acpi(Acpi::PciHost(host))
}

fn node(ecam: u64, host: &PciHost) -> Node {
    let mut ranges = Vec::new();
    for window in &host.ports {
        if let Some(memory) = window.memory {
            ranges.extend([Cell::U32(IO), Cell::U64(window.base.into())]);
            ranges.extend([memory, window.len.into()].map(Cell::U64));
        }
    }
    for &(base, len) in &host.memory {
        let below = base.checked_add(len).is_some_and(|end| end <= 1 << 32);
        let space = if below { MEMORY_32 } else { MEMORY_64 };
        // At the same address on both sides.
        ranges.push(Cell::U32(space));
        ranges.extend([base, base, len].map(Cell::U64));
    }
    // INTA to INTD of a device, by the two low bits of its number.
    let mut map = Vec::new();
    for device in 0..4 {
        for pin in 0..4 {
            map.extend([device << 11, 0, 0, pin + 1].map(Cell::U32));
            map.push(Cell::Parent(host.wires[(device + pin) as usize % 4]));
        }
    }
    let buses = [*host.buses.start(), *host.buses.end()];
    let size = Ecam::SIZE * host.buses.clone().count() as u64;
    Node::new(format!("pcie@{ecam:x}"))
        .text("compatible", "pci-host-ecam-generic")
        .text("device_type", "pci")
        .cells("reg", [ecam, size].map(Cell::U64))
        .number("#address-cells", 3)
        .number("#size-cells", 2)
        .number("#interrupt-cells", 1)
        .cells("bus-range", buses.map(|bus| Cell::U32(bus.into())))
        .cells("ranges", ranges)
        .cells("interrupt-map-mask", [3 << 11, 0, 0, 7].map(Cell::U32))
        .cells("interrupt-map", map)
        .property("msi-map", Value::Messages)
        .flag("dma-coherent")
}
