//! Save, restore and reset.

use crate::machine::*;
use devisor::{
    backends::irqchip::pit::{Pit, PitState},
    bus::BusDevice,
    interrupt::NoInterrupt,
    time::{Clock, ManualClock},
};
use proptest::prelude::*;
use std::time::Duration;

#[test]
fn a_restore_keeps_what_is_left_of_a_deadline_on_another_clock() {
    let machine = new();
    machine.gate2(true);
    machine.start(0, 2, 1000);
    machine.start(2, 3, 500);
    machine.control(0x80);
    machine.ports.write(1, &[7]);
    machine.at(400);
    let state = machine.pit.save();

    let other = new();
    other.clock.advance(Duration::from_secs(1_000_000));
    other.pit.restore(&state).unwrap();
    assert_eq!(other.pit.save(), state);
    assert_eq!(other.heard(), [true]);
    let left = other.pit.deadline().unwrap() - other.clock.now();
    // A tick of 838 nanoseconds is what time has for a grain.
    assert!(left.abs_diff(tick(601)) <= tick(1), "{left:?}");
    assert_eq!(other.byte(2), machine.byte(2));
}

#[test]
fn a_state_that_no_guest_could_have_brought_about_is_refused_and_changes_nothing() {
    let machine = new();
    machine.start(0, 2, 1000);
    machine.at(50);
    let good = machine.pit.save();
    type Change = fn(&mut PitState);
    let cases: [(Change, &str); 11] = [
        (|s| s.port_b = 0x10, "port B of counter 2 is 0x10"),
        (|s| s.now = u64::MAX, "now of counter 2"),
        (|s| s.counters[1].format = 0x40, "format of counter 1"),
        (|s| s.counters[1].format = 0x0f, "format of counter 1"),
        (|s| s.counters[0].gate = false, "gate of counter 0"),
        (|s| s.counters[2].gate = true, "gate of counter 2"),
        (|s| s.counters[0].count = Some(0), "count of counter 0 is 0x0"),
        (|s| s.counters[0].next = Some(0x1_0001), "count of counter 0 is 0x10001"),
        (|s| s.counters[0].counted = 51, "counted of counter 0"),
        (|s| s.counters[0].counted = 2, "counted of counter 0"),
        (|s| s.counters[0].since = Some(52), "since of counter 0"),
    ];
    for (change, message) in cases {
        let mut state = good.clone();
        change(&mut state);
        let error = machine.pit.restore(&state).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
        assert_eq!(machine.pit.save(), good);
    }
}

#[test]
fn a_reset_stops_everything() {
    let machine = new();
    machine.start(0, 2, 1000);
    machine.gate2(true);
    machine.heard();
    machine.pit.reset();
    assert_eq!((machine.heard(), machine.pit.deadline()), (vec![false], None));
    assert_eq!(*machine.alarm.0.lock().unwrap(), None);
    assert_eq!(machine.pit.save().port_b, 0);
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_and_times_answers_and_leaves_a_state_that_can_be_restored(
        steps in prop::collection::vec(
            (0..6u8, prop_oneof![0..5u64, any::<u64>()], any::<[u8; 9]>(), 0..10usize,
             prop_oneof![0..5_000u64, Just(u64::MAX), Just(1 << 40)]),
            1..200,
        )
    ) {
        let machine = new();
        for (what, offset, mut data, len, time) in steps {
            match what {
                0 | 1 => machine.ports.write(offset, &data[..len]),
                2 => machine.ports.read(offset, &mut data[..len]),
                3 => machine.pit.port_b().write(offset, &data[..len]),
                4 => machine.pit.port_b().read(offset, &mut data[..len]),
                _ => machine.clock.advance(Duration::from_nanos(time)),
            }
            let before = machine.heard.lock().unwrap().len();
            machine.pit.expire();
            let told = machine.heard.lock().unwrap().len() - before;
            prop_assert!(told <= 3, "told {told} times");
            if let Some(deadline) = machine.pit.deadline() {
                prop_assert!(deadline > machine.clock.now());
            }
            let state = machine.pit.save();
            let other = Pit::new(NoInterrupt, ManualClock::default(), ());
            prop_assert_eq!(other.restore(&state), Ok(()));
            prop_assert_eq!(other.save(), state);
        }
    }
}
