//! Registers of the PL061: offsets, named as in ARM DDI 0190B, chapter 3.

/// GPIODATA is all of the registers below: bits 9 to 2 of the address say which pins an access is for (section 3.3.1).
pub(super) const GPIODATA_END: u64 = 0x400;
pub(super) const GPIODIR: u64 = 0x400;
pub(super) const GPIOIS: u64 = 0x404;
pub(super) const GPIOIBE: u64 = 0x408;
pub(super) const GPIOIEV: u64 = 0x40c;
pub(super) const GPIOIE: u64 = 0x410;
pub(super) const GPIORIS: u64 = 0x414;
pub(super) const GPIOMIS: u64 = 0x418;
pub(super) const GPIOIC: u64 = 0x41c;
pub(super) const GPIOAFSEL: u64 = 0x420;

/// GPIOPeriphID0 to 3, section 3.3.11: part 0x061 by Arm (0x41), revision 0.
pub(super) const PERIPH_ID: u32 = 0x0004_1061;
