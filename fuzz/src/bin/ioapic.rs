//! The IOAPIC: no level and no edge is lost, over masks, EOIs, refused messages, restores and resets.
#![no_main]

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::{
        Vector,
        ioapic::{IoApic, IoApicConfig, IoApicState, LevelLine, Pin, PinState},
    },
    bus::BusDevice,
    interrupt::Interrupt,
};
use devisor_fuzz::{Access, Outside, drive};
use libfuzzer_sys::fuzz_target;

const PINS: u32 = 24;
const MASK: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const POLARITY: u64 = 1 << 13;
const DELIVERY_STATUS: u64 = 1 << 12;

#[derive(Arbitrary, Debug)]
enum Step {
    Access(Access),
    /// Writes half of an entry.
    Program {
        register: u8,
        value: u32,
    },
    Drive {
        line: u8,
        up: bool,
    },
    Pulse(u8),
    Eoi(u8),
    Refuse(bool),
    Drop(bool),
    Retry,
    Reset,
    /// The machine moves to another host.
    Move,
    Restore {
        id: u8,
        select: u16,
        pins: Box<[(u64, bool); PINS as usize]>,
    },
}

struct Machine {
    ioapic: IoApic,
    /// Two lines for each pin.
    lines: Vec<LevelLine>,
    up: [bool; 2 * PINS as usize],
    sink: Outside,
}

fn mode(entry: u64) -> u64 {
    entry >> 8 & 7
}

fn is_level(entry: u64) -> bool {
    entry & LEVEL != 0 && mode(entry) < 2
}

fn sends(entry: u64) -> bool {
    entry & MASK == 0 && ![3, 6].contains(&mode(entry))
}

impl Machine {
    fn new(sink: Outside) -> Self {
        let ioapic = IoApic::new(IoApicConfig::default(), sink.clone()).unwrap();
        let lines = (0..2 * PINS).map(|line| ioapic.level_line(Pin(line / 2)).unwrap());
        Self {
            lines: lines.collect(),
            up: [false; 2 * PINS as usize],
            ioapic,
            sink,
        }
    }

    fn entry(&self, pin: u32) -> u64 {
        self.ioapic.save().pins[pin as usize].entry
    }

    /// An edge that nothing stands in the way of is one message, now or once the sink takes it.
    fn edge(&mut self, pin: u32, edge: impl FnOnce(&mut Self)) {
        let (before, sent) = (self.entry(pin), self.sink.messages());
        edge(self);
        if !sends(before) || is_level(before) {
            return;
        }
        match self.sink.refuses() {
            false if self.sink.drops() => assert_eq!(self.entry(pin) & DELIVERY_STATUS, 0, "an edge is owed to nobody"),
            false => assert!(self.sink.messages() > sent, "the edge is lost: entry {before:#x}"),
            true => assert_ne!(self.entry(pin) & DELIVERY_STATUS, 0, "the edge is not owed"),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Access(access) => access.run(&self.ioapic, 0x44, 4),
            Step::Program { register, value } => {
                self.ioapic.write(0x00, &[0x10 + register % (2 * PINS as u8)]);
                self.ioapic.write(0x10, &value.to_le_bytes());
            }
            Step::Drive { line, up } => {
                let line = usize::from(line) % self.lines.len();
                let (pin, other) = (line as u32 / 2, self.up[line ^ 1]);
                let moves = self.up[line] != up && !other;
                self.up[line] = up;
                let active = up == (self.entry(pin) & POLARITY == 0);
                match moves && active {
                    true => self.edge(pin, |this| drive(&this.lines[line], up)),
                    false => drive(&self.lines[line], up),
                }
            }
            Step::Pulse(pin) => {
                let pin = u32::from(pin) % PINS;
                let line = self.ioapic.edge_line(Pin(pin)).unwrap();
                self.edge(pin, |_| _ = line.trigger());
            }
            Step::Eoi(vector) => self.ioapic.eoi(Vector(vector)),
            Step::Refuse(refuses) => {
                self.sink.refuse(refuses);
                self.ioapic.retry();
            }
            Step::Drop(drops) => {
                self.sink.drop_all(drops);
                self.ioapic.retry();
            }
            Step::Retry => self.ioapic.retry(),
            Step::Reset => self.ioapic.reset(),
            Step::Move => self.move_away(),
            Step::Restore { id, select, ref pins } => {
                let pins = (**pins).map(|(entry, line)| PinState { entry, line });
                let (select, pins) = (u32::from(select), pins.to_vec());
                if self.ioapic.restore(&IoApicState { id, select, pins }).is_ok() {
                    // The devices do as they did: a pin that was restored as up stays so until one of them moves it.
                    self.move_away();
                }
            }
        }
    }

    /// Restores the state into another IOAPIC, whose devices then drive their lines as they did.
    fn move_away(&mut self) {
        // Sent during a restore, or not at all.
        let state = self.ioapic.save();
        let sent = self.sink.messages();
        let other = Self::new(self.sink.clone());
        other.ioapic.restore(&state).unwrap();
        assert_eq!(other.ioapic.save(), state);
        if !self.sink.refuses() {
            assert_eq!(self.sink.messages(), sent, "nothing was owed");
        }
        let up = self.up;
        *self = other;
        self.up = up;
        for (line, up) in self.lines.iter().zip(up) {
            drive(line, up);
        }
    }

    fn check(&self) {
        for (pin, PinState { entry, line }) in self.ioapic.save().pins.into_iter().enumerate() {
            let active = line == (entry & POLARITY == 0);
            let in_service = entry & REMOTE_IRR != 0;
            assert!(!in_service || is_level(entry), "pin {pin}: Remote IRR of an edge");
            let level_wants = is_level(entry) && active;
            let edge_wants = entry & DELIVERY_STATUS != 0;
            if sends(entry) && (level_wants || edge_wants) && !in_service {
                assert!(
                    self.sink.refuses() || self.sink.drops() && !edge_wants,
                    "pin {pin}: {entry:#x} with line {line} was not sent"
                );
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
