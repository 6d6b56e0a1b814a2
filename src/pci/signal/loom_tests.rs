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
    /// Vectors alive.
    alive: AtomicU64,
    /// Of the vector: whether it has a message, and whether a signal waits in its descriptor. One word, as the kernel
    /// has one lock for both.
    vector: AtomicU64,
    calls: AtomicU64,
}

const LIVE: u64 = 1 << 0;
const WAITING: u64 = 1 << 1;

impl Default for Seen {
    fn default() -> Self {
        let [told, news, alive, vector, calls] = std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            told,
            news,
            alive,
            vector,
            calls,
        }
    }
}

impl Seen {
    fn tell(&self) {
        self.told.fetch_max(self.news.load(SeqCst), SeqCst);
    }
}

impl Guest {
    /// A signal of who holds the vector's descriptor.
    fn signal_outside(&self) {
        self.0.news.fetch_add(1, SeqCst);
        let wait = |vector: u64| (vector & LIVE == 0).then_some(vector | WAITING);
        if self.0.vector.fetch_update(SeqCst, SeqCst, wait).is_err() {
            self.0.tell();
        }
    }

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
            assert_eq!(seen.vector.load(SeqCst), LIVE, "sent without a message");
            seen.tell();
        });
        Ok(())
    }
}

impl MsiVector for Vector {
    fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
        self.0.alone(|seen| {
            // What waited goes out with the message.
            let before = match message {
                Some(_) => seen.vector.swap(LIVE, SeqCst),
                None => seen.vector.fetch_and(!LIVE, SeqCst) & !WAITING,
            };
            if before & WAITING != 0 {
                seen.tell();
            }
        });
        Ok(())
    }

    fn is_signalled(&self) -> bool {
        self.0.0.vector.load(SeqCst) & WAITING != 0
    }

    fn take_signal(&self) -> bool {
        self.0.0.vector.fetch_and(!WAITING, SeqCst) & WAITING != 0
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.0.0.vector.store(0, SeqCst);
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

    /// With somebody who holds the descriptor.
    fn exported(gate: Gate) -> Arc<Self> {
        let world = Self::with(gate);
        // The vectors of this platform do not show it.
        assert_eq!(world.export(), io::ErrorKind::Unsupported);
        world
    }

    fn export(&self) -> io::ErrorKind {
        self.signal.export(&self.guest).unwrap_err().kind()
    }

    fn outside(world: &Arc<Self>) -> thread::JoinHandle<()> {
        let world = world.clone();
        thread::spawn(move || world.guest.signal_outside())
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
        assert_eq!(world.guest.0.vector.load(SeqCst), LIVE);
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
            world.guest.0.vector.load(SeqCst),
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

#[test]
fn loom_a_signal_from_outside_that_races_with_mask_and_unmask_is_told_once_the_vector_is_open() {
    explore(|| {
        let world = World::exported(Gate::Open);
        let holder = World::outside(&world);
        world.gate(Gate::Masked);
        world.gate(Gate::Open);
        holder.join().unwrap();
        assert!(!world.untold());
        assert!(!world.signal.is_pending());
        assert_eq!(world.guest.0.vector.load(SeqCst), LIVE);
    });
}

#[test]
fn loom_a_signal_from_outside_that_races_with_a_mask_is_told_or_pending() {
    explore(|| {
        let world = World::exported(Gate::Open);
        let holder = World::outside(&world);
        world.gate(Gate::Masked);
        holder.join().unwrap();
        assert_eq!(world.untold(), world.signal.is_pending());
    });
}

#[test]
fn loom_signals_from_both_sides_and_an_unmask_lose_nothing() {
    explore(|| {
        let world = World::exported(Gate::Masked);
        let holder = World::outside(&world);
        let device = {
            let world = world.clone();
            thread::spawn(move || world.news())
        };
        world.gate(Gate::Open);
        holder.join().unwrap();
        device.join().unwrap();
        assert!(!world.untold());
        assert!(!world.signal.is_pending());
    });
}

#[test]
fn loom_an_export_that_races_with_an_unmask_and_a_signal_makes_one_vector() {
    explore(|| {
        let world = World::with(Gate::Masked);
        let embedder = {
            let world = world.clone();
            thread::spawn(move || world.export())
        };
        let device = {
            let world = world.clone();
            thread::spawn(move || world.news())
        };
        world.gate(Gate::Open);
        device.join().unwrap();
        let shown = embedder.join().unwrap();
        assert!(matches!(shown, io::ErrorKind::Unsupported | io::ErrorKind::WouldBlock));
        assert!(!world.untold());
        assert_eq!(world.guest.0.alive.load(SeqCst), 1);
        assert_eq!(world.guest.0.vector.load(SeqCst), LIVE);
    });
}

#[test]
fn loom_a_reset_that_races_with_an_export_leaves_no_vector() {
    explore(|| {
        let world = World::with(Gate::Masked);
        let embedder = {
            let world = world.clone();
            thread::spawn(move || world.export())
        };
        world.gate(Gate::Off);
        embedder.join().unwrap();
        assert_eq!(world.guest.0.alive.load(SeqCst), 0);
    });
}

#[test]
fn loom_a_release_that_races_with_a_signal_forgets_it_or_sends_it() {
    explore(|| {
        let world = World::with(Gate::Open);
        let device = {
            let world = world.clone();
            thread::spawn(move || world.news())
        };
        world.signal.release();
        world.signal.settle(&world.guest).unwrap();
        let signalled = device.join().unwrap();
        assert_ne!(signalled, Signalled::Disabled, "the device would use INTx");
        assert!(!world.signal.is_pending(), "{signalled:?}");
        let [alive, vector] = [&world.guest.0.alive, &world.guest.0.vector].map(|count| count.load(SeqCst));
        assert_eq!(alive, vector & LIVE, "a vector without a message");
        // The next one is told in any case.
        world.news();
        assert!(!world.untold());
    });
}

#[test]
fn loom_a_signal_after_a_release_that_another_thread_settles_is_told() {
    explore(|| {
        let world = World::with(Gate::Open);
        world.signal.release();
        let worker = {
            let world = world.clone();
            thread::spawn(move || world.signal.settle(&world.guest).unwrap())
        };
        assert_eq!(world.news(), Signalled::Sent);
        worker.join().unwrap();
        assert!(!world.untold());
        assert!(!world.signal.is_pending());
        assert_eq!(world.guest.0.vector.load(SeqCst), LIVE);
        assert_eq!(world.guest.0.alive.load(SeqCst), 1);
    });
}

#[test]
fn loom_a_release_that_races_with_an_unmask_leaves_no_vector_of_before() {
    explore(|| {
        let world = World::exported(Gate::Masked);
        world.guest.signal_outside();
        let guest = {
            let world = world.clone();
            thread::spawn(move || world.gate(Gate::Open))
        };
        world.signal.release();
        world.signal.settle(&world.guest).unwrap();
        guest.join().unwrap();
        assert!(!world.signal.is_pending());
        assert_eq!(
            world.guest.0.alive.load(SeqCst),
            world.guest.0.vector.load(SeqCst) & LIVE
        );
        world.news();
        assert!(!world.untold());
    });
}
