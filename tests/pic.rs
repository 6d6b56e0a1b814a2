//! The 8259 pair by its data sheet (8259A, order number 231468): what a guest, a device and an embedder can see of it.
#![cfg(feature = "irqchip")]

use devisor::{
    backends::irqchip::{
        Vector,
        pic::{ChipPorts, InitStep, Irq, LevelLine, Pic, PicError, PicState, PicStateError},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt, level_from_fn},
};
use proptest::prelude::*;
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

const AEOI: u8 = 1 << 1;
const SFNM: u8 = 1 << 4;
const EOI: u8 = 0x20;
const SPECIFIC_EOI: u8 = 0x60;
const ROTATE_ON_EOI: u8 = 0xa0;
const ROTATE_ON_SPECIFIC_EOI: u8 = 0xe0;
const SET_PRIORITY: u8 = 0xc0;
const ROTATE_IN_AEOI: u8 = 0x80;
const READ_IRR: u8 = 0x0a;
const READ_ISR: u8 = 0x0b;
const POLL: u8 = 0x0c;
const SPECIAL_MASK: u8 = 0x68;
const NO_SPECIAL_MASK: u8 = 0x48;

struct Guest {
    pic: Pic,
    master: ChipPorts,
    slave: ChipPorts,
    /// What INTR was told.
    heard: Arc<Mutex<Vec<bool>>>,
}

fn read(ports: &impl BusDevice, port: u64) -> u8 {
    let mut data = [0];
    ports.read(port, &mut data);
    data[0]
}

fn initialize(ports: &impl BusDevice, base: u8, icw4: u8) {
    ports.write(0, &[0x11]);
    for word in [base, 4, 1 | icw4] {
        ports.write(1, &[word]);
    }
}

/// A pair that is not initialized.
fn fresh() -> Guest {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let pic = Pic::new(level_from_fn(move |up| {
        log.lock().unwrap().push(up);
        Ok(())
    }));
    let (master, slave) = (pic.master(), pic.slave());
    Guest {
        pic,
        master,
        slave,
        heard,
    }
}

/// One with vectors 0x20 to 0x2f, and ICW4 as given.
fn with(icw4: u8) -> Guest {
    let guest = fresh();
    initialize(&guest.master, 0x20, icw4);
    initialize(&guest.slave, 0x28, icw4);
    guest
}

fn new() -> Guest {
    with(0)
}

impl Guest {
    fn line(&self, irq: u8) -> LevelLine {
        self.pic.level_line(Irq(irq)).unwrap()
    }

    fn pulse(&self, irq: u8) {
        self.pic.edge_line(Irq(irq)).unwrap().trigger().unwrap();
    }

    /// The vector, if INTR is up.
    fn take(&self) -> Option<u8> {
        self.pic.intr().then(|| self.pic.acknowledge().0)
    }

    fn command(&self, word: u8) {
        self.master.write(0, &[word]);
    }

    fn irr(&self) -> u8 {
        self.command(READ_IRR);
        read(&self.master, 0)
    }

    fn isr(&self) -> u8 {
        self.command(READ_ISR);
        read(&self.master, 0)
    }

    fn slave_isr(&self) -> u8 {
        self.slave.write(0, &[READ_ISR]);
        read(&self.slave, 0)
    }

    fn level_triggered(&self, irq: u8) {
        let elcr = (1_u16 << irq).to_le_bytes();
        self.pic.elcr().write(0, &elcr);
    }
}

// Inputs.

#[test]
fn irq_2_and_irqs_past_15_are_refused() {
    let guest = new();
    for irq in [2, 16, 255] {
        let error = PicError::NoSuchIrq(Irq(irq));
        assert_eq!(guest.pic.level_line(Irq(irq)).unwrap_err(), error);
        assert_eq!(guest.pic.edge_line(Irq(irq)).unwrap_err(), error);
    }
}

#[test]
fn each_irq_has_its_vector() {
    let guest = new();
    for irq in (0..16).filter(|irq| *irq != 2) {
        guest.pulse(irq);
        assert_eq!(guest.take(), Some(0x20 + irq));
        assert_eq!(guest.take(), None);
        guest.slave.write(0, &[EOI]);
        guest.command(EOI);
    }
    assert_eq!((guest.isr(), guest.slave_isr()), (0, 0));
}

