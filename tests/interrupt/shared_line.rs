//! A wire that several devices share.

use crate::heard::*;

use devisor::interrupt::{Interrupt, LevelInterrupt, LevelOutput, LineSource, NoInterrupt, SharedLine, TooManySources};
use proptest::prelude::*;

#[test]
fn stays_up_until_both_devices_have_let_go() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let (uart, clock) = (wire.source().unwrap(), wire.source().unwrap());
    uart.trigger().unwrap();
    clock.trigger().unwrap();
    uart.clear().unwrap();
    assert_eq!(heard.calls(), [true]);
    clock.clear().unwrap();
    assert_eq!(heard.calls(), [true, false]);
}

#[test]
fn hears_transitions_and_no_repeats() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let source = wire.source().unwrap();
    source.clear().unwrap();
    source.trigger().unwrap();
    source.trigger().unwrap();
    source.clear().unwrap();
    source.clear().unwrap();
    source.trigger().unwrap();
    assert_eq!(heard.calls(), [true, false, true]);
}

#[test]
fn falls_when_the_device_that_holds_it_up_is_dropped() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let source = wire.source().unwrap();
    source.trigger().unwrap();
    drop(wire);
    drop(source);
    assert_eq!(heard.calls(), [true, false]);
}

#[test]
fn refuses_a_source_too_many_and_names_the_limit() {
    let wire = SharedLine::new(NoInterrupt);
    let limit = SharedLine::<NoInterrupt>::MAX_SOURCES;
    let sources: Vec<_> = (0..limit).map(|_| wire.source().unwrap()).collect();
    assert_eq!(wire.source().err(), Some(TooManySources));
    assert!(TooManySources.to_string().contains(&limit.to_string()));
    drop(sources);
    assert!(wire.source().is_ok());
}

#[test]
fn gives_the_place_of_a_dropped_source_to_the_next_which_starts_down() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let mut sources: Vec<_> = (0..48).map(|_| wire.source().unwrap()).collect();
    sources[17].trigger().unwrap();
    sources.remove(17);
    assert_eq!(heard.calls(), [true, false]);

    let late = wire.source().unwrap();
    assert_eq!(wire.source().err(), Some(TooManySources));
    late.trigger().unwrap();
    drop(sources);
    assert!(heard.is_up(), "the place is its own");
    late.clear().unwrap();
    assert!(!heard.is_up());
}

#[test]
fn carries_another_shared_line_where_48_sources_are_not_enough() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let branch = SharedLine::new(wire.source().unwrap());
    let (near, far) = (wire.source().unwrap(), branch.source().unwrap());
    far.trigger().unwrap();
    near.trigger().unwrap();
    far.clear().unwrap();
    assert!(heard.is_up());
    near.clear().unwrap();
    assert_eq!(heard.calls(), [true, false]);
}

#[test]
fn falls_with_the_next_call_when_the_drop_of_its_last_holder_was_refused() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let (gone, other) = (wire.source().unwrap(), wire.source().unwrap());
    gone.trigger().unwrap();
    heard.refuse(true);
    drop(gone);
    assert!(heard.is_up() && !wire.output().is_up());
    assert_eq!(wire.output().failures(), 1);
    heard.refuse(false);
    other.clear().unwrap();
    assert_eq!(heard.calls(), [true, false]);
}

#[test]
fn is_not_held_by_a_device_whose_refused_raise_has_lost_its_cause() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let (device, other) = (LevelOutput::new(wire.source().unwrap()), wire.source().unwrap());
    heard.refuse(true);
    assert!(device.drive(true).is_err());
    heard.refuse(false);
    // The device knows that the wire was not raised, and does not lower it.
    device.drive(false).unwrap();
    other.trigger().unwrap();
    other.clear().unwrap();
    assert!(!heard.is_up());
}

#[test]
fn is_held_by_a_device_whose_refused_lowering_was_followed_by_another_cause() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let (device, other) = (LevelOutput::new(wire.source().unwrap()), wire.source().unwrap());
    device.drive(true).unwrap();
    heard.refuse(true);
    assert!(device.drive(false).is_err());
    heard.refuse(false);
    // The device knows that the wire was not lowered, and does not raise it.
    device.drive(true).unwrap();
    other.trigger().unwrap();
    other.clear().unwrap();
    assert!(heard.is_up());
}

proptest! {
    /// Against the naive model: a set of who holds the line up.
    #[test]
    fn is_the_or_of_its_sources_after_every_step(
        steps in proptest::collection::vec((0..6_usize, 0..5_u8), 1..80)
    ) {
        let heard = Heard::default();
        let wire = SharedLine::new(heard.line());
        let mut sources: Vec<Option<(LineSource<_>, bool)>> = (0..6).map(|_| None).collect();
        for (at, step) in steps {
            match (step, &mut sources[at]) {
                (0, slot) => *slot = None,
                (1, slot) => *slot = Some((wire.source().unwrap(), false)),
                (2, Some((source, up))) => {
                    source.clear().unwrap();
                    *up = false;
                }
                (_, Some((source, up))) => {
                    source.trigger().unwrap();
                    *up = true;
                }
                (_, None) => {}
            }
            let or = sources.iter().flatten().any(|(_, up)| *up);
            prop_assert_eq!(heard.is_up(), or);
        }
        let calls = heard.calls();
        prop_assert!(calls.iter().enumerate().all(|(n, &up)| up == (n % 2 == 0)), "a repeat: {:?}", calls);
    }
}
