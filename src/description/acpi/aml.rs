//! Bytes of AML and of resource descriptors, where they are put together from parts (sections 6.4 and 20).

use acpi_tables::{
    Aml, AmlSink,
    aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Path, ResourceTemplate},
};

use crate::description::{BoardError, Part, Polarity, Region, Space, Trigger, Wire};

/// AML that is there already.
#[derive(Clone, Debug, Default)]
pub(super) struct Raw(pub Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

impl Raw {
    pub fn push(&mut self, aml: &dyn Aml) {
        aml.to_aml_bytes(&mut self.0);
    }

    pub fn name(&mut self, name: &str, value: &dyn Aml) {
        self.push(&Name::new(name.into(), value));
    }

    /// `_HID`, `_CID`: a PNP ID as a number, an ACPI ID as a string.
    pub fn id(&mut self, name: &str, id: &'static str) {
        let is_pnp = id.len() == 7
            && id.bytes().take(3).all(|letter| letter.is_ascii_uppercase())
            && id
                .bytes()
                .skip(3)
                .all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
        match is_pnp {
            true => self.name(name, &EISAName::new(id)),
            false => self.name(name, &id),
        }
    }

    pub fn device(&mut self, name: &str, body: &Raw) {
        self.push(&Device::new(Path::new(name), vec![body]));
    }

    pub fn resources(&mut self, name: &str, resources: &Raw) {
        self.name(name, &ResourceTemplate::new(vec![resources]));
    }

    /// A region as a device's own.
    pub fn region(&mut self, part: &Part, region: &Region) -> Result<(), BoardError> {
        let last = region.end(part)?;
        match (region.space, u32::try_from(region.base), u32::try_from(last)) {
            (Space::Memory, Ok(base), Ok(last)) if last - base != u32::MAX => {
                self.push(&Memory32Fixed::new(true, base, last - base + 1));
            }
            (Space::Memory, ..) => {
                self.0.extend(address(Kind::Memory, 8, CONSUMER, region.base, last, 0));
            }
            (Space::Ports, ..) => {
                let base = super::narrow(part, "a port", region.base)?;
                let len = super::narrow(part, "the number of ports", region.len)?;
                self.push(&IO::new(base, base, 1, len));
            }
        }
        Ok(())
    }

    pub fn wire(&mut self, wire: &Wire) {
        let edge = wire.trigger == Trigger::Edge;
        let low = wire.polarity == Polarity::Low;
        self.push(&Interrupt::new(true, edge, low, wire.shared, wire.input.gsi()));
    }
}

/// What an address space descriptor is of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Memory = 0,
    Ports = 1,
    Buses = 2,
}

/// General flags of an address space descriptor: the device consumes it, instead of handing it on.
pub(super) const CONSUMER: u8 = 1;
pub(super) const PRODUCER: u8 = 0;

/// An address space descriptor of 16, 32 or 64 bits (6.4.3.5): `width` bytes a field. Minimum and maximum are fixed.
pub(super) fn address(kind: Kind, width: usize, consumer: u8, first: u64, last: u64, translation: u64) -> Vec<u8> {
    let tag = match width {
        2 => 0x88,
        4 => 0x87,
        _ => 0x8a,
    };
    let flags = match kind {
        Kind::Memory => 1, // Read and write, not cacheable.
        // The entire range; and where it is memory on the other side, of that type.
        Kind::Ports => 3 | if translation != 0 { 1 << 4 } else { 0 },
        Kind::Buses => 0,
    };
    let mut bytes = vec![tag];
    bytes.extend((3 + 5 * width as u16).to_le_bytes());
    bytes.extend([kind as u8, consumer | 1 << 2 | 1 << 3, flags]);
    for field in [0, first, last, translation, last.wrapping_sub(first).wrapping_add(1)] {
        bytes.extend(&field.to_le_bytes()[..width]);
    }
    bytes
}
