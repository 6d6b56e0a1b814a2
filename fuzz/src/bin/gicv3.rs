//! GICv3: a CPU whose input is low has nothing of that group to acknowledge, one whose input is high has, and a restored GIC
//! goes on.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::{
        CpuId, IntId, Ppi, Spi,
        gicv3::{Affinity, CpuInterface, CpuOutputs, Distributor, GicV3, GicV3Config, LevelLine, LpiSupport, SysReg},
    },
    bus::BusDevice,
    interrupt::Interrupt,
};
use devisor_fuzz::{Access, Outside, drive};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CPUS: u32 = 3;
const SPIS: u32 = 64;
const EXTENDED: u32 = 32;
const RAM: u64 = 0x4000_0000;
const PROPERTIES: u64 = RAM;
const PENDING: u64 = RAM + 0x1_0000;
const LPI: u32 = 8192;

const REGISTERS: [SysReg; 15] = [
    SysReg::ICC_PMR_EL1,
    SysReg::ICC_BPR0_EL1,
    SysReg::ICC_BPR1_EL1,
    SysReg::ICC_AP0R_EL1[0],
    SysReg::ICC_AP1R_EL1[0],
    SysReg::ICC_DIR_EL1,
    SysReg::ICC_RPR_EL1,
    SysReg::ICC_SGI0R_EL1,
    SysReg::ICC_SGI1R_EL1,
    SysReg::ICC_ASGI1R_EL1,
    SysReg::ICC_HPPIR0_EL1,
    SysReg::ICC_HPPIR1_EL1,
    SysReg::ICC_CTLR_EL1,
    SysReg::ICC_IGRPEN0_EL1,
    SysReg::ICC_IGRPEN1_EL1,
];

#[derive(Arbitrary, Debug)]
struct Step {
    cpu: u8,
    what: What,
}

#[derive(Arbitrary, Debug)]
enum What {
    Distributor(Access),
    Redistributor(Access),
    Read(u8),
    Write(u8, u64),
    /// A register of any number.
    Any {
        encoding: u16,
        value: Option<u64>,
    },
    /// Enables everything, in the group and with the priority that are given.
    Open {
        group: u8,
        priority: u8,
    },
    EnableLpis(bool),
    Lpi(u8),
    Property {
        lpi: u8,
        value: u8,
    },
    Drive {
        line: u8,
        up: bool,
    },
    Pulse(u8),
    Sgi {
        intid: u8,
        targets: u8,
    },
    Acknowledge(bool),
    End {
        group: bool,
        intid: u16,
    },
    Sleep(bool),
    ResetCpu,
    Reset,
    Move,
}

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    gic: GicV3,
    /// IRQ and FIQ of each CPU.
    outputs: Vec<[Outside; 2]>,
    /// The SPIs, those of the extended range, then each CPU's PPIs.
    lines: Vec<LevelLine>,
    up: Vec<bool>,
}

