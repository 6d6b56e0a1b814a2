//! GICv3 with every range, routing to any CPU, messages and LPIs: a CPU is interrupted exactly when it has something to
//! acknowledge, and a restored GIC goes on.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::{
        CpuId, IntId, Ppi, Spi, TriggerMode,
        gicv3::{
            CpuOutputs, Distributor, GicV3, GicV3Config, GicV3State, LevelLine, LpiSupport, Redistributor, SysReg,
        },
    },
    bus::BusDevice,
    interrupt::Interrupt,
};
use devisor_fuzz::{Access, Outside, SomeInterrupt, drive};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CPUS: u32 = 3;
const SPIS: u32 = 32;
/// SPI 4064 is the first of the extended range, PPI 1040 likewise.
const LINES: [Spi; 4] = [Spi(0), Spi(31), Spi(4064), Spi(4095)];
const PPIS: [Ppi; 3] = [Ppi(0), Ppi(15), Ppi(1040)];
/// Where they are in the lists of a state.
const SPI_PLACES: [usize; 4] = [0, 31, 32, 63];
const PPI_PLACES: [usize; 3] = [16, 31, 32];
const LPIS: u32 = 8192;
const PROPERTIES: u64 = 0;
const PENDING: u64 = 0x2_0000;
const RAM_SIZE: usize = 0x6_0000;

const ICC: [SysReg; 16] = [
    SysReg::ICC_PMR_EL1,
    SysReg::ICC_BPR0_EL1,
    SysReg::ICC_BPR1_EL1,
    SysReg::ICC_CTLR_EL1,
    SysReg::ICC_IGRPEN0_EL1,
    SysReg::ICC_IGRPEN1_EL1,
    SysReg::ICC_AP0R_EL1[0],
    SysReg::ICC_AP1R_EL1[0],
    SysReg::ICC_EOIR0_EL1,
    SysReg::ICC_EOIR1_EL1,
    SysReg::ICC_DIR_EL1,
    SysReg::ICC_SGI0R_EL1,
    SysReg::ICC_SGI1R_EL1,
    SysReg::ICC_ASGI1R_EL1,
    SysReg::ICC_HPPIR1_EL1,
    SysReg::ICC_RPR_EL1,
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
    /// Any register of the CPU interface, or what may be none.
    Register {
        number: u8,
        value: u64,
        write: bool,
    },
    AnyRegister {
        encoding: u16,
        value: u64,
        write: bool,
    },
    /// Enables everything, in the group, with the priority and to the CPU that are given.
    Open {
        group: u8,
        priority: u8,
        router: u8,
        any_cpu: bool,
    },
    Wake(bool),
    Drive {
        line: u8,
        up: bool,
    },
    Pulse(u8),
    Lpi(u8),
    Configure {
        lpi: u8,
        entry: u8,
        all: bool,
    },
    EnableLpis(bool),
    Acknowledge(bool),
    End {
        intid: u16,
        group_1: bool,
    },
    ResetCpu,
    Reset,
    Move,
    Restore {
        changes: Vec<Change>,
        /// Over what is there, and not into another.
        over: bool,
    },
}

/// How a state from outside differs from one that there is: little enough for most to be taken.
#[derive(Arbitrary, Debug)]
enum Change {
    Control(u8),
    Private {
        place: u8,
        state: SomeInterrupt,
    },
    /// Of a shared interrupt, mostly one that has a line.
    Shared {
        place: u8,
        state: SomeInterrupt,
        router: u32,
        message: bool,
    },
    Redistributor {
        control: u8,
        asleep: bool,
    },
    Lpis {
        properties: u64,
        pending: u64,
        zero: bool,
        enabled: bool,
    },
    Interface {
        control: u8,
        groups: u8,
        priority_mask: u8,
    },
    BinaryPoints([u8; 2]),
    Active {
        index: u8,
        priorities: [u32; 2],
    },
}

