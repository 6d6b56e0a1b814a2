//! Where the ring of a queue is served.

use std::sync::PoisonError;

use crate::sync::{Lock, Locked};

/// Where the ring of a queue is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// In rounds of the queue.
    Here,
    /// Elsewhere.
    Away,
    /// It has come back, at this place, and no round has seen it yet.
    Back(u16),
}

/// The same, behind a lock of its own: who is not away from a queue has no part in its used side.
pub(super) struct Whereabouts(Lock<Where>);

impl Whereabouts {
    pub fn new() -> Self {
        Self(Lock::new(Where::Here))
    }

    pub fn lock(&self) -> Locked<'_, Where> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self) -> Where {
        *self.lock()
    }
}
