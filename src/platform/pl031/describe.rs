//! A PL031 as its guest is told of it.

use super::REGION_SIZE;
use crate::description::{Part, Wire};

/// A PL031 at `base` (`arm,pl031`). ACPI has no ID for it: there, the time is UEFI's.
pub fn describe(base: u64, interrupt: Wire) -> Part {
    Part::new("rtc")
        .memory(base, REGION_SIZE)
        .wire(interrupt)
        .node(&["arm,pl031", "arm,primecell"], |node| {
            node.clocks(&["apb_pclk"], 24_000_000)
        })
}
