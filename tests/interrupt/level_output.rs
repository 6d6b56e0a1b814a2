//! The level that a device derives, and who is told of it.

use crate::heard::*;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use devisor::interrupt::{LevelInterrupt, LevelOutput, NoInterrupt, level_from_fn};

#[test]
fn is_up_while_any_cause_is_and_not_for_notes() {
    let heard = Heard::default();
    let output = LevelOutput::new(heard.line());
    let notes = LevelOutput::<NoInterrupt>::NOTES;
    for (bits, up) in [
        (notes, false),
        (notes | 1, true),
        (1 << 47, true),
        (notes, false),
        (u64::MAX, true),
    ] {
        output.update(|_| bits);
        output.settle().unwrap();
        assert_eq!(heard.is_up(), up, "{bits:#x}");
        assert_eq!(output.is_up(), up, "{bits:#x}");
        assert_eq!(
            output.bits(),
            bits & (notes | LevelOutput::<NoInterrupt>::CAUSES),
            "{bits:#x}"
        );
    }
    assert_eq!(heard.calls(), [true, false, true]);
}

#[test]
fn returns_from_update_what_was_there_before() {
    let output = LevelOutput::new(NoInterrupt);
    assert_eq!(output.update(|causes| causes | 5), 0);
    assert_eq!(output.update(|causes| causes & !1), 5);
    assert_eq!(output.bits(), 4);
}

#[test]
fn keeps_the_notes_when_a_device_with_one_cause_sets_it() {
    let output = LevelOutput::new(NoInterrupt);
    output.update(|_| 1 << 48);
    output.set(true);
    assert_eq!(output.bits(), 1 << 48 | 1);
    output.set(false);
    assert_eq!(output.bits(), 1 << 48);
}

#[test]
fn tells_nothing_before_it_settles() {
    let heard = Heard::default();
    let output = LevelOutput::new(heard.line());
    output.set(true);
    assert_eq!(heard.calls(), []);
    output.settle().unwrap();
    assert_eq!(heard.calls(), [true]);
}

#[test]
fn loses_nothing_when_a_trigger_fails() {
    let heard = Heard::default();
    let output = LevelOutput::new(heard.line());
    heard.refuse(true);
    assert!(output.drive(true).is_err());
    assert!(
        output.drive(true).is_err(),
        "as long as the line refuses, each signal says so"
    );
    assert!(output.is_up(), "the cause stands");
    heard.refuse(false);
    output.settle().unwrap();
    assert_eq!((heard.calls(), output.failures()), (vec![true], 2));
}

#[test]
fn loses_nothing_when_a_clear_fails() {
    let heard = Heard::default();
    let output = LevelOutput::new(heard.line());
    output.drive(true).unwrap();
    heard.refuse(true);
    assert!(output.drive(false).is_err());
    heard.refuse(false);
    output.settle().unwrap();
    assert_eq!((heard.calls(), output.failures()), (vec![true, false], 1));
}

#[test]
fn tells_nothing_of_a_cause_that_went_before_the_line_took_it() {
    let heard = Heard::default();
    let output = LevelOutput::new(heard.line());
    heard.refuse(true);
    assert!(output.drive(true).is_err());
    heard.refuse(false);
    output.drive(false).unwrap();
    assert_eq!(heard.calls(), []);
}

#[test]
fn tells_of_a_rise_after_a_fall_that_was_not_told_or_refused() {
    let heard = Heard::default();
    let output = LevelOutput::new(heard.line());
    output.drive(true).unwrap();
    output.set(false);
    output.set(true);
    output.settle().unwrap();
    assert_eq!(heard.calls(), [true, false, true]);

    heard.refuse(true);
    assert!(output.drive(false).is_err());
    assert!(output.drive(true).is_err(), "the fall is still to be told");
    heard.refuse(false);
    output.settle().unwrap();
    assert_eq!(heard.calls(), [true, false, true, false, true]);
    output.settle().unwrap();
    output.update(|causes| causes | 2);
    output.update(|causes| causes & 2);
    output.settle().unwrap();
    assert_eq!(heard.calls().len(), 5, "a cause was there all the time");

    output.set(false);
    output.set(true);
    output.set(false);
    output.settle().unwrap();
    assert_eq!(heard.calls()[5..], [false]);
}

