//! The PL011: no character is lost or made up, what waits is an interrupt, and a driver that serves its interrupts gets
//! everything in and out, whenever it acknowledges them.
#![no_main]

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    platform::pl011::{FifoDepth, Pl011, Pl011Config, Pl011State},
};
use devisor_fuzz::{Access, Outside, Screen, Takes, frame, modem};
use libfuzzer_sys::fuzz_target;

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IMSC: u64 = 0x38;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;

const FEN: u16 = 1 << 4;
const ON: u16 = 0x301;
const LBE: u16 = 1 << 7;
const CTSEN: u16 = 1 << 15;
const RXFE: u16 = 1 << 4;
const TXFF: u16 = 1 << 5;
const RX: u16 = 1 << 4;
const TX: u16 = 1 << 5;
const RT: u16 = 1 << 6;

#[derive(Arbitrary, Debug)]
enum Step {
    Registers(Access),
    /// As a driver sets it up.
    Program {
        fifos: bool,
        loopback: bool,
        flow_control: bool,
        levels: u8,
        imsc: u16,
    },
    Receive(u8),
    Frame(u8, u8),
    Send(u8),
    Handle(Handler),
    Modem(u8),
    Terminal(Takes),
    Flush,
    Refuse(bool),
    Reset,
    Move,
    Restore(State),
}

/// An interrupt handler: what it does in which order.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Handler {
    looks: bool,
    acknowledges_first: bool,
    acknowledges_last: bool,
    /// How many characters it moves each way, no more than so many and one.
    most: u8,
}

#[derive(Arbitrary, Clone, Debug)]
struct State {
    modem: u8,
    bytes: [u8; 6],
    words: [u16; 4],
    flags: u8,
    rx: Vec<u16>,
    tx: Vec<u8>,
}

impl State {
    /// Mostly one that can be.
    fn state(&self, fifo_depth: FifoDepth) -> Pl011State {
        let [ilpr, fbrd, lcr_h, ifls, dmacr, rsr] = self.bytes;
        let [ibrd, cr, imsc, ris] = self.words;
        let flag = |bit: u32| self.flags >> bit & 1 != 0;
        let bits = |value: u16, mask: u16| if flag(2) { value } else { value & mask };
        Pl011State {
            fifo_depth,
            modem: modem(self.modem),
            ilpr,
            ibrd,
            fbrd: bits(fbrd.into(), 0x3f) as u8,
            lcr_h,
            cr: bits(cr, 0xff87),
            ifls: bits(ifls.into(), 0x3f) as u8,
            imsc: bits(imsc, 0x7ff),
            ris: bits(ris, if self.rx.is_empty() { 0x78f } else { 0x7ff }),
            tx_unseen: flag(0),
            dmacr: bits(dmacr.into(), 7) as u8,
            rsr: bits(rsr.into(), 0xf) as u8,
            overrun: flag(1),
            rx: self.rx.iter().map(|&character| bits(character, 0xfff)).collect(),
            tx: self.tx.clone(),
        }
    }
}

struct Machine {
    config: Pl011Config,
    uart: Pl011<Outside, Screen>,
    line: Outside,
    screen: Screen,
}

impl Machine {
    fn new(config: Pl011Config) -> Self {
        let (line, screen) = (Outside::default(), Screen::default());
        Self {
            config,
            uart: Pl011::new(config, line.clone(), screen.clone()),
            line,
            screen,
        }
    }

    fn get(&self, register: u64) -> u16 {
        let mut value = [0; 2];
        self.uart.read(register, &mut value);
        u16::from_le_bytes(value)
    }

    fn put(&self, register: u64, value: u16) {
        self.uart.write(register, &value.to_le_bytes());
    }

    fn depth(&self, state: &Pl011State) -> usize {
        match (u16::from(state.lcr_h) & FEN != 0, self.config.fifo_depth) {
            (false, _) => 1,
            (true, FifoDepth::Sixteen) => 16,
            (true, FifoDepth::ThirtyTwo) => 32,
        }
    }

