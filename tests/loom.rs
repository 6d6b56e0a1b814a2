//! Models of the lock-free parts of `interrupt`: every schedule (of up to the preemption bound) loses no interrupt.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --test loom
//! ```
//!
//! `loom` runs each model once for every schedule of its threads, and for every value that the memory model lets a load
//! see. Schedules are bounded to three preemptions a run (set `LOOM_MAX_PREEMPTIONS` for another bound): what
//! two or three threads get wrong shows within that, and the whole file takes seconds.
#![cfg(loom)]

use std::{
    io,
    sync::{
        Weak,
        atomic::{AtomicU64 as Plain, Ordering::SeqCst},
    },
};

use devisor::interrupt::{EdgeToLevel, Interrupt, LevelInterrupt, LevelOutput, LineSource, SharedLine};
use loom::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(run);
}

/// Which calls, counted from 0, a line or an edge refuses: one bit a call. Not a loom type, for it is not under test.
#[derive(Default)]
struct Refusals {
    calls: Plain,
    refused: u64,
}

impl Refusals {
    fn of(refused: u64) -> Self {
        Self {
            calls: Plain::new(0),
            refused,
        }
    }

    fn next(&self) -> io::Result<()> {
        let call = self.calls.fetch_add(1, SeqCst);
        match self.refused >> call & 1 {
            0 => Ok(()),
            _ => Err(io::Error::other("refused")),
        }
    }
}

/// A line that insists on its side of the contract: one call at a time, and each one that it accepts a transition.
#[derive(Default)]
struct Strict {
    level: AtomicBool,
    inside: AtomicBool,
    refusals: Refusals,
}

impl Strict {
    fn refusing(refused: u64) -> Self {
        Self {
            refusals: Refusals::of(refused),
            ..Self::default()
        }
    }

    fn is_up(&self) -> bool {
        self.level.load(SeqCst)
    }

    fn tell(&self, up: bool, meanwhile: impl FnOnce()) -> io::Result<()> {
        assert!(!self.inside.swap(true, SeqCst), "two calls at a time");
        let result = self.refusals.next();
        if result.is_ok() {
            assert_ne!(self.level.swap(up, SeqCst), up, "a repeat, not a transition");
        }
        meanwhile();
        assert!(self.inside.swap(false, SeqCst));
        result
    }
}

impl Interrupt for Strict {
    fn trigger(&self) -> io::Result<()> {
        self.tell(true, || ())
    }
}

impl LevelInterrupt for Strict {
    fn clear(&self) -> io::Result<()> {
        self.tell(false, || ())
    }
}

mod shared_line {
    use super::*;

    #[test]
    fn is_the_or_of_two_sources_that_move_at_once() {
        model(|| {
            let wire = SharedLine::new(Strict::default());
            let (a, b) = (wire.source().unwrap(), wire.source().unwrap());
            let other = thread::spawn(move || {
                a.trigger().unwrap();
                a.clear().unwrap();
                a
            });
            b.trigger().unwrap();
            let a = other.join().unwrap();
            assert!(wire.output().line().is_up(), "b holds it");

            let other = thread::spawn(move || a.trigger().map(|()| a).unwrap());
            b.clear().unwrap();
            let _a = other.join().unwrap();
            assert!(wire.output().line().is_up(), "a holds it");
        });
    }

    #[test]
    fn is_down_once_two_sources_have_let_go() {
        model(|| {
            let wire = SharedLine::new(Strict::default());
            let (a, b) = (wire.source().unwrap(), wire.source().unwrap());
            a.trigger().unwrap();
            let other = thread::spawn(move || a.clear().map(|()| a).unwrap());
            b.trigger().unwrap();
            b.clear().unwrap();
            let _a = other.join().unwrap();
            assert!(!wire.output().line().is_up());
        });
    }

    #[test]
    fn stays_up_when_one_source_is_dropped_while_another_triggers() {
        model(|| {
            let wire = SharedLine::new(Strict::default());
            let (a, b) = (wire.source().unwrap(), wire.source().unwrap());
            a.trigger().unwrap();
            let other = thread::spawn(move || drop(a));
            b.trigger().unwrap();
            other.join().unwrap();
            assert!(wire.output().line().is_up());
            drop(b);
            assert!(!wire.output().line().is_up());
        });
    }

