//! virtio-iommu, and what is behind it: all virtio devices of the board.

use std::{error::Error, sync::Arc};

use devisor::virtio::{
    VirtioTransport,
    iommu::{EndpointId, Iommu},
};

use super::{Around, CheckOf, More};
use crate::verdict::{Check, line};

/// Where nothing is mapped.
const NOWHERE: u64 = 0xdead_0000;

/// Plugs it in. When the guest asks for it, this endpoint accesses what is not mapped for it.
pub fn plug(
    around: Around<'_>,
    iommu: Iommu,
    endpoint: EndpointId,
) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let memory = iommu.memory(endpoint).ok_or("no such endpoint")?;
    let iommu = around.plug(iommu)?;
    let device = iommu.transport();
    let hear = move |line: &str| {
        if line == "iommu, refuse me" {
            // It is told of by the event queue.
            let _ = memory.pin().read(NOWHERE, &mut [0]);
        }
        Ok(())
    };
    let said = |what: &'static str, begins: &'static str| {
        let check = move |console: &str| -> Check { line(console, begins).map(Into::into) };
        (what, Box::new(check) as Box<CheckOf>)
    };
    let told = move |console: &str| -> Check {
        let told = line(console, "iommu told ")?;
        let counts = iommu.with(|iommu| iommu.faults());
        let right = told.contains(&format!("fault from EP {} at {NOWHERE:#x}", endpoint.0));
        let how = format!("{told}; {counts:?}");
        (right && counts.lost == 0).then(|| how.clone()).ok_or(how)
    };
    let checks = vec![
        said(
            "the guest has a group for each device behind the IOMMU",
            "iommu groups: ",
        ),
        said("a device works in a domain that bypasses", "iommu identity gives "),
        said("and in one that translates again", "iommu DMA gives "),
        ("the guest is told of a fault", Box::new(told) as Box<CheckOf>),
    ];
    let hear = Box::new(hear);
    Ok((device, More { hear, checks }))
}
