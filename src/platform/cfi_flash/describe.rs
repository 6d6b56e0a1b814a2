//! A flash as its guest is told of it.

use super::CfiFlashConfig;
use crate::description::Part;

/// A flash of `size` bytes at `base` (`cfi-flash`). ACPI has no ID for it: it is the firmware's.
pub fn describe(config: &CfiFlashConfig, base: u64, size: u64) -> Part {
    let width = u32::try_from(config.bank_width).unwrap_or(u32::MAX);
    let part = Part::new("flash").memory(base, size);
    part.node(&["cfi-flash"], |node| node.number("bank-width", width))
}
