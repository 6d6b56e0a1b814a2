//! The synchronisation primitives of the crate, so that `loom` can stand in for them under `--cfg loom`.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc, Mutex as Lock, MutexGuard as Locked,
    atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Mutex as Lock, MutexGuard as Locked,
    atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

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

/// What some word of the crate says who may have it: one thread at a time. Loom sees whether that holds.
#[derive(Default)]
pub(crate) struct Guarded<T> {
    #[cfg(loom)]
    value: loom::cell::UnsafeCell<T>,
    #[cfg(not(loom))]
    value: std::cell::UnsafeCell<T>,
}

// SAFETY: as of a `Mutex`: whoever opens it says that nobody else has it open. That a value which is shared can be is for who does so.
unsafe impl<T: Send> Sync for Guarded<T> {}

/// Lets another thread go on.
pub(crate) fn yield_now() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}

impl<T> Guarded<T> {
    pub fn new(value: T) -> Self {
        Self { value: value.into() }
    }

    /// # Safety
    /// Nobody else has it open, nor opens it before this is dropped; and who had it open before has let this thread know.
    #[inline(always)]
    pub unsafe fn open(&self) -> Opened<'_, T> {
        Opened {
            #[cfg(loom)]
            value: self.value.get_mut(),
            // SAFETY: as the caller says.
            #[cfg(not(loom))]
            value: unsafe { &mut *self.value.get() },
            #[cfg(loom)]
            guarded: std::marker::PhantomData,
        }
    }
}

impl<T> Guarded<T> {
    /// # Safety
    /// `T` is `Sync`, or this is its thread. Nobody opens it as long as what this returns is used, and who had it open before has let this thread know.
    #[inline(always)]
    pub unsafe fn share(&self) -> &T {
        #[cfg(loom)]
        // SAFETY: as the caller says. Loom sees the moment of this alone.
        return unsafe { self.value.with(|value| &*value) };
        #[cfg(not(loom))]
        // SAFETY: as the caller says.
        unsafe {
            &*self.value.get()
        }
    }
}

/// A [`Guarded`] value, to one thread.
pub(crate) struct Opened<'a, T> {
    #[cfg(loom)]
    value: loom::cell::MutPtr<T>,
    #[cfg(not(loom))]
    value: &'a mut T,
    #[cfg(loom)]
    guarded: std::marker::PhantomData<&'a mut T>,
}

impl<T> Deref for Opened<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        #[cfg(loom)]
        // SAFETY: as who opened it has said.
        return unsafe { self.value.deref() };
        #[cfg(not(loom))]
        self.value
    }
}

impl<T> DerefMut for Opened<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        #[cfg(loom)]
        // SAFETY: as who opened it has said.
        return unsafe { self.value.deref() };
        #[cfg(not(loom))]
        self.value
    }
}

/// Words of guest memory that loom sees, because a model has said so. All threads of a model are one to the operating system.
#[cfg(loom)]
pub(crate) mod seen {
    use std::{cell::RefCell, collections::HashMap, sync::Arc};

    use loom::sync::atomic::AtomicU16;

    thread_local!(static WORDS: RefCell<HashMap<usize, Arc<AtomicU16>>> = RefCell::default());

    /// Loom sees the words at these host addresses until it is told to forget them.
    #[cfg(test)]
    pub fn see(words: &[*mut u16]) {
        let seen = |word: &*mut u16| (word.addr(), Arc::new(AtomicU16::new(0)));
        WORDS.with_borrow_mut(|all| *all = words.iter().map(seen).collect());
    }

    #[cfg(test)]
    pub fn forget() {
        // They go with nothing borrowed.
        drop(WORDS.take());
    }

    pub fn word(at: *mut u16) -> Option<Arc<AtomicU16>> {
        WORDS.with_borrow(|all| all.get(&at.addr()).cloned())
    }
}
