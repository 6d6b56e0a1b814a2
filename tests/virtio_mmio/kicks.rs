//! Who looks at a queue, and when.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use devisor::{
    interrupt::from_fn,
    virtio::{
        DeviceId, Fault, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio, features,
        transport::{VirtioTransport, mmio::Line, status::DEVICE_NEEDS_RESET},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::{
    driver::*,
    late::{Late, Stopped},
    rest,
    ring::{Ring, memory, writable},
};

#[test]
fn a_kick_before_driver_ok_means_nothing_but_the_queue_is_looked_at_then() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    let mut ring = driver.set_up_queue(0);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 0);
    driver.go();
    assert_eq!(ring.used(), [(0, 1)]);
}

#[test]
fn a_kick_out_of_range_is_ignored() {
    let driver = Driver::silent();
    driver.start();
    for queue in [1, 2, 0xffff, 0x1_0000, u32::MAX] {
        driver.write(QUEUE_NOTIFY, queue);
    }
    assert_eq!(driver.status() & DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_doorbell_moves_the_work_to_the_worker() {
    let memory = memory();
    let (sender, receiver) = mpsc::channel();
    let line = Counted::default();
    let mmio = VirtioMmio::new(Probe::default(), Arc::clone(&memory), line.edge()).unwrap();
    let mmio = mmio.with_doorbell(move |queue| sender.send(queue).map_err(io::Error::other));
    let driver = Driver {
        mmio: Arc::new(mmio),
        memory,
    };
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 0, "the kicking thread does no work");
    assert_eq!(
        receiver.try_iter().filter(|queue| *queue == QueueIndex(0)).count(),
        2,
        "at activation and by the kick"
    );
    let worker = Arc::clone(&driver.mmio);
    thread::spawn(move || worker.run()).join().unwrap();
    assert_eq!(ring.used_idx(), 1);
    // A doorbell that fails: the kicking thread does it rather than lose it.
    drop(receiver);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 2);
}

#[test]
fn kicks_from_many_threads_lose_no_request() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    for _ in 0..200 {
        ring.request(&[writable(0x8000, 1)]);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
            }
        });
        assert_eq!(ring.used().len(), 1);
    }
}

#[test]
fn reset_from_another_thread_ends_the_work_before_it_returns() {
    let driver = Driver::silent();
    for _ in 0..50 {
        let mut ring = driver.start();
        for _ in 0..4 {
            ring.request(&[writable(0x8000, 64)]);
        }
        thread::scope(|scope| {
            scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
            driver.write(STATUS, 0);
            let used = ring.used_idx();
            thread::yield_now();
            assert_eq!(ring.used_idx(), used, "nothing is used after the reset");
        });
        assert_eq!(driver.status(), 0);
    }
}

#[test]
fn a_line_that_panics_once_does_not_stop_the_device_for_good() {
    let panics = Arc::new(AtomicBool::new(true));
    let raised = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&raised);
    let line = from_fn(move || match panics.swap(false, Ordering::SeqCst) {
        true => panic!("an embedder's mistake"),
        false => {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let driver = Driver::new(Line::Edge(Arc::new(line)));
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    let kick = || driver.write(QUEUE_NOTIFY, 0);
    catch_unwind(AssertUnwindSafe(kick)).expect_err("the panic comes out where it belongs");
    kick();
    assert_eq!(raised.load(Ordering::SeqCst), 1, "the signal that was lost");
    ring.request(&[writable(0x8000, 1)]);
    kick();
    assert_eq!(ring.used().len(), 2);
}

#[test]
fn a_round_works_in_the_memory_that_is_there_when_it_begins() {
    let before = memory();
    let space = GuestMemoryAtomic::from(Arc::clone(&before));
    let mmio = VirtioMmio::new(Probe::default(), space.clone(), silent()).unwrap();
    let driver = Driver {
        mmio: Arc::new(mmio),
        memory: before,
    };
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    let after = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let mut bytes = vec![0; 0x20000];
    driver.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    after.write_slice(&bytes, GuestAddress(0)).unwrap();
    space.lock().unwrap().replace(after);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(
        ring.used_idx(),
        0,
        "memory that was taken away before the round is not written"
    );
    ring.memory = (*space.memory()).clone().into();
    assert_eq!(ring.used(), [(0, 1)]);
}

#[test]
fn a_pause_ends_the_work_for_a_driver_that_never_stops_and_keeps_its_kicks() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                ring.request(&[writable(0x8000, 1)]);
                driver.write(QUEUE_NOTIFY, 0);
                // As fast as the device lets it: all but one of the descriptors may be in flight.
                while ring.avail_idx().wrapping_sub(ring.used_idx()) >= SIZE - 1 && !stop.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            }
            ring.used_idx()
        });
        while driver.processed() < 20 {
            thread::yield_now();
        }
        driver.mmio.pause();
        assert!(driver.mmio.wait_until_still(None));
        let processed = driver.processed();
        driver.write(QUEUE_NOTIFY, 0);
        driver.mmio.run();
        thread::yield_now();
        assert_eq!(driver.processed(), processed, "no round while paused");
        assert!(driver.mmio.is_still());
        stop.store(true, Ordering::SeqCst);
        feeder.join().expect("its kick returned");
    });
    assert!(ring.used_idx() != ring.avail_idx() || ring.avail_idx() != 0);
    driver.mmio.resume();
    assert_eq!(
        ring.used_idx(),
        ring.avail_idx(),
        "what was kicked in the pause is done after it"
    );
}

