//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --lib loom_`
//!
//! Whole lanes: a real queue in real memory, whose bytes loom does not see, but for [some](seen). What it schedules is who serves, takes,
//! completes, gives back and stops.

use std::{io, sync::Arc};

use loom::{
    sync::{
        Mutex,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Release, SeqCst},
            fence,
        },
    },
    thread,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};

use super::{Fault, Kicks, OwnedChain, Queue, QueueIndex, QueueLayout, Round, Stillness, Stop, VirtioInterrupt};
use crate::{
    memory::Memory,
    sync::seen,
    virtio::{
        QueueHandler, Wait, features,
        run::{Around, Lane, Running},
    },
};

mod away;
mod several;

const DRIVER: u64 = 0x400;
const DEVICE: u64 = 0x800;

const LAYOUT: QueueLayout = QueueLayout {
    size: 2,
    descriptor_area: 0,
    driver_area: DRIVER,
    device_area: DEVICE,
};

/// Memory with a ring of two buffers of one byte, which the device writes.
fn ram() -> Arc<GuestMemoryMmap> {
    let ram = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap());
    for head in 0..2u16 {
        // A buffer of one byte that the device writes.
        ram.write_obj([0x1000u64, 1 | 2 << 32], GuestAddress(16 * u64::from(head)))
            .unwrap();
        ram.write_obj(head, GuestAddress(DRIVER + 4 + 2 * u64::from(head)))
            .unwrap();
    }
    ram
}

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(run);
}

/// A line that takes its time.
#[derive(Default)]
struct Line {
    inside: AtomicU64,
    told: AtomicU64,
}

impl VirtioInterrupt for Line {
    fn used(&self, _queues: &[QueueIndex]) -> io::Result<()> {
        self.inside.fetch_add(1, SeqCst);
        self.told.fetch_add(1, SeqCst);
        self.inside.fetch_sub(1, SeqCst);
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) {}
}

/// What is around a lane here: nobody is to be told of anything.
struct Nothing;

impl Around for Nothing {
    fn failed(&self, fault: Fault) {
        panic!("{fault}");
    }

    fn waits(&self, waits: &[Wait]) {
        assert_eq!(waits, []);
    }
}

type Taken = loom::sync::Arc<Mutex<Vec<OwnedChain>>>;

/// Takes what it finds for a backend, and takes it back from there when it is told to stop.
struct Handler {
    taken: Taken,
    inside: AtomicBool,
}

impl QueueHandler for Handler {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        assert!(!self.inside.swap(true, SeqCst), "two threads are at it");
        while let Some(chain) = round.next()? {
            let chain = chain.take();
            self.taken.lock().unwrap().push(chain);
        }
        assert!(self.inside.swap(false, SeqCst));
        Ok(())
    }

    fn pause(&mut self) {
        assert!(!self.inside.load(SeqCst));
        let untouched = std::mem::take(&mut *self.taken.lock().unwrap());
        drop(untouched);
    }
}

struct World {
    ram: Arc<GuestMemoryMmap>,
    space: GuestMemoryAtomic<GuestMemoryMmap>,
    memory: Memory,
    line: Arc<Line>,
    taken: Taken,
    stillness: loom::sync::Arc<Stillness>,
    lane: Lane,
}

impl World {
    /// A queue of two, of which `offered` are available and were found.
    fn new(offered: u16) -> loom::sync::Arc<Self> {
        Self::with_features(offered, 0)
    }

    fn with_features(offered: u16, features: u64) -> loom::sync::Arc<Self> {
        let taken = Taken::default();
        let handler = Box::new(Handler {
            taken: taken.clone(),
            inside: AtomicBool::new(false),
        });
        Self::with_handler(offered, features, handler, taken)
    }

    fn with_handler(
        offered: u16,
        features: u64,
        handler: Box<dyn QueueHandler>,
        taken: Taken,
    ) -> loom::sync::Arc<Self> {
        let ram = ram();
        let line = Arc::new(Line::default());
        let stillness = loom::sync::Arc::new(Stillness::default());
        let lane = Lane::new(loom::sync::Arc::clone(&stillness));
        let space = GuestMemoryAtomic::from(ram.clone());
        let memory = Memory::new(space.clone());
        let queue = Queue::new(QueueIndex(0), 2, LAYOUT, features, &memory, line.clone()).unwrap();
        let queue = queue.run_by(Arc::clone(&lane.word), Kicks::Stay);
        lane.start(Running { handler, queue });
        let world = loom::sync::Arc::new(Self {
            ram,
            space,
            memory,
            line,
            taken,
            stillness,
            lane,
        });
        world.offer(offered);
        world.serve();
        world
    }

    fn offer(&self, idx: u16) {
        self.ram.write_obj(idx, GuestAddress(DRIVER + 2)).unwrap();
    }

    fn serve(&self) {
        self.lane.kick_and_serve(&Nothing);
    }

    /// A backend ends the request that came last, if it has one.
    fn complete(&self) {
        let chain = self.taken.lock().unwrap().pop();
        if let Some(chain) = chain {
            chain.complete(1);
        }
    }

