//! Counter 0's line and its alarm.

use crate::machine::*;
use devisor::{backends::irqchip::pit::Pit, interrupt::level_from_fn, time::Clock};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

// Counter 0's line.

#[test]
fn each_period_is_a_rise_of_the_line_at_the_deadline() {
    let machine = new();
    machine.start(0, 2, 11_932);
    assert_eq!(machine.heard(), [true], "OUT is high from the control word on");
    for period in 1..=1000_u64 {
        let deadline = machine.pit.deadline().unwrap();
        assert_eq!(deadline, tick(1 + period * 11_932), "without drift");
        assert_eq!(*machine.alarm.0.lock().unwrap(), Some(deadline));
        machine.clock.advance_to(deadline - Duration::from_nanos(1));
        machine.pit.expire();
        assert!(machine.heard().iter().all(|up| !up), "early is harmless");
        machine.clock.advance_to(deadline);
        machine.pit.expire();
        assert_eq!(machine.heard().last(), Some(&true));
        machine.pit.expire();
        assert_eq!(machine.heard(), []);
    }
}

#[test]
fn after_a_pause_there_is_one_rise_and_the_next_is_in_time() {
    let machine = new();
    machine.start(0, 2, 1000);
    machine.heard();
    machine.clock.advance(Duration::from_secs(3600));
    machine.pit.expire();
    assert_eq!(machine.heard(), [false, true]);
    let period = (machine.pit.deadline().unwrap() + Duration::from_nanos(1)).as_nanos() * 105 / 88_000;
    assert_eq!(period % 1000, 1);
    assert!(machine.pit.deadline().unwrap() - machine.clock.now() <= tick(1000));
}

#[test]
fn a_square_wave_moves_the_line_both_ways() {
    let machine = new();
    machine.start(0, 3, 1000);
    machine.heard();
    for half in 1..10_u64 {
        assert_eq!(machine.pit.deadline(), Some(tick(1 + half * 500)));
        machine.clock.advance_to(machine.pit.deadline().unwrap());
        machine.pit.expire();
        assert_eq!(machine.heard(), [half % 2 == 0]);
    }
}

#[test]
fn a_square_wave_of_an_odd_count_has_its_deadlines_where_it_moves() {
    let machine = new();
    machine.start(0, 3, 1001);
    machine.at(1);
    // The longer half is the high one.
    for moves in [502, 1002, 1503, 2003] {
        assert_eq!(machine.pit.deadline(), Some(tick(moves)));
        let before = machine.out(0);
        machine.at(moves);
        assert_ne!(machine.out(0), before);
    }
}

#[test]
fn a_rise_that_has_gone_by_is_told_also_in_the_tick_in_which_out_is_low() {
    let machine = new();
    machine.start(0, 2, 1000);
    machine.at(1001);
    machine.heard();
    machine.at(3000);
    assert!(!machine.out(0));
    assert_eq!(machine.heard(), [LOW, HIGH, LOW], "that of tick 2001");
}

#[test]
fn the_line_is_of_counter_0_alone() {
    let machine = new();
    machine.gate2(true);
    for counter in [1, 2] {
        machine.start(counter, 2, 500);
    }
    for ticks in (0..5000).step_by(100) {
        machine.at(ticks);
    }
    assert_eq!(machine.heard(), []);
    assert_eq!(machine.pit.deadline(), None);
}

#[test]
fn a_one_shot_has_one_deadline() {
    let machine = new();
    machine.start(0, 0, 100);
    assert_eq!(machine.heard(), []);
    machine.at(100);
    assert_eq!(machine.heard(), []);
    machine.at(101);
    assert_eq!((machine.heard(), machine.pit.deadline()), (vec![true], None));
    machine.at(1_000_000);
    assert_eq!(machine.heard(), []);
    // The next one takes the line down first.
    machine.write(0, 100);
    assert_eq!(machine.heard(), [false]);
}

#[test]
fn a_strobe_that_was_not_seen_low_is_a_rise_all_the_same() {
    let machine = new();
    machine.start(0, 4, 100);
    machine.heard();
    machine.clock.advance_to(machine.pit.deadline().unwrap());
    machine.pit.expire();
    assert_eq!(machine.heard(), [false, true]);
    assert_eq!(machine.pit.deadline(), None);
}

#[test]
fn a_rise_is_not_lost_if_a_register_access_comes_before_the_alarm() {
    let machine = new();
    machine.start(0, 0, 100);
    machine.clock.advance_to(tick(500));
    machine.start(0, 0, 100);
    assert_eq!(machine.heard(), [true, false]);
}

#[test]
fn a_short_period_does_not_set_the_alarm_more_often_than_every_200_microseconds() {
    for (mode, count) in [(2, 2), (2, 238), (3, 7), (3, 100)] {
        let machine = new();
        machine.start(0, mode, count);
        machine.heard();
        let mut last = machine.clock.now();
        for _ in 0..100 {
            let deadline = machine.pit.deadline().unwrap();
            assert!(
                deadline - last >= Duration::from_micros(200),
                "mode {mode}, count {count}"
            );
            let (ticks, period) = (deadline.as_nanos() * 105 / 88_000 - 1, u128::from(count));
            assert_eq!(ticks % period, 0, "a rise of OUT, without drift");
            // Looking at it meanwhile does not put it off.
            machine.clock.advance(Duration::from_micros(150));
            machine.pit.expire();
            assert_eq!(machine.pit.deadline(), Some(deadline));
            machine.heard();
            machine.clock.advance_to(deadline);
            machine.pit.expire();
            let heard = machine.heard();
            assert_eq!(heard.last(), Some(&true));
            assert!(heard.len() <= 2, "as many as went by are one");
            last = deadline;
        }
    }
}

