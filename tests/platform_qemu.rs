//! PL011, PL031, PL061, 16550 and flash beside QEMU's: the same seeded sequence to both, every read, the lines and the output compared.
//!
//! QEMU runs its `virt` machine, or for the 16550 its `q35`, without a running CPU and takes accesses by its qtest
//! protocol. The lines are read where they end, at its interrupt controller. What QEMU leaves out of its models stays
//! out of the sequence; each case says what and why.

#![cfg(unix)]

#[path = "support/qtest.rs"]
mod qtest;
#[path = "support/skip.rs"]
mod skip;

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use devisor::{
    bus::{BusDevice, read_le},
    interrupt::NoInterrupt,
    platform::{
        cfi_flash::{CfiFlash, CfiFlashConfig},
        pl011::{FifoDepth, ModemInputs, Pl011, Pl011Config},
        pl031::Pl031,
        pl061::Pl061,
        uart16550::{Uart16550, Uart16550Config},
    },
    time::ManualClock,
};
use qtest::Qtest;

const STEPS: usize = 5000;
const PATIENCE: Duration = Duration::from_secs(20);

/// The second of the board's two banks: the first is the firmware's, and mapped where the CPU starts.
const FLASH: u64 = 0x0400_0000;
const PL011: u64 = 0x0900_0000;
const PL031: u64 = 0x0901_0000;
const PL061: u64 = 0x0903_0000;
/// The pending bits of interrupts 32 to 63; the UART is SPI 1, the clock SPI 2, the pins are SPI 7.
const GICD_ISPENDR1: u64 = 0x0800_0204;
const UART_PENDING: u32 = 1 << 1;
const CLOCK_PENDING: u32 = 1 << 2;
const PINS_PENDING: u32 = 1 << 7;

/// 2023-11-14T22:13:20, where QEMU's clock is told to stand.
const NOW: u64 = 1_700_000_000;

/// The first serial port of a PC, and where its interrupt ends.
const COM1: u64 = 0x3f8;
const COM1_IRQ: u32 = 4;
const IOAPIC_PATH: &str = "/machine/q35/ioapic";

/// QEMU's `virt` machine or its PC, and its UART on a socket.
struct Qemu {
    machine: Qtest,
    /// Accesses are to the port space, by the byte.
    ports: bool,
    serial: UnixStream,
    socket: PathBuf,
}

impl Qemu {
    /// Why the test is skipped if QEMU does not start.
    fn start(test: &str) -> Result<Self, String> {
        let machine = [
            "-M",
            "virt,gic-version=2",
            "-cpu",
            "cortex-a57",
            "-rtc",
            "base=2023-11-14T22:13:20,clock=vm",
        ];
        Self::start_machine(test, "qemu-system-aarch64", &machine)
    }

    /// Why the test is skipped if QEMU does not start.
    fn start_pc(test: &str) -> Result<Self, String> {
        let mut pc = Self::start_machine(test, "qemu-system-x86_64", &["-M", "q35,kernel-irqchip=off"])?;
        pc.machine.intercept_inputs(IOAPIC_PATH);
        pc.ports = true;
        Ok(pc)
    }

    fn start_machine(test: &str, program: &str, machine: &[&str]) -> Result<Self, String> {
        let socket = std::env::temp_dir().join(format!("devisor-{test}-{}.sock", std::process::id()));
        let serial = format!("unix:{},server=on,wait=off", socket.display());
        let mut machine = Qtest::start(program, &[machine, &["-serial", &serial]].concat())?;
        // An answer to anything means that the socket is there.
        machine.read(0, 4);
        let serial = UnixStream::connect(&socket).expect("QEMU listens");
        serial.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
        Ok(Self {
            machine,
            ports: false,
            serial,
            socket,
        })
    }

    fn read(&mut self, address: u64, len: usize) -> u32 {
        if self.ports {
            self.machine.port_in(address as u16).into()
        } else {
            self.machine.read(address, len) as u32
        }
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        if self.ports {
            self.machine.port_out(address as u16, data[0]);
        } else {
            self.machine.write(address, data.len(), read_le(data));
        }
    }

