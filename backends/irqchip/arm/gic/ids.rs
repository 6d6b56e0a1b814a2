//! The numbers that name the interrupts of a GIC, each a type of its own.

use std::fmt;

use crate::backends::irqchip::CpuId;

/// INTIDs 0 to 15 are software generated interrupts (SGIs), banked by CPU (IHI 0048B, 2.2.1).
pub(in super::super) const SGIS: u32 = 16;
/// INTIDs 0 to 31 are private to a CPU: the SGIs, then the PPIs.
pub(in super::super) const PRIVATE: u32 = 32;

/// A shared peripheral interrupt, counted from 0 as device trees do: `Spi(n)` is INTID 32 + n.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spi(pub u32);

/// A private peripheral interrupt, counted from 0 as device trees do: `Ppi(n)` is INTID 16 + n, and n is at most 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ppi(pub u32);

/// An interrupt as the controller's registers number it: SGIs from 0, PPIs from 16, SPIs from 32.
///
/// ```
/// use devisor::backends::irqchip::{IntId, Ppi, Spi};
///
/// assert_eq!(IntId::from(Spi(1)), IntId(33));
/// assert_eq!(IntId::from(Ppi(11)), IntId(27));
/// assert_eq!(IntId(33).spi(), Some(Spi(1)));
/// assert_eq!(IntId(27).spi(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntId(pub u32);

impl IntId {
    /// The SPI of this number, if it is one by its number. Whether a controller has so many is another question.
    pub fn spi(self) -> Option<Spi> {
        self.0.checked_sub(PRIVATE).map(Spi)
    }
}

impl From<Spi> for IntId {
    fn from(spi: Spi) -> Self {
        Self(spi.0.saturating_add(PRIVATE))
    }
}

impl From<Ppi> for IntId {
    fn from(ppi: Ppi) -> Self {
        Self(ppi.0.saturating_add(SGIS))
    }
}

/// An input of a GIC. To [`Inputs`](crate::backends::irqchip::lines::Inputs) it is one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct GicInput {
    /// Whose it is, if it is private to a CPU.
    pub cpu: Option<usize>,
    pub intid: u32,
}

impl GicInput {
    pub fn shared(intid: u32) -> Self {
        Self { cpu: None, intid }
    }

    pub fn private(cpu: usize, intid: u32) -> Self {
        Self { cpu: Some(cpu), intid }
    }

    /// The INTID in bits 15 to 0. Above them is the CPU, counted from 1.
    pub fn number(self) -> u32 {
        self.cpu.map_or(0, |cpu| cpu as u32 + 1) << 16 | self.intid
    }

    pub fn of(number: u32) -> Self {
        Self {
            cpu: (number >> 16).checked_sub(1).map(|cpu| cpu as usize),
            intid: number & 0xffff,
        }
    }
}

impl fmt::Display for GicInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cpu {
            Some(cpu) => write!(f, "{} of {}", IntId(self.intid), CpuId(cpu as u32)),
            None => IntId(self.intid).fmt(f),
        }
    }
}

macro_rules! display {
    ($($kind:ident: $name:literal),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($name, " {}"), self.0)
            }
        }
    )*};
}

display!(Spi: "SPI", Ppi: "PPI", IntId: "INTID");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_of_a_gic_has_a_number_of_its_own_and_a_name() {
        for (input, name) in [
            (GicInput::shared(0), "INTID 0"),
            (GicInput::shared(33), "INTID 33"),
            (GicInput::shared(65535), "INTID 65535"),
            (GicInput::private(0, 27), "INTID 27 of CPU 0"),
            (GicInput::private(511, 65535), "INTID 65535 of CPU 511"),
        ] {
            assert_eq!(GicInput::of(input.number()), input);
            assert_eq!(input.to_string(), name);
        }
    }
}
