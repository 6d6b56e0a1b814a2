//! How `KVM_IRQ_LINE` names an interrupt on 64-bit Arm (`virt/kvm/api.rst`, section 4.25).
//!
//! Plain numbers, so they are here on every architecture, and tested on every architecture.

use std::{fmt, ops::RangeInclusive};

use super::Gsi;

/// Bits 27:24, `irq_type`.
const TYPE_SHIFT: u32 = 24;
const TYPE_CPU: u32 = 0;
const TYPE_SPI: u32 = 1;
const TYPE_PPI: u32 = 2;
/// Bits 23:16, `vcpu_index`: the low eight bits of the index.
const VCPU_SHIFT: u32 = 16;
/// Bits 31:28, `vcpu2_index`: the upper four bits (`KVM_CAP_ARM_IRQ_LINE_LAYOUT_2`).
const VCPU2_SHIFT: u32 = 28;
/// The highest index that twelve bits hold.
const LAST_VCPU: u32 = 0xfff;

/// INTIDs of SPIs (GICv2 architecture specification, section 2.2.1), and those of them that KVM takes.
const SPIS: RangeInclusive<u32> = 32..=1019;
/// INTIDs of PPIs (the same section).
const PPIS: RangeInclusive<u32> = 16..=31;

/// An interrupt as the Arm `KVM_IRQ_LINE` names it: a type, for some types a vCPU, and a number whose meaning the type
/// decides. A valid one by construction.
///
/// ```
/// use devisor::backends::kvm::{ArmIrq, Gsi};
///
/// let spi = ArmIrq::spi(33)?;
/// assert_eq!(spi.bits(), 1 << 24 | 33);
/// assert_eq!(ArmIrq::try_from(Gsi(1))?, spi, "GSI 1 is SPI 1 is INTID 33");
///
/// let timer_of_vcpu_2 = ArmIrq::ppi(2, 27)?;
/// assert_eq!(timer_of_vcpu_2.bits(), 2 << 24 | 2 << 16 | 27);
/// # Ok::<(), devisor::backends::kvm::ArmIrqError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArmIrq(u32);

/// A pin of an Arm core, for a VM whose GIC is not in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpuPin {
    /// The IRQ input.
    Irq = 0,
    /// The FIQ input.
    Fiq = 1,
}

/// No interrupt of the Arm `KVM_IRQ_LINE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArmIrqError {
    /// The INTID is not that of an SPI.
    #[error("INTID {0} is no SPI: those are {first} to {last}", first = SPIS.start(), last = SPIS.end())]
    NotAnSpi(u32),
    /// The INTID is not that of a PPI.
    #[error("INTID {0} is no PPI: those are {first} to {last}", first = PPIS.start(), last = PPIS.end())]
    NotAPpi(u32),
    /// The GSI leads to no SPI.
    #[error("GSI {0} is no SPI: those are 0 to {last}", last = SPIS.end() - SPIS.start())]
    NoSpiForGsi(u32),
    /// There is no such vCPU.
    #[error("no vCPU has the index {0}: the last is {LAST_VCPU}")]
    NoSuchVcpu(u32),
}

impl ArmIrq {
    /// The SPI with the INTID `intid` (32 to 1019) of the kernel's GIC.
    ///
    /// # Errors
    /// [`ArmIrqError::NotAnSpi`].
    pub fn spi(intid: u32) -> Result<Self, ArmIrqError> {
        if !SPIS.contains(&intid) {
            return Err(ArmIrqError::NotAnSpi(intid));
        }
        Ok(Self(TYPE_SPI << TYPE_SHIFT | intid))
    }

    /// The PPI with the INTID `intid` (16 to 31) of the vCPU with the index `vcpu`, in the kernel's GIC.
    ///
    /// # Errors
    /// [`ArmIrqError::NotAPpi`] or [`ArmIrqError::NoSuchVcpu`].
    pub fn ppi(vcpu: u32, intid: u32) -> Result<Self, ArmIrqError> {
        if !PPIS.contains(&intid) {
            return Err(ArmIrqError::NotAPpi(intid));
        }
        Ok(Self(TYPE_PPI << TYPE_SHIFT | Self::vcpu_bits(vcpu)? | intid))
    }