    #[test]
    fn gives_the_place_of_a_dropped_source_away_only_once_it_has_let_go() {
        model(|| {
            let wire = SharedLine::new(Strict::default());
            let a = wire.source().unwrap();
            a.trigger().unwrap();
            let other = thread::spawn(move || drop(a));
            let b = wire.source().unwrap();
            b.trigger().unwrap();
            other.join().unwrap();
            assert!(
                wire.output().line().is_up(),
                "the drop of a took the cause of b with it"
            );
        });
    }

    #[test]
    fn gives_two_threads_two_places() {
        model(|| {
            let wire = SharedLine::new(Strict::default());
            let sharing = wire.clone();
            let other = thread::spawn(move || {
                let a = sharing.source().unwrap();
                a.trigger().unwrap();
                a
            });
            let b = wire.source().unwrap();
            b.trigger().unwrap();
            b.clear().unwrap();
            let _a = other.join().unwrap();
            assert!(wire.output().line().is_up());
        });
    }
}

mod level_output {
    use super::*;

    /// Any two calls may be refused: when all have returned, either the line is right, or somebody was told that it is
    /// not and one more signal sets it right.
    #[test]
    fn tells_with_a_later_signal_what_the_line_refused() {
        for refused in 0..8 {
            model(move || {
                let output = Arc::new(LevelOutput::new(Strict::refusing(refused)));
                let theirs = Arc::clone(&output);
                let other = thread::spawn(move || {
                    theirs.update(|causes| causes | 1);
                    let raised = theirs.settle();
                    theirs.update(|causes| causes & !1);
                    raised.and(theirs.settle())
                });
                output.update(|causes| causes | 2);
                let result = output.settle();
                let result = other.join().unwrap().and(result);
                if !output.line().is_up() {
                    assert!(result.is_err(), "nobody was told that the line is not up");
                    assert_ne!(output.failures(), 0);
                    while output.settle().is_err() {}
                }
                assert!(output.line().is_up());
            });
        }
    }

    /// Whoever comes while the line is being told leaves the telling to the other thread, and gets `Ok` for it. So a
    /// refusal there must not stand for both.
    #[test]
    fn lets_one_refusal_defeat_one_signal_and_not_the_one_that_came_meanwhile() {
        model(|| {
            let output = Arc::new(LevelOutput::new(Strict::refusing(1)));
            let theirs = Arc::clone(&output);
            let other = thread::spawn(move || theirs.drive(true));
            let results = [output.drive(true), other.join().unwrap()];
            assert!(output.line().is_up(), "two signals, one refusal: {results:?}");
        });
    }

    /// The way a register-level model uses it: compute under the lock, call the line after it.
    #[test]
    fn follows_registers_that_two_threads_change_under_a_lock() {
        model(|| {
            struct Device {
                pending: Mutex<u8>,
                output: LevelOutput<Strict>,
            }
            impl Device {
                fn change(&self, change: impl FnOnce(&mut u8)) {
                    let mut pending = self.pending.lock().unwrap();
                    change(&mut pending);
                    self.output.set(*pending != 0);
                    drop(pending);
                    self.output.settle().unwrap();
                }
            }
            let device = Arc::new(Device {
                pending: Mutex::new(0),
                output: LevelOutput::new(Strict::default()),
            });
            let theirs = Arc::clone(&device);
            let other = thread::spawn(move || {
                theirs.change(|pending| *pending |= 1);
                theirs.change(|pending| *pending &= !1);
            });
            device.change(|pending| *pending |= 2);
            device.change(|pending| *pending ^= 3);
            other.join().unwrap();
            let pending = *device.pending.lock().unwrap();
            assert_eq!(device.output.line().is_up(), pending != 0);
        });
    }

    /// A thread that sleeps until it is woken, and looks then: its line is a wake-up, which it forgets when it looks.
    #[derive(Clone, Default)]
    struct Waker(Arc<AtomicBool>);

    impl Interrupt for Waker {
        fn trigger(&self) -> io::Result<()> {
            self.0.swap(true, SeqCst);
            // Here the thread may look before the line is known to be told.
            thread::yield_now();
            Ok(())
        }
    }

