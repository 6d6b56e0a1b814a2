//! Requests that end late, and what a driver sees of a reset meanwhile.

use std::{
    thread,
    time::{Duration, Instant},
};

use devisor::{
    pci::Function,
    virtio::{
        QueueIndex, VirtioTransport, features,
        transport::{NotStill, pci::VirtioPciOptions},
    },
};

use crate::{
    driver::*,
    late::{Held, Late, Stopped},
    rest,
    ring::Ring,
};

const FEATURES: u64 = features::COMMON & !features::EVENT_IDX;

/// A device at work with two requests under way on queue 0, and one on queue 1.
fn busy(stopped: Stopped, reset_patience: Duration) -> (Driver<Late>, [Ring; 2], Held) {
    let late = Late::new(&[SIZE, SIZE], stopped);
    let held = late.held();
    let options = VirtioPciOptions {
        reset_patience,
        ..VirtioPciOptions::default()
    };
    let driver = Driver::with(late, options).unwrap();
    driver.place();
    driver.enable_msix();
    let mut rings = driver.start_with(FEATURES);
    for (queue, ring) in [(0, 0), (0, 0), (1, 1)] {
        driver.request(queue, &mut rings[ring]);
    }
    assert_eq!(held.count(), 3);
    driver.sent();
    (driver, rings, held)
}

const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_reset_that_takes_longer_than_its_patience_reads_as_not_reset_until_requests_have_ended() {
    let (driver, mut rings, held) = busy(Stopped::GoesOn, SHORT);
    driver.set(DEVICE_STATUS, 0);
    assert_ne!(driver.status(), 0);
    // Nothing else is heard meanwhile.
    let registers = [
        (DEVICE_STATUS, 1),
        (DRIVER_FEATURE, 0),
        (QUEUE_SELECT, 1),
        (QUEUE_SIZE, 2),
        (CONFIG_MSIX_VECTOR, 2),
        (QUEUE_MSIX_VECTOR, 0),
        (QUEUE_DESC, 0),
        (QUEUE_RESET, 1),
        (QUEUE_ENABLE, 1),
    ];
    let read = || registers.map(|(register, _)| driver.get(register));
    let before = read();
    for (register, value) in registers {
        driver.set(register, value);
    }
    driver.set_bar(STRUCTURES, CONFIG, 4, 0);
    assert_eq!(read(), before);
    driver.request(0, &mut rings[0]);
    assert_eq!(held.count(), 3, "nothing is taken any more");
    while held.count() != 0 {
        assert_ne!(driver.status(), 0, "{} are left", held.count());
        held.complete(0);
    }
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.sent(), NONE, "nobody is told of what has ended since");
    assert_eq!((driver.isr(), driver.get(CONFIG_MSIX_VECTOR)), (0, NO_VECTOR));
    let used = [0, 1].map(|ring| rings[ring].used().len());
    assert_eq!(used, [2, 1]);

    driver.place();
    let [mut ring, _] = driver.start_with(FEATURES);
    driver.request(0, &mut ring);
    held.complete_all();
    assert_eq!(
        (ring.used().len(), driver.sent()),
        (1, vec![OF_QUEUE[0]]),
        "it works again"
    );
}

#[test]
fn a_reset_within_its_patience_has_ended_when_the_write_returns() {
    let (driver, _rings, held) = busy(Stopped::GoesOn, LONG);
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            held.complete_all();
        });
        driver.set(DEVICE_STATUS, 0);
        assert_eq!(driver.status(), 0);
    });
    assert!(began.elapsed() < LONG);
}

#[test]
fn requests_without_effect_do_not_hold_up_a_reset() {
    let (driver, rings, held) = busy(Stopped::IsReturned, SHORT);
    driver.set(DEVICE_STATUS, 0);
    assert_eq!((driver.status(), held.count()), (0, 0));
    assert_eq!(rings.map(|ring| ring.used_idx()), [0, 0]);
}

