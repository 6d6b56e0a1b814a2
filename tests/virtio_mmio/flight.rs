//! Requests that end late, and what stops meanwhile: a pause, a reset, a queue, memory.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use devisor::virtio::{
    QueueIndex, VirtioMmio, features,
    transport::{NotStill, VirtioTransport, status::DEVICE_NEEDS_RESET},
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::{
    driver::*,
    late::{FILLED, Held, Late, Stopped},
    rest,
    ring::{Ring, memory, writable},
};

const QUEUE: QueueIndex = QueueIndex(0);
const FEATURES: u64 = features::COMMON & !features::EVENT_IDX;

/// A device at work, with a request under way at 0x8000, and one at 0x9000.
fn busy(stopped: Stopped) -> (Driver<Late>, Ring, Held) {
    let late = Late::new(&[SIZE], stopped);
    let held = late.held();
    let driver = Driver::with(late, silent());
    let mut ring = driver.start_with(FEATURES);
    ring.request(&[writable(0x8000, 1)]);
    ring.request(&[writable(0x9000, 2)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!((held.count(), ring.used_idx()), (2, 0));
    (driver, ring, held)
}

/// Calls `stop`, which returns when the device is at rest, on a thread of its own; ends what is under way meanwhile.
fn ends_when_still(driver: &Driver<Late>, held: &Held, stop: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let stop = scope.spawn(stop);
        thread::sleep(Duration::from_millis(20));
        assert!(!stop.is_finished(), "requests are under way");
        assert_eq!(driver.mmio.waiting(), [(QUEUE, 2)]);
        held.complete(1);
        thread::sleep(Duration::from_millis(20));
        assert!(!stop.is_finished(), "one is left");
        held.complete(0);
    });
}

#[test]
fn requests_are_completed_in_any_order_by_any_thread() {
    let (driver, mut ring, held) = busy(Stopped::GoesOn);
    thread::scope(|scope| _ = scope.spawn(|| held.complete(1)));
    assert_eq!(ring.used(), [(1, 2)]);
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    driver.write(INTERRUPT_ACK, 1);
    held.complete(0);
    assert_eq!((ring.used(), driver.read(INTERRUPT_STATUS)), (vec![(0, 1)], 1));
    assert_eq!(ring.get::<u8>(0x8000), FILLED);
}

