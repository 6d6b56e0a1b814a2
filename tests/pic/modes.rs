//! The modes that an OCW or ICW4 sets.

use crate::guest::*;
use devisor::bus::BusDevice;

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
