//! The end of an interrupt, and what hears of it.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Vector,
        ioapic::{IoApicError, Pin},
    },
    bus::BusDevice,
    interrupt::{EdgeToLevel, Interrupt, LevelInterrupt},
};
use std::{
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

// EOI.

#[test]
fn both_kinds_of_eoi_reach_every_pin_with_the_vector_and_no_other() {
    for directed in [false, true] {
        let (ioapic, sink) = new();
        let lines: Vec<_> = (0..3).map(|pin| ioapic.level_line(Pin(pin)).unwrap()).collect();
        for (pin, vector) in [(0, 0x80), (1, 0x80), (2, 0x81)] {
            program(&ioapic, pin, LEVEL | vector);
            lines[pin as usize].trigger().unwrap();
        }
        sink.take();
        let eoi = |vector: u8| match directed {
            false => ioapic.eoi(Vector(vector)),
            true => ioapic.write(0x40, &u32::from(vector).to_le_bytes()),
        };
        eoi(0x80);
        assert_eq!(sink.vectors(), [0x80, 0x80]);
        eoi(0x82);
        assert_eq!(sink.vectors(), []);
        eoi(0x81);
        assert_eq!(sink.vectors(), [0x81]);
    }
}

#[test]
fn the_eoi_register_is_write_only_and_needs_its_low_byte() {
    let (ioapic, sink) = new();
    program(&ioapic, 0, LEVEL);
    ioapic.level_line(Pin(0)).unwrap().trigger().unwrap();
    assert_eq!(sink.vectors(), [0]);
    ioapic.write(0x41, &[0]);
    assert_ne!(entry(&ioapic, 0) & REMOTE_IRR, 0);
    let mut data = [0xff; 4];
    ioapic.read(0x40, &mut data);
    assert_eq!(data, [0; 4]);
    ioapic.write(0x40, &[0]);
    assert_eq!(entry(&ioapic, 0) & REMOTE_IRR, 0);
}

// What hears of the end.

#[test]
fn a_finished_level_is_told_by_either_eoi_and_only_to_pins_with_the_vector() {
    let (ioapic, _) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    program(&ioapic, 5, LEVEL | 0x35);
    program(&ioapic, 6, 0x34);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = |pin| {
        let heard = Arc::clone(&heard);
        ioapic
            .on_finished(Pin(pin), move || heard.lock().unwrap().push(pin))
            .unwrap()
    };
    let hooks = [hear(4), hear(5), hear(6)];
    let again = hear(4);
    ioapic.eoi(Vector(0x34));
    assert_eq!(mem::take(&mut *heard.lock().unwrap()), [4, 4], "pin 6 is an edge");
    ioapic.write(0x40, &0x35_u32.to_le_bytes());
    assert_eq!(mem::take(&mut *heard.lock().unwrap()), [5]);
    drop(again);
    ioapic.write(0x40, &[0x34]);
    assert_eq!(mem::take(&mut *heard.lock().unwrap()), [4]);
    drop(hooks);
    ioapic.eoi(Vector(0x34));
    assert_eq!(*heard.lock().unwrap(), [0; 0]);
    let error = IoApicError::NoSuchPin { pin: Pin(24), pins: 24 };
    assert_eq!(ioapic.on_finished(Pin(24), || ()).unwrap_err(), error);
}

#[test]
fn a_hook_that_lets_go_of_the_line_spares_the_guest_a_message_and_one_that_holds_it_does_not() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let line = Arc::new(ioapic.level_line(Pin(4)).unwrap());
    let satisfied = Arc::new(AtomicBool::new(false));
    let _hook = {
        let (line, satisfied) = (Arc::clone(&line), Arc::clone(&satisfied));
        ioapic.on_finished(Pin(4), move || {
            line.clear().unwrap();
            // The host unmasks the physical interrupt, which comes at once if the device wants more.
            if !satisfied.load(SeqCst) {
                line.trigger().unwrap();
            }
        })
    };
    line.trigger().unwrap();
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), [0x34, 0x34], "once, and once more for the second");
    satisfied.store(true, SeqCst);
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), []);
    assert_eq!(entry(&ioapic, 4), LEVEL | 0x34);
}

#[test]
fn an_edge_that_is_lifted_to_a_level_comes_again_after_each_eoi_while_it_is_up() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let line = Arc::new(EdgeToLevel::new(ioapic.edge_line(Pin(4)).unwrap()));
    let _hook = {
        let line = Arc::downgrade(&line);
        ioapic.on_finished(Pin(4), move || line.upgrade().unwrap().guest_done().unwrap())
    };
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
    for _ in 0..3 {
        ioapic.eoi(Vector(0x34));
        assert_eq!(sink.vectors(), [0x34]);
    }
    line.clear().unwrap();
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), []);
}