    /// Below how many characters the receive FIFO is below its level, and above how many the transmit FIFO is above it.
    fn levels(&self, state: &Pl011State) -> [usize; 2] {
        match self.depth(state) {
            1 => [1, 0],
            depth => {
                [state.ifls >> 3, state.ifls & 7].map(|code| depth / 8 * [1, 2, 4, 6, 7, 7, 7, 7][usize::from(code)])
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let before = self.uart.save();
        self.screen.shown();
        match *step {
            Step::Registers(access) => access.run(&self.uart, 0x50, 4),
            Step::Program {
                fifos,
                loopback,
                flow_control,
                levels,
                imsc,
            } => {
                let on = |is_on, bit| if is_on { bit } else { 0 };
                self.put(LCR_H, on(fifos, FEN));
                self.put(CR, ON | on(loopback, LBE) | on(flow_control, CTSEN));
                self.put(0x34, levels.into());
                self.put(IMSC, imsc);
            }
            Step::Receive(count) => {
                let characters: Vec<u8> = (0..count % 64).collect();
                let room = self.uart.room();
                let taken = self.uart.receive(&characters);
                assert_eq!(taken, room.min(characters.len()));
                // Looped back, what waits to be sent is received as well.
                if before.cr & LBE == 0 {
                    let bytes = |rx: Vec<u16>| rx.iter().map(|character| *character as u8).collect::<Vec<u8>>();
                    let rx = [bytes(before.rx), characters[..taken].to_vec()].concat();
                    assert_eq!(bytes(self.uart.save().rx), rx);
                }
            }
            Step::Frame(kind, character) => {
                let readable = self.uart.receive_frame(frame(kind, character));
                let after = self.uart.save();
                assert_eq!(after.rx.len(), before.rx.len() + usize::from(readable));
                assert_eq!(after.rx[..before.rx.len()], before.rx, "what was there is intact");
            }
            Step::Send(character) => {
                self.put(DR, character.into());
                let after = self.uart.save();
                if before.cr & LBE == 0 {
                    let mut all = before.tx.clone();
                    // What waited may have left first.
                    if all.len() < self.depth(&before) {
                        all.push(character);
                    }
                    assert_eq!(
                        [self.screen.shown(), after.tx].concat(),
                        all,
                        "a character is lost or made up"
                    );
                }
            }
            Step::Handle(handler) => self.handle(handler, &mut || false),
            Step::Modem(lines) => self.uart.set_modem_inputs(modem(lines)),
            Step::Terminal(takes) => self.screen.takes(takes),
            Step::Flush => _ = self.uart.flush(),
            Step::Refuse(refuses) => self.line.refuse(refuses),
            Step::Reset => self.uart.reset(),
            Step::Move => self.move_away(),
            Step::Restore(ref state) => {
                let state = state.state(self.config.fifo_depth);
                if self.uart.restore(&state).is_ok() {
                    let after = self.uart.save();
                    assert_eq!(after.rx, state.rx);
                    if state.cr & LBE == 0 {
                        assert_eq!([self.screen.shown(), after.tx].concat(), state.tx);
                    }
                } else {
                    assert_eq!(self.uart.save(), before, "refused, and changed all the same");
                }
            }
        }
        // Any change sends what waits, and tells a line that refused.
        self.get(FR);
    }

    /// Handles an interrupt. `more` puts in another character to send, if there is one, and says so.
    fn handle(&self, handler: Handler, more: &mut dyn FnMut() -> bool) {
        let interrupts = if handler.looks { self.get(MIS) } else { 0x7ff };
        if handler.acknowledges_first {
            self.put(ICR, interrupts);
        }
        for _ in 0..=handler.most % 40 {
            if self.get(FR) & RXFE == 0 {
                self.get(DR);
            }
            if self.get(FR) & TXFF != 0 || !more() {
                continue;
            }
        }
        if handler.acknowledges_last {
            self.put(ICR, interrupts);
        }
    }

    fn move_away(&mut self) {
        let state = self.uart.save();
        let other = Self::new(self.config);
        other.screen.takes(Takes::Fails);
        other.uart.restore(&state).unwrap();
        if state.cr & LBE == 0 {
            assert_eq!(other.uart.save(), state);
        }
        other.line.refuse(self.line.refuses());
        other.screen.takes(self.screen.how());
        *self = other;
    }

    fn check(&self) {
        let state = self.uart.save();
        let (ris, depth) = (state.ris, self.depth(&state));
        let [rx_level, tx_level] = self.levels(&state);
        assert_eq!(ris & RT != 0, !state.rx.is_empty(), "{state:x?}");
        assert_eq!(ris & RX != 0, state.rx.len() >= rx_level, "{state:x?}");
        assert!(ris & TX == 0 || state.tx.len() <= tx_level, "{state:x?}");
        assert!(!state.tx_unseen || ris & TX != 0, "{state:x?}");
        assert!(state.rx.len() <= depth && state.tx.len() <= depth, "{state:x?}");
        if !self.line.refuses() {
            assert_eq!(self.line.is_up(), ris & state.imsc != 0, "{state:x?}");
        }
        let sends = state.cr & ON == ON && state.cr & (CTSEN | LBE) == 0;
        if sends && matches!(self.screen.how(), Takes::Everything) {
            assert_eq!(state.tx, []);
        }
    }

    /// A driver that opens the UART, however it was left: what waits, what comes and what goes is moved by interrupts.
    fn comes_to_rest(&self, handler: Handler, fifos: bool) {
        let handler = Handler {
            // One that never acknowledges has to mask the transmit interrupt.
            acknowledges_last: handler.acknowledges_last || !handler.acknowledges_first,
            ..handler
        };
        self.line.refuse(false);
        self.screen.takes(Takes::Everything);
        self.put(CR, ON);
        self.put(LCR_H, if fifos { FEN } else { 0 });
        self.put(IMSC, RX | TX | RT);
        self.screen.shown();
        // More goes than comes: no interrupt of the one keeps the other going.
        let (mut waits, mut rest) = (80, 200);
        let mut more = || {
            let is_more = rest > 0;
            if is_more {
                rest -= 1;
                self.put(DR, rest);
            }
            is_more
        };
        more();
        let mut sent = 0;
        for _ in 0..500 {
            waits -= self.uart.receive(&vec![0; waits]);
            if !self.line.is_up() {
                break;
            }
            self.handle(handler, &mut more);
            sent += self.screen.shown().len();
        }
        let state = self.uart.save();
        assert!(!self.line.is_up(), "a storm: {state:x?}");
        assert_eq!(
            (waits, sent, state.rx.len(), state.tx.len()),
            (0, 200, 0, 0),
            "it has fallen asleep"
        );
    }
}

fuzz_target!(|input: (bool, bool, bool, Handler, Vec<Step>)| {
    let (deep, enabled, fifos, handler, steps) = input;
    let fifo_depth = if deep { FifoDepth::ThirtyTwo } else { FifoDepth::Sixteen };
    let mut machine = Machine::new(Pl011Config {
        fifo_depth,
        enabled,
        ..Pl011Config::default()
    });
    for step in &steps {
        machine.step(step);
        machine.check();
    }
    machine.comes_to_rest(handler, fifos);
});
