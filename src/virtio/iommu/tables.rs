//! Domains, what is mapped in them, and who is attached to them: the model, which knows no queue and no lock.

use std::{collections::BTreeMap, ops::RangeInclusive};

use vm_memory::Permissions;

use super::{
    options::{Bypass, IommuEndpoint, IommuOptions},
    registers::{F_BYPASS, MAP_F_READ, MAP_F_WRITE, Status},
};
use crate::memory::Piece;

/// So many mappings side by side are found as one.
const MERGED: usize = 64;

/// Why an access is refused, by its number in a report (section 5.13.6.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// `VIRTIO_IOMMU_FAULT_R_DOMAIN`: the endpoint is attached to no domain.
    Domain = 1,
    /// `VIRTIO_IOMMU_FAULT_R_MAPPING`: the address is not mapped in its domain, or not for such an access.
    Mapping = 2,
}

/// What one MAP request has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub last: u64,
    pub physical: u64,
    pub flags: u32,
}

#[derive(Default)]
pub(super) struct Domain {
    pub bypass: bool,
    /// By their first addresses.
    pub mappings: BTreeMap<u64, Mapping>,
}

impl Domain {
    /// The mapping in which `address` is.
    fn at(&self, address: u64) -> Option<(u64, Mapping)> {
        let (&first, &mapping) = self.mappings.range(..=address).next_back()?;
        (mapping.last >= address).then_some((first, mapping))
    }

    /// First addresses of the mappings that have something in this range.
    fn within(&self, range: &RangeInclusive<u64>) -> impl Iterator<Item = (u64, Mapping)> {
        let before = self.at(*range.start()).map_or(*range.start(), |(first, _)| first);
        self.mappings
            .range(before..=*range.end())
            .map(|(&first, &mapping)| (first, mapping))
    }
}

struct Endpoint {
    reserved: Vec<RangeInclusive<u64>>,
    domain: Option<u32>,
}

/// Whose translations are not what they were before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub endpoints: Vec<u32>,
    pub addresses: RangeInclusive<u64>,
}

pub(super) struct Tables {
    // Configured.
    page: u64,
    input_range: RangeInclusive<u64>,
    domain_range: RangeInclusive<u32>,
    max_mappings: usize,
    rule: Bypass,
    // What the guest changes.
    /// The configuration field.
    pub bypass: bool,
    pub features: u64,
    pub domains: BTreeMap<u32, Domain>,
    endpoints: BTreeMap<u32, Endpoint>,
    mappings: usize,
}

impl Tables {
    pub fn new(options: &IommuOptions) -> Self {
        let endpoint = |IommuEndpoint { id, reserved }: &IommuEndpoint| {
            let reserved = reserved.iter().map(|reserved| reserved.addresses.clone()).collect();
            (id.0, Endpoint { reserved, domain: None })
        };
        Self {
            page: options.page(),
            input_range: options.input_range.clone(),
            domain_range: options.domain_range.clone(),
            max_mappings: options.max_mappings,
            rule: options.bypass,
            bypass: options.bypass == Bypass::Config(true),
            features: 0,
            domains: BTreeMap::new(),
            endpoints: options.endpoints.iter().map(endpoint).collect(),
            mappings: 0,
        }
    }

    /// Who is attached, and to which domain.
    pub fn attached(&self) -> impl Iterator<Item = (u32, u32)> {
        self.endpoints
            .iter()
            .filter_map(|(&id, endpoint)| Some((id, endpoint.domain?)))
    }

    pub fn mappings(&self) -> usize {
        self.mappings
    }

    /// All that there can be.
    pub fn everything(&self) -> Change {
        Change {
            endpoints: self.endpoints.keys().copied().collect(),
            addresses: 0..=u64::MAX,
        }
    }

    fn in_domain(&self, domain: u32) -> Vec<u32> {
        let there = self.attached().filter(|&(_, other)| other == domain);
        there.map(|(id, _)| id).collect()
    }

    // Accesses.

