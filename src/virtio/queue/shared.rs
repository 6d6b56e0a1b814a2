//! What a queue and its chains share: giving chains back and telling the driver of it, from any thread.

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use super::{
    Gone, QueueCounters, QueueError, QueueIndex, QueueLayout, VirtioInterrupt,
    chain::{Outline, Segments},
    counters::Counters,
    format::Format,
    in_order::{InOrder, Kept},
    inside::Inside,
    track::Tracker,
    used::{Returned, Used, UsedGuard, UsedRing, UsedSide},
    view::View,
    whereabouts::Whereabouts,
    word::Word,
};
use crate::{
    memory::{Memory, Outside},
    virtio::features,
};

/// What there is to do to take the chain that was looked at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taking {
    /// Its place is noted. It is in a plain ring, and in memory that is not translated.
    Simple,
    /// The same in translated memory, where it is counted.
    Counted,
    /// More.
    Other,
    /// More, and somebody is told of it.
    Told,
    /// It was in flight when a state was saved, or was given back untouched: it has its place.
    Again,
}

/// What a queue and the chains that were taken from it share.
///
/// Lock order: `used` is the last of all, and no interrupt is triggered under it by who completes elsewhere; nor is anything looked up
/// in guest memory, which can be another device's interrupt where that is translated.
#[repr(align(128))]
pub(super) struct Shared {
    // Configured.
    pub index: QueueIndex,
    pub layout: QueueLayout,
    pub features: u64,
    /// The ring is a split one, in no order, and nobody is told of what is in flight.
    pub plain: bool,
    /// How its chains are taken.
    pub taking: Taking,
    // Plugged in.
    pub memory: Memory,
    pub interrupt: std::sync::Arc<dyn VirtioInterrupt>,
    pub word: std::sync::Arc<Word>,
    /// Who is told what is in flight.
    pub tracker: Option<std::sync::Arc<dyn Tracker>>,
    // What the guest moves.
    pub used: UsedSide,
    /// For each head that is in flight beyond its round, when it was taken; zero for others.
    pub places: Box<[AtomicU64]>,
    /// Segments of chains that are out and need room of their own.
    pub spilled: AtomicU32,
    /// How many descriptors of a packed ring had chains that were taken and are used. Wraps; written under the lock of `used`.
    pub ended: AtomicU32,
    /// Whether somebody else has the ring.
    pub away: Whereabouts,
    /// A chain was given back untouched, and is to be served again.
    pub returned: AtomicBool,
    /// The driver is owed a signal that was refused.
    owed: AtomicBool,
    /// The driver wants to hear of something, and is to hear of it later.
    held: AtomicBool,
    /// The queue is gone: nothing is written to it any more.
    pub closed: AtomicBool,
    /// A chain ended when its ring was not in guest memory.
    pub stranded: AtomicBool,
    pub counters: Counters,
}

