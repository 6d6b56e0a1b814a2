//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --lib loom_`

use std::sync::atomic::{AtomicU64 as Plain, Ordering::SeqCst};

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    thread,
};

use super::{Stillness, Stop, turn::Turn};
use crate::virtio::queue::{Begin, End, Word, is_inside};

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(run);
}

/// A lane whose queue is a number of requests that were offered, and how many of them were found.
struct Lane {
    word: Word,
    stillness: Arc<Stillness>,
    /// How often it was told. Not of loom: it is not under test.
    reached: std::sync::Arc<Plain>,
    inside: AtomicBool,
    offered: AtomicU64,
    found: AtomicU64,
    /// A round could find requests since the handler was told last.
    untold: AtomicBool,
    /// How many of the requests that are found next are taken away.
    take: AtomicU64,
}

impl Lane {
    fn new() -> Arc<Self> {
        Self::taking(0)
    }

    fn taking(take: u64) -> Arc<Self> {
        let stillness = Arc::new(Stillness::default());
        let reached = std::sync::Arc::new(Plain::new(0));
        let count = std::sync::Arc::clone(&reached);
        stillness.tell(Box::new(move || _ = count.fetch_add(1, SeqCst)));
        let word = Word::new(Arc::clone(&stillness));
        word.start();
        let lane = Arc::new(Self {
            word,
            stillness,
            reached,
            inside: AtomicBool::new(false),
            offered: AtomicU64::new(0),
            found: AtomicU64::new(0),
            untold: AtomicBool::new(false),
            take: AtomicU64::new(take),
        });
        lane.serve(false, true);
        lane
    }

    fn alone<R>(&self, f: impl FnOnce() -> R) -> R {
        assert!(!self.inside.swap(true, SeqCst), "two threads are at it");
        let result = f();
        assert!(self.inside.swap(false, SeqCst));
        result
    }

    fn round(&self) -> bool {
        self.alone(|| {
            if !self.word.is_stopped() {
                self.untold.store(true, SeqCst);
                self.found.store(self.offered.load(SeqCst), SeqCst);
                for _ in 0..self.take.swap(0, SeqCst) {
                    self.word.take();
                }
            }
        });
        false
    }

    fn turn(&self, first: End, stay: bool) {
        let tell = || self.alone(|| self.untold.store(false, SeqCst));
        Turn::new(&self.word).take(first, stay, || self.round(), tell);
    }

    fn serve(&self, patient: bool, stay: bool) -> bool {
        let begun = self.word.begin(patient && !is_inside()) == Begin::Serve;
        if begun {
            self.turn(End::Again, stay);
        }
        begun
    }

    /// The driver offers a request and kicks.
    fn kick(&self, patient: bool) {
        self.offered.fetch_add(1, SeqCst);
        self.word.kick();
        self.serve(patient, true);
    }

    /// Kicks and begins in one step, as the driver's thread does.
    fn kick_at_once(&self) {
        self.offered.fetch_add(1, SeqCst);
        if self.word.kick_and_begin(|| !is_inside()) == Begin::Serve {
            self.turn(End::Again, true);
        }
    }

    /// Has it for a moment, without serving it. Whether it could.
    fn hold(&self) -> bool {
        let held = self.word.hold();
        if held {
            self.alone(|| ());
            self.word.let_go();
        }
        held
    }

    /// An embedder's worker.
    fn run(&self) {
        while self.serve(false, false) {}
    }

    fn stop(&self, reason: Stop) {
        if self.word.stop(reason) == End::Tell {
            self.turn(End::Tell, true);
        }
        self.stillness.reached();
    }

    /// Ends a stop, and looks.
    fn resume(&self, reason: Stop) {
        self.word.resume(reason);
        self.serve(false, true);
    }

    fn assert_all_found(&self) {
        assert_eq!(self.found.load(SeqCst), self.offered.load(SeqCst), "a kick was lost");
    }

    fn assert_still(&self) {
        assert!(self.word.is_still(), "{:?}", self.word);
        assert!(!self.untold.load(SeqCst), "the handler was not told");
        assert_eq!(self.word.chains(), 0);
        assert_ne!(self.reached.load(SeqCst), 0, "nobody was told of it");
        assert_eq!(self.word.begin(false), Begin::Leave);
    }
}

fn with(lane: &Arc<Lane>, f: impl FnOnce(&Lane) + 'static) -> thread::JoinHandle<()> {
    let lane = Arc::clone(lane);
    thread::spawn(move || f(&lane))
}

