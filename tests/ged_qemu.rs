//! The generic event device beside QEMU's: the same seeded sequence of accesses and of presses of the power button to both,
//! every read compared.
//!
//! QEMU's `microvm` has the selector and the sleep and reset registers, its arm64 `virt` the selector alone. What differs,
//! and stays as it is: QEMU pulses its line where ours is up until the events are read, so what is compared is that it rose;
//! its registers read as zero where ours read SLP_TYP and WAK_STS as the specification has them (4.8.3.7); and it has no
//! sleep button.

#![cfg(unix)]

#[path = "support/qtest.rs"]
mod qtest;
#[path = "support/skip.rs"]
mod skip;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use devisor::{
    bus::BusDevice,
    interrupt::level_from_fn,
    platform::ged::{Ged, PowerRequest, S5},
};
use qtest::Qtest;

const PATIENCE: Duration = Duration::from_secs(20);
const STEPS: usize = 600;

/// `microvm`: the selector, the registers, and its GSI.
const SELECTOR: u64 = 0xfea0_0000;
const REGISTERS: u64 = 0xfea0_0200;
const GSI: u32 = 9;

const SLP_EN: u8 = 1 << 5;
const RESET_VALUE: u8 = 0x42;

/// QEMU's machine, with a socket of its monitor protocol.
struct Qemu {
    machine: Qtest,
    monitor: BufReader<UnixStream>,
    files: Vec<PathBuf>,
}

impl Qemu {
    fn start(test: &str, program: &str, machine: &[&str]) -> Result<Self, String> {
        let socket = std::env::temp_dir().join(format!("devisor-{test}-{}.sock", std::process::id()));
        let monitor = format!("unix:{},server=on,wait=off", socket.display());
        let arguments = [machine, &["-qmp", &monitor, "-no-shutdown"]].concat();
        let mut machine = Qtest::start(program, &arguments)?;
        // An answer to anything means that the socket is there.
        machine.read(0, 4);
        let monitor = UnixStream::connect(&socket).expect("QEMU listens");
        monitor.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
        let monitor = BufReader::new(monitor);
        let files = vec![socket];
        let mut qemu = Self {
            machine,
            monitor,
            files,
        };
        qemu.wait_for("\"QMP\"");
        qemu.command("qmp_capabilities");
        qemu.wait_for("\"return\"");
        Ok(qemu)
    }

    fn command(&mut self, command: &str) {
        writeln!(self.monitor.get_mut(), "{{\"execute\": \"{command}\"}}").expect("QEMU takes commands");
    }

    /// Until the monitor has said something of it.
    fn wait_for(&mut self, what: &str) {
        loop {
            let mut line = String::new();
            let length = self.monitor.read_line(&mut line).expect("QEMU says something");
            assert_ne!(length, 0, "QEMU ended before {what}");
            if line.contains(what) {
                return;
            }
        }
    }

    fn press_power_button(&mut self) {
        self.command("system_powerdown");
        self.wait_for("\"POWERDOWN\"");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
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
}

type Line = Box<dyn devisor::interrupt::LevelInterrupt>;

struct Ours {
    ged: Ged<Line>,
    rises: Arc<AtomicU64>,
    requests: Arc<Mutex<Vec<PowerRequest>>>,
}

impl Ours {
    fn new() -> Self {
        let (rises, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, asked) = (Arc::clone(&rises), Arc::clone(&requests));
        let line = level_from_fn(move |up| {
            counted.fetch_add(u64::from(up), Ordering::Relaxed);
            Ok(())
        });
        let ged = Ged::new(Box::new(line) as Line, move |request| {
            asked.lock().unwrap().push(request)
        });
        Self { ged, rises, requests }
    }

    fn events(&self) -> u32 {
        let mut data = [0; 4];
        self.ged.selector().read(0, &mut data);
        u32::from_le_bytes(data)
    }

    fn register(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.ged.registers().read(offset, &mut data);
        data[0]
    }

