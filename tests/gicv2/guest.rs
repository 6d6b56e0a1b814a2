//! What plays the guest: its CPUs, each with its faces of the GIC and its two interrupt inputs.

use devisor::{
    backends::irqchip::{
        CpuId,
        gicv2::{CpuInterface, CpuOutputs, Distributor, GicV2, GicV2Config},
    },
    bus::{BusDevice, read_le},
    interrupt::{LevelInterrupt, level_from_fn},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

pub const GICD_CTLR: u64 = 0x000;
pub const GICD_TYPER: u64 = 0x004;
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
pub const GICC_AIAR: u64 = 0x20;
pub const GICC_AEOIR: u64 = 0x24;
pub const GICC_AHPPIR: u64 = 0x28;
pub const GICC_APR: u64 = 0xd0;
pub const GICC_NSAPR: u64 = 0xe0;
pub const GICC_DIR: u64 = 0x1000;

pub const ENABLE_GRP0: u32 = 1 << 0;
pub const ENABLE_GRP1: u32 = 1 << 1;
pub const ACK_CTL: u32 = 1 << 2;
pub const FIQ_EN: u32 = 1 << 3;
pub const CBPR: u32 = 1 << 4;
pub const EOI_MODE: u32 = 1 << 9;

pub const SPURIOUS: u32 = 1023;

/// One CPU of the guest.
pub struct Cpu {
    distributor: Distributor,
    interface: CpuInterface,
    irq: Arc<AtomicBool>,
    fiq: Arc<AtomicBool>,
}

pub struct Guest {
    pub gic: GicV2,
    pub cpus: Vec<Cpu>,
}

impl Guest {
    /// A guest that has not touched its GIC yet.
    pub fn new(config: GicV2Config) -> Self {
        Self::with(config, |_| Ok(()))
    }

    /// [`new`](Self::new), with inputs that `admit` may refuse to move to the level that it is given.
    pub fn with(config: GicV2Config, admit: impl Fn(bool) -> io::Result<()> + Clone + Send + Sync + 'static) -> Self {
        let pin = |wire| pin(wire, admit.clone());
        let wires: Vec<_> = (0..config.cpus).map(|_| (wire(), wire())).collect();
        let outputs = wires.iter().map(|(irq, fiq)| CpuOutputs {
            irq: pin(irq),
            fiq: pin(fiq),
        });
        let gic = GicV2::new(config, outputs.collect()).unwrap();
        let cpu = |(id, (irq, fiq))| Cpu {
            distributor: gic.distributor(CpuId(id)).unwrap(),
            interface: gic.cpu_interface(CpuId(id)).unwrap(),
            irq,
            fiq,
        };
        let cpus = (0..).zip(wires).map(cpu).collect();
        Self { gic, cpus }
    }

    /// A guest that has everything on: both groups, all interrupts at priority 0xa0, SPIs for CPU 0.
    pub fn ready(config: GicV2Config) -> Self {
        let guest = Self::new(config);
        guest.make_ready();
        guest
    }

    /// Turns everything on.
    pub fn make_ready(&self) {
        let config = self.gic.config();
        for cpu in &self.cpus {
            for word in 0..=(config.spis / 32).into() {
                cpu.set(GICD_ISENABLER + word * 4, u32::MAX);
            }
            for intid in 0..(32 + config.spis).into() {
                cpu.set_byte(GICD_IPRIORITYR + intid, 0xa0);
                cpu.set_byte(GICD_ITARGETSR + intid, 1);
            }
            cpu.write(GICC_PMR, 0xff);
            cpu.write(GICC_CTLR, ENABLE_GRP0 | ENABLE_GRP1 | ACK_CTL);
        }
        self.cpus[0].set(GICD_CTLR, ENABLE_GRP0 | ENABLE_GRP1);
    }

    /// [`ready`](Self::ready), with one CPU, 96 SPIs and 5 bits of priority.
    pub fn simple() -> Self {
        Self::ready(GicV2Config::default())
    }
}

impl Cpu {
    /// Reads a word of the distributor.
    pub fn get(&self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.distributor.read(offset, &mut data);
        read_le(&data) as u32
    }

    /// Writes a word of the distributor.
    pub fn set(&self, offset: u64, value: u32) {
        self.distributor.write(offset, &value.to_le_bytes());
    }

    pub fn get_byte(&self, offset: u64) -> u8 {
        let mut data = [0xee];
        self.distributor.read(offset, &mut data);
        data[0]
    }

    pub fn set_byte(&self, offset: u64, value: u8) {
        self.distributor.write(offset, &[value]);
    }

    /// Sets the bit of an interrupt in an array of the distributor.
    pub fn set_bit(&self, array: u64, intid: u32) {
        self.set(array + u64::from(intid / 32) * 4, 1 << (intid % 32));
    }

    /// The bit of an interrupt in an array of the distributor.
    pub fn bit(&self, array: u64, intid: u32) -> bool {
        self.get(array + u64::from(intid / 32) * 4) >> (intid % 32) & 1 != 0
    }

    pub fn set_priority(&self, intid: u32, priority: u8) {
        self.set_byte(GICD_IPRIORITYR + u64::from(intid), priority);
    }

    pub fn set_group(&self, intid: u32, group: u32) {
        let register = GICD_IGROUPR + u64::from(intid / 32) * 4;
        let others = self.get(register) & !(1 << (intid % 32));
        self.set(register, others | group << (intid % 32));
    }

    pub fn set_edge_triggered(&self, intid: u32) {
        let register = GICD_ICFGR + u64::from(intid / 16) * 4;
        self.set(register, self.get(register) | 0b10 << (intid % 16 * 2));
    }

    /// Reads a word of the CPU interface.
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.interface.read(offset, &mut data);
        read_le(&data) as u32
    }

    /// Writes a word of the CPU interface.
    pub fn write(&self, offset: u64, value: u32) {
        self.interface.write(offset, &value.to_le_bytes());
    }

    pub fn acknowledge(&self) -> u32 {
        self.read(GICC_IAR)
    }

    pub fn end(&self, acknowledged: u32) {
        self.write(GICC_EOIR, acknowledged);
    }

    pub fn irq(&self) -> bool {
        self.irq.load(SeqCst)
    }

    pub fn fiq(&self) -> bool {
        self.fiq.load(SeqCst)
    }

    /// Both faces, for accesses of any width.
    pub fn faces(&self) -> [(&dyn BusDevice, u64); 2] {
        [
            (&self.distributor, Distributor::SIZE),
            (&self.interface, CpuInterface::SIZE),
        ]
    }
}

fn wire() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

/// Moves the wire, and takes transitions only.
fn pin(
    wire: &Arc<AtomicBool>,
    admit: impl Fn(bool) -> io::Result<()> + Send + Sync + 'static,
) -> Box<dyn LevelInterrupt> {
    let wire = Arc::clone(wire);
    Box::new(level_from_fn(move |up| {
        admit(up)?;
        assert_ne!(wire.swap(up, SeqCst), up, "an output is told a level twice");
        Ok(())
    }))
}
