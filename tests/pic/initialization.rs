//! ICW1 to ICW4, ELCR and reset.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Vector,
        pic::{InitStep, Irq, Pic},
    },
    bus::BusDevice,
    interrupt::{Interrupt, level_from_fn},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

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
