//! IOAPIC, 8259 pair and 8254 beside QEMU's: the same seeded sequence of accesses and line changes to both, every read compared.
//!
//! QEMU runs its `q35` machine without a running CPU and takes accesses by its qtest protocol. What QEMU leaves out of
//! its models stays out of the sequence; each case says what and why.
#![cfg(all(unix, feature = "irqchip"))]

#[path = "support/qtest.rs"]
mod qtest;
#[path = "support/skip.rs"]
mod skip;

use std::io;

use devisor::{
    backends::irqchip::{
        ioapic::{self, IoApic, IoApicConfig, Pin},
        pic::{self, ChipPorts, Irq, Pic},
        pit::Pit,
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, NoInterrupt, RequesterId},
    time::ManualClock,
};
use qtest::Qtest;
use skip::skipped;

const STEPS: usize = 6000;

/// Skips the test, loudly, where QEMU does not start.
macro_rules! or_skip {
    ($made:expr) => {
        match $made {
            Ok(made) => made,
            Err(why) => return skipped(why),
        }
    };
}

fn q35() -> Result<Qtest, String> {
    Qtest::start("qemu-system-x86_64", &["-machine", "q35,kernel-irqchip=off"])
}

/// The same numbers in every run: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % u64::from(bound)) as u32
    }

    fn one_in(&mut self, bound: u32) -> bool {
        self.below(bound) == 0
    }
}

// IOAPIC.

const IOAPIC: u64 = 0xfec0_0000;
const IOAPIC_PATH: &str = "/machine/q35/ioapic";
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
/// Bits 31 to 17 of an entry are reserved. QEMU keeps what is written there; ours read as zero.
const LOW_HALF: u32 = 0x0001_ffff;
/// Bits 55 to 32: QEMU keeps them all; ours keep 55 to 48, the extended destination ID.
const HIGH_HALF: u32 = 0xffff_0000;

struct Anywhere;

impl MsiSink for Anywhere {
    fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
}

struct IoApics {
    ours: IoApic,
    lines: Vec<ioapic::LevelLine>,
    up: [bool; 24],
    qemu: Qtest,
}

impl IoApics {
    fn start() -> Result<Self, String> {
        let ours = IoApic::new(IoApicConfig::default(), Anywhere).unwrap();
        let lines = (0..24).map(|pin| ours.level_line(Pin(pin)).unwrap()).collect();
        Ok(Self {
            ours,
            lines,
            up: [false; 24],
            qemu: q35()?,
        })
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.ours.write(offset, &value.to_le_bytes());
        self.qemu.write(IOAPIC + offset, 4, value.into());
    }

    fn compare(&mut self, index: u32, bits: u32, when: &str) {
        self.write(IOREGSEL, index);
        let mut data = [0; 4];
        self.ours.read(IOWIN, &mut data);
        let ours = u32::from_le_bytes(data) & bits;
        let theirs = self.qemu.read(IOAPIC + IOWIN, 4) as u32 & bits;
        assert_eq!(
            ours, theirs,
            "register {index:#x}: ours {ours:#x}, QEMU's {theirs:#x}, {when}"
        );
    }

    fn compare_entry(&mut self, pin: u32, when: &str) {
        self.compare(0x10 + 2 * pin, LOW_HALF, when);
        self.compare(0x11 + 2 * pin, HIGH_HALF, when);
    }

    fn drive(&mut self, pin: u32, up: bool) {
        // Transitions alone: QEMU takes a repeated assertion of an edge for another edge.
        if std::mem::replace(&mut self.up[pin as usize], up) == up {
            return;
        }
        self.qemu.set_input(IOAPIC_PATH, pin, up);
        match up {
            true => self.lines[pin as usize].trigger().unwrap(),
            false => self.lines[pin as usize].clear().unwrap(),
        }
    }
}

/// Left out:
/// - active low polarity, which QEMU does not look at;
/// - pin 0, whose input QEMU leads to pin 2 for its own board;
/// - a change of the trigger mode while the line is up: QEMU learns of a level when the line moves and only if the entry
///   is level-sensitive then, so it misses one that was up before;
/// - delivery modes other than fixed and lowest priority, for which QEMU sets Remote IRR although no EOI will come.
#[test]
fn the_ioapic_reads_as_qemus() {
    let mut both = or_skip!(IoApics::start());
    let mut random = Random(0x10a9_1c00);
    for index in [0, 1] {
        both.compare(index, u32::MAX, "at first");
    }
    for step in 0..STEPS {
        let pin = 1 + random.below(23);
        let when = format!("step {step}, pin {pin}");
        match random.below(8) {
            0..4 => {
                let up = random.one_in(2);
                both.drive(pin, up);
            }
            4 | 5 => {
                let mut low = 0x30 + random.below(8);
                low |= random.below(2) << 8 | random.below(2) << 11;
                // What the guest writes there is not looked at.
                low |= random.below(2) << 12 | random.below(2) << 14;
                low |= if random.one_in(3) { MASKED } else { 0 };
                low |= if random.one_in(3) { 0 } else { LEVEL };
                both.drive(pin, false);
                both.write(IOREGSEL, 0x10 + 2 * pin);
                both.write(IOWIN, low);
            }
            6 => {
                both.write(IOREGSEL, 0x11 + 2 * pin);
                let high = random.below(u32::MAX) & HIGH_HALF;
                both.write(IOWIN, high);
            }
            _ => {
                let vector = random.below(8) + 0x30;
                both.write(EOI, vector);
            }
        }
        both.compare_entry(pin, &when);
        if step % 250 == 0 {
            for pin in 0..24 {
                both.compare_entry(pin, &when);
            }
        }
    }
}

