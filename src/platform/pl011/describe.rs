//! A PL011 as its guest is told of it.

use super::REGION_SIZE;
use crate::description::{Acpi, Part, Serial, Wire};

/// What drivers take for the rate of UARTCLK, which divides to any baud rate.
const UARTCLK_HZ: u32 = 24_000_000;

/// A PL011 at `base` (`arm,pl011`, ARMH0011).
pub fn describe(base: u64, interrupt: Wire) -> Part {
    Part::new("serial")
        .memory(base, REGION_SIZE)
        .wire(interrupt)
        .node(&["arm,pl011", "arm,primecell"], |node| {
            node.clocks(&["uartclk", "apb_pclk"], UARTCLK_HZ)
        })
        .object("CO", "ARMH0011")
        .acpi(Acpi::Serial(Serial::Pl011))
}