#[test]
fn an_edge_that_came_before_the_acknowledge_stays_latched() {
    let guest = new();
    let line = guest.line(5);
    line.trigger().unwrap();
    line.clear().unwrap();
    assert_eq!(guest.irr(), 1 << 5);
    assert_eq!(guest.take(), Some(0x25));
    assert_eq!(guest.irr(), 0);
}

#[test]
fn an_edge_triggered_line_that_stays_up_is_one_request() {
    let guest = new();
    let line = guest.line(5);
    line.trigger().unwrap();
    assert_eq!(guest.take(), Some(0x25));
    guest.command(EOI);
    line.trigger().unwrap();
    assert_eq!(guest.take(), None);
    line.clear().unwrap();
    line.trigger().unwrap();
    assert_eq!(guest.take(), Some(0x25));
}

#[test]
fn a_level_triggered_line_requests_again_after_the_eoi_while_it_is_up() {
    let guest = new();
    guest.level_triggered(5);
    let line = guest.line(5);
    line.trigger().unwrap();
    for _ in 0..2 {
        assert_eq!(guest.take(), Some(0x25));
        assert_eq!(guest.take(), None);
        guest.command(EOI);
    }
    line.clear().unwrap();
    assert_eq!(guest.take(), None);
}

#[test]
fn the_level_of_an_irq_is_the_or_of_its_sources_and_dropping_one_lets_go() {
    let guest = new();
    guest.level_triggered(5);
    let (one, other) = (guest.line(5), guest.line(5));
    one.trigger().unwrap();
    other.trigger().unwrap();
    one.clear().unwrap();
    assert!(guest.pic.intr());
    drop(other);
    assert!(!guest.pic.intr());
    assert_eq!(*guest.heard.lock().unwrap(), [true, false], "transitions only");
}

#[test]
fn a_line_counts_once_however_often_it_is_driven() {
    let guest = new();
    let [one, other] = [0, 1].map(|_| guest.pic.level_line(Irq(5)).unwrap());
    let is_up = || guest.pic.save().master.lines >> 5 & 1 != 0;
    one.trigger().unwrap();
    one.trigger().unwrap();
    one.clear().unwrap();
    assert!(!is_up(), "it was up once");
    other.trigger().unwrap();
    one.clear().unwrap();
    drop(one);
    assert!(is_up(), "the other holds it");
    assert!(format!("{other:?}").contains("IRQ 5"));
}

#[test]
fn a_pulse_on_a_level_triggered_irq_goes_by_unseen() {
    let guest = new();
    guest.level_triggered(5);
    guest.pulse(5);
    assert_eq!((guest.take(), guest.irr()), (None, 0));
}

#[test]
fn a_masked_request_waits() {
    let guest = new();
    guest.master.write(1, &[0xff]);
    guest.pulse(3);
    assert_eq!((guest.take(), guest.irr()), (None, 1 << 3));
    guest.master.write(1, &[0xf7]);
    assert_eq!(guest.take(), Some(0x23));
}

// Spurious requests.

#[test]
fn a_masked_request_holds_back_no_other() {
    let guest = new();
    guest.master.write(1, &[1 << 3]);
    guest.slave.write(1, &[1 << 1]);
    for irq in [3, 4, 9, 10] {
        guest.pulse(irq);
    }
    assert_eq!(guest.take(), Some(0x2a));
    guest.slave.write(0, &[EOI]);
    guest.command(EOI);
    assert_eq!(guest.take(), Some(0x24));
}

#[test]
fn a_request_that_went_away_is_answered_with_irq_7_and_is_not_in_service() {
    let guest = new();
    guest.level_triggered(5);
    let line = guest.line(5);
    line.trigger().unwrap();
    line.clear().unwrap();
    assert_eq!(guest.pic.acknowledge(), Vector(0x27));
    assert_eq!(guest.isr(), 0);

    guest.pulse(3);
    guest.master.write(1, &[1 << 3]);
    assert_eq!(guest.pic.acknowledge(), Vector(0x27));
    guest.master.write(1, &[0]);
    assert_eq!(guest.take(), Some(0x23), "it was masked, and not lost");
}

