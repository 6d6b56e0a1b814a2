//! The memory-mapped registers of a GICv3: offsets, fields and reset values. Sections are those of ARM IHI 0069.

use super::{
    super::gic::{
        arrays::{Array, array},
        ids::{PRIVATE, SGIS},
    },
    config::{EXTENDED_PPIS, EXTENDED_SPIS},
};

/// Size of the distributor's region in bytes (12.8).
pub(super) const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// Size of a redistributor in bytes: RD_base and SGI_base, 64 KiB each (12.10).
pub(super) const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Offset of GICD_SETSPI_NSR.
pub(super) const SET_SPI: u64 = 0x40;
/// Offset of GICD_CLRSPI_NSR.
pub(super) const CLEAR_SPI: u64 = 0x48;
/// Where SGI_base begins.
const SGI_BASE: u64 = 0x1_0000;

/// A register of the distributor (12.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distributor {
    /// GICD_CTLR.
    Control,
    /// GICD_TYPER.
    Type,
    /// GICD_IIDR.
    ImplementerId,
    /// GICD_SETSPI_NSR.
    SetSpi,
    /// GICD_CLRSPI_NSR.
    ClearSpi,
    /// A word with a field for each of some interrupts, from this INTID on.
    Array(Array, u32),
    /// GICD_IROUTERn and GICD_IROUTERnE, by INTID.
    Router(u32),
    /// The identification registers.
    Identification(u32),
}

impl Distributor {
    /// The register that has the byte at `offset`, and the offset where it begins.
    fn at(offset: u64) -> Option<(Self, u64)> {
        let word = offset & !3;
        let index = |base: u64| ((word - base) / 4) as u32;
        let register = match word {
            0x0000 => Self::Control,
            0x0004 => Self::Type,
            0x0008 => Self::ImplementerId,
            // With GICD_CTLR.DS set, GICD_SETSPI_SR and GICD_CLRSPI_SR (0x50 and 0x58) are reserved.
            SET_SPI => Self::SetSpi,
            CLEAR_SPI => Self::ClearSpi,
            0x0080..0x0d00 => {
                let (array, base) = array(word)?;
                Self::Array(array, index(base) * array.interrupts())
            }
            // With GICD_CTLR.ARE set, GICD_ITARGETSRn, GICD_SGIR and the registers of pending SGIs are reserved. With
            // GICD_CTLR.DS set, GICD_IGRPMODRn and GICD_NSACRn are.
            0x1000..0x3400 => {
                let (array, base) = extended_array(word)?;
                Self::Array(array, EXTENDED_SPIS + index(base) * array.interrupts())
            }
            0x6100..0x8000 => Self::Router((word - 0x6000) as u32 / 8),
            0x8000..0xa000 => Self::Router(EXTENDED_SPIS + (word - 0x8000) as u32 / 8),
            0xffd0..0x1_0000 => Self::Identification(index(0xffd0)),
            _ => return None,
        };
        let start = if matches!(register, Self::Router(_)) {
            offset & !7
        } else {
            word
        };
        Some((register, start))
    }

    /// The register of an access, and the first of its bytes; `None` if it is reserved or cannot be accessed so.
    pub(super) fn decode(offset: u64, len: usize) -> Option<(Self, u32)> {
        let (register, start) = Self::at(offset)?;
        let lane = (offset - start) as u32;
        let allowed = match register {
            Self::Router(_) => is_half_or_double(lane, len),
            Self::Array(Array::Priority, _) => is_word(lane, len) || len == 1,
            Self::SetSpi | Self::ClearSpi => is_word(lane, len) || (lane, len) == (0, 2),
            _ => is_word(lane, len),
        };
        allowed.then_some((register, lane))
    }
}