    fn requests(&self) -> Vec<PowerRequest> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// Presses after which the line has risen.
    fn rises(&self) -> u64 {
        self.rises.load(Ordering::Relaxed)
    }
}

#[test]
fn the_event_device_of_a_microvm_answers_as_ours() {
    let arguments = [
        "-M",
        "microvm,acpi=on,pit=off,pic=off,rtc=off,kernel-irqchip=off",
        "-m",
        "64",
    ];
    let mut qemu = match Qemu::start("ged-microvm", "qemu-system-x86_64", &arguments) {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    qemu.machine.intercept_inputs("/machine/ioapic");
    let ours = Ours::new();
    let mut random = Random(0x6765_64ed);
    let mut presses = 0;
    // What the line of each has done since the events were read, which is when ours can rise again.
    let mut unread = false;
    let (mut before, mut expected) = (qemu.machine.rises(GSI), 0);
    for step in 0..STEPS {
        match random.next() % 8 {
            0 => {
                presses += 1;
                qemu.press_power_button();
                ours.ged.press_power_button();
                // An answer to anything means that the line was told.
                qemu.machine.read(REGISTERS, 1);
                assert!(qemu.machine.rises(GSI) > before, "step {step}");
                before = qemu.machine.rises(GSI);
                expected += u64::from(!unread);
                unread = true;
                assert_eq!(ours.rises(), expected, "step {step}");
            }
            1 | 2 => {
                assert_eq!(u64::from(ours.events()), qemu.machine.read(SELECTOR, 4), "step {step}");
                unread = false;
            }
            3 => {
                let value = random.next();
                ours.ged.selector().write(0, &value.to_le_bytes());
                qemu.machine.write(SELECTOR, 4, value.into());
            }
            4 | 5 => {
                let offset = u64::from(random.next() % 3);
                let mut value = random.next() as u8;
                match offset {
                    // What ends the sequence comes after it.
                    0 => value &= !SLP_EN,
                    2 if value == RESET_VALUE => value = 0,
                    _ => {}
                }
                ours.ged.registers().write(offset, &[value]);
                qemu.machine.write(REGISTERS + offset, 1, value.into());
            }
            _ => {
                let offset = u64::from(random.next() % 3);
                let ours = ours.register(offset);
                let qemus = qemu.machine.read(REGISTERS + offset, 1);
                assert_eq!(qemus, 0, "QEMU has read access to {offset} by now: compare it");
                // SLP_TYP, and nobody has woken.
                assert_eq!(ours & !(if offset == 0 { 7 << 2 } else { 0 }), 0, "step {step}");
            }
        }
    }
    assert!(presses > 20);
    assert_eq!(ours.requests(), []);

    // A reset forgets the events of both.
    qemu.press_power_button();
    ours.ged.press_power_button();
    qemu.machine.write(REGISTERS + 2, 1, RESET_VALUE.into());
    qemu.wait_for("\"RESET\"");
    ours.ged.registers().write(2, &[RESET_VALUE]);
    assert_eq!(ours.requests(), [PowerRequest::Reset]);

    let value = S5 << 2 | SLP_EN;
    qemu.machine.write(REGISTERS, 1, value.into());
    qemu.wait_for("\"SHUTDOWN\"");
    ours.ged.registers().write(0, &[value]);
    assert_eq!(ours.requests(), [PowerRequest::Sleep(S5)]);
}

#[test]
fn the_event_device_of_an_arm64_board_answers_as_ours() {
    const SELECTOR: u64 = 0x0908_0000;
    const GICD: u64 = 0x0800_0000;
    const ICPENDR1: u64 = GICD + 0x284;
    const ISPENDR1: u64 = GICD + 0x204;
    const ICFGR2: u64 = GICD + 0xc08;
    const SPI: u32 = 9;
    // There is one where there is firmware, which does not run here.
    let firmware = std::env::temp_dir().join(format!("devisor-ged-virt-{}.bin", std::process::id()));
    fs::write(&firmware, [0; 4096]).expect("a file");
    let path = firmware.display().to_string();
    let arguments = ["-M", "virt,gic-version=2,acpi=on", "-cpu", "cortex-a57", "-bios", &path];
    let qemu = Qemu::start("ged-virt", "qemu-system-aarch64", &arguments);
    let _ = fs::remove_file(firmware);
    let mut qemu = match qemu {
        Ok(qemu) => qemu,
        Err(why) => return skip::skipped(why),
    };
    // Edge-triggered, so that a pulse is remembered.
    qemu.machine.write(ICFGR2, 4, 0b10 << (2 * SPI));
    let ours = Ours::new();
    let mut random = Random(0x76_6972_7467_6564);
    for step in 0..STEPS / 3 {
        match random.next() % 4 {
            0 => {
                let before = ours.rises();
                let unread = ours.ged.save().events != 0;
                qemu.machine.write(ICPENDR1, 4, 1 << SPI);
                qemu.press_power_button();
                ours.ged.press_power_button();
                assert_eq!(qemu.machine.read(ISPENDR1, 4) as u32 >> SPI & 1, 1, "step {step}");
                assert_eq!(ours.rises() - before, u64::from(!unread), "step {step}");
            }
            1 => {
                let value = random.next();
                ours.ged.selector().write(0, &value.to_le_bytes());
                qemu.machine.write(SELECTOR, 4, value.into());
            }
            _ => assert_eq!(u64::from(ours.events()), qemu.machine.read(SELECTOR, 4), "step {step}"),
        }
    }
}
