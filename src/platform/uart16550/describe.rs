//! A 16550 as its guest is told of it.

use super::REGION_SIZE;
use crate::description::{Acpi, Part, Serial, Wire};

/// The crystal of a PC's UART.
const CLOCK_HZ: u32 = 1_843_200;

/// A 16550 at the ports from `base` on (PNP0501): 0x3f8 and GSI 4, as an edge of ISA, are COM1.
pub fn describe(base: u16, interrupt: Wire) -> Part {
    Part::new("serial")
        .ports(base, REGION_SIZE)
        .wire(interrupt)
        .object("CO", "PNP0501")
        .acpi(Acpi::Serial(Serial::Uart16550))
}

/// A 16550 in memory, with registers 2 to the power of `register_shift` bytes apart (`ns16550a`; PNP0501 if they are a byte
/// apart, which is all that ACPI has words for).
pub fn describe_in_memory(base: u64, register_shift: u32, interrupt: Wire) -> Part {
    let shift = register_shift.min(8);
    let part = Part::new("serial")
        .memory(base, REGION_SIZE << shift)
        .wire(interrupt)
        .node(&["ns16550a"], |node| {
            node.number("clock-frequency", CLOCK_HZ)
                .number("reg-shift", shift)
                .number("reg-io-width", if shift == 2 { 4 } else { 1 })
        });
    match shift {
        0 => part.object("CO", "PNP0501").acpi(Acpi::Serial(Serial::Uart16550)),
        _ => part,
    }
}
