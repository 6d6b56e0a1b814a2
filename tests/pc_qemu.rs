//! What a PC has besides its interrupt controllers beside QEMU's: the same seeded sequence to both, every read and the line
//! compared.
//!
//! QEMU runs its `q35` machine without a running CPU and takes accesses by its qtest protocol. The lines are read where they
//! end, at its IOAPIC. What QEMU leaves out of its models stays out of the sequence; each case says what and why.
#![cfg(unix)]

#[path = "support/qtest.rs"]
mod qtest;
#[path = "support/random.rs"]
mod random;
#[path = "support/skip.rs"]
mod skip;

use std::{
    io::Read,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use devisor::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, NoInterrupt, level_from_fn},
    platform::{
        acpi_pm::{AcpiPm, AcpiPmConfig, TimerWidth},
        debugcon::DebugCon,
        fw_cfg::{FwCfg, Key},
        i8042::{CommandPort, DataPort, I8042, I8042Lines},
        mc146818::Mc146818,
        pvpanic::{GuestEvents, Pvpanic},
        reset_control::ResetControl,
    },
    time::ManualClock,
};
use qtest::Qtest;
use random::Random;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const STEPS: usize = 5000;
const IOAPIC_PATH: &str = "/machine/q35/ioapic";

/// 2023-11-14T22:13:20, where QEMU's clock begins.
const NOW: u64 = 1_700_000_000;

/// Why the test is skipped if QEMU does not start.
fn q35(arguments: &[&str]) -> Result<Qtest, String> {
    let machine = ["-M", "q35,kernel-irqchip=off"];
    let mut qemu = Qtest::start("qemu-system-x86_64", &[&machine[..], arguments].concat())?;
    qemu.intercept_inputs(IOAPIC_PATH);
    Ok(qemu)
}

/// One of ours and QEMU's, side by side.
struct Pair<D> {
    ours: D,
    qemu: Qtest,
    base: u16,
    /// The latest steps, to say how a difference came about.
    steps: Vec<String>,
}

impl<D: BusDevice> Pair<D> {
    fn new(ours: D, qemu: Qtest, base: u16) -> Self {
        let steps = Vec::new();
        Self {
            ours,
            qemu,
            base,
            steps,
        }
    }

    fn step(&mut self, step: String) {
        if self.steps.len() == 60 {
            self.steps.remove(0);
        }
        self.steps.push(step);
    }

    fn write(&mut self, port: u16, value: u8) {
        self.step(format!("write {port:#x} {value:#04x}"));
        self.ours.write(port.into(), &[value]);
        self.qemu.port_out(self.base + port, value);
    }

    /// Reads from both, and compares the bits of `mask`.
    fn read(&mut self, port: u16, mask: u8) -> u8 {
        let mut ours = [0];
        self.ours.read(port.into(), &mut ours);
        let theirs = self.qemu.port_in(self.base + port);
        let [ours] = ours;
        self.step(format!("read {port:#x}: {ours:#04x}"));
        assert_eq!(
            ours & mask,
            theirs & mask,
            "port {port:#x} is {ours:#04x} here and {theirs:#04x} in QEMU, after\n  {}",
            self.steps.join("\n  ")
        );
        ours
    }

    fn line(&mut self, up: bool, number: u32) -> u32 {
        let theirs = self.qemu.level(number);
        assert_eq!(
            up,
            theirs,
            "line {number} differs, after\n  {}",
            self.steps.join("\n  ")
        );
        u32::from(up)
    }
}

/// A line that shows its level.
#[derive(Clone, Default)]
struct Level(Arc<AtomicBool>);

impl Level {
    fn line(&self) -> Box<dyn LevelInterrupt> {
        let level = Arc::clone(&self.0);
        Box::new(level_from_fn(move |up| {
            level.store(up, Ordering::SeqCst);
            Ok(())
        }))
    }

