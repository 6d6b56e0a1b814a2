//! Pins: edges, levels, and who drives them.

use crate::guest::*;
use devisor::{
    backends::irqchip::{Vector, ioapic::Pin},
    interrupt::{Interrupt, LevelInterrupt},
};
use std::thread;

// Edges.

#[test]
fn an_edge_sends_one_message_and_a_repeated_assertion_none() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, 0x34);
    let line = ioapic.level_line(Pin(4)).unwrap();
    line.trigger().unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
    ioapic.eoi(Vector(0x34));
    line.clear().unwrap();
    line.clear().unwrap();
    assert_eq!(sink.vectors(), []);
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
}

#[test]
fn a_masked_edge_is_lost() {
    let (ioapic, sink) = new();
    let (level, edge) = (ioapic.level_line(Pin(4)).unwrap(), ioapic.edge_line(Pin(4)).unwrap());
    level.trigger().unwrap();
    edge.trigger().unwrap();
    program(&ioapic, 4, 0x34);
    assert_eq!(sink.vectors(), []);
    assert_eq!(entry(&ioapic, 4), 0x34);
}

#[test]
fn a_pulse_is_an_edge_whatever_level_the_pin_has() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, 0x34);
    let (level, edge) = (ioapic.level_line(Pin(4)).unwrap(), ioapic.edge_line(Pin(4)).unwrap());
    level.trigger().unwrap();
    edge.trigger().unwrap();
    edge.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34; 3]);
}

#[test]
fn a_pulse_on_a_level_sensitive_pin_is_one_message_until_the_eoi() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let edge = ioapic.edge_line(Pin(4)).unwrap();
    edge.trigger().unwrap();
    edge.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), [], "the second was gone by then");
    edge.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
}

// Levels.

#[test]
fn a_level_is_sent_again_after_each_eoi_while_it_is_up() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x51]);
    ioapic.eoi(Vector(0x51));
    ioapic.eoi(Vector(0x51));
    assert_eq!(sink.vectors(), [0x51, 0x51]);
    line.clear().unwrap();
    assert_ne!(entry(&ioapic, 10) & REMOTE_IRR, 0, "in service until the EOI");
    ioapic.eoi(Vector(0x51));
    assert_eq!(entry(&ioapic, 10) & REMOTE_IRR, 0);
    assert_eq!(sink.vectors(), []);
}

#[test]
fn a_level_in_service_that_falls_and_rises_is_sent_once_more_after_the_eoi() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    for _ in 0..3 {
        line.trigger().unwrap();
        line.clear().unwrap();
    }
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x51]);
    ioapic.eoi(Vector(0x51));
    assert_eq!(sink.vectors(), [0x51]);
}

#[test]
fn a_masked_level_is_delivered_when_its_entry_is_unmasked() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, MASKED | LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), []);
    program(&ioapic, 10, LEVEL | 0x51);
    assert_eq!(sink.vectors(), [0x51]);
    // And one that ends behind the mask, not.
    program(&ioapic, 10, MASKED | LEVEL | 0x51);
    ioapic.eoi(Vector(0x51));
    line.clear().unwrap();
    program(&ioapic, 10, LEVEL | 0x51);
    assert_eq!(sink.vectors(), []);
}

#[test]
fn an_eoi_behind_the_mask_takes_it_out_of_service() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    line.trigger().unwrap();
    program(&ioapic, 10, MASKED | LEVEL | 0x51);
    ioapic.eoi(Vector(0x51));
    assert_eq!(entry(&ioapic, 10), MASKED | LEVEL | 0x51);
    assert_eq!(sink.vectors(), [0x51]);
    program(&ioapic, 10, LEVEL | 0x51);
    assert_eq!(sink.vectors(), [0x51]);
}

#[test]
fn switching_an_entry_to_edge_clears_remote_irr() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    line.trigger().unwrap();
    write(&ioapic, 0x10 + 20, 0x51);
    assert_eq!(entry(&ioapic, 10), 0x51);
    assert_eq!(sink.vectors(), [0x51], "the level is no edge");
    // Linux does this to get a pin out of service that has lost its EOI.
    program(&ioapic, 10, LEVEL | 0x51);
    assert_eq!(sink.vectors(), [0x51]);
}

