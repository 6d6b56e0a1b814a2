//! Where QEMU has what is compared, and the registers of a GICv2 (ARM IHI 0048).

/// Where QEMU's `virt` machine has its GIC, and how many SPIs that has.
pub const GIC: &str = "/machine/unattached/device[1]";
pub const CPU: &str = "/machine/unattached/device[0]";
pub const GICD: u64 = 0x0800_0000;
pub const GICC: u64 = 0x0801_0000;
pub const SPIS: u32 = 256;
pub const INTERRUPTS: u32 = 32 + SPIS;

pub const GICD_CTLR: u64 = 0x000;
pub const GICD_IGROUPR: u64 = 0x080;
pub const GICD_ISENABLER: u64 = 0x100;
pub const GICD_ICENABLER: u64 = 0x180;
pub const GICD_ISPENDR: u64 = 0x200;
pub const GICD_ICPENDR: u64 = 0x280;
pub const GICD_ISACTIVER: u64 = 0x300;
pub const GICD_ICACTIVER: u64 = 0x380;
pub const GICD_IPRIORITYR: u64 = 0x400;
pub const GICD_ITARGETSR: u64 = 0x800;
pub const GICD_ICFGR: u64 = 0xc00;
pub const GICD_SGIR: u64 = 0xf00;
pub const GICD_CPENDSGIR: u64 = 0xf10;
pub const GICD_SPENDSGIR: u64 = 0xf20;

pub const GICC_CTLR: u64 = 0x00;
pub const GICC_PMR: u64 = 0x04;
pub const GICC_BPR: u64 = 0x08;
pub const GICC_IAR: u64 = 0x0c;
pub const GICC_EOIR: u64 = 0x10;
pub const GICC_RPR: u64 = 0x14;
pub const GICC_HPPIR: u64 = 0x18;
pub const GICC_ABPR: u64 = 0x1c;
pub const GICC_APR: u64 = 0xd0;
pub const GICC_IIDR: u64 = 0xfc;
pub const GICC_DIR: u64 = 0x1000;

pub const ACK_CTL: u32 = 1 << 2;
pub const CBPR: u32 = 1 << 4;
pub const IDLE: u32 = 0xff;
pub const SPURIOUS: u32 = 1023;
