//! A round: the bounded time in which a handler has a queue to itself, and the chains that it finds there.

use std::{
    fmt, mem,
    sync::{Arc, MutexGuard, atomic::Ordering},
};

use super::{
    ChainError, Gone, QueueError, QueueIndex, Reader, Writer,
    area::View,
    chain::{Body, MAX_SEGMENTS, Pool},
    split::{Available, Look},
    used::{Shared, Used},
};
use crate::{
    memory::{Pin, Segment},
    sync::lock,
    virtio::{Wait, features},
};

/// The request that brings a round to so many bytes is its last: who waits for the device, to reset it, say, waits no
/// longer than for these.
const ROUND_BYTES: u64 = 16 << 20;
/// What a descriptor counts for in these, where a chain is not short: a driver can name the same ones in each of its chains.
const DESCRIPTOR_BYTES: u64 = 256;

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

/// What was found when the next chain was looked for.
enum Found {
    /// One that is new.
    Fresh,
    /// One that was in flight when a state was saved, or was given back untouched.
    Returned,
    Nothing,
    /// The ring.
    Broken,
}

/// What became of a head.
enum Walked {
    Found,
    Refused,
    Broken,
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

/// What a queue keeps from one round to the next besides its place in the ring.
#[derive(Default)]
pub(super) struct Hands {
    /// The chain that was looked at last.
    body: Box<Body>,
    /// How many chains were taken away from their rounds.
    pub order: u64,
    /// Room for chains that are taken.
    spare: Pool,
    /// What the handler waits for since the last round.
    pub waits: Vec<Wait>,
}

/// One bounded look at a queue, for a handler.
///
/// [`next`](Self::next) finds the next request; the handler then [completes](Chain::complete) it, [takes](Chain::take) it to
/// complete it later, or leaves it by dropping it. When `next` finds nothing, or the handler has left a request because the
/// outside world is not ready for it, it returns. It need not count, nor suppress kicks, nor ask whether more has come: a round
/// ends at a queue's length of requests, or with the one that brings it to 16 MiB or to some ten thousand descriptors, and whoever
/// runs the queue looks again.
///
/// A chain that breaks the rules is not seen here: it is given back with a used length of 0 and counted.
pub struct Round<'q> {
    shared: &'q Shared,
    /// The same, for chains that are taken.
    counted: &'q Arc<Shared>,
    available: &'q mut Available,
    view: &'q View,
    hands: &'q mut Hands,
    /// Held from the first chain that is given back on, as long as none is out.
    used: Option<MutexGuard<'q, Used>>,
    /// No chain is out.
    alone: bool,
    /// Entries of the used ring from this one on are not marked as written yet, while the lock is held.
    unmarked: u16,
    budget: u16,
    bytes: u64,
    looked: Looked,
    /// The driver has been shown all that was put.
    ended: bool,
    /// No chain is to be taken any more.
    closed: bool,
    error: Option<QueueError>,
}

