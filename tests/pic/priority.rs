//! Who comes first.

use crate::guest::*;

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
