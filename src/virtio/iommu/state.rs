//! Save and restore of an IOMMU.

use super::{
    faults::AccessFault,
    options::{Bypass, IommuOptions},
    registers::{MAP_F_MMIO, MAP_F_READ, MAP_F_WRITE},
    tables::{Mapping, Tables},
};
use crate::virtio::DeviceStateError;

/// The state of an IOMMU as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct IommuState {
    /// The configuration field.
    pub bypass: bool,
    /// All domains that there are.
    pub domains: Vec<DomainState>,
    /// Faults that the driver was not told of yet.
    pub faults: Vec<AccessFault>,
    /// How many there were besides for which there was no room.
    pub lost: u64,
    /// Heads of requests that have taken effect and wait for an end of what is in use. Restored, nothing is.
    pub waiting: Vec<u16>,
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainState {
    /// Its number.
    pub id: u32,
    /// Its endpoints bypass the IOMMU.
    pub bypass: bool,
    /// Who is attached to it: at least one endpoint.
    pub endpoints: Vec<u32>,
    /// What is mapped in it.
    pub mappings: Vec<MappingState>,
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingState {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// Where the first one leads.
    pub physical: u64,
    /// VIRTIO_IOMMU_MAP_F_READ, WRITE and MMIO (section 5.13.6.5).
    pub flags: u32,
}

impl Tables {
    pub(super) fn save(&self) -> Vec<DomainState> {
        let domain = |(&id, domain): (&u32, &super::tables::Domain)| DomainState {
            id,
            bypass: domain.bypass,
            endpoints: self
                .attached()
                .filter(|&(_, other)| other == id)
                .map(|(endpoint, _)| endpoint)
                .collect(),
            mappings: domain
                .mappings
                .iter()
                .map(|(&first, &Mapping { last, physical, flags })| MappingState {
                    first,
                    last,
                    physical,
                    flags,
                })
                .collect(),
        };
        self.domains.iter().map(domain).collect()
    }

    /// As requests would make them.
    pub(super) fn restored(options: &IommuOptions, state: &IommuState) -> Result<Self, DeviceStateError> {
        let wrong = |what: String| Err(DeviceStateError::Otherwise(what));
        let mut tables = Self::new(options);
        if matches!(options.bypass, Bypass::Config(_)) {
            tables.bypass = state.bypass;
        } else if state.bypass {
            return wrong("without a bypass field, which the state has set".into());
        }
        for DomainState {
            id,
            bypass,
            endpoints,
            mappings,
        } in &state.domains
        {
            if *bypass && !matches!(options.bypass, Bypass::Config(_)) {
                return wrong(format!("domain {id} bypasses, which is not offered"));
            }
            if tables.domains.contains_key(id) || endpoints.is_empty() {
                return wrong(format!("domain {id} is there twice, or without an endpoint"));
            }
            for endpoint in endpoints {
                let free = tables.attached().all(|(other, _)| other != *endpoint);
                if !free || tables.attach(*id, *endpoint, *bypass).is_err() {
                    return wrong(format!("endpoint {endpoint:#x} cannot be attached to domain {id}"));
                }
            }
            for &MappingState {
                first,
                last,
                physical,
                flags,
            } in mappings
            {
                let mmio = if options.mmio { MAP_F_MMIO } else { 0 };
                let known = flags & !(MAP_F_READ | MAP_F_WRITE | mmio) == 0;
                if !known || tables.map(*id, first..=last, physical, flags).is_err() {
                    return wrong(format!("{first:#x}..={last:#x} cannot be mapped in domain {id}"));
                }
            }
        }
        let strange = state.faults.iter().find(|fault| !tables.knows(fault.endpoint));
        if let Some(fault) = strange {
            return wrong(format!("there is no endpoint {:#x}, which has faulted", fault.endpoint));
        }
        if state.faults.len() > options.max_faults {
            return wrong(format!(
                "{} faults are kept: {} at most",
                state.faults.len(),
                options.max_faults
            ));
        }
        let size = options.queue_sizes[0];
        let wrong_head = |(at, head): (usize, &u16)| *head >= size || state.waiting[..at].contains(head);
        if state.waiting.iter().enumerate().any(wrong_head) {
            return wrong("requests that wait are listed twice, or beyond what the queue has".into());
        }
        Ok(tables)
    }
}
