//! An edge that stands for a level.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use devisor::interrupt::{EdgeToLevel, Interrupt, LevelInterrupt, LevelOutput, from_fn};

/// An edge that counts, and refuses while it is told to.
fn counted() -> (Arc<AtomicU64>, Arc<AtomicBool>, EdgeToLevel<impl Interrupt>) {
    let (edges, refuse) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, refusing) = (Arc::clone(&edges), Arc::clone(&refuse));
    let line = EdgeToLevel::new(from_fn(move || {
        if refusing.load(SeqCst) {
            return Err(io::Error::other("refused"));
        }
        count.fetch_add(1, SeqCst);
        Ok(())
    }));
    (edges, refuse, line)
}

#[test]
fn triggers_again_while_the_guest_finishes_and_the_level_is_up() {
    let (edges, _, line) = counted();
    line.trigger().unwrap();
    for n in 2..5 {
        line.guest_done().unwrap();
        assert_eq!(edges.load(SeqCst), n);
    }
    line.clear().unwrap();
    line.guest_done().unwrap();
    assert_eq!(edges.load(SeqCst), 4);
}

#[test]
fn sends_one_edge_a_rise_however_often_it_is_asserted() {
    let (edges, _, line) = counted();
    for n in 1..4 {
        line.trigger().unwrap();
        line.trigger().unwrap();
        assert_eq!(edges.load(SeqCst), n);
        line.clear().unwrap();
        line.clear().unwrap();
    }
}

#[test]
fn sends_nothing_for_a_guest_that_finishes_what_was_never_raised() {
    let (edges, _, line) = counted();
    line.guest_done().unwrap();
    assert_eq!((edges.load(SeqCst), line.is_up()), (0, false));
}

#[test]
fn carries_a_refused_rise_with_the_next_trigger() {
    let (edges, refuse, line) = counted();
    refuse.store(true, SeqCst);
    assert!(line.trigger().is_err());
    assert!(line.trigger().is_err());
    refuse.store(false, SeqCst);
    line.trigger().unwrap();
    assert_eq!((edges.load(SeqCst), line.is_up()), (1, true));
}

#[test]
fn owes_the_edge_that_was_refused_when_the_guest_finished() {
    for retry in [EdgeToLevel::trigger, EdgeToLevel::guest_done] {
        let (edges, refuse, line) = counted();
        line.trigger().unwrap();
        refuse.store(true, SeqCst);
        assert!(line.guest_done().is_err());
        assert!(retry(&line).is_err());
        refuse.store(false, SeqCst);
        retry(&line).unwrap();
        assert_eq!((edges.load(SeqCst), line.is_up()), (2, true));
        line.trigger().unwrap();
        assert_eq!(edges.load(SeqCst), 2, "paid");
    }
}

#[test]
fn owes_nothing_for_a_level_that_went() {
    let (edges, refuse, line) = counted();
    line.trigger().unwrap();
    refuse.store(true, SeqCst);
    assert!(line.guest_done().is_err());
    line.clear().unwrap();
    refuse.store(false, SeqCst);
    line.guest_done().unwrap();
    assert_eq!(edges.load(SeqCst), 1);
}

#[test]
fn does_not_storm_after_a_refused_rise_whose_cause_went() {
    let (edges, refuse, line) = counted();
    let device = LevelOutput::new(&line);
    refuse.store(true, SeqCst);
    assert!(device.drive(true).is_err());
    refuse.store(false, SeqCst);
    device.drive(false).unwrap();
    line.guest_done().unwrap();
    assert_eq!((edges.load(SeqCst), line.is_up()), (0, false));
}
