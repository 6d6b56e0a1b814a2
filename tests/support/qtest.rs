//! QEMU as a model to compare with: a stopped machine, driven through the qtest protocol on its standard input and output.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A QEMU that executes nothing and answers what a bus access, or a change of a line, does to its devices.
pub struct Qtest {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What the intercepted lines were last told.
    levels: BTreeMap<u32, bool>,
    /// How often they were told to rise.
    rises: BTreeMap<u32, u64>,
}

impl Qtest {
    /// Starts `program` with the machine that `arguments` describe.
    ///
    /// # Errors
    /// Why a test that needs it is skipped.
    pub fn start(program: &str, arguments: &[&str]) -> Result<Self, String> {
        let mut child = Command::new(program)
            .args(arguments)
            .args([
                "-accel",
                "tcg",
                "-S",
                "-qtest",
                "stdio",
                "-display",
                "none",
                "-nodefaults",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The protocol's own log.
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => format!("{program} is not installed"),
                _ => format!("{program} does not start: {error}"),
            })?;
        let commands = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self {
            child,
            commands,
            answers,
            levels: BTreeMap::new(),
            rises: BTreeMap::new(),
        })
    }

    /// Hears from now on what the unnamed inputs of the device at `path` are told: see [`level`](Self::level).
    pub fn intercept_inputs(&mut self, path: &str) {
        self.command(&format!("irq_intercept_in {path}"));
    }

    /// The level of an intercepted line.
    pub fn level(&self, line: u32) -> bool {
        self.levels.get(&line).copied().unwrap_or(false)
    }

    /// How often an intercepted line has risen: some are no more than pulsed.
    pub fn rises(&self, line: u32) -> u64 {
        self.rises.get(&line).copied().unwrap_or(0)
    }

    /// Drives an unnamed input of the device at `path`.
    pub fn set_input(&mut self, path: &str, line: u32, up: bool) {
        self.command(&format!("set_irq_in {path} unnamed-gpio-in {line} {}", u8::from(up)));
    }

    /// A read of `width` bytes.
    pub fn read(&mut self, address: u64, width: usize) -> u64 {
        let answer = self.command(&format!("read{} {address:#x}", suffix(width)));
        let digits = answer.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("QEMU answered {answer:?} to a read"))
    }

    /// A write of `width` bytes.
    pub fn write(&mut self, address: u64, width: usize, value: u64) {
        self.command(&format!("write{} {address:#x} {value:#x}", suffix(width)));
    }

    /// Fills memory with one byte.
    pub fn fill(&mut self, address: u64, len: u64, byte: u8) {
        self.command(&format!("memset {address:#x} {len:#x} {byte:#x}"));
    }

    /// Writes to memory.
    pub fn write_bytes(&mut self, address: u64, data: &[u8]) {
        let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        self.command(&format!("write {address:#x} {:#x} 0x{digits}", data.len()));
    }

    /// Reads from memory.
    pub fn read_bytes(&mut self, address: u64, len: usize) -> Vec<u8> {
        let answer = self.command(&format!("read {address:#x} {len:#x}"));
        let digits = answer.trim_start_matches("0x").as_bytes();
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        bytes.unwrap_or_else(|| panic!("QEMU answered {answer:?} to a read of memory"))
    }

    /// A read of one byte of the port space.
    pub fn port_in(&mut self, port: u16) -> u8 {
        let answer = self.command(&format!("inb {port:#x}"));
        let digits = answer.trim_start_matches("0x");
        u16::from_str_radix(digits, 16)
            .map(|value| value as u8)
            .unwrap_or_else(|_| panic!("QEMU answered {answer:?} to a port read"))
    }

    /// A write of one byte of the port space.
    pub fn port_out(&mut self, port: u16, value: u8) {
        self.command(&format!("outb {port:#x} {value:#x}"));
    }

    /// A read of two or four bytes of the port space.
    pub fn port_in_wide(&mut self, port: u16, width: usize) -> u32 {
        let answer = self.command(&format!("in{} {port:#x}", suffix(width)));
        let digits = answer.trim_start_matches("0x");
        u32::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("QEMU answered {answer:?} to a port read"))
    }

    /// A write of two or four bytes of the port space.
    pub fn port_out_wide(&mut self, port: u16, width: usize, value: u32) {
        self.command(&format!("out{} {port:#x} {value:#x}", suffix(width)));
    }

    /// Sends a command, takes note of the lines that changed, and returns what follows the OK.
    fn command(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("QEMU takes commands");
        loop {
            let mut line = String::new();
            let length = self.answers.read_line(&mut line).expect("QEMU answers");
            assert_ne!(length, 0, "QEMU ended at {command:?}");
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("OK"), value, None) => return value.unwrap_or_default().to_owned(),
                (Some("IRQ"), Some(edge), Some(number)) => {
                    let number = number.parse().expect("the number of a line");
                    self.levels.insert(number, edge == "raise");
                    *self.rises.entry(number).or_default() += u64::from(edge == "raise");
                }
                _ => panic!("QEMU answered {line:?} to {command:?}"),
            }
        }
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The letter that names a width in the protocol.
fn suffix(width: usize) -> char {
    match width {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        8 => 'q',
        _ => panic!("no access of {width} bytes"),
    }
}