/// The distributor's arrays for extended SPIs.
fn extended_array(word: u64) -> Option<(Array, u64)> {
    Some(match word {
        0x1000..0x1080 => (Array::Group, 0x1000),
        0x1200..0x1280 => (Array::SetEnable, 0x1200),
        0x1400..0x1480 => (Array::ClearEnable, 0x1400),
        0x1600..0x1680 => (Array::SetPending, 0x1600),
        0x1800..0x1880 => (Array::ClearPending, 0x1800),
        0x1a00..0x1a80 => (Array::SetActive, 0x1a00),
        0x1c00..0x1c80 => (Array::ClearActive, 0x1c00),
        0x2000..0x2400 => (Array::Priority, 0x2000),
        0x3000..0x3100 => (Array::Config, 0x3000),
        _ => return None,
    })
}

/// All of a register of 32 bits.
fn is_word(lane: u32, len: usize) -> bool {
    (lane, len) == (0, 4)
}

/// All of a register of 64 bits, or one half of it.
fn is_half_or_double(lane: u32, len: usize) -> bool {
    matches!((lane, len), (0, 4 | 8) | (4, 4))
}

/// A register of a redistributor (12.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redistributor {
    /// GICR_CTLR.
    Control,
    /// GICR_IIDR.
    ImplementerId,
    /// GICR_TYPER.
    Type,
    /// GICR_WAKER.
    Waker,
    /// GICR_SETLPIR.
    SetLpi,
    /// GICR_CLRLPIR.
    ClearLpi,
    /// GICR_PROPBASER.
    PropertiesBase,
    /// GICR_PENDBASER.
    PendingBase,
    /// GICR_INVLPIR.
    InvalidateLpi,
    /// GICR_INVALLR.
    InvalidateAll,
    /// GICR_SYNCR.
    Sync,
    /// A word with a field for each of some private interrupts, from this INTID on.
    Array(Array, u32),
    /// The identification registers.
    Identification(u32),
}

impl Redistributor {
    /// The register that has the byte at `offset` from RD_base, and the offset where it begins.
    fn at(offset: u64) -> Option<(Self, u64)> {
        let word = offset & !3;
        let double = offset & !7;
        let register = match (word, double) {
            (0x0000, _) => Self::Control,
            (0x0004, _) => Self::ImplementerId,
            (0x0014, _) => Self::Waker,
            (0x00c0, _) => Self::Sync,
            (0xffd0..0x1_0000, _) => Self::Identification(((word - 0xffd0) / 4) as u32),
            (SGI_BASE.., _) => {
                let (array, base) = array(word - SGI_BASE)?;
                let first = ((word - SGI_BASE - base) / 4) as u32 * array.interrupts();
                let intid = match first.checked_sub(PRIVATE) {
                    None => first,
                    Some(extended) => EXTENDED_PPIS + extended,
                };
                Self::Array(array, intid)
            }
            (_, 0x0008) => Self::Type,
            (_, 0x0040) => Self::SetLpi,
            (_, 0x0048) => Self::ClearLpi,
            (_, 0x0070) => Self::PropertiesBase,
            (_, 0x0078) => Self::PendingBase,
            (_, 0x00a0) => Self::InvalidateLpi,
            (_, 0x00b0) => Self::InvalidateAll,
            _ => return None,
        };
        let start = if register.is_double() { double } else { word };
        Some((register, start))
    }

    fn is_double(self) -> bool {
        matches!(
            self,
            Self::Type
                | Self::SetLpi
                | Self::ClearLpi
                | Self::PropertiesBase
                | Self::PendingBase
                | Self::InvalidateLpi
                | Self::InvalidateAll
        )
    }

    /// The register of an access, and the first of its bytes; `None` if it is reserved or cannot be accessed so.
    pub(super) fn decode(offset: u64, len: usize) -> Option<(Self, u32)> {
        let (register, start) = Self::at(offset)?;
        let lane = (offset - start) as u32;
        let allowed = match register {
            _ if register.is_double() => is_half_or_double(lane, len),
            Self::Array(Array::Priority, _) => is_word(lane, len) || len == 1,
            _ => is_word(lane, len),
        };
        allowed.then_some((register, lane))
    }
}

/// The word with the configuration of the SGIs: edge-triggered, read-only (12.11).
pub(super) fn is_read_only(array: Array, intid: u32) -> bool {
    array == Array::Config && intid < SGIS
}

