//! The used side of a queue: giving chains back and telling the driver of it, from any thread.

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    sync::{
        PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    },
};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;

use super::{
    Gone, QueueCounters, QueueError, QueueIndex, QueueLayout, VirtioInterrupt,
    area::{FlatRing, View},
    chain::{Outline, Pool, Segments},
    inside::Inside,
    word::Word,
};
use crate::{
    memory::{Memory, Outside},
    sync::{Guarded, Lock, Locked, Opened},
};

/// What a queue and the chains that were taken from it share.
///
/// Lock order: `used` is the last of all, and no interrupt is triggered under it by who completes elsewhere.
#[repr(align(128))]
pub(super) struct Shared {
    // Configured.
    pub index: QueueIndex,
    pub layout: QueueLayout,
    pub features: u64,
    // Plugged in.
    pub memory: Memory,
    pub interrupt: std::sync::Arc<dyn VirtioInterrupt>,
    pub word: std::sync::Arc<Word>,
    // What the guest moves.
    pub used: UsedSide,
    /// For each head that is in flight beyond its round, when it was taken; zero for others.
    pub places: Box<[AtomicU64]>,
    /// Segments of chains that are out and need room of their own.
    pub spilled: AtomicU32,
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
    counters: Counters,
}

/// Written by one thread at a time, read by any.
#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    /// Of those, chains that the driver wanted to hear of.
    wanted: AtomicU64,
    malformed: AtomicU64,
    delivered: AtomicU64,
    failed: AtomicU64,
}

#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

/// The used side: under its lock, or without it in a round that nobody else has a part in, which is when no chain is out.
pub(super) struct UsedSide {
    lock: Lock<()>,
    used: Guarded<Used>,
}

/// The used side, locked.
pub(super) struct UsedGuard<'a> {
    used: Opened<'a, Used>,
    _locked: Locked<'a, ()>,
}

impl UsedSide {
    fn new(used: Used) -> Self {
        Self {
            lock: Lock::new(()),
            used: Guarded::new(used),
        }
    }

    #[inline(always)]
    pub fn lock(&self) -> UsedGuard<'_> {
        // As `sync::lock`.
        let locked = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        UsedGuard {
            // SAFETY: locked; and a round that opens it without the lock lets go of it before another thread has a part in it.
            used: unsafe { self.used.open() },
            _locked: locked,
        }
    }

    /// Without the lock.
    ///
    /// # Safety
    /// The caller has the queue to itself, no chain is out, and none is taken before it has let go of this.
    #[inline(always)]
    pub unsafe fn alone(&self) -> Opened<'_, Used> {
        // SAFETY: as the caller says: who had it before has given its chain back, in the queue's word, or had the queue to itself too.
        unsafe { self.used.open() }
    }
}

impl Deref for UsedGuard<'_> {
    type Target = Used;

    #[inline(always)]
    fn deref(&self) -> &Used {
        &self.used
    }
}

impl DerefMut for UsedGuard<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Used {
        &mut self.used
    }
}

pub(super) struct Used {
    /// Not there when memory has changed: looked up again when it is needed.
    pub view: Option<View>,
    pub ring: UsedRing,
    /// Chains that were given back untouched, in the order in which they were taken.
    pub resubmit: Vec<u16>,
    /// Room for chains that are taken.
    pub pool: Pool,
}

/// The device's place in the used ring.
pub(super) struct UsedRing {
    event_idx: bool,
    /// Where the next element goes.
    pub next: u16,
    /// How far the driver has been shown the ring.
    published: u16,
}

impl UsedRing {
    /// Whether the driver has been shown all that was put.
    #[inline]
    pub fn is_shown(&self) -> bool {
        self.published == self.next
    }

