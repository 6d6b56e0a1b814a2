//! Registers of the 8254: ports and control words, named as in *8254 Programmable Interval Timer*, order number 231164;
//! and of system control port B, as in *82371AB (PIIX4)*, order number 290562, section 4.2.6.

/// Counters 0 to 2, then the control word.
pub(super) const PORTS: u64 = 4;

/// CLK of a PC's counters is 14.31818 MHz (315/22 MHz) divided by 12: 105 ticks in 88 microseconds.
pub(super) const TICKS: u64 = 105;
pub(super) const NANOSECONDS: u64 = 88_000;

/// The alarm of a periodic counter is not set more often than every 200 microseconds.
pub(super) const MIN_PERIOD: u64 = 239;

// Control word.
pub(super) const SC_SHIFT: u8 = 6;
/// SC of the read-back command.
pub(super) const READ_BACK: u8 = 3;
pub(super) const RW_SHIFT: u8 = 4;
pub(super) const RW: u8 = 3;
/// RW of the counter latch command.
pub(super) const LATCH: u8 = 0;
pub(super) const RW_LSB: u8 = 1;
pub(super) const RW_MSB: u8 = 2;
pub(super) const RW_BOTH: u8 = 3;
/// RW, M and BCD, which the status gives back as they were written.
pub(super) const FORMAT: u8 = 0x3f;
pub(super) const BCD: u8 = 1 << 0;

// Read-back command: both select by a zero.
pub(super) const READ_BACK_COUNT: u8 = 1 << 5;
pub(super) const READ_BACK_STATUS: u8 = 1 << 4;

// Status byte.
pub(super) const STATUS_OUT: u8 = 1 << 7;
pub(super) const STATUS_NULL_COUNT: u8 = 1 << 6;

// System control port B.
pub(super) const TIMER_2_GATE: u8 = 1 << 0;
pub(super) const SPEAKER_ENABLE: u8 = 1 << 1;
/// The enables of parity and channel check, which nothing here raises.
pub(super) const NMI_ENABLES: u8 = 3 << 2;
pub(super) const REFRESH: u8 = 1 << 4;
pub(super) const TIMER_2_OUT: u8 = 1 << 5;
pub(super) const PORT_B_WRITABLE: u8 = TIMER_2_GATE | SPEAKER_ENABLE | NMI_ENABLES;
/// Refresh toggles about every 15 microseconds.
pub(super) const REFRESH_TICKS: u64 = 18;