    impl LevelInterrupt for Waker {
        fn clear(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn wakes_again_for_a_cause_that_came_after_the_look_while_the_line_was_still_being_told() {
        model(|| {
            let output = Arc::new(LevelOutput::new(Waker::default()));
            let threads = [1, 2].map(|cause| {
                let output = Arc::clone(&output);
                thread::spawn(move || {
                    output.update(|causes| causes | cause);
                    output.settle().unwrap();
                })
            });
            let woken = &output.line().0;
            if woken.swap(false, SeqCst) {
                output.update(|_| 0);
                output.settle().unwrap();
            }
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(
                woken.swap(false, SeqCst) || !output.is_up(),
                "there is a cause, and nobody looks"
            );
        });
    }

    /// The level is up for old work, the device adds more. Either the guest sees it (it looks after it has cleared the
    /// cause) or the line is up again. This holds only if a signal that changes nothing still publishes.
    #[test]
    fn publishes_what_came_before_a_signal_also_when_the_cause_is_there_already() {
        model(|| {
            let output = Arc::new(LevelOutput::new(Strict::default()));
            output.drive(true).unwrap();
            let work = Arc::new(AtomicBool::new(false));
            let (device_output, device_work) = (Arc::clone(&output), Arc::clone(&work));
            let device = thread::spawn(move || {
                device_work.store(true, Relaxed);
                device_output.update(|causes| causes | 1);
                device_output.settle().unwrap();
            });
            output.update(|causes| causes & !1);
            output.settle().unwrap();
            let seen = work.load(Relaxed);
            device.join().unwrap();
            assert!(
                seen || output.line().is_up(),
                "work that the guest neither saw nor hears of"
            );
        });
    }

    /// A line whose guest acknowledges within `trigger`, as an in-process one may, and takes its cause away there.
    struct Synchronous {
        line: Strict,
        output: Weak<LevelOutput<Synchronous>>,
    }

    impl Interrupt for Synchronous {
        fn trigger(&self) -> io::Result<()> {
            self.line.tell(true, || {
                let output = self.output.upgrade().unwrap();
                output.update(|causes| causes & !1);
                output.settle().unwrap();
            })
        }
    }

    impl LevelInterrupt for Synchronous {
        fn clear(&self) -> io::Result<()> {
            self.line.clear()
        }
    }

    #[test]
    fn takes_a_line_that_calls_back_from_inside_trigger() {
        model(|| {
            let output = std::sync::Arc::new_cyclic(|output| {
                LevelOutput::new(Synchronous {
                    line: Strict::default(),
                    output: Weak::clone(output),
                })
            });
            let theirs = std::sync::Arc::clone(&output);
            let other = thread::spawn(move || {
                theirs.update(|causes| causes | 1);
                theirs.settle().unwrap();
            });
            output.update(|causes| causes | 2);
            output.settle().unwrap();
            output.update(|causes| causes & !2);
            output.settle().unwrap();
            other.join().unwrap();
            assert_eq!(output.line().line.is_up(), output.is_up());
        });
    }
}

mod edge_to_level {
    use super::*;

    /// The guest's interrupt controller: one latched edge.
    #[derive(Default)]
    struct Latch {
        pending: AtomicBool,
        refusals: Refusals,
    }

    impl Interrupt for Latch {
        fn trigger(&self) -> io::Result<()> {
            self.refusals.next()?;
            // Not a store: loom does not hold a store to the order of the exchanges around it.
            self.pending.swap(true, SeqCst);
            Ok(())
        }
    }

    impl Latch {
        fn refusing(refused: u64) -> Self {
            Self {
                refusals: Refusals::of(refused),
                ..Self::default()
            }
        }

        fn is_pending(&self) -> bool {
            self.pending.load(SeqCst)
        }

        /// The guest takes the interrupt, if there is one.
        fn acknowledge(&self) -> bool {
            self.pending.swap(false, SeqCst)
        }

        /// The guest handles what is left, which is a matter of few interrupts.
        fn drain(&self, handle: impl Fn()) {
            for _ in 0..8 {
                if !self.is_pending() {
                    return;
                }
                handle();
            }
            panic!("the guest is interrupted for ever");
        }
    }

