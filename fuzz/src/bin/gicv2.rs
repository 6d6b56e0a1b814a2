//! GICv2: a CPU whose inputs are low has nothing to acknowledge, one whose IRQ is high has, and a restored GIC goes on.
#![no_main]

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::{
        CpuId, Ppi, Spi, TriggerMode,
        gicv2::{CpuInterface, CpuOutputs, Distributor, GicV2, GicV2Config, GicV2State, LevelLine},
    },
    bus::BusDevice,
    interrupt::Interrupt,
};
use devisor_fuzz::{Access, Outside, SomeInterrupt, drive};
use libfuzzer_sys::fuzz_target;

const CPUS: u32 = 3;
const SPIS: u32 = 64;
const IAR: u64 = 0x00c;
const EOIR: u64 = 0x010;

#[derive(Arbitrary, Debug)]
struct Step {
    cpu: u8,
    what: What,
}

#[derive(Arbitrary, Debug)]
enum What {
    Distributor(Access),
    CpuInterface(Access),
    /// Enables everything, in the group and with the priority that are given.
    Open {
        group: u8,
        priority: u8,
    },
    Drive {
        line: u8,
        up: bool,
    },
    Pulse(u8),
    SoftwareInterrupt(u32),
    Acknowledge,
    End(u16),
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
    Private { intid: u8, state: SomeInterrupt },
    Senders { sgi: u8, senders: u8, contradict: u8 },
    Shared { spi: u8, state: SomeInterrupt, targets: u8 },
    Interface { control: u16, priority_mask: u8 },
    BinaryPoints([u8; 2]),
    Active { index: u8, priorities: [u32; 2] },
}

impl Change {
    fn make(&self, state: &mut GicV2State, cpu: usize) {
        let this = &mut state.cpus[cpu];
        match *self {
            Self::Control(control) => state.control = u32::from(control & 0x83),
            Self::Private { intid, state } => {
                let intid = usize::from(intid % 32);
                this.private[intid] = state.state();
                if let Some(&senders) = this.sgi_senders.get(intid) {
                    let sgi = &mut this.private[intid];
                    (sgi.enabled, sgi.trigger, sgi.line) = (true, TriggerMode::Edge, false);
                    sgi.latch = senders != 0;
                }
            }
            Self::Senders {
                sgi,
                senders,
                contradict,
            } => {
                let (sgi, senders) = (usize::from(sgi % 16), senders & 0x87);
                this.sgi_senders[sgi] = senders;
                this.private[sgi].latch = (senders != 0) ^ (contradict >= 0xc0);
            }
            Self::Shared {
                spi,
                state: new,
                targets,
            } => {
                let spi = &mut state.spis[usize::from(spi) % SPIS as usize];
                (spi.state, spi.targets) = (new.state(), targets & 0x87);
            }
            Self::Interface { control, priority_mask } => {
                this.control = u32::from(control & 0x821f);
                this.priority_mask = priority_mask & 0xf9;
            }
            Self::BinaryPoints(points) => {
                [this.binary_point, this.aliased_binary_point] = points.map(|point| 2 + point % 7)
            }
            Self::Active { index, priorities } => {
                // All but the first are of no use with 32 priorities.
                let index = usize::from(index.saturating_sub(0xfc));
                this.active_priorities[index] = priorities[0];
                this.non_secure_active_priorities[index] = priorities[1];
            }
        }
    }
}

struct Machine {
    gic: GicV2,
    /// IRQ and FIQ of each CPU.
    outputs: Vec<[Outside; 2]>,
    /// The SPIs, then each CPU's PPIs.
    lines: Vec<LevelLine>,
    up: Vec<bool>,
}

impl Machine {
    fn new() -> Self {
        let outputs: Vec<[Outside; 2]> = (0..CPUS).map(|_| Default::default()).collect();
        let config = GicV2Config {
            cpus: CPUS,
            spis: SPIS,
            ..GicV2Config::default()
        };
        let boxes = outputs.iter().cloned().map(|[irq, fiq]| CpuOutputs {
            irq: Box::new(irq),
            fiq: Box::new(fiq),
        });
        let gic = GicV2::new(config, boxes.collect()).unwrap();
        let spis = (0..SPIS).map(|spi| gic.level_line(Spi(spi)).unwrap());
        let ppis = (0..CPUS * 16).map(|line| gic.ppi_line(CpuId(line / 16), Ppi(line % 16)).unwrap());
        let lines: Vec<_> = spis.chain(ppis).collect();
        Self {
            up: vec![false; lines.len()],
            lines,
            gic,
            outputs,
        }
    }

