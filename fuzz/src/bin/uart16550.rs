//! The 16550: no character is lost or made up, its line is what table IV says, and a driver that serves its interrupts gets
//! everything in and out.
#![no_main]

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    platform::uart16550::{Uart16550, Uart16550Config, Uart16550State},
};
use devisor_fuzz::{Access, Outside, Screen, Takes, frame, modem};
use libfuzzer_sys::fuzz_target;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const DLAB: u8 = 1 << 7;
const OUT2: u8 = 1 << 3;
const LOOP: u8 = 1 << 4;
const DR: u8 = 1 << 0;
const THRE: u8 = 1 << 5;
const NONE: u8 = 1 << 0;

#[derive(Arbitrary, Debug)]
enum Step {
    Registers(Access),
    /// As a driver sets it up.
    Program {
        fcr: u8,
        ier: u8,
        loopback: bool,
    },
    Receive(u8),
    Frame(u8, u8),
    Send(u8),
    Identify,
    Modem(u8),
    Terminal(Takes),
    Flush,
    Refuse(bool),
    Reset,
    Move,
    Restore(State),
}

#[derive(Arbitrary, Clone, Debug)]
struct State {
    modem: u8,
    divisor: u16,
    bytes: [u8; 7],
    transmitter_empty: bool,
    strange: bool,
    rx: Vec<(u8, u8)>,
    tx: Vec<u8>,
}

impl State {
    /// Mostly one that can be.
    fn state(&self) -> Uart16550State {
        let [ier, fcr, lcr, mcr, scr, errors, deltas] = self.bytes;
        let bits = |value: u8, mask: u8| if self.strange { value } else { value & mask };
        Uart16550State {
            modem: modem(self.modem),
            divisor: self.divisor,
            ier: bits(ier, 0x0f),
            fcr: bits(fcr, if fcr & 1 != 0 { 0xc9 } else { 0 }),
            lcr,
            mcr: bits(mcr, 0x1f),
            scr,
            errors: bits(errors, 0x1e),
            deltas: bits(deltas, 0x0f),
            transmitter_empty: self.transmitter_empty,
            rx: (0..)
                .zip(&self.rx)
                .map(|(index, (character, errors))| (*character, bits(*errors, if index == 0 { 0 } else { 0x1c })))
                .collect(),
            tx: self.tx.clone(),
        }
    }
}

fn depth(state: &Uart16550State) -> usize {
    if state.fcr & 1 != 0 { 16 } else { 1 }
}

/// The most urgent enabled cause, as IIR shows it: table IV of the data sheet.
fn cause(state: &Uart16550State) -> u8 {
    let enabled = |bit: u32| state.ier >> bit & 1 != 0;
    let trigger = match state.fcr >> 6 {
        _ if depth(state) == 1 => 1,
        code => [1, 4, 8, 14][usize::from(code)],
    };
    [
        (enabled(2) && state.errors != 0, 0x06),
        (enabled(0) && state.rx.len() >= trigger, 0x04),
        (enabled(0) && !state.rx.is_empty(), 0x0c),
        (enabled(1) && state.transmitter_empty, 0x02),
        (enabled(3) && state.deltas != 0, 0x00),
    ]
    .into_iter()
    .find_map(|(pending, cause)| pending.then_some(cause))
    .unwrap_or(NONE)
}

struct Machine {
    config: Uart16550Config,
    uart: Uart16550<Outside, Screen>,
    line: Outside,
    screen: Screen,
}

impl Machine {
    fn new(config: Uart16550Config) -> Self {
        let (line, screen) = (Outside::default(), Screen::default());
        Self {
            config,
            uart: Uart16550::new(config, line.clone(), screen.clone()),
            line,
            screen,
        }
    }

    fn get(&self, register: u64) -> u8 {
        let mut value = [0];
        self.uart.read(register, &mut value);
        value[0]
    }

    fn put(&self, register: u64, value: u8) {
        self.uart.write(register, &[value]);
    }