    /// A pin of the vCPU with the index `vcpu`: what a GIC outside the kernel drives.
    ///
    /// # Errors
    /// [`ArmIrqError::NoSuchVcpu`].
    pub fn cpu(vcpu: u32, pin: CpuPin) -> Result<Self, ArmIrqError> {
        Ok(Self(TYPE_CPU << TYPE_SHIFT | Self::vcpu_bits(vcpu)? | pin as u32))
    }

    /// The `irq` field of `struct kvm_irq_level`.
    pub fn bits(self) -> u32 {
        self.0
    }

    fn vcpu_bits(vcpu: u32) -> Result<u32, ArmIrqError> {
        if vcpu > LAST_VCPU {
            return Err(ArmIrqError::NoSuchVcpu(vcpu));
        }
        Ok((vcpu >> 8) << VCPU2_SHIFT | (vcpu & 0xff) << VCPU_SHIFT)
    }
}

/// The default route of a GSI on Arm: pin n of the GIC is SPI n.
impl TryFrom<Gsi> for ArmIrq {
    type Error = ArmIrqError;

    fn try_from(gsi: Gsi) -> Result<Self, ArmIrqError> {
        let intid = gsi.0.checked_add(*SPIS.start());
        let spi = intid.and_then(|intid| Self::spi(intid).ok());
        spi.ok_or(ArmIrqError::NoSpiForGsi(gsi.0))
    }
}

impl fmt::Display for ArmIrq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vcpu = (self.0 >> VCPU2_SHIFT) << 8 | (self.0 >> VCPU_SHIFT) & 0xff;
        let number = self.0 & 0xffff;
        match (self.0 >> TYPE_SHIFT) & 0xf {
            TYPE_SPI => write!(f, "SPI with INTID {number}"),
            TYPE_PPI => write!(f, "PPI with INTID {number} of vCPU {vcpu}"),
            _ if number == CpuPin::Irq as u32 => write!(f, "IRQ pin of vCPU {vcpu}"),
            _ => write!(f, "FIQ pin of vCPU {vcpu}"),
        }
    }
}

impl fmt::Debug for ArmIrq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArmIrq({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_index_above_255_is_split_over_both_fields() {
        let irq = ArmIrq::ppi(0xabc, 30).unwrap();
        assert_eq!(irq.bits(), 0xa2bc_001e);
        assert_eq!(irq.to_string(), "PPI with INTID 30 of vCPU 2748");
        assert_eq!(ArmIrq::ppi(0x1000, 30), Err(ArmIrqError::NoSuchVcpu(0x1000)));
    }

    #[test]
    fn a_gsi_is_an_spi_number_and_not_an_intid() {
        assert_eq!(ArmIrq::try_from(Gsi(0)), ArmIrq::spi(32));
        assert_eq!(ArmIrq::try_from(Gsi(987)), ArmIrq::spi(1019));
        for gsi in [988, u32::MAX] {
            assert_eq!(ArmIrq::try_from(Gsi(gsi)), Err(ArmIrqError::NoSpiForGsi(gsi)));
        }
    }

    #[test]
    fn numbers_of_another_type_are_refused() {
        assert_eq!(ArmIrq::spi(31), Err(ArmIrqError::NotAnSpi(31)));
        assert_eq!(ArmIrq::spi(1020), Err(ArmIrqError::NotAnSpi(1020)));
        assert_eq!(ArmIrq::ppi(0, 15), Err(ArmIrqError::NotAPpi(15)));
        assert_eq!(ArmIrq::ppi(0, 32), Err(ArmIrqError::NotAPpi(32)));
    }

    #[test]
    fn the_pins_of_a_core_are_type_zero() {
        assert_eq!(ArmIrq::cpu(3, CpuPin::Irq).unwrap().bits(), 0x0003_0000);
        let fiq = ArmIrq::cpu(3, CpuPin::Fiq).unwrap();
        assert_eq!(fiq.bits(), 0x0003_0001);
        assert_eq!(fiq.to_string(), "FIQ pin of vCPU 3");
    }
}
