//! A queue that is handed away: somebody else reads and writes its ring, until it comes back.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use super::{
    QueueError, QueueIndex, QueueLayout, Round, shared::Shared, spot::Spot, used::UsedRing, whereabouts::Where,
};
use crate::memory::Memory;

/// A queue is not handed away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandAwayError {
    /// It is being stopped.
    #[error("the queue is being stopped: one that runs is handed away")]
    Stopped,
    /// Some of its requests are in flight, which who is handed the ring cannot know of.
    #[error("{0} requests are in flight: a queue is handed away once all of them are used")]
    InFlight(usize),
    /// It has been already.
    #[error("the queue is away already: it is handed away once it has come back")]
    Away,
    /// The ring is no longer in guest memory.
    #[error(transparent)]
    Ring(#[from] QueueError),
}

/// A virtqueue that is served elsewhere: by code that has its own rings, in this process, another one or the kernel.
///
/// It was [handed away](Round::hand_away) by its handler, and says what is needed to serve it: where its areas are, in which memory, what
/// was negotiated, and from where on. Who has it reads and writes the ring, suppresses kicks, decides about interrupts, and
/// [signals](AwayNotifier::signal); until it is given back, rounds of this queue look at nothing and write nothing. Kicks, and whatever
/// else has a queue looked at, come to its handler as before ([`serve`](crate::virtio::QueueHandler::serve)), which passes them on.
///
/// To a stop it is like a request under way: the handler is [told](crate::virtio::QueueHandler::pause), and has what is in flight end and
/// the queue come back; while it is away the device is not still. It is handed away again when it next is served.
///
/// [Dropped](Self::give_back), it comes back at the place that was [told](Self::came_to) last.
#[must_use = "a queue that is dropped is back"]
pub struct AwayQueue {
    shared: Arc<Shared>,
    place: u16,
}

impl AwayQueue {
    /// The queue's index in its device.
    pub fn index(&self) -> QueueIndex {
        self.shared.index
    }

    /// Where its areas are, and how long it is.
    pub fn layout(&self) -> QueueLayout {
        self.shared.layout
    }

    /// The features that the driver has accepted.
    pub fn features(&self) -> u64 {
        self.shared.features
    }

    /// The guest memory that its addresses are of. When it [changes](crate::virtio::VirtioTransport::memory_changed), the queue is looked
    /// at.
    pub fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// Where the ring goes on: the index of the next entry of both rings. In a packed ring the offset of the next descriptor, and the wrap
    /// counter there in bit 15.
    pub fn place(&self) -> u16 {
        self.place
    }

    /// The used ring has come so far, and nothing before that is in flight: what is counted, and where the queue goes on should this be
    /// dropped.
    pub fn came_to(&mut self, place: u16) {
        if !self.shared.is_packed() {
            let used = place.wrapping_sub(self.place);
            let _used = self.shared.used.lock();
            self.shared.counters.used(used.into(), true);
        }
        self.place = place;
    }

    /// What interrupts the driver for it.
    pub fn notifier(&self) -> AwayNotifier {
        AwayNotifier {
            shared: Arc::clone(&self.shared),
        }
    }

    /// The queue is back: all that was taken off the ring was used, up to `place`, and nobody writes to it any more. Of a packed ring, a
    /// place beyond its end is taken for its beginning.
    pub fn give_back(mut self, place: u16) {
        self.came_to(place);
    }
}

impl Drop for AwayQueue {
    fn drop(&mut self) {
        let shared = &*self.shared;
        let mut place = self.place;
        if shared.is_packed() && Spot::new(place).slot >= shared.layout.size {
            place = Spot::FIRST.raw();
        }
        {
            let mut used = shared.used.lock();
            used.ring = UsedRing::new(&shared.layout, shared.features, place);
            *shared.away.lock() = Where::Back(place);
        }
        // Last: it may be still now.
        shared.word.give_back();
    }
}

impl fmt::Debug for AwayQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwayQueue")
            .field("index", &self.index())
            .field("layout", &self.layout())
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Interrupts the driver for a queue that is [away](AwayQueue), from any thread.
#[derive(Clone)]
pub struct AwayNotifier {
    shared: Arc<Shared>,
}

impl AwayNotifier {
    /// Buffers were used, and the driver wants to hear of it.
    ///
    /// What comes when the queue is back already is owed, and told when the queue is next looked at; a refusal is owed as well. A queue that
    /// is gone for its driver tells nothing.
    pub fn signal(&self) {
        if self.begin() {
            let _done = Done(&self.shared);
            self.shared.signal(false);
        }
    }

    /// Whether it is to be told now. It is under way then, and the queue not still.
    fn begin(&self) -> bool {
        let shared = &*self.shared;
        // Until it is counted, or the queue could come back between, and be still.
        let place = shared.away.lock();
        if shared.closed.load(Ordering::SeqCst) {
            return false;
        }
        if *place != Where::Away {
            shared.owe(true);
            return false;
        }
        shared.word.take();
        true
    }
}

impl fmt::Debug for AwayNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwayNotifier")
            .field("index", &self.shared.index)
            .finish_non_exhaustive()
    }
}

/// A signal is no longer under way when this is dropped, by a line that panics too.
struct Done<'a>(&'a Shared);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.word.give_back();
    }
}

impl Round<'_> {
    /// Hands the queue away, to be served elsewhere from here on: nothing is found in it any more, and nothing written to it, until it
    /// [is back](AwayQueue) and is looked at again. Kicks are asked for.
    ///
    /// # Errors
    /// It is being stopped, is away, or has requests in flight; or its ring is no longer in guest memory.
    pub fn hand_away(&mut self) -> Result<AwayQueue, HandAwayError> {
        if self.hands.away && self.is_still_away() {
            return Err(HandAwayError::Away);
        }
        if self.is_stopping() {
            return Err(HandAwayError::Stopped);
        }
        // Others have a part in it from here on.
        self.share();
        // With it locked: who has said of a chain that it is used has written so as well, and what it still does is to tell the driver.
        let locked = self.shared.used.lock();
        let in_flight = self.shared.in_flight().len();
        drop(locked);
        if in_flight != 0 {
            return Err(HandAwayError::InFlight(in_flight));
        }
        self.publish()?;
        self.ask_for_kicks()?;
        self.close();
        let shared = Arc::clone(self.counted);
        self.hands.away = true;
        *shared.away.lock() = Where::Away;
        shared.word.take();
        let place = self.available_place();
        Ok(AwayQueue { shared, place })
    }
}

impl super::Queue {
    /// Takes back a ring that was handed away and is back. Whether it is still away.
    #[cold]
    pub(super) fn look_whether_away(&mut self) -> bool {
        self.hands.is_still_away(&self.shared, &mut self.available)
    }

    /// How far it has come, here or elsewhere.
    pub(super) fn next_avail(&self) -> u16 {
        match self.shared.away.get() {
            Where::Back(next) => next,
            Where::Here | Where::Away => self.available.next(),
        }
    }
}