#[test]
fn a_request_of_the_slave_that_went_away_is_answered_with_irq_15() {
    let guest = new();
    guest.level_triggered(11);
    let line = guest.line(11);
    line.trigger().unwrap();
    line.clear().unwrap();
    assert_eq!(guest.take(), Some(0x2f));
    assert_eq!((guest.isr(), guest.slave_isr()), (1 << 2, 0));
    guest.command(EOI);
    assert_eq!(guest.take(), None);
}

// Priority.

#[test]
fn a_lower_input_has_the_higher_priority_and_interrupts_only_lower_ones() {
    let guest = new();
    guest.pulse(4);
    guest.pulse(6);
    assert_eq!(guest.take(), Some(0x24));
    assert_eq!(guest.take(), None);
    guest.pulse(4);
    assert_eq!(guest.take(), None, "not even by itself");
    guest.pulse(1);
    assert_eq!(guest.take(), Some(0x21));
    assert_eq!(guest.isr(), 1 << 4 | 1 << 1);
    guest.command(EOI);
    assert_eq!(guest.isr(), 1 << 4, "the non-specific one ends the most urgent");
    guest.command(EOI);
    assert_eq!(guest.take(), Some(0x24));
    guest.command(EOI);
    assert_eq!(guest.take(), Some(0x26));
}

#[test]
fn the_slave_has_the_priority_of_input_2() {
    let guest = new();
    guest.pulse(3);
    guest.pulse(8);
    assert_eq!(guest.take(), Some(0x28));
    guest.pulse(1);
    assert_eq!(guest.take(), Some(0x21));
}

#[test]
fn a_specific_eoi_ends_the_input_that_it_names() {
    let guest = new();
    guest.pulse(4);
    assert_eq!(guest.take(), Some(0x24));
    guest.pulse(1);
    assert_eq!(guest.take(), Some(0x21));
    guest.command(SPECIFIC_EOI | 4);
    assert_eq!(guest.isr(), 1 << 1);
    guest.command(SPECIFIC_EOI | 7);
    assert_eq!(guest.isr(), 1 << 1);
}

#[test]
fn rotation_on_an_eoi_makes_what_it_ended_the_lowest() {
    let guest = new();
    guest.pulse(4);
    guest.pulse(6);
    assert_eq!(guest.take(), Some(0x24));
    guest.command(ROTATE_ON_EOI);
    guest.pulse(4);
    guest.pulse(5);
    assert_eq!(guest.take(), Some(0x25), "5 is the highest now");
    guest.command(ROTATE_ON_SPECIFIC_EOI | 5);
    assert_eq!(guest.take(), Some(0x26));
    guest.command(EOI);
    assert_eq!(guest.take(), Some(0x24));
    guest.command(EOI);
    // A rotation with nothing in service rotates nothing.
    guest.command(ROTATE_ON_EOI);
    assert_eq!(guest.pic.save().master.first, 6);
}

#[test]
fn the_lowest_priority_can_be_set() {
    let guest = new();
    guest.command(SET_PRIORITY | 4);
    for irq in [0, 4, 5] {
        guest.pulse(irq);
    }
    assert_eq!(guest.take(), Some(0x25));
    guest.command(EOI);
    assert_eq!(guest.take(), Some(0x20));
    guest.command(EOI);
    assert_eq!(guest.take(), Some(0x24));
    guest.command(SET_PRIORITY | 4);
    assert_eq!(guest.isr(), 1 << 4, "that is no EOI");
}

// Modes.

#[test]
fn in_automatic_eoi_mode_nothing_stays_in_service() {
    let guest = with(AEOI);
    guest.pulse(4);
    guest.pulse(12);
    guest.pulse(13);
    assert_eq!(guest.take(), Some(0x2c));
    assert_eq!(
        guest.take(),
        Some(0x2d),
        "the slave's second request is not lost either"
    );
    assert_eq!(guest.take(), Some(0x24));
    assert_eq!((guest.isr(), guest.slave_isr(), guest.take()), (0, 0, None));
}

