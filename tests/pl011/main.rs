//! The PL011, driven through its registers as a guest would and from outside as an embedder would.

mod acknowledge;
mod any_sequence;
mod input;
mod line;
mod loopback;
mod output;
mod pump;
mod registers;
mod state;
mod transmit_interrupt;

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use devisor::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, NoInterrupt, SharedLine, level_from_fn},
    platform::pl011::{
        FifoDepth, Frame, InputPump, ModemInputs, ModemOutputs, Pl011, Pl011Config, Pl011State, Pl011StateError, Pumped,
    },
};
use proptest::prelude::*;

const DR: u64 = 0x000;
const RSR: u64 = 0x004;
const FR: u64 = 0x018;
const ILPR: u64 = 0x020;
const IBRD: u64 = 0x024;
const FBRD: u64 = 0x028;
const LCR_H: u64 = 0x02c;
const CR: u64 = 0x030;
const IFLS: u64 = 0x034;
const IMSC: u64 = 0x038;
const RIS: u64 = 0x03c;
const MIS: u64 = 0x040;
const ICR: u64 = 0x044;
const DMACR: u64 = 0x048;

const CR_UARTEN: u32 = 1 << 0;
const CR_LBE: u32 = 1 << 7;
const CR_TXE: u32 = 1 << 8;
const CR_RXE: u32 = 1 << 9;
const CR_DTR: u32 = 1 << 10;
const CR_RTS: u32 = 1 << 11;
const CR_OUT1: u32 = 1 << 12;
const CR_OUT2: u32 = 1 << 13;
const CR_RTSEN: u32 = 1 << 14;
const CR_CTSEN: u32 = 1 << 15;
const CR_ON: u32 = CR_UARTEN | CR_TXE | CR_RXE;

const LCR_BRK: u32 = 1 << 0;
const LCR_FEN: u32 = 1 << 4;

const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
const FR_RI: u32 = 1 << 8;

const INT_RI: u32 = 1 << 0;
const INT_CTS: u32 = 1 << 1;
const INT_DCD: u32 = 1 << 2;
const INT_DSR: u32 = 1 << 3;
const INT_MODEM: u32 = INT_RI | INT_CTS | INT_DCD | INT_DSR;
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
const INT_FE: u32 = 1 << 7;
const INT_PE: u32 = 1 << 8;
const INT_BE: u32 = 1 << 9;
const INT_OE: u32 = 1 << 10;

/// A writer that takes as much as it is told to.
#[derive(Clone, Default)]
struct Terminal(Arc<Mutex<Screen>>);

#[derive(Default)]
struct Screen {
    shown: Vec<u8>,
    flushes: usize,
    /// What comes before the next characters are taken.
    answers: VecDeque<Answer>,
    /// Refuses everything once `answers` is empty.
    stuck: bool,
}

enum Answer {
    Take(usize),
    Fail(ErrorKind),
}

impl Terminal {
    fn stuck() -> Self {
        let terminal = Self::default();
        terminal.0.lock().unwrap().stuck = true;
        terminal
    }

    fn then(self, answer: Answer) -> Self {
        self.0.lock().unwrap().answers.push_back(answer);
        self
    }

    fn unstick(&self) {
        self.0.lock().unwrap().stuck = false;
    }

    /// Takes `count` more characters, then refuses again.
    fn take(&self, count: usize) {
        self.0.lock().unwrap().answers.push_back(Answer::Take(count));
    }

    fn shown(&self) -> Vec<u8> {
        self.0.lock().unwrap().shown.clone()
    }
}

impl io::Write for Terminal {
    fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
        let mut screen = self.0.lock().unwrap();
        let count = match screen.answers.pop_front() {
            Some(Answer::Take(count)) => count.min(characters.len()),
            Some(Answer::Fail(kind)) => return Err(kind.into()),
            None if screen.stuck => return Err(ErrorKind::WouldBlock.into()),
            None => characters.len(),
        };
        screen.shown.extend(&characters[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().flushes += 1;
        Ok(())
    }
}

/// What a line has heard.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<bool>>>);

impl Heard {
    fn line(&self) -> impl LevelInterrupt + 'static {
        let log = Arc::clone(&self.0);
        level_from_fn(move |up| {
            log.lock().unwrap().push(up);
            Ok(())
        })
    }

    fn is_up(&self) -> bool {
        self.0.lock().unwrap().last().copied().unwrap_or(false)
    }

    fn all(&self) -> Vec<bool> {
        self.0.lock().unwrap().clone()
    }
}

trait Guest {
    fn get(&self, register: u64) -> u32;
    fn put(&self, register: u64, value: u32);

    fn raw(&self) -> u32 {
        self.get(RIS)
    }

    fn send(&self, characters: &[u8]) {
        characters.iter().for_each(|&character| self.put(DR, character.into()));
    }

    /// Everything that there is to read.
    fn take(&self) -> Vec<u8> {
        let mut taken = Vec::new();
        while self.get(FR) & FR_RXFE == 0 {
            taken.push(self.get(DR) as u8);
        }
        taken
    }
}

impl<T: BusDevice> Guest for T {
    fn get(&self, register: u64) -> u32 {
        let mut data = [0xa5; 4];
        self.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }
}

fn silent(output: impl io::Write + Send) -> Pl011<NoInterrupt, impl io::Write + Send> {
    Pl011::new(Pl011Config::default(), NoInterrupt, output)
}

/// A UART with its FIFOs on.
fn buffered<W: io::Write + Send>(depth: FifoDepth, output: W) -> Pl011<NoInterrupt, W> {
    let config = Pl011Config {
        fifo_depth: depth,
        ..Pl011Config::default()
    };
    let uart = Pl011::new(config, NoInterrupt, output);
    uart.put(LCR_H, LCR_FEN);
    uart
}

const DEPTHS: [(FifoDepth, usize); 2] = [(FifoDepth::Sixteen, 16), (FifoDepth::ThirtyTwo, 32)];

/// Every trigger level: its code in UARTIFLS, and the eighths of the FIFO that it stands for.
const LEVELS: [(u32, usize); 5] = [(0, 1), (1, 2), (2, 4), (3, 6), (4, 7)];
