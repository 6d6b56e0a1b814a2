//! A queue that is handed away, as whoever serves it elsewhere sees it.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueIndex, features,
        queue::{HandAwayError, QueueState, Rest, VirtioInterrupt},
    },
};

use crate::{
    both::COMMON,
    ring::{Ring, memory, writable},
};

#[derive(Default)]
struct Signals(AtomicU32);

impl VirtioInterrupt for Signals {
    fn used(&self, _: &[QueueIndex]) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) {}
}

fn queue(features: u64) -> (Queue, Ring, Arc<Signals>) {
    let signals = Arc::new(Signals::default());
    let (queue, ring) = queue_with(features, signals.clone());
    (queue, ring, signals)
}

fn queue_with(features: u64, line: Arc<dyn VirtioInterrupt>) -> (Queue, Ring) {
    let memory = memory();
    let ring = Ring::new(&memory, 0x1000, 16);
    let space = Memory::new(Arc::clone(&memory));
    let queue = Queue::new(QueueIndex(0), 16, ring.layout, features, &space, line);
    (queue.expect("a valid layout"), ring)
}

/// Serves a request where the queue is.
fn serve(queue: &mut Queue) -> usize {
    let mut served = 0;
    let mut round = queue.round().unwrap();
    while let Some(chain) = round.next().unwrap() {
        chain.complete(0).unwrap();
        served += 1;
    }
    assert_ne!(round.end().unwrap(), Rest::More);
    served
}

#[test]
fn while_it_is_away_rounds_find_nothing_and_write_nothing() {
    let (mut queue, mut ring, signals) = queue(COMMON);
    ring.request(&[writable(0x8000, 4)]);
    let away = queue.round().unwrap().hand_away().unwrap();
    let before = ring.get::<[u64; 16]>(ring.layout.device_area);
    assert_eq!(serve(&mut queue), 0);
    // What would break the ring is not ours to find either.
    let idx = ring.avail_idx();
    ring.set_avail_idx(9999);
    assert_eq!(serve(&mut queue), 0);
    ring.set_avail_idx(idx);
    assert_eq!(ring.get::<[u64; 16]>(ring.layout.device_area), before);
    assert_eq!(signals.0.load(Ordering::SeqCst), 0);
    assert_eq!(
        queue.round().unwrap().hand_away().expect_err("it is away"),
        HandAwayError::Away
    );
    drop(away);
    // At the place where it was.
    assert_eq!(serve(&mut queue), 1);
}

#[test]
fn where_it_came_to_elsewhere_is_where_it_goes_on_and_what_is_saved() {
    let (mut queue, mut ring, _) = queue(COMMON);
    (0..3).for_each(|_| _ = ring.request(&[writable(0x8000, 4)]));
    let away = queue.round().unwrap().hand_away().unwrap();
    assert_eq!((away.place(), away.layout(), away.features()), (0, ring.layout, COMMON));
    // Two of three were used there.
    ring.put(ring.layout.device_area + 2, 2_u16);
    away.give_back(2);
    let QueueState {
        next_avail, next_used, ..
    } = queue.save();
    assert_eq!((next_avail, next_used), (2, 2));
    assert_eq!(serve(&mut queue), 1);
    assert_eq!(ring.used_idx(), 3);
    assert_eq!(queue.counters().requests, 3);
}

#[test]
fn a_signal_from_elsewhere_is_told_and_one_that_comes_late_is_told_by_the_next_round() {
    let (mut queue, _, signals) = queue(COMMON);
    let away = queue.round().unwrap().hand_away().unwrap();
    let notifier = away.notifier();
    notifier.signal();
    assert_eq!(signals.0.load(Ordering::SeqCst), 1);
    away.give_back(0);
    notifier.signal();
    assert_eq!(signals.0.load(Ordering::SeqCst), 1, "it is not away any more");
    assert!(queue.save().signal_owed);
    serve(&mut queue);
    assert_eq!(signals.0.load(Ordering::SeqCst), 2);
    assert_eq!(queue.counters().delivered, 2);
}

#[test]
fn with_requests_in_flight_it_is_not_handed_away() {
    let (mut queue, mut ring, _) = queue(COMMON);
    ring.request(&[writable(0x8000, 4)]);
    let mut round = queue.round().unwrap();
    let taken = round.next().unwrap().expect("a request").take();
    assert_eq!(round.hand_away().expect_err("one is out"), HandAwayError::InFlight(1));
    drop(round);
    taken.give_back();
    assert_eq!(
        queue
            .round()
            .unwrap()
            .hand_away()
            .expect_err("it is served again first"),
        HandAwayError::InFlight(1)
    );
    assert_eq!(serve(&mut queue), 1);
    assert!(queue.round().unwrap().hand_away().is_ok());
}

/// A line that is slow, until it is told to go on.
#[derive(Default)]
struct Slow(Mutex<()>, AtomicU32);

impl VirtioInterrupt for Slow {
    fn used(&self, _: &[QueueIndex]) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        drop(self.0.lock().unwrap());
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) {}
}

#[test]
fn a_signal_that_is_under_way_does_not_keep_it_here() {
    let line = Arc::new(Slow::default());
    let (mut queue, _ring) = queue_with(COMMON, line.clone());
    let away = queue.round().unwrap().hand_away().unwrap();
    let notifier = away.notifier();
    std::thread::scope(|scope| {
        let slow = line.0.lock().unwrap();
        scope.spawn(move || notifier.signal());
        while line.1.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        away.give_back(0);
        let again = queue.round().unwrap().hand_away();
        drop(slow);
        assert!(again.is_ok(), "{again:?}");
    });
}

#[test]
fn one_that_comes_back_while_a_round_is_at_it_may_be_handed_away_by_that() {
    let (mut queue, mut ring, _) = queue(COMMON);
    let away = queue.round().unwrap().hand_away().unwrap();
    ring.request(&[writable(0x8000, 4)]);
    let mut round = queue.round().unwrap();
    // On another thread, say.
    away.give_back(1);
    let again = round.hand_away().unwrap();
    assert_eq!(again.place(), 1);
    assert_eq!(round.hand_away().expect_err("now it is away"), HandAwayError::Away);
    drop(round);
    drop(again);
    assert_eq!(serve(&mut queue), 0, "it was used elsewhere");
}

#[test]
fn a_packed_ring_goes_away_and_comes_back_too() {
    let (mut queue, _, _) = queue(COMMON | features::RING_PACKED);
    let away = queue.round().unwrap().hand_away().unwrap();
    assert_eq!(away.place(), 0x8000);
    away.give_back(0x8005);
    assert_eq!(queue.save().next_used, 0x8005);
    let again = queue.round().unwrap().hand_away().unwrap();
    assert_eq!(again.place(), 0x8005);
    // Beyond its end.
    again.give_back(0x8010);
    assert_eq!(queue.save().next_avail, 0x8000);
}