impl<'q> Round<'q> {
    pub(super) fn new(
        shared: &'q Arc<Shared>,
        available: &'q mut Available,
        view: &'q View,
        hands: &'q mut Hands,
        closed: bool,
    ) -> Self {
        hands.waits.clear();
        shared.signal_again();
        Self {
            budget: if closed { 0 } else { shared.layout.size },
            shared,
            counted: shared,
            available,
            view,
            hands,
            unmarked: 0,
            used: None,
            alone: shared.word.chains() == 0,
            bytes: 0,
            looked: Looked::Left,
            ended: false,
            closed,
            error: None,
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
        if self.find_near() {
            return Ok(Some(Chain::new(self, false)));
        }
        match self.find() {
            Found::Fresh => Ok(Some(Chain::new(self, false))),
            Found::Returned => Ok(Some(Chain::new(self, true))),
            Found::Nothing => Ok(None),
            Found::Broken => Err(self.broken()),
        }
    }

    /// The short way of [`find`](Self::find), for what nearly all chains are. Whether it has found one; if not, nothing is known.
    #[inline]
    fn find_near(&mut self) -> bool {
        let Some(view) = self.view.flat() else { return false };
        if self.budget == 0 || self.shared.returned.load(Ordering::SeqCst) {
            return false;
        }
        let Some(head) = self.available.look_near(view) else {
            return false;
        };
        // While no chain is out, none is in flight but for those that were returned, which there are not.
        if !self.alone && self.shared.is_in_flight(head) {
            return false;
        }
        self.looked = Looked::Left;
        let indirect = self.shared.features & features::INDIRECT_DESC != 0;
        self.hands.body.walk_near(view, head, indirect)
    }

    /// Looks for the next chain and walks it into the body.
    #[cold]
    fn find(&mut self) -> Found {
        self.looked = Looked::Left;
        while self.budget != 0 {
            if self.shared.returned.load(Ordering::SeqCst)
                && let Some(head) = self.with_used(|_, used| used.resubmit.first().copied())
            {
                match self.walk(head, true) {
                    Walked::Refused => continue,
                    Walked::Found => return Found::Returned,
                    Walked::Broken => return Found::Broken,
                }
            }
            let head = match self.available.look(self.view) {
                Look::Head(head) => head,
                Look::Nothing => {
                    self.looked = Looked::Empty;
                    return Found::Nothing;
                }
                Look::Broken(found) => {
                    self.error = Some(self.available.broken(found));
                    return Found::Broken;
                }
                Look::Gone => return Found::Broken,
            };
            // While no chain is out, none is in flight but for those that were returned, which there are not.
            if !self.alone && self.shared.is_in_flight(head) {
                self.error = Some(QueueError::InFlight(head));
                return Found::Broken;
            }
            match self.walk(head, false) {
                Walked::Refused => continue,
                Walked::Found => return Found::Fresh,
                Walked::Broken => return Found::Broken,
            }
        }
        Found::Nothing
    }

    /// Walks the chain at `head`. One that breaks the rules is given back at once.
    fn walk(&mut self, head: u16, returned: bool) -> Walked {
        let indirect = self.shared.features & features::INDIRECT_DESC != 0;
        let walked = self.hands.body.walk(self.view, head, indirect);
        self.bytes += u64::from(self.hands.body.read) * DESCRIPTOR_BYTES;
        let spilled = self.shared.spilled.load(Ordering::SeqCst);
        if walked.is_ok() && spilled + self.hands.body.spilled() <= MAX_SEGMENTS {
            return Walked::Found;
        }
        self.shared.count_malformed();
        match self.give_back(0, returned, true) {
            Ok(()) => Walked::Refused,
            Err(Gone) => Walked::Broken,
        }
    }

    /// What [`find`](Self::find) has found to be broken: without anything better, that the ring is gone.
    #[cold]
    fn broken(&mut self) -> QueueError {
        self.error.take().unwrap_or_else(|| self.shared.gone())
    }

    fn with_used<R>(&mut self, f: impl FnOnce(&Shared, &mut Used) -> R) -> R {
        match &mut self.used {
            Some(used) => f(self.shared, used),
            None => f(self.shared, &mut lock(&self.shared.used)),
        }
    }

    /// Puts the chain in the body into the used ring.
    #[inline]
    fn give_back(&mut self, written: u32, returned: bool, publish: bool) -> Result<(), Gone> {
        match (&mut self.used, self.view.flat()) {
            (Some(used), Some(view)) if !returned && !self.shared.owes() => {
                let signal = used
                    .ring
                    .use_near(view, self.hands.body.head, written, publish, self.shared);
                self.consumed(false);
                if signal {
                    self.shared.signal();
                }
                Ok(())
            }
            _ => self.give_back_far(written, returned, publish),
        }
    }

    #[cold]
    fn give_back_far(&mut self, written: u32, returned: bool, publish: bool) -> Result<(), Gone> {
        if self.alone && self.used.is_none() {
            let used = lock(&self.shared.used);
            self.unmarked = used.ring.next;
            self.used = Some(used);
            return self.give_back(written, returned, publish);
        }
        let signal = self.give_back_shared(written, returned, publish)?;
        self.consumed(returned);
        if signal {
            self.shared.signal();
        }
        Ok(())
    }

    /// As [`give_back`](Self::give_back), while other threads do so too.
    fn give_back_shared(&mut self, written: u32, returned: bool, publish: bool) -> Result<bool, Gone> {
        let (head, view) = (self.hands.body.head, self.view);
        self.with_used(|shared, used| {
            if returned {
                shared.forget_returned(used, head);
                shared.forget(head);
            }
            used.ring.put(view, head, written)?;
            Ok(publish && shared.publish(&mut used.ring, view)?)
        })
    }

    /// Marks what the short way has written into the used ring.
    #[inline]
    fn mark_used(&mut self) {
        if let Some(used) = &self.used
            && self.view.pin.tracks()
            && self.unmarked != used.ring.next
        {
            self.view.mark_used(self.unmarked, used.ring.next);
            self.unmarked = used.ring.next;
        }
    }

    #[inline]
    fn consumed(&mut self, returned: bool) {
        if !returned {
            self.available.advance();
        }
        self.budget -= 1;
        self.bytes += u64::from(self.hands.body.readable_len) + u64::from(self.hands.body.writable_len);
        if self.bytes >= ROUND_BYTES {
            self.budget = 0;
        }
        self.looked = Looked::Taken;
    }

    /// Shows the driver all chains that were [put](Chain::put), and tells it of them if it wants to hear. The end of the round
    /// does so too.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    #[inline]
    pub fn publish(&mut self) -> Result<(), QueueError> {
        if self.alone && self.used.is_none() && !self.shared.owes() {
            // Nothing was put.
            return Ok(());
        }
        let view = self.view;
        match self.with_used(|shared, used| shared.publish(&mut used.ring, view)) {
            Ok(true) => self.shared.signal(),
            Ok(false) => {}
            Err(Gone) => return Err(self.shared.gone()),
        }
        Ok(())
    }

    /// [`Chain::put`] for a chain that was taken from this queue, in this round or before: for what is spread over several chains, of
    /// which the driver must see all or none. Show them by [`publish`](Self::publish); the end of the round does so too.
    ///
    /// # Errors
    /// As [`Chain::complete`].
    pub fn put(&mut self, mut chain: OwnedChain, written: u32) -> Result<(), QueueError> {
        if !Arc::ptr_eq(&chain.shared, self.counted) {
            // Of another queue, which shows it at once.
            chain.complete(written);
            return Ok(());
        }
        let Some((body, pin)) = chain.held.take() else {
            return Ok(());
        };
        drop(pin);
        let view = self.view;
        match self.with_used(|shared, used| shared.put_taken(used, view, body, written)) {
            Ok(()) => Ok(()),
            Err(Gone) => Err(self.shared.gone()),
        }
    }

    /// The handler leaves something undone, and is to look again once this is there: whoever runs the device sees to that. In a
    /// round without chains it counts as well, for what ends the requests under way.
    pub fn wait(&mut self, wait: Wait) {
        self.hands.waits.push(wait);
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
        self.ended = true;
        if self.closed {
            return Ok(Rest::Left);
        }
        match self.looked {
            _ if self.budget == 0 => Ok(Rest::More),
            Looked::Taken => Ok(Rest::More),
            Looked::Left if !self.available.kicks_stay => Ok(Rest::Left),
            // A kick is all that has the queue looked at again.
            Looked::Left => self.rest(Rest::Left, Available::expect_kicks_for_more),
            Looked::Empty => self.rest(Rest::Drained, Available::expect_kicks),
        }
    }

    /// Asks for kicks: there is `rest`, or there is more.
    #[inline]
    fn rest(
        &mut self,
        rest: Rest,
        expect: impl FnOnce(&mut Available, &View) -> Result<bool, Gone>,
    ) -> Result<Rest, QueueError> {
        match expect(self.available, self.view) {
            Ok(true) => Ok(Rest::More),
            Ok(false) => Ok(rest),
            Err(Gone) => Err(self.shared.gone()),
        }
    }
}

impl Drop for Round<'_> {
    /// A round that was left by an error or a panic shows what was put all the same; the next call signals it.
    fn drop(&mut self) {
        if !self.ended {
            let view = self.view;
            if self.with_used(|shared, used| shared.publish(&mut used.ring, view)) == Ok(true) {
                self.shared.owe(true);
            }
        }
        self.mark_used();
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
    returned: bool,
}

impl<'r, 'q> Chain<'r, 'q> {
    #[inline]
    fn new(round: &'r mut Round<'q>, returned: bool) -> Self {
        Self { round, returned }
    }