/// GICD_CTLR (12.9), the layout with a single security state.
pub(super) mod gicd_ctlr {
    /// EnableGrp0 and EnableGrp1: one bit a group.
    pub(crate) const ENABLE_GROUPS: u32 = 0b11;
    /// Affinity routing: always on.
    pub(crate) const ARE: u32 = 1 << 4;
    /// A single security state.
    pub(crate) const DS: u32 = 1 << 6;
}

/// GICD_TYPER (12.9).
pub(super) mod gicd_typer {
    /// Extended SPIs are implemented.
    pub(crate) const ESPI: u32 = 1 << 8;
    /// Message-based SPIs.
    pub(crate) const MBIS: u32 = 1 << 16;
    /// LPIs.
    pub(crate) const LPIS: u32 = 1 << 17;
    /// IDbits, less one.
    pub(crate) const ID_BITS_SHIFT: u32 = 19;
    /// Affinity 3 can be other than zero.
    pub(crate) const A3V: u32 = 1 << 24;
    /// No routing to one of several CPUs.
    pub(crate) const NO_1_OF_N: u32 = 1 << 25;
    /// Range selectors.
    pub(crate) const RSS: u32 = 1 << 26;
    /// How many words of extended SPIs there are, less one.
    pub(crate) const ESPI_RANGE_SHIFT: u32 = 27;
}

/// GICD_IROUTERn (12.9).
pub(super) mod gicd_irouter {
    /// Interrupt_Routing_Mode: to any one CPU.
    pub(crate) const ONE_OF_N: u64 = 1 << 31;
    /// Aff3, and the others.
    pub(crate) const AFFINITY: u64 = 0xff_00ff_ffff;
}

/// GICD_SETSPI_NSR and GICD_CLRSPI_NSR: the INTID, bits 12:0 (12.9).
pub(super) const SPI_INTID: u32 = 0x1fff;

/// GICR_CTLR (12.11).
pub(super) mod gicr_ctlr {
    /// LPIs are taken.
    pub(crate) const ENABLE_LPIS: u32 = 1 << 0;
    /// EnableLPIs can be cleared again.
    pub(crate) const CES: u32 = 1 << 1;
    /// GICR_INVLPIR, GICR_INVALLR and GICR_SYNCR are there.
    pub(crate) const IR: u32 = 1 << 2;
    /// This CPU takes no interrupts that are for any one: of Group 0, of Group 1.
    pub(crate) const DPG: [u32; 2] = [1 << 24, 1 << 25];
}

/// GICR_TYPER (12.11).
pub(super) mod gicr_typer {
    /// LPIs.
    pub(crate) const PLPIS: u64 = 1 << 0;
    /// LPIs by the redistributor's own registers.
    pub(crate) const DIRECT_LPI: u64 = 1 << 3;
    /// The last one of its region.
    pub(crate) const LAST: u64 = 1 << 4;
    /// GICR_CTLR has the DPG bits.
    pub(crate) const DPGS: u64 = 1 << 5;
    /// Processor_Number.
    pub(crate) const NUMBER_SHIFT: u32 = 8;
    /// CommonLPIAff: redistributors with the same Aff3 share a configuration table.
    pub(crate) const COMMON_LPI_AFF3: u64 = 1 << 24;
    /// How many words of extended PPIs there are.
    pub(crate) const PPI_NUM_SHIFT: u32 = 27;
    /// Affinity_Value.
    pub(crate) const AFFINITY_SHIFT: u32 = 32;
}

/// GICR_WAKER (12.11).
pub(super) mod gicr_waker {
    /// ProcessorSleep: nothing is forwarded to the CPU interface.
    pub(crate) const PROCESSOR_SLEEP: u32 = 1 << 1;
    /// ChildrenAsleep, which follows it at once here.
    pub(crate) const CHILDREN_ASLEEP: u32 = 1 << 2;
}

