//! The 16550 UART: each register, each interrupt, the FIFOs, the line, the writer, and its state.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use devisor::{
    bus::BusDevice,
    interrupt::{FnLevelInterrupt, level_from_fn},
    platform::uart16550::{
        Frame, ModemInputs, ModemOutputs, Uart16550, Uart16550Config, Uart16550State, Uart16550StateError,
    },
};
use proptest::prelude::*;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const OUT2: u8 = 1 << 3;
const LOOP: u8 = 1 << 4;
const THRE_TEMT: u8 = 0x60;

/// What a writer took, and what it is to answer next.
type Written = (Vec<u8>, VecDeque<io::Result<usize>>);

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Written>>);

impl Screen {
    fn shown(&self) -> Vec<u8> {
        self.0.lock().unwrap().0.clone()
    }

    fn answer(&self, answer: io::Result<usize>) {
        self.0.lock().unwrap().1.push_back(answer);
    }
}

impl io::Write for Screen {
    fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
        let (shown, answers) = &mut *self.0.lock().unwrap();
        let taken = answers.pop_front().unwrap_or(Ok(characters.len()))?;
        shown.extend(&characters[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Hear = Box<dyn Fn(bool) -> io::Result<()> + Send + Sync>;
type Line = FnLevelInterrupt<Hear>;

struct Machine {
    uart: Uart16550<Line, Screen>,
    screen: Screen,
    heard: Arc<Mutex<Vec<bool>>>,
}

fn machine(config: Uart16550Config) -> Machine {
    let (screen, heard) = (Screen::default(), Arc::<Mutex<Vec<bool>>>::default());
    let log = Arc::clone(&heard);
    let line: Hear = Box::new(move |up| {
        log.lock().unwrap().push(up);
        Ok(())
    });
    let uart = Uart16550::new(config, level_from_fn(line), screen.clone());
    Machine { uart, screen, heard }
}

/// With OUT2 set, so that the line gets through.
fn open() -> Machine {
    let machine = machine(Uart16550Config::default());
    machine.write(MCR, OUT2);
    machine
}

impl Machine {
    fn read(&self, register: u64) -> u8 {
        let mut byte = [0xaa];
        self.uart.read(register, &mut byte);
        byte[0]
    }

    fn write(&self, register: u64, value: u8) {
        self.uart.write(register, &[value]);
    }

    fn is_up(&self) -> bool {
        self.heard.lock().unwrap().last() == Some(&true)
    }
}

#[test]
fn registers_keep_what_they_are_given_and_no_other_bits() {
    let machine = open();
    for (register, written, read) in [
        (IER, 0xff, 0x0f),
        (LCR, 0x7f, 0x7f),
        (MCR, 0xef, 0x0f),
        (SCR, 0x5a, 0x5a),
    ] {
        machine.write(register, written);
        assert_eq!(machine.read(register), read, "register {register}");
    }
    machine.write(LSR, 0xff);
    machine.write(MSR, 0xff);
    assert_eq!((machine.read(LSR), machine.read(MSR)), (THRE_TEMT, 0xb0));
}

#[test]
fn registers_that_are_further_apart_are_accessed_at_their_first_byte_in_any_width() {
    let uart = Uart16550::new(Uart16550Config::default(), level_from_fn(|_| Ok(())), Screen::default());
    let uart = uart.with_register_shift(2);
    assert_eq!(uart.region_size(), 32);
    for len in [1, 2, 4] {
        uart.write(SCR << 2, &[0x50 + len as u8, 0xff, 0xff, 0xff][..len]);
        let mut data = [0xa5; 4];
        uart.read(SCR << 2, &mut data);
        assert_eq!(data, [0x50 + len as u8, 0, 0, 0]);
    }
    let state = uart.save();
    for (offset, len) in [
        ((SCR << 2) + 1, 1),
        (SCR, 1),
        (SCR << 2, 3),
        (SCR << 2, 8),
        (32, 4),
        (u64::MAX, 1),
    ] {
        let mut data = vec![0xa5; len];
        uart.write(offset, &data);
        uart.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes at {offset:#x}");
    }
    assert_eq!(uart.save(), state);
    uart.write(0, b"x");
    assert_eq!(uart.unsent(), 0);
}

#[test]
fn the_divisor_is_behind_dlab_and_keeps_its_halves_apart() {
    let machine = open();
    machine.write(LCR, 0x80);
    machine.write(DATA, 0x34);
    machine.write(IER, 0x12);
    assert_eq!((machine.read(DATA), machine.read(IER)), (0x34, 0x12));
    machine.write(LCR, 0x03);
    assert_eq!(
        (machine.read(DATA), machine.read(IER)),
        (0, 0),
        "nothing was sent to them"
    );
    assert_eq!(machine.screen.shown(), b"");
    assert_eq!(machine.uart.save().divisor, 0x1234);
}

#[test]
fn a_divisor_of_zero_divides_nothing() {
    let machine = open();
    for divisor in [[0, 0], [1, 0], [0xff, 0xff]] {
        machine.write(LCR, 0x80);
        machine.uart.write(DATA, &divisor);
        machine.write(LCR, 0x03);
        machine.write(DATA, b'x');
        assert_eq!(machine.uart.receive(b"y"), 1);
        assert_eq!(machine.read(DATA), b'y');
    }
    assert_eq!(machine.screen.shown(), b"xxx");
}

#[test]
fn what_is_written_leaves_at_once() {
    let machine = open();
    for character in b"hi" {
        machine.write(DATA, *character);
        assert_eq!(machine.read(LSR), THRE_TEMT);
    }
    assert_eq!(machine.screen.shown(), b"hi");
}

#[test]
fn the_transmitter_interrupt_comes_when_enabled_and_when_empty_and_goes_when_read() {
    let machine = open();
    assert!(!machine.is_up());
    machine.write(IER, 0x02);
    assert!(machine.is_up(), "there is nothing to wait for");
    assert_eq!(machine.read(IIR), 0x02);
    assert_eq!(machine.read(IIR), 0x01, "it was told");
    assert!(!machine.is_up());
    machine.write(DATA, b'x');
    assert!(machine.is_up(), "it has left");
    machine.write(IER, 0x00);
    assert!(!machine.is_up());
    machine.write(IER, 0x02);
    assert!(machine.is_up());
}

#[test]
fn reading_iir_takes_away_what_it_shows_and_nothing_else() {
    let machine = open();
    machine.write(IER, 0x0f);
    machine.uart.receive_frame(Frame::ParityError(b'p'));
    machine.uart.set_modem_inputs(ModemInputs::default());
    // Line status first, then the character, the transmitter, the modem; each ends in its own way.
    for _ in 0..2 {
        assert_eq!(machine.read(IIR), 0x06);
    }
    assert_eq!(machine.read(LSR), THRE_TEMT | 0x05, "parity error, data ready");
    for _ in 0..2 {
        assert_eq!(machine.read(IIR), 0x04);
    }
    assert_eq!(machine.read(DATA), b'p');
    assert_eq!(machine.read(IIR), 0x02);
    for _ in 0..2 {
        assert_eq!(machine.read(IIR), 0x00);
    }
    assert!(machine.is_up());
    assert_eq!(machine.read(MSR), 0x0b, "CTS, DSR and DCD have gone");
    assert_eq!(machine.read(IIR), 0x01);
    assert_eq!(*machine.heard.lock().unwrap(), [true, false], "up all the time");
}

#[test]
fn unmasking_a_cause_that_is_pending_raises_the_line_and_masking_it_lowers_it() {
    let machine = open();
    assert_eq!(machine.uart.receive(b"a"), 1);
    assert!(!machine.is_up());
    for _ in 0..2 {
        machine.write(IER, 0x01);
        assert!(machine.is_up());
        machine.write(IER, 0x04);
        assert!(!machine.is_up(), "there is no error");
    }
}

#[test]
fn out2_is_the_gate_of_the_line_if_the_board_has_one() {
    let machine = open();
    machine.write(IER, 0x02);
    for (mcr, up) in [(0, false), (OUT2, true), (OUT2 | LOOP, false), (OUT2, true)] {
        machine.write(MCR, mcr);
        assert_eq!(machine.is_up(), up, "MCR {mcr:#x}");
    }
    let machine = self::machine(Uart16550Config {
        out2_gates_interrupt: false,
        ..Default::default()
    });
    machine.write(IER, 0x02);
    assert!(machine.is_up());
}

#[test]
fn without_fifos_there_is_room_for_one_and_another_one_takes_its_place() {
    let machine = open();
    assert_eq!(machine.uart.room(), 1);
    assert_eq!(machine.uart.receive(b"abc"), 1);
    assert!(!machine.uart.receive_frame(Frame::Data(b'z')));
    assert_eq!(machine.read(LSR), THRE_TEMT | 0x03, "overrun, data ready");
    assert_eq!(machine.read(DATA), b'z');
    assert_eq!((machine.read(LSR), machine.read(IIR)), (THRE_TEMT, 0x01));
}

#[test]
fn the_fifo_interrupts_at_its_trigger_and_times_out_below_it() {
    let machine = open();
    machine.write(IER, 0x01);
    for (trigger, level) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
        machine.write(FCR, trigger << 6 | 0x07);
        assert_eq!(machine.read(IIR), 0xc1);
        for count in 1..=16 {
            assert!(machine.uart.receive_frame(Frame::Data(count)));
            let expected = if count < level { 0xcc } else { 0xc4 };
            assert_eq!(machine.read(IIR), expected, "{count} at trigger {level}");
        }
        assert_eq!(machine.uart.room(), 0);
        assert!(
            !machine.uart.receive_frame(Frame::Data(0xff)),
            "the one that is too many is lost"
        );
        assert_eq!(machine.read(LSR) & 0x02, 0x02);
        for count in 1..=16 {
            assert_eq!(machine.read(DATA), count);
        }
        assert!(!machine.is_up());
    }
}

/// How a handler reads IIR.
#[derive(Clone, Copy, Debug)]
enum Reads {
    /// To acknowledge, before it looks at LSR.
    Once,
    /// Until it says that nothing is pending.
    UntilNone,
    Never,
}

#[test]
fn input_and_output_go_by_interrupts_alone_however_the_handler_reads_iir() {
    let input: Vec<u8> = (0..=255).cycle().take(300).collect();
    for (output, fcr, most) in [
        (100, 0, 1),
        (500, 0, 3),
        (100, 0x01, 3),
        (500, 0x01, 1),
        (500, 0xc1, 16),
    ] {
        let output: Vec<u8> = (0..=255).cycle().take(output).collect();
        for reads in [Reads::Once, Reads::UntilNone, Reads::Never] {
            let machine = open();
            machine.write(FCR, fcr);
            machine.write(IER, 0x03);
            let (mut waits, mut rest) = (&input[..], &output[..]);
            let mut taken = Vec::new();
            let mut arrive = || waits = &waits[machine.uart.receive(waits)..];
            let mut serve = || {
                for _ in 0..most {
                    if machine.read(LSR) & 0x01 != 0 {
                        taken.push(machine.read(DATA));
                    }
                    match rest {
                        [] => machine.write(IER, 0x01),
                        [character, ..] => machine.write(DATA, *character),
                    }
                    rest = rest.get(1..).unwrap_or(&[]);
                }
                arrive();
            };
            let mut interrupts = 0;
            serve();
            while machine.is_up() {
                interrupts += 1;
                assert!(interrupts <= 1000, "{reads:?}: a storm");
                match reads {
                    Reads::Once => {
                        machine.read(IIR);
                        serve();
                    }
                    Reads::UntilNone => {
                        while machine.read(IIR) & 0x01 == 0 {
                            serve();
                        }
                    }
                    Reads::Never => serve(),
                }
            }
            assert_eq!(taken, input, "{reads:?}");
            assert_eq!(machine.screen.shown(), output, "{reads:?}");
        }
    }
}

#[test]
fn an_error_shows_when_its_character_is_at_the_top() {
    let machine = open();
    machine.write(FCR, 0x01);
    machine.uart.receive(b"a");
    for (frame, _) in [(Frame::FramingError(b'f'), 0x08), (Frame::Break, 0x10)] {
        machine.uart.receive_frame(frame);
    }
    assert_eq!(machine.read(LSR), THRE_TEMT | 0x81, "somewhere in the FIFO");
    machine.write(IER, 0x04);
    assert!(!machine.is_up());
    assert_eq!(machine.read(DATA), b'a');
    assert!(machine.is_up());
    assert_eq!(machine.read(LSR), THRE_TEMT | 0x89);
    assert!(!machine.is_up());
    assert_eq!(machine.read(DATA), b'f');
    assert_eq!(machine.read(LSR) & 0x1e, 0x10);
    assert_eq!((machine.read(DATA), machine.read(LSR)), (0, THRE_TEMT));
}

#[test]
fn fifos_are_emptied_by_their_bits_and_by_switching_them() {
    let machine = open();
    machine.write(FCR, 0x01);
    machine.uart.receive(b"abc");
    machine.write(FCR, 0x02);
    assert_eq!(machine.read(IIR) & 0xc0, 0, "off: the other bits do not count");
    assert_eq!(machine.read(LSR), THRE_TEMT);
    machine.write(FCR, 0x01);
    machine.uart.receive(b"abc");
    machine.write(FCR, 0x05);
    assert_eq!(machine.read(LSR) & 1, 1, "the other FIFO");
    machine.write(FCR, 0x03);
    assert_eq!(machine.read(LSR) & 1, 0);
}

#[test]
fn switching_the_fifos_is_a_transmitter_interrupt_at_once() {
    let machine = open();
    machine.write(IER, 0x02);
    machine.read(IIR);
    for (fcr, up) in [(0x01, true), (0x41, false), (0x00, true), (0x00, false)] {
        machine.write(FCR, fcr);
        assert_eq!(machine.is_up(), up, "FCR {fcr:#x}");
        assert_eq!(machine.read(IIR) & 0x3f, if up { 0x02 } else { 0x01 });
    }
}

#[test]
fn looped_back_what_is_sent_is_received_and_the_modem_lines_are_its_own() {
    let machine = open();
    machine.write(MCR, LOOP | 0x0a);
    assert_eq!(machine.read(MSR) & 0xf0, 0x90, "RTS is CTS, OUT2 is DCD");
    machine.write(DATA, b'l');
    assert_eq!(machine.screen.shown(), b"");
    assert_eq!((machine.uart.room(), machine.uart.receive(b"x")), (0, 0));
    assert!(!machine.uart.receive_frame(Frame::Data(b'x')));
    assert_eq!(machine.read(DATA), b'l');
    machine.write(LCR, 0x43);
    assert_eq!(machine.read(LSR) & 0x11, 0x11, "a break");
    assert_eq!(
        machine.uart.modem_outputs(),
        ModemOutputs::default(),
        "the pins are off"
    );
    // The ring indicator counts when it ends.
    machine.read(MSR);
    machine.write(MCR, LOOP | 0x04);
    assert_eq!(machine.read(MSR), 0x49);
    machine.write(MCR, LOOP);
    assert_eq!(machine.read(MSR), 0x04);
}

#[test]
fn looped_back_the_transmitter_is_not_empty_while_something_waits_in_front_of_the_writer() {
    let machine = open();
    machine.write(FCR, 0x01);
    for _ in 0..4 {
        machine.screen.answer(Err(io::ErrorKind::WouldBlock.into()));
    }
    machine.write(DATA, b'w');
    machine.write(IER, 0x02);
    machine.write(MCR, LOOP);
    machine.write(DATA, b'l');
    assert_eq!(machine.read(IIR), 0xc1, "there is no room for a FIFO's worth");
    assert_eq!(machine.read(LSR), THRE_TEMT | 1, "now it has left");
    assert_eq!((machine.screen.shown(), machine.read(IIR)), (b"w".to_vec(), 0xc2));
}

#[test]
fn modem_outputs_are_the_guests() {
    let machine = open();
    machine.write(MCR, 0x07);
    machine.write(LCR, 0x40);
    let outputs = ModemOutputs {
        dtr: true,
        rts: true,
        out1: true,
        out2: false,
        sends_break: true,
    };
    assert_eq!(machine.uart.modem_outputs(), outputs);
}

#[test]
fn a_writer_that_refuses_loses_nothing_and_a_guest_that_polls_gets_on() {
    let machine = open();
    machine.write(FCR, 0x01);
    machine.screen.answer(Err(io::ErrorKind::WouldBlock.into()));
    machine.write(DATA, b'a');
    assert_eq!(machine.screen.shown(), b"");
    assert_eq!(machine.read(LSR), 0, "it has not left, and is tried again");
    assert_eq!(machine.read(LSR), THRE_TEMT);
    assert_eq!(machine.screen.shown(), b"a");
    assert_eq!(machine.uart.output_failures(), 0, "to block is no failure");
}

#[test]
fn what_waits_goes_with_the_next_write_or_flush() {
    let machine = open();
    machine.write(FCR, 0x01);
    for _ in 0..2 {
        machine.screen.answer(Err(io::Error::other("the wire is cut")));
    }
    machine.write(DATA, b'a');
    assert_eq!((machine.uart.unsent(), machine.uart.output_failures()), (1, 1));
    machine.write(DATA, b'b');
    assert_eq!((machine.uart.unsent(), machine.uart.output_failures()), (2, 2));
    machine.screen.answer(Ok(1));
    machine.screen.answer(Ok(0));
    assert!(machine.uart.flush().is_err(), "it took one, and then none");
    assert_eq!(machine.uart.unsent(), 1);
    machine.write(SCR, 0);
    assert_eq!(machine.screen.shown(), b"ab");
    assert_eq!(machine.uart.unsent(), 0);
}

#[test]
fn the_transmitter_interrupts_once_what_was_refused_has_left() {
    let machine = open();
    machine.write(IER, 0x02);
    assert_eq!(machine.read(IIR), 0x02);
    machine.screen.answer(Err(io::ErrorKind::WouldBlock.into()));
    machine.write(DATA, b'a');
    assert!(!machine.is_up());
    machine.uart.flush().unwrap();
    assert!(machine.is_up());
    assert_eq!((machine.read(IIR), machine.screen.shown()), (0x02, b"a".to_vec()));
}

#[test]
fn a_guest_that_does_not_wait_keeps_the_first_and_loses_the_last() {
    let machine = open();
    machine.write(FCR, 0x01);
    for _ in 0..32 {
        machine.screen.answer(Err(io::ErrorKind::WouldBlock.into()));
    }
    for character in 0..32 {
        machine.write(DATA, character);
    }
    assert_eq!(machine.uart.unsent(), 16);
    machine.uart.flush().unwrap();
    assert_eq!(machine.screen.shown(), (0..15).chain([31]).collect::<Vec<_>>());
}

#[test]
fn the_hook_says_when_there_is_room_again() {
    let called = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&called);
    let machine = open();
    let uart = machine.uart.with_room_hook(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(uart.receive(b"ab"), 1);
    assert_eq!(called.load(Ordering::SeqCst), 0);
    uart.read(DATA, &mut [0]);
    assert_eq!(called.load(Ordering::SeqCst), 1);
    uart.read(DATA, &mut [0]);
    assert_eq!(called.load(Ordering::SeqCst), 1, "nobody was turned away since");
}

#[test]
fn wide_accesses_are_bytes_in_turn_and_end_with_the_last_register() {
    let machine = open();
    machine.uart.write(SCR, &[1, 2, 3, 4]);
    let mut data = [0xaa; 4];
    machine.uart.read(MSR, &mut data);
    assert_eq!(data, [0xb0, 1, 0, 0]);
    for offset in [8, 100, u64::MAX] {
        machine.uart.write(offset, &[0xff; 16]);
        let mut data = [0xaa; 16];
        machine.uart.read(offset, &mut data);
        assert_eq!(data, [0; 16]);
    }
}

#[test]
fn a_reset_stops_it_and_keeps_divisor_scratch_and_peer() {
    let machine = open();
    machine.write(SCR, 0x77);
    machine.write(FCR, 0xc1);
    machine.write(IER, 0x0f);
    machine.uart.receive(b"abc");
    machine.uart.set_modem_inputs(ModemInputs::default());
    machine.uart.reset();
    assert!(!machine.is_up());
    let state = machine.uart.save();
    assert_eq!((state.scr, state.ier, state.fcr, state.mcr), (0x77, 0, 0, 0));
    assert_eq!((state.modem, state.rx.len()), (ModemInputs::default(), 0));
}

#[test]
fn a_saved_state_goes_on_in_another_and_a_broken_one_is_refused() {
    let machine = open();
    machine.write(FCR, 0x81);
    machine.write(IER, 0x05);
    machine.uart.receive(b"ab");
    machine.uart.receive_frame(Frame::Break);
    for _ in 0..2 {
        machine.screen.answer(Err(io::ErrorKind::WouldBlock.into()));
    }
    machine.write(DATA, b't');
    let state = machine.uart.save();
    assert_eq!((state.tx.len(), state.rx.len()), (1, 3));

    let other = self::machine(Uart16550Config::default());
    other.uart.restore(&state).unwrap();
    assert!(other.is_up(), "derived again");
    assert_eq!(other.screen.shown(), b"t");
    assert_eq!(other.read(DATA), b'a');

    let refused = |break_it: &dyn Fn(&mut Uart16550State)| {
        let mut broken = state.clone();
        break_it(&mut broken);
        let before = other.uart.save();
        let error = other.uart.restore(&broken).unwrap_err();
        assert_eq!(other.uart.save(), before, "{error}");
        error
    };
    let bits = |register| move |error| matches!(error, Uart16550StateError::Bits { register: r, .. } if r == register);
    assert!(bits("IER")(refused(&|state| state.ier = 0x10)));
    assert!(bits("FCR")(refused(&|state| state.fcr = 0x80)));
    assert!(bits("MCR")(refused(&|state| state.mcr = 0x20)));
    assert!(bits("LSR")(refused(&|state| state.errors = 0x01)));
    assert!(bits("MSR")(refused(&|state| state.deltas = 0x10)));
    let character = "the status of a character";
    assert!(bits(character)(refused(&|state| state.rx[1].1 = 0x02)));
    let first = "the status of the first character";
    assert!(bits(first)(refused(&|state| state.rx[0].1 = 0x08)), "LSR has it");
    assert!(matches!(
        refused(&|state| state.transmitter_empty = true),
        Uart16550StateError::TransmitterEmpty { len: 1 }
    ));
    refused(&|state| state.rx = vec![(0, 0); 17]);
    refused(&|state| state.tx = vec![0; 17]);
}

#[test]
fn whoever_brings_input_looks_again_after_a_restore() {
    let called = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&called);
    let uart = open().uart.with_room_hook(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    uart.restore(&uart.save()).unwrap();
    assert_eq!(
        called.load(Ordering::SeqCst),
        1,
        "it may have waited since before the save"
    );
}

/// Anything that a guest and the world can do.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Receive(Vec<u8>),
    Frame(u8),
    Modem(u8),
    Refuse(usize),
    Flush,
    Reset,
    SaveAndRestore,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = || prop_oneof![12 => 0u64..8, 1 => any::<u64>()];
    let data = || {
        prop_oneof![
            4 => any::<u8>().prop_map(|byte| vec![byte]),
            1 => prop::collection::vec(any::<u8>(), 0..17),
        ]
    };
    prop_oneof![
        6 => (offset(), 0usize..17).prop_map(|(offset, len)| Step::Read(offset, len)),
        8 => (offset(), data()).prop_map(|(offset, data)| Step::Write(offset, data)),
        // Often open or looped back, with FIFOs and without DLAB, which random values rarely are.
        3 => prop::sample::select(vec![OUT2, LOOP]).prop_map(|mcr| Step::Write(IER, vec![0x0f, 0x81, 0x03, mcr])),
        3 => any::<u8>().prop_map(|character| Step::Write(DATA, vec![character])),
        3 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Step::Receive),
        2 => (0u8..4).prop_map(Step::Frame),
        1 => (0u8..16).prop_map(Step::Modem),
        2 => (0usize..20).prop_map(Step::Refuse),
        1 => Just(Step::Flush),
        1 => Just(Step::SaveAndRestore),
        1 => Just(Step::Reset),
    ]
}

/// Table IV of the data sheet, and the gate of a PC's board.
fn line(state: &Uart16550State) -> bool {
    let causes = [
        !state.rx.is_empty(),
        state.transmitter_empty,
        state.errors != 0,
        state.deltas != 0,
    ];
    let pending = causes
        .iter()
        .enumerate()
        .any(|(bit, cause)| *cause && state.ier >> bit & 1 != 0);
    pending && state.mcr & (OUT2 | LOOP) == OUT2
}

proptest! {
    #[test]
    fn no_access_panics_the_line_is_what_the_registers_say_and_every_state_is_one_that_can_be_restored(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let machine = open();
        let Machine { uart, screen, heard } = &machine;
        for step in steps {
            match step {
                Step::Read(offset, len) => uart.read(offset, &mut vec![0; len]),
                Step::Write(offset, data) => uart.write(offset, &data),
                Step::Receive(characters) => {
                    let room = uart.room();
                    prop_assert_eq!(uart.receive(&characters), room.min(characters.len()));
                }
                Step::Frame(kind) => {
                    let frames = [Frame::Data(1), Frame::FramingError(2), Frame::ParityError(3), Frame::Break];
                    uart.receive_frame(frames[usize::from(kind)]);
                }
                Step::Modem(lines) => {
                    let line = |bit: u8| lines & 1 << bit != 0;
                    uart.set_modem_inputs(ModemInputs { cts: line(0), dsr: line(1), dcd: line(2), ri: line(3) });
                }
                Step::Refuse(times) => {
                    for _ in 0..times {
                        screen.answer(Err(io::ErrorKind::WouldBlock.into()));
                    }
                }
                Step::Flush => _ = uart.flush(),
                Step::Reset => uart.reset(),
                Step::SaveAndRestore => {
                    let state = uart.save();
                    prop_assert_eq!(uart.restore(&state), Ok(()), "every state that is reached is accepted");
                    let unsent = uart.unsent();
                    prop_assert!(unsent == 0 || unsent == state.tx.len());
                    if unsent == state.tx.len() {
                        prop_assert_eq!(uart.save(), state);
                    }
                }
            }
            let state = uart.save();
            prop_assert_eq!(machine.is_up(), line(&state), "{:?}", state);
            prop_assert!(!state.transmitter_empty || state.tx.is_empty());
            let depth = if state.fcr & 1 != 0 { 16 } else { 1 };
            prop_assert!(state.rx.len() <= depth && state.tx.len() <= depth);
        }
        let heard = heard.lock().unwrap();
        prop_assert!(heard.windows(2).all(|pair| pair[0] != pair[1]), "transitions only: {:?}", heard);
    }
}