    /// Where `address` leads `endpoint`: with as many of the `len` bytes from there on as are mapped side by side.
    pub fn translate(&self, endpoint: u32, address: u64, len: u64, access: Permissions) -> Result<Piece, FaultReason> {
        let endpoint = self.endpoints.get(&endpoint).ok_or(FaultReason::Domain)?;
        let domain = endpoint.domain.and_then(|domain| self.domains.get(&domain));
        let bypass = match (domain, self.rule) {
            (Some(domain), _) => domain.bypass,
            (None, Bypass::Config(_)) => self.bypass,
            (None, Bypass::Feature) => self.features & F_BYPASS != 0,
            (None, Bypass::Never) => false,
        };
        if bypass {
            return endpoint.around(address).ok_or(FaultReason::Mapping);
        }
        let domain = domain.ok_or(FaultReason::Domain)?;
        let (start, found) = domain.at(address).ok_or(FaultReason::Mapping)?;
        if !permissions(found.flags).allow(access) {
            return Err(FaultReason::Mapping);
        }
        let mut piece = Piece {
            start,
            last: found.last,
            physical: found.physical,
            access: permissions(found.flags),
        };
        let wanted = address.saturating_add(len.saturating_sub(1));
        for _ in 0..MERGED {
            let next = piece.last.checked_add(1).filter(|_| piece.last < wanted);
            let next = next.and_then(|next| Some((next, domain.mappings.get(&next)?)));
            match next {
                Some((next, mapping))
                    if permissions(mapping.flags) == piece.access
                        && piece.physical.checked_add(next - start) == Some(mapping.physical) =>
                {
                    piece.last = mapping.last;
                }
                _ => break,
            }
        }
        Ok(piece)
    }

    // Requests. What is refused changes nothing.

    pub fn attach(&mut self, domain: u32, endpoint: u32, bypass: bool) -> Result<Option<Change>, Status> {
        let present = self.endpoints.get(&endpoint).ok_or(Status::NoEntry)?;
        if !self.domain_range.contains(&domain) {
            return Err(Status::Range);
        }
        if let Some(there) = self.domains.get(&domain) {
            if there.bypass != bypass {
                return Err(Status::Invalid);
            }
            if present.domain == Some(domain) {
                return Ok(None);
            }
            // What the others have mapped is nothing that this one can have.
            let taken = |range| there.within(range).next().is_some();
            if present.reserved.iter().any(taken) {
                return Err(Status::Unsupported);
            }
        }
        let old = present.domain;
        self.domains.entry(domain).or_default().bypass = bypass;
        self.set_domain(endpoint, Some(domain));
        self.forget(old);
        Ok(Some(self.all_of(endpoint)))
    }

    pub fn detach(&mut self, domain: u32, endpoint: u32) -> Result<Option<Change>, Status> {
        let present = self.endpoints.get(&endpoint).ok_or(Status::NoEntry)?;
        if present.domain != Some(domain) {
            return Err(Status::Invalid);
        }
        self.set_domain(endpoint, None);
        self.forget(Some(domain));
        Ok(Some(self.all_of(endpoint)))
    }

    fn all_of(&self, endpoint: u32) -> Change {
        Change {
            endpoints: vec![endpoint],
            addresses: 0..=u64::MAX,
        }
    }

    fn set_domain(&mut self, endpoint: u32, domain: Option<u32>) {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.domain = domain;
        }
    }

    /// A domain "ceases to exist" with the last endpoint (section 5.13.6.4).
    fn forget(&mut self, domain: Option<u32>) {
        if let Some(domain) = domain
            && self.in_domain(domain).is_empty()
            && let Some(gone) = self.domains.remove(&domain)
        {
            self.mappings -= gone.mappings.len();
        }
    }

    /// `flags` are ones that there are.
    pub fn map(&mut self, domain: u32, range: RangeInclusive<u64>, physical: u64, flags: u32) -> Result<(), Status> {
        let (first, last) = (*range.start(), *range.end());
        if last < first {
            return Err(Status::Invalid);
        }
        let page = self.page;
        let aligned = [first, last.wrapping_add(1), physical]
            .iter()
            .all(|at| at.is_multiple_of(page));
        let fits = physical.checked_add(last - first).is_some();
        if !aligned || !fits || first < *self.input_range.start() || last > *self.input_range.end() {
            return Err(Status::Range);
        }
        let reserved = self
            .in_domain(domain)
            .into_iter()
            .any(|id| self.is_reserved(id, &range));
        let there = self.domains.get_mut(&domain).ok_or(Status::NoEntry)?;
        if there.bypass || reserved || there.within(&range).next().is_some() {
            return Err(Status::Invalid);
        }
        if self.mappings >= self.max_mappings {
            return Err(Status::NoMemory);
        }
        let mapping = Mapping { last, physical, flags };
        there.mappings.insert(first, mapping);
        self.mappings += 1;
        Ok(())
    }

    fn is_reserved(&self, endpoint: u32, range: &RangeInclusive<u64>) -> bool {
        let overlaps = |other: &RangeInclusive<u64>| other.start() <= range.end() && range.start() <= other.end();
        let endpoint = self.endpoints.get(&endpoint);
        endpoint.is_some_and(|endpoint| endpoint.reserved.iter().any(overlaps))
    }

    pub fn unmap(&mut self, domain: u32, range: RangeInclusive<u64>) -> Result<Option<Change>, Status> {
        if range.is_empty() {
            return Err(Status::Invalid);
        }
        let there = self.domains.get_mut(&domain).ok_or(Status::NoEntry)?;
        if there.bypass {
            return Err(Status::Invalid);
        }
        // Only those at its ends can be in it in part.
        let cut = |end| {
            there
                .at(end)
                .is_some_and(|(first, mapping)| first < *range.start() || mapping.last > *range.end())
        };
        if cut(*range.start()) || cut(*range.end()) {
            return Err(Status::Range);
        }
        let before = there.mappings.len();
        let mut gone = 0;
        while let Some((&first, _)) = there.mappings.range(range.clone()).next() {
            there.mappings.remove(&first);
            gone += 1;
        }
        debug_assert_eq!(before - gone, there.mappings.len());
        self.mappings -= gone;
        Ok(Some(Change {
            endpoints: self.in_domain(domain),
            addresses: range,
        }))
    }

    pub fn knows(&self, endpoint: u32) -> bool {
        self.endpoints.contains_key(&endpoint)
    }

    /// "When the device is reset, endpoints are not attached to any domain" (section 5.13.5). `bypass` stays.
    pub fn reset(&mut self) {
        self.domains.clear();
        self.mappings = 0;
        self.features = 0;
        self.endpoints.values_mut().for_each(|endpoint| endpoint.domain = None);
    }
}

