//! Where the registers are, and what is in memory.

pub const CPUS: u32 = 4;
/// Where QEMU's `virt` machine has its ITS and its redistributors.
pub const GITS: u64 = 0x0808_0000;
pub const TRANSLATER: u64 = 0x0809_0040;
pub const GICR: u64 = 0x080a_0000;
pub const GICR_SIZE: u64 = 0x2_0000;

pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: u64 = 0x0800_0000;
/// What is cleared for each episode.
pub const AREA: u64 = 0x0020_0000;
pub const QUEUE: u64 = RAM;
pub const DEVICE_TABLE: u64 = RAM + 0x4_0000;
pub const COLLECTION_TABLE: u64 = RAM + 0x8_0000;
pub const LEVEL_2: u64 = RAM + 0xc_0000;
pub const ITTS: u64 = RAM + 0x10_0000;
pub const ITT_SIZE: u64 = 0x1000;
pub const PENDING_TABLES: u64 = RAM + 0x40_0000;
pub const CONFIGURATION_TABLE: u64 = RAM + 0x50_0000;
/// Where no memory is, whatever is added to it.
pub const NOWHERE: u64 = 0x4000_0000_0000;

pub const CTLR: u64 = 0x0000;
pub const TYPER: u64 = 0x0008;
pub const CBASER: u64 = 0x0080;
pub const CWRITER: u64 = 0x0088;
pub const CREADR: u64 = 0x0090;
pub const BASER: u64 = 0x0100;
pub const QUIESCENT: u64 = 1 << 31;
pub const STALLED: u64 = 1;
pub const INDIRECT: u64 = 1 << 62;

pub const GICR_CTLR: u64 = 0x0000;
pub const GICR_PROPBASER: u64 = 0x0070;
pub const GICR_PENDBASER: u64 = 0x0078;

/// The LPIs that the sequences play with are some of the first.
pub const LPIS: std::ops::Range<u32> = 8192..8448;

/// An interrupt translation table.
pub fn itt(number: u32) -> u64 {
    ITTS + u64::from(number) * ITT_SIZE
}
