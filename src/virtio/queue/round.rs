//! A round: the bounded time in which a handler has a queue to itself, and the chains that it finds there.

use std::{
    fmt,
    sync::{Arc, MutexGuard, atomic::Ordering},
};

use super::{
    ChainError, QueueError, QueueIndex, Reader, Writer,
    area::View,
    chain::Body,
    split::Available,
    used::{Shared, Used},
};
use crate::{
    memory::{Pin, Segment},
    sync::lock,
    virtio::features,
};

/// The request that brings a round to so many bytes is its last: who waits for the device, to reset it, say, waits no
/// longer than for these.
const ROUND_BYTES: u64 = 16 << 20;

/// What is left after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Rest {
    /// Nothing is available, and the driver will kick when there is.
    Drained,
    /// More may be available; no kick will announce it.
    More,
    /// The handler has left chains where they are: it waits for something else, and whoever has that for it looks again.
    Left,
}

/// How a round has gone so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looked {
    /// Nothing was looked for, or what was found is left.
    Left,
    /// The last chain that was found was taken.
    Taken,
    /// Nothing was there.
    Empty,
}

/// One bounded look at a queue, for a handler.
///
/// [`next`](Self::next) finds the next request; the handler then [completes](Chain::complete) it, [takes](Chain::take) it to
/// complete it later, or leaves it by dropping it. When `next` finds nothing, or the handler has left a request because the
/// outside world is not ready for it, it returns. It need not count, nor suppress kicks, nor ask whether more has come: a round
/// ends at a queue's length of requests, or with the one that brings it to 16 MiB, and whoever runs the queue looks again.
///
/// A chain that breaks the rules is not seen here: it is given back with a used length of 0 and counted.
pub struct Round<'q> {
    shared: &'q Arc<Shared>,
    available: &'q mut Available,
    view: &'q View,
    body: &'q mut Box<Body>,
    order: &'q mut u64,
    /// Held as long as no chain is out.
    used: Option<MutexGuard<'q, Used>>,
    budget: u16,
    bytes: u64,
    looked: Looked,
    /// Chains were put that the driver has not been shown.
    unseen: bool,
    /// No chain is to be taken any more.
    closed: bool,
}

impl<'q> Round<'q> {
    pub(super) fn new(
        shared: &'q Arc<Shared>,
        available: &'q mut Available,
        view: &'q View,
        body: &'q mut Box<Body>,
        order: &'q mut u64,
        closed: bool,
    ) -> Self {
        shared.signal_again();
        let used = (shared.word.chains() == 0).then(|| lock(&shared.used));
        Self {
            budget: shared.layout.size,
            shared,
            available,
            view,
            body,
            order,
            used,
            bytes: 0,
            looked: Looked::Left,
            unseen: false,
            closed,
        }
    }

    /// The queue's index in its device.
    pub fn index(&self) -> QueueIndex {
        self.shared.index
    }

    /// The features that the driver has accepted.
    pub fn features(&self) -> u64 {
        self.shared.features
    }

