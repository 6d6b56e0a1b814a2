//! Registers of the MC146818, named as in *MC146818A Real-Time Clock Plus RAM (RTC)* (Motorola), and where a PC keeps the
//! century.

// Indices, figure 8 of the data sheet.
pub(super) const SECONDS: usize = 0x00;
pub(super) const SECONDS_ALARM: usize = 0x01;
pub(super) const MINUTES: usize = 0x02;
pub(super) const MINUTES_ALARM: usize = 0x03;
pub(super) const HOURS: usize = 0x04;
pub(super) const HOURS_ALARM: usize = 0x05;
pub(super) const DAY_OF_WEEK: usize = 0x06;
pub(super) const DATE_OF_MONTH: usize = 0x07;
pub(super) const MONTH: usize = 0x08;
pub(super) const YEAR: usize = 0x09;
pub(super) const A: usize = 0x0a;
pub(super) const B: usize = 0x0b;
pub(super) const C: usize = 0x0c;
pub(super) const D: usize = 0x0d;
/// The first byte of memory.
pub(super) const MEMORY: usize = 0x0e;
/// In the memory of the chip, and since the IBM AT the century of [`YEAR`].
pub(super) const CENTURY: usize = 0x32;
/// How many there are: the 64 of the data sheet, and as many bytes of memory more as PCs have.
pub(super) const COUNT: usize = 128;

/// The highest bit of the seconds is read-only.
pub(super) const SECONDS_WRITABLE: u8 = 0x7f;

/// Register A.
pub(super) mod a {
    /// UIP: an update is in progress, or begins in less than 244 microseconds. Read-only.
    pub(in super::super) const UIP: u8 = 1 << 7;
    /// DV2 to DV0: the divider.
    pub(in super::super) const DIVIDER: u8 = 0b111 << 4;
    /// A crystal of 32.768 kHz. The codes below are those of crystals that a PC has not, and count the same here.
    pub(in super::super) const HZ_32768: u8 = 0b010 << 4;
    /// RS3 to RS0: which tap of the divider is the periodic interrupt.
    pub(in super::super) const RATE: u8 = 0xf;
}

/// Register B.
pub(super) mod b {
    pub(in super::super) const SET: u8 = 1 << 7;
    pub(in super::super) const PIE: u8 = 1 << 6;
    pub(in super::super) const AIE: u8 = 1 << 5;
    pub(in super::super) const UIE: u8 = 1 << 4;
    pub(in super::super) const SQWE: u8 = 1 << 3;
    pub(in super::super) const DM: u8 = 1 << 2;
    pub(in super::super) const HOURS_24: u8 = 1 << 1;
}

/// Register C. PF, AF and UF are where PIE, AIE and UIE are in register B.
pub(super) mod c {
    pub(in super::super) const IRQF: u8 = 1 << 7;
    pub(in super::super) const PF: u8 = 1 << 6;
    pub(in super::super) const AF: u8 = 1 << 5;
    pub(in super::super) const UF: u8 = 1 << 4;
    pub(in super::super) const FLAGS: u8 = PF | AF | UF;
}

/// Register D, VRT: the battery has not been empty.
pub(super) const VRT: u8 = 1 << 7;

/// What the index port takes besides the index: it masks NMIs of a PC.
pub(super) const NMI_MASK: u8 = 1 << 7;

/// Ticks of the crystal in a second.
pub(super) const HZ: u64 = 1 << SECOND_SHIFT;
/// The tap of the divider that is a second.
pub(super) const SECOND_SHIFT: u32 = 15;
/// For how long UIP is set: 244 microseconds before the update, which takes 1984 (table 4 of the data sheet).
pub(super) const UIP_TICKS: u64 = 8 + 65;
/// How long the first update comes after the divider is released.
pub(super) const RELEASE_TICKS: u64 = HZ / 2;
