//! A GICv2 as its guest is told of it.

use super::{CpuInterface, Distributor, GicV2Config};
use crate::description::{Acpi, Gic, Inputs, Part};

/// A GICv2 with its distributor and its CPU interface at these addresses (`arm,cortex-a15-gic`; GICD and GICC of the MADT).
pub fn describe(config: &GicV2Config, distributor: u64, cpu_interface: u64) -> Part {
    Part::new("interrupt-controller")
        .memory(distributor, Distributor::SIZE)
        .memory(cpu_interface, CpuInterface::SIZE)
        .controls(Inputs::Gic {
            spis: config.spis,
            ppi_cpus: (1 << config.cpus.min(8)) - 1,
        })
        .node(&["arm,cortex-a15-gic"], super::super::gic::controller_node)
        .acpi(Acpi::Gic(Gic {
            version: 2,
            distributor,
            cpu_interface: Some(cpu_interface),
            redistributors: Vec::new(),
        }))
}