impl Change {
    fn make(&self, state: &mut GicV3State, cpu: usize) {
        let this = &mut state.cpus[cpu];
        match *self {
            Self::Control(control) => state.control = u32::from(control & 0x83),
            Self::Private { place, state } => {
                let place = usize::from(place % 64);
                this.private[place] = state.state();
                if place < 16 {
                    let sgi = &mut this.private[place];
                    (sgi.trigger, sgi.line) = (TriggerMode::Edge, false);
                }
            }
            Self::Shared {
                place,
                state: new,
                router,
                message,
            } => {
                let place = match place {
                    0..64 => place.into(),
                    _ => SPI_PLACES[usize::from(place % 4)],
                };
                let spi = &mut state.spis[place];
                // To a CPU, to any, or with bits that are no CPU's and may be none of the register's.
                spi.router = match router >> 30 {
                    0 => u64::from(router % 4),
                    1 => 1 << 31,
                    2 => u64::from(router & 0xff_ffff),
                    _ => u64::from(router) << 10,
                };
                spi.state = new.state();
                // A message holds the line up.
                spi.message = message;
                spi.state.line |= message;
            }
            Self::Redistributor { control, asleep } => {
                this.redistributor_control = this.redistributor_control & 1 | u32::from(control & 3) << 24;
                this.asleep = asleep;
            }
            Self::Lpis {
                properties,
                pending,
                zero,
                enabled,
            } => {
                // While they are enabled, the tables are where they are for all steps: what is lost with a table outside of
                // memory is lost.
                let table = PENDING + cpu as u64 * 0x1_0000;
                (this.properties_base, this.pending_base) = match enabled {
                    true => (PROPERTIES | properties & 0x1f, table),
                    false => (properties & 0x070f_ffff_ffff_ff9f, pending & 0x070f_ffff_ffff_0f80),
                };
                this.pending_base |= u64::from(zero) << 62;
                this.redistributor_control = this.redistributor_control & !1 | u32::from(enabled);
            }
            Self::Interface {
                control,
                groups,
                priority_mask,
            } => {
                this.control = u32::from(control & 0x83);
                this.enabled_groups = u32::from(groups & 0x83);
                this.priority_mask = priority_mask & 0xf9;
            }
            Self::BinaryPoints(points) => this.binary_points = points.map(|point| 2 + point % 7),
            Self::Active { index, priorities } => {
                // All but the first are of no use with 32 priorities.
                let index = usize::from(index.saturating_sub(0xfc));
                this.active_priorities
                    .iter_mut()
                    .zip(priorities)
                    .for_each(|(group, active)| group[index] = active);
            }
        }
    }
}

struct Machine {
    gic: GicV3,
    memory: Arc<GuestMemoryMmap>,
    /// IRQ and FIQ of each CPU.
    outputs: Vec<[Outside; 2]>,
    lines: Vec<LevelLine>,
    up: Vec<bool>,
}

