//! A queue that is handed away, while it is stopped, kicked and given back: by whoever has it, on a thread of its own.

use super::*;
use crate::virtio::queue::{AwayNotifier, AwayQueue, HandAwayError};

type Lent = loom::sync::Arc<Mutex<Option<AwayQueue>>>;

/// Hands its queue away, and has it back when it is told to stop, if it is not in use there.
struct Elsewhere(Lent);

impl QueueHandler for Elsewhere {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        match round.hand_away() {
            Ok(away) => *self.0.lock().unwrap() = Some(away),
            Err(HandAwayError::Away | HandAwayError::Stopped) => {}
            Err(error) => panic!("{error}"),
        }
        Ok(())
    }

    fn pause(&mut self) {
        let back = self.0.lock().unwrap().take();
        drop(back);
    }
}

/// A world whose queue is away, with a request in it.
struct Away {
    world: loom::sync::Arc<World>,
    lent: Lent,
    notifier: AwayNotifier,
}

impl Away {
    fn new() -> Self {
        let lent = Lent::default();
        let world = World::with_handler(1, 0, Box::new(Elsewhere(lent.clone())), Taken::default());
        let notifier = lent.lock().unwrap().as_ref().expect("it is away").notifier();
        Self { world, lent, notifier }
    }

    /// Who has the queue serves it, and gives it back.
    fn server(&self, signals: bool) -> thread::JoinHandle<()> {
        let lent = self.lent.clone();
        with(&self.world, move |world| {
            let away = lent.lock().unwrap().take();
            let Some(away) = away else { return };
            let avail = world.ram.read_obj(GuestAddress(DRIVER + 2)).unwrap();
            world.ram.write_obj::<u16>(avail, GuestAddress(DEVICE + 2)).unwrap();
            if signals {
                away.notifier().signal();
            }
            away.give_back(avail);
        })
    }

    /// A relay that was told of something used.
    fn relay(&self) -> thread::JoinHandle<()> {
        let notifier = self.notifier.clone();
        with(&self.world, move |_| notifier.signal())
    }

    fn told(&self) -> u64 {
        self.world.line.told.load(SeqCst)
    }

    /// Nothing is under way, and what is saved is what is in memory.
    fn assert_still(&self) -> (u16, u64) {
        let state = self.world.lane.save().unwrap();
        let used = self.world.used();
        assert_eq!((state.next_avail, state.next_used), (used, used));
        (used, self.told())
    }

    fn resume(&self) {
        self.world.lane.word.resume(Stop::Embedder);
        self.world.serve();
    }

    /// It is away again, and goes on where it came to.
    fn assert_away(&self) {
        let lent = self.lent.lock().unwrap();
        let place = lent.as_ref().map(AwayQueue::place);
        assert_eq!(place, Some(self.world.used()));
    }
}

#[test]
fn loom_a_queue_that_is_away_is_back_before_a_pause_is_still_and_goes_away_again_after_it() {
    model(|| {
        let away = Away::new();
        let server = away.server(true);
        away.world.rest(Stop::Embedder);
        let still = away.assert_still();
        assert_eq!(u64::from(still.0), still.1, "used and told, or neither");
        server.join().unwrap();
        assert_eq!(away.assert_still(), still, "something moved");
        away.resume();
        away.assert_away();
        assert_eq!(away.told(), still.1);
    });
}

#[test]
fn loom_a_signal_from_elsewhere_beside_a_pause_is_told_before_it_is_still_or_after_it() {
    model(|| {
        let away = Away::new();
        let relay = away.relay();
        away.world.rest(Stop::Embedder);
        let still = away.assert_still();
        relay.join().unwrap();
        assert_eq!(away.assert_still(), still, "told while it was still");
        away.resume();
        away.assert_away();
        assert_eq!(away.told(), 1);
    });
}

#[test]
fn loom_a_queue_that_comes_back_beside_a_signal_and_a_pause() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(|| {
        let away = Away::new();
        let others = [away.server(false), away.relay()];
        away.world.rest(Stop::Embedder);
        let still = away.assert_still();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(away.assert_still(), still, "something moved");
        away.resume();
        away.assert_away();
        assert_eq!(away.told(), 1);
    });
}

#[test]
fn loom_a_queue_that_is_away_and_a_signal_from_there_beside_a_reset() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(|| {
        let away = Away::new();
        let others = [away.server(true), away.relay()];
        away.world.rest(Stop::Device);
        let (used, told) = (away.world.used(), away.told());
        away.world.lane.finish(&Nothing);
        away.world.lane.word.resume(Stop::Device);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!((away.world.used(), away.told()), (used, told), "after the reset");
        assert!(away.lent.lock().unwrap().is_none());
        assert_eq!(away.world.lane.word.chains(), 0);
    });
}

#[test]
fn loom_a_device_that_is_dropped_tells_nothing_from_elsewhere_afterwards() {
    model(|| {
        let away = Away::new();
        let relay = away.relay();
        away.world.lane.close();
        away.world.rest(Stop::Device);
        let told = away.told();
        relay.join().unwrap();
        assert_eq!(away.told(), told);
    });
}

#[test]
fn loom_a_queue_that_comes_back_beside_a_kick_is_handed_away_again() {
    model(|| {
        let away = Away::new();
        let server = away.server(false);
        // A kick while it is away, or just back.
        away.world.serve();
        server.join().unwrap();
        // Who gives it back by itself has it looked at.
        away.world.serve();
        away.assert_away();
    });
}

#[test]
fn loom_a_queue_that_comes_back_while_a_signal_is_under_way_is_handed_away_again() {
    model(|| {
        let away = Away::new();
        let relay = away.relay();
        away.server(false).join().unwrap();
        away.world.serve();
        away.assert_away();
        relay.join().unwrap();
        // What came between was owed, and is told by whoever looks.
        away.world.serve();
        assert_eq!(away.told(), 1);
    });
}

/// Of two relays, one is late: neither tells twice, and what both saw is told.
#[test]
fn loom_two_signals_from_elsewhere_beside_its_return() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(|| {
        let away = Away::new();
        let others = [away.relay(), away.relay()];
        away.server(false).join().unwrap();
        away.world.serve();
        others.into_iter().for_each(|other| other.join().unwrap());
        away.world.serve();
        away.assert_away();
        assert!((1..=2).contains(&away.told()), "{} times", away.told());
    });
}