    /// Finds the next request, if there is one and the round has not come to its end. Called again, it finds the same one, unless
    /// that was completed or taken.
    ///
    /// # Errors
    /// The driver broke the ring: return the error, the device needs a reset.
    #[inline]
    #[allow(
        clippy::should_implement_trait,
        reason = "a chain is lent until the next one is looked for"
    )]
    pub fn next(&mut self) -> Result<Option<Chain<'_, 'q>>, QueueError> {
        self.looked = Looked::Left;
        let mut returned = false;
        loop {
            if self.budget == 0 || self.closed || self.bytes >= ROUND_BYTES {
                return Ok(None);
            }
            let head = match self.returned() {
                Some(head) => {
                    returned = true;
                    head
                }
                None => {
                    let Some(head) = self.available.look(self.view)? else {
                        self.looked = Looked::Empty;
                        return Ok(None);
                    };
                    if self.shared.places[usize::from(head)].load(Ordering::SeqCst) != 0 {
                        return Err(QueueError::InFlight(head));
                    }
                    head
                }
            };
            let indirect = self.shared.features & features::INDIRECT_DESC != 0;
            if self.body.walk(self.view, head, indirect).is_ok() {
                return Ok(Some(Chain { round: self, returned }));
            }
            self.shared.count_malformed();
            Chain { round: self, returned }.give_back(0, true)?;
            returned = false;
        }
    }

    /// The next chain that was given back untouched.
    #[inline]
    fn returned(&mut self) -> Option<u16> {
        if !self.shared.returned.load(Ordering::SeqCst) {
            return None;
        }
        self.with_used(|_, used| used.resubmit.first().copied())
    }

    #[inline]
    fn with_used<R>(&mut self, f: impl FnOnce(&Shared, &mut Used) -> R) -> R {
        match &mut self.used {
            Some(used) => f(self.shared, used),
            None => f(self.shared, &mut lock(&self.shared.used)),
        }
    }

    /// Shows the driver all chains that were [put](Chain::put), and tells it of them if it wants to hear. The end of the round
    /// does so too.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    #[inline]
    pub fn publish(&mut self) -> Result<(), QueueError> {
        self.unseen = false;
        if self.with_used(|shared, used| shared.publish(used))? {
            self.shared.signal();
        }
        Ok(())
    }

    /// Answers each request with `answer`, which returns how many bytes it has written into the chain: all that a handler needs
    /// which answers at once.
    ///
    /// A request that it refuses with an error is given back with a used length of 0, and counted.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn each(
        &mut self,
        mut answer: impl FnMut(&Chain<'_, 'q>) -> Result<u32, ChainError>,
    ) -> Result<(), QueueError> {
        while let Some(chain) = self.next()? {
            match answer(&chain) {
                Ok(written) => chain.complete(written)?,
                Err(_) => chain.refuse()?,
            }
        }
        Ok(())
    }

    /// Ends the round, and arranges for the next kick if nothing is left.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    pub fn end(mut self) -> Result<Rest, QueueError> {
        self.publish()?;
        if self.closed {
            return Ok(Rest::Left);
        }
        if self.budget == 0 || self.bytes >= ROUND_BYTES {
            return Ok(Rest::More);
        }
        Ok(match self.looked {
            Looked::Taken => Rest::More,
            // A kick is all that has the queue looked at again.
            Looked::Left if self.available.kicks_stay && self.available.expect_kicks_for_more(self.view)? => Rest::More,
            Looked::Left => Rest::Left,
            Looked::Empty if self.available.expect_kicks(self.view)? => Rest::More,
            Looked::Empty => Rest::Drained,
        })
    }
}

impl Drop for Round<'_> {
    /// A round that was left by an error or a panic shows what was put all the same; the next call signals it.
    fn drop(&mut self) {
        if self.unseen {
            let wanted = self.with_used(|shared, used| shared.publish(used));
            if wanted == Ok(true) {
                self.shared.owe(true);
            }
        }
    }
}

impl fmt::Debug for Round<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Round")
            .field("shared", self.shared)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// A request of the driver that a round has found: device-readable segments, then device-writable ones, all of them in guest memory.
///
/// It is lent: dropped, it stays where it is, and the next look finds it again. [`take`](Self::take) makes it one that is
/// completed later, elsewhere.
pub struct Chain<'r, 'q> {
    round: &'r mut Round<'q>,
    /// It was in flight when a state was saved, or was given back untouched.
    returned: bool,
}

