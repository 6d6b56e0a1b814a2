//! What an embedder decides about an IOMMU.

use std::ops::RangeInclusive;

use super::registers::RESV_MEM_LEN;

/// By which an IOMMU and its driver know who accesses memory (virtio 1.2, section 5.13.6.3): of a PCI function, its requester ID, with
/// what a description of the machine adds to it; of another device, a number that the description gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

/// What addresses are kept for, which a driver cannot map (section 5.13.6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// `VIRTIO_IOMMU_RESV_MEM_T_RESERVED`.
    Reserved,
    /// `VIRTIO_IOMMU_RESV_MEM_T_MSI`: message signaled interrupts are written there, and are not translated. A driver whose interrupt
    /// controller is told of by no such range maps it, as on arm64; messages of this crate's functions are never translated, so on such a
    /// machine each PCI endpoint has one.
    Msi,
}

/// Addresses that a driver cannot map for an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// First and last address.
    pub addresses: RangeInclusive<u64>,
    /// What they are kept for.
    pub kind: ReservedKind,
}

/// Who is behind an IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuEndpoint {
    /// Its number.
    pub id: EndpointId,
    /// Addresses that its driver is told not to map, and that it accesses nothing by.
    pub reserved: Vec<Reserved>,
}

impl IommuEndpoint {
    /// One without addresses of its own.
    pub fn new(id: EndpointId) -> Self {
        let reserved = Vec::new();
        Self { id, reserved }
    }

    /// The same, whose messages to the interrupt controller at `doorbell` are not translated.
    pub fn with_msi(mut self, doorbell: RangeInclusive<u64>) -> Self {
        self.reserved.push(Reserved {
            addresses: doorbell,
            kind: ReservedKind::Msi,
        });
        self
    }
}

/// What becomes of accesses by endpoints that are attached to no domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// The configuration field says so, which the driver can write, and is this at first: offers
    /// [`F_BYPASS_CONFIG`](super::F_BYPASS_CONFIG). Firmware that knows of no IOMMU needs `true`.
    Config(bool),
    /// They bypass the IOMMU if the driver has accepted [`F_BYPASS`](super::F_BYPASS), which is offered: the way of before virtio 1.2.
    Feature,
    /// They access nothing.
    Never,
}

/// How an IOMMU looks to the guest, who is behind it, and what it may cost.
///
/// ```
/// use devisor::virtio::iommu::{EndpointId, IommuEndpoint, IommuOptions};
///
/// let endpoints = vec![IommuEndpoint::new(EndpointId(8)).with_msi(0x802_0000..=0x802_0fff)];
/// let options = IommuOptions { endpoints, ..IommuOptions::default() };
/// assert_eq!(options.page_size_mask, !0xfff);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuOptions {
    /// Who is behind it, now or later. A domain is there only while one of these is attached to it, so their number bounds that of
    /// domains.
    pub endpoints: Vec<IommuEndpoint>,
    /// `page_size_mask`: its lowest bit is the granularity of mappings.
    pub page_size_mask: u64,
    /// Addresses that can be mapped. Told by [`F_INPUT_RANGE`](super::F_INPUT_RANGE), if these are not all.
    pub input_range: RangeInclusive<u64>,
    /// Numbers that domains can have. Told by [`F_DOMAIN_RANGE`](super::F_DOMAIN_RANGE), if these are not all.
    pub domain_range: RangeInclusive<u32>,
    /// How many mappings there can be in all domains together, some 100 bytes each. A request for more is answered with
    /// VIRTIO_IOMMU_S_NOMEM. Linux makes one for each buffer that is under way.
    pub max_mappings: usize,
    /// `probe_size`, in bytes: room for the properties of an endpoint.
    pub probe_size: u32,
    /// Offers [`F_PROBE`](super::F_PROBE).
    pub probe: bool,
    /// Offers [`F_MMIO`](super::F_MMIO).
    pub mmio: bool,
    /// Who bypasses it.
    pub bypass: Bypass,
    /// How many faults are kept for a driver that has given no buffer for them. Others are counted.
    pub max_faults: usize,
    /// Sizes of the request queue and of the event queue, powers of two up to 32768.
    pub queue_sizes: [u16; 2],
}

