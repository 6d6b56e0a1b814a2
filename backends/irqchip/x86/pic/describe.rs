//! The pair of 8259As as its guest is told of it.

use super::{ChipPorts, ElcrPorts};
use crate::description::{Acpi, Part};

/// The pair at the ports of a PC, beside an IOAPIC (PCAT_COMPAT of the MADT).
pub fn describe() -> Part {
    Part::new("pic")
        .ports(0x20, ChipPorts::SIZE)
        .ports(0xa0, ChipPorts::SIZE)
        .ports(0x4d0, ElcrPorts::SIZE)
        .acpi(Acpi::Pics)
}
