//! A chain that was taken from its round.

use std::{fmt, mem, sync::Arc};

use super::{
    Reader, Writer,
    chain::{Outline, Segments},
    counters::Kind,
    shared::{Shared, Taking},
};
use crate::memory::{Pin, Segment};

/// A request that was taken from its round, to be completed by any thread, at any time, in any order.
///
/// Dropped, it is [given back untouched](Self::give_back).
#[must_use = "a chain that is dropped is served again"]
pub struct OwnedChain(Option<Held>);

/// What it is until it is given back.
pub(super) struct Held {
    pub outline: Outline,
    pub segments: Segments,
    /// Keeps them mapped.
    pub pin: Pin,
    pub shared: Arc<Shared>,
}

impl Held {
    /// Gives it back, with the number of bytes that were written into it; or untouched.
    #[inline(always)]
    pub fn end(self, written: Option<u32>) {
        let Self {
            outline,
            segments,
            pin,
            shared,
        } = self;
        // Before the queue can be still: nothing of a map that was replaced is held then, nor of what was translated.
        if shared.taking != Taking::Simple {
            pin.leave(segments.all(&outline));
        }
        drop(pin);
        shared.give_back(&outline, segments, written);
    }
}

impl OwnedChain {
    pub(super) fn new(held: Held) -> Self {
        Self(Some(held))
    }

    #[inline(always)]
    pub(super) fn into_held(mut self) -> Option<Held> {
        let held = self.0.take();
        // Nothing is left to drop.
        mem::forget(self);
        held
    }

    fn held(&self) -> &Held {
        self.0.as_ref().unwrap_or_else(|| unreachable!("it was given back"))
    }

    /// Index of the first descriptor, or buffer ID in a packed ring: by which the driver knows the chain.
    pub fn head(&self) -> u16 {
        self.held().outline.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        self.held().segments.readable(&self.held().outline)
    }

    /// Where the device may write.
    pub fn writable(&self) -> &[Segment] {
        self.held().segments.writable(&self.held().outline)
    }

    /// Bytes in all readable segments.
    pub fn readable_len(&self) -> u32 {
        self.held().outline.readable_len
    }

    /// Bytes in all writable segments.
    pub fn writable_len(&self) -> u32 {
        self.held().outline.writable_len
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
        &self.held().pin
    }

    /// Gives the chain back, as [`Chain::complete`](super::Chain::complete) does. A ring that is no longer in guest memory is told of
    /// by the next round.
    pub fn complete(self, written: u32) {
        if let Some(held) = self.into_held() {
            held.end(Some(written));
        }
    }

    /// Gives back a request that is not what the device type prescribes, as [`Chain::refuse`](super::Chain::refuse) does.
    pub fn refuse(self) {
        self.held().shared.counters.malformed(Kind::Request);
        self.complete(0);
    }

    /// Gives the chain back as if it had never been taken: for a request that has had no effect yet when its queue is stopped. It
    /// is kept, saved, and served again first, in the order in which it was taken, when the queue is next looked at.
    ///
    /// It has counted for the [`Round`](super::Round) that took it, which may be over, and on another thread: that one says that there is
    /// more, and another follows. So a handler that only looks whether it can serve a chain does not take it: a
    /// [`Chain`](super::Chain) that is dropped, and [`Several`](super::Several), stay where they are and count for nothing.
    pub fn give_back(self) {}
}

impl Drop for OwnedChain {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            held.end(None);
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
