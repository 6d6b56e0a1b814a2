//! A PL061 as its guest is told of it, and a power button at one of its pins.

use super::REGION_SIZE;
use crate::description::{Cell, Node, Part, Wire};

/// `KEY_POWER` of Linux's input events.
const KEY_POWER: u32 = 116;

/// A PL061 at `base` (`arm,pl061`, ARMH0061). `power_key` is the pin that goes up while the power button is pressed
/// (`gpio-keys`): a device tree tells of it, and ACPI has the [generic event device](crate::platform::ged) for that.
pub fn describe(base: u64, interrupt: Wire, power_key: Option<u8>) -> Part {
    let part = Part::new("gpio")
        .memory(base, REGION_SIZE)
        .wire(interrupt)
        .node(&["arm,pl061", "arm,primecell"], |node| {
            node.clocks(&["apb_pclk"], 24_000_000)
                .number("#gpio-cells", 2)
                .flag("gpio-controller")
                .referred()
        })
        .object("GP", "ARMH0061");
    let Some(pin) = power_key else {
        return part;
    };
    const ACTIVE_HIGH: u32 = 0;
    let key = Node::new("poweroff")
        .text("label", "GPIO Key Poweroff")
        .number("linux,code", KEY_POWER)
        .cells("gpios", [Cell::Own, Cell::U32(pin.into()), Cell::U32(ACTIVE_HIGH)]);
    part.with_node(Node::new("gpio-keys").text("compatible", "gpio-keys").child(key))
}