impl Machine {
    fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        let outputs: Vec<[Outside; 2]> = (0..CPUS).map(|_| Default::default()).collect();
        let config = GicV3Config {
            // One that only a range selector reaches.
            affinities: vec![Affinity(0), Affinity(1), Affinity(0x0101_0011)],
            redistributor_regions: vec![1, 2],
            spis: SPIS,
            extended_spis: EXTENDED,
            extended_ppis: 32,
            lpis: LpiSupport::Direct,
            ..GicV3Config::new(CPUS)
        };
        let boxes = outputs.iter().cloned().map(|[irq, fiq]| CpuOutputs {
            irq: Box::new(irq),
            fiq: Box::new(fiq),
        });
        let gic = GicV3::with_lpis(config, boxes.collect(), Arc::clone(&memory)).unwrap();
        let spis = (0..SPIS)
            .chain(4064..4064 + EXTENDED)
            .map(|spi| gic.level_line(Spi(spi)).unwrap());
        let ppis = (0..CPUS * 16).map(|line| gic.ppi_line(CpuId(line / 16), Ppi(line % 16)).unwrap());
        let lines: Vec<_> = spis.chain(ppis).collect();
        Self {
            up: vec![false; lines.len()],
            memory,
            lines,
            gic,
            outputs,
        }
    }

    fn interface(&self, cpu: u32) -> CpuInterface {
        self.gic.cpu_interface(CpuId(cpu)).unwrap()
    }

    fn step(&mut self, cpu: u32, what: &What) {
        let (distributor, interface) = (self.gic.distributor(), self.interface(cpu));
        let redistributor = self.gic.redistributor(CpuId(cpu)).unwrap();
        match *what {
            What::Distributor(access) => access.run(&distributor, Distributor::SIZE, 4),
            What::Redistributor(access) => access.run(&redistributor, 0x2_0000, 4),
            What::Read(register) => {
                let register = REGISTERS[usize::from(register) % REGISTERS.len()];
                let _ = interface.read_sysreg(register);
            }
            What::Write(register, value) => {
                let register = REGISTERS[usize::from(register) % REGISTERS.len()];
                let _ = interface.write_sysreg(register, value);
            }
            What::Any { encoding, value: None } => _ = interface.read_sysreg(encoding.into()),
            What::Any {
                encoding,
                value: Some(value),
            } => _ = interface.write_sysreg(encoding.into(), value),
            What::Open { group, priority } => {
                redistributor.write(0x14, &[0; 4]);
                distributor.write(0x000, &3_u32.to_le_bytes());
                let banks: [(&dyn BusDevice, u64, u64); 2] = [
                    (&distributor, 0, 1 + u64::from(SPIS / 32)),
                    (&redistributor, 0x1_0000, 1),
                ];
                for (frame, base, words) in banks {
                    for word in 0..words {
                        frame.write(base + 0x080 + word * 4, &[group; 4]);
                        frame.write(base + 0x100 + word * 4, &[0xff; 4]);
                        for intid in word * 32..word * 32 + 32 {
                            frame.write(base + 0x400 + intid, &[priority]);
                        }
                    }
                }
                for register in [SysReg::ICC_IGRPEN0_EL1, SysReg::ICC_IGRPEN1_EL1] {
                    interface.write_sysreg(register, 1).unwrap();
                }
                interface.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
            }
            What::EnableLpis(enable) => {
                redistributor.write(0x70, &(PROPERTIES | 13).to_le_bytes());
                redistributor.write(0x78, &(PENDING + u64::from(cpu) * 0x1_0000).to_le_bytes());
                redistributor.write(0x00, &u32::from(enable).to_le_bytes());
            }
            What::Lpi(lpi) => {
                self.gic.send_lpi(CpuId(cpu), IntId(LPI + u32::from(lpi))).unwrap();
            }
            What::Property { lpi, value } => {
                let address = GuestAddress(PROPERTIES + u64::from(lpi));
                self.memory.write_slice(&[value], address).unwrap();
                redistributor.write(0xa0, &u64::from(LPI + u32::from(lpi)).to_le_bytes()); // GICR_INVLPIR
            }
            What::Drive { line, up } => {
                let line = usize::from(line) % self.lines.len();
                self.up[line] = up;
                drive(&self.lines[line], up);
            }
            What::Pulse(spi) => {
                let line = self.gic.edge_line(Spi(u32::from(spi) % SPIS)).unwrap();
                line.trigger().unwrap();
            }
            What::Sgi { intid, targets } => {
                let value = u64::from(intid & 15) << 24 | u64::from(targets);
                interface.write_sysreg(SysReg::ICC_SGI1R_EL1, value).unwrap();
            }
            What::Acknowledge(group) => self.acknowledge(cpu, group),
            What::End { group, intid } => {
                let register = [SysReg::ICC_EOIR0_EL1, SysReg::ICC_EOIR1_EL1][usize::from(group)];
                interface.write_sysreg(register, intid.into()).unwrap();
            }
            What::Sleep(asleep) => redistributor.write(0x14, &(u32::from(asleep) << 1).to_le_bytes()),
            What::ResetCpu => self.gic.reset_cpu_interface(CpuId(cpu)).unwrap(),
            What::Reset => self.gic.reset(),
            What::Move => self.move_away(),
        }
    }

    /// Group 1 is IRQ, Group 0 is FIQ.
    fn acknowledge(&self, cpu: u32, group: bool) {
        let [irq, fiq] = self.outputs[cpu as usize].each_ref().map(Outside::is_up);
        let (register, up) = match group {
            true => (SysReg::ICC_IAR1_EL1, irq),
            false => (SysReg::ICC_IAR0_EL1, fiq),
        };
        let intid = self.interface(cpu).read_sysreg(register).unwrap();
        assert_eq!(up, intid != 1023, "CPU {cpu}, {register}: {intid}");
    }

    fn move_away(&mut self) {
        let state = self.gic.save();
        let other = Self::new(Arc::clone(&self.memory));
        other.gic.restore(&state).unwrap();
        assert_eq!(other.gic.save(), state);
        // A line counts as down until its device has driven it again.
        for (line, up) in other.lines.iter().zip(&self.up) {
            drive(line, *up);
        }
        // A guest may have put the tables of its LPIs where nothing is, or one into the other.
        let has_lpis = state.cpus.iter().any(|cpu| cpu.redistributor_control & 1 != 0);
        for (old, new) in self.outputs.iter().zip(&other.outputs) {
            let levels = |outputs: &[Outside; 2]| outputs.each_ref().map(Outside::is_up);
            assert!(has_lpis || levels(old) == levels(new));
        }
        let up = std::mem::take(&mut self.up);
        *self = other;
        self.up = up;
        assert_eq!(self.gic.save(), state, "the devices drive their lines as they did");
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x8_0000)]).unwrap();
    let mut machine = Machine::new(Arc::new(memory));
    for Step { cpu, what } in &steps {
        machine.step(u32::from(*cpu) % CPUS, what);
    }
});