impl Shared {
    /// A queue alone, which nobody stops.
    pub fn new(
        index: QueueIndex,
        layout: QueueLayout,
        features: u64,
        (view, next_used): (View, u16),
        memory: Memory,
        interrupt: std::sync::Arc<dyn VirtioInterrupt>,
    ) -> Self {
        let word = std::sync::Arc::new(Word::new(crate::sync::Arc::default()));
        Self {
            index,
            layout,
            features,
            plain: features & (features::RING_PACKED | features::IN_ORDER) == 0,
            taking: match (
                features & (features::RING_PACKED | features::IN_ORDER),
                memory.is_translated(),
            ) {
                (0, false) => Taking::Simple,
                (0, true) => Taking::Counted,
                _ => Taking::Other,
            },
            memory,
            interrupt,
            word,
            tracker: None,
            used: UsedSide::new(Used {
                view: Some(view),
                ring: UsedRing::new(&layout, features, next_used),
                order: (features & features::IN_ORDER != 0).then(InOrder::default),
                resubmit: Vec::new(),
                pool: Vec::new(),
            }),
            places: (0..layout.size).map(|_| AtomicU64::new(0)).collect(),
            spilled: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            away: Whereabouts::new(),
            returned: AtomicBool::new(false),
            owed: AtomicBool::new(false),
            held: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            stranded: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> QueueCounters {
        self.counters.sum()
    }

    /// Shows the driver what was put, if anything was, and says whether it is to be told: of that, or of what is owed.
    #[inline]
    pub fn publish(&self, ring: &mut UsedRing, view: &View) -> Result<bool, Gone> {
        let owed = self.owes() && self.owed.swap(false, Ordering::SeqCst);
        if ring.is_published() {
            return Ok(owed);
        }
        let wanted = ring.publish(view, &self.counters)?;
        if let Some(tracker) = &self.tracker {
            tracker.published(ring.next());
        }
        Ok(wanted || owed)
    }

    /// Interrupts the driver. A refusal is owed: the next call of any kind carries it. `alone`: no other thread does so now.
    #[inline]
    pub fn signal(&self, alone: bool) {
        let _inside = Inside::new();
        // A line that panics has not told the driver.
        let owing = Owing(&self.owed);
        match self.interrupt.used(&[self.index]) {
            Ok(()) => {
                std::mem::forget(owing);
                self.counters.delivered(alone);
            }
            Err(_) => {
                drop(owing);
                self.counters.failed();
            }
        }
    }

    #[inline]
    pub fn owes(&self) -> bool {
        self.owed.load(Ordering::SeqCst)
    }

    pub fn owe(&self, owed: bool) {
        self.owed.store(owed, Ordering::SeqCst);
    }

    /// Whether a signal is held back.
    #[inline]
    pub fn holds(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    /// Signals again if the last signal was refused.
    #[inline]
    pub fn signal_again(&self) {
        if self.owes() && self.owed.swap(false, Ordering::SeqCst) {
            self.signal(false);
        }
    }

    /// A chain that was taken comes back, with the number of bytes that were written into it; or untouched.
    #[inline(always)]
    pub fn give_back(&self, outline: &Outline, segments: Segments, written: Option<u32>) {
        let _done = Done(&self.word);
        let mut used = self.used.lock();
        let signal = match written {
            _ if self.closed.load(Ordering::SeqCst) => false,
            Some(written) => {
                let written = written.min(outline.writable_len);
                match self.use_elsewhere(&mut used, outline, written) {
                    Ok(signal) => signal,
                    Err(Gone) => return self.give_back_far(used, outline, segments, written),
                }
            }
            None => return self.return_untouched(&mut used, outline, segments),
        };
        self.is_back(&mut used, outline, segments);
        drop(used);
        if signal {
            self.signal(false);
        }
    }

    /// The same where the ring is no longer in guest memory, or has to be looked up: with nothing locked, since where it is translated,
    /// somebody is told of what is not mapped.
    #[cold]
    fn give_back_far(&self, used: UsedGuard<'_>, outline: &Outline, segments: Segments, written: u32) {
        let was_there = used.view.is_some();
        drop(used);
        let view = if was_there { None } else { self.look_up().ok() };
        let mut used = self.used.lock();
        let shown = match &view {
            _ if self.closed.load(Ordering::SeqCst) => Ok(false),
            Some(view) => match self.end_taken(&mut used, view, outline, written) {
                Ok(()) => self.publish(&mut used.ring, view),
                Err(Gone) => Err(Gone),
            },
            None => Err(Gone),
        };
        // What was taken back before is not kept: who did that has had the queue let go already.
        if let Some(view) = view.as_ref().filter(|view| self.memory.is_current(&view.pin)) {
            used.view.get_or_insert_with(|| view.clone());
        }
        self.is_back(&mut used, outline, segments);
        drop(used);
        match shown {
            Ok(true) => self.signal(false),
            Ok(false) => {}
            // It stays in flight. The next round, which has somebody to tell, finds that.
            Err(Gone) => self.stranded.store(true, Ordering::SeqCst),
        }
    }

    /// Puts a chain that was taken into the used ring, by who serves the queue: the driver does not see it yet.
    pub fn put_taken(
        &self,
        used: &mut Used,
        view: &View,
        outline: &Outline,
        segments: Segments,
        written: u32,
    ) -> Result<(), Gone> {
        let _done = Done(&self.word);
        if !self.closed.load(Ordering::SeqCst) {
            self.end_taken(used, view, outline, written.min(outline.writable_len))?;
        }
        self.is_back(used, outline, segments);
        Ok(())
    }

    /// Puts a chain into the used ring, the long way.
    pub fn put(
        &self,
        ring: &mut UsedRing,
        view: &View,
        (head, descriptors): (u16, u16),
        written: u32,
    ) -> Result<(), Gone> {
        ring.put(view, head, descriptors, written)?;
        if let Some(tracker) = &self.tracker {
            tracker.put(head, descriptors);
        }
        Ok(())
    }

    /// A chain that was taken has ended: it is put, and if chains are used in order, those after it that waited for it; or it waits
    /// itself.
    pub fn end_taken(&self, used: &mut Used, view: &View, outline: &Outline, written: u32) -> Result<(), Gone> {
        let &Outline { head, descriptors, .. } = outline;
        let Used { ring, order, .. } = used;
        let Some(order) = order else {
            self.put(ring, view, (head, descriptors), written)?;
            self.is_used(head, descriptors);
            return Ok(());
        };
        order.end(self.place(head), written);
        while let Some((Kept { head, descriptors, .. }, written)) = order.ended() {
            self.put(ring, view, (head, descriptors), written)?;
            order.pop();
            self.is_used(head, descriptors);
        }
        Ok(())
    }

    /// A chain that was in flight beyond its round is used: before the driver sees that it may have it again.
    #[inline(always)]
    fn is_used(&self, head: u16, descriptors: u16) {
        self.forget(head);
        let ended = self.ended.load(Ordering::Relaxed);
        self.ended
            .store(ended.wrapping_add(descriptors.into()), Ordering::Release);
    }

    /// Keeps the room of a chain that came back for another.
    #[inline(always)]
    pub fn is_back(&self, used: &mut Used, outline: &Outline, mut segments: Segments) {
        if outline.spilled() != 0 {
            self.spilled.fetch_sub(outline.spilled(), Ordering::SeqCst);
            segments.shrink(self.layout.size);
        }
        // As many as were in flight at a time, which is bounded by the queue.
        used.pool.push(segments);
    }

    /// Puts a chain into the used ring and shows it. Whether the driver is to be told. The error is of a ring that is no longer in guest
    /// memory, or has to be looked up first.
    #[inline(always)]
    fn use_elsewhere(&self, used: &mut Used, outline: &Outline, written: u32) -> Result<bool, Gone> {
        let near = used.view.as_ref().and_then(|view| Some((view.flat_split()?, view)));
        let Some((flat, view)) = near.filter(|_| self.plain && !self.owes()) else {
            return self.use_other(used, outline, written);
        };
        // Before the driver sees that it may have it again.
        self.forget(outline.head);
        let ring = &mut used.ring.split;
        let from = ring.next;
        let wanted = ring.use_near::<true>(&flat, outline.head, written, &self.counters);
        if view.pin.tracks() {
            view.mark_used(from, ring.next);
        }
        Ok(wanted)
    }

    /// The same in a packed ring.
    #[inline(never)]
    fn use_other(&self, used: &mut Used, outline: &Outline, written: u32) -> Result<bool, Gone> {
        let near = used.view.as_ref().and_then(|view| Some((view.flat()?, view)));
        let short = used.order.is_none() && self.tracker.is_none() && !self.owes();
        let Some((Format::Packed(flat), view)) = near.filter(|_| short) else {
            return self.use_far(used, outline, written);
        };
        // As above.
        self.is_used(outline.head, outline.descriptors);
        let ring = &mut used.ring.packed;
        // What was put before and is hidden is written by this too.
        let from = ring.shown_total();
        let wanted = ring.use_near::<true>(&flat, outline.head, outline.descriptors, written, &self.counters);
        if view.pin.tracks() {
            view.mark_packed(ring.next, ring.total.wrapping_sub(from));
        }
        Ok(wanted)
    }

    #[cold]
    fn use_far(&self, used: &mut Used, outline: &Outline, written: u32) -> Result<bool, Gone> {
        // It stays where it is, so this is not the last that goes.
        let view = used.view.clone().ok_or(Gone)?;
        self.end_taken(used, &view, outline, written)?;
        self.publish(&mut used.ring, &view)
    }

    /// Whether a chain is to be served again.
    #[inline]
    pub fn returns(&self) -> bool {
        self.returned.load(Ordering::SeqCst)
    }

    #[inline]
    pub fn is_in_flight(&self, head: u16) -> bool {
        let place = self.places.get(usize::from(head));
        place.is_some_and(|place| place.load(Ordering::SeqCst) != 0)
    }

    /// The chain is not in flight any more.
    pub fn forget(&self, head: u16) {
        if let Some(place) = self.places.get(usize::from(head)) {
            place.store(0, Ordering::Release);
        }
    }

    /// When a chain was taken that is in flight; zero of others.
    pub fn place(&self, head: u16) -> u64 {
        self.places[usize::from(head)].load(Ordering::SeqCst)
    }

    /// A chain that was given back untouched is served again.
    pub fn forget_returned(&self, used: &mut Used, head: u16) {
        if let Some(at) = used.resubmit.iter().position(|other| other.head == head)
            && let Some((outline, segments)) = used.resubmit.remove(at).chain
        {
            self.is_back(used, &outline, segments);
        }
        self.returned.store(!used.resubmit.is_empty(), Ordering::SeqCst);
    }

    #[cold]
    fn return_untouched(&self, used: &mut Used, outline: &Outline, segments: Segments) {
        let head = outline.head;
        let at = used
            .resubmit
            .partition_point(|other| self.place(other.head) < self.place(head));
        let chain = match self.is_packed() {
            false => {
                self.is_back(used, outline, segments);
                None
            }
            true => Some((*outline, segments)),
        };
        used.resubmit.insert(at, Returned { head, chain });
        self.returned.store(true, Ordering::SeqCst);
    }

    /// The heads that are in flight, the one that was taken first to begin with.
    pub fn in_flight(&self) -> Vec<u16> {
        let mut heads: Vec<_> = (0..self.layout.size).filter(|&head| self.place(head) != 0).collect();
        heads.sort_unstable_by_key(|&head| self.place(head));
        heads
    }

    pub fn is_packed(&self) -> bool {
        self.features & features::RING_PACKED != 0
    }

    /// Whether chains are used in the order in which they were made available.
    #[inline(always)]
    pub fn in_order(&self) -> bool {
        self.features & features::IN_ORDER != 0
    }
}

/// A chain that was taken is done with when this is dropped, by a line that panics too.
struct Done<'a>(&'a Word);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// Owes a signal when it is dropped.
pub(super) struct Owing<'a>(pub &'a AtomicBool);

impl Drop for Owing<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    /// Looks the areas up in the map as it is now.
    #[cold]
    pub fn look_up(&self) -> Result<View, QueueError> {
        View::new(self.memory.pin(), &self.layout, u16::MAX, self.is_packed())
    }

    /// What is no longer in guest memory.
    #[cold]
    pub fn gone(&self) -> QueueError {
        let address = self.layout.device_area;
        match self.look_up() {
            Err(error) => error,
            // It is there again.
            Ok(_) => Outside { address, len: 2 }.into(),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("index", &self.index)
            .field("layout", &self.layout)
            .field("word", &self.word)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// A signal that leads nowhere, for tests and benches of a queue alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl VirtioInterrupt for Silent {
    fn used(&self, _queues: &[QueueIndex]) -> io::Result<()> {
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) {}
}
