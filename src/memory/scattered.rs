//! Uses of translated memory that lies in several translations, or in one that is not counted by itself.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, PoisonError, Weak},
};

use super::{Segment, tally::Ticket};
use crate::sync::{Lock, Locked};

type Range = RangeInclusive<u64>;

/// Its addresses. It is not empty.
fn range(segment: &Segment) -> Range {
    segment.address..=segment.address.saturating_add(u64::from(segment.len) - 1)
}

fn overlap(one: &Range, other: &Range) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

/// Uses by their addresses, so that who takes some of them back waits for those alone: what lies elsewhere may be in use until its driver
/// does something, which it does not while it waits.
#[derive(Default)]
pub(super) struct Scattered(Lock<Uses>);

#[derive(Default)]
struct Uses {
    /// How often each range is in use.
    now: BTreeMap<(u64, u64), usize>,
    /// What was taken back, for as long as somebody is waited for: a viewer may come to use it still.
    ended: Vec<(Range, Weak<dyn std::any::Any + Send + Sync>)>,
    /// Who waits, and for how many uses.
    waiting: Vec<(Range, Ticket, usize)>,
}

impl Scattered {
    fn uses(&self) -> Locked<'_, Uses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By a viewer.
    // Rare, and out of the way of what is counted in its place.
    #[cold]
    #[inline(never)]
    pub fn enter(&self, segment: &Segment) {
        let range = range(segment);
        let mut uses = self.uses();
        let Uses { now, ended, waiting } = &mut *uses;
        *now.entry((*range.start(), *range.end())).or_default() += 1;
        for (taken, ticket) in ended.iter().filter(|(taken, _)| overlap(taken, &range)) {
            let Some(ticket) = ticket.upgrade() else { continue };
            let known = waiting
                .iter_mut()
                .find(|(of, other, _)| of == taken && Arc::ptr_eq(other, &ticket));
            match known {
                Some((.., count)) => *count += 1,
                None => waiting.push((taken.clone(), ticket, 1)),
            }
        }
    }

    #[cold]
    #[inline(never)]
    pub fn leave(&self, segment: &Segment) {
        let range = range(segment);
        let over: Vec<_> = {
            let mut uses = self.uses();
            let Uses { now, waiting, .. } = &mut *uses;
            let key = (*range.start(), *range.end());
            match now.get_mut(&key) {
                Some(count @ 2..) => *count -= 1,
                Some(_) => _ = now.remove(&key),
                None => return,
            }
            waiting
                .iter_mut()
                .filter(|(of, ..)| overlap(of, &range))
                .for_each(|(.., count)| *count -= 1);
            waiting.extract_if(.., |(.., count)| *count == 0).collect()
        };
        // With nothing locked.
        drop(over);
    }

    /// From here on `ticket` is kept until nobody uses these. The end of the viewers was told before.
    pub fn end(&self, addresses: &Range, ticket: &Ticket) {
        let mut uses = self.uses();
        let Uses { now, ended, waiting } = &mut *uses;
        ended.retain(|(_, ticket)| ticket.strong_count() != 0);
        let mut before = ended.iter().filter(|(taken, _)| taken == addresses);
        if before.any(|(_, other)| std::ptr::addr_eq(other.as_ptr(), Arc::as_ptr(ticket))) {
            return;
        }
        ended.push((addresses.clone(), Arc::downgrade(ticket)));
        let used = now
            .iter()
            .filter(|((first, last), _)| overlap(&(*first..=*last), addresses));
        let count: usize = used.map(|(_, count)| count).sum();
        if count != 0 {
            waiting.push((addresses.clone(), Arc::clone(ticket), count));
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --lib loom_`

    use super::*;
    use crate::memory::tally::{Tally, VIEWERS, loom_tests::Taken};

    /// A pin's, with the viewers that it counts elsewhere.
    struct World {
        tally: Tally,
        scattered: Scattered,
        taken: Taken,
    }

    impl World {
        fn new() -> loom::sync::Arc<Self> {
            loom::sync::Arc::new(Self {
                tally: Tally::new(VIEWERS + 1),
                scattered: Scattered::default(),
                taken: Taken::new(),
            })
        }

        fn is_there(&self) {
            self.taken.assert_is_there();
        }

        /// In the order of [`Runs::take_back`](super::super::runs::Runs::take_back).
        fn end(&self, addresses: Range) {
            let ticket = self.taken.ticket();
            self.tally.end(VIEWERS, &ticket, &mut Vec::new());
            self.scattered.end(&addresses, &ticket);
        }
    }

    /// A viewer that takes a use along, and one that takes it back meanwhile.
    #[test]
    fn loom_what_is_taken_back_waits_for_viewers_and_for_scattered_uses_that_they_took_along() {
        loom::model(|| {
            let world = World::new();
            world.tally.enter(VIEWERS);
            let other = world.clone();
            let user = loom::thread::spawn(move || {
                let segment = Segment::new(0x1ff0, 0x20);
                other.scattered.enter(&segment);
                other.is_there();
                other.tally.leave(VIEWERS);
                other.is_there();
                other.scattered.leave(&segment);
            });
            world.end(0x2000..=0x2fff);
            user.join().unwrap();
            world.taken.assert_is_gone();
        });
    }

    /// Two users of the same bytes that end together, and two of others, of whom one ends before them and one goes on.
    #[test]
    fn loom_the_last_of_two_scattered_uses_tells_and_one_elsewhere_is_not_waited_for() {
        loom::model(|| {
            let world = World::new();
            let (here, elsewhere) = (Segment::new(0x2000, 0x1000), Segment::new(0x3000, 0x1000));
            for segment in [&here, &here, &elsewhere, &elsewhere] {
                world.scattered.enter(segment);
            }
            let other = world.clone();
            let user = loom::thread::spawn(move || {
                other.is_there();
                other.scattered.leave(&here);
            });
            world.end(0x2000..=0x2fff);
            world.scattered.leave(&elsewhere);
            world.is_there();
            world.scattered.leave(&here);
            user.join().unwrap();
            world.taken.assert_is_gone();
            world.scattered.leave(&elsewhere);
        });
    }

    /// Two that take overlapping parts back, one behind the other, while a viewer comes to use both.
    #[test]
    fn loom_each_who_takes_back_is_told_of_a_use_that_came_late() {
        loom::model(|| {
            let world = World::new();
            world.tally.enter(VIEWERS);
            let other = world.clone();
            let user = loom::thread::spawn(move || {
                let segment = Segment::new(0x2000, 0x2000);
                other.scattered.enter(&segment);
                other.tally.leave(VIEWERS);
                other.is_there();
                other.scattered.leave(&segment);
            });
            let first: Ticket = Arc::new(());
            world.tally.end(VIEWERS, &first, &mut Vec::new());
            world.scattered.end(&(0x2000..=0x2fff), &first);
            world.end(0x3000..=0x3fff);
            user.join().unwrap();
            world.taken.assert_is_gone();
            assert_eq!(Arc::strong_count(&first), 1, "it is kept for nobody");
        });
    }
}
