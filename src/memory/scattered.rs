//! Uses of translated memory that lies in several translations, or in one that is not counted by itself.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, Mutex, Weak},
};

use super::tally::Ticket;
use crate::sync::lock;

type Range = RangeInclusive<u64>;

fn overlap(one: &Range, other: &Range) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

/// Uses by their addresses, so that who takes some of them back waits for those alone: what lies elsewhere may be in use until its driver
/// does something, which it does not while it waits.
#[derive(Default)]
pub(super) struct Scattered(Mutex<Uses>);

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
    /// By a viewer.
    pub fn enter(&self, range: Range) {
        let mut uses = lock(&self.0);
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

    pub fn leave(&self, range: Range) {
        let over: Vec<_> = {
            let mut uses = lock(&self.0);
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
        let mut uses = lock(&self.0);
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