#[test]
fn rotation_in_automatic_eoi_mode_can_be_set_and_cleared() {
    let guest = with(AEOI);
    let round = || {
        for irq in [3, 4] {
            guest.pulse(irq);
        }
        let first = guest.take();
        guest.take();
        first
    };
    guest.command(ROTATE_IN_AEOI);
    guest.pulse(3);
    assert_eq!(guest.take(), Some(0x23));
    assert_eq!(round(), Some(0x24), "3 is the lowest now");
    guest.command(0);
    let first = guest.pic.save().master.first;
    round();
    assert_eq!(guest.pic.save().master.first, first);
}

#[test]
fn the_special_mask_mode_lets_lower_priorities_through_while_the_one_in_service_is_masked() {
    let guest = new();
    guest.pulse(3);
    assert_eq!(guest.take(), Some(0x23));
    guest.pulse(6);
    guest.master.write(1, &[1 << 3]);
    assert_eq!(guest.take(), None);
    guest.command(SPECIAL_MASK);
    assert_eq!(guest.take(), Some(0x26));
    guest.command(EOI);
    assert_eq!(guest.isr(), 1 << 3, "the non-specific EOI passes over what is masked");
    guest.command(NO_SPECIAL_MASK);
    guest.pulse(6);
    assert_eq!(guest.take(), None);
    guest.command(EOI);
    assert_eq!(guest.take(), Some(0x26));
}

#[test]
fn in_special_mask_mode_what_is_in_service_and_not_masked_still_blocks() {
    let guest = new();
    guest.command(SPECIAL_MASK);
    guest.pulse(3);
    assert_eq!(guest.take(), Some(0x23));
    guest.pulse(6);
    guest.pulse(3);
    assert_eq!(guest.take(), None);
    guest.pulse(1);
    assert_eq!(guest.take(), Some(0x21));
    guest.master.write(1, &[1 << 3]);
    assert_eq!(guest.take(), None, "IRQ 1 is in service and not masked");
}

#[test]
fn the_special_mask_mode_changes_only_with_its_enable_bit() {
    let guest = new();
    guest.command(SPECIAL_MASK);
    guest.command(0x28);
    guest.command(0x08);
    assert!(guest.pic.save().master.special_mask);
    guest.command(NO_SPECIAL_MASK);
    guest.command(0x28);
    assert!(!guest.pic.save().master.special_mask);
}

#[test]
fn the_special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    for (icw4, second) in [(0, None), (SFNM, Some(0x29))] {
        let guest = with(icw4);
        guest.pulse(12);
        assert_eq!(guest.take(), Some(0x2c));
        guest.pulse(9);
        assert_eq!(guest.take(), second);
        guest.pulse(14);
        assert_eq!(guest.take(), None, "but not by a lower one");
        guest.pulse(3);
        assert_eq!(guest.take(), None, "nor by one that the slave comes before");
        guest.pulse(1);
        assert_eq!(guest.take(), Some(0x21));
    }
}

#[test]
fn the_special_fully_nested_mode_is_for_the_masters_input_2_alone() {
    let guest = with(SFNM);
    // Both chips are in that mode: IRQ 10 is input 2 of the slave.
    for (irq, vector) in [(3, 0x23), (10, 0x2a)] {
        guest.pulse(irq);
        assert_eq!(guest.take(), Some(vector));
        guest.pulse(irq);
        assert_eq!(guest.take(), None, "IRQ {irq} does not interrupt itself");
    }
    let guest = with(SFNM);
    guest.pulse(1);
    assert_eq!(guest.take(), Some(0x21));
    guest.pulse(8);
    assert_eq!(guest.take(), None, "nor does the slave interrupt what comes before it");
}

