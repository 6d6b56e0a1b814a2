//! The injected clock.

use devisor::time::{Clock, ManualClock};
use std::time::Duration;

#[test]
fn a_clock_stops_at_the_end_of_time_and_never_runs_backwards() {
    let clock = ManualClock::new(Duration::from_nanos(u64::MAX - 1));
    clock.advance(Duration::from_nanos(1));
    clock.advance(Duration::from_nanos(5));
    assert_eq!(clock.now(), Duration::from_nanos(u64::MAX));
    clock.advance(Duration::MAX);
    clock.advance_to(Duration::ZERO);
    assert_eq!(clock.now(), Duration::from_nanos(u64::MAX));
}

#[test]
fn advancing_to_a_time_that_has_passed_changes_nothing() {
    let clock = ManualClock::new(Duration::from_secs(2));
    clock.advance_to(Duration::from_secs(1));
    assert_eq!(clock.now(), Duration::from_secs(2));
    clock.advance_to(Duration::from_secs(3));
    assert_eq!(clock.now(), Duration::from_secs(3));
}
