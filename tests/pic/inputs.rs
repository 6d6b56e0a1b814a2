//! Inputs, and requests that went away again.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Vector,
        pic::{Irq, PicError},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt},
};

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