    fn is_up(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

mod mc146818 {
    use super::*;

    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const UIP: u8 = 1 << 7;
    pub const SET: u8 = 1 << 7;
    pub const PIE: u8 = 1 << 6;
    pub const AIE: u8 = 1 << 5;
    pub const UIE: u8 = 1 << 4;
    pub const DM: u8 = 1 << 2;
    pub const HOURS_24: u8 = 1 << 1;
    pub const CENTURY: u8 = 0x32;
    const IRQ: u32 = 8;

    /// What the time is made of: seconds, minutes, hours, date, month, year, century.
    pub const TIME: [u8; 7] = [0, 2, 4, 7, 8, 9, CENTURY];

    pub struct Clocks {
        pub pair: Pair<Mc146818<NoInterrupt, Arc<ManualClock>, ()>>,
        clock: Arc<ManualClock>,
    }

    impl Clocks {
        /// Both at [`NOW`]. QEMU's is driven by its clock `clock`.
        pub fn start(clock: &str) -> Result<Self, String> {
            let qemu = q35(&["-rtc", &format!("base=2023-11-14T22:13:20,clock={clock}")])?;
            let clock = Arc::new(ManualClock::new(Duration::from_secs(NOW)));
            let ours = Mc146818::new(NoInterrupt, Arc::clone(&clock), ());
            let pair = Pair::new(ours, qemu, 0x70);
            Ok(Self { pair, clock })
        }

        pub fn put(&mut self, register: u8, value: u8) {
            self.pair.write(0, register);
            self.pair.write(1, value);
        }

        pub fn get(&mut self, register: u8, mask: u8) -> u8 {
            self.pair.write(0, register);
            self.pair.read(1, mask)
        }

        /// What QEMU's alone says.
        pub fn theirs(&mut self, register: u8) -> u8 {
            self.pair.qemu.port_out(0x70, register);
            self.pair.qemu.port_in(0x71)
        }

        /// A second passes, for ours at once.
        pub fn tick(&mut self) {
            self.pair.step("a second passes".to_owned());
            self.clock.advance(Duration::from_secs(1));
            self.pair.ours.expire();
        }

        pub fn line(&mut self) -> bool {
            let up = self.pair.ours.interrupt().is_up();
            self.pair.line(up, IRQ);
            up
        }

        /// Sets the time, the seconds first, in the format that register B is to have from then on.
        pub fn set(&mut self, control: u8, time: [u8; 7]) {
            let number = |value: u8| {
                if control & DM != 0 {
                    value
                } else {
                    value / 10 * 16 + value % 10
                }
            };
            self.put(B, SET | control & !UIE);
            for (register, value) in TIME.into_iter().zip(time) {
                let byte = match register {
                    4 if control & HOURS_24 == 0 => number((value + 11) % 12 + 1) | if value >= 12 { 0x80 } else { 0 },
                    _ => number(value),
                };
                self.put(register, byte);
            }
            self.put(B, control);
        }
    }
}

#[test]
fn mc146818_answers_as_qemus_does() {
    use mc146818::*;

    // QEMU's time stands still while its CPU does, so this compares everything but the ticks.
    let mut clocks = match Clocks::start("vm") {
        Ok(clocks) => clocks,
        Err(why) => return skip::skipped(why),
    };
    let mut random = Random(0x5eed_0146);
    for _ in 0..STEPS / 5 {
        let control = clocks.pair.ours.save().registers[usize::from(B)];
        match random.below(8) {
            0 | 1 => clocks.put(random.one_of(&[1, 3, 5]), random.next() as u8),
            // The format is that of the time that is there.
            2 | 3 => clocks.put(
                B,
                control & (DM | HOURS_24) | random.next() as u8 & (PIE | AIE | UIE | 0x09),
            ),
            4 => {
                let time = [60, 60, 24, 28, 12, 100, 22].map(|limit| random.below(limit) as u8);
                let [seconds, minutes, hours, date, month, year, century] = time;
                // QEMU's time begins with 1970.
                let time = [seconds, minutes, hours, date + 1, month + 1, year, century.max(20)];
                clocks.set(random.next() as u8 & 0x7f, time);
            }
            // What the time is set to while the divider does not count, QEMU forgets.
            5 => {
                clocks.put(A, 0x70 | random.next() as u8);
                clocks.get(A, !UIP);
                clocks.put(A, random.one_of(&[0x00, 0x10, 0x20]) | random.next() as u8 & 0x8f);
            }
            6 => clocks.put(random.one_of(&[0x0c, 0x0d]), random.next() as u8),
            _ => {
                let register = 0x40 + random.below(0x40) as u8;
                clocks.put(register, random.next() as u8);
                clocks.get(register, 0xff);
            }
        }
        for register in [0, 1, 2, 3, 4, 5, 7, 8, 9, B, 0x0d, CENTURY] {
            clocks.get(register, 0xff);
        }
        // On the second's dot QEMU says that an update is in progress, where ours has had it.
        clocks.get(A, !UIP);
        clocks.pair.read(0, 0xff);
        clocks.line();
    }
}

#[test]
fn mc146818_goes_on_as_qemus_does() {
    use mc146818::*;

    // QEMU's time is the host's, and runs; ours is a second later once QEMU's is.
    let mut clocks = match Clocks::start("rt") {
        Ok(clocks) => clocks,
        Err(why) => return skip::skipped(why),
    };
    clocks.put(A, 0x20);
    // Of an alarm in the second half of a day that is written so, QEMU takes the half from the time.
    let new_year = [59, 59, 23, 31, 12, 99, 19];
    let (mut retries, mut up) = (0, 0);
    for (control, time, alarm) in [
        (HOURS_24, new_year, [0xff, 0xff, 0xff]),
        (HOURS_24 | UIE, [59, 59, 23, 28, 2, 24, 20], [0x01, 0xff, 0xff]),
        (DM | AIE, [59, 59, 11, 28, 2, 23, 20], [0, 0, 0xff]),
        (AIE, [59, 59, 23, 30, 4, 0, 20], [0xff, 0x00, 0xff]),
        (AIE | UIE | HOURS_24 | DM, [8, 59, 9, 30, 4, 0, 20], [9, 59, 10]),
    ] {
        loop {
            for (register, byte) in [1, 3, 5].into_iter().zip(alarm) {
                clocks.put(register, byte);
            }
            clocks.set(control, time);
            clocks.get(C, 0);
            let second = clocks.pair.ours.save().registers[0];
            let set_in_time = clocks.theirs(0) == second;
            while clocks.theirs(0) == second {}
            clocks.tick();
            // Its timer runs when its main loop comes round.
            std::thread::sleep(Duration::from_millis(20));
            let next = clocks.pair.ours.save().registers[0];
            let theirs = [2, 4, 7, 8, 9, CENTURY].map(|register| clocks.theirs(register));
            // On a host that is busy a second may pass too soon.
            if retries < 10 && !(set_in_time && clocks.theirs(0) == next) {
                retries += 1;
                continue;
            }
            for (register, theirs) in [2, 4, 7, 8, 9, CENTURY].into_iter().zip(theirs) {
                clocks.pair.write(0, register);
                let mut ours = [0];
                clocks.pair.ours.read(1, &mut ours);
                assert_eq!(ours, [theirs], "register {register:#x} with {control:#x} from {time:?}");
            }
            up += u32::from(clocks.line());
            clocks.get(C, 0xb0);
            assert!(!clocks.line());
            break;
        }
    }
    assert!(up >= 3, "{up}");
}

/// The data port, and four above it the command port.
struct I8042Ports(DataPort, CommandPort);

impl BusDevice for I8042Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            0 => self.0.read(0, data),
            _ => self.1.read(0, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            0 => self.0.write(0, data),
            _ => self.1.write(0, data),
        }
    }
}