/// A device as the book says: registers under a lock, the line told after it. Its backend calls straight back.
struct Device {
    pending: Mutex<u32>,
    output: LevelOutput<Box<dyn LevelInterrupt>>,
}

impl Device {
    fn with_line(line: impl Fn(&Device, bool) + Send + Sync + 'static) -> Arc<Self> {
        let device: Arc<OnceLock<Weak<Device>>> = Arc::default();
        let this = Arc::clone(&device);
        let line = level_from_fn(move |up| {
            line(&this.get().unwrap().upgrade().unwrap(), up);
            Ok(())
        });
        let made = Arc::new(Self {
            pending: Mutex::new(0),
            output: LevelOutput::new(Box::new(line)),
        });
        device.set(Arc::downgrade(&made)).unwrap();
        made
    }

    fn change(&self, change: impl FnOnce(&mut u32)) {
        let mut pending = self.pending.lock().unwrap();
        change(&mut pending);
        self.output.set(*pending != 0);
        drop(pending);
        self.output.settle().unwrap();
    }
}

#[test]
fn is_called_with_no_lock_held_so_that_the_backend_may_read_the_device() {
    let seen: Arc<Mutex<Vec<(bool, u32)>>> = Arc::default();
    let log = Arc::clone(&seen);
    let device = Device::with_line(move |device, up| {
        let pending = device.pending.try_lock().expect("the device's lock is free");
        log.lock().unwrap().push((up, *pending));
    });
    device.change(|pending| *pending = 4);
    device.change(|pending| *pending = 0);
    assert_eq!(*seen.lock().unwrap(), [(true, 4), (false, 0)]);
}

#[test]
fn takes_a_backend_whose_guest_acknowledges_from_inside_trigger() {
    let calls: Arc<Mutex<Vec<bool>>> = Arc::default();
    let log = Arc::clone(&calls);
    let device = Device::with_line(move |device, up| {
        log.lock().unwrap().push(up);
        if up {
            device.change(|pending| *pending = 0);
            assert!(
                *log.lock().unwrap().last().unwrap(),
                "told after this call, not within it"
            );
        }
    });
    device.change(|pending| *pending = 1);
    device.change(|pending| *pending = 1);
    assert_eq!(*calls.lock().unwrap(), [true, false, true, false]);
}

/// An edge-triggered input, or a thread that was woken and has looked since, would not hear of the second.
#[test]
fn tells_of_a_rise_after_a_fall_also_if_both_came_while_the_line_was_being_told() {
    let calls: Arc<Mutex<Vec<bool>>> = Arc::default();
    let log = Arc::clone(&calls);
    let again = AtomicBool::new(true);
    let device = Device::with_line(move |device, up| {
        log.lock().unwrap().push(up);
        if again.swap(false, SeqCst) {
            device.change(|pending| *pending = 0);
            device.change(|pending| *pending = 1);
        }
    });
    device.change(|pending| *pending = 1);
    assert_eq!(*calls.lock().unwrap(), [true, false, true]);
}

#[test]
fn goes_on_after_a_line_that_panicked() {
    for panicking in [true, false] {
        let level = AtomicBool::new(false);
        let panics = AtomicBool::new(true);
        let output = LevelOutput::new(level_from_fn(|up| {
            if up == panicking && panics.swap(false, SeqCst) {
                panic!("a bug of the embedder's");
            }
            level.store(up, SeqCst);
            Ok(())
        }));
        let drive = || output.drive(true).and_then(|()| output.drive(false));
        assert!(catch_unwind(AssertUnwindSafe(drive)).is_err());
        output.settle().unwrap();
        assert_eq!(level.load(SeqCst), panicking, "what the call that panicked did not say");
    }
}

#[test]
fn remembers_what_the_line_took_before_it_panicked_in_the_same_round() {
    let level = Arc::new(AtomicBool::new(false));
    let panics = AtomicBool::new(true);
    let wire = Arc::clone(&level);
    let device = Device::with_line(move |device, up| {
        if !up && panics.swap(false, SeqCst) {
            panic!("a bug of the embedder's");
        }
        wire.store(up, SeqCst);
        if up {
            device.change(|pending| *pending = 0);
        }
    });
    let raise = || device.change(|pending| *pending = 1);
    assert!(catch_unwind(AssertUnwindSafe(raise)).is_err());
    device.output.settle().unwrap();
    assert!(!level.load(SeqCst), "the line is still up, with no cause");
}