impl Endpoint {
    /// The identity around an address, but for what is reserved.
    fn around(&self, address: u64) -> Option<Piece> {
        let (mut start, mut last) = (0, u64::MAX);
        for range in &self.reserved {
            match () {
                _ if range.contains(&address) => return None,
                _ if *range.end() < address => start = start.max(range.end() + 1),
                _ => last = last.min(range.start() - 1),
            }
        }
        Some(Piece {
            start,
            last,
            physical: start,
            access: Permissions::ReadWrite,
        })
    }
}

fn permissions(flags: u32) -> Permissions {
    match (flags & MAP_F_READ != 0, flags & MAP_F_WRITE != 0) {
        (true, true) => Permissions::ReadWrite,
        (true, false) => Permissions::Read,
        (false, true) => Permissions::Write,
        (false, false) => Permissions::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::iommu::EndpointId;

    const ALL: u32 = MAP_F_READ | MAP_F_WRITE;

    fn tables() -> Tables {
        let mut tables = Tables::new(&IommuOptions {
            endpoints: vec![IommuEndpoint::new(EndpointId(1))],
            ..IommuOptions::default()
        });
        tables.attach(1, 1, false).expect("an endpoint");
        tables
    }

    #[test]
    fn mappings_side_by_side_are_one_piece_as_far_as_they_lead_on() {
        let mut tables = tables();
        for (first, physical, flags) in [
            (0x1000, 0x8000, ALL),
            (0x2000, 0x9000, ALL),
            (0x3000, 0xb000, ALL),
            (0x4000, 0xc000, MAP_F_READ),
        ] {
            tables.map(1, first..=first + 0xfff, physical, flags).expect("a page");
        }
        let last = |address, len| {
            let piece = tables.translate(1, address, len, Permissions::Read);
            piece.map(|piece| (piece.start, piece.last, piece.physical))
        };
        assert_eq!(
            last(0x1800, 1),
            Ok((0x1000, 0x1fff, 0x8000)),
            "no more than is asked for"
        );
        assert_eq!(last(0x1800, 0x1000), Ok((0x1000, 0x2fff, 0x8000)));
        assert_eq!(
            last(0x1800, 0x2000),
            Ok((0x1000, 0x2fff, 0x8000)),
            "the next leads elsewhere"
        );
        assert_eq!(last(0x3800, 0x1000), Ok((0x3000, 0x3fff, 0xb000)), "for another access");
        assert_eq!(last(0x4fff, 2), Ok((0x4000, 0x4fff, 0xc000)));
        assert_eq!(last(0x5000, 1), Err(FaultReason::Mapping));
    }

    #[test]
    fn what_leads_to_the_last_address_does_not_go_on_at_the_first() {
        let mut tables = tables();
        tables.map(1, 0x1000..=0x1fff, !0xfff, ALL).expect("the last page");
        tables.map(1, 0x2000..=0x2fff, 0, ALL).expect("the first page");
        let piece = tables.translate(1, 0x1800, 0x1000, Permissions::Write);
        assert_eq!(piece.map(|piece| piece.last), Ok(0x1fff));
    }
}