#[test]
fn i8042_answers_as_qemus_does() {
    const DATA: u16 = 0;
    const COMMAND: u16 = 4;
    const OBF: u8 = 1 << 0;
    const AUX_OBF: u8 = 1 << 5;
    /// QEMU says that a command was written last whatever was, and knows the system flag from the self-test alone.
    const STATUS: u8 = !(1 << 3 | 1 << 2);
    const WRITE_AUX: u8 = 0xd4;
    const DISABLE_KEYBOARD: u8 = 1 << 4;
    /// Bytes that a device has not answered yet are lost with the next command in QEMU's queue, and ours: so all are read.
    fn drain(pair: &mut Pair<I8042Ports>, i8042: &I8042, lines: &[Level; 2]) -> u32 {
        for count in 0..20 {
            // QEMU holds back IRQ 1 of a controller's answer while the keyboard is disabled.
            if i8042.save().memory[0] & DISABLE_KEYBOARD == 0 {
                pair.line(lines[0].is_up(), 1);
            }
            pair.line(lines[1].is_up(), 12);
            if pair.read(COMMAND, STATUS) & OBF == 0 {
                return count;
            }
            pair.read(DATA, 0xff);
        }
        panic!("it does not end");
    }

    let qemu = match q35(&[]) {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    let lines = [Level::default(), Level::default()];
    let i8042 = I8042::new(I8042Lines {
        keyboard: lines[0].line(),
        mouse: lines[1].line(),
        ..I8042Lines::default()
    });
    let ports = I8042Ports(i8042.data_port(), i8042.command_port());
    let mut pair = Pair::new(ports, qemu, 0x60);
    let mut random = Random(0x5eed_8042);
    let mut answers = 0;
    // QEMU's mouse has no resolution and no rate before.
    pair.write(COMMAND, WRITE_AUX);
    pair.write(DATA, 0xff);
    drain(&mut pair, &i8042, &lines);

    for _ in 0..STEPS {
        match random.below(6) {
            0 => {
                let commands = [
                    0x20, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xad, 0xae, 0xd0, 0xdd, 0xdf, 0xff, 0x81, 0xb0,
                ];
                pair.write(COMMAND, random.one_of(&commands));
            }
            1 => {
                // Bit 3 is nowhere defined, and translation would be of answers too, of which QEMU translates some.
                pair.write(COMMAND, 0x60);
                pair.write(DATA, random.next() as u8 & 0x37);
            }
            2 => {
                pair.write(COMMAND, random.one_of(&[0xd2, 0xd3]));
                pair.write(DATA, random.next() as u8);
            }
            3 => {
                // Without reset.
                pair.write(COMMAND, 0xd1);
                pair.write(DATA, 0xcd | random.next() as u8 & 2);
            }
            4 => match random.below(3) {
                0 => {
                    pair.write(DATA, random.one_of(&[0xed, 0xf3]));
                    answers += drain(&mut pair, &i8042, &lines);
                    pair.write(DATA, random.next() as u8 & 0x7f);
                }
                1 => {
                    pair.write(DATA, 0xf0);
                    answers += drain(&mut pair, &i8042, &lines);
                    pair.write(DATA, random.one_of(&[0, 1, 2]));
                }
                _ => pair.write(DATA, random.one_of(&[0xee, 0xf2, 0xf4, 0xf5, 0xf6, 0xff])),
            },
            _ => {
                let commands = [
                    0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xec, 0xee, 0xf0, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xff,
                ];
                let command = random.one_of(&commands);
                // QEMU's mouse is silent where that ends no wrap mode, and does not leave it by a reset.
                if command == if i8042.save().mouse.wrap { 0xff } else { 0xec } {
                    continue;
                }
                pair.write(COMMAND, WRITE_AUX);
                pair.write(DATA, command);
                answers += drain(&mut pair, &i8042, &lines);
                let argument = match command {
                    0xe8 => random.below(4) as u8,
                    0xf3 => random.one_of(&[10, 20, 40, 60, 80, 80, 100, 100, 200, 200]),
                    _ => continue,
                };
                pair.write(COMMAND, WRITE_AUX);
                pair.write(DATA, argument);
            }
        }
        answers += drain(&mut pair, &i8042, &lines);
    }
    assert!(answers > 2000, "{answers}");
    assert_eq!(pair.read(COMMAND, STATUS) & AUX_OBF, 0);
}

#[test]
fn debugcon_answers_and_prints_as_qemus_does() {
    let socket = std::env::temp_dir().join(format!("devisor-debugcon-{}.sock", std::process::id()));
    let chardev = format!("socket,id=out,server=on,wait=off,path={}", socket.display());
    let device = "isa-debugcon,iobase=0x402,chardev=out";
    let mut qemu = match q35(&["-chardev", &chardev, "-device", device]) {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    // An answer to anything means that the socket is there.
    qemu.port_in(0x402);
    let mut theirs = UnixStream::connect(&socket).expect("QEMU listens");
    theirs
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a socket has timeouts");
    let _ = std::fs::remove_file(&socket);
    let (ours, output) = UnixStream::pair().expect("there are sockets");
    let mut pair = Pair::new(DebugCon::new(output), qemu, 0x402);
    assert_eq!(pair.read(0, 0xff), 0xe9);
    for byte in *b"SeaBIOS" {
        pair.write(0, byte);
        let mut printed = [[0]; 2];
        (&ours).read_exact(&mut printed[0]).expect("it prints");
        theirs.read_exact(&mut printed[1]).expect("QEMU prints");
        assert_eq!(printed, [[byte]; 2]);
    }
}

#[test]
fn fw_cfg_answers_and_copies_as_qemus_does() {
    const COMMAND: u64 = 0x1000;
    const BUFFER: u64 = 0x2000;
    const BUFFER_LEN: usize = 0x200;
    /// QEMU's writes at the selector come with two bytes.
    fn select(pair: &mut Pair<devisor::platform::fw_cfg::FwCfgPorts>, selector: u16) {
        pair.step(format!("select {selector:#x}"));
        pair.ours.write(0, &selector.to_le_bytes());
        pair.qemu.port_out_wide(0x510, 2, selector.into());
    }

    let qemu = match q35(&[
        "-fw_cfg",
        "name=opt/a,string=abcdefghijklmnopqrstuvwxyz",
        "-fw_cfg",
        "name=opt/b,string=z",
    ]) {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 16)]).expect("it is little"));
    let fw_cfg = FwCfg::new(Arc::clone(&memory));
    let mut pair = Pair::new(fw_cfg.ports(), qemu, 0x510);

    // QEMU has more files than are asked for: ours are the same.
    let theirs = |pair: &mut Pair<_>, key: u16, len: usize| -> Vec<u8> {
        select(pair, key);
        (0..len).map(|_| pair.qemu.port_in(0x511)).collect()
    };
    let count = u32::from_be_bytes(theirs(&mut pair, Key::FILE_DIR.0, 4).try_into().expect("four"));
    let directory = theirs(&mut pair, Key::FILE_DIR.0, 4 + 64 * count as usize);
    let mut keys = vec![0x00, 0x01, 0x19, 0x1f];
    for entry in directory[4..].chunks(64) {
        let size = u32::from_be_bytes(entry[..4].try_into().expect("four"));
        let key = u16::from_be_bytes([entry[4], entry[5]]);
        let name = entry[8..].split(|byte| *byte == 0).next().expect("a name");
        let name = std::str::from_utf8(name).expect("it is text");
        // The tables are long: their beginning is enough, and so much is looked at below.
        let mut bytes = theirs(&mut pair, key, size.min(0x400) as usize);
        bytes.resize(size as usize, 0);
        fw_cfg.add_file(name, bytes).expect("as in QEMU");
        keys.push(0x20 + keys.len() as u16 - 4);
    }
    let mut ours = vec![0; directory.len()];
    select(&mut pair, Key::FILE_DIR.0);
    ours.chunks_mut(1).for_each(|byte| pair.ours.read(1, byte));
    let entries = |directory: &[u8]| -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut entries: Vec<_> = directory[4..]
            .chunks(64)
            .map(|entry| (entry[8..].to_vec(), entry[..4].to_vec()))
            .collect();
        entries.sort();
        entries
    };
    assert_eq!(entries(&ours), entries(&directory));
    assert_eq!(ours[..4], directory[..4]);
    if ours != directory {
        return skip::skipped("QEMU numbers its files otherwise than from 0x20 on".to_owned());
    }

    select(&mut pair, 0);
    let mut random = Random(0x5eed_0510);
    let (mut copies, mut errors) = (0, 0);
    for _ in 0..STEPS / 2 {
        let key = random.one_of(&keys);
        match random.below(4) {
            0 => select(&mut pair, key | random.one_of(&[0, 0x4000])),
            1 => {
                for _ in 0..random.below(6) {
                    pair.read(1, 0xff);
                }
            }
            2 => pair.write(1, random.next() as u8),
            _ => {
                // QEMU has more memory; what is beyond both is no memory.
                let address = random.one_of(&[BUFFER, BUFFER + 3, 1 << 52]);
                let length = random.below(0x100);
                // What a command does that asks to read and to write, or for neither, is the same too.
                let control = u32::from(key) << 16 | random.next() & 0x1e;
                let fill = random.next() as u8;
                let command = [
                    &control.to_be_bytes()[..],
                    &length.to_be_bytes(),
                    &address.to_be_bytes(),
                ]
                .concat();
                pair.step(format!(
                    "control {control:#x}, length {length:#x}, address {address:#x}"
                ));
                memory
                    .write_slice(&[fill; BUFFER_LEN], GuestAddress(BUFFER))
                    .expect("it is memory");
                memory
                    .write_slice(&command, GuestAddress(COMMAND))
                    .expect("it is memory");
                pair.qemu.fill(BUFFER, BUFFER_LEN as u64, fill);
                pair.qemu.write_bytes(COMMAND, &command);
                for (port, value) in [(4, 0), (8, (COMMAND as u32).to_be())] {
                    pair.ours.write(port, &u32::to_le_bytes(value));
                    pair.qemu.port_out_wide(0x510 + port as u16, 4, value);
                }
                for (address, len) in [(COMMAND, 16), (BUFFER, BUFFER_LEN)] {
                    let mut ours = vec![0; len];
                    memory
                        .read_slice(&mut ours, GuestAddress(address))
                        .expect("it is memory");
                    let theirs = pair.qemu.read_bytes(address, len);
                    assert_eq!(ours, theirs, "after\n  {}", pair.steps.join("\n  "));
                    if address == COMMAND {
                        errors += u32::from(ours[3] != 0);
                        copies += u32::from(ours[3] == 0 && control & 2 != 0);
                    }
                }
            }
        }
    }
    assert!(copies > 100 && errors > 50, "{copies} copies, {errors} errors");
}