impl Machine {
    fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        let outputs: Vec<[Outside; 2]> = (0..CPUS).map(|_| Default::default()).collect();
        let config = GicV3Config {
            spis: SPIS,
            extended_spis: 32,
            extended_ppis: 32,
            lpis: LpiSupport::Direct,
            ..GicV3Config::new(CPUS)
        };
        let boxes = outputs.iter().cloned().map(|[irq, fiq]| CpuOutputs {
            irq: Box::new(irq),
            fiq: Box::new(fiq),
        });
        let gic = GicV3::with_lpis(config, boxes.collect(), Arc::clone(&memory)).unwrap();
        let spis = LINES.iter().map(|&spi| gic.level_line(spi).unwrap());
        let ppis = (0..CPUS).flat_map(|cpu| PPIS.map(|ppi| gic.ppi_line(CpuId(cpu), ppi).unwrap()));
        let lines: Vec<_> = spis.chain(ppis).collect();
        Self {
            up: vec![false; lines.len()],
            lines,
            gic,
            memory,
            outputs,
        }
    }

    fn redistributor(&self, cpu: u32) -> Redistributor {
        self.gic.redistributor(CpuId(cpu)).unwrap()
    }

    fn read(&self, cpu: u32, register: SysReg) -> Option<u64> {
        self.gic.cpu_interface(CpuId(cpu)).unwrap().read_sysreg(register)
    }

    fn write(&self, cpu: u32, register: SysReg, value: u64) {
        let _ = self
            .gic
            .cpu_interface(CpuId(cpu))
            .unwrap()
            .write_sysreg(register, value);
    }

    fn access(&self, cpu: u32, register: SysReg, value: u64, write: bool) {
        match write {
            true => self.write(cpu, register, value),
            false => drop(self.read(cpu, register)),
        }
    }

    /// Which of the lines are up in a state.
    fn lines_of(state: &GicV3State) -> Vec<bool> {
        // The line of an SPI may be held up by a message alone.
        let spis = SPI_PLACES.iter().map(|&place| &state.spis[place]);
        let spis = spis.map(|spi| spi.state.line && !spi.message);
        let ppis = state
            .cpus
            .iter()
            .flat_map(|cpu| PPI_PLACES.map(|place| cpu.private[place].line));
        spis.chain(ppis).collect()
    }

    fn drive_all(&mut self, up: Vec<bool>) {
        for (line, up) in self.lines.iter().zip(&up) {
            drive(line, *up);
        }
        self.up = up;
    }

    fn step(&mut self, cpu: u32, what: &What) {
        match *what {
            What::Distributor(access) => access.run(&self.gic.distributor(), Distributor::SIZE, 4),
            What::Redistributor(access) => access.run(&self.redistributor(cpu), Redistributor::SIZE, 4),
            What::Register { number, value, write } => {
                self.access(cpu, ICC[usize::from(number) % ICC.len()], value, write);
            }
            What::AnyRegister { encoding, value, write } => self.access(cpu, SysReg::from(encoding), value, write),
            What::Open {
                group,
                priority,
                router,
                any_cpu,
            } => self.open(cpu, group, priority, u64::from(router % 4) | u64::from(any_cpu) << 31),
            What::Wake(awake) => self
                .redistributor(cpu)
                .write(0x14, &(u32::from(!awake) << 1).to_le_bytes()),
            What::Drive { line, up } => {
                let line = usize::from(line) % self.lines.len();
                self.up[line] = up;
                drive(&self.lines[line], up);
            }
            What::Pulse(spi) => {
                let line = self.gic.edge_line(LINES[usize::from(spi) % LINES.len()]).unwrap();
                line.trigger().unwrap();
            }
            What::Lpi(lpi) => self.gic.send_lpi(CpuId(cpu), IntId(LPIS + u32::from(lpi))).unwrap(),
            What::Configure { lpi, entry, all } => {
                self.memory
                    .write_obj(entry, GuestAddress(PROPERTIES + u64::from(lpi)))
                    .unwrap();
                let (register, value) = match all {
                    true => (0xb0, 0),
                    false => (0xa0, u64::from(LPIS) + u64::from(lpi)),
                };
                // At each CPU: one that is not told may go on with the entry that it has read, and another GIC reads it anew.
                for cpu in 0..CPUS {
                    self.redistributor(cpu).write(register, &value.to_le_bytes());
                }
            }
            What::EnableLpis(on) => {
                let redistributor = self.redistributor(cpu);
                redistributor.write(0x70, &(PROPERTIES | 13).to_le_bytes());
                redistributor.write(0x78, &(PENDING + u64::from(cpu) * 0x1_0000).to_le_bytes());
                redistributor.write(0x00, &u32::from(on).to_le_bytes());
            }
            What::Acknowledge(group_1) => self.acknowledge(cpu, group_1),
            What::End { intid, group_1 } => {
                let register = match group_1 {
                    true => SysReg::ICC_EOIR1_EL1,
                    false => SysReg::ICC_EOIR0_EL1,
                };
                self.write(cpu, register, intid.into());
            }
            What::ResetCpu => self.gic.reset_cpu_interface(CpuId(cpu)).unwrap(),
            What::Reset => self.gic.reset(),
            What::Move => self.move_away(),
            What::Restore { ref changes, over } => {
                let before = self.gic.save();
                let mut state = before.clone();
                for (change, at) in changes.iter().zip(cpu as usize..) {
                    change.make(&mut state, at % CPUS as usize);
                }
                self.restore(&before, &state, over);
            }
        }
    }

    fn restore(&mut self, before: &GicV3State, state: &GicV3State, over: bool) {
        if !over {
            let mut other = Self::new(Arc::clone(&self.memory));
            if other.gic.restore(state).is_err() {
                return;
            }
            assert_eq!(other.gic.save(), *state);
            other.drive_all(Self::lines_of(state));
            *self = other;
            assert_eq!(self.gic.save(), *state);
        } else if self.gic.restore(state).is_ok() {
            self.drive_all(Self::lines_of(state));
        } else {
            assert_eq!(self.gic.save(), *before, "refused, and changed");
        }
        // What it is now is a state that there can be, too.
        self.move_away();
    }

    fn open(&self, cpu: u32, group: u8, priority: u8, router: u64) {
        let distributor = self.gic.distributor();
        distributor.write(0x000, &3_u32.to_le_bytes());
        // GICD_IGROUPR, GICD_ISENABLER and GICD_IPRIORITYR of both ranges, then those of the CPU's own.
        for (groups, enables, priorities) in [(0x084, 0x104, 0x420), (0x1000, 0x1200, 0x2000)] {
            distributor.write(groups, &[group; 4]);
            distributor.write(enables, &[0xff; 4]);
            (0..32).for_each(|index| distributor.write(priorities + index, &[priority]));
        }
        for index in 0..32 {
            distributor.write(0x6100 + index * 8, &router.to_le_bytes());
            distributor.write(0x8000 + index * 8, &router.to_le_bytes());
        }
        let redistributor = self.redistributor(cpu);
        redistributor.write(0x14, &0_u32.to_le_bytes());
        for word in [0, 4] {
            redistributor.write(0x1_0080 + word, &[group; 4]);
            redistributor.write(0x1_0100 + word, &[0xff; 4]);
        }
        (0..64).for_each(|index| redistributor.write(0x1_0400 + index, &[priority]));
        self.write(cpu, SysReg::ICC_PMR_EL1, 0xff);
        self.write(cpu, SysReg::ICC_IGRPEN0_EL1, 1);
        self.write(cpu, SysReg::ICC_IGRPEN1_EL1, 1);
    }

    fn acknowledge(&self, cpu: u32, group_1: bool) {
        let [irq, fiq] = self.outputs[cpu as usize].each_ref().map(Outside::is_up);
        assert!(!(irq && fiq), "one of them is the most urgent");
        let (register, up) = match group_1 {
            true => (SysReg::ICC_IAR1_EL1, irq),
            false => (SysReg::ICC_IAR0_EL1, fiq),
        };
        let intid = self.read(cpu, register).unwrap();
        assert_eq!(intid != 1023, up, "CPU {cpu} and what it has: {intid}");
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
        for (old, new) in self.outputs.iter().zip(&other.outputs) {
            let levels = |outputs: &[Outside; 2]| outputs.each_ref().map(Outside::is_up);
            // An SPI for any CPU may have chosen another.
            if !self.any_cpu() {
                assert_eq!(levels(old), levels(new));
            }
        }
        let up = std::mem::take(&mut self.up);
        *self = other;
        self.up = up;
        assert_eq!(self.gic.save(), state, "the devices drive their lines as they did");
    }

    fn any_cpu(&self) -> bool {
        self.gic.save().spis.iter().any(|spi| spi.router >> 31 & 1 != 0)
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_SIZE)]).unwrap();
    let mut machine = Machine::new(Arc::new(memory));
    for Step { cpu, what } in &steps {
        machine.step(u32::from(*cpu) % CPUS, what);
    }
});
