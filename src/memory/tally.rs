//! Who uses what may be taken away, counted; and who waits until nobody does.

use std::{any::Any, mem, sync::Arc as Shared, sync::PoisonError};

use crate::sync::{AtomicU64, Lock, Ordering};

/// What somebody waits for has come about when the last of its clones is dropped: what it then does, it does in its drop.
pub(crate) type Ticket = Shared<dyn Any + Send + Sync>;

/// Whoever uses it from here on is one who has known it before.
const ENDED: u64 = 1 << 63;

/// Users of several things that go together, each counted by itself, with no lock until somebody waits for the last of them.
///
/// Those of the first, its *viewers*, may come to use any other at any time, and their number does not come back from zero after the
/// end was told. So who waits for the end of a thing waits for its users, and for the viewers, and for who of these becomes its user.
pub(super) struct Tally {
    users: Box<[AtomicU64]>,
    waiting: Lock<Vec<(usize, Ticket)>>,
}

/// The first.
pub(super) const VIEWERS: usize = 0;

impl Tally {
    pub fn new(things: usize) -> Self {
        Self {
            users: (0..things).map(|_| AtomicU64::new(0)).collect(),
            waiting: Lock::new(Vec::new()),
        }
    }

    #[inline]
    pub fn enter(&self, thing: usize) {
        let before = self.users[thing].fetch_add(1, Ordering::SeqCst);
        if before & ENDED != 0 && thing != VIEWERS {
            self.enter_late(thing);
        }
    }

    /// A viewer has come to use what it was to let go of: who waits for viewers waits for this use as well.
    #[cold]
    fn enter_late(&self, thing: usize) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let viewed: Vec<_> = waiting.iter().filter(|(of, _)| *of == VIEWERS).cloned().collect();
        waiting.extend(viewed.into_iter().map(|(_, ticket)| (thing, ticket)));
    }

    #[inline]
    pub fn leave(&self, thing: usize) {
        if self.users[thing].fetch_sub(1, Ordering::SeqCst) == ENDED | 1 {
            // With nothing locked.
            drop(self.nobody_uses(thing));
        }
    }

    /// From here on `ticket` is kept until nobody uses `thing`. The end of the viewers is told first. What waited for nobody else is
    /// added to `over`, to be dropped with nothing locked.
    pub fn end(&self, thing: usize, ticket: &Ticket, over: &mut Vec<Ticket>) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((thing, Shared::clone(ticket)));
        if self.users[thing].fetch_or(ENDED, Ordering::SeqCst) & !ENDED == 0 {
            over.extend(self.nobody_uses(thing));
        }
    }

    #[cold]
    fn nobody_uses(&self, thing: usize) -> Vec<Ticket> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // A viewer may have come to use it since, and has said here who waits for that: it tells them when it leaves.
        if self.users[thing].load(Ordering::SeqCst) & !ENDED != 0 {
            return Vec::new();
        }
        let (over, rest) = mem::take(&mut *waiting).into_iter().partition(|(of, _)| *of == thing);
        *waiting = rest;
        let over: Vec<(usize, Ticket)> = over;
        over.into_iter().map(|(_, ticket)| ticket).collect()
    }
}

#[cfg(all(test, loom))]
pub(super) mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --lib loom_`

    use loom::sync::atomic::AtomicBool;

    use super::*;

    const RUN: usize = 1;

    /// What is taken away: used, and then, when its ticket is dropped, not there any more.
    #[derive(Clone)]
    pub struct Taken(loom::sync::Arc<AtomicBool>);

    impl Taken {
        pub fn new() -> Self {
            Self(loom::sync::Arc::new(AtomicBool::new(false)))
        }

        pub fn ticket(&self) -> Ticket {
            struct Gone(Taken);

            impl Drop for Gone {
                fn drop(&mut self) {
                    self.0.0.store(true, Ordering::SeqCst);
                }
            }

            Shared::new(Gone(self.clone()))
        }

        pub fn assert_is_there(&self) {
            assert!(!self.0.load(Ordering::SeqCst), "it was taken away from who uses it");
        }

        pub fn assert_is_gone(&self) {
            assert!(self.0.load(Ordering::SeqCst), "nobody was told");
        }
    }

    struct World {
        tally: Tally,
        taken: Taken,
    }

    impl World {
        fn new() -> loom::sync::Arc<Self> {
            let (tally, taken) = (Tally::new(2), Taken::new());
            loom::sync::Arc::new(Self { tally, taken })
        }

        fn is_there(&self) {
            self.taken.assert_is_there();
        }

        fn end(&self) {
            let (ticket, mut over) = (self.taken.ticket(), Vec::new());
            for thing in [VIEWERS, RUN] {
                self.tally.end(thing, &ticket, &mut over);
            }
        }
    }

    /// A viewer that takes a use along, and one that ends the thing meanwhile.
    #[test]
    fn loom_an_end_waits_for_viewers_and_for_what_they_took_along() {
        loom::model(|| {
            let world = World::new();
            world.tally.enter(VIEWERS);
            let other = world.clone();
            let user = loom::thread::spawn(move || {
                other.tally.enter(RUN);
                other.is_there();
                other.tally.leave(VIEWERS);
                other.is_there();
                other.tally.leave(RUN);
            });
            world.end();
            user.join().unwrap();
            world.taken.assert_is_gone();
        });
    }

    /// Two users on two threads that end together.
    #[test]
    fn loom_the_last_of_two_users_tells_once() {
        loom::model(|| {
            let world = World::new();
            for thing in [VIEWERS, RUN, RUN] {
                world.tally.enter(thing);
            }
            let users = [VIEWERS, RUN].map(|thing| {
                let world = world.clone();
                loom::thread::spawn(move || {
                    world.is_there();
                    world.tally.leave(thing);
                })
            });
            world.end();
            world.is_there();
            world.tally.leave(RUN);
            users.into_iter().for_each(|user| user.join().unwrap());
            world.taken.assert_is_gone();
        });
    }

    /// A thing that is ended twice, as the second request for the same range does.
    #[test]
    fn loom_a_second_end_waits_for_the_same_users() {
        loom::model(|| {
            let world = World::new();
            world.tally.enter(RUN);
            let other = world.clone();
            let user = loom::thread::spawn(move || {
                other.is_there();
                other.tally.leave(RUN);
            });
            let first: Ticket = Shared::new(());
            world.tally.end(RUN, &first, &mut Vec::new());
            world.end();
            user.join().unwrap();
            world.taken.assert_is_gone();
            assert_eq!(Shared::strong_count(&first), 1);
        });
    }
}