/// A device whose handlers take a turn for as long as a test wants.
struct Slow {
    turns: Arc<Mutex<mpsc::Receiver<()>>>,
    entered: mpsc::Sender<QueueIndex>,
}

struct Turn {
    queue: QueueIndex,
    turns: Arc<Mutex<mpsc::Receiver<()>>>,
    entered: mpsc::Sender<QueueIndex>,
}

impl VirtioDevice for Slow {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Turn {
            queue,
            turns: Arc::clone(&self.turns),
            entered: self.entered.clone(),
        })
    }
}

impl QueueHandler for Turn {
    /// The first queue waits in each of its requests.
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            if self.queue == QueueIndex(0) {
                self.entered.send(self.queue).unwrap();
                self.turns.lock().unwrap().recv().unwrap();
            }
            chain.complete(0)?;
        }
        Ok(())
    }
}

/// A slow device with both queues, what tells it to end a request, and what says that it began one.
fn slow() -> (Driver<Slow>, [Ring; 2], mpsc::Sender<()>, mpsc::Receiver<QueueIndex>) {
    let ((end, turns), (entered, began)) = (mpsc::channel(), mpsc::channel());
    let turns = Arc::new(Mutex::new(turns));
    let driver = Driver::with(Slow { turns, entered }, silent());
    driver.negotiate(features::VERSION_1);
    let rings = [0, 1].map(|queue| driver.set_up_queue(queue));
    driver.go();
    (driver, rings, end, began)
}

#[test]
fn a_queue_that_takes_long_holds_up_no_register_no_configuration_and_no_other_queue() {
    let (driver, [mut first, mut second], end, began) = slow();
    first.request(&[writable(0x8000, 1)]);
    thread::scope(|scope| {
        scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
        began.recv().unwrap();
        assert_eq!(driver.read(DEVICE_ID), 42);
        assert_eq!(driver.read(CONFIG), 0);
        driver.read(CONFIG_GENERATION);
        driver.mmio.with_device(|_| ());
        assert!(driver.mmio.queue_counters(QueueIndex(0)).is_some());
        assert_eq!(driver.mmio.fault(), None);
        second.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 1);
        assert_eq!((first.used_idx(), second.used_idx()), (0, 1));
        end.send(()).unwrap();
    });
    assert_eq!(first.used_idx(), 1);
}

#[test]
fn a_kick_waits_for_the_round_that_is_under_way_and_takes_the_next_but_never_serves_on_for_another() {
    let (driver, [mut first, _], end, began) = slow();
    first.request(&[writable(0x8000, 1)]);
    thread::scope(|scope| {
        let served = scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
        began.recv().unwrap();
        // For the next round: the one that is under way has looked at what there was.
        first.request(&[writable(0x8000, 1)]);
        let relief = scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
        // Others find that one waits already.
        let asked = Instant::now();
        while !relief.is_finished() && asked.elapsed() < Duration::from_millis(50) {
            thread::yield_now();
        }
        driver.write(QUEUE_NOTIFY, 0);
        end.send(()).unwrap();
        end.send(()).unwrap();
        end.send(()).unwrap();
        served.join().unwrap();
        relief.join().unwrap();
    });
    assert_eq!(first.used_idx(), 2);
}

/// Calls both at once.
fn race(one: impl Fn() + Sync, other: impl Fn() + Sync) {
    let start = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            one();
        });
        start.wait();
        other();
    });
}

#[test]
fn two_resets_at_once_are_one() {
    let driver = Driver::silent();
    for round in 0..2000 {
        let mut ring = driver.start();
        ring.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(ring.used().len(), 1, "in round {round}");
        race(|| driver.write(STATUS, 0), || driver.mmio.reset());
        assert_eq!(driver.status(), 0);
    }
}

#[test]
fn two_resets_of_a_queue_at_once_are_one() {
    let driver = Driver::silent();
    driver.start();
    for round in 0..2000 {
        race(|| driver.write(QUEUE_RESET, 1), || driver.write(QUEUE_RESET, 1));
        assert_eq!((driver.read(QUEUE_RESET), driver.read(QUEUE_READY)), (0, 0));
        let mut ring = driver.set_up_queue(0);
        ring.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(ring.used().len(), 1, "in round {round}");
    }
}

#[test]
fn a_queue_that_is_enabled_while_another_thread_resets_it_is_not_ready_and_dead() {
    let driver = Driver::silent();
    driver.start();
    for _ in 0..2000 {
        let resets = || (0..3).for_each(|_| driver.write(QUEUE_RESET, 1));
        race(resets, || {
            for _ in 0..3 {
                driver.set_up_queue(0);
            }
        });
        let mut state = driver.saved();
        let transport = &rest::mmio(&mut state).transport;
        assert_eq!(transport.setup[0].ready, transport.queues[0].is_some());
    }
}

#[test]
fn a_device_that_fails_while_it_is_reset_is_reset_or_says_that_it_needs_one() {
    let driver = Driver::with(Late::new(&[SIZE], Stopped::IsReturned), silent());
    let handle = driver.mmio.with_device(|late| late.handle()).unwrap();
    let held = driver.mmio.with_device(|late| late.held());
    for round in 0..2000 {
        let mut ring = driver.start_with(features::VERSION_1);
        race(|| driver.write(STATUS, 0), || handle.fail("it is gone"));
        assert_eq!((driver.status(), driver.mmio.fault()), (0, None), "in round {round}");
        ring = Ring::new(&driver.memory, ring.layout.descriptor_area, SIZE);
        driver.start_with(features::VERSION_1);
        ring.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(held.count(), 1, "in round {round}");
        driver.write(STATUS, 0);
    }
}
