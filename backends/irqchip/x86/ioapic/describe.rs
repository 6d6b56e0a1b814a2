//! An IOAPIC as its guest is told of it.

use super::{IoApic, IoApicConfig};
use crate::description::{Acpi, Inputs, Part};

/// An IOAPIC at `address`, whose pin 0 is the GSI `first` (MADT). That has 32 bits for the address.
pub fn describe(config: &IoApicConfig, address: u64, first: u32) -> Part {
    let pins = config.pins;
    Part::new("ioapic")
        .memory(address, IoApic::SIZE)
        .controls(Inputs::IoApic { first, pins })
        .acpi(Acpi::IoApic { address, first })
}
