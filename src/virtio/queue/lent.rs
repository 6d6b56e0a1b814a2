//! A chain that a round lends.

use std::{
    fmt, mem,
    sync::{Arc, atomic::Ordering},
};

use super::{
    ChainError, Gone, OwnedChain, QueueError, Reader, Round, Writer, counters::Kind, owned::Held, shared::Taking,
};
use crate::memory::{Pin, Segment};

/// A request of the driver that a round has found: device-readable segments, then device-writable ones, all of them in guest memory.
///
/// It is lent: dropped, it stays where it is, and the next look finds it again. [`take`](Self::take) makes it one that is
/// completed later, elsewhere.
pub struct Chain<'r, 'q>(pub(super) &'r mut Round<'q>);

impl Chain<'_, '_> {
    /// Index of the first descriptor, or buffer ID in a packed ring: by which the driver knows the chain.
    pub fn head(&self) -> u16 {
        self.0.outline.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        self.0.hands.segments.readable(&self.0.outline)
    }

    /// Where the device may write.
    pub fn writable(&self) -> &[Segment] {
        self.0.hands.segments.writable(&self.0.outline)
    }

    /// Bytes in all readable segments.
    #[inline]
    pub fn readable_len(&self) -> u32 {
        self.0.outline.readable_len
    }

    /// Bytes in all writable segments.
    #[inline]
    pub fn writable_len(&self) -> u32 {
        self.0.outline.writable_len
    }

    /// The readable bytes, from the first on.
    #[inline]
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(&self.0.view.pin, self.readable(), self.readable_len())
    }

    /// The writable bytes, from the first on.
    #[inline]
    pub fn writer(&self) -> Writer<'_> {
        Writer::new(&self.0.view.pin, self.writable(), self.writable_len())
    }

    /// The map of guest memory that it was found in.
    pub fn pin(&self) -> &Pin {
        &self.0.view.pin
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
        self.give_back::<true>(written)
    }

    /// [`complete`](Self::complete) for one of several chains: the driver sees it with the next that is completed, or when they
    /// are [published](Round::publish).
    ///
    /// # Errors
    /// As `complete`.
    #[inline]
    pub fn put(self, written: u32) -> Result<(), QueueError> {
        self.give_back::<false>(written)
    }

    /// Gives back a request that is not what the device type prescribes, and has no room for a status that says so.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn refuse(self) -> Result<(), QueueError> {
        self.refuse_as(Kind::Request)
    }

    /// [`refuse`](Self::refuse), counted [by what](super::Malformed) is wrong with it.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn refuse_for(self, error: &ChainError) -> Result<(), QueueError> {
        self.refuse_as(error.into())
    }

    fn refuse_as(self, kind: Kind) -> Result<(), QueueError> {
        self.0.shared.counters.malformed(kind);
        self.give_back::<true>(0)
    }

    #[inline]
    fn give_back<const PUBLISH: bool>(self, written: u32) -> Result<(), QueueError> {
        let given_back = self.0.give_back::<PUBLISH>(written);
        given_back.map_err(|Gone| self.0.shared.gone())
    }

    /// Takes the chain away from the round, to be completed by any thread at any time. Its map of guest memory is kept alive.
    pub fn take(self) -> OwnedChain {
        let Self(round) = self;
        let shared = Arc::clone(round.counted);
        shared.word.take();
        // Who completes it needs the lock.
        round.share();
        if round.taking == Taking::Simple {
            round.take_simple();
        } else {
            // It is in use, where it was found.
            let (pin, segments) = (&round.view.pin, &round.hands.segments);
            pin.enter(segments.all(&round.outline));
            match round.taking == Taking::Counted {
                true => round.take_simple(),
                false => round.take_other(),
            }
        }
        let fresh = round.hands.spare(&shared);
        let segments = mem::replace(&mut round.hands.segments, fresh);
        let spilled = round.outline.spilled();
        if spilled != 0 {
            shared.spilled.fetch_add(spilled, Ordering::SeqCst);
        }
        let pin = Pin::clone(&round.view.pin);
        OwnedChain::new(Held {
            outline: round.outline,
            segments,
            pin,
            shared,
        })
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