    fn distributor(&self, cpu: u32) -> Distributor {
        self.gic.distributor(CpuId(cpu)).unwrap()
    }

    fn interface(&self, cpu: u32) -> CpuInterface {
        self.gic.cpu_interface(CpuId(cpu)).unwrap()
    }

    /// Which lines are up in a state.
    fn lines_of(state: &GicV2State) -> Vec<bool> {
        let spis = state.spis.iter().map(|spi| spi.state.line);
        let ppis = state.cpus.iter().flat_map(|cpu| cpu.private[16..].iter());
        spis.chain(ppis.map(|ppi| ppi.line)).collect()
    }

    fn drive_all(&mut self, up: Vec<bool>) {
        for (line, up) in self.lines.iter().zip(&up) {
            drive(line, *up);
        }
        self.up = up;
    }

    fn step(&mut self, cpu: u32, what: &What) {
        let write = |offset: u64, value: u32| self.interface(cpu).write(offset, &value.to_le_bytes());
        match *what {
            What::Distributor(access) => access.run(&self.distributor(cpu), Distributor::SIZE, 4),
            What::CpuInterface(access) => access.run(&self.interface(cpu), 0x100, 4),
            What::Open { group, priority } => {
                let distributor = self.distributor(cpu);
                distributor.write(0x000, &3_u32.to_le_bytes());
                for word in 0..u64::from(1 + SPIS / 32) {
                    distributor.write(0x080 + word * 4, &[group; 4]);
                    distributor.write(0x100 + word * 4, &[0xff; 4]);
                }
                for intid in 0..u64::from(32 + SPIS) {
                    distributor.write(0x400 + intid, &[priority]);
                }
                write(0x004, 0xff);
                write(0x000, 0x0f);
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
            What::SoftwareInterrupt(value) => self.distributor(cpu).write(0xf00, &value.to_le_bytes()),
            What::Acknowledge => self.acknowledge(cpu),
            What::End(intid) => write(EOIR, intid.into()),
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

    fn restore(&mut self, before: &GicV2State, state: &GicV2State, over: bool) {
        if !over {
            let mut other = Self::new();
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
        self.copy_takes_what_is_offered();
    }

    /// Whatever waits in the state, a CPU that takes it finds it in order.
    fn copy_takes_what_is_offered(&self) {
        let mut copy = Self::new();
        copy.gic.restore(&self.gic.save()).unwrap();
        copy.drive_all(self.up.clone());
        for cpu in 0..CPUS {
            copy.step(cpu, &What::Open { group: 0, priority: 0 });
            copy.acknowledge(cpu);
        }
    }

    fn acknowledge(&self, cpu: u32) {
        let [irq, fiq] = self.outputs[cpu as usize].each_ref().map(Outside::is_up);
        let before = self.gic.save();
        let mut intid = [0; 4];
        self.interface(cpu).read(IAR, &mut intid);
        let intid = u32::from_le_bytes(intid);
        match intid & 0x3ff {
            1023 => assert!(!irq && !fiq, "CPU {cpu} was interrupted for nothing"),
            // Of Group 1, for which there is another register.
            1022 => assert!(irq || fiq),
            number => {
                assert!(irq || fiq, "CPU {cpu} did not hear of {intid:#x}");
                if let Some(senders) = before.cpus[cpu as usize].sgi_senders.get(number as usize) {
                    assert!(senders >> (intid >> 10) & 1 != 0, "nobody sent {intid:#x}");
                }
            }
        }
    }

    fn move_away(&mut self) {
        let state = self.gic.save();
        let other = Self::new();
        other.gic.restore(&state).unwrap();
        assert_eq!(other.gic.save(), state);
        // A line counts as down until its device has driven it again.
        for (line, up) in other.lines.iter().zip(&self.up) {
            drive(line, *up);
        }
        for (old, new) in self.outputs.iter().zip(&other.outputs) {
            let levels = |outputs: &[Outside; 2]| outputs.each_ref().map(Outside::is_up);
            assert_eq!(levels(old), levels(new));
        }
        let up = std::mem::take(&mut self.up);
        *self = other;
        self.up = up;
        assert_eq!(self.gic.save(), state, "the devices drive their lines as they did");
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::new();
    for Step { cpu, what } in &steps {
        machine.step(u32::from(*cpu) % CPUS, what);
    }
});