// 8259 pair.

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const ELCR: u16 = 0x4d0;

struct Pics {
    ours: Pic,
    chips: [ChipPorts; 2],
    lines: Vec<Option<pic::LevelLine>>,
    qemu: Qtest,
    /// The paths of QEMU's chips, which are numbered in the order in which the board makes its devices.
    paths: [String; 2],
}

impl Pics {
    fn start() -> Result<Self, String> {
        let ours = Pic::new(NoInterrupt);
        let mut both = Self {
            chips: [ours.master(), ours.slave()],
            lines: (0..16).map(|irq| ours.level_line(Irq(irq)).ok()).collect(),
            ours,
            qemu: q35()?,
            paths: [5, 6].map(|number| format!("/machine/unattached/device[{number}]")),
        };
        for chip in 0..2 {
            both.initialize(chip, 0x11, 0);
        }
        Ok(both)
    }

    fn port(chip: usize, port: u64) -> u16 {
        [MASTER, SLAVE][chip] + port as u16
    }

    fn write(&mut self, chip: usize, port: u64, value: u8) {
        self.chips[chip].write(port, &[value]);
        self.qemu.port_out(Self::port(chip, port), value);
    }

    fn compare(&mut self, chip: usize, port: u64, when: &str) {
        let mut ours = [0];
        self.chips[chip].read(port, &mut ours);
        let [ours] = ours;
        let theirs = self.qemu.port_in(Self::port(chip, port));
        assert_eq!(
            ours,
            theirs,
            "chip {chip}, port {port}: ours {ours:#x}, QEMU's {theirs:#x}, {when}, {:x?}",
            self.ours.save()
        );
    }

    fn initialize(&mut self, chip: usize, icw1: u8, icw4: u8) {
        self.write(chip, 0, icw1);
        self.write(chip, 1, 0x20 + 8 * chip as u8);
        if icw1 & 2 == 0 {
            self.write(chip, 1, 4 >> chip);
        }
        if icw1 & 1 != 0 {
            self.write(chip, 1, 1 | icw4);
        }
    }

    fn drive(&mut self, irq: usize, up: bool) {
        let Some(line) = &self.lines[irq] else { return };
        match up {
            true => line.trigger().unwrap(),
            false => line.clear().unwrap(),
        }
        self.qemu.set_input(&self.paths[irq / 8], irq as u32 % 8, up);
    }

    fn set_elcr(&mut self, elcr: u16) {
        for (port, byte) in elcr.to_le_bytes().into_iter().enumerate() {
            self.ours.elcr().write(port as u64, &[byte]);
            self.qemu.port_out(ELCR + port as u16, byte);
            let mut ours = [0];
            self.ours.elcr().read(port as u64, &mut ours);
            assert_eq!(ours[0], self.qemu.port_in(ELCR + port as u16), "ELCR");
        }
    }
}