    /// Index of the first descriptor, by which the driver knows the chain.
    pub fn head(&self) -> u16 {
        self.round.hands.body.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        self.round.hands.body.readable()
    }

    /// Where the device may write.
    pub fn writable(&self) -> &[Segment] {
        self.round.hands.body.writable()
    }

    /// Bytes in all readable segments.
    #[inline]
    pub fn readable_len(&self) -> u32 {
        self.round.hands.body.readable_len
    }

    /// Bytes in all writable segments.
    #[inline]
    pub fn writable_len(&self) -> u32 {
        self.round.hands.body.writable_len
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
        match round.give_back(written, returned, publish) {
            Ok(()) => Ok(()),
            Err(Gone) => Err(round.shared.gone()),
        }
    }

    /// Takes the chain away from the round, to be completed by any thread at any time. Its map of guest memory is kept alive.
    pub fn take(self) -> OwnedChain {
        let Self { round, returned } = self;
        let shared = Arc::clone(round.counted);
        let head = round.hands.body.head;
        shared.word.take();
        if returned {
            round.with_used(|shared, used| shared.forget_returned(used, head));
        }
        if round.hands.spare.is_empty() {
            let Round {
                hands, shared, used, ..
            } = &mut *round;
            match used {
                Some(used) => mem::swap(&mut used.pool, &mut hands.spare),
                None => mem::swap(&mut lock(&shared.used).pool, &mut hands.spare),
            }
        }
        let fresh = round.hands.spare.pop().unwrap_or_default();
        if !returned {
            round.hands.order += 1;
            // Seen by who completes it, and by the next round.
            shared.places[usize::from(head)].store(round.hands.order, Ordering::Release);
        }
        round.consumed(returned);
        let body = mem::replace(&mut round.hands.body, fresh);
        if body.spilled() != 0 {
            shared.spilled.fetch_add(body.spilled(), Ordering::SeqCst);
        }
        // Who completes it needs the lock.
        round.mark_used();
        (round.used, round.alone) = (None, false);
        OwnedChain {
            held: Some((body, round.view.pin.clone())),
            shared,
        }
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
    /// There until it is given back, with what keeps its segments mapped.
    held: Option<(Box<Body>, Pin)>,
    shared: Arc<Shared>,
}

impl OwnedChain {
    fn held(&self) -> &(Box<Body>, Pin) {
        self.held.as_ref().unwrap_or_else(|| unreachable!("it was given back"))
    }

