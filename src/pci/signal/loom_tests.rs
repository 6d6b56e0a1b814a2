//! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

use loom::{
    sync::{Arc, atomic::AtomicU64},
    thread,
};
use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::interrupt::Interrupt;

/// A platform whose vectors note what reaches the guest.
#[derive(Clone, Default)]
struct Guest(Arc<Seen>);

struct Seen {
    /// What the device has to tell, and how much of it an interrupt has told.
    told: AtomicU64,
    news: AtomicU64,
    /// Vectors alive, and those of them with a message.
    alive: AtomicU64,
    live: AtomicU64,
    calls: AtomicU64,
}

impl Default for Seen {
    fn default() -> Self {
        let [told, news, alive, live, calls] = std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            told,
            news,
            alive,
            live,
            calls,
        }
    }
}

impl Guest {
    fn alone<T>(&self, call: impl FnOnce(&Seen) -> T) -> T {
        assert_eq!(self.0.calls.fetch_add(1, SeqCst), 0, "two threads talk to the backend");
        let result = call(&self.0);
        self.0.calls.fetch_sub(1, SeqCst);
        result
    }
}

impl Source for Guest {
    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        self.alone(|seen| seen.alive.fetch_add(1, SeqCst));
        Ok(Box::new(Vector(self.clone())))
    }

    fn message(&self) -> MsiMessage {
        MsiMessage::default()
    }
}

struct Vector(Guest);

impl Interrupt for Vector {
    fn trigger(&self) -> io::Result<()> {
        self.0.alone(|seen| {
            assert_eq!(seen.live.load(SeqCst), 1, "sent without a message");
            seen.told.store(seen.news.load(SeqCst), SeqCst);
        });
        Ok(())
    }
}

impl MsiVector for Vector {
    fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
        self.0.alone(|seen| seen.live.store(message.is_some().into(), SeqCst));
        Ok(())
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.0.0.alive.fetch_sub(1, SeqCst);
    }
}

struct World {
    signal: Signal,
    guest: Guest,
}

impl World {
    fn with(gate: Gate) -> Arc<Self> {
        let world = Arc::new(Self {
            signal: Signal::default(),
            guest: Guest::default(),
        });
        world.gate(gate);
        world
    }

    fn gate(&self, gate: Gate) {
        self.signal.set(gate);
        self.signal.settle(&self.guest).unwrap();
    }

    fn news(&self) -> Signalled {
        self.guest.0.news.fetch_add(1, SeqCst);
        self.signal.trigger(&self.guest).unwrap()
    }

    fn untold(&self) -> bool {
        self.guest.0.told.load(SeqCst) != self.guest.0.news.load(SeqCst)
    }
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn loom_a_signal_that_races_with_mask_and_unmask_is_told_once_the_vector_is_open() {
    explore(|| {
        let world = World::with(Gate::Open);
        let device = {
            let world = world.clone();
            thread::spawn(move || world.news())
        };
        world.gate(Gate::Masked);
        world.gate(Gate::Open);
        device.join().unwrap();
        assert!(!world.untold());
        assert!(!world.signal.is_pending());
        assert_eq!(world.guest.0.live.load(SeqCst), 1);
    });
}

#[test]
fn loom_a_signal_that_races_with_a_mask_is_told_or_pending_and_no_message_is_left() {
    explore(|| {
        let world = World::with(Gate::Open);
        let device = {
            let world = world.clone();
            thread::spawn(move || world.news())
        };
        world.gate(Gate::Masked);
        device.join().unwrap();
        assert_eq!(world.untold(), world.signal.is_pending());
        assert_eq!(
            world.guest.0.live.load(SeqCst),
            0,
            "the backend could signal past the mask"
        );
    });
}

#[test]
fn loom_two_devices_and_an_unmask_lose_nothing() {
    explore(|| {
        let world = World::with(Gate::Masked);
        let devices = [(), ()].map(|()| {
            let world = world.clone();
            thread::spawn(move || world.news())
        });
        world.gate(Gate::Open);
        for device in devices {
            device.join().unwrap();
        }
        assert!(!world.untold());
    });
}

#[test]
fn loom_a_reset_that_races_with_a_signal_leaves_no_vector_and_nothing_pending() {
    explore(|| {
        let world = World::with(Gate::Open);
        let device = {
            let world = world.clone();
            thread::spawn(move || world.news())
        };
        world.gate(Gate::Off);
        device.join().unwrap();
        assert!(
            !world.signal.is_pending(),
            "it would be sent when the guest enables it again"
        );
        assert_eq!(world.guest.0.alive.load(SeqCst), 0);
    });
}
