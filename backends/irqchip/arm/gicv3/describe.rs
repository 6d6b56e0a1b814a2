//! A GICv3 as its guest is told of it.

use super::{Distributor, GicV3Config, Redistributor};
use crate::description::{Acpi, Gic, Inputs, Part};

/// A GICv3 with its distributor and each of its [regions of redistributors](GicV3Config::redistributor_regions) at these addresses
/// (`arm,gic-v3`; GICD and GICR of the MADT). Extended SPIs are not told of.
pub fn describe(config: &GicV3Config, distributor: u64, redistributors: &[u64]) -> Part {
    let regions = redistributors.iter().zip(&config.redistributor_regions);
    let regions: Vec<_> = regions
        .map(|(base, cpus)| (*base, Redistributor::SIZE.saturating_mul((*cpus).into())))
        .collect();
    let part = Part::new("interrupt-controller").memory(distributor, Distributor::SIZE);
    let part = regions.iter().fold(part, |part, &(base, len)| part.memory(base, len));
    part.controls(Inputs::Gic {
        spis: config.spis,
        ppi_cpus: 0,
    })
    .node(&["arm,gic-v3"], |node| {
        super::super::gic::controller_node(node).number("#redistributor-regions", regions.len() as u32)
    })
    .acpi(Acpi::Gic(Gic {
        version: 3,
        distributor,
        cpu_interface: None,
        redistributors: regions.iter().map(|&(base, len)| (base, len as u32)).collect(),
    }))
}