    fn body(&self) -> &Body {
        &self.held().0
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
        Reader::new(self.pin(), self.readable(), self.readable_len())
    }

    /// The writable bytes, from the first on.
    pub fn writer(&self) -> Writer<'_> {
        Writer::new(self.pin(), self.writable(), self.writable_len())
    }

    /// The map of guest memory that it was found in.
    pub fn pin(&self) -> &Pin {
        &self.held().1
    }

    /// Gives the chain back, as [`Chain::complete`] does. A ring that is no longer in guest memory is told of by the next round.
    pub fn complete(mut self, written: u32) {
        self.end(Some(written));
    }

    /// Gives back a request that is not what the device type prescribes, as [`Chain::refuse`] does.
    pub fn refuse(mut self) {
        self.shared.count_malformed();
        self.end(Some(0));
    }

    /// Gives the chain back as if it had never been taken: for a request that has had no effect yet when its queue is stopped. It
    /// is kept, saved, and served again first, in the order in which it was taken, when the queue is next looked at.
    pub fn give_back(self) {}

    fn end(&mut self, written: Option<u32>) {
        if let Some((body, pin)) = self.held.take() {
            // Before the queue can be still: nothing of a map that was replaced is held then.
            drop(pin);
            self.shared.give_back(body, written);
        }
    }
}

impl Drop for OwnedChain {
    fn drop(&mut self) {
        self.end(None);
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