    fn step(&mut self, step: &Step) {
        let before = self.uart.save();
        let loops = before.mcr & LOOP != 0;
        self.screen.shown();
        match *step {
            Step::Registers(access) => access.run(&self.uart, 8, 1),
            Step::Program { fcr, ier, loopback } => {
                self.put(LCR, 3);
                self.put(FCR, fcr);
                self.put(IER, ier);
                self.put(MCR, OUT2 | if loopback { LOOP } else { 0 });
            }
            Step::Receive(count) => {
                let characters: Vec<u8> = (0..count % 32).collect();
                let room = self.uart.room();
                let taken = self.uart.receive(&characters);
                assert_eq!(taken, room.min(characters.len()));
                let bytes = |rx: Vec<(u8, u8)>| rx.iter().map(|(character, _)| *character).collect::<Vec<u8>>();
                let rx = [bytes(before.rx), characters[..taken].to_vec()].concat();
                assert_eq!(bytes(self.uart.save().rx), rx);
            }
            Step::Frame(kind, character) => {
                let arrived = self.uart.receive_frame(frame(kind, character));
                let after = self.uart.save();
                if arrived {
                    assert_eq!(after.rx.len(), before.rx.len() + 1);
                } else if !loops {
                    assert_ne!(after.errors & 0x02, 0, "lost, and no overrun");
                }
            }
            Step::Send(character) => {
                self.put(DATA, character);
                let after = self.uart.save();
                if !loops && before.lcr & DLAB == 0 {
                    let mut all = before.tx.clone();
                    match all.last_mut() {
                        Some(last) if before.tx.len() == depth(&before) => *last = character,
                        _ => all.push(character),
                    }
                    assert_eq!(
                        [self.screen.shown(), after.tx].concat(),
                        all,
                        "a character is lost or made up"
                    );
                }
            }
            Step::Identify => {
                let fifos = if before.fcr & 1 != 0 { 0xc0 } else { 0 };
                let shown = self.get(IIR);
                assert_eq!(shown, cause(&before) | fifos, "{before:x?}");
                let after = self.uart.save();
                if shown & 0x0f != 0x02 && before.tx.is_empty() {
                    assert_eq!(after, before, "it has taken away what it does not show");
                }
            }
            Step::Modem(lines) => self.uart.set_modem_inputs(modem(lines)),
            Step::Terminal(takes) => self.screen.takes(takes),
            Step::Flush => _ = self.uart.flush(),
            Step::Refuse(refuses) => self.line.refuse(refuses),
            Step::Reset => self.uart.reset(),
            Step::Move => self.move_away(),
            Step::Restore(ref state) => {
                let state = state.state();
                if self.uart.restore(&state).is_ok() {
                    let after = self.uart.save();
                    assert_eq!(after.rx, state.rx);
                    assert_eq!([self.screen.shown(), after.tx].concat(), state.tx);
                } else {
                    assert_eq!(self.uart.save(), before, "refused, and changed all the same");
                }
            }
        }
        // Any change sends what waits, and tells a line that refused.
        self.get(SCR);
    }

    fn move_away(&mut self) {
        let state = self.uart.save();
        let other = Self::new(self.config);
        other.screen.takes(Takes::Fails);
        other.uart.restore(&state).unwrap();
        assert_eq!(other.uart.save(), state);
        other.line.refuse(self.line.refuses());
        other.screen.takes(self.screen.how());
        *self = other;
    }

    fn check(&self) {
        let state = self.uart.save();
        assert!(!state.transmitter_empty || state.tx.is_empty(), "{state:x?}");
        assert!(
            state.rx.len() <= depth(&state) && state.tx.len() <= depth(&state),
            "{state:x?}"
        );
        assert!(
            state.rx.first().is_none_or(|(_, errors)| *errors == 0),
            "its errors are LSR's"
        );
        if !self.line.refuses() {
            let open = !self.config.out2_gates_interrupt || state.mcr & (OUT2 | LOOP) == OUT2;
            assert_eq!(self.line.is_up(), open && cause(&state) != NONE, "{state:x?}");
        }
        if matches!(self.screen.how(), Takes::Everything) {
            assert_eq!(state.tx, []);
        }
    }

    /// A driver that opens the UART, however it was left, and serves interrupts until IIR shows none.
    fn comes_to_rest(&self, fcr: u8, most: u8) {
        self.line.refuse(false);
        self.screen.takes(Takes::Everything);
        self.put(LCR, 3);
        self.put(FCR, fcr);
        self.put(MCR, OUT2);
        // To enable the transmitter's interrupt is to be told, if it was not enabled.
        self.put(IER, 0);
        self.put(IER, 0x0f);
        self.screen.shown();
        // More goes than comes: no interrupt of the one keeps the other going.
        let (mut waits, mut rest) = (80, 200);
        for _ in 0..400 {
            waits -= self.uart.receive(&vec![0; waits]);
            if !self.line.is_up() {
                break;
            }
            match self.get(IIR) & 0x0f {
                0x06 => _ = self.get(LSR),
                0x04 | 0x0c => {
                    for _ in 0..=most % 20 {
                        if self.get(LSR) & DR != 0 {
                            self.get(DATA);
                        }
                    }
                }
                0x02 => {
                    for _ in 0..=most % 20 {
                        if rest > 0 && self.get(LSR) & THRE != 0 {
                            rest -= 1;
                            self.put(DATA, rest);
                        }
                    }
                }
                0x00 => _ = self.get(MSR),
                other => panic!("the line is up, and IIR shows {other:#x}"),
            }
        }
        let state = self.uart.save();
        assert!(!self.line.is_up(), "a storm: {state:x?}");
        assert_eq!(
            (waits, rest, state.rx.len(), self.screen.shown().len()),
            (0, 0, 0, 200),
            "it has fallen asleep"
        );
    }
}

fuzz_target!(|input: (bool, u8, u8, Vec<Step>)| {
    let (out2_gates_interrupt, fcr, most, steps) = input;
    let mut machine = Machine::new(Uart16550Config {
        out2_gates_interrupt,
        ..Uart16550Config::default()
    });
    for step in &steps {
        machine.step(step);
        machine.check();
    }
    machine.comes_to_rest(fcr, most);
});
