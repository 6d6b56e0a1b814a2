//! Registers of the PL031: offsets and fields, named as in ARM DDI 0224C, chapter 3.

// Offsets, table 3-1.
pub(super) const RTCDR: u64 = 0x000;
pub(super) const RTCMR: u64 = 0x004;
pub(super) const RTCLR: u64 = 0x008;
pub(super) const RTCCR: u64 = 0x00c;
pub(super) const RTCIMSC: u64 = 0x010;
pub(super) const RTCRIS: u64 = 0x014;
pub(super) const RTCMIS: u64 = 0x018;
pub(super) const RTCICR: u64 = 0x01c;

/// Control register, section 3.3.4: once set, it stays until a reset.
pub(super) const START: u32 = 1 << 0;

/// The one interrupt, in RTCIMSC, RTCRIS, RTCMIS and RTCICR (sections 3.3.5 to 3.3.8).
pub(super) const INTERRUPT: u32 = 1 << 0;

/// RTCPeriphID0 to 3, section 3.3.9: part 0x031 by Arm (0x41), revision 1.
pub(super) const PERIPH_ID: u32 = 0x0014_1031;
