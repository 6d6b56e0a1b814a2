//! How counts are written, read and latched.

use crate::machine::*;
use devisor::bus::BusDevice;

// Counts.

#[test]
fn a_count_of_zero_is_the_largest() {
    for (bcd, ticks) in [(0, 0x1_0000), (1, 10_000)] {
        let machine = new();
        machine.control(0x30 | bcd);
        machine.write(0, 0);
        machine.at(ticks);
        assert!(!machine.out(0));
        machine.at(ticks + 1);
        assert!(machine.out(0));
    }
}

#[test]
fn in_bcd_counts_are_four_digits() {
    let machine = new();
    machine.control(0x31);
    machine.write(0, 0x1002);
    machine.at(4);
    assert_eq!(machine.latched(0), 0x0999);
    machine.at(1003 + 1);
    assert_eq!(machine.latched(0), 0x9999, "beyond zero");
}

#[test]
fn one_byte_of_a_count_can_be_all_of_it() {
    let machine = new();
    machine.control(0x10);
    machine.ports.write(0, &[7]);
    machine.at(3);
    assert_eq!((machine.byte(0), machine.byte(0)), (5, 5));
    machine.control(0x20);
    machine.ports.write(0, &[7]);
    machine.at(4);
    assert_eq!((machine.byte(0), machine.byte(0)), (7, 7));
    machine.at(5);
    assert_eq!(machine.byte(0), 6, "0x06ff");
}

// Latches.

#[test]
fn a_latched_count_stands_still_until_it_was_read_and_is_not_latched_again() {
    let machine = new();
    machine.start(0, 0, 0x300);
    machine.at(0x101);
    machine.control(0x00);
    machine.at(0x201);
    machine.control(0x00);
    assert_eq!((machine.byte(0), machine.byte(0)), (0x00, 0x02));
    assert_eq!((machine.byte(0), machine.byte(0)), (0x00, 0x01), "live again");
}

#[test]
fn read_back_latches_what_it_names_and_the_status_is_read_first() {
    let machine = new();
    machine.gate2(true);
    for counter in 0..3 {
        machine.start(counter, 0, 0x1000 + u16::from(counter));
    }
    machine.at(1);
    machine.control(0xc0 | 2 | 8); // Status and count of counters 0 and 2.
    machine.at(0x800);
    for (counter, low) in [(0, 0x00), (2, 0x02)] {
        assert_eq!(machine.byte(counter), 0x30);
        assert_eq!((machine.byte(counter), machine.byte(counter)), (low, 0x10));
    }
    let live = u16::from_le_bytes([machine.byte(1), machine.byte(1)]);
    assert_eq!(live, 0x1001 - 0x7ff);
}

#[test]
fn a_latched_status_stands_still_until_it_was_read_and_is_not_latched_again() {
    let machine = new();
    machine.start(0, 0, 0x100);
    machine.at(1);
    machine.control(0xe2);
    machine.at(0x200);
    machine.control(0xe2);
    assert_eq!(
        [machine.byte(0), machine.byte(0)],
        [0x30, 0x01],
        "OUT was low, and then comes the count"
    );
    assert_eq!(machine.byte(0), 0xff);
    assert_eq!(machine.status(0), 0xb0);
}

#[test]
fn the_status_gives_back_the_control_word_and_whether_the_count_is_loaded() {
    let machine = new();
    machine.control(0x7d);
    assert_eq!(machine.status(1), 0x80 | 0x40 | 0x3d);
    machine.control(0x34);
    machine.ports.write(0, &[9, 0][..1]);
    machine.ports.write(0, &[0]);
    assert!(machine.null_count(0), "it is loaded by the next CLK");
    machine.at(1);
    assert_eq!(machine.status(0), 0x80 | 0x34);
}

#[test]
fn the_control_word_cannot_be_read() {
    let machine = new();
    let mut data = [0xff; 2];
    machine.ports.read(3, &mut data);
    assert_eq!(data, [0, 0]);
}
