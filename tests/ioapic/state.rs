//! Save, restore and reset.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Vector,
        ioapic::{IoApic, IoApicState, IoApicStateError, Pin, PinState},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt},
};
use std::sync::Arc;

fn restored(state: &IoApicState) -> (IoApic, Arc<Sink>) {
    let (ioapic, sink) = with_pins(state.pins.len() as u32);
    ioapic.restore(state).unwrap();
    (ioapic, sink)
}

#[test]
fn everything_that_the_guest_can_see_survives_save_and_restore() {
    let (ioapic, sink) = new();
    write(&ioapic, 0, 9 << 24);
    for pin in 0..24 {
        program(&ioapic, pin, u64::from(pin) << 56 | LEVEL | (0x60 + u64::from(pin)));
    }
    let lines: Vec<_> = [3, 17].map(|pin| ioapic.level_line(Pin(pin)).unwrap()).into();
    for line in &lines {
        line.trigger().unwrap();
    }
    program(&ioapic, 20, 0x30);
    sink.refuse(true);
    ioapic.edge_line(Pin(20)).unwrap().trigger().unwrap();
    ioapic.write(0, &[0x2a]);
    let state = ioapic.save();
    assert_eq!(state.select, 0x2a);

    let (other, sink) = restored(&state);
    assert_eq!(sink.vectors(), [0x30], "what was owed");
    let mut settled = state.clone();
    settled.pins[20].entry &= !DELIVERY_STATUS;
    assert_eq!(other.save(), settled);
    assert_eq!(entry(&other, 17) & REMOTE_IRR, REMOTE_IRR);
}

#[test]
fn a_restore_replays_no_edge_and_loses_none() {
    let (ioapic, _) = new();
    program(&ioapic, 6, 0x36);
    program(&ioapic, 7, LEVEL | 0x37);
    let (edge, level) = (ioapic.level_line(Pin(6)).unwrap(), ioapic.level_line(Pin(7)).unwrap());
    edge.trigger().unwrap();
    level.trigger().unwrap();
    let state = ioapic.save();

    // Devices after the controller.
    let (other, sink) = restored(&state);
    let lines = [6, 7].map(|pin| other.level_line(Pin(pin)).unwrap());
    lines.iter().for_each(|line| line.trigger().unwrap());
    assert_eq!(sink.vectors(), []);
    lines[0].clear().unwrap();
    lines[0].trigger().unwrap();
    other.eoi(Vector(0x37));
    assert_eq!(sink.vectors(), [0x36, 0x37]);

    // Devices before the controller.
    let (other, sink) = new();
    let lines = [6, 7, 8].map(|pin| other.level_line(Pin(pin)).unwrap());
    lines.iter().for_each(|line| line.trigger().unwrap());
    let mut state = state;
    state.pins[8].entry = 0x38;
    other.restore(&state).unwrap();
    assert_eq!(sink.vectors(), [0x38], "the one that has come meanwhile");
    drop(lines);
    assert!(other.save().pins.iter().all(|pin| !pin.line));
}

#[test]
fn a_level_that_was_not_delivered_is_delivered_by_the_restore() {
    let mut state = new().0.save();
    state.pins[2] = PinState {
        entry: LEVEL | 0x42,
        line: true,
    };
    assert_eq!(restored(&state).1.vectors(), [0x42]);
}

#[test]
fn a_restored_line_that_is_active_low_waits_for_its_device() {
    let mut state = new().0.save();
    state.pins[2] = PinState {
        entry: ACTIVE_LOW | LEVEL | 0x42,
        line: true,
    };
    let (ioapic, sink) = restored(&state);
    let line = ioapic.level_line(Pin(2)).unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), []);
    line.clear().unwrap();
    assert_eq!(sink.vectors(), [0x42]);
}

#[test]
fn a_state_that_no_guest_could_have_brought_about_is_refused_and_changes_nothing() {
    let (ioapic, _) = new();
    program(&ioapic, 0, 0x99);
    let good = ioapic.save();
    let broken = |change: fn(&mut IoApicState)| {
        let mut state = good.clone();
        change(&mut state);
        state
    };
    let bits = |register: &str, value, accepted| IoApicStateError::Bits {
        register: register.into(),
        value,
        accepted,
    };
    let entry_bits = 0xffff_0000_0001_ffff;
    for (state, error) in [
        (
            broken(|state| _ = state.pins.pop()),
            IoApicStateError::Pins { saved: 23, this: 24 },
        ),
        (broken(|state| state.id = 16), bits("IOAPICID", 16, 15)),
        (broken(|state| state.select = 0x100), bits("IOREGSEL", 0x100, 0xff)),
        (
            broken(|state| state.pins[5].entry = 1 << 17),
            bits("entry 5", 1 << 17, entry_bits),
        ),
        (
            broken(|state| state.pins[5].entry = REMOTE_IRR),
            IoApicStateError::RemoteIrr {
                index: 5,
                entry: REMOTE_IRR,
            },
        ),
        (
            broken(|state| state.pins[5].entry = LEVEL | 4 << 8 | REMOTE_IRR),
            IoApicStateError::RemoteIrr {
                index: 5,
                entry: LEVEL | 4 << 8 | REMOTE_IRR,
            },
        ),
    ] {
        assert_eq!(ioapic.restore(&state), Err(error));
        assert_eq!(ioapic.save(), good);
    }
}

#[test]
fn a_reset_sends_nothing_and_keeps_the_lines() {
    let (ioapic, sink) = new();
    program(&ioapic, 3, LEVEL | 0x33);
    let line = ioapic.level_line(Pin(3)).unwrap();
    line.trigger().unwrap();
    sink.take();
    ioapic.reset();
    assert_eq!(entry(&ioapic, 3), MASKED);
    assert_eq!(sink.vectors(), []);
    program(&ioapic, 3, LEVEL | 0x33);
    assert_eq!(sink.vectors(), [0x33]);
}

#[test]
fn a_reset_leads_back_to_power_up_and_forgets_what_the_sink_refused() {
    let (ioapic, sink) = new();
    let fresh = ioapic.save();
    write(&ioapic, 0, 5 << 24);
    program(&ioapic, 4, 7 << 56 | 0x34);
    sink.refuse(true);
    ioapic.edge_line(Pin(4)).unwrap().trigger().unwrap();
    sink.refuse(false);
    ioapic.reset();
    assert_eq!(ioapic.save(), fresh);
    program(&ioapic, 4, 0x35);
    assert_eq!(sink.vectors(), [], "an edge of before the reset");
}