#[test]
fn a_poll_is_an_acknowledge() {
    let guest = new();
    guest.pulse(6);
    guest.pulse(3);
    guest.command(POLL);
    assert_eq!(read(&guest.master, 0), 0x83);
    assert_eq!(guest.isr(), 1 << 3);
    assert_eq!(guest.take(), None);
    guest.command(POLL);
    assert_eq!(read(&guest.master, 0), 0, "no request that could go through");
    assert_eq!(read(&guest.master, 0), 1 << 3, "one read alone is the poll: ISR again");
    guest.command(EOI);
    guest.command(POLL);
    assert_eq!(read(&guest.master, 1), 0x86, "from either port");
    guest.pulse(1);
    guest.command(POLL);
    guest.command(READ_IRR);
    assert_eq!(read(&guest.master, 0), 1 << 1, "the last OCW3 asks for no poll");
}

#[test]
fn a_poll_of_the_slave_takes_its_request_from_the_master() {
    let guest = new();
    guest.pulse(10);
    assert!(guest.pic.intr());
    guest.slave.write(0, &[POLL]);
    assert_eq!(read(&guest.slave, 0), 0x82);
    assert!(!guest.pic.intr());
    guest.pulse(9);
    assert_eq!(guest.take(), Some(0x29));
}

#[test]
fn a_poll_of_the_master_that_finds_the_slave_is_once_a_rise_of_its_int() {
    let guest = new();
    guest.pulse(9);
    guest.command(POLL);
    assert_eq!(read(&guest.master, 0), 0x82);
    guest.command(EOI);
    assert!(
        !guest.pic.intr(),
        "INT of the slave is still up, and input 2 is an edge"
    );
    guest.slave.write(0, &[POLL]);
    assert_eq!(read(&guest.slave, 0), 0x81);
    guest.pulse(8);
    assert_eq!(guest.take(), Some(0x28));
}

#[test]
fn a_word_to_the_ports_of_a_chip_is_two_bytes_in_turn() {
    let guests = [new(), new()];
    for guest in &guests {
        guest.pulse(9);
        assert_eq!(guest.take(), Some(0x29));
        guest.pulse(10);
    }
    // The EOI lets IRQ 10 through, and the mask holds it back: input 2 has risen meanwhile.
    guests[0].slave.write(0, &[EOI, 0xff]);
    guests[1].slave.write(0, &[EOI]);
    guests[1].slave.write(1, &[0xff]);
    for guest in &guests {
        assert_eq!(guest.irr(), 1 << 2);
    }
    assert_eq!(guests[0].pic.save(), guests[1].pic.save());
}

#[test]
fn a_poll_of_the_slave_leaves_the_master_its_next_request() {
    // Nothing stays in service: the slave asks again at once.
    let guest = with(AEOI);
    guest.pulse(9);
    guest.pulse(10);
    guest.slave.write(0, &[POLL]);
    assert_eq!(read(&guest.slave, 0), 0x81);
    assert_eq!(guest.take(), Some(0x2a));
    assert_eq!(guest.take(), None);
}

// Initialization.

#[test]
fn nothing_is_signalled_before_the_initialization_is_complete() {
    let guest = fresh();
    guest.pulse(3);
    for (port, word) in [(0, 0x11), (1, 0x20), (1, 4), (1, 1)] {
        assert!(!guest.pic.intr());
        guest.master.write(port, &[word]);
        guest.pulse(3);
    }
    assert_eq!(guest.take(), Some(0x23));
}

#[test]
fn the_mask_works_before_the_initialization() {
    // This is how Linux looks for an 8259.
    let guest = fresh();
    guest.master.write(1, &[0xfb]);
    assert_eq!(read(&guest.master, 1), 0xfb);
}

#[test]
fn icw1_says_whether_icw3_and_icw4_follow() {
    // With LTIM too, which is the bit that tells OCW3 from OCW2.
    for (icw1, words) in [(0x10, 2), (0x11, 3), (0x12, 1), (0x13, 2), (0x19, 3)] {
        let guest = fresh();
        guest.master.write(0, &[icw1]);
        for word in [0x47, 0x00, 0x00].iter().take(words) {
            assert_ne!(guest.pic.save().master.step, InitStep::Done);
            guest.master.write(1, &[*word]);
        }
        assert_eq!(guest.pic.save().master.step, InitStep::Done, "{icw1:#x}");
        guest.master.write(1, &[0x0f]);
        assert_eq!(read(&guest.master, 1), 0x0f, "the mask again");
        guest.pulse(4);
        assert_eq!(guest.take(), Some(0x44), "five bits of ICW2, the rest is the input");
    }
}