    fn line(&mut self, pending: u32) -> bool {
        self.read(GICD_ISPENDR1, 4) & pending != 0
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// xorshift64*: enough to wander, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.next() % limit
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }
}

/// One of ours and QEMU's, side by side.
struct Pair<D> {
    ours: D,
    qemu: Qemu,
    base: u64,
    /// The latest steps, to say how a difference came about.
    steps: Vec<String>,
}

impl<D: BusDevice> Pair<D> {
    fn step(&mut self, step: String) {
        if self.steps.len() == 40 {
            self.steps.remove(0);
        }
        self.steps.push(step);
    }

    fn write(&mut self, register: u64, value: u32, len: usize) {
        self.step(format!("write {register:#x} {value:#x} ({len} bytes)"));
        let data = &value.to_le_bytes()[..len];
        self.ours.write(register, data);
        self.qemu.write(self.base + register, data);
    }

    /// Reads from both, and compares what `same` leaves of the values.
    fn read(&mut self, register: u64, len: usize, same: impl Fn(u32) -> u32) -> u32 {
        let mut data = [0; 4];
        self.ours.read(register, &mut data[..len]);
        let ours = u32::from_le_bytes(data);
        let qemu = self.qemu.read(self.base + register, len);
        self.step(format!("read {register:#x} ({len} bytes): {ours:#x}"));
        assert_eq!(
            same(ours),
            same(qemu),
            "{register:#x} is {ours:#x} here and {qemu:#x} in QEMU{}",
            self.history()
        );
        ours
    }

    /// Waits until QEMU's main loop has brought its UART a character, as far as `flags` in the register `fr` tell.
    /// They tell the first and the last character of a FIFO. One between them is waited for when it is the first, if
    /// it has not arrived by then.
    fn wait_for_input(&mut self, fr: u64, flags: u32) {
        let mut data = [0; 4];
        self.ours.read(fr, &mut data);
        let ours = u32::from_le_bytes(data);
        let deadline = Instant::now() + PATIENCE;
        while (self.qemu.read(self.base + fr, 4) ^ ours) & flags != 0 {
            assert!(
                Instant::now() < deadline,
                "QEMU does not take its input{}",
                self.history()
            );
        }
    }

    fn history(&self) -> String {
        self.steps.iter().fold(", after".to_owned(), |mut history, step| {
            let _ = write!(history, "\n  {step}");
            history
        })
    }
}

