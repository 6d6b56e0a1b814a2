//! Who wants to hear what the local APICs tell.

use std::sync::{Arc, Mutex};

use super::vectors::Vector;
use crate::sync::lock;

/// What a hook hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookEvent {
    Eoi(Vector),
    AcceptsMore,
}

type Hook = Arc<dyn Fn(HookEvent) + Send + Sync>;

/// All of them, each with a number.
#[derive(Default)]
pub(super) struct Hooks(Mutex<List>);

/// Replaced as a whole, so that calling them takes no copy.
#[derive(Default)]
struct List {
    all: Arc<[(u64, Hook)]>,
    next: u64,
}

impl Hooks {
    pub fn call(&self, event: HookEvent) {
        let hooks = Arc::clone(&lock(&self.0).all);
        for (_, hook) in hooks.iter() {
            hook(event);
        }
    }

    /// The number of the new one.
    pub fn add(&self, hook: impl Fn(HookEvent) + Send + Sync + 'static) -> u64 {
        let mut list = lock(&self.0);
        let number = list.next;
        list.next += 1;
        let others = list.all.iter().cloned();
        list.all = others.chain([(number, Arc::new(hook) as Hook)]).collect();
        number
    }

    pub fn remove(&self, number: u64) {
        let mut list = lock(&self.0);
        let others = list.all.iter().filter(|(other, _)| *other != number);
        let others = others.cloned().collect();
        // The hook may own what takes this lock when it is dropped.
        let dropped = std::mem::replace(&mut list.all, others);
        drop(list);
        drop(dropped);
    }
}
