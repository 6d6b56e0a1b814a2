//! GICv2: a CPU whose inputs are low has nothing to acknowledge, one whose IRQ is high has, and a restored GIC goes on.
#![no_main]

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::{
        CpuId, Ppi, Spi,
        gicv2::{CpuInterface, CpuOutputs, Distributor, GicV2, GicV2Config, LevelLine},
    },
    bus::BusDevice,
    interrupt::Interrupt,
};
use devisor_fuzz::{Access, Outside, drive};
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
    Open { group: u8, priority: u8 },
    Drive { line: u8, up: bool },
    Pulse(u8),
    SoftwareInterrupt(u32),
    Acknowledge,
    End(u16),
    Reset,
    Move,
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
        }
    }

    fn acknowledge(&self, cpu: u32) {
        let [irq, fiq] = self.outputs[cpu as usize].each_ref().map(Outside::is_up);
        let mut intid = [0; 4];
        self.interface(cpu).read(IAR, &mut intid);
        let intid = u32::from_le_bytes(intid);
        match intid & 0x3ff {
            1023 => assert!(!irq && !fiq, "CPU {cpu} was interrupted for nothing"),
            // Of Group 1, for which there is another register.
            1022 => assert!(irq || fiq),
            _ => assert!(irq || fiq, "CPU {cpu} did not hear of {intid:#x}"),
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