    /// Adds an element, which the driver does not see yet.
    #[inline]
    pub fn put(&mut self, view: &View, head: u16, written: u32) -> Result<(), Gone> {
        view.set_used_entry(self.next, head.into(), written)?;
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// The short way to put a chain and, if `PUBLISH`, to show it: whether the driver is to be told.
    #[inline(always)]
    pub fn use_near<const PUBLISH: bool>(
        &mut self,
        view: &FlatRing<'_>,
        head: u16,
        written: u32,
        shared: &Shared,
    ) -> bool {
        let new = self.next.wrapping_add(1);
        view.set_used_entry(self.next, head.into(), written);
        self.next = new;
        if !PUBLISH {
            return false;
        }
        let added = new.wrapping_sub(self.published);
        self.published = new;
        // As in `publish`.
        view.set_used_idx_and_fence(new);
        let wanted = if self.event_idx {
            new.wrapping_sub(view.used_event()).wrapping_sub(1) < added
        } else {
            u32::from(view.avail_flags()) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        add(&shared.counters.requests, added.into());
        if wanted {
            add(&shared.counters.wanted, added.into());
        }
        wanted
    }

    /// Shows the driver what was [put](Self::put), which is something, and decides whether it is to be told (sections 2.7.7 and
    /// 2.7.10).
    #[inline]
    fn publish(&mut self, view: &View, counters: &Counters) -> Result<bool, Gone> {
        let (old, new) = (self.published, self.next);
        view.set_used_idx(new)?;
        // The used index is out before it is asked what the driver wants: a driver that asks to be told and then finds nothing
        // new is told. Pairs with the driver's barrier between the two.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            new.wrapping_sub(view.used_event()?).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(view.avail_flags()?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        self.published = new;
        let added = new.wrapping_sub(old).into();
        add(&counters.requests, added);
        if wanted {
            add(&counters.wanted, added);
        }
        Ok(wanted)
    }
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
            memory,
            interrupt,
            word,
            used: UsedSide::new(Used {
                view: Some(view),
                ring: UsedRing {
                    event_idx: features & crate::virtio::features::EVENT_IDX != 0,
                    next: next_used,
                    published: next_used,
                },
                resubmit: Vec::new(),
                pool: Vec::new(),
            }),
            places: (0..layout.size).map(|_| AtomicU64::new(0)).collect(),
            spilled: AtomicU32::new(0),
            returned: AtomicBool::new(false),
            owed: AtomicBool::new(false),
            held: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            stranded: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> QueueCounters {
        let Counters {
            requests,
            bytes,
            wanted,
            malformed,
            delivered,
            failed,
        } = &self.counters;
        // Those of them that were wanted first: the sum is written before.
        let [wanted, requests, bytes, malformed, delivered, failed] =
            [wanted, requests, bytes, malformed, delivered, failed].map(|counter| counter.load(Ordering::Relaxed));
        QueueCounters {
            requests,
            bytes,
            malformed,
            wanted,
            suppressed: requests.saturating_sub(wanted),
            delivered,
            failed,
        }
    }

    /// A round has taken up chains of so many bytes.
    #[inline]
    pub fn count_bytes(&self, bytes: u64) {
        add(&self.counters.bytes, bytes);
    }

    pub fn count_malformed(&self) {
        self.counters.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// Shows the driver what was put, if anything was, and says whether it is to be told: of that, or of what is owed.
    #[inline]
    pub fn publish(&self, ring: &mut UsedRing, view: &View) -> Result<bool, Gone> {
        let owed = self.owes() && self.owed.swap(false, Ordering::SeqCst);
        if ring.is_shown() {
            return Ok(owed);
        }
        Ok(ring.publish(view, &self.counters)? || owed)
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
                if alone {
                    add(&self.counters.delivered, 1);
                } else {
                    self.counters.delivered.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(_) => {
                drop(owing);
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
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
                let used = self.use_elsewhere(&mut used, outline.head, written.min(outline.writable_len));
                used.unwrap_or_else(|Gone| {
                    self.stranded.store(true, Ordering::SeqCst);
                    false
                })
            }
            None => {
                self.return_untouched(&mut used, outline.head);
                false
            }
        };
        self.is_back(&mut used, outline, segments);
        drop(used);
        if signal {
            self.signal(false);
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
        used.ring.put(view, outline.head, written.min(outline.writable_len))?;
        self.forget(outline.head);
        self.is_back(used, outline, segments);
        Ok(())
    }

    /// Keeps the room of a chain that came back for another.
    #[inline(always)]
    fn is_back(&self, used: &mut Used, outline: &Outline, mut segments: Segments) {
        if outline.spilled() != 0 {
            self.spilled.fetch_sub(outline.spilled(), Ordering::SeqCst);
            segments.shrink(self.layout.size);
        }
        // As many as were in flight at a time, which is bounded by the queue.
        used.pool.push(segments);
    }

    /// Puts a chain into the used ring and shows it. Whether the driver is to be told. If the ring is no longer in guest memory, the
    /// chain stays in flight: the next round, which has somebody to tell, finds that.
    #[inline(always)]
    fn use_elsewhere(&self, Used { view, ring, .. }: &mut Used, head: u16, written: u32) -> Result<bool, Gone> {
        let near = view.as_ref().and_then(|view| Some((view.flat()?, view)));
        let Some((flat, view)) = near.filter(|_| !self.owes()) else {
            return self.use_far(view, ring, head, written);
        };
        // Before the driver sees that it may have it again.
        self.forget(head);
        let from = ring.next;
        let wanted = ring.use_near::<true>(&flat, head, written, self);
        if view.pin.tracks() {
            view.mark_used(from, ring.next);
        }
        Ok(wanted)
    }

    #[cold]
    fn use_far(&self, view: &mut Option<View>, ring: &mut UsedRing, head: u16, written: u32) -> Result<bool, Gone> {
        let view = match view {
            Some(view) => view,
            view => view.insert(self.look_up().map_err(|_| Gone)?),
        };
        ring.put(view, head, written)?;
        // As above.
        self.forget(head);
        self.publish(ring, view)
    }

    /// Whether a chain is to be served again.
    #[inline]
    pub fn returns(&self) -> bool {
        self.returned.load(Ordering::SeqCst)
    }

    #[inline]
    pub fn is_in_flight(&self, head: u16) -> bool {
        self.places[usize::from(head)].load(Ordering::SeqCst) != 0
    }

    /// The chain is not in flight any more.
    pub fn forget(&self, head: u16) {
        self.places[usize::from(head)].store(0, Ordering::Release);
    }

    /// A chain that was given back untouched is served again.
    pub fn forget_returned(&self, used: &mut Used, head: u16) {
        used.resubmit.retain(|&other| other != head);
        self.returned.store(!used.resubmit.is_empty(), Ordering::SeqCst);
    }

    fn return_untouched(&self, used: &mut Used, head: u16) {
        let place = |head: u16| self.places[usize::from(head)].load(Ordering::SeqCst);
        let at = used.resubmit.partition_point(|&other| place(other) < place(head));
        used.resubmit.insert(at, head);
        self.returned.store(true, Ordering::SeqCst);
    }

    /// The heads that are in flight, the one that was taken first to begin with.
    pub fn in_flight(&self) -> Vec<u16> {
        let place = |head: u16| self.places[usize::from(head)].load(Ordering::SeqCst);
        let mut heads: Vec<_> = (0..self.layout.size).filter(|&head| place(head) != 0).collect();
        heads.sort_unstable_by_key(|&head| place(head));
        heads
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
        View::new(self.memory.pin(), &self.layout, u16::MAX)
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
