//! The PL061, driven through its registers as a guest would and by pins that a host drives.

use std::sync::{Arc, Mutex};

use devisor::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, level_from_fn},
    platform::pl061::{PINS, Pl061, Pl061State},
};

const DIR: u64 = 0x400;
const IS: u64 = 0x404;
const IBE: u64 = 0x408;
const IEV: u64 = 0x40c;
const IE: u64 = 0x410;
const RIS: u64 = 0x414;
const MIS: u64 = 0x418;
const IC: u64 = 0x41c;
const AFSEL: u64 = 0x420;

/// The address of GPIODATA for these pins.
fn data(pins: u8) -> u64 {
    u64::from(pins) << 2
}

type Line = Box<dyn LevelInterrupt>;

/// A board with the pins on it, of which it writes down what they do: `PINS` is the interrupt.
struct Board {
    gpio: Pl061<Line>,
    heard: Arc<Mutex<Vec<(usize, bool)>>>,
}

impl Board {
    fn new() -> Self {
        let heard: Arc<Mutex<Vec<(usize, bool)>>> = Arc::default();
        let line = |number: usize| {
            let log = Arc::clone(&heard);
            Box::new(level_from_fn(move |up| {
                log.lock().unwrap().push((number, up));
                Ok(())
            })) as Line
        };
        let gpio = Pl061::new(line(PINS), std::array::from_fn(line));
        Self { gpio, heard }
    }

    fn heard(&self) -> Vec<(usize, bool)> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    fn get(&self, register: u64) -> u32 {
        let mut data = [0xa5; 4];
        self.gpio.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, register: u64, value: u32) {
        self.gpio.write(register, &value.to_le_bytes());
    }
}

#[test]
fn all_registers_are_zero_after_a_reset_but_the_identification() {
    let board = Board::new();
    for register in [data(0xff), DIR, IS, IBE, IEV, IE, RIS, MIS, IC, AFSEL, 0x424] {
        assert_eq!(board.get(register), 0);
    }
    let id: Vec<u32> = (0..8).map(|index| board.get(0xfe0 + 4 * index)).collect();
    assert_eq!(id, [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn registers_have_eight_bits_and_read_back() {
    let board = Board::new();
    for register in [DIR, IS, IBE, IEV, IE, AFSEL] {
        board.put(register, 0xffff_ff5a);
        assert_eq!(board.get(register), 0x5a);
    }
}

#[test]
fn the_address_says_which_pins_an_access_is_for() {
    let board = Board::new();
    board.put(DIR, 0xf0);
    board.put(data(0xff), 0xff);
    assert_eq!(board.get(data(0xff)), 0xf0, "inputs are not written");
    assert_eq!(board.gpio.outputs(), 0xf0);
    board.put(data(0x30), 0x10);
    assert_eq!(board.get(data(0xff)), 0xd0);
    assert_eq!(board.get(data(0x50)), 0x50);
    board.gpio.set_inputs(0x11, true);
    assert_eq!(board.get(data(0xff)), 0xd1, "pin 4 is an output");
    assert_eq!(board.get(data(0x00)), 0);
}

#[test]
fn outputs_are_told_what_the_guest_drives() {
    let board = Board::new();
    board.put(DIR, 1 << 2);
    board.put(data(1 << 2), 0xff);
    board.put(data(1 << 2), 0xff);
    assert_eq!(board.heard(), [(2, true)]);
    board.put(DIR, 0);
    assert_eq!(board.heard(), [(2, false)], "it drives no more");
    board.put(DIR, 1 << 2);
    assert_eq!(board.heard(), [(2, true)]);
}

#[test]
fn an_edge_is_kept_until_it_is_cleared() {
    // Rising, falling, both.
    for (iev, ibe, rise, fall) in [(1, 0, 1, 0), (0, 0, 0, 1), (0, 1, 1, 1), (1, 1, 1, 1)] {
        let board = Board::new();
        board.put(IEV, iev);
        board.put(IBE, ibe);
        for (up, expected) in [(true, rise), (false, fall)] {
            board.gpio.set_inputs(1, up);
            assert_eq!((board.get(RIS), board.get(MIS)), (expected, 0));
            board.put(IE, 1);
            assert_eq!(board.get(MIS), expected);
            board.put(IE, 0);
            board.put(IC, 0xfe);
            assert_eq!(board.get(RIS), expected);
            board.put(IC, 1);
            assert_eq!(board.get(RIS), 0);
            let events: &[(usize, bool)] = if expected == 1 {
                &[(PINS, true), (PINS, false)]
            } else {
                &[]
            };
            assert_eq!(board.heard(), events);
        }
    }
}

#[test]
fn a_level_interrupts_while_it_is_there_and_cannot_be_cleared() {
    let board = Board::new();
    board.put(IS, 0b11);
    board.put(IEV, 0b01);
    board.put(IE, 0b01);
    assert_eq!(board.get(RIS), 0b10, "pin 1 is down, as wanted");
    board.gpio.set_inputs(0b11, true);
    assert_eq!((board.get(RIS), board.get(MIS)), (0b01, 0b01));
    board.put(IC, 0xff);
    assert_eq!(board.heard(), [(PINS, true)]);
    board.gpio.set_inputs(0b01, false);
    assert_eq!(board.heard(), [(PINS, false)]);
}

#[test]
fn a_level_leaves_no_edge() {
    let board = Board::new();
    board.put(IS, 1);
    board.put(IEV, 1);
    board.gpio.set_inputs(1, true);
    board.gpio.set_inputs(1, false);
    board.put(IS, 0);
    assert_eq!(board.get(RIS), 0);
}

#[test]
fn an_output_sees_no_edges_of_the_outside() {
    let board = Board::new();
    board.put(DIR, 1);
    board.put(IBE, 1);
    board.gpio.set_inputs(1, true);
    assert_eq!(board.get(RIS), 0);
}

#[test]
fn a_restored_device_is_as_the_saved_one() {
    let saved = Board::new();
    saved.put(DIR, 0x0f);
    saved.put(data(0xff), 0x05);
    saved.put(IBE, 0x30);
    saved.put(IEV, 0x40);
    saved.put(IS, 0x40);
    saved.put(IE, 0x10);
    saved.put(AFSEL, 0x80);
    saved.gpio.set_inputs(0x10, true);
    let state = saved.gpio.save();
    let expected = Pl061State {
        inputs: 0x10,
        data: 0x05,
        dir: 0x0f,
        is: 0x40,
        ibe: 0x30,
        iev: 0x40,
        ie: 0x10,
        afsel: 0x80,
        edges: 0x10,
    };
    assert_eq!(state, expected);
    let restored = Board::new();
    restored.gpio.restore(&state);
    assert_eq!(restored.gpio.save(), state);
    assert_eq!(restored.heard(), [(0, true), (2, true), (PINS, true)]);
    restored.gpio.set_inputs(0x10, true);
    restored.put(IC, 0xff);
    assert_eq!(restored.get(RIS), 0, "no edge was made up");
    restored.gpio.reset();
    assert_eq!((restored.get(DIR), restored.get(data(0xff))), (0, 0x10));
}
