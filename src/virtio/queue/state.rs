//! Save and restore of a queue.

use std::sync::{Arc, atomic::Ordering};

use super::{Queue, QueueError, QueueIndex, QueueLayout, Shared, VirtioInterrupt, area::View};
use crate::memory::Memory;

/// A queue's state as plain data. Rings themselves are in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Where the queue is.
    pub layout: QueueLayout,
    /// The features that were negotiated for the device.
    pub features: u64,
    /// Index of the next entry of the available ring.
    pub next_avail: u16,
    /// Index of the next entry of the used ring.
    pub next_used: u16,
    /// Heads taken off the available ring that are not used yet, in the order in which they were taken. They are handed to
    /// the device again after a restore, in that order: to a stream of bytes, it matters.
    pub in_flight: Vec<u16>,
    /// A signal that was not delivered.
    pub signal_owed: bool,
}

/// A saved queue is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueStateError {
    /// The layout would not be accepted from a driver either.
    #[error(transparent)]
    Layout(#[from] QueueError),
    /// Indices and requests in flight contradict each other.
    #[error(
        "{in_flight} distinct heads in flight between used {next_used} and avail {next_avail}: \
         next_avail - next_used of them are needed, each below the queue size"
    )]
    InFlight {
        /// How many distinct valid heads the state has.
        in_flight: usize,
        /// Its index into the used ring.
        next_used: u16,
        /// Its index into the available ring.
        next_avail: u16,
    },
}

impl Queue {
    /// The queue's state, for [`restore`](Self::restore). What is in flight is in it as long as it has not been completed: a queue that
    /// is to be saved is brought to rest before.
    pub fn save(&self) -> QueueState {
        let Shared {
            index: _,
            layout,
            features,
            // Plugged in.
            memory: _,
            interrupt: _,
            word: _,
            used,
            // In the heads in flight.
            places: _,
            spilled: _,
            returned: _,
            closed: _,
            stranded: _,
            // A count of this process.
            ..
        } = &*self.shared;
        QueueState {
            layout: *layout,
            features: *features,
            next_avail: self.available.next,
            next_used: used.lock().ring.next,
            in_flight: self.shared.in_flight(),
            signal_owed: self.shared.owes() || self.shared.holds(),
        }
    }

    /// The queue as it was saved. What was in flight is found by [`Round::next`](super::Round::next) first; counters start at zero.
    ///
    /// # Errors
    /// The state contradicts itself, or the layout would not be accepted from a driver.
    pub fn restore(
        index: QueueIndex,
        max_size: u16,
        state: &QueueState,
        memory: &Memory,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Result<Self, QueueStateError> {
        let &QueueState {
            layout,
            features,
            next_avail,
            next_used,
            ref in_flight,
            signal_owed,
        } = state;
        let view = View::new(memory.pin(), &layout, max_size)?;
        let shared = Shared::new(index, layout, features, (view, next_used), memory.clone(), interrupt);
        for (place, &head) in (1..).zip(in_flight.iter().filter(|&&head| head < layout.size)) {
            shared.places[usize::from(head)].store(place, Ordering::SeqCst);
        }
        let heads = shared.in_flight();
        let distinct = heads.len();
        if distinct != in_flight.len() || distinct != usize::from(next_avail.wrapping_sub(next_used)) {
            return Err(QueueStateError::InFlight {
                in_flight: distinct,
                next_used,
                next_avail,
            });
        }
        shared.returned.store(distinct != 0, Ordering::SeqCst);
        shared.used.lock().resubmit = heads;
        shared.owe(signal_owed);
        let mut queue = Self::with_shared(shared, next_avail);
        queue.hands.order = distinct as u64;
        Ok(queue)
    }
}
