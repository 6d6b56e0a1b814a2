//! The fixed hardware registers of ACPI, as in *Advanced Configuration and Power Interface Specification 6.5*, section 4.8.3.

/// PM1 status and enable, tables 4.16 and 4.17. The bits that both have are in the same places.
pub(super) mod pm1 {
    pub(in super::super) const TMR: u16 = 1 << 0;
    pub(in super::super) const GBL: u16 = 1 << 5;
    pub(in super::super) const PWRBTN: u16 = 1 << 8;
    pub(in super::super) const SLPBTN: u16 = 1 << 9;
    pub(in super::super) const RTC: u16 = 1 << 10;
    /// Status alone.
    pub(in super::super) const WAK: u16 = 1 << 15;

    pub(in super::super) const ENABLES: u16 = TMR | GBL | PWRBTN | SLPBTN | RTC;
    pub(in super::super) const STATUS: u16 = ENABLES | WAK;
}

/// PM1 control, table 4.18.
pub(super) mod control {
    /// The events are SCIs, and not SMIs: ACPI mode.
    pub(in super::super) const SCI_EN: u16 = 1 << 0;
    pub(in super::super) const BM_RLD: u16 = 1 << 1;
    pub(in super::super) const SLP_TYP: u16 = 0b111 << SLP_TYP_SHIFT;
    pub(in super::super) const SLP_TYP_SHIFT: u32 = 10;
    /// Write-only.
    pub(in super::super) const SLP_EN: u16 = 1 << 13;

    pub(in super::super) const KEPT: u16 = BM_RLD | SLP_TYP;
}

/// Bytes of the PM1 event block: status and enable.
pub(super) const EVENT_BLOCK: usize = 4;
/// Bytes of the PM1 control block.
pub(super) const CONTROL_BLOCK: usize = 2;
/// Bytes of the timer block.
pub(super) const TIMER_BLOCK: usize = 4;

/// Ticks of the timer in a second.
pub(super) const HZ: u64 = 3_579_545;

/// A GPE block's length is a byte, and half of it are status registers of 8 GPEs each.
pub(super) const MAX_GPES: u32 = 127 * 8;
