//! A round: the bounded time in which a handler has a queue to itself, and the chains that it finds there.

mod end;
mod find;
mod give_back;
mod hands;

pub(super) use give_back::Aside;
pub(super) use hands::Hands;

use std::{fmt, mem, sync::Arc};

use super::{
    Chain, ChainError, Gone, OwnedChain, QueueCounters, QueueError, QueueIndex,
    available::Available,
    chain::Outline,
    format::{FlatView, Format},
    owned::Held,
    packed_ring::FlatPacked,
    shared::{Shared, Taking},
    split_ring::FlatRing,
    used::Used,
    view::{Short, View},
};
use crate::{
    sync::Opened,
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
    /// The handler has left chains where they are: it waits for something else, and whoever has that for it looks again. Or nothing is
    /// available, and whoever polls the queue looks again.
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
/// ends at a queue's length of requests, or with the one that brings it to 16 MiB or to some ten thousand descriptors, and whoever
/// runs the queue looks again.
///
/// A chain that breaks the rules is not seen here: it is given back with a used length of 0 and counted.
pub struct Round<'q> {
    pub(super) shared: &'q Shared,
    /// The same, for chains that are taken.
    pub(super) counted: &'q Arc<Shared>,
    pub(super) available: &'q mut Available,
    pub(super) view: &'q View,
    /// The same, if it has a short way.
    pub(super) flat: Option<Format<FlatView<'q, FlatRing<'q>>, FlatView<'q, FlatPacked<'q>>>>,
    pub(super) hands: &'q mut Hands,
    /// The chain that was looked at last.
    pub(super) outline: Outline,
    /// There as long as the round is alone, from when it has a short way.
    pub(super) ring: Option<Ring<'q>>,
    /// How many bytes it may still come to before it ends. Wraps when it does.
    pub(super) bytes: u64,
    /// How many of those that it came to are for descriptors that were read.
    reading: u64,
    pub(super) budget: u16,
    indirect: bool,
    short: Short,
    pub(super) company: Company,
    looked: Looked,
    pub(super) taking: Taking,
    /// The driver is not told yet of what it is shown.
    holds: bool,
    /// The used ring may have what the driver was not shown: of a round that is not alone.
    unshown: bool,
    /// The driver has been shown all that was put.
    ended: bool,
    /// No chain is to be taken any more.
    closed: bool,
}

/// The used side, of a round that is alone.
pub(super) struct Ring<'q> {
    pub(super) used: Opened<'q, Used>,
    /// Entries from this one on are not marked as written yet; of a packed ring, descriptors after so many.
    unmarked: u32,
}

impl<'q> Ring<'q> {
    /// # Safety
    /// The queue is the caller's, no chain is out, and none is taken before this is dropped.
    #[inline(always)]
    unsafe fn alone(shared: &'q Shared) -> Self {
        // SAFETY: as the caller says.
        let used = unsafe { shared.used.alone() };
        let unmarked = used.ring.total();
        Self { used, unmarked }
    }
}

/// Who else has to do with the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// No other thread, nor is there anything of it left to do: no chain is out or was given back untouched, and no signal is owed.
    None,
    /// None, but chains of this round are set aside, and a chain may be one of them.
    Aside,
    /// Others: a chain may be in flight, or have been given back untouched.
    Others,
}