#[test]
fn a_reset_by_the_bus_is_one_by_the_driver() {
    let (driver, _rings, held) = busy(Stopped::GoesOn, SHORT);
    Function::reset(&*driver.pci);
    driver.place();
    assert_ne!(driver.status(), 0);
    held.complete_all();
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_queue_that_is_reset_reads_so_until_its_own_requests_have_ended() {
    let (driver, [mut first, mut second], held) = busy(Stopped::GoesOn, SHORT);
    driver.set(QUEUE_SELECT, 0);
    driver.set(QUEUE_RESET, 1);
    assert_eq!((driver.get(QUEUE_RESET), driver.get(QUEUE_ENABLE)), (1, 0));
    driver.set(QUEUE_ENABLE, 1);
    driver.set(QUEUE_SIZE, 2);
    assert_eq!((driver.get(QUEUE_ENABLE), driver.get(QUEUE_SIZE)), (0, SIZE.into()));
    held.complete(0);
    assert_eq!(driver.get(QUEUE_RESET), 1, "one is left");
    // The other queue has one too, and goes on.
    held.complete(0);
    assert_eq!((driver.get(QUEUE_RESET), held.count()), (0, 1));
    assert_eq!(first.used().len(), 2);
    driver.request(1, &mut second);
    assert_eq!(held.count(), 2);
    held.complete_all();
    assert_eq!(second.used().len(), 2);

    let mut again = driver.set_up_queue(0);
    assert_eq!(driver.get(QUEUE_ENABLE), 1);
    driver.request(0, &mut again);
    held.complete_all();
    assert_eq!(again.used().len(), 1);
}

#[test]
fn bus_master_lets_requests_that_are_under_way_end_and_takes_none_until_it_is_set_again() {
    let (driver, [mut first, _], held) = busy(Stopped::GoesOn, SHORT);
    driver.set_config(COMMAND, 2, MEMORY_SPACE.into());
    driver.request(0, &mut first);
    assert_eq!(held.count(), 3);
    held.complete_all();
    driver.set_config(COMMAND, 2, (MEMORY_SPACE | BUS_MASTER).into());
    assert_eq!(held.count(), 1);
    held.complete_all();
    assert_eq!(first.used().len(), 3);
}

#[test]
fn a_save_is_refused_until_a_paused_device_is_still() {
    let (driver, _rings, held) = busy(Stopped::GoesOn, SHORT);
    driver.pci.pause();
    let left = |queues: &[(u16, u64)]| {
        let left = queues.iter().map(|&(queue, chains)| (QueueIndex(queue), chains));
        Err(NotStill(left.collect()))
    };
    assert_eq!(driver.pci.save(), left(&[(0, 2), (1, 1)]));
    held.complete(2);
    assert_eq!(driver.pci.save(), left(&[(0, 2)]));
    held.complete_all();
    assert!(driver.pci.save().is_ok());
}

#[test]
fn requests_without_effect_are_in_a_saved_state_and_served_where_it_is_restored() {
    let (driver, _rings, held) = busy(Stopped::IsReturned, SHORT);
    let mut state = rest::at_rest(&*driver.pci);
    assert_eq!(held.count(), 0);
    let queues = &rest::pci(&mut state).transport.queues;
    let in_flight = [0, 1].map(|queue: usize| queues[queue].as_ref().unwrap().in_flight.clone());
    assert_eq!(in_flight, [vec![0, 1], vec![0]]);
    driver.pci.resume();
    assert_eq!(held.count(), 3);
    held.complete_all();
    assert_eq!(driver.sent().len(), 3);
}

#[test]
fn a_reset_of_boundless_patience_returns_when_requests_have_ended() {
    let (driver, _rings, held) = busy(Stopped::GoesOn, Duration::MAX);
    thread::scope(|scope| {
        let reset = scope.spawn(|| driver.set(DEVICE_STATUS, 0));
        thread::sleep(Duration::from_millis(20));
        assert!(!reset.is_finished());
        held.complete_all();
    });
    assert_eq!(driver.status(), 0);
}
