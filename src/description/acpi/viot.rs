//! The VIOT: who is behind the IOMMU of virtio (*Advanced Configuration and Power Interface Specification 6.5*, section 5.2.35).

use acpi_tables::sdt::Sdt;

use super::Board;
use crate::description::{Acpi, BoardError, IommuPlace};

const PCI_RANGE: u8 = 1;
const MMIO_ENDPOINT: u8 = 2;
const VIRTIO_PCI_IOMMU: u8 = 3;
const VIRTIO_MMIO_IOMMU: u8 = 4;

/// The header of a table, then the number of nodes, where they begin, and what is reserved.
const NODES: u16 = 48;

fn node(kind: u8, len: u16, rest: &[&[u8]]) -> Vec<u8> {
    let mut node = vec![kind, 0];
    node.extend(len.to_le_bytes());
    node.extend(rest.concat());
    node.resize(len.into(), 0);
    node
}

impl Board<'_> {
    /// None on a board without such an IOMMU.
    pub(super) fn viot(&self) -> Result<Option<Sdt>, BoardError> {
        let Some((_, place)) = crate::description::check::iommu(self.parts)? else {
            return Ok(None);
        };
        // First, and so the endpoints' output node is where the nodes begin.
        let mut nodes = vec![match place {
            IommuPlace::Memory(base) => node(VIRTIO_MMIO_IOMMU, 16, &[&[0; 4], &base.to_le_bytes()]),
            IommuPlace::Pci(function) => node(VIRTIO_PCI_IOMMU, 16, &[&[0; 2], &function.to_le_bytes()]),
        }];
        for (_, entry) in self.entries() {
            match entry {
                Acpi::Endpoint { base, id } => nodes.push(node(
                    MMIO_ENDPOINT,
                    24,
                    &[&id.to_le_bytes(), &base.to_le_bytes(), &NODES.to_le_bytes()],
                )),
                Acpi::PciEndpoints => {
                    for (first, last) in place.others() {
                        nodes.push(node(
                            PCI_RANGE,
                            24,
                            &[
                                &u32::from(first).to_le_bytes(),
                                // Of segment 0.
                                &[0; 4],
                                &first.to_le_bytes(),
                                &last.to_le_bytes(),
                                &NODES.to_le_bytes(),
                            ],
                        ));
                    }
                }
                _ => {}
            }
        }
        let mut viot = self.oem.table(b"VIOT", 0);
        let count = super::narrow::<u16>(&self.parts[0], "the number of endpoints", nodes.len() as u64)?;
        viot.append_slice(&[&count.to_le_bytes()[..], &NODES.to_le_bytes(), &[0; 8]].concat());
        viot.append_slice(&nodes.concat());
        Ok(Some(viot))
    }
}
