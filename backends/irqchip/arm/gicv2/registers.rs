//! The registers of a GICv2: offsets, fields and reset values. Sections are those of ARM IHI 0048B.

use super::super::gic::arrays::{Array, array};

/// Size of the distributor's region in bytes (4.1.2).
pub(super) const DISTRIBUTOR_SIZE: u64 = 0x1000;
/// Size of a CPU interface's region in bytes: GICC_DIR is in a page of its own (4.1.3).
pub(super) const CPU_INTERFACE_SIZE: u64 = 0x2000;

/// A register of the distributor, table 4-1. The number is that of the register within its array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distributor {
    /// GICD_CTLR, 4.3.1.
    Control,
    /// GICD_TYPER, 4.3.2.
    Type,
    /// GICD_IIDR, 4.3.3.
    ImplementerId,
    /// A word of GICD_IGROUPRn, GICD_ISENABLERn and so on, 4.3.4 to 4.3.11 and 4.3.13, from this INTID on.
    Array(Array, u32),
    /// GICD_ITARGETSRn, 4.3.12.
    Targets(u32),
    /// GICD_SGIR, 4.3.15.
    Sgi,
    /// GICD_CPENDSGIRn, 4.3.16.
    ClearSgiPending(u32),
    /// GICD_SPENDSGIRn, 4.3.17.
    SetSgiPending(u32),
    /// The identification registers, 4.3.18.
    Identification(u32),
}

impl Distributor {
    /// The register at a word's offset, or `None` where it is reserved: read as zero, write ignored.
    pub(super) fn at(offset: u64) -> Option<Self> {
        let index = |base| ((offset - base) / 4) as u32;
        Some(match offset {
            0x000 => Self::Control,
            0x004 => Self::Type,
            0x008 => Self::ImplementerId,
            0x800..0xc00 => Self::Targets(index(0x800)),
            0x080..0x800 | 0xc00..0xd00 => {
                let (array, base) = array(offset)?;
                Self::Array(array, index(base) * array.interrupts())
            }
            // GICD_NSACRn, from 0xe00 on, belong to the Security Extensions: reserved without them.
            0xf00 => Self::Sgi,
            0xf10..0xf20 => Self::ClearSgiPending(index(0xf10)),
            0xf20..0xf30 => Self::SetSgiPending(index(0xf20)),
            0xfd0..0x1000 => Self::Identification(index(0xfd0)),
            _ => return None,
        })
    }

    /// The registers that also take byte accesses (4.1.4).
    pub(super) fn has_byte_access(self) -> bool {
        matches!(
            self,
            Self::Array(Array::Priority, _) | Self::Targets(_) | Self::ClearSgiPending(_) | Self::SetSgiPending(_)
        )
    }
}

/// GICD_CTLR.EnableGrp0 and EnableGrp1: one bit a group. GICC_CTLR has the same two.
pub(super) const ENABLE_GROUPS: u32 = 0b11;

/// GICD_IIDR: JEP106 code of Arm, no product.
pub(super) const GICD_IIDR: u32 = 0x43b;