#[test]
fn loom_two_kicks_are_found_whoever_serves() {
    for (a, b) in [(true, true), (true, false), (false, false)] {
        model(move || {
            let lane = Lane::new();
            let other = with(&lane, move |lane| lane.kick(a));
            lane.kick(b);
            other.join().unwrap();
            lane.assert_all_found();
        });
    }
}

#[test]
fn loom_a_third_kick_relies_on_the_one_that_waits() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(|| {
        let lane = Lane::new();
        let others = [(); 2].map(|()| with(&lane, |lane| lane.kick(true)));
        lane.kick(true);
        others.into_iter().for_each(|other| other.join().unwrap());
        lane.assert_all_found();
    });
}

#[test]
fn loom_a_worker_and_a_kick_leave_nothing_to_each_other() {
    model(|| {
        let lane = Lane::new();
        let worker = with(&lane, |lane| {
            lane.offered.fetch_add(1, SeqCst);
            lane.word.kick();
            lane.run();
        });
        lane.kick(true);
        worker.join().unwrap();
        lane.assert_all_found();
    });
}

#[test]
fn loom_a_lane_that_is_stopped_under_a_kick_becomes_still_and_finds_it_afterwards() {
    for patient in [true, false] {
        model(move || {
            let lane = Lane::new();
            let driver = with(&lane, move |lane| lane.kick(patient));
            lane.stop(Stop::Embedder);
            lane.stillness.wait(|| lane.word.is_still());
            assert!(!lane.inside.load(SeqCst));
            assert!(!lane.untold.load(SeqCst), "the handler was not told");
            driver.join().unwrap();
            lane.assert_still();
            let found = lane.found.load(SeqCst);
            lane.word.kick();
            assert!(!lane.serve(true, true), "it is stopped");
            assert_eq!(lane.found.load(SeqCst), found);
            lane.resume(Stop::Embedder);
            lane.assert_all_found();
        });
    }
}

#[test]
fn loom_a_stop_that_ends_while_it_is_told_loses_no_kick() {
    for patient in [true, false] {
        model(move || {
            let lane = Lane::new();
            let stopper = with(&lane, |lane| lane.stop(Stop::Embedder));
            lane.resume(Stop::Embedder);
            lane.kick(patient);
            stopper.join().unwrap();
            // Stopped after all, or not.
            lane.resume(Stop::Embedder);
            lane.assert_all_found();
        });
        model(move || {
            let lane = Lane::new();
            let embedder = with(&lane, |lane| {
                lane.stop(Stop::Embedder);
                lane.resume(Stop::Embedder);
            });
            lane.kick(patient);
            embedder.join().unwrap();
            lane.assert_all_found();
        });
    }
}

#[test]
fn loom_a_stop_after_one_that_ended_while_it_was_told_is_told_too() {
    model(|| {
        let lane = Lane::new();
        let other = with(&lane, |lane| lane.stop(Stop::Bus));
        lane.resume(Stop::Bus);
        lane.kick(false);
        lane.stop(Stop::Embedder);
        other.join().unwrap();
        lane.assert_still();
        lane.resume(Stop::Bus);
        lane.resume(Stop::Embedder);
        lane.assert_all_found();
    });
}

#[test]
fn loom_two_reasons_to_stop_are_both_to_end() {
    model(|| {
        let lane = Lane::new();
        let other = with(&lane, |lane| {
            lane.stop(Stop::Bus);
            lane.resume(Stop::Bus);
        });
        lane.stop(Stop::Embedder);
        lane.stillness.wait(|| lane.word.is_still());
        lane.offered.fetch_add(1, SeqCst);
        lane.word.kick();
        other.join().unwrap();
        lane.assert_still();
        assert_eq!(lane.found.load(SeqCst), 0);
        lane.resume(Stop::Embedder);
        lane.assert_all_found();
    });
}

#[test]
fn loom_a_stop_waits_for_a_chain_that_ends_elsewhere() {
    for reason in [Stop::Embedder, Stop::Device, Stop::Queue] {
        model(move || {
            let lane = Lane::taking(1);
            let ended = Arc::new(AtomicBool::new(false));
            let backend = {
                let ended = Arc::clone(&ended);
                with(&lane, move |lane| {
                    // The used ring, and the signal.
                    ended.store(true, SeqCst);
                    lane.word.give_back();
                })
            };
            lane.stop(reason);
            lane.stillness.wait(|| lane.word.is_still());
            assert!(ended.load(SeqCst), "still while a chain was out");
            backend.join().unwrap();
            lane.assert_still();
        });
    }
}

