//! A device's control face: to one thread at a time.

use std::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::virtio::run::order::Guard;

/// The control face, to one thread.
pub(super) struct Control<'a, D> {
    device: Guard<'a, D>,
    inside: &'a AtomicUsize,
}

impl<'a, D> Control<'a, D> {
    /// `inside` says which thread it is.
    pub fn new(device: Guard<'a, D>, inside: &'a AtomicUsize) -> Self {
        Self { device, inside }
    }
}

impl<D> Deref for Control<'_, D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.device
    }
}

impl<D> DerefMut for Control<'_, D> {
    fn deref_mut(&mut self) -> &mut D {
        &mut self.device
    }
}

impl<D> Drop for Control<'_, D> {
    fn drop(&mut self) {
        // Before it is unlocked.
        self.inside.store(0, Ordering::Relaxed);
    }
}

/// A number that no other thread has at the same time, and not zero.
pub(super) fn this_thread() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.with(|here| std::ptr::from_ref(here).addr())
}