    /// A line that is up, with the guest in its handler: the edge acknowledged, the EOI still to come.
    fn in_handler(refused: u64) -> Arc<EdgeToLevel<Latch>> {
        let line = Arc::new(EdgeToLevel::new(Latch::refusing(refused << 1)));
        line.trigger().unwrap();
        assert!(line.edge().acknowledge());
        line
    }

    #[test]
    fn delivers_a_level_that_rises_while_the_guest_finishes() {
        model(|| {
            let line = in_handler(0);
            line.clear().unwrap();
            let device = Arc::clone(&line);
            let device = thread::spawn(move || device.trigger().unwrap());
            line.guest_done().unwrap();
            device.join().unwrap();
            assert!(line.is_up() && line.edge().is_pending());
        });
    }

    #[test]
    fn delivers_a_level_that_falls_and_rises_while_the_guest_finishes() {
        model(|| {
            let line = in_handler(0);
            let device = Arc::clone(&line);
            let device = thread::spawn(move || {
                device.clear().unwrap();
                device.trigger().unwrap();
            });
            line.guest_done().unwrap();
            device.join().unwrap();
            assert!(line.is_up() && line.edge().is_pending());
        });
    }

    #[test]
    fn delivers_again_when_the_guest_finishes_without_having_satisfied_the_device() {
        model(|| {
            let line = in_handler(0);
            let device = Arc::clone(&line);
            let device = thread::spawn(move || device.trigger().unwrap());
            line.guest_done().unwrap();
            device.join().unwrap();
            assert!(line.is_up() && line.edge().is_pending());
        });
    }

    /// Either of the next two edges may be refused. The device only repeats itself, so what is owed is owed to the level
    /// that outlived the handler.
    #[test]
    fn owes_the_edge_that_was_refused_when_the_guest_finished() {
        for refused in 0..4 {
            model(move || {
                let line = in_handler(refused);
                let device = Arc::clone(&line);
                let device = thread::spawn(move || device.trigger());
                let results = [line.guest_done(), device.join().unwrap()];
                if !line.edge().is_pending() {
                    assert!(
                        results.iter().any(Result::is_err),
                        "nobody was told that the edge is lost"
                    );
                    while line.trigger().is_err() {}
                }
                assert!(line.is_up() && line.edge().is_pending());
            });
        }
    }

    /// As for the level output: the guest sees the work, for it looks after it has cleared the line, or the line is up.
    #[test]
    fn publishes_what_came_before_a_trigger_also_when_the_level_is_up_already() {
        model(|| {
            let line = in_handler(0);
            let work = Arc::new(AtomicBool::new(false));
            let (device_line, device_work) = (Arc::clone(&line), Arc::clone(&work));
            let device = thread::spawn(move || {
                device_work.store(true, Relaxed);
                device_line.trigger().unwrap();
            });
            line.clear().unwrap();
            let seen = work.load(Relaxed);
            line.guest_done().unwrap();
            device.join().unwrap();
            assert!(
                seen || line.is_up() && line.edge().is_pending(),
                "work that the guest neither saw nor hears of"
            );
        });
    }

    /// As with the level output: who finds an edge under way leaves it at that, so its failure must not stand for both.
    #[test]
    fn lets_one_refusal_defeat_one_trigger_and_not_the_one_that_came_meanwhile() {
        model(|| {
            let line = Arc::new(EdgeToLevel::new(Latch::refusing(1)));
            let device = Arc::clone(&line);
            let device = thread::spawn(move || device.trigger());
            let results = [line.trigger(), device.join().unwrap()];
            assert!(
                line.is_up() && line.edge().is_pending(),
                "two triggers, one refusal: {results:?}"
            );
        });
    }

    /// Any of the first three edges may be refused, while the guest finishes and the level falls and rises.
    #[test]
    fn tells_somebody_of_a_refused_edge_and_delivers_it_with_the_next_call() {
        for refused in 0..8 {
            model(move || {
                let line = in_handler(refused);
                let device = Arc::clone(&line);
                let device = thread::spawn(move || {
                    device.clear().unwrap();
                    device.trigger()
                });
                let done = line.guest_done();
                let raised = device.join().unwrap();
                if raised.is_ok() {
                    assert!(line.is_up(), "a trigger that succeeded holds the line up");
                }
                if !line.edge().is_pending() {
                    assert!(
                        raised.is_err() || done.is_err(),
                        "nobody was told that the edge is lost"
                    );
                    while line.trigger().is_err() {}
                    assert!(line.edge().is_pending());
                }
            });
        }
    }

