//! An ITS as its guest is told of it.

use super::{ControlFrame, TranslationFrame};
use crate::description::{Acpi, Messages, Part};

/// An ITS whose two frames are at `base` (`arm,gic-v3-its`; MADT and IORT).
pub fn describe(base: u64) -> Part {
    Part::new("msi-controller")
        .memory(base, ControlFrame::SIZE + TranslationFrame::SIZE)
        .takes_messages(Messages::ByRequester)
        .node(&["arm,gic-v3-its"], |node| {
            node.flag("msi-controller")
                .number("#msi-cells", 1)
                .referred()
                .in_controller()
        })
        .acpi(Acpi::Its(base))
}
