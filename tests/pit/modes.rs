//! The six modes. A count that is written within tick t is loaded with the CLK of t + 1.

use crate::machine::*;
use devisor::bus::BusDevice;

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