/// How a guest without an EOI register ends an interrupt that has got stuck: masked and edge, then as it was. Linux does.
#[test]
fn switching_to_edge_behind_the_mask_clears_remote_irr_and_a_level_that_is_up_comes_again() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let line = ioapic.level_line(Pin(4)).unwrap();
    line.trigger().unwrap();
    write(&ioapic, 0x18, MASKED as u32 | 0x34);
    write(&ioapic, 0x18, (MASKED | LEVEL) as u32 | 0x34);
    assert_eq!(entry(&ioapic, 4), MASKED | LEVEL | 0x34, "out of service");
    assert_eq!(sink.vectors(), [0x34]);
    write(&ioapic, 0x18, LEVEL as u32 | 0x34);
    assert_eq!(sink.vectors(), [0x34]);
}

/// Most pins of a guest that wants its interrupts balanced are so.
#[test]
fn a_level_of_lowest_priority_is_in_service_until_its_eoi() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | LOGICAL | 1 << 8 | 0x34);
    let line = ioapic.level_line(Pin(4)).unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.take()[0].data, 0xc134, "a level, asserted");
    assert_eq!(entry(&ioapic, 4) & REMOTE_IRR, REMOTE_IRR);
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), [0x34], "it is still up");
}

#[test]
fn polarity_is_honoured() {
    let (ioapic, sink) = new();
    let (edge, level) = (ioapic.level_line(Pin(1)).unwrap(), ioapic.level_line(Pin(2)).unwrap());
    edge.trigger().unwrap();
    level.trigger().unwrap();
    program(&ioapic, 1, ACTIVE_LOW | 0x61);
    program(&ioapic, 2, ACTIVE_LOW | LEVEL | 0x62);
    assert_eq!(sink.vectors(), [], "high is inactive");
    edge.clear().unwrap();
    level.clear().unwrap();
    assert_eq!(sink.vectors(), [0x61, 0x62]);
    edge.trigger().unwrap();
    ioapic.eoi(Vector(0x62));
    assert_eq!(sink.vectors(), [0x62], "still low");
    level.trigger().unwrap();
    ioapic.eoi(Vector(0x62));
    assert_eq!(sink.vectors(), []);
}

// Sources.

#[test]
fn the_level_of_a_pin_is_the_or_of_its_sources() {
    let (ioapic, sink) = new();
    program(&ioapic, 11, LEVEL | 0x70);
    let lines = [ioapic.level_line(Pin(11)).unwrap(), ioapic.level_line(Pin(11)).unwrap()];
    for line in &lines {
        line.trigger().unwrap();
    }
    lines[0].clear().unwrap();
    assert_eq!(sink.vectors(), [0x70]);
    ioapic.eoi(Vector(0x70));
    assert_eq!(sink.vectors(), [0x70]);
    lines[1].clear().unwrap();
    ioapic.eoi(Vector(0x70));
    assert_eq!(sink.vectors(), []);
}

#[test]
fn a_line_counts_once_however_often_it_is_driven() {
    let (ioapic, _) = new();
    let [one, other] = [0, 1].map(|_| ioapic.level_line(Pin(4)).unwrap());
    let is_up = || ioapic.save().pins[4].line;
    one.trigger().unwrap();
    one.trigger().unwrap();
    one.clear().unwrap();
    assert!(!is_up(), "it was up once");
    other.trigger().unwrap();
    one.clear().unwrap();
    one.clear().unwrap();
    assert!(is_up(), "the other holds it");
    drop(one);
    assert!(is_up(), "and still does");
    assert!(format!("{other:?}").contains("pin 4"));
}

#[test]
fn dropping_a_line_lets_go() {
    let (ioapic, sink) = new();
    program(&ioapic, 11, LEVEL | 0x70);
    let line = ioapic.level_line(Pin(11)).unwrap();
    line.trigger().unwrap();
    drop(line);
    ioapic.eoi(Vector(0x70));
    assert_eq!(sink.vectors(), [0x70]);
    assert!(!ioapic.save().pins[11].line);
}

// Threads.

#[test]
fn no_edge_is_lost_and_none_invented_between_threads() {
    const EACH: usize = 2_000;
    let (ioapic, sink) = new();
    for pin in 0..4 {
        program(&ioapic, pin, 0x30 + u64::from(pin));
    }
    thread::scope(|scope| {
        for pin in 0..4 {
            let line = ioapic.edge_line(Pin(pin)).unwrap();
            scope.spawn(move || (0..EACH).for_each(|_| line.trigger().unwrap()));
        }
    });
    let mut counts = [0; 4];
    for vector in sink.vectors() {
        counts[usize::from(vector) - 0x30] += 1;
    }
    assert_eq!(counts, [EACH; 4]);
}
