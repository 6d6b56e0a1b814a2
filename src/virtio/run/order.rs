//! The order in which the locks of one device are taken, checked in debug builds.

#[cfg(debug_assertions)]
use std::cell::RefCell;
use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard},
};

use crate::sync::lock;

/// A lock of a device, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// What the driver sets up.
    Registers,
    /// A queue that is being served.
    Lane,
    /// Identity, features, configuration space.
    Control,
}

#[cfg(debug_assertions)]
thread_local! {
    /// What this thread holds: of which device, and which of its locks.
    static HELD: RefCell<Vec<(usize, Rank)>> = const { RefCell::new(Vec::new()) };
}

/// Says that a lock is held. Devices do not wait for each other under their locks, so each has an order of its own.
pub(crate) struct Held {
    #[cfg(debug_assertions)]
    entry: (usize, Rank),
}

impl Held {
    /// The lock `rank` of `device` is about to be taken.
    ///
    /// # Panics
    /// In a debug build: one that comes after it is held already, or it is itself. A lane may be under another lane, which it does not
    /// wait for.
    #[inline]
    pub fn new(device: usize, rank: Rank) -> Self {
        #[cfg(debug_assertions)]
        HELD.with_borrow_mut(|held| {
            let last = held
                .iter()
                .filter(|(other, _)| *other == device)
                .map(|&(_, rank)| rank)
                .max();
            let in_order = last.is_none_or(|last| last < rank || last == rank && rank == Rank::Lane);
            debug_assert!(in_order, "{rank:?} is locked under {last:?}");
            held.push((device, rank));
        });
        let _ = (device, rank);
        Self {
            #[cfg(debug_assertions)]
            entry: (device, rank),
        }
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        HELD.with_borrow_mut(|held| {
            if let Some(at) = held.iter().rposition(|entry| *entry == self.entry) {
                held.remove(at);
            }
        });
    }
}

/// A guard whose place in the order was checked.
pub(crate) struct Guard<'a, T> {
    guard: MutexGuard<'a, T>,
    _held: Held,
}

/// Locks `mutex`, which is the lock `rank` of `device`.
#[inline]
pub(crate) fn lock_in_order<T>(mutex: &Mutex<T>, device: usize, rank: Rank) -> Guard<'_, T> {
    let held = Held::new(device, rank);
    Guard {
        guard: lock(mutex),
        _held: held,
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn locks_in_order_are_taken_and_those_of_another_device_at_any_time() {
        let locks = [Mutex::new(1), Mutex::new(2), Mutex::new(3)];
        let _registers = lock_in_order(&locks[0], 1, Rank::Registers);
        let mut control = lock_in_order(&locks[1], 1, Rank::Control);
        *control += 1;
        let _other = lock_in_order(&locks[2], 2, Rank::Registers);
        assert_eq!(*control, 3);
        drop(control);
        drop(lock_in_order(&locks[1], 1, Rank::Lane));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "Registers is locked under Some(Control)")]
    fn a_lock_under_one_that_comes_after_it_is_found() {
        let locks = [Mutex::new(()), Mutex::new(())];
        let _control = lock_in_order(&locks[0], 1, Rank::Control);
        let _registers = lock_in_order(&locks[1], 1, Rank::Registers);
    }
}
