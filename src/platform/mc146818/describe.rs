//! The clock of a PC as its guest is told of it.

use super::{PORTS, registers::CENTURY};
use crate::description::{Acpi, Part, Wire};

/// A clock at the ports from `base` on (PNP0B00): 0x70 and GSI 8 in a PC.
pub fn describe(base: u16, interrupt: Wire) -> Part {
    Part::new("rtc")
        .ports(base, PORTS)
        .wire(interrupt)
        .object("RT", "PNP0B00")
        .acpi(Acpi::CmosClock(CENTURY as u8))
}
