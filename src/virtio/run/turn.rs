//! A thread's turn at a lane.

use std::{cell::Cell, mem};

use crate::virtio::queue::{End, Word};

#[cfg(not(loom))]
thread_local! {
    /// How many lanes this thread is serving, one inside the other.
    static SERVING: Cell<u32> = const { Cell::new(0) };
}
#[cfg(loom)]
loom::thread_local! {
    static SERVING: Cell<u32> = Cell::new(0);
}

/// Whether this thread is inside a round, of whatever device: it does not wait for another then, which could wait for this one.
pub(crate) fn is_serving() -> bool {
    SERVING.with(Cell::get) != 0
}

/// A thread's turn at a lane. Dropped by a panic, it leaves the lane to the next that comes.
pub(super) struct Turn<'a>(&'a Word);

impl<'a> Turn<'a> {
    pub fn new(word: &'a Word) -> Self {
        SERVING.with(|serving| serving.set(serving.get() + 1));
        Self(word)
    }

    /// Does `next`, and then what follows from it, until nothing does. `round` says whether more is left; `stay` is that of
    /// [`Word::end`].
    #[inline]
    pub fn take(self, mut next: End, stay: bool, mut round: impl FnMut() -> bool, tell: impl Fn()) {
        loop {
            next = match next {
                End::Again => self.0.end(round(), stay),
                End::Tell => {
                    tell();
                    self.0.told();
                    // What came since, if the stop has ended already, relied on this thread.
                    self.0.end(false, stay)
                }
                End::Leave => break,
            };
        }
        SERVING.with(|serving| serving.set(serving.get() - 1));
        mem::forget(self);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        SERVING.with(|serving| serving.set(serving.get() - 1));
        self.0.abandon();
    }
}
