//! The synchronisation primitives of the crate, so that `loom` can stand in for them under `--cfg loom`.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after a panic elsewhere: every critical section of this crate leaves its data consistent
/// at each point where an embedder's code could unwind through it.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a thread waits for something that an atomic says.
#[derive(Default)]
pub(crate) struct Gate {
    #[cfg(loom)]
    waiting: (loom::sync::Mutex<()>, loom::sync::Condvar),
    #[cfg(not(loom))]
    waiting: (Mutex<()>, std::sync::Condvar),
}

impl Gate {
    /// Waits until `open` says so, which is asked again each time the gate was [knocked](Self::knock) at.
    pub fn wait(&self, open: impl Fn() -> bool) {
        let (mutex, condition) = &self.waiting;
        let mut guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        while !open() {
            guard = condition.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`wait`](Self::wait), until `deadline` at the latest. Whether it is open.
    #[cfg(not(loom))]
    pub fn wait_until(&self, deadline: std::time::Instant, open: impl Fn() -> bool) -> bool {
        let (mutex, condition) = &self.waiting;
        let mut guard = lock(mutex);
        while !open() {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = condition.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// What those who wait here look at has changed.
    pub fn knock(&self) {
        let (mutex, condition) = &self.waiting;
        // Nobody is between the look and the wait.
        drop(mutex.lock().unwrap_or_else(PoisonError::into_inner));
        condition.notify_all();
    }
}
