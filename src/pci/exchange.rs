//! A value that is looked at often and exchanged seldom, by who waits for nobody.

use std::{marker::PhantomData, ops::Deref, ptr, sync::PoisonError};

use crate::sync::{AtomicPtr, AtomicU64, Guarded, Lock, Ordering};

/// A value that many look at, each for as long as it likes, and that is exchanged meanwhile. Neither waits for the other, and a value
/// that was replaced is dropped when the last lets go of it.
pub(super) struct Exchange<T> {
    /// The place of the value as it is now: one of `places`.
    current: AtomicPtr<Place<T>>,
    /// As many as there were values in use at a time. Places are used again, and stay as long as this does.
    places: Lock<Vec<std::sync::Arc<Place<T>>>>,
    /// Values are shared.
    shared: PhantomData<std::sync::Arc<T>>,
}

struct Place<T> {
    /// How many look at it, or are about to find that it is not the current one.
    users: AtomicU64,
    /// Written by who has the lock, while nobody uses it and it is not the current one.
    value: Guarded<Option<T>>,
}

impl<T> Place<T> {
    fn new(value: Option<T>) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            users: AtomicU64::new(0),
            value: Guarded::new(value),
        })
    }

    /// Whether nobody uses it. Exchanged, not loaded: who comes or goes after that sees what the current place was before it.
    fn is_free(&self) -> bool {
        self.users.fetch_add(0, Ordering::SeqCst) == 0
    }
}

/// A value that is looked at.
pub(super) struct Seen<'a, T> {
    exchange: &'a Exchange<T>,
    place: &'a Place<T>,
}

impl<T> Exchange<T> {
    pub fn new(value: T) -> Self {
        let place = Place::new(Some(value));
        Self {
            current: AtomicPtr::new(std::sync::Arc::as_ptr(&place).cast_mut()),
            places: Lock::new(vec![place]),
            shared: PhantomData,
        }
    }

    /// The value as it is now.
    #[inline]
    pub fn get(&self) -> Seen<'_, T> {
        loop {
            // SAFETY: places stay where they are as long as this is there.
            let place = unsafe { &*self.current.load(Ordering::SeqCst) };
            place.users.fetch_add(1, Ordering::SeqCst);
            let exchange = self;
            let seen = Seen { exchange, place };
            // Who replaces it looks for users after that: this one is seen, or has seen it.
            if ptr::eq(self.current.load(Ordering::SeqCst), place) {
                return seen;
            }
        }
    }

    /// Puts `value` in the place of the one before. What is left of earlier ones, unless somebody looks at it: drop it with nothing
    /// locked.
    pub fn replace(&self, value: T) -> [Option<T>; 2] {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current.load(Ordering::SeqCst);
        let free = |place: &&std::sync::Arc<Place<T>>| !ptr::eq(&***place, before) && place.is_free();
        let place = places.iter().find(free).cloned().unwrap_or_else(|| {
            let place = Place::new(None);
            places.push(std::sync::Arc::clone(&place));
            place
        });
        // SAFETY: this thread has the lock; nobody looked at it, nor does before it is the current one.
        let left = unsafe { place.value.open() }.replace(value);
        self.current
            .store(std::sync::Arc::as_ptr(&place).cast_mut(), Ordering::SeqCst);
        // SAFETY: as in `get`.
        [left, self.take(unsafe { &*before })]
    }

    /// What is in a place that is not the current one and that nobody looks at. `places` is locked.
    fn take(&self, place: &Place<T>) -> Option<T> {
        let free = !ptr::eq(self.current.load(Ordering::SeqCst), place) && place.is_free();
        // SAFETY: this thread has the lock, and who comes now finds that the place is not the current one.
        free.then(|| unsafe { place.value.open() }.take()).flatten()
    }

    /// The last who looked at a value that was replaced is gone.
    #[cold]
    fn left(&self, place: &Place<T>) {
        let left = {
            let _places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            self.take(place)
        };
        // With nothing locked.
        drop(left);
    }
}

impl<T> Deref for Seen<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: while this is there, its place has a user, and was the current one after it had: its value stays.
        let value = unsafe { self.place.value.share() };
        value
            .as_ref()
            .unwrap_or_else(|| unreachable!("the current place has a value"))
    }
}

impl<T> Drop for Seen<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let users = self.place.users.fetch_sub(1, Ordering::SeqCst);
        if users == 1 && !ptr::eq(self.exchange.current.load(Ordering::SeqCst), self.place) {
            self.exchange.left(self.place);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_value_that_was_replaced_lives_as_long_as_somebody_looks_at_it() {
        let values = [1, 2, 3].map(Arc::new);
        let alive = |n: usize| Arc::strong_count(&values[n]) - 1;
        let exchange = Exchange::new(Arc::clone(&values[0]));
        let seen = exchange.get();
        let left = |left: [Option<Arc<i32>>; 2]| left.map(|left| left.map(|left| *left));
        assert_eq!(
            left(exchange.replace(Arc::clone(&values[1]))),
            [None, None],
            "it is looked at"
        );
        assert_eq!((**seen, alive(0)), (1, 1));
        assert_eq!(left(exchange.replace(Arc::clone(&values[2]))), [None, Some(2)]);
        drop(seen);
        assert_eq!([0, 1, 2].map(alive), [0, 0, 1]);
        assert_eq!(**exchange.get(), 3);
        // Of which one was looked at, one was the current one, and one became it.
        for _ in 0..9 {
            drop(exchange.replace(Arc::clone(&values[1])));
        }
        assert_eq!((exchange.places.lock().unwrap().len(), alive(1)), (3, 1));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::thread;
    use std::sync::Arc;

    use super::*;

    /// A value that is whole as long as it is looked at, and is dropped once.
    struct Value(u64, Arc<std::sync::atomic::AtomicU64>);

    impl Drop for Value {
        fn drop(&mut self) {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    #[test]
    fn loom_a_value_is_looked_at_and_exchanged_and_each_is_dropped_once() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound.get_or_insert(3);
        builder.check(|| {
            let dropped = Arc::new(std::sync::atomic::AtomicU64::new(0));
            let value = |n| Value(n, Arc::clone(&dropped));
            let exchange = loom::sync::Arc::new(Exchange::new(value(0)));
            let guest = {
                let (exchange, values) = (exchange.clone(), [1, 2].map(value));
                thread::spawn(move || values.into_iter().for_each(|value| drop(exchange.replace(value))))
            };
            let mut last = 0;
            for _ in 0..2 {
                let seen = exchange.get();
                assert!(last <= seen.0);
                last = seen.0;
            }
            guest.join().unwrap();
            assert!(exchange.places.lock().unwrap().len() <= 3);
            assert_eq!(exchange.get().0, 2);
            assert_eq!(
                dropped.load(std::sync::atomic::Ordering::SeqCst),
                2,
                "one is not let go of"
            );
            drop(exchange);
            assert_eq!(dropped.load(std::sync::atomic::Ordering::SeqCst), 3);
        });
    }
}
