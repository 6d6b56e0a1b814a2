//! The 8254 as its guest is told of it.

use super::{CounterPorts, PortB};
use crate::description::{Acpi, Part, Wire};

/// The 8254 at the ports of a PC, with IRQ 0 of ISA: the MADT says at which GSI that ends.
pub fn describe(irq_0: Wire) -> Part {
    Part::new("pit")
        .ports(0x40, CounterPorts::SIZE)
        .ports(0x61, PortB::SIZE)
        .wire(irq_0)
        .acpi(Acpi::IsaIrq { irq: 0, wire: irq_0 })
}