/// The guest acknowledges by polling, since no CPU runs.
///
/// Left out:
/// - a change of ELCR while a line is up or a request latched: QEMU keeps the request in either case;
/// - ICW1 while a line is up: QEMU forgets that it is up, and the next assertion of it is an edge;
/// - the non-specific EOI in special mask mode while a masked input is in service: QEMU ends it all the same;
/// - automatic EOI in the slave, where QEMU's INT does not fall between two requests, so that the master misses the second;
/// - polls of the master in special fully nested mode while the slave is in service and another input requests: QEMU lets
///   those in that the slave comes before;
/// - polls of the slave that do not follow one of the master: QEMU leaves the request latched there.
#[test]
fn the_8259_pair_reads_as_qemus() {
    let mut both = or_skip!(Pics::start());
    let mut random = Random(0x8259_8259);
    for step in 0..STEPS {
        let chip = random.below(2) as usize;
        let when = format!("step {step}");
        match random.below(16) {
            0..7 => {
                let (irq, up) = (random.below(16) as usize, random.one_in(2));
                both.drive(irq, up);
            }
            7 => {
                let mask = (random.below(256) & random.below(256)) as u8;
                both.write(chip, 1, mask);
            }
            8 | 9 => {
                let master = both.ours.save().master;
                if master.special_fully_nested && master.isr & 4 != 0 && master.irr & !master.imr & !4 != 0 {
                    continue;
                }
                both.write(0, 0, 0x0c);
                both.compare(0, 0, &when);
                if both.ours.save().master.isr & !master.isr & 4 != 0 {
                    both.write(1, 0, 0x0c);
                    both.compare(1, 0, &when);
                }
            }
            10..13 => {
                let command = [0x20, 0x60, 0xa0, 0xe0, 0xc0, 0x40, 0x00, 0x80][random.below(8) as usize];
                let state = both.ours.save();
                let state = if chip == 0 { state.master } else { state.slave };
                if command & 0x60 != 0x20 || !state.special_mask || state.isr & state.imr == 0 {
                    both.write(chip, 0, command | random.below(8) as u8);
                }
            }
            13 => {
                let special_mask = [0x48, 0x68, 0x08, 0x28][random.below(4) as usize];
                both.write(chip, 0, special_mask);
            }
            14 => {
                let read = 0x0a | random.below(2) as u8;
                both.write(chip, 0, read);
            }
            _ if random.one_in(4) => {
                for irq in 0..16 {
                    both.drive(irq, false);
                }
                let icw1 = [0x11, 0x10][random.below(2) as usize];
                for chip in 0..2 {
                    let icw4 = if chip == 0 { random.below(16) << 1 & 0x12 } else { 0 };
                    both.initialize(chip, icw1, icw4 as u8);
                }
                // Between the two, for ICW1 has taken the requests away.
                let elcr = random.below(0x1_0000) as u16;
                both.set_elcr(elcr);
            }
            _ => (),
        }
        for chip in 0..2 {
            both.compare(chip, 0, &when);
            both.compare(chip, 1, &when);
        }
    }
}

// 8254.

const PIT: u16 = 0x40;
const PORT_B: u16 = 0x61;

/// Which byte of a count is written and read when, in every format, with both latches and live. QEMU's clock cannot be
/// moved in a build without its test accelerator, so what is compared stands still: no count runs.
///
/// Left out:
/// - the null count bit of the status, which QEMU has as zero;
/// - the OUT bit of modes 2 and 4, which QEMU has low but for one tick, where the data sheet has it high but for one;
/// - what is latched when a counter is programmed anew: the data sheet lets go of it, QEMU holds it until it was read;
/// - a latch between the two bytes of a read: QEMU begins with the low byte again, ours goes on with the high one, for the
///   data sheet knows of one order for all reads of a counter;
/// - odd counts in mode 3, from which QEMU does not take one off;
/// - modes 6 and 7, which QEMU does not take for 2 and 3;
/// - modes 1 and 5 before their trigger, where QEMU counts already.
#[test]
fn the_8254_gives_its_bytes_as_qemus() {
    const OUT: u8 = 1 << 7;
    const NULL_COUNT: u8 = 1 << 6;
    let mut qemu = or_skip!(q35());
    let ours = Pit::new(NoInterrupt, ManualClock::default(), ());
    let (ports, port_b) = (ours.counters(), ours.port_b());
    port_b.write(0, &[1]);
    qemu.port_out(PORT_B, 1);
    let mut random = Random(0x8254_8254);
    for round in 0..STEPS / 4 {
        let counter = random.below(3) as u8;
        let mode = [0, 2, 3, 4][random.below(4) as usize];
        let rw = 1 + random.below(3) as u8;
        let both = |qemu: &mut Qtest, port: u8, value: u8| {
            ports.write(port.into(), &[value]);
            qemu.port_out(PIT + u16::from(port), value);
        };
        for _ in 0..3 {
            qemu.port_in(PIT + u16::from(counter));
        }
        both(&mut qemu, 3, counter << 6 | rw << 4 | mode << 1);
        for _ in 0..1 + u8::from(rw == 3) {
            // Even, and not zero.
            both(&mut qemu, counter, 2 + 2 * random.below(127) as u8);
        }
        for step in 0..random.below(8) {
            let mut mask = u8::MAX;
            let halfway = ours.save().counters[usize::from(counter)].read_high;
            let command = if halfway { 3 } else { random.below(8) };
            match command {
                0 => both(&mut qemu, 3, counter << 6),
                1 | 2 => {
                    // Count, or count and status, of this counter alone.
                    let status = if command == 1 { 0x10 } else { 0 };
                    both(&mut qemu, 3, 0xc0 | status | 2 << counter);
                    if command == 2 {
                        mask = if mode & 1 == 0 && mode != 0 {
                            !(NULL_COUNT | OUT)
                        } else {
                            !NULL_COUNT
                        };
                    }
                }
                _ => (),
            }
            let mut value = [0];
            ports.read(counter.into(), &mut value);
            let theirs = qemu.port_in(PIT + u16::from(counter));
            assert_eq!(
                value[0] & mask,
                theirs & mask,
                "ours and QEMU's, round {round}, step {step}, counter {counter}, mode {mode}, RW {rw}"
            );
        }
    }
}
