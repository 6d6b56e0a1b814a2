//! The way back from a controller: who wants to hear that the guest has finished with an input.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, Weak},
};

use crate::sync::lock;

type Hook = Arc<dyn Fn() + Send + Sync>;

/// The hooks of a controller, by input and by the number of the hook.
#[derive(Default)]
pub(super) struct FinishedHooks(Mutex<Listed>);

#[derive(Default)]
struct Listed {
    by_input: BTreeMap<(u32, u64), Hook>,
    next: u64,
}

impl FinishedHooks {
    pub(super) fn add(self: &Arc<Self>, input: u32, hook: impl Fn() + Send + Sync + 'static) -> FinishedHook {
        let mut listed = lock(&self.0);
        let key = (input, listed.next);
        listed.next += 1;
        listed.by_input.insert(key, Arc::new(hook));
        let hooks = Arc::downgrade(self);
        FinishedHook { hooks, key }
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).by_input.is_empty()
    }

    /// Calls the hooks of an input, with nothing locked.
    pub(super) fn call(&self, input: u32) {
        let hooks: Vec<Hook> = {
            let listed = lock(&self.0);
            let of_input = listed.by_input.range((input, 0)..=(input, u64::MAX));
            of_input.map(|(_, hook)| Arc::clone(hook)).collect()
        };
        for hook in hooks {
            hook();
        }
    }
}

/// Inputs that a GIC finds to be finished under its lock. One access reaches one word of 32 of them at the most.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Finished {
    first: u32,
    bits: u32,
}

impl Finished {
    pub(super) fn note(&mut self, input: u32) {
        let first = input & !31;
        debug_assert!(self.bits == 0 || self.first == first, "an access reaches one word");
        self.first = first;
        self.bits |= 1 << (input % 32);
    }

    /// Calls the hooks of each, with nothing locked.
    pub(super) fn tell(self, hooks: &FinishedHooks) {
        let mut left = self.bits;
        while left != 0 {
            hooks.call(self.first + left.trailing_zeros());
            left &= left - 1;
        }
    }
}

/// Keeps a hook that hears when the guest has finished. Dropping it ends the calls.
#[must_use = "dropping it ends the calls"]
pub struct FinishedHook {
    hooks: Weak<FinishedHooks>,
    key: (u32, u64),
}

impl Drop for FinishedHook {
    fn drop(&mut self) {
        if let Some(hooks) = self.hooks.upgrade() {
            // Dropped after the unlock: what the hook owns may call back.
            let hook = lock(&hooks.0).by_input.remove(&self.key);
            drop(hook);
        }
    }
}

impl fmt::Debug for FinishedHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishedHook")
            .field("input", &self.key.0)
            .finish_non_exhaustive()
    }
}
