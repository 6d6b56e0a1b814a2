//! Who waits for which queue.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::seat::Seat;
use crate::{sync::lock, virtio::QueueIndex};

#[derive(Debug, Default)]
pub struct Seats {
    /// Who has gone takes the bell along.
    of: Mutex<BTreeMap<QueueIndex, Weak<Seat>>>,
    /// There has been one.
    any: AtomicBool,
}

impl Seats {
    /// The ring of `queue` is waited in at `seat`.
    ///
    /// # Errors
    /// It is at another.
    pub fn reserve(&self, queue: QueueIndex, seat: &Arc<Seat>) -> io::Result<()> {
        let mut of = lock(&self.of);
        if of.get(&queue).and_then(there).is_some() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "a queue that somebody waits for is not waited for by another: one waiter a queue is accepted, and another once that one is dropped",
            ));
        }
        of.insert(queue, Arc::downgrade(seat));
        self.any.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Where `queue` is waited for.
    #[inline]
    pub fn of(&self, queue: QueueIndex) -> Option<Arc<Seat>> {
        match self.any.load(Ordering::SeqCst) {
            true => self.look_up(queue),
            false => None,
        }
    }

    #[cold]
    fn look_up(&self, queue: QueueIndex) -> Option<Arc<Seat>> {
        let of = lock(&self.of);
        of.get(&queue).and_then(there)
    }
}

/// If it has not gone.
fn there(seat: &Weak<Seat>) -> Option<Arc<Seat>> {
    seat.upgrade().filter(|seat| !seat.is_gone())
}