#[test]
fn a_single_master_answers_for_its_input_2_itself() {
    let guest = fresh();
    for (port, word) in [(0, 0x13), (1, 0x20), (1, 1)] {
        guest.master.write(port, &[word]);
    }
    initialize(&guest.slave, 0x28, 0);
    guest.pulse(9);
    assert_eq!(guest.take(), Some(0x22));
}

#[test]
fn icw1_clears_mask_edges_service_priority_and_modes() {
    let guest = with(AEOI | SFNM);
    guest.level_triggered(5);
    let (level, edge) = (guest.line(5), guest.line(6));
    level.trigger().unwrap();
    edge.trigger().unwrap();
    guest.master.write(1, &[0xff]);
    for word in [SPECIAL_MASK, SET_PRIORITY | 3, ROTATE_IN_AEOI, READ_ISR, POLL] {
        guest.command(word);
    }
    guest.command(0x10);
    let mut state = guest.pic.save().master;
    assert_eq!(state.step, InitStep::Icw2);
    assert_eq!(state.irr, 1 << 5, "a level is no edge: it stays");
    assert_eq!(state.elcr, 1 << 5);
    (state.step, state.irr, state.elcr, state.base, state.lines) = (InitStep::Icw1, 0, 0, 0, 0);
    assert_eq!(state, fresh().pic.save().master);
    // A line that is up already has to fall and rise.
    initialize(&guest.master, 0x20, 0);
    assert_eq!(guest.irr(), 1 << 5);
}

#[test]
fn icw1_ends_what_is_in_service() {
    let guest = new();
    guest.pulse(3);
    assert_eq!(guest.take(), Some(0x23));
    initialize(&guest.master, 0x20, 0);
    assert_eq!(guest.isr(), 0);
    guest.pulse(4);
    assert_eq!(guest.take(), Some(0x24), "nobody is to send an EOI of before");
}

#[test]
fn elcrs_fixed_bits_are_fixed() {
    let guest = new();
    let mut data = [0xaa; 2];
    guest.pic.elcr().write(0, &[0xff, 0xff]);
    guest.pic.elcr().read(0, &mut data);
    assert_eq!(data, [0xf8, 0xde]);
}

#[test]
fn a_reset_asks_for_a_new_initialization_and_keeps_the_lines() {
    let guest = new();
    let line = guest.line(3);
    line.trigger().unwrap();
    guest.pic.reset();
    assert!(!guest.pic.intr());
    assert_eq!(guest.pic.save().master.lines, 1 << 3);
    initialize(&guest.master, 0x20, 0);
    assert_eq!(guest.take(), None, "no edge came of it");
}

#[test]
fn an_intr_that_refuses_is_told_again_with_the_next_change() {
    let refuses = Arc::new(AtomicBool::new(true));
    let told = Arc::new(AtomicBool::new(false));
    let (gate, up) = (Arc::clone(&refuses), Arc::clone(&told));
    let pic = Pic::new(level_from_fn(move |level| {
        if gate.load(SeqCst) {
            return Err(io::Error::other("refused"));
        }
        up.store(level, SeqCst);
        Ok(())
    }));
    initialize(&pic.master(), 0x20, 0);
    pic.edge_line(Irq(3)).unwrap().trigger().expect("the pair has taken it");
    assert_eq!(pic.output_failures(), 1);
    refuses.store(false, SeqCst);
    pic.level_line(Irq(7)).unwrap().trigger().unwrap();
    assert!(told.load(SeqCst));
    assert_eq!(pic.acknowledge(), Vector(0x23));
}

// State.

#[test]
fn everything_that_the_guest_can_see_survives_save_and_restore() {
    let guest = with(SFNM);
    guest.level_triggered(11);
    let line = guest.line(11);
    line.trigger().unwrap();
    assert_eq!(guest.take(), Some(0x2b));
    guest.pulse(4);
    guest.pulse(9);
    guest.master.write(1, &[0x80]);
    for word in [SET_PRIORITY | 6, SPECIAL_MASK, READ_ISR, POLL] {
        guest.command(word);
    }
    guest.slave.write(0, &[0x11]);
    let state = guest.pic.save();
    let other = fresh();
    other.pic.restore(&state).unwrap();
    assert_eq!(other.pic.save(), state);
    assert_eq!(other.pic.intr(), guest.pic.intr());
}