impl<'q> Chain<'_, 'q> {
    /// Index of the first descriptor, by which the driver knows the chain.
    pub fn head(&self) -> u16 {
        self.round.body.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        self.round.body.readable()
    }

    /// Where the device may write.
    pub fn writable(&self) -> &[Segment] {
        self.round.body.writable()
    }

    /// Bytes in all readable segments.
    #[inline]
    pub fn readable_len(&self) -> u32 {
        self.round.body.readable_len
    }

    /// Bytes in all writable segments.
    #[inline]
    pub fn writable_len(&self) -> u32 {
        self.round.body.writable_len
    }

    /// The readable bytes, from the first on.
    #[inline]
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(&self.round.view.pin, self.readable(), self.readable_len())
    }

    /// The writable bytes, from the first on.
    #[inline]
    pub fn writer(&self) -> Writer<'_> {
        Writer::new(&self.round.view.pin, self.writable(), self.writable_len())
    }

    /// The map of guest memory that it was found in.
    pub fn pin(&self) -> &Pin {
        &self.round.view.pin
    }

    /// Gives the chain back: puts it into the used ring with the number of bytes that were written into it, decides whether the
    /// driver wants to hear of it, and signals it.
    ///
    /// A signal that the line refuses is owed: the next call of any kind carries it.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    #[inline]
    pub fn complete(self, written: u32) -> Result<(), QueueError> {
        let written = written.min(self.writable_len());
        self.give_back(written, true)
    }

    /// [`complete`](Self::complete) for one of several chains: the driver sees it with the next that is completed, or when they
    /// are [published](Round::publish).
    ///
    /// # Errors
    /// As `complete`.
    #[inline]
    pub fn put(self, written: u32) -> Result<(), QueueError> {
        let written = written.min(self.writable_len());
        self.give_back(written, false)
    }

    /// Gives back a request that is not what the device type prescribes, and has no room for a status that says so.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn refuse(self) -> Result<(), QueueError> {
        self.round.shared.count_malformed();
        self.give_back(0, true)
    }

    #[inline]
    fn give_back(self, written: u32, publish: bool) -> Result<(), QueueError> {
        let Self { round, returned } = self;
        let head = round.body.head;
        round.bytes += u64::from(round.body.readable_len) + u64::from(round.body.writable_len);
        let signal = round.with_used(|shared, used| {
            if returned {
                forget_returned(shared, used, head);
                shared.places[usize::from(head)].store(0, Ordering::SeqCst);
            }
            shared.put(used, head, written)?;
            if publish { shared.publish(used) } else { Ok(false) }
        })?;
        round.consumed(returned);
        round.unseen = !publish;
        if signal {
            round.shared.signal();
        }
        Ok(())
    }

    /// Takes the chain away from the round, to be completed by any thread at any time. Its map of guest memory is kept alive.
    pub fn take(self) -> OwnedChain {
        let Self { round, returned } = self;
        let shared = Arc::clone(round.shared);
        let head = round.body.head;
        shared.word.take();
        let fresh = round.with_used(|shared, used| {
            if returned {
                forget_returned(shared, used, head);
            }
            used.pool.pop()
        });
        if !returned {
            *round.order += 1;
            shared.places[usize::from(head)].store(*round.order, Ordering::SeqCst);
        }
        let body = std::mem::replace(round.body, fresh.unwrap_or_default());
        round.consumed(returned);
        // Who completes it needs the lock.
        round.used = None;
        OwnedChain {
            pin: round.view.pin.clone(),
            body: Some(body),
            shared,
        }
    }
}

fn forget_returned(shared: &Shared, used: &mut Used, head: u16) {
    used.resubmit.retain(|&other| other != head);
    shared.returned.store(!used.resubmit.is_empty(), Ordering::SeqCst);
}

impl Round<'_> {
    #[inline]
    fn consumed(&mut self, returned: bool) {
        if !returned {
            self.available.advance();
        }
        self.budget -= 1;
        self.looked = Looked::Taken;
    }
}

impl fmt::Debug for Chain<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("head", &self.head())
            .field("readable", &self.readable())
            .field("writable", &self.writable())
            .finish()
    }
}

/// A request that was taken from its round, to be completed by any thread, at any time, in any order.
///
/// Dropped, it is [given back untouched](Self::give_back).
#[must_use = "a chain that is dropped is served again"]
pub struct OwnedChain {
    /// There until it is given back.
    body: Option<Box<Body>>,
    shared: Arc<Shared>,
    /// Keeps the segments mapped. Last: it goes last.
    pin: Pin,
}

impl OwnedChain {
    fn body(&self) -> &Body {
        self.body
            .as_deref()
            .unwrap_or_else(|| unreachable!("it was given back"))
    }

    /// Index of the first descriptor, by which the driver knows the chain.
    pub fn head(&self) -> u16 {
        self.body().head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        self.body().readable()
    }

    /// Where the device may write.
    pub fn writable(&self) -> &[Segment] {
        self.body().writable()
    }

    /// Bytes in all readable segments.
    pub fn readable_len(&self) -> u32 {
        self.body().readable_len
    }

    /// Bytes in all writable segments.
    pub fn writable_len(&self) -> u32 {
        self.body().writable_len
    }

    /// The readable bytes, from the first on.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(&self.pin, self.readable(), self.readable_len())
    }

    /// The writable bytes, from the first on.
    pub fn writer(&self) -> Writer<'_> {
        Writer::new(&self.pin, self.writable(), self.writable_len())
    }

    /// The map of guest memory that it was found in.
    pub fn pin(&self) -> &Pin {
        &self.pin
    }

    /// Gives the chain back, as [`Chain::complete`] does. A ring that is no longer in guest memory is told of by the next round.
    pub fn complete(mut self, written: u32) {
        if let Some(body) = self.body.take() {
            self.shared.give_back(body, Some(written));
        }
    }

    /// Gives the chain back as if it had never been taken: for a request that has had no effect yet when its queue is stopped. It
    /// is kept, saved, and served again first, in the order in which it was taken.
    pub fn give_back(self) {}
}

impl Drop for OwnedChain {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.shared.give_back(body, None);
        }
    }
}

impl fmt::Debug for OwnedChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedChain")
            .field("head", &self.head())
            .field("readable", &self.readable())
            .field("writable", &self.writable())
            .finish()
    }
}
