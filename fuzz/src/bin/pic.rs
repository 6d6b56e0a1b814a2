//! The 8259 pair: INTR follows from the state, an acknowledge takes what INTR announced, and no edge is lost.
#![no_main]

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::pic::{ChipState, InitStep, Irq, LevelLine, Pic, PicState},
    bus::BusDevice,
    interrupt::Interrupt,
};
use devisor_fuzz::{Access, Outside, drive};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Master(Access),
    Slave(Access),
    Elcr(Access),
    /// As a guest does it, with ICW4 and a base for each.
    Initialize { slave: bool, icw4: u8, mask: u8 },
    Drive { irq: u8, up: bool },
    Pulse(u8),
    Acknowledge,
    Refuse(bool),
    Reset,
    Move,
    Restore([Chip; 2]),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Chip {
    words: [u8; 8],
    flags: u16,
}

impl Chip {
    fn state(self) -> ChipState {
        let [lines, irr, isr, imr, elcr, base, step, first] = self.words;
        let flag = |bit: u32| self.flags >> bit & 1 != 0;
        ChipState {
            lines,
            irr: irr & !elcr | lines & elcr,
            isr,
            imr,
            elcr,
            base: base & 0xf8,
            step: [InitStep::Icw1, InitStep::Icw2, InitStep::Icw3, InitStep::Icw4, InitStep::Done][usize::from(step % 5)],
            single: flag(0),
            wants_icw4: flag(1),
            auto_eoi: flag(2),
            special_fully_nested: flag(3),
            rotate_in_auto_eoi: flag(4),
            special_mask: flag(5),
            poll: flag(6),
            read_isr: flag(7),
            first: first & 7,
        }
    }
}

struct Machine {
    pic: Pic,
    lines: Vec<Option<LevelLine>>,
    up: [bool; 16],
    intr: Outside,
}

impl Machine {
    fn new(intr: Outside) -> Self {
        let pic = Pic::new(intr.clone());
        Self {
            lines: (0..16).map(|irq| pic.level_line(Irq(irq)).ok()).collect(),
            up: [false; 16],
            pic,
            intr,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Master(access) => access.run(&self.pic.master(), 2, 1),
            Step::Slave(access) => access.run(&self.pic.slave(), 2, 1),
            Step::Elcr(access) => access.run(&self.pic.elcr(), 2, 1),
            Step::Initialize { slave, icw4, mask } => {
                let ports = if slave { self.pic.slave() } else { self.pic.master() };
                ports.write(0, &[0x11]);
                for word in [0x20 | u8::from(slave) << 3, 4, icw4, mask] {
                    ports.write(1, &[word]);
                }
            }
            Step::Drive { irq, up } => {
                let irq = usize::from(irq % 16);
                if let Some(line) = &self.lines[irq] {
                    self.up[irq] = up;
                    drive(line, up);
                }
            }
            Step::Pulse(irq) => {
                if let Ok(line) = self.pic.edge_line(Irq(irq % 16)) {
                    let _ = line.trigger();
                    let PicState { master, slave } = self.pic.save();
                    let chip = if irq % 16 < 8 { master } else { slave };
                    assert_ne!((chip.irr | chip.elcr) >> (irq % 8) & 1, 0, "the edge is lost");
                }
            }
            Step::Acknowledge => self.acknowledge(),
            Step::Refuse(refuses) => {
                self.intr.refuse(refuses);
                // Any change tells a line again that refused.
                self.pic.elcr().read(0, &mut [0]);
            }
            Step::Reset => self.pic.reset(),
            Step::Move => self.move_away(),
            Step::Restore([master, slave]) => {
                let [master, slave] = [master.state(), slave.state()];
                if self.pic.restore(&PicState { master, slave }).is_ok() {
                    self.move_away();
                }
            }
        }
    }

    fn acknowledge(&mut self) {
        let (before, requested) = (self.pic.save(), self.pic.intr());
        let vector = self.pic.acknowledge().0;
        let after = self.pic.save();
        if !requested {
            assert_eq!(after, before, "a spurious interrupt changes nothing");
            assert_eq!(vector, before.master.base | 7);
            return;
        }
        if before.master.base == before.slave.base {
            // It could be either's.
            return;
        }
        let (chip, was) = match vector & 0xf8 == after.master.base {
            true => (after.master, before.master),
            false => (after.slave, before.slave),
        };
        assert_eq!(vector & 0xf8, chip.base, "{vector:#x}: neither's");
        // What the slave requested may have gone.
        if vector & 7 != 7 {
            assert_ne!(was.irr & !was.imr & 1 << (vector & 7), 0, "{vector:#x} was not requested");
            assert_eq!(chip.isr >> (vector & 7) & 1 != 0, !chip.auto_eoi || was.isr >> (vector & 7) & 1 != 0);
        }
    }

    fn move_away(&mut self) {
        let state = self.pic.save();
        let intr = self.pic.intr();
        // The other host's vCPU has a pin of its own.
        let other = Self::new(Outside::default());
        other.intr.refuse(self.intr.refuses());
        other.pic.restore(&state).unwrap();
        assert_eq!(other.pic.save(), state);
        assert_eq!(other.pic.intr(), intr);
        let up = self.up;
        *self = other;
        self.up = up;
        for (line, up) in self.lines.iter().zip(up) {
            if let Some(line) = line {
                drive(line, up);
            }
        }
    }

    fn check(&self) {
        if !self.intr.refuses() {
            assert_eq!(self.intr.is_up(), self.pic.intr());
        }
        let PicState { master, slave } = self.pic.save();
        for chip in [&master, &slave] {
            let unmasked = chip.irr & !chip.imr;
            if chip.step != InitStep::Done {
                continue;
            }
            // Nothing is in the way: the master says so, and the slave says so to the master.
            if unmasked != 0 && chip.isr == 0 && std::ptr::eq(chip, &master) {
                assert!(self.pic.intr(), "{chip:x?} requests nothing");
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::new(Outside::default());
    for step in &steps {
        machine.step(step);
        machine.check();
    }
});