/// GICR_PROPBASER (12.11).
pub(super) mod propbaser {
    /// OuterCache, Physical_Address, Shareability, InnerCache and IDbits.
    pub(crate) const WRITABLE: u64 = 0x070f_ffff_ffff_ff9f;
    /// Physical_Address.
    pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// IDbits, less one.
    pub(crate) const ID_BITS: u64 = 0x1f;
}

/// GICR_PENDBASER (12.11).
pub(super) mod pendbaser {
    /// OuterCache, Physical_Address, Shareability and InnerCache.
    pub(crate) const WRITABLE: u64 = 0x070f_ffff_ffff_0f80;
    /// Physical_Address.
    pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_0000;
    /// The pending table is zero, and need not be read. Reads as zero.
    pub(crate) const PTZ: u64 = 1 << 62;
}

/// GICD_IIDR and GICR_IIDR: JEP106 code of Arm, no product.
pub(super) const IIDR: u32 = 0x43b;

/// 0xffd0 to 0xfffc of the distributor: PIDR4 to 7, PIDR0 to 3 (architecture version 3 in PIDR2), CIDR0 to 3.
pub(super) const GICD_IDENTIFICATION: [u32; 12] =
    [0x44, 0x00, 0x00, 0x00, 0x92, 0xb4, 0x3b, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The same of a redistributor.
pub(super) const GICR_IDENTIFICATION: [u32; 12] =
    [0x44, 0x00, 0x00, 0x00, 0x93, 0xb4, 0x3b, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// ICC_CTLR_EL1 (12.2).
pub(super) mod icc_ctlr {
    /// ICC_BPR0_EL1 counts for both groups.
    pub(crate) const CBPR: u32 = 1 << 0;
    /// ICC_EOIR0_EL1 and ICC_EOIR1_EL1 drop the priority only; ICC_DIR_EL1 deactivates.
    pub(crate) const EOI_MODE: u32 = 1 << 1;
    /// Every bit that can be set. PMHE, a hint that may be left out, is.
    pub(crate) const WRITABLE: u32 = CBPR | EOI_MODE;
    /// PRIbits, less one.
    pub(crate) const PRI_BITS_SHIFT: u32 = 8;
    /// Affinity 3 of an SGI can be other than zero. IDbits is 0, for 16 bits, and SEIS is clear.
    pub(crate) const A3V: u32 = 1 << 15;
    /// Range selectors.
    pub(crate) const RSS: u32 = 1 << 18;
    /// INTIDs of the extended ranges.
    pub(crate) const EXT_RANGE: u32 = 1 << 19;
}

/// ICC_SRE_EL1: system registers, and neither bypass, fixed (12.2).
pub(super) const ICC_SRE: u64 = 0b111;
/// The INTID of an acknowledge or end of interrupt, bits 23:0.
pub(super) const INTID: u64 = 0xff_ffff;
/// Where nothing can be acknowledged.
pub(super) const SPURIOUS: u32 = 1023;
/// ICC_RPR_EL1 where nothing is active.
pub(super) const IDLE_PRIORITY: u32 = 0xff;

/// ICC_SGI0R_EL1, ICC_SGI1R_EL1 and ICC_ASGI1R_EL1 (12.2).
pub(super) mod sgir {
    /// INTID.
    pub(crate) fn intid(value: u64) -> u32 {
        (value >> 24) as u32 & 0xf
    }
    /// Interrupt_Routing_Mode: to all but this CPU.
    pub(crate) const TO_OTHERS: u64 = 1 << 40;
    /// The affinity of the first CPU that the target list can name.
    pub(crate) fn first(value: u64) -> u32 {
        let aff3 = (value >> 48) as u32 & 0xff;
        let (aff2, aff1) = ((value >> 32) as u32 & 0xff, (value >> 16) as u32 & 0xff);
        let range = (value >> 44) as u32 & 0xf;
        aff3 << 24 | aff2 << 16 | aff1 << 8 | range << 4
    }
    /// TargetList: a bit for each of 16 CPUs.
    pub(crate) fn list(value: u64) -> u16 {
        value as u16
    }
}
