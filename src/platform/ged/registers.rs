//! Registers of the generic event device: its event selector, as QEMU's has it, and those of hardware-reduced ACPI (*Advanced
//! Configuration and Power Interface Specification 6.5*, section 4.8.3.7).

/// Bytes of the event selector: which events have happened. A read clears it.
pub const SELECTOR_SIZE: u64 = 4;

/// Events, a bit each. Those of QEMU, which has no sleep button.
pub(super) mod event {
    pub(in super::super) const POWER_BUTTON: u32 = 1 << 1;
    pub(in super::super) const SLEEP_BUTTON: u32 = 1 << 16;
    pub(in super::super) const ALL: u32 = POWER_BUTTON | SLEEP_BUTTON;
}

/// SLEEP_CONTROL_REG.
pub(super) const SLEEP_CONTROL: u64 = 0;
pub(super) mod control {
    pub(in super::super) const SLP_TYP_SHIFT: u32 = 2;
    pub(in super::super) const SLP_TYP: u8 = 0b111 << SLP_TYP_SHIFT;
    /// Write-only.
    pub(in super::super) const SLP_EN: u8 = 1 << 5;
}

/// SLEEP_STATUS_REG.
pub(super) const SLEEP_STATUS: u64 = 1;
/// WAK_STS: a one clears it.
pub(super) const WAK_STS: u8 = 1 << 7;

/// RESET_REG, which takes one value.
pub(super) const RESET: u64 = 2;
pub(super) const RESET_VALUE: u8 = 0x42;

/// Bytes of the sleep and reset registers.
pub const REGISTERS_SIZE: u64 = 3;

/// SLP_TYP of `\_S5`, by which a guest powers off: that of QEMU's tables.
pub const S5: u8 = 5;