#[test]
fn a_restore_replays_no_edge_and_loses_none() {
    let guest = new();
    let line = guest.line(5);
    line.trigger().unwrap();
    assert_eq!(guest.take(), Some(0x25));
    guest.command(EOI);
    let state = guest.pic.save();
    // The device before, and the device after the controller.
    for before in [true, false] {
        let other = new();
        let line = other.line(5);
        let late = other.line(6);
        if before {
            line.trigger().unwrap();
            late.trigger().unwrap();
        }
        other.pic.restore(&state).unwrap();
        if !before {
            line.trigger().unwrap();
            late.trigger().unwrap();
        }
        assert_eq!(other.take(), Some(0x26), "this one is new");
        other.command(EOI);
        assert_eq!(other.take(), None);
        line.clear().unwrap();
        line.trigger().unwrap();
        assert_eq!(other.take(), Some(0x25));
    }
}

#[test]
fn a_state_that_no_guest_could_have_brought_about_is_refused_and_changes_nothing() {
    let guest = new();
    guest.pulse(3);
    let good = guest.pic.save();
    let bits = |chip, field, value, accepted| PicStateError::Bits {
        chip,
        field,
        value,
        accepted,
    };
    type Change = fn(&mut PicState);
    let cases: [(Change, PicStateError); 7] = [
        (|s| s.master.lines = 4, bits("master", "lines", 4, 0xfb)),
        (|s| s.master.elcr = 4, bits("master", "ELCR", 4, 0xf8)),
        (|s| s.slave.elcr = 1, bits("slave", "ELCR", 1, 0xde)),
        (|s| s.slave.base = 9, bits("slave", "ICW2", 9, 0xf8)),
        (|s| s.slave.first = 8, bits("slave", "highest priority", 8, 7)),
        (
            |s| (s.slave.elcr, s.slave.irr) = (2, 2),
            PicStateError::Level {
                chip: "slave",
                irr: 2,
                lines: 0,
                elcr: 2,
            },
        ),
        (
            |s| (s.slave.elcr, s.slave.lines) = (2, 2),
            PicStateError::Level {
                chip: "slave",
                irr: 0,
                lines: 2,
                elcr: 2,
            },
        ),
    ];
    for (change, error) in cases {
        let mut state = good.clone();
        change(&mut state);
        assert_eq!(guest.pic.restore(&state), Err(error));
        assert_eq!(guest.pic.save(), good);
    }
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_and_lines_answers_and_leaves_a_state_that_can_be_restored(
        steps in prop::collection::vec((0..9u8, 0..16u8, prop_oneof![0..4u64, any::<u64>()], any::<[u8; 9]>(), 0..10usize), 1..200)
    ) {
        let guest = new();
        let pic = &guest.pic;
        let lines: Vec<_> = (0..16).filter_map(|irq| pic.level_line(Irq(irq)).ok()).collect();
        for (what, irq, offset, mut data, len) in steps {
            let data = &mut data[..len.min(9)];
            let line = &lines[usize::from(irq) % lines.len()];
            match what {
                0 => guest.master.write(offset, data),
                1 => guest.slave.write(offset, data),
                2 => pic.elcr().write(offset, data),
                3 => guest.master.read(offset, data),
                4 => guest.slave.read(offset, data),
                5 => pic.elcr().read(offset, data),
                6 => line.trigger().unwrap(),
                7 => line.clear().unwrap(),
                _ => {
                    let spurious = !pic.intr();
                    let Vector(vector) = pic.acknowledge();
                    prop_assert!(!spurious || vector & 7 == 7);
                }
            }
            let state = pic.save();
            let other = Pic::new(NoInterrupt);
            prop_assert_eq!(other.restore(&state), Ok(()));
            prop_assert_eq!(other.intr(), pic.intr());
            prop_assert_eq!(other.save(), state);
        }
    }
}