/// 0xfd0 to 0xffc: ICPIDR4 to 7, ICPIDR0 to 3 (architecture version 2 in ICPIDR2), ICCIDR0 to 3.
pub(super) const GICD_IDENTIFICATION: [u32; 12] =
    [0x04, 0x00, 0x00, 0x00, 0x90, 0xb4, 0x2b, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// GICD_SGIR (4.3.15).
pub(super) mod sgir {
    /// SGIINTID, bits 3:0.
    pub(crate) const INTID: u32 = 0xf;
    /// CPUTargetList, bits 23:16.
    pub(crate) fn target_list(value: u32) -> u8 {
        (value >> 16) as u8
    }
    /// TargetListFilter, bits 25:24.
    pub(crate) fn filter(value: u32) -> u32 {
        value >> 24 & 0b11
    }
    /// To the CPUs of the target list.
    pub(crate) const TO_LIST: u32 = 0b00;
    /// To all CPUs but the one that writes.
    pub(crate) const TO_OTHERS: u32 = 0b01;
    /// To the CPU that writes.
    pub(crate) const TO_SELF: u32 = 0b10;
}

/// A register of the CPU interface, table 4-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CpuInterface {
    /// GICC_CTLR, 4.4.1.
    Control,
    /// GICC_PMR, 4.4.2.
    PriorityMask,
    /// GICC_BPR, 4.4.3.
    BinaryPoint,
    /// GICC_IAR, 4.4.4.
    Acknowledge,
    /// GICC_EOIR, 4.4.5.
    EndOfInterrupt,
    /// GICC_RPR, 4.4.6.
    RunningPriority,
    /// GICC_HPPIR, 4.4.7.
    HighestPending,
    /// GICC_ABPR, 4.4.8.
    AliasedBinaryPoint,
    /// GICC_AIAR, 4.4.9.
    AliasedAcknowledge,
    /// GICC_AEOIR, 4.4.10.
    AliasedEndOfInterrupt,
    /// GICC_AHPPIR, 4.4.11.
    AliasedHighestPending,
    /// GICC_APRn, 4.4.12.
    ActivePriorities(usize),
    /// GICC_NSAPRn, 4.4.13. Without the Security Extensions: those of Group 1.
    NonSecureActivePriorities(usize),
    /// GICC_IIDR, 4.4.14.
    InterfaceId,
    /// GICC_DIR, 4.4.15.
    Deactivate,
}

impl CpuInterface {
    /// The register at a word's offset, or `None` where it is reserved.
    pub(super) fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x000 => Self::Control,
            0x004 => Self::PriorityMask,
            0x008 => Self::BinaryPoint,
            0x00c => Self::Acknowledge,
            0x010 => Self::EndOfInterrupt,
            0x014 => Self::RunningPriority,
            0x018 => Self::HighestPending,
            0x01c => Self::AliasedBinaryPoint,
            0x020 => Self::AliasedAcknowledge,
            0x024 => Self::AliasedEndOfInterrupt,
            0x028 => Self::AliasedHighestPending,
            0x0d0..0x0e0 => Self::ActivePriorities((offset - 0x0d0) as usize / 4),
            0x0e0..0x0f0 => Self::NonSecureActivePriorities((offset - 0x0e0) as usize / 4),
            0x0fc => Self::InterfaceId,
            0x1000 => Self::Deactivate,
            _ => return None,
        })
    }
}

/// GICC_CTLR (4.4.1), the layout without the Security Extensions. Besides [`ENABLE_GROUPS`]:
pub(super) mod gicc_ctlr {
    /// GICC_IAR acknowledges interrupts of Group 1 as well.
    pub(crate) const ACK_CTL: u32 = 1 << 2;
    /// Group 0 is signalled as FIQ.
    pub(crate) const FIQ_EN: u32 = 1 << 3;
    /// GICC_BPR counts for both groups.
    pub(crate) const CBPR: u32 = 1 << 4;
    /// GICC_EOIR drops the priority only; GICC_DIR deactivates.
    pub(crate) const EOI_MODE: u32 = 1 << 9;
    /// Every bit that can be set. There are no bypass signals, so the bits that disable them are reserved.
    pub(crate) const WRITABLE: u32 = super::ENABLE_GROUPS | ACK_CTL | FIQ_EN | CBPR | EOI_MODE;
}

/// GICC_IIDR: GIC architecture version 2, JEP106 code of Arm.
pub(super) const GICC_IIDR: u32 = 0x0002_043b;

/// The INTID that an acknowledge or end of interrupt carries, bits 9:0.
pub(super) const INTID: u32 = 0x3ff;
/// The source CPU of an SGI that an acknowledge carries, from bit 10.
pub(super) const SOURCE_CPU_SHIFT: u32 = 10;
/// GICC_IAR where the interrupt is of Group 1 and the register is not for Group 1 (3.2.5).
pub(super) const GROUP_1_PENDING: u32 = 1022;
/// GICC_IAR where nothing can be acknowledged (3.2.5).
pub(super) const SPURIOUS: u32 = 1023;
/// GICC_RPR where nothing is active.
pub(super) const IDLE_PRIORITY: u32 = 0xff;
