//! Where the registers are, and how many interrupts there are.

/// Where QEMU's `virt` machine has its GIC, and how many of its SPIs GICD_TYPER tells of.
pub const CPUS: u32 = 4;
pub const GIC: &str = "/machine/unattached/device[4]";
pub const GICD: u64 = 0x0800_0000;
pub const GICR: u64 = 0x080a_0000;
pub const SPIS: u32 = 224;
/// QEMU: 32 SPIs more than GICD_TYPER tells of are there.
pub const QEMU_SPIS: u32 = 256;
pub const RAM: u64 = 0x4000_0000;

pub const REDISTRIBUTOR: u64 = 0x2_0000;
pub const SGI_BASE: u64 = 0x1_0000;
pub const IGROUPR: u64 = 0x080;
pub const ISPENDR: u64 = 0x200;
pub const IPRIORITYR: u64 = 0x400;
pub const ICFGR: u64 = 0xc00;
pub const GICD_IROUTER: u64 = 0x6000;
pub const GICR_CTLR: u64 = 0x00;
pub const GICR_TYPER: u64 = 0x08;
pub const GICR_WAKER: u64 = 0x14;
pub const GICR_PROPBASER: u64 = 0x70;
pub const GICR_PENDBASER: u64 = 0x78;
