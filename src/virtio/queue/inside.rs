//! Whether a thread is inside something that another thread may wait for: a round, or a signal.

use std::cell::Cell;

#[cfg(not(loom))]
thread_local! {
    /// How many of them this thread is inside, one inside the other, of whatever devices.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}
#[cfg(loom)]
loom::thread_local! {
    static INSIDE: Cell<u32> = Cell::new(0);
}

/// Whether this thread is: it does not wait for another one then, which could wait for this one.
#[inline]
pub(crate) fn is_inside() -> bool {
    INSIDE.with(Cell::get) != 0
}

/// This thread is, until this is dropped.
pub(crate) struct Inside(());

impl Inside {
    #[inline]
    pub fn new() -> Self {
        INSIDE.with(|inside| inside.set(inside.get() + 1));
        Self(())
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.set(inside.get() - 1));
    }
}