    fn stop(&self, reason: Stop) {
        if let Some(untold) = self.lane.begin_stop(reason) {
            untold.tell(&Nothing);
        }
        self.stillness.reached();
    }

    /// Stops, and waits until it is still.
    fn rest(&self, reason: Stop) {
        self.stop(reason);
        self.stillness.wait(|| self.lane.word.is_still());
        assert_eq!(self.line.inside.load(SeqCst), 0, "a signal is under way");
    }

    fn used(&self) -> u16 {
        self.ram.read_obj(GuestAddress(DEVICE + 2)).unwrap()
    }
}

fn with(world: &loom::sync::Arc<World>, f: impl FnOnce(&World) + 'static) -> thread::JoinHandle<()> {
    let world = loom::sync::Arc::clone(world);
    thread::spawn(move || f(&world))
}

#[test]
fn loom_a_request_that_ends_elsewhere_ends_before_a_pause_does_or_is_found_after_it() {
    model(|| {
        let world = World::new(1);
        let backend = with(&world, World::complete);
        world.rest(Stop::Embedder);
        let (used, told) = (world.used(), world.line.told.load(SeqCst));
        assert_eq!(u64::from(used), told);
        let state = world.lane.save().unwrap();
        assert_eq!(usize::from(used) + state.in_flight.len(), 1);
        backend.join().unwrap();
        assert_eq!(
            (world.used(), world.line.told.load(SeqCst)),
            (used, told),
            "something moved"
        );
        world.lane.word.resume(Stop::Embedder);
        world.serve();
        world.complete();
        assert_eq!((world.used(), world.line.told.load(SeqCst)), (1, 1));
    });
}

#[test]
fn loom_a_kick_and_a_request_that_ends_elsewhere_are_both_seen() {
    model(|| {
        let world = World::new(1);
        let backend = with(&world, World::complete);
        world.offer(2);
        world.serve();
        backend.join().unwrap();
        world.complete();
        world.complete();
        assert_eq!((world.used(), world.line.told.load(SeqCst)), (2, 2));
    });
}

#[test]
fn loom_a_kick_a_request_that_ends_elsewhere_and_a_reset() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(|| {
        let world = World::new(1);
        let backend = with(&world, World::complete);
        let driver = with(&world, |world| {
            world.offer(2);
            world.serve();
        });
        world.rest(Stop::Device);
        let used = world.used();
        world.lane.finish(&Nothing);
        world.lane.word.resume(Stop::Device);
        backend.join().unwrap();
        driver.join().unwrap();
        assert_eq!(world.used(), used, "something moved after the reset");
        assert!(world.taken.lock().unwrap().is_empty());
    });
}

#[test]
fn loom_a_device_that_is_dropped_shows_nothing_afterwards() {
    model(|| {
        let world = World::new(1);
        let backend = with(&world, World::complete);
        world.lane.close();
        world.rest(Stop::Device);
        let (used, told) = (world.used(), world.line.told.load(SeqCst));
        backend.join().unwrap();
        assert_eq!(
            (world.used(), world.line.told.load(SeqCst)),
            (used, told),
            "something moved"
        );
    });
}

#[test]
fn loom_memory_that_changes_under_a_kick_is_let_go_of() {
    model(|| {
        let world = World::new(0);
        let embedder = with(&world, |world| {
            // Another map of the same bytes.
            world.space.lock().unwrap().replace((*world.ram).clone());
            world.lane.memory_changed();
        });
        world.offer(1);
        world.serve();
        embedder.join().unwrap();
        world.complete();
        assert_eq!(world.used(), 1);
        assert_eq!(world.memory.old_maps_held(), 0);
    });
}

/// The driver asks to be told when all are used, just when the last of them is, by whichever of two backends: it sees that, or it is told
/// (virtio 1.2, section 2.7.7).
#[test]
fn loom_a_driver_that_asks_for_a_signal_while_requests_end_elsewhere_sees_them_or_is_told() {
    model(|| {
        let world = World::with_features(2, features::EVENT_IDX);
        let host = |address| {
            let host = world.ram.get_host_address(GuestAddress(address)).unwrap();
            host.cast::<u16>()
        };
        let (event, used) = (host(DRIVER + 4 + 2 * 2), host(DEVICE + 2));
        seen::see(&[event, used]);
        let [event, used] = [event, used].map(|word| seen::word(word).unwrap());
        // Of what is long gone.
        event.store(0x8000, Release);
        let backends = [(); 2].map(|()| with(&world, World::complete));
        event.store(1, Release);
        fence(SeqCst);
        let found = used.load(Acquire);
        for backend in backends {
            backend.join().unwrap();
        }
        let told = world.line.told.load(SeqCst);
        assert_eq!(world.used(), 2);
        assert!(
            found == 2 || told != 0,
            "it has found {found} of them, and waits for ever"
        );
        drop((event, used));
        seen::forget();
    });
}