#[test]
fn a_pause_is_still_when_the_last_request_has_ended_and_a_save_is_refused_before() {
    let (driver, mut ring, held) = busy(Stopped::GoesOn);
    assert_eq!(driver.mmio.save(), Err(NotStill(vec![(QUEUE, 2)])), "it runs");
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    driver
        .mmio
        .when_still(Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
    driver.mmio.pause();
    for left in [2, 1] {
        assert!(!driver.mmio.is_still());
        assert!(!driver.mmio.wait_until_still(Some(Duration::from_millis(1))));
        assert_eq!(driver.mmio.save(), Err(NotStill(vec![(QUEUE, left)])));
        let before = told.load(Ordering::SeqCst);
        held.complete(0);
        assert!(left == 2 || told.load(Ordering::SeqCst) > before, "the end is told");
    }
    assert!(driver.mmio.is_still());
    assert_eq!(ring.used().len(), 2, "they have ended");
    // Nothing is taken any more.
    ring.request(&[writable(0xa000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.run();
    driver.mmio.process(QUEUE);
    assert_eq!((held.count(), ring.used_idx()), (0, 2));
    assert!(driver.mmio.is_still());
    driver.mmio.resume();
    assert_eq!(held.count(), 1);
    held.complete_all();
}

#[test]
fn a_pause_waits_for_requests_on_a_thread_of_the_embedder() {
    let (driver, ring, held) = busy(Stopped::GoesOn);
    ends_when_still(&driver, &held, || {
        driver.mmio.pause();
        assert!(driver.mmio.wait_until_still(None));
    });
    assert_eq!(ring.used_idx(), 2);
}

#[test]
fn requests_without_effect_are_kept_by_a_pause_saved_and_served_again_in_their_order() {
    let (driver, mut ring, held) = busy(Stopped::IsReturned);
    // The second alone, so that the order is not the ring's.
    ring.request(&[writable(0xa000, 3)]);
    driver.write(QUEUE_NOTIFY, 0);
    held.complete(1);
    assert_eq!(ring.used(), [(1, 2)]);
    let mut state = rest::at_rest(&*driver.mmio);
    assert_eq!((held.count(), ring.used_idx()), (0, 1), "none had an effect");
    let queue = rest::mmio(&mut state).transport.queues[0].as_ref().unwrap();
    assert_eq!(
        (&*queue.in_flight, queue.next_avail, queue.next_used),
        (&[0, 2][..], 3, 1)
    );

    let late = Late::new(&[SIZE], Stopped::GoesOn);
    let elsewhere = late.held();
    let other = driver.moved(late, silent());
    assert_eq!(other.mmio.save(), Ok(state));
    assert_eq!(elsewhere.count(), 0, "not before it is resumed");
    other.mmio.resume();
    assert_eq!(elsewhere.count(), 2);
    elsewhere.complete(0);
    elsewhere.complete(0);
    assert_eq!(ring.used(), [(0, 1), (2, 3)]);

    // And here, in the same process.
    driver.mmio.resume();
    assert_eq!(held.count(), 2);
}

#[test]
fn a_reset_returns_when_requests_have_ended_and_nothing_is_used_after_it() {
    let (driver, mut ring, held) = busy(Stopped::GoesOn);
    ends_when_still(&driver, &held, || driver.write(STATUS, 0));
    assert_eq!((driver.status(), driver.read(INTERRUPT_STATUS)), (0, 0));
    assert_eq!(ring.used().len(), 2);
    let mut ring = driver.start_with(FEATURES);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(held.count(), 1, "it works again");
    held.complete_all();
    assert_eq!(ring.used(), [(0, 1)]);
}

#[test]
fn a_reset_forgets_requests_that_are_given_back() {
    let (driver, ring, held) = busy(Stopped::IsReturned);
    driver.write(STATUS, 0);
    assert_eq!((driver.status(), held.count(), ring.used_idx()), (0, 0, 0));
    driver.start_with(FEATURES);
    assert_eq!(held.count(), 0);
}

#[test]
fn a_queue_that_is_stopped_or_reset_is_so_when_its_requests_have_ended() {
    for register in [QUEUE_READY, QUEUE_RESET] {
        let value = u32::from(register == QUEUE_RESET);
        let (driver, ring, held) = busy(Stopped::GoesOn);
        ends_when_still(&driver, &held, || driver.write(register, value));
        assert_eq!((driver.read(QUEUE_READY), driver.read(QUEUE_RESET)), (0, 0));
        assert_eq!(ring.used_idx(), 2);
        let mut again = driver.set_up_queue(0);
        again.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(held.count(), 1);
        held.complete_all();
        assert_eq!(again.used(), [(0, 1)]);
    }
}

#[test]
fn a_device_that_needs_a_reset_shows_no_request_that_ends_later() {
    let (driver, mut ring, held) = busy(Stopped::GoesOn);
    ring.set_avail_idx(100);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(driver.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
    held.complete_all();
    assert_eq!(ring.used_idx(), 0);
    driver.write(STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_device_that_is_dropped_shows_no_request_that_ends_later() {
    let (driver, ring, held) = busy(Stopped::GoesOn);
    let Driver { mmio, memory } = driver;
    drop(mmio);
    held.complete_all();
    assert_eq!((ring.used_idx(), held.count()), (0, 0));
    drop(memory);
}

#[test]
fn memory_that_was_taken_away_lives_until_its_last_request_has_ended_and_no_longer() {
    let before = memory();
    let space = GuestMemoryAtomic::from(Arc::clone(&before));
    let late = Late::new(&[SIZE], Stopped::GoesOn);
    let held = late.held();
    let mmio = Arc::new(VirtioMmio::new(late, space.clone(), silent()).unwrap());
    let driver = Driver { mmio, memory: before };
    let mut ring = driver.start_with(FEATURES);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    let after = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    space.lock().unwrap().replace(after);
    driver.mmio.memory_changed();
    assert_eq!(driver.mmio.memory().old_maps_held(), 1);
    held.complete_all();
    assert_eq!(driver.mmio.memory().old_maps_held(), 0);
    assert_eq!(ring.get::<u8>(0x8000), FILLED, "where it was found");
    assert_eq!(ring.used_idx(), 0);
    ring.memory = Arc::new((*space.memory()).clone());
    assert_eq!(ring.used_idx(), 1, "it is used where the ring is now");
}

#[test]
fn a_device_looks_at_its_queue_again_when_it_asks_for_that() {
    let late = Late::new(&[SIZE], Stopped::GoesOn);
    let held = late.held();
    let rung = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&rung);
    let mmio = VirtioMmio::new(late, memory(), silent())
        .unwrap()
        .with_doorbell(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
    let memory = memory();
    let driver = Driver {
        mmio: Arc::new(mmio),
        memory,
    };
    let handle = driver.mmio.with_device(|late| late.handle()).expect("it is attached");
    handle.look(QUEUE);
    assert_eq!(rung.load(Ordering::SeqCst), 1);
    handle.look(QueueIndex(1));
    assert_eq!(rung.load(Ordering::SeqCst), 1, "there is none");

    let Driver { mmio, .. } = driver;
    drop(mmio);
    handle.look(QUEUE);
    handle.change_config(|| panic!("there is no configuration"));
    assert_eq!(
        (rung.load(Ordering::SeqCst), held.count()),
        (1, 0),
        "it may outlive its transport"
    );
}

#[test]
fn a_device_changes_its_configuration_and_fails_by_its_handle() {
    let (driver, _ring, held) = busy(Stopped::GoesOn);
    let handle = driver.mmio.with_device(|late| late.handle()).unwrap();
    let before = driver.read(CONFIG_GENERATION);
    let mut changed = false;
    handle.change_config(|| changed = true);
    assert!(changed);
    assert_ne!(driver.read(CONFIG_GENERATION), before);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    driver.write(INTERRUPT_ACK, 2);
    handle.fail("the host is gone");
    assert_eq!(driver.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert!(driver.mmio.fault().unwrap().to_string().contains("the host is gone"));
    held.complete_all();
}

/// A driver that offers and kicks without end, and a thread that ends requests in any order, while `disturb` is called again
/// and again, with the ring for itself.
fn at_work(stopped: Stopped, rounds: usize, disturb: impl Fn(&Driver<Late>, &mut Ring)) {
    let late = Late::new(&[SIZE], stopped);
    let held = late.held();
    let driver = Driver::with(late, silent());
    let ring = Mutex::new(driver.start_with(FEATURES));
    let stop = AtomicBool::new(false);
    let running = || !stop.load(Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut which = 0;
            while running() || held.count() != 0 {
                which = (which + 3) % 5;
                if !held.complete(which) && !held.complete(0) {
                    thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while running() {
                let mut ring = ring.lock().unwrap();
                // Any of its descriptors may be in flight as long as one is.
                if ring.avail_idx() == ring.used_idx() {
                    (0..SIZE).for_each(|_| _ = ring.request(&[writable(0x8000, 64)]));
                }
                drop(ring);
                driver.write(QUEUE_NOTIFY, 0);
            }
        });
        for _ in 0..rounds {
            disturb(&driver, &mut ring.lock().unwrap());
            thread::yield_now();
        }
        stop.store(true, Ordering::SeqCst);
    });
    driver.mmio.run();
    held.complete_all();
    let ring = ring.into_inner().unwrap();
    assert_eq!(driver.status() & DEVICE_NEEDS_RESET, 0, "{:?}", driver.mmio.fault());
    assert_eq!(ring.used_idx(), ring.avail_idx(), "none is lost");
}

fn contents(driver: &Driver<Late>) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    driver.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// Nobody but the device would change it now.
fn nothing_changes(driver: &Driver<Late>) {
    let before = contents(driver);
    (0..20).for_each(|_| thread::yield_now());
    assert!(contents(driver) == before);
}

#[test]
fn a_device_that_is_still_changes_no_memory_whatever_other_threads_do() {
    for stopped in [Stopped::GoesOn, Stopped::IsReturned] {
        at_work(stopped, 100, |driver, _| {
            driver.mmio.pause();
            assert!(driver.mmio.wait_until_still(None));
            nothing_changes(driver);
            assert!(driver.mmio.save().is_ok());
            driver.mmio.resume();
        });
    }
}

#[test]
fn a_device_that_was_reset_changes_no_memory_whatever_other_threads_do() {
    for stopped in [Stopped::GoesOn, Stopped::IsReturned] {
        at_work(stopped, 100, |driver, ring| {
            driver.write(STATUS, 0);
            assert_eq!(driver.status(), 0);
            nothing_changes(driver);
            *ring = driver.start_with(FEATURES);
        });
    }
}

#[test]
fn a_queue_that_was_stopped_changes_no_memory_whatever_other_threads_do() {
    for stopped in [Stopped::GoesOn, Stopped::IsReturned] {
        at_work(stopped, 100, |driver, ring| {
            driver.write(QUEUE_RESET, 1);
            assert_eq!(driver.read(QUEUE_RESET), 0);
            nothing_changes(driver);
            *ring = driver.set_up_queue(0);
        });
    }
}

#[test]
fn a_request_that_ends_while_its_ring_is_gone_is_not_lost_when_that_is_back() {
    let whole = memory();
    let space = GuestMemoryAtomic::from(Arc::clone(&whole));
    let replace = |driver: &Driver<Late>, memory: &GuestMemoryMmap| {
        space.lock().unwrap().replace(memory.clone());
        driver.mmio.memory_changed();
    };
    let late = Late::new(&[SIZE], Stopped::GoesOn);
    let held = late.held();
    let mmio = Arc::new(VirtioMmio::new(late, space.clone(), silent()).unwrap());
    let driver = Driver {
        mmio,
        memory: Arc::clone(&whole),
    };
    let mut ring = driver.start_with(FEATURES);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    replace(
        &driver,
        &GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap(),
    );
    held.complete_all();
    replace(&driver, &whole);
    let mut state = rest::saved(&*driver.mmio);
    let queue = rest::mmio(&mut state).transport.queues[0].as_ref().unwrap();
    assert_eq!(
        (&*queue.in_flight, queue.next_avail, queue.next_used),
        (&[0][..], 1, 0),
        "it would be served again elsewhere"
    );
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(
        driver.status() & DEVICE_NEEDS_RESET,
        DEVICE_NEEDS_RESET,
        "the driver would wait for ever"
    );
}