#[test]
fn counts_that_are_not_allowed_have_no_deadline() {
    for mode in [2, 3] {
        let machine = new();
        machine.start(0, mode, 1);
        machine.at(10);
        assert_eq!(machine.pit.deadline(), None);
    }
}

#[test]
fn a_count_that_follows_one_that_is_not_allowed_has_a_deadline_and_rises() {
    for mode in [2, 3] {
        let machine = new();
        machine.start(0, mode, 1);
        machine.at(1000);
        machine.write(0, 1000);
        let look = machine.pit.deadline().expect("it waits for the end of a period");
        assert!(look > tick(1000) && look <= tick(1000) + Duration::from_micros(201));
        machine.clock.advance_to(look);
        machine.pit.expire();
        machine.heard();
        let half = if mode == 3 { 500 } else { 1000 };
        assert_eq!(machine.pit.deadline(), Some(tick(1001 + half)), "mode {mode}");
        machine.at(1001 + 1000);
        assert_eq!(machine.heard().last(), Some(&true), "mode {mode}");
    }
}

#[test]
fn what_a_count_that_follows_one_that_is_not_allowed_did_in_a_pause_is_a_rise() {
    let machine = new();
    machine.start(0, 3, 1);
    machine.at(10);
    machine.heard();
    machine.write(0, 100);
    machine.at(11 + 100);
    assert_eq!(machine.heard(), [false, true]);
}

// The alarm, and a line that refuses.

/// An alarm is a timer that goes off once.
#[test]
fn an_expiry_that_comes_early_is_told_the_deadline_again_and_one_in_time_the_next() {
    let machine = new();
    machine.start(0, 2, 11_932);
    let told = || machine.alarm.0.lock().unwrap().take();
    let deadline = tick(1 + 11_932);
    assert_eq!(told(), Some(deadline));
    for early in [400, 1] {
        machine.clock.advance_to(deadline - Duration::from_nanos(early));
        machine.pit.expire();
        assert_eq!(told(), Some(deadline), "early by {early} ns");
    }
    machine.clock.advance_to(deadline);
    machine.pit.expire();
    assert_eq!(told(), Some(tick(1 + 2 * 11_932)));
    machine.gate2(true);
    assert_eq!(told(), None, "nothing new, and no expiry");
}

/// A machine whose line refuses while the flag is set.
fn refusing() -> (Machine, Arc<AtomicBool>) {
    let machine = new();
    let refuses = Arc::new(AtomicBool::new(false));
    let (log, refused) = (Arc::clone(&machine.heard), Arc::clone(&refuses));
    let line = level_from_fn(move |up| {
        if refused.load(SeqCst) {
            return Err(io::Error::other("refused"));
        }
        log.lock().unwrap().push(up);
        Ok(())
    });
    let pit = Pit::new(line, Arc::clone(&machine.clock), Arc::clone(&machine.alarm));
    let ports = pit.counters();
    (Machine { pit, ports, ..machine }, refuses)
}

#[test]
fn a_rise_that_the_line_refuses_is_told_later_though_out_is_low_by_then() {
    let (machine, refuses) = refusing();
    machine.start(0, 3, 1000);
    assert_eq!(machine.heard(), [true]);
    machine.at(501);
    assert_eq!(machine.heard(), [false]);
    refuses.store(true, SeqCst);
    machine.at(1001);
    machine.at(1501);
    assert!(machine.pit.output_failures() >= 1);
    refuses.store(false, SeqCst);
    machine.at(1502);
    assert_eq!(machine.heard(), [true, false]);
    machine.at(1503);
    assert_eq!(machine.heard(), [], "once");
}

#[test]
fn a_rise_after_a_fall_that_the_line_refused_is_a_rise() {
    for fall in [501, 1001] {
        let (machine, refuses) = refusing();
        machine.start(0, 3, 1000);
        assert_eq!(machine.heard(), [true]);
        refuses.store(true, SeqCst);
        // By itself, or together with the rise.
        machine.at(fall);
        refuses.store(false, SeqCst);
        machine.at(1002);
        assert_eq!(machine.heard(), [false, true], "refused at {fall}");
    }
}

#[test]
fn a_rise_that_the_line_has_refused_is_in_the_state() {
    let (machine, refuses) = refusing();
    machine.start(0, 3, 1000);
    machine.at(501);
    refuses.store(true, SeqCst);
    machine.at(1001);
    machine.at(1501);
    let state = machine.pit.save();
    assert!(state.rose);
    let other = new();
    other.pit.restore(&state).unwrap();
    assert_eq!(other.heard(), [true, false]);
    assert!(!other.pit.save().rose);

    // What saving has told itself is no rise of the other's.
    refuses.store(false, SeqCst);
    machine.at(3502);
    machine.clock.advance_to(tick(4502));
    let state = machine.pit.save();
    assert!(!state.rose);
    other.heard();
    other.pit.restore(&state).unwrap();
    assert_eq!(other.heard(), []);
}