#[test]
fn loom_a_chain_that_ends_elsewhere_a_kick_and_a_stop() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(|| {
        let lane = Lane::taking(1);
        let backend = with(&lane, |lane| lane.word.give_back());
        let driver = with(&lane, |lane| lane.kick(true));
        lane.stop(Stop::Embedder);
        lane.stillness.wait(|| lane.word.is_still());
        backend.join().unwrap();
        driver.join().unwrap();
        lane.assert_still();
        lane.resume(Stop::Embedder);
        lane.assert_all_found();
    });
}

#[test]
fn loom_a_stopped_lane_is_served_for_the_chains_that_are_out_and_keeps_other_kicks() {
    model(|| {
        let lane = Lane::taking(1);
        lane.stop(Stop::Bus);
        let backend = with(&lane, |lane| lane.word.give_back());
        lane.kick(false);
        backend.join().unwrap();
        lane.assert_still();
        assert_eq!(lane.found.load(SeqCst), 0);
        lane.resume(Stop::Bus);
        lane.assert_all_found();
    });
}

#[test]
fn loom_a_lane_that_is_held_is_served_by_nobody_and_loses_no_kick() {
    for at_once in [true, false] {
        model(move || {
            let lane = Lane::new();
            let holder = with(&lane, |lane| _ = lane.hold());
            match at_once {
                true => lane.kick_at_once(),
                false => lane.kick(false),
            }
            holder.join().unwrap();
            lane.assert_all_found();
            assert!(lane.hold(), "{:?}", lane.word);
        });
    }
}

#[test]
fn loom_a_lane_that_is_held_beside_a_kick_and_one_that_waits() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(|| {
        let lane = Lane::new();
        let holder = with(&lane, |lane| _ = lane.hold());
        let other = with(&lane, Lane::kick_at_once);
        lane.kick_at_once();
        holder.join().unwrap();
        other.join().unwrap();
        lane.assert_all_found();
    });
}

#[test]
fn loom_a_lane_that_is_held_while_it_is_stopped_is_told_of_it() {
    model(|| {
        let lane = Lane::new();
        let holder = with(&lane, |lane| _ = lane.hold());
        lane.stop(Stop::Embedder);
        lane.stillness.wait(|| lane.word.is_still());
        holder.join().unwrap();
        lane.assert_still();
        assert!(lane.hold());
        lane.assert_still();
        lane.resume(Stop::Embedder);
        lane.assert_all_found();
    });
}

#[test]
fn loom_a_panic_in_a_round_does_not_hold_up_a_stop() {
    model(|| {
        let lane = Lane::new();
        lane.word.kick();
        let panicking = with(&lane, |lane| {
            if lane.word.begin(false) == Begin::Serve {
                // It cannot be told any more.
                lane.untold.store(false, SeqCst);
                drop(Turn::new(&lane.word));
            }
        });
        lane.stop(Stop::Device);
        lane.stillness.wait(|| lane.word.is_still());
        panicking.join().unwrap();
        lane.assert_still();
    });
}

#[test]
fn loom_a_kick_that_waits_behind_a_panic_is_served() {
    model(|| {
        let lane = Lane::new();
        lane.word.kick();
        assert_eq!(lane.word.begin(false), Begin::Serve);
        let driver = with(&lane, |lane| lane.kick(true));
        drop(Turn::new(&lane.word));
        driver.join().unwrap();
        // It came before the panic and left its mark, or waited, or came later.
        lane.serve(false, true);
        lane.assert_all_found();
    });
}

#[test]
fn loom_a_queue_that_is_reset_under_a_kick_begins_as_new() {
    for patient in [true, false] {
        model(move || {
            let lane = Lane::new();
            let driver = with(&lane, move |lane| lane.kick(patient));
            lane.stop(Stop::Queue);
            lane.stillness.wait(|| lane.word.is_still());
            lane.alone(|| {
                lane.word.finish();
                lane.word.resume(Stop::Queue);
            });
            assert!(!lane.word.runs());
            lane.word.start();
            lane.serve(false, true);
            driver.join().unwrap();
            lane.assert_all_found();
            lane.stop(Stop::Device);
            lane.assert_still();
        });
    }
}

#[test]
fn loom_a_lane_that_starts_stopped_is_still_and_is_looked_at_when_that_ends() {
    model(|| {
        let lane = Lane::new();
        lane.stop(Stop::Queue);
        lane.word.finish();
        lane.word.resume(Stop::Queue);
        let embedder = with(&lane, |lane| {
            lane.stop(Stop::Embedder);
            lane.resume(Stop::Embedder);
        });
        lane.offered.fetch_add(1, SeqCst);
        lane.word.start();
        lane.serve(false, true);
        embedder.join().unwrap();
        lane.assert_all_found();
    });
}
