//! The 8254 by its data sheet (order number 231164): what a guest and an embedder can see of it.
#![cfg(feature = "irqchip")]

use devisor::{
    backends::irqchip::pit::{CounterPorts, Pit, PitState},
    bus::BusDevice,
    interrupt::{NoInterrupt, level_from_fn},
    time::{Alarm, Clock, ManualClock},
};
use proptest::prelude::*;
use std::{
    io, mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

/// The first moment of a tick: 105 of them are 88 microseconds.
fn tick(ticks: u64) -> Duration {
    Duration::from_nanos((ticks * 88_000).div_ceil(105))
}

#[derive(Default)]
struct Deadline(Mutex<Option<Duration>>);

impl Alarm for Deadline {
    fn set(&self, deadline: Option<Duration>) {
        *self.0.lock().unwrap() = deadline;
    }
}

struct Machine {
    pit: Pit,
    ports: CounterPorts,
    clock: Arc<ManualClock>,
    alarm: Arc<Deadline>,
    /// What the line of counter 0 was told.
    heard: Arc<Mutex<Vec<bool>>>,
}

fn new() -> Machine {
    let clock = Arc::new(ManualClock::default());
    let alarm = Arc::new(Deadline::default());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let line = level_from_fn(move |up| {
        log.lock().unwrap().push(up);
        Ok(())
    });
    let pit = Pit::new(line, Arc::clone(&clock), Arc::clone(&alarm));
    Machine {
        ports: pit.counters(),
        pit,
        clock,
        alarm,
        heard,
    }
}

impl Machine {
    fn control(&self, word: u8) {
        self.ports.write(3, &[word]);
    }

    /// A control word for both bytes, and the count.
    fn start(&self, counter: u8, mode: u8, count: u16) {
        self.control(counter << 6 | 3 << 4 | mode << 1);
        self.write(counter, count);
    }

    fn write(&self, counter: u8, count: u16) {
        for byte in count.to_le_bytes() {
            self.ports.write(counter.into(), &[byte]);
        }
    }

    fn byte(&self, counter: u8) -> u8 {
        let mut data = [0];
        self.ports.read(counter.into(), &mut data);
        data[0]
    }

    fn latched(&self, counter: u8) -> u16 {
        self.control(counter << 6);
        u16::from_le_bytes([self.byte(counter), self.byte(counter)])
    }

    fn status(&self, counter: u8) -> u8 {
        self.control(0xe0 | 2 << counter);
        self.byte(counter)
    }

    fn out(&self, counter: u8) -> bool {
        self.status(counter) & 0x80 != 0
    }

    fn null_count(&self, counter: u8) -> bool {
        self.status(counter) & 0x40 != 0
    }

    fn at(&self, ticks: u64) {
        self.clock.advance_to(tick(ticks));
        self.pit.expire();
    }

    fn gate2(&self, up: bool) {
        self.pit.port_b().write(0, &[up.into()]);
    }

    fn heard(&self) -> Vec<bool> {
        mem::take(&mut self.heard.lock().unwrap())
    }

    /// OUT and the count of counter 2 at each of some ticks.
    fn trace(&self, ticks: std::ops::RangeInclusive<u64>) -> Vec<(bool, u16)> {
        ticks
            .map(|ticks| {
                self.at(ticks);
                (self.out(2), self.latched(2))
            })
            .collect()
    }
}

const HIGH: bool = true;
const LOW: bool = false;

// Modes. A count that is written within tick t is loaded with the CLK of t + 1.

#[test]
fn mode_0_rises_when_the_count_has_run_out_and_stays_high() {
    let machine = new();
    machine.gate2(true);
    machine.start(2, 0, 3);
    assert_eq!(
        machine.trace(1..=6),
        [(LOW, 3), (LOW, 2), (LOW, 1), (HIGH, 0), (HIGH, 0xffff), (HIGH, 0xfffe)]
    );
    machine.write(2, 2);
    assert_eq!(machine.trace(7..=9), [(LOW, 2), (LOW, 1), (HIGH, 0)]);
}

#[test]
fn mode_0_stops_at_the_first_byte_of_a_count_and_while_gate_is_low() {
    let machine = new();
    machine.gate2(true);
    machine.start(2, 0, 5);
    machine.at(3);
    machine.gate2(false);
    assert_eq!(machine.trace(10..=11), [(LOW, 3), (LOW, 3)]);
    machine.gate2(true);
    assert_eq!(machine.trace(12..=14), [(LOW, 2), (LOW, 1), (HIGH, 0)]);
    machine.ports.write(2, &[4]);
    machine.at(100);
    assert!(!machine.out(2) && machine.null_count(2));
    machine.ports.write(2, &[0]);
    machine.at(104);
    assert!(!machine.out(2));
    machine.at(105);
    assert!(machine.out(2));
}

#[test]
fn mode_1_is_low_for_the_count_from_each_rise_of_gate_on() {
    let machine = new();
    machine.start(2, 1, 3);
    machine.at(10);
    assert!(machine.out(2) && machine.null_count(2), "without a trigger");
    machine.gate2(true);
    assert_eq!(machine.trace(11..=13), [(LOW, 3), (LOW, 2), (LOW, 1)]);
    // Neither the fall of GATE nor a new count interrupts the shot; another rise prolongs it, with the new count.
    machine.gate2(false);
    machine.write(2, 2);
    assert!(!machine.out(2));
    machine.gate2(true);
    assert_eq!(machine.trace(14..=16), [(LOW, 2), (LOW, 1), (HIGH, 0)]);
}

#[test]
fn a_fall_of_gate_does_not_stop_modes_1_and_5() {
    for mode in [1, 5] {
        let machine = new();
        machine.start(2, mode, 4);
        machine.gate2(true);
        machine.at(2);
        machine.gate2(false);
        assert_eq!(machine.latched(2), 3);
        machine.at(4);
        assert_eq!((machine.out(2), machine.latched(2)), (mode == 5, 1));
        machine.at(5);
        assert_eq!((machine.out(2), machine.latched(2)), (mode == 1, 0));
        machine.at(6);
        assert!(machine.out(2));
    }
}

#[test]
fn mode_2_is_low_for_the_last_tick_of_each_period() {
    for mode in [2, 6] {
        let machine = new();
        machine.gate2(true);
        machine.start(2, mode, 3);
        let period = [(HIGH, 3), (HIGH, 2), (LOW, 1)];
        assert_eq!(machine.trace(1..=6), [period, period].concat());
        // A new count waits for the end of the period.
        machine.at(7);
        machine.write(2, 2);
        assert!(machine.null_count(2));
        assert_eq!(machine.trace(8..=11), [(HIGH, 2), (LOW, 1), (HIGH, 2), (LOW, 1)]);
        assert!(!machine.null_count(2));
    }
}

#[test]
fn a_new_count_of_a_periodic_mode_waits_for_the_end_of_the_period() {
    for mode in [2, 3] {
        let machine = new();
        machine.start(0, mode, 1000);
        machine.at(300);
        machine.heard();
        machine.write(0, 2000);
        machine.at(400);
        assert!(machine.null_count(0));
        assert_eq!(machine.latched(0), if mode == 2 { 601 } else { 202 });
        // It began at tick 1.
        machine.at(1101);
        assert!(!machine.null_count(0));
        assert_eq!(
            machine.latched(0),
            if mode == 2 { 1900 } else { 1800 },
            "also if one comes late"
        );
        machine.heard();
        machine.at(3000);
        assert!(!machine.heard().contains(&HIGH), "not before the end");
        machine.at(3001);
        assert_eq!(machine.heard().last(), Some(&HIGH));
    }
}

#[test]
fn a_fall_of_gate_forces_modes_2_and_3_high_and_a_rise_starts_the_period_anew() {
    for mode in [2, 3] {
        let machine = new();
        machine.gate2(true);
        machine.start(2, mode, 4);
        machine.at(4);
        assert!(!machine.out(2));
        machine.gate2(false);
        assert!(machine.out(2));
        machine.at(50);
        assert!(machine.out(2));
        machine.gate2(true);
        machine.at(51);
        assert_eq!(machine.latched(2), 4);
        machine.at(54);
        assert!(!machine.out(2));
    }
}

#[test]
fn mode_3_is_high_for_one_half_of_each_period_and_for_the_longer_one_of_an_odd_count() {
    for mode in [3, 7] {
        let machine = new();
        machine.gate2(true);
        machine.start(2, mode, 4);
        let period = [(HIGH, 4), (HIGH, 2), (LOW, 4), (LOW, 2)];
        assert_eq!(machine.trace(1..=8), [period, period].concat());
        machine.start(2, mode, 5);
        let period = [(HIGH, 4), (HIGH, 2), (HIGH, 0), (LOW, 4), (LOW, 2)];
        assert_eq!(machine.trace(9..=18), [period, period].concat());
    }
}

#[test]
fn mode_4_is_low_for_one_tick_when_the_count_has_run_out() {
    let machine = new();
    machine.gate2(true);
    machine.start(2, 4, 2);
    assert_eq!(
        machine.trace(1..=5),
        [(HIGH, 2), (HIGH, 1), (LOW, 0), (HIGH, 0xffff), (HIGH, 0xfffe)]
    );
    machine.write(2, 1);
    machine.gate2(false);
    machine.at(20);
    assert!(machine.out(2), "GATE inhibits it");
}

#[test]
fn mode_5_strobes_after_each_rise_of_gate() {
    let machine = new();
    machine.start(2, 5, 2);
    machine.at(10);
    machine.gate2(true);
    assert_eq!(machine.trace(11..=14), [(HIGH, 2), (HIGH, 1), (LOW, 0), (HIGH, 0xffff)]);
    machine.gate2(false);
    machine.gate2(true);
    assert_eq!(machine.trace(15..=17), [(HIGH, 2), (HIGH, 1), (LOW, 0)]);
}

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

// Port B.

#[test]
fn port_b_gates_counter_2_and_the_speaker() {
    let machine = new();
    let port = machine.pit.port_b();
    let read = || {
        let mut data = [0];
        port.read(0, &mut data);
        data[0] & !0x10
    };
    machine.start(2, 3, 4);
    port.write(0, &[0xff]);
    machine.at(1);
    assert_eq!((read(), machine.pit.speaker()), (0x2f, true));
    machine.at(3);
    assert_eq!((read(), machine.pit.speaker()), (0x0f, false));
    port.write(0, &[1]);
    machine.at(5);
    assert_eq!((read(), machine.pit.speaker()), (0x21, false));
}

#[test]
fn the_refresh_bit_toggles_about_every_15_microseconds() {
    let machine = new();
    let mut toggles = 0;
    let mut last = 0;
    for _ in 0..1000 {
        machine.clock.advance(Duration::from_micros(1));
        let mut data = [0];
        machine.pit.port_b().read(0, &mut data);
        toggles += u32::from(data[0] & 0x10 != last);
        last = data[0] & 0x10;
    }
    assert!((64..=68).contains(&toggles), "{toggles}");
}

// State.

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