impl<'q> Round<'q> {
    #[inline(always)]
    pub(super) fn new(
        shared: &'q Arc<Shared>,
        available: &'q mut Available,
        view: &'q View,
        hands: &'q mut Hands,
        closed: bool,
    ) -> Self {
        hands.waits.clear();
        shared.signal_again();
        let flat = view.flat_near(hands.segments.first());
        // Who is told of what is in flight is one more that has to do with it.
        let alone = shared.word.chains() == 0 && !shared.returns() && !shared.owes() && shared.taking != Taking::Told;
        let ring = (alone && flat.is_some()).then(|| {
            // SAFETY: a queue has one round at a time, which takes its chains; it shares this before it takes the first.
            unsafe { Ring::alone(shared) }
        });
        Self {
            budget: if closed { 0 } else { shared.layout.size },
            indirect: shared.features & features::INDIRECT_DESC != 0,
            short: view.short,
            shared,
            counted: shared,
            available,
            view,
            flat,
            hands,
            outline: Outline::default(),
            ring,
            company: if alone { Company::None } else { Company::Others },
            bytes: ROUND_BYTES - 1,
            reading: 0,
            looked: Looked::Left,
            taking: shared.taking,
            holds: false,
            // A round before it may have been left by a panic.
            unshown: !alone,
            ended: false,
            closed,
        }
    }

    /// The chain that was looked at last was in flight when a state was saved, or was given back untouched.
    #[inline(always)]
    fn returned(&self) -> bool {
        self.taking == Taking::Again
    }

    #[inline(always)]
    fn set_returned(&mut self, returned: bool) {
        self.taking = if returned { Taking::Again } else { self.shared.taking };
    }

    /// No other thread has to do with the queue.
    #[inline(always)]
    fn alone(&self) -> bool {
        self.company != Company::Others
    }

    /// A chain that is found may be in flight, or have been given back untouched.
    #[inline(always)]
    fn checks(&self) -> bool {
        self.company != Company::None
    }

    /// The queue's index in its device.
    pub fn index(&self) -> QueueIndex {
        self.shared.index
    }

    /// The features that the driver has accepted.
    pub fn features(&self) -> u64 {
        self.shared.features
    }

    /// What the queue has done so far.
    pub fn counters(&self) -> QueueCounters {
        self.shared.counters()
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
        let found = self.find_short() || self.looked != Looked::Empty && self.find()?;
        Ok(found.then_some(Chain(self)))
    }

    pub(super) fn with_used<R>(&mut self, f: impl FnOnce(&Shared, &mut Used) -> R) -> R {
        let mut guard;
        let used = match &mut self.ring {
            Some(ring) => &mut ring.used,
            None => {
                guard = self.shared.used.lock();
                &mut *guard
            }
        };
        f(self.shared, used)
    }

    fn signal(&mut self) {
        if self.holds {
            self.shared.hold(true);
            return;
        }
        if self.shared.holds() {
            // One tells of all.
            self.shared.hold(false);
        }
        self.shared.signal(self.alone());
        if self.shared.owes() {
            // That is to be told by whoever comes next.
            self.share();
        }
    }

    /// The round is not alone any more.
    #[inline(always)]
    pub(super) fn share(&mut self) {
        if self.alone() {
            self.share_now();
        }
    }

    #[cold]
    fn share_now(&mut self) {
        self.mark_used();
        self.unshown |= self.ring.as_ref().is_some_and(|ring| !ring.used.ring.is_published());
        (self.ring, self.company) = (None, Company::Others);
    }

    /// Marks what the short way has written into the used ring.
    #[inline]
    fn mark_used(&mut self) {
        if let Some(ring) = &mut self.ring
            && self.view.pin.tracks()
        {
            let used = &ring.used.ring;
            used.mark(self.view, mem::replace(&mut ring.unmarked, used.total()));
        }
    }

    /// The chain that was looked at is out of the available ring, or of those that were given back untouched.
    #[inline(always)]
    pub(super) fn consumed(&mut self) {
        match self.returned() {
            false => self.available.advance(self.outline.descriptors),
            true => self.set_returned(false),
        }
        self.spend();
    }

    /// Takes the chain that was looked at from what the round may take.
    #[inline(always)]
    fn spend(&mut self) {
        self.spend_for(self.outline.len());
    }

    /// Takes a chain of so many bytes from it.
    #[inline(always)]
    pub(super) fn spend_for(&mut self, bytes: u64) {
        self.budget -= 1;
        self.spend_bytes(bytes, 0);
        self.looked = Looked::Taken;
    }