    /// A trigger that fails may have been overtaken by a fall and by a rise that succeeded: that level stays.
    #[test]
    fn keeps_a_level_that_rose_again_while_the_first_trigger_failed() {
        for refused in [0b01, 0b10] {
            model(move || {
                let line = Arc::new(EdgeToLevel::new(Latch::refusing(refused)));
                let first = Arc::clone(&line);
                let first = thread::spawn(move || first.trigger());
                line.clear().unwrap();
                let second = line.trigger();
                let first = first.join().unwrap();
                if second.is_ok() {
                    assert!(line.is_up() && line.edge().is_pending(), "{first:?}");
                }
            });
        }
    }

    /// What a device on a platform with edges is made of. Causes are the device's status register; the guest reads it,
    /// clears what it saw, and finishes.
    type Device = LevelOutput<EdgeToLevel<Latch>>;

    fn handle(device: &Device) {
        if device.line().edge().acknowledge() {
            let seen = device.bits();
            device.update(|causes| causes & !seen);
            device.settle().unwrap();
            device.line().guest_done().unwrap();
        }
    }

    #[test]
    fn leaves_no_cause_unhandled_of_a_device_that_raises_while_the_guest_handles() {
        model(|| {
            let device = Arc::new(Device::new(EdgeToLevel::new(Latch::default())));
            let guest = Arc::clone(&device);
            let guest = thread::spawn(move || handle(&guest));
            for cause in [1, 2] {
                device.update(|causes| causes | cause);
                device.settle().unwrap();
            }
            guest.join().unwrap();
            device.line().edge().drain(|| handle(&device));
            assert_eq!(device.bits(), 0, "the guest sleeps on a cause that it never heard of");
            assert!(!device.line().is_up());
        });
    }

    /// Two register-level devices on one wire, each with a status that is derived under its lock, and a guest that asks
    /// both: the whole of floor 0 on a platform with edges.
    #[test]
    fn leaves_nothing_unhandled_of_two_devices_that_share_the_line() {
        struct Uart {
            status: Mutex<bool>,
            output: LevelOutput<LineSource<EdgeToLevel<Latch>>>,
        }
        impl Uart {
            fn set(&self, pending: bool) {
                let mut status = self.status.lock().unwrap();
                *status = pending;
                self.output.set(*status);
                drop(status);
                self.output.settle().unwrap();
            }
        }
        fn handle(uarts: &[Uart; 2], line: &EdgeToLevel<Latch>) {
            if line.edge().acknowledge() {
                uarts.iter().for_each(|uart| uart.set(false));
                line.guest_done().unwrap();
            }
        }
        model(|| {
            let wire = SharedLine::new(EdgeToLevel::new(Latch::default()));
            let uarts = Arc::new([(); 2].map(|()| Uart {
                status: Mutex::new(false),
                output: LevelOutput::new(wire.source().unwrap()),
            }));
            let other = Arc::clone(&uarts);
            let other = thread::spawn(move || other[0].set(true));
            let (guest, line) = (Arc::clone(&uarts), wire.clone());
            let guest = thread::spawn(move || handle(&guest, line.output().line()));
            uarts[1].set(true);
            other.join().unwrap();
            guest.join().unwrap();

            let line = wire.output().line();
            line.edge().drain(|| handle(&uarts, line));
            for uart in &*uarts {
                assert!(
                    !*uart.status.lock().unwrap(),
                    "the guest sleeps on a device that it never heard of"
                );
            }
            assert!(!line.is_up());
        });
    }

    /// A refused edge must leave nothing behind that would interrupt the guest for ever, once the cause is gone.
    #[test]
    fn is_down_after_a_refused_edge_whose_cause_went_by_itself() {
        model(|| {
            let device = Arc::new(Device::new(EdgeToLevel::new(Latch::refusing(1))));
            let poller = Arc::clone(&device);
            let poller = thread::spawn(move || {
                poller.update(|_| 0);
                let _ = poller.settle();
            });
            device.update(|_| 1);
            let _ = device.settle();
            poller.join().unwrap();
            assert!(!device.line().is_up() || device.is_up(), "up without a cause");
        });
    }
}
