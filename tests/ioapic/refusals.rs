//! A sink that refuses a message.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Vector,
        ioapic::{IoApic, Pin},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt},
};

#[test]
fn a_refused_edge_is_owed_and_carried_by_whatever_happens_next() {
    type Next = fn(&IoApic);
    let nexts: [Next; 4] = [
        |ioapic| ioapic.level_line(Pin(20)).unwrap().trigger().unwrap(),
        |ioapic| ioapic.eoi(Vector(0xff)),
        |ioapic| ioapic.write(0x00, &[0]),
        |ioapic| ioapic.retry(),
    ];
    for next in nexts {
        let (ioapic, sink) = new();
        program(&ioapic, 4, 0x34);
        let line = ioapic.edge_line(Pin(4)).unwrap();
        sink.refuse(true);
        line.trigger().expect("the IOAPIC has taken it");
        line.trigger().unwrap();
        assert_eq!(entry(&ioapic, 4), DELIVERY_STATUS | 0x34, "send pending");
        assert!(ioapic.refusals() >= 2);
        sink.refuse(false);
        next(&ioapic);
        assert_eq!(sink.vectors(), [0x34]);
        assert_eq!(entry(&ioapic, 4), 0x34);
    }
}

#[test]
fn a_refused_level_is_not_in_service_and_is_tried_again_only_while_it_is_up() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let line = ioapic.level_line(Pin(4)).unwrap();
    sink.refuse(true);
    line.trigger().unwrap();
    assert_eq!(entry(&ioapic, 4), LEVEL | DELIVERY_STATUS | 0x34);
    sink.refuse(false);
    ioapic.retry();
    assert_eq!(entry(&ioapic, 4), LEVEL | REMOTE_IRR | 0x34);
    assert_eq!(sink.vectors(), [0x34]);

    sink.refuse(true);
    ioapic.eoi(Vector(0x34));
    line.clear().unwrap();
    sink.refuse(false);
    ioapic.retry();
    assert_eq!(sink.vectors(), []);
    assert_eq!(entry(&ioapic, 4), LEVEL | 0x34);
}

#[test]
fn a_refused_edge_waits_behind_the_mask_and_takes_the_route_of_the_unmask() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, 0x34);
    sink.refuse(true);
    ioapic.edge_line(Pin(4)).unwrap().trigger().unwrap();
    write(&ioapic, 0x18, MASKED as u32 | 0x34);
    sink.refuse(false);
    ioapic.retry();
    assert_eq!(sink.vectors(), []);
    assert_eq!(entry(&ioapic, 4), MASKED | DELIVERY_STATUS | 0x34);
    program(&ioapic, 4, 0x35);
    assert_eq!(sink.vectors(), [0x35]);
}

#[test]
fn each_event_tries_a_refused_message_once() {
    let (ioapic, sink) = new();
    for pin in 0..24 {
        program(&ioapic, pin, 0x30);
    }
    sink.refuse(true);
    for pin in 0..24 {
        ioapic.edge_line(Pin(pin)).unwrap().trigger().unwrap();
    }
    *sink.tries.lock().unwrap() = 0;
    ioapic.retry();
    assert_eq!(*sink.tries.lock().unwrap(), 24);
}

/// A sink that refuses as it likes: in the end each pulse that found its pin idle was one message, and each level that
/// stayed up was sent.
#[test]
fn nothing_is_lost_over_a_sink_that_keeps_refusing() {
    let (ioapic, sink) = new();
    let levels: Vec<_> = (0..12).map(|pin| ioapic.level_line(Pin(pin)).unwrap()).collect();
    for pin in 0..24 {
        let level = if pin < 12 { LEVEL } else { 0 };
        program(&ioapic, pin, level | (0x30 + u64::from(pin)));
    }
    for round in 0..50 {
        sink.refuse(true);
        for pin in 0..24 {
            match levels.get(pin as usize) {
                Some(line) => line.trigger().unwrap(),
                None => ioapic.edge_line(Pin(pin)).unwrap().trigger().unwrap(),
            }
            sink.refuse((pin + round) % 3 != 0);
        }
        sink.refuse(false);
        ioapic.retry();
        let mut vectors = sink.vectors();
        vectors.sort_unstable();
        vectors.dedup();
        assert_eq!(vectors, (0x30..0x48).collect::<Vec<u8>>(), "round {round}");
        for (pin, line) in levels.iter().enumerate() {
            line.clear().unwrap();
            ioapic.eoi(Vector(0x30 + pin as u8));
        }
    }
    assert_eq!(sink.vectors(), [], "and nothing is owed any more");
}