#[test]
fn acpi_pm_answers_as_qemus_does() {
    /// Where the registers of the ICH9 are put.
    const BASE: u16 = 0x600;
    const EVENTS: u16 = 0;
    const CONTROL: u16 = 4;
    const TIMER: u16 = 8;
    const GPES: u16 = 0x20;
    const GPE_BYTES: u16 = 16;
    const SCI: u32 = 9;
    /// QEMU keeps all that is written, SCI_EN and what is reserved too.
    const CONTROL_MASK: u16 = 7 << 10;

    let mut qemu = match q35(&[]) {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    // PMBASE, ACPI_CNTL.ACPI_EN and IRQ 9 of the LPC bridge, 00:1f.0.
    for (register, value) in [(0x40, u32::from(BASE) | 1), (0x44, 0x80)] {
        qemu.port_out_wide(0xcf8, 4, 0x8000_f800 | register);
        qemu.port_out_wide(0xcfc, 4, value);
    }
    let sci = Level::default();
    let config = AcpiPmConfig {
        // QEMU's time stands still while its CPU does: this compares everything but the ticks.
        timer: TimerWidth::Bits24,
        gpes: u32::from(GPE_BYTES) / 2 * 8,
        acpi_mode: false,
    };
    let pm = AcpiPm::new(config, sci.line(), |_| (), ManualClock::default(), ()).expect("it can be");
    // ACPI_ENABLE and ACPI_DISABLE.
    pm.smi_command(2, 3).write(0, &[2]);
    qemu.port_out(0xb2, 2);
    let mut random = Random(0x5eed_ac91);
    let mut steps = Vec::new();

    for _ in 0..STEPS {
        let value = random.next() as u16;
        match random.below(4) {
            0 => {
                let register = random.one_of(&[0, 2]);
                steps.push(format!("event {register} {value:#x}"));
                pm.event_block().write(register, &value.to_le_bytes());
                // QEMU keeps bits of the enable register that nothing stands behind, and the sleep button's do nothing.
                let value = if register == 2 { value & 0x0721 } else { value };
                qemu.port_out_wide(BASE + EVENTS + register as u16, 2, value.into());
            }
            1 => {
                // Not to sleep: QEMU would end.
                let value = value & !(1 << 13) | 1;
                steps.push(format!("control {value:#x}"));
                pm.control_block().write(0, &value.to_le_bytes());
                qemu.port_out_wide(BASE + CONTROL, 2, value.into());
            }
            _ => {
                let at = random.below(GPE_BYTES.into()) as u16;
                steps.push(format!("gpe {at:#x} {value:#x}"));
                pm.gpe_block().write(at.into(), &[value as u8]);
                qemu.port_out(BASE + GPES + at, value as u8);
            }
        }
        let same = |ours: u32, theirs: u32, what: &str| {
            assert_eq!(
                ours,
                theirs,
                "{what} differs, after\n  {}",
                steps[steps.len().saturating_sub(40)..].join("\n  ")
            );
        };
        let word = |block: &dyn BusDevice, at: u64| {
            let mut data = [0; 2];
            block.read(at, &mut data);
            u16::from_le_bytes(data)
        };
        for register in [0, 2] {
            let theirs = qemu.port_in_wide(BASE + EVENTS + register, 2);
            same(word(&pm.event_block(), register.into()).into(), theirs, "event block");
        }
        let theirs = qemu.port_in_wide(BASE + CONTROL, 2) as u16;
        same(
            (word(&pm.control_block(), 0) & CONTROL_MASK).into(),
            (theirs & CONTROL_MASK).into(),
            "control",
        );
        let mut timer = [0; 4];
        pm.timer_block().read(0, &mut timer);
        same(u32::from_le_bytes(timer), qemu.port_in_wide(BASE + TIMER, 4), "timer");
        for at in 0..GPE_BYTES {
            let mut byte = [0];
            pm.gpe_block().read(at.into(), &mut byte);
            same(byte[0].into(), qemu.port_in(BASE + GPES + at).into(), "gpe block");
        }
        same(sci.is_up().into(), qemu.level(SCI).into(), "the line");
    }
}

#[test]
fn pvpanic_says_what_it_supports_as_qemus_does() {
    let qemu = match q35(&["-device", "pvpanic"]) {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    // QEMU of 9.0 and later knows of shutdowns, too.
    let mut pair = Pair::new(Pvpanic::new(GuestEvents::ALL, |_| ()), qemu, 0x505);
    assert_eq!(pair.read(0, 0x03), 0x07);
}

#[test]
fn reset_control_keeps_what_qemus_does() {
    let qemu = match q35(&[]) {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    let mut pair = Pair::new(ResetControl::new(|_| panic!("nobody resets")), qemu, 0xcf8);
    for value in 0..=0xff {
        // QEMU would be reset, and does not keep that bit.
        pair.write(1, value & !4);
        pair.read(1, 0xff);
    }
}
