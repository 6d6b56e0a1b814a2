//! The way back from the guest to who drives an SPI: hooks that are called when it has finished with one.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, Weak},
};

use super::Spi;
use crate::sync::lock;

/// Who wants to hear that an SPI is finished.
#[derive(Clone, Default)]
pub(super) struct FinishedHooks(Arc<Mutex<Hooks>>);

/// By SPI and by the number of the hook.
#[derive(Default)]
struct Hooks {
    by_spi: BTreeMap<(u32, u64), Arc<dyn Fn() + Send + Sync>>,
    next: u64,
}

impl FinishedHooks {
    pub(super) fn add(&self, spi: Spi, hook: impl Fn() + Send + Sync + 'static) -> FinishedHook {
        let mut hooks = lock(&self.0);
        let number = hooks.next;
        hooks.next += 1;
        hooks.by_spi.insert((spi.0, number), Arc::new(hook));
        FinishedHook {
            hooks: Arc::downgrade(&self.0),
            key: (spi.0, number),
        }
    }

    /// Calls the hooks of an SPI. To be called with no lock held.
    pub(super) fn call(&self, spi: Spi) {
        let hooks: Vec<_> = {
            let hooks = lock(&self.0);
            let of_spi = hooks.by_spi.range((spi.0, 0)..=(spi.0, u64::MAX));
            of_spi.map(|(_, hook)| Arc::clone(hook)).collect()
        };
        for hook in hooks {
            hook();
        }
    }
}

/// Keeps a hook in place that is called when the guest has finished with an SPI. Dropping it takes the hook away.
#[must_use = "dropping it takes the hook away"]
pub struct FinishedHook {
    hooks: Weak<Mutex<Hooks>>,
    key: (u32, u64),
}

impl Drop for FinishedHook {
    fn drop(&mut self) {
        if let Some(hooks) = self.hooks.upgrade() {
            // Dropped after the unlock: what the hook owns may call back.
            let hook = lock(&hooks).by_spi.remove(&self.key);
            drop(hook);
        }
    }
}

impl fmt::Debug for FinishedHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishedHook")
            .field("spi", &Spi(self.key.0))
            .finish_non_exhaustive()
    }
}
