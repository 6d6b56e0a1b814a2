//! What plays the guest: its CPUs, each with its faces of the GIC and its two interrupt inputs, and its memory.

use devisor::{
    backends::irqchip::{
        CpuId,
        gicv3::{CpuInterface, CpuOutputs, Distributor, GicV3, GicV3Config, LpiSupport, Redistributor, SysReg},
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
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const GICD_CTLR: u64 = 0x000;
pub const GICD_TYPER: u64 = 0x004;
pub const GICD_SETSPI_NSR: u64 = 0x040;
pub const GICD_CLRSPI_NSR: u64 = 0x048;
pub const GICD_IROUTER: u64 = 0x6000;

/// Arrays of the distributor, and of SGI_base: see [`Guest::place`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Array {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

pub const GICR_CTLR: u64 = 0x0000;
pub const GICR_TYPER: u64 = 0x0008;
pub const GICR_WAKER: u64 = 0x0014;
pub const GICR_SETLPIR: u64 = 0x0040;
pub const GICR_CLRLPIR: u64 = 0x0048;
pub const GICR_PROPBASER: u64 = 0x0070;
pub const GICR_PENDBASER: u64 = 0x0078;
pub const GICR_INVLPIR: u64 = 0x00a0;
pub const GICR_INVALLR: u64 = 0x00b0;
pub const GICR_SYNCR: u64 = 0x00c0;
pub const SGI_BASE: u64 = 0x1_0000;

pub const ENABLE_LPIS: u64 = 1 << 0;
pub const DPG0: u64 = 1 << 24;
pub const DPG1: u64 = 1 << 25;
pub const PTZ: u64 = 1 << 62;
pub const ONE_OF_N: u64 = 1 << 31;

pub const CBPR: u64 = 1 << 0;
pub const EOI_MODE: u64 = 1 << 1;
pub const SPURIOUS: u64 = 1023;
pub const IDLE: u64 = 0xff;

/// Guest memory: where it begins, and the tables of LPIs in it.
pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: usize = 0x20_0000;
pub const PROPERTIES: u64 = RAM;

/// Where the pending table of a CPU is.
pub fn pending_table(cpu: usize) -> u64 {
    RAM + 0x10_0000 + 0x1_0000 * cpu as u64
}

/// One CPU of the guest.
pub struct Cpu {
    pub redistributor: Redistributor,
    pub interface: CpuInterface,
    irq: Arc<AtomicBool>,
    fiq: Arc<AtomicBool>,
}

pub struct Guest {
    pub gic: GicV3,
    pub distributor: Distributor,
    pub cpus: Vec<Cpu>,
    pub memory: Arc<GuestMemoryMmap>,
}

/// So many CPUs, and 64 SPIs.
pub fn config(cpus: u32) -> GicV3Config {
    GicV3Config {
        spis: 64,
        ..GicV3Config::new(cpus)
    }
}

impl Guest {
    /// A guest that has not touched its GIC yet.
    pub fn new(config: GicV3Config) -> Self {
        Self::with(config, |_| Ok(()))
    }

    /// [`new`](Self::new), with inputs that `admit` may refuse to move to the level that it is given.
    pub fn with(config: GicV3Config, admit: impl Fn(bool) -> io::Result<()> + Clone + Send + Sync + 'static) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]).unwrap();
        Self::with_memory(config, Arc::new(memory), admit)
    }

    pub fn with_memory(
        config: GicV3Config,
        memory: Arc<GuestMemoryMmap>,
        admit: impl Fn(bool) -> io::Result<()> + Clone + Send + Sync + 'static,
    ) -> Self {
        let pin = |wire| pin(wire, admit.clone());
        let wires: Vec<_> = (0..config.cpus()).map(|_| (wire(), wire())).collect();
        let outputs = wires.iter().map(|(irq, fiq)| CpuOutputs {
            irq: pin(irq),
            fiq: pin(fiq),
        });
        let gic = match config.lpis {
            LpiSupport::None => GicV3::new(config, outputs.collect()),
            _ => GicV3::with_lpis(config, outputs.collect(), memory.clone()),
        };
        let gic = gic.unwrap();
        let cpu = |(id, (irq, fiq))| Cpu {
            redistributor: gic.redistributor(CpuId(id)).unwrap(),
            interface: gic.cpu_interface(CpuId(id)).unwrap(),
            irq,
            fiq,
        };
        Self {
            cpus: (0..).zip(wires).map(cpu).collect(),
            distributor: gic.distributor(),
            gic,
            memory,
        }
    }

    /// A guest that has everything on: both groups, all CPUs awake, all interrupts enabled in Group 1 at priority 0xa0,
    /// SPIs for CPU 0.
    pub fn ready(config: GicV3Config) -> Self {
        let guest = Self::new(config);
        guest.make_ready();
        guest
    }

    /// Turns everything on.
    pub fn make_ready(&self) {
        for cpu in 0..self.cpus.len() {
            self.cpus[cpu].set_redistributor(GICR_WAKER, 4, 0);
            for intid in self.privates() {
                self.configure(cpu, intid);
            }
            self.cpus[cpu].write(SysReg::ICC_PMR_EL1, 0xff);
            self.cpus[cpu].write(SysReg::ICC_IGRPEN0_EL1, 1);
            self.cpus[cpu].write(SysReg::ICC_IGRPEN1_EL1, 1);
        }
        for intid in self.spis() {
            self.configure(0, intid);
        }
        self.set(GICD_CTLR, 4, 3);
    }

    pub fn configure(&self, cpu: usize, intid: u32) {
        self.set_bit(Array::Group, cpu, intid);
        self.set_priority(cpu, intid, 0xa0);
        self.set_bit(Array::SetEnable, cpu, intid);
    }

    pub fn privates(&self) -> Vec<u32> {
        let extended = self.gic.config().extended_ppis;
        (0..32).chain(1056..1056 + extended).collect()
    }

    pub fn spis(&self) -> Vec<u32> {
        let config = self.gic.config();
        (32..32 + config.spis)
            .chain(4096..4096 + config.extended_spis)
            .collect()
    }

    /// One CPU with everything on.
    pub fn simple() -> Self {
        Self::ready(config(1))
    }

    /// A guest whose CPUs also have their LPIs on, all of them enabled at priority 0xa0.
    pub fn with_lpis(config: GicV3Config) -> Self {
        let guest = Self::ready(config);
        guest.make_lpis_ready();
        guest
    }

    /// Turns all LPIs on.
    pub fn make_lpis_ready(&self) {
        self.memory
            .write_slice(&[0xa1; 57344], GuestAddress(PROPERTIES))
            .unwrap();
        for (number, cpu) in self.cpus.iter().enumerate() {
            cpu.set_redistributor(GICR_PROPBASER, 8, PROPERTIES | 15);
            cpu.set_redistributor(GICR_PENDBASER, 8, pending_table(number) | PTZ);
            cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS);
        }
    }

    // The distributor, and arrays wherever they are.

    pub fn get(&self, offset: u64, width: usize) -> u64 {
        read(&self.distributor, offset, width)
    }

    pub fn set(&self, offset: u64, width: usize, value: u64) {
        self.distributor.write(offset, &value.to_le_bytes()[..width]);
    }

    /// The face with the arrays of an interrupt, the offsets where `ARRAYn` of bits, IPRIORITYRn and ICFGRn begin for its
    /// range, and its index in there.
    fn place(&self, array: Array, cpu: usize, intid: u32) -> (&dyn BusDevice, u64, u32) {
        let number = array as u64;
        match intid {
            0..32 => (&self.cpus[cpu].redistributor, SGI_BASE + 0x80 + number * 0x80, intid),
            1056..1120 => (
                &self.cpus[cpu].redistributor,
                SGI_BASE + 0x80 + number * 0x80,
                intid - 1056 + 32,
            ),
            4096.. => {
                let base = if number == 0 { 0x1000 } else { 0x1000 + number * 0x200 };
                (&self.distributor, base, intid - 4096)
            }
            _ => (&self.distributor, 0x80 + number * 0x80, intid),
        }
    }

    pub fn bit(&self, array: Array, cpu: usize, intid: u32) -> bool {
        let (face, base, index) = self.place(array, cpu, intid);
        read(face, base + u64::from(index / 32 * 4), 4) >> (index % 32) & 1 != 0
    }

    /// Writes a word with one bit set. Of IGROUPRn the others stay.
    pub fn set_bit(&self, array: Array, cpu: usize, intid: u32) {
        let (face, base, index) = self.place(array, cpu, intid);
        let offset = base + u64::from(index / 32 * 4);
        let others = if array == Array::Group {
            read(face, offset, 4) as u32
        } else {
            0
        };
        face.write(offset, &(others | 1 << (index % 32)).to_le_bytes());
    }

    pub fn set_group(&self, cpu: usize, intid: u32, group: u32) {
        let (face, base, index) = self.place(Array::Group, cpu, intid);
        let offset = base + u64::from(index / 32 * 4);
        let others = read(face, offset, 4) as u32 & !(1 << (index % 32));
        face.write(offset, &(others | group << (index % 32)).to_le_bytes());
    }

    fn priority_place(&self, cpu: usize, intid: u32) -> (&dyn BusDevice, u64) {
        let (face, base, index) = self.place(Array::Group, cpu, intid);
        let priorities = if intid >= 4096 { 0x2000 } else { base - 0x80 + 0x400 };
        (face, priorities + u64::from(index))
    }

    pub fn priority(&self, cpu: usize, intid: u32) -> u64 {
        let (face, offset) = self.priority_place(cpu, intid);
        read(face, offset, 1)
    }

    pub fn set_priority(&self, cpu: usize, intid: u32, priority: u8) {
        let (face, offset) = self.priority_place(cpu, intid);
        face.write(offset, &[priority]);
    }

    pub fn set_edge_triggered(&self, cpu: usize, intid: u32, edge: bool) {
        let (face, base, index) = self.place(Array::Group, cpu, intid);
        let configs = if intid >= 4096 { 0x3000 } else { base - 0x80 + 0xc00 };
        let offset = configs + u64::from(index / 16 * 4);
        let others = read(face, offset, 4) as u32 & !(2 << (index % 16 * 2));
        face.write(
            offset,
            &(others | u32::from(edge) << (index % 16 * 2 + 1)).to_le_bytes(),
        );
    }

    pub fn is_edge_triggered(&self, cpu: usize, intid: u32) -> bool {
        let (face, base, index) = self.place(Array::Group, cpu, intid);
        let configs = if intid >= 4096 { 0x3000 } else { base - 0x80 + 0xc00 };
        read(face, configs + u64::from(index / 16 * 4), 4) >> (index % 16 * 2 + 1) & 1 != 0
    }

    /// GICD_IROUTERn.
    pub fn route(&self, intid: u32, router: u64) {
        let offset = if intid >= 4096 {
            0x8000 + u64::from(intid - 4096) * 8
        } else {
            GICD_IROUTER + u64::from(intid) * 8
        };
        self.set(offset, 8, router);
    }

    pub fn read_memory(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn write_memory(&self, address: u64, value: u8) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }
}

impl Cpu {
    pub fn irq(&self) -> bool {
        self.irq.load(SeqCst)
    }

    pub fn fiq(&self) -> bool {
        self.fiq.load(SeqCst)
    }

    pub fn redistributor(&self, offset: u64, width: usize) -> u64 {
        read(&self.redistributor, offset, width)
    }

    pub fn set_redistributor(&self, offset: u64, width: usize, value: u64) {
        self.redistributor.write(offset, &value.to_le_bytes()[..width]);
    }

    pub fn read(&self, register: SysReg) -> u64 {
        self.interface.read_sysreg(register).expect("the register is there")
    }

    pub fn write(&self, register: SysReg, value: u64) {
        self.interface
            .write_sysreg(register, value)
            .expect("the register is there");
    }

    /// ICC_IAR1_EL1.
    pub fn acknowledge(&self) -> u64 {
        self.read(SysReg::ICC_IAR1_EL1)
    }

    /// ICC_EOIR1_EL1.
    pub fn end(&self, intid: u64) {
        self.write(SysReg::ICC_EOIR1_EL1, intid);
    }
}

pub fn read(face: &dyn BusDevice, offset: u64, width: usize) -> u64 {
    let mut data = [0xff; 8];
    face.read(offset, &mut data[..width]);
    read_le(&data[..width])
}

fn wire() -> Arc<AtomicBool> {
    Arc::default()
}

/// An input that insists on its side of the contract: transitions only.
fn pin(
    wire: &Arc<AtomicBool>,
    admit: impl Fn(bool) -> io::Result<()> + Send + Sync + 'static,
) -> Box<dyn LevelInterrupt> {
    let level = Arc::clone(wire);
    Box::new(level_from_fn(move |up| {
        admit(up)?;
        assert_ne!(level.swap(up, SeqCst), up, "told a level twice");
        Ok(())
    }))
}
