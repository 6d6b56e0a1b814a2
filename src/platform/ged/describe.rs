//! A generic event device as its guest is told of it: the DSDT, and sleep and reset of the FADT.

use super::registers::{REGISTERS_SIZE, RESET, RESET_VALUE, S5, SELECTOR_SIZE, SLEEP_CONTROL, SLEEP_STATUS, event};
use crate::description::{Acpi, EventBits, EventRegisters, Part, Wire};

/// A device (ACPI0013) whose event selector is at `selector`, with its power button (PNP0C0C) and its sleep button (PNP0C0E).
/// `registers` are the sleep and reset registers, if they are on the bus: where there is PSCI, that powers off and resets.
/// The wire is level-triggered.
///
/// A device tree has no such device: there is a [key at a PL061](crate::platform::pl061::describe) instead.
pub fn describe(selector: u64, registers: Option<u64>, interrupt: Wire) -> Part {
    let part = Part::new("generic-events")
        .memory(selector, SELECTOR_SIZE)
        .wire(interrupt);
    let part = match registers {
        Some(base) => part.memory(base, REGISTERS_SIZE),
        None => part,
    };
    part.acpi(Acpi::Events {
        selector,
        wire: interrupt,
        bits: EventBits {
            power_button: event::POWER_BUTTON,
            sleep_button: Some(event::SLEEP_BUTTON),
        },
        registers: registers.map(|base| {
            let at = |register: u64| base.saturating_add(register);
            EventRegisters {
                sleep_control: at(SLEEP_CONTROL),
                sleep_status: at(SLEEP_STATUS),
                reset: (at(RESET), RESET_VALUE),
                s5: S5,
            }
        }),
    })
}