    /// What comes next was looked at, and is left where it is.
    pub(super) fn leave_next(&mut self) {
        self.looked = Looked::Left;
    }

    /// If the round comes to its end with so many bytes, it takes `rest` more chains.
    #[inline(always)]
    fn spend_bytes(&mut self, bytes: u64, rest: u16) {
        let (left, spent) = self.bytes.overflowing_sub(bytes);
        self.bytes = left;
        if spent {
            self.budget = rest;
        }
    }

    /// Shows the driver all chains that were [put](Chain::put), and tells it of them if it wants to hear. The end of the round
    /// does so too.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    #[inline(always)]
    pub fn publish(&mut self) -> Result<(), QueueError> {
        match &self.ring {
            // And nothing is owed, or others had a part in it.
            Some(ring) if ring.used.ring.is_published() => Ok(()),
            _ => self.publish_far(),
        }
    }

    #[inline(never)]
    fn publish_far(&mut self) -> Result<(), QueueError> {
        // Others show what they put at once.
        if self.ring.is_none() && !self.unshown && !self.shared.owes() {
            return Ok(());
        }
        let view = self.view;
        match self.with_used(|shared, used| shared.publish(&mut used.ring, view)) {
            Ok(true) => self.signal(),
            Ok(false) => {}
            Err(Gone) => return Err(self.shared.gone()),
        }
        self.unshown = false;
        Ok(())
    }

    /// Whether the signals of this round are held back, and those that were before: the driver sees what it is shown, and is not told
    /// of it, until a round ends that does not hold them. For a device that coalesces its notifications; one that holds them says what
    /// it [waits](Self::wait) for. What is held when the queue is saved is told after it is restored.
    pub fn hold_signals(&mut self, hold: bool) {
        self.holds = hold;
    }

    /// [`Chain::put`] for a chain that was taken from this queue, in this round or before: for what is spread over several chains, of
    /// which the driver must see all or none. Show them by [`publish`](Self::publish); the end of the round does so too.
    ///
    /// # Errors
    /// As [`Chain::complete`].
    pub fn put(&mut self, chain: OwnedChain, written: u32) -> Result<(), QueueError> {
        let held = match chain.into_held() {
            Some(held) if Arc::ptr_eq(&held.shared, self.counted) => held,
            // Of another queue, which shows it at once.
            held => {
                held.into_iter().for_each(|held| held.end(Some(written)));
                return Ok(());
            }
        };
        let Held {
            outline,
            segments,
            pin,
            shared: _,
        } = held;
        pin.leave(segments.all(&outline));
        drop(pin);
        let view = self.view;
        self.unshown = true;
        let put = self.with_used(|shared, used| shared.put_taken(used, view, &outline, segments, written));
        put.map_err(|Gone| self.shared.gone())
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
                Err(error) => chain.refuse_for(&error)?,
            }
        }
        Ok(())
    }

    /// Whether the queue is being stopped: the round is for what ends the requests under way, and finds no chain.
    pub fn is_stopping(&self) -> bool {
        self.shared.word.is_stopped()
    }

    /// Has the queue looked at again at once, although nothing was found that says so: by a handler that serves it by other means.
    pub fn look_again(&mut self) {
        self.looked = Looked::Taken;
    }

    /// No chain is found any more.
    pub(super) fn close(&mut self) {
        (self.closed, self.budget, self.looked) = (true, 0, Looked::Left);
    }

    /// Whether a queue that was handed away has not come back.
    pub(super) fn is_still_away(&mut self) -> bool {
        self.hands.is_still_away(self.shared, self.available)
    }

    pub(super) fn available_place(&self) -> u16 {
        self.available.next()
    }

    /// Has the driver kick for what comes next; what came before that is for who looks then.
    pub(super) fn ask_for_kicks(&mut self) -> Result<(), QueueError> {
        let asked = self.available.expect_kicks(self.view);
        asked.map(|_| ()).map_err(|Gone| self.shared.gone())
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