impl Default for IommuOptions {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            page_size_mask: !0xfff,
            input_range: 0..=u64::MAX,
            domain_range: 0..=u32::MAX,
            max_mappings: 1 << 16,
            probe_size: 512,
            probe: true,
            mmio: true,
            bypass: Bypass::Config(true),
            max_faults: 64,
            queue_sizes: [128, 64],
        }
    }
}

/// An IOMMU cannot be made so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IommuError {
    /// No page has a size.
    #[error("page_size_mask is zero: at least one bit is needed")]
    PageSize,
    /// Nothing can be mapped, or no domain named.
    #[error("{0} is empty: a range with its first and last number is needed")]
    Range(&'static str),
    /// The addresses that can be mapped begin or end within a page.
    #[error("input_range {first:#x}..={last:#x} does not consist of whole pages of {page:#x} bytes")]
    InputRange {
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
        /// The granularity.
        page: u64,
    },
    /// An endpoint is there twice.
    #[error("endpoint {0:#x} is listed twice: each has a number of its own")]
    Twice(u32),
    /// Reserved ranges are empty, overlap, or two are for messages.
    #[error(
        "the reserved ranges of endpoint {0:#x} must not be empty nor overlap, and one at most can be for messages"
    )]
    Reserved(u32),
    /// The properties of an endpoint have no room.
    #[error("endpoint {endpoint:#x} has {needed} bytes of properties: probe_size is {probe_size}")]
    ProbeSize {
        /// Which one.
        endpoint: u32,
        /// How many bytes there are.
        needed: u64,
        /// What was given.
        probe_size: u32,
    },
}

impl IommuOptions {
    /// The most bytes that [`probe_size`](Self::probe_size) can be: one request has the device write as many.
    pub const MAX_PROBE_SIZE: u32 = 1 << 16;

    /// The granularity of mappings, in bytes.
    pub(super) fn page(&self) -> u64 {
        self.page_size_mask & self.page_size_mask.wrapping_neg()
    }

    pub(super) fn check(&self) -> Result<(), IommuError> {
        if self.page_size_mask == 0 {
            return Err(IommuError::PageSize);
        }
        for (name, is_empty) in [
            ("input_range", self.input_range.is_empty()),
            ("domain_range", self.domain_range.is_empty()),
        ] {
            if is_empty {
                return Err(IommuError::Range(name));
            }
        }
        let (first, last, page) = (*self.input_range.start(), *self.input_range.end(), self.page());
        if !first.is_multiple_of(page) || !last.wrapping_add(1).is_multiple_of(page) {
            return Err(IommuError::InputRange { first, last, page });
        }
        let mut ids: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.id).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(IommuError::Twice(twice[0].0));
        }
        self.endpoints
            .iter()
            .try_for_each(|endpoint| self.check_endpoint(endpoint))
    }

    fn check_endpoint(&self, IommuEndpoint { id, reserved }: &IommuEndpoint) -> Result<(), IommuError> {
        let mut ranges: Vec<_> = reserved.iter().map(|reserved| reserved.addresses.clone()).collect();
        ranges.sort_unstable_by_key(|range| *range.start());
        let apart = ranges.windows(2).all(|pair| pair[0].end() < pair[1].start());
        let messages = reserved.iter().filter(|one| one.kind == ReservedKind::Msi).count();
        if ranges.iter().any(RangeInclusive::is_empty) || !apart || messages > 1 {
            return Err(IommuError::Reserved(id.0));
        }
        let needed = u64::from(RESV_MEM_LEN) * reserved.len() as u64;
        if self.probe_size > Self::MAX_PROBE_SIZE || self.probe && needed > self.probe_size.into() {
            return Err(IommuError::ProbeSize {
                endpoint: id.0,
                needed,
                probe_size: self.probe_size,
            });
        }
        Ok(())
    }
}
