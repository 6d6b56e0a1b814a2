//! Local APICs as their guest is told of them.

use super::{config::ApicId, cpu::LocalApic};
use crate::description::{Acpi, Part, Processor};

/// Where they are until a guest moves its own.
const ADDRESS: u32 = 0xfee0_0000;

/// The CPUs, by the IDs of their local APICs (MADT). LINT1 of each is its NMI.
pub fn describe(ids: &[ApicId]) -> Part {
    let part = Part::new("local-apics")
        .memory(ADDRESS.into(), LocalApic::SIZE)
        .acpi(Acpi::LocalApics(ADDRESS));
    ids.iter()
        .fold(part, |part, id| part.acpi(Acpi::Processor(Processor::Apic(id.0))))
}