fn same(value: u32) -> u32 {
    value
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Write for Screen {
    fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(characters);
        Ok(characters.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn pl011_answers_as_qemus_does() {
    const DR: u64 = 0x00;
    const RSR: u64 = 0x04;
    const FR: u64 = 0x18;
    const LCR_H: u64 = 0x2c;
    const CR: u64 = 0x30;
    const IMSC: u64 = 0x38;
    const RIS: u64 = 0x3c;
    const MIS: u64 = 0x40;
    const ICR: u64 = 0x44;
    const FEN: u32 = 1 << 4;
    const RXFE: u32 = 1 << 4;
    const RXFF: u32 = 1 << 6;
    const RX: u32 = 1 << 4;
    const RT: u32 = 1 << 6;
    // Registers that only keep what is written, and the bits that they have: QEMU 7.2 keeps the others too. CTSEN is
    // left out of UARTCR, for QEMU never looks at CTS.
    const PLAIN: [(u64, u32); 5] = [(0x20, 0xff), (0x24, 0xffff), (0x28, 0x3f), (0x34, 0x3f), (0x48, 0x7)];

    let qemu = match Qemu::start("pl011") {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    let screen = Screen::default();
    let config = Pl011Config {
        fifo_depth: FifoDepth::Sixteen,
        modem: ModemInputs::default(),
        ..Pl011Config::default()
    };
    let mut pair = Pair {
        ours: Pl011::new(config, NoInterrupt, screen.clone()),
        qemu,
        base: PL011,
        steps: Vec::new(),
    };
    let mut random = Random(0x5eed_0011);

    // QEMU sends and receives whether or not it is enabled, so the enable bits stay set here.
    const ENABLED: u32 = 0x301;
    pair.write(CR, ENABLED, 4);
    // QEMU's receive interrupt means "there is data", as ours does with receive interrupt and timeout taken together.
    let interrupts = |value: u32| if value & RT != 0 { value & !RT | RX } else { value };
    let mut sent = 0;
    let mut received = 0u32;

    for _ in 0..STEPS {
        let len = random.one_of(&[1, 2, 4]);
        let fr = pair.read(FR, len, same);
        match random.below(16) {
            // Of an empty FIFO the manual leaves the value open: QEMU repeats the last, ours is zero.
            0..=2 if fr & RXFE == 0 => _ = pair.read(DR, len, same),
            3..=6 if fr & RXFF == 0 => {
                let character = random.next() as u8;
                pair.step(format!("receive {character:#x}"));
                assert_eq!(pair.ours.receive(&[character]), 1);
                pair.qemu.serial.write_all(&[character]).expect("QEMU runs");
                received += 1;
            }
            7 | 8 => {
                pair.write(DR, random.next(), len);
                let mut shown = [0];
                pair.qemu
                    .serial
                    .read_exact(&mut shown)
                    .expect("QEMU sends what ours does");
                assert_eq!(screen.take(), shown, "the output differs{}", pair.history());
                sent += 1;
            }
            9 => {
                let (register, bits) = random.one_of(&PLAIN);
                pair.write(register, random.next() & bits, 4);
            }
            10 => {
                // QEMU 7.2 forgets the data but not the flags and the interrupt when the FIFOs are switched with
                // data in them, and has no loopback.
                let now = pair.read(LCR_H, len, same);
                let value = random.next() & 0xff;
                let value = if fr & RXFE == 0 {
                    value & !FEN | now & FEN
                } else {
                    value
                };
                pair.write(LCR_H, value, len);
                pair.write(CR, ENABLED | random.next() & 0x7c06, 4);
            }
            11 => {
                // The two are one in QEMU, so they are masked together.
                let mask = random.next() & 0x7ff & !(RX | RT);
                pair.write(IMSC, if random.below(2) == 0 { mask } else { mask | RX | RT }, 4);
            }
            12 => {
                // Ours stays while there is data; QEMU's comes back only once the FIFO was empty, and a driver that
                // acknowledges last hangs. (Its transmit interrupt goes with any acknowledgement, ours with the first that
                // comes after a look, as below.)
                let keep = if fr & RXFE == 0 { RX | RT } else { 0 };
                pair.write(ICR, random.next() & 0x7ff & !keep, 4);
            }
            13 => _ = pair.read(RSR, len, same),
            14 => pair.write(RSR, random.next(), len),
            _ => {
                // The revision in UARTPeriphID2 is QEMU's own: its FIFOs are those of ours.
                let register = 0xfe0 + 4 * u64::from(random.below(8));
                pair.read(
                    register,
                    len,
                    |value| if register == 0xfe8 { value & 0xf } else { value },
                );
            }
        }
        pair.wait_for_input(FR, RXFE | RXFF);
        for (register, bits) in PLAIN {
            assert_eq!(pair.read(register, 4, same) & !bits, 0);
        }
        for register in [LCR_H, CR] {
            pair.read(register, 4, same);
        }
        for register in [RIS, MIS] {
            pair.read(register, 4, interrupts);
        }
        pair.read(IMSC, 4, same);
        let line = pair.qemu.line(UART_PENDING);
        assert_eq!(
            pair.ours.interrupt().is_up(),
            line,
            "the line differs{}",
            pair.history()
        );
    }

    assert!(sent > 200 && received > 200, "{sent} sent, {received} received");
}

#[test]
fn pl031_answers_as_qemus_does() {
    const DR: u64 = 0x00;
    const MR: u64 = 0x04;
    const LR: u64 = 0x08;
    const CR: u64 = 0x0c;
    const IMSC: u64 = 0x10;
    const RIS: u64 = 0x14;
    const MIS: u64 = 0x18;
    const ICR: u64 = 0x1c;

    let qemu = match Qemu::start("pl031") {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    // QEMU's time stands still while its CPU does, so this compares everything but the ticks.
    let clock = ManualClock::new(Duration::from_secs(NOW));
    let mut pair = Pair {
        ours: Pl031::new(NoInterrupt, clock, ()),
        qemu,
        base: PL031,
        steps: Vec::new(),
    };
    let mut random = Random(0x5eed_0031);
    let mut matches = 0;

    for _ in 0..STEPS {
        let len = random.one_of(&[1, 2, 4]);
        // Few values, so that counter and match value meet.
        let value = random.one_of(&[0, 1, 2, 3, NOW as u32, u32::MAX]);
        match random.below(8) {
            0 | 1 => pair.write(MR, value, len),
            2 | 3 => pair.write(LR, value, len),
            4 => pair.write(IMSC, value, len),
            5 => pair.write(ICR, value, len),
            6 => {
                let register = random.one_of(&[DR, RIS, MIS, CR, 0x20, 0xfdc]);
                pair.write(register, value, len);
            }
            _ => _ = pair.read(0xfe0 + 4 * u64::from(random.below(8)), len, same),
        }
        for register in [DR, MR, LR, CR, IMSC, RIS, MIS, ICR, 0x20] {
            let value = pair.read(register, len, same);
            matches += usize::from(register == MIS && value != 0);
        }
        let line = pair.qemu.line(CLOCK_PENDING);
        assert_eq!(
            pair.ours.interrupt().is_up(),
            line,
            "the line differs{}",
            pair.history()
        );
    }
    assert!(matches > 200, "{matches} matches");
}

#[test]
fn pl061_answers_as_qemus_does() {
    const DIR: u64 = 0x400;
    const IS: u64 = 0x404;
    const IE: u64 = 0x410;
    const RIS: u64 = 0x414;
    const MIS: u64 = 0x418;
    const IC: u64 = 0x41c;
    const AFSEL: u64 = 0x420;

    let qemu = match Qemu::start("pl061") {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    // Nobody drives the pins of QEMU's board, which holds them down.
    let mut pair = Pair {
        ours: Pl061::new(NoInterrupt, [NoInterrupt; 8]),
        qemu,
        base: PL061,
        steps: Vec::new(),
    };
    let mut random = Random(0x5eed_0061);
    let mut up = 0;

    for _ in 0..STEPS {
        let value = random.next() & 0xff;
        let register = match random.below(3) {
            0 => u64::from(random.below(0x100)) << 2,
            _ => random.one_of(&[DIR, IS, 0x408, 0x40c, IE, IE, RIS, MIS, IC, AFSEL, 0xfe0]),
        };
        if register == DIR {
            // A pin that nobody drives keeps in QEMU what it had as an output.
            pair.write(0x3fc, 0, 4);
        }
        pair.write(register, value, 4);
        // QEMU keeps a level that has gone until it is cleared, and sees an edge where the guest turns a pin around.
        pair.write(IC, 0xff, 4);
        for register in [DIR, IS, 0x408, 0x40c, IE, RIS, MIS, IC, AFSEL] {
            pair.read(register, 4, same);
        }
        pair.read(u64::from(random.below(0x100)) << 2, 4, same);
        pair.read(0xfe0 + 4 * u64::from(random.below(8)), 4, same);
        let line = pair.qemu.line(PINS_PENDING);
        let ours = pair.ours.interrupt().is_up();
        assert_eq!(ours, line, "the line differs{}", pair.history());
        up += u32::from(ours);
    }
    assert!((500..4500).contains(&up), "{up} times up");
}

#[test]
fn cfi_flash_answers_as_qemus_does() {
    const SIZE: u64 = 64 << 20;
    const BLOCK: u64 = CfiFlashConfig::VIRT.block_size;
    const READ_ARRAY: u32 = 0x00ff_00ff;

    let qemu = match Qemu::start("cfi_flash") {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    // Without a file behind it QEMU's flash is full of zeros.
    let ours = CfiFlash::new(CfiFlashConfig::VIRT, vec![0; SIZE as usize], |_, _| ()).expect("it can be");
    let mut pair = Pair {
        ours,
        qemu,
        base: FLASH,
        steps: Vec::new(),
    };
    let mut random = Random(0x5eed_0cf1);
    let both = |command: u32| command << 16 | command;
    let mut programmed = 0;

    for _ in 0..STEPS / 5 {
        let block = u64::from(random.below(4)) * BLOCK;
        let at = block + u64::from(random.below(64)) * 4;
        match random.below(6) {
            0 => {
                pair.write(block, both(0x20), 4);
                pair.write(block, both(0xd0), 4);
                pair.read(block, 4, same);
            }
            1 => {
                // QEMU programs also bits that are clear: here, what was erased.
                pair.write(block, both(0x20), 4);
                pair.write(block, both(0xd0), 4);
                pair.write(at, both(random.one_of(&[0x40, 0x10])), 4);
                pair.write(at, random.next(), 4);
                pair.read(at, 4, same);
                programmed += 1;
            }
            2 => {
                pair.write(block, both(0x20), 4);
                pair.write(block, both(0xd0), 4);
                let count = match random.below(16) {
                    // All of the buffer.
                    0 => 0x3ff,
                    _ => random.below(16),
                };
                pair.write(block, both(0xe8), 4);
                pair.read(block, 4, same);
                pair.write(block, both(count), 4);
                for word in 0..=count {
                    pair.write(block + u64::from(word) * 4, random.next(), 4);
                }
                pair.write(block, both(0xd0), 4);
                pair.read(block, 4, same);
                programmed += 1;
            }
            3 => {
                pair.write(block, both(0x60), 4);
                pair.write(block, both(random.one_of(&[0xd0, 0x01])), 4);
                pair.read(block, 4, same);
            }
            4 => {
                // Manufacturer, device, lock.
                pair.write(block, both(0x90), 4);
                for word in 0..3 {
                    pair.read(block + word * 4, 4, same);
                }
            }
            _ => {
                pair.write(block, both(0x98), 4);
                // What QEMU says of supplies and of times is another chip's.
                for word in (0x10..0x1b).chain([0x27, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33]) {
                    pair.read(word * 4, 4, same);
                }
            }
        }
        if random.below(2) == 0 {
            pair.write(at, both(random.one_of(&[0x50, 0x70])), 4);
        }
        pair.write(block, READ_ARRAY, 4);
        pair.read(at, 4, same);
        pair.read(at + 1, 1, same);
        pair.read(block + BLOCK - 4, 4, same);
    }
    assert!(programmed > 100, "{programmed}");
}

#[test]
fn uart16550_answers_as_qemus_does() {
    const DATA: u64 = 0;
    const IER: u64 = 1;
    const IIR: u64 = 2;
    const FCR: u64 = 2;
    const LCR: u64 = 3;
    const MCR: u64 = 4;
    const LSR: u64 = 5;
    const MSR: u64 = 6;
    const SCR: u64 = 7;
    const RECEIVED: u8 = 1 << 0;
    const ENABLE: u8 = 1 << 0;
    const RESET_RX: u8 = 1 << 1;
    const BREAK: u8 = 1 << 6;
    const DLAB: u8 = 1 << 7;
    const LOOP: u8 = 1 << 4;
    const DR: u32 = 1 << 0;

    let qemu = match Qemu::start_pc("uart16550") {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    let screen = Screen::default();
    // QEMU's line goes to the interrupt controller without the gate that the boards of PCs have.
    let config = Uart16550Config {
        out2_gates_interrupt: false,
        ..Uart16550Config::default()
    };
    let mut pair = Pair {
        ours: Uart16550::new(config, NoInterrupt, screen.clone()),
        qemu,
        base: COM1,
        steps: Vec::new(),
    };
    let mut random = Random(0x5eed_0550);
    // QEMU starts as its firmware would leave it, with OUT2.
    pair.write(MCR, 0, 1);
    let (mut sent, mut received, mut looped, mut overruns, mut up) = (0, 0, 0, 0, 0);

    for _ in 0..STEPS {
        let state = pair.ours.save();
        let (dlab, loops) = (state.lcr & DLAB != 0, state.mcr & LOOP != 0);
        match random.below(20) {
            0..=5 if !dlab => {
                if loops {
                    // So many that some triggers are reached, and some FIFOs overrun.
                    let count = random.one_of(&[1, 1, 2, 3, 8]);
                    for _ in 0..count {
                        pair.write(DATA, random.next() & 0xff, 1);
                    }
                    looped += count;
                } else {
                    pair.write(DATA, random.next() & 0xff, 1);
                    let mut shown = [0];
                    pair.qemu
                        .serial
                        .read_exact(&mut shown)
                        .expect("QEMU sends what ours does");
                    assert_eq!(screen.take(), shown, "the output differs{}", pair.history());
                    sent += 1;
                }
            }
            // Without FIFOs, QEMU repeats the last character where ours reads as zero.
            6..=8 if dlab || !state.rx.is_empty() => _ = pair.read(DATA, 1, same),
            9 | 10 if state.rx.is_empty() && !loops => {
                // LSR tells when QEMU has it, and tells other things once alone.
                pair.read(LSR, 1, same);
                let character = random.next() as u8;
                pair.step(format!("receive {character:#x}"));
                assert_eq!(pair.ours.receive(&[character]), 1);
                pair.qemu.serial.write_all(&[character]).expect("QEMU runs");
                pair.wait_for_input(LSR, DR);
                received += 1;
            }
            // QEMU has peers that never change their lines, and does not tell those of the loopback as changes.
            11 | 12 if !dlab => pair.write(IER, random.next() & 0x07, 1),
            13 => {
                // In QEMU the reset bits work also while the FIFOs are off, and to reset an empty transmit FIFO is an
                // interrupt.
                let value = random.one_of(&[0, ENABLE, ENABLE, ENABLE, ENABLE, ENABLE | RESET_RX])
                    | (random.next() as u8 & 0xc0);
                let value = if value & ENABLE != 0 { value } else { 0 };
                pair.write(FCR, value.into(), 1);
            }
            14 => {
                // QEMU does not loop a break back.
                let value = random.next() as u8 & if loops { !BREAK } else { 0xff };
                let value = if random.below(3) == 0 { value } else { value & !DLAB };
                pair.write(LCR, value.into(), 1);
            }
            15 => {
                let value = random.next() & 0xff;
                pair.write(
                    MCR,
                    if random.below(2) == 0 {
                        value
                    } else {
                        value | u32::from(LOOP)
                    },
                    1,
                );
            }
            16 => pair.write(SCR, random.next() & 0xff, 1),
            17 if dlab => pair.write(random.one_of(&[DATA, IER]), random.next() & 0x07, 1),
            18 => overruns += pair.read(LSR, 1, same) >> 1 & 1,
            _ => _ = pair.read(MSR, 1, |value| value & 0xf0),
        }
        for register in [LCR, MCR, SCR] {
            pair.read(register, 1, same);
        }
        let state = pair.ours.save();
        if state.lcr & DLAB != 0 {
            pair.read(DATA, 1, same);
        }
        pair.read(IER, 1, same);
        // QEMU's time stands still while its CPU does, and so the timeout of its FIFO never comes.
        let trigger = [1, 4, 8, 14][usize::from(state.fcr >> 6)];
        if state.ier & RECEIVED != 0 && (1..trigger).contains(&state.rx.len()) {
            continue;
        }
        let line = |pair: &mut Pair<Uart16550<_, _>>| {
            let theirs = pair.qemu.machine.level(COM1_IRQ);
            let ours = pair.ours.interrupt().is_up();
            assert_eq!(ours, theirs, "the line differs{}", pair.history());
            u32::from(ours)
        };
        up += line(&mut pair);
        if random.below(2) == 0 {
            pair.read(IIR, 1, same);
            line(&mut pair);
        }
    }
    let seen = [sent, received, looped, overruns, up];
    assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
}
