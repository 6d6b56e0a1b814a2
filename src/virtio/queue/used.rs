//! The used side of a queue: giving chains back and telling the driver of it, from any thread.

use std::{
    fmt, io,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;

use super::{
    QueueCounters, QueueError, QueueIndex, QueueLayout, VirtioInterrupt,
    area::{RING_HEADER, Ring, USED_ENTRY, View},
    chain::Body,
    word::Word,
};
use crate::{
    memory::Memory,
    sync::lock,
};

/// What a queue and the chains that were taken from it share.
///
/// Lock order: `used` is the last of all, and no interrupt is triggered under it by who completes elsewhere. A round that has no
/// chain out holds it all through: nobody else wants it then.
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
    pub used: Mutex<Used>,
    /// For each head that is in flight beyond its round, when it was taken; zero for others.
    pub places: Box<[AtomicU64]>,
    /// A chain was given back untouched, and is to be served again.
    pub returned: AtomicBool,
    /// The driver is owed a signal that was refused.
    owed: AtomicBool,
    /// The queue is gone: nothing is written to it any more.
    pub closed: AtomicBool,
    counters: Counters,
}

/// Written by one thread at a time, read by any.
#[derive(Default)]
struct Counters {
    completed: AtomicU64,
    suppressed: AtomicU64,
    malformed: AtomicU64,
    signalled: AtomicU64,
    failed: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

/// The used ring, under its lock.
pub(super) struct Used {
    /// Not there when memory has changed: looked up again when it is needed.
    pub view: Option<View>,
    event_idx: bool,
    /// Where the next element goes.
    pub next: u16,
    /// How far the driver has been shown the ring.
    published: u16,
    /// Chains that were given back untouched, in the order in which they were taken.
    pub resubmit: Vec<u16>,
    /// Room for chains that are taken.
    pub pool: Vec<Box<Body>>,
}

impl Shared {
    #[allow(clippy::too_many_arguments, reason = "each is one part of a queue")]
    pub fn new(
        index: QueueIndex,
        layout: QueueLayout,
        features: u64,
        view: View,
        next_used: u16,
        memory: Memory,
        interrupt: std::sync::Arc<dyn VirtioInterrupt>,
        word: std::sync::Arc<Word>,
    ) -> Self {
        Self {
            index,
            layout,
            features,
            memory,
            interrupt,
            word,
            used: Mutex::new(Used {
                view: Some(view),
                event_idx: features & crate::virtio::features::EVENT_IDX != 0,
                next: next_used,
                published: next_used,
                resubmit: Vec::new(),
                pool: Vec::new(),
            }),
            places: (0..layout.size).map(|_| AtomicU64::new(0)).collect(),
            returned: AtomicBool::new(false),
            owed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> QueueCounters {
        let Counters {
            completed,
            suppressed,
            malformed,
            signalled,
            failed,
        } = &self.counters;
        let [completed, suppressed, malformed, signalled, failed] =
            [completed, suppressed, malformed, signalled, failed].map(|counter| counter.load(Ordering::Relaxed));
        QueueCounters {
            completed,
            suppressed,
            malformed,
            signalled,
            failed,
        }
    }

    pub fn count_malformed(&self) {
        add(&self.counters.malformed, 1);
    }

    /// Adds an element to the used ring, which the driver does not see yet.
    #[inline]
    pub fn put(&self, used: &mut Used, head: u16, written: u32) -> Result<(), QueueError> {
        let slot = u64::from(used.next & (self.layout.size - 1));
        used.view(self)?
            .store_used(RING_HEADER + USED_ENTRY * slot, head.into(), written)?;
        used.next = used.next.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver what was [put](Self::put), and decides whether it is to be told (sections 2.7.7 and 2.7.10). Nothing, if
    /// nothing was put: but what is owed.
    #[inline]
    pub fn publish(&self, used: &mut Used) -> Result<bool, QueueError> {
        let (old, new) = (used.published, used.next);
        let owed = self.owes() && self.owed.swap(false, Ordering::SeqCst);
        if old == new {
            return Ok(owed);
        }
        let event_idx = used.event_idx;
        let view = used.view(self)?;
        view.store(Ring::Device, 2, new)?;
        // The used index is out before it is asked what the driver wants: a driver that asks to be told and then finds nothing
        // new is told. Pairs with the driver's barrier between the two.
        fence(Ordering::SeqCst);
        let wanted = if event_idx {
            let offset = RING_HEADER + 2 * u64::from(self.layout.size);
            let event = view.load(Ring::Driver, offset)?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(view.load(Ring::Driver, 0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        used.published = new;
        let added = new.wrapping_sub(old).into();
        add(&self.counters.completed, added);
        if !wanted {
            add(&self.counters.suppressed, added);
        }
        Ok(wanted || owed)
    }

    /// Interrupts the driver. A refusal is owed: the next call of any kind carries it.
    pub fn signal(&self) {
        // A line that panics has not told the driver.
        let owing = Owing(&self.owed);
        match self.interrupt.used(&[self.index]) {
            Ok(()) => {
                std::mem::forget(owing);
                self.counters.signalled.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                drop(owing);
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub fn owes(&self) -> bool {
        self.owed.load(Ordering::SeqCst)
    }

    pub fn owe(&self, owed: bool) {
        self.owed.store(owed, Ordering::SeqCst);
    }

    /// Signals again if the last signal was refused.
    pub fn signal_again(&self) {
        if self.owes() && self.owed.swap(false, Ordering::SeqCst) {
            self.signal();
        }
    }

    /// A chain that was taken comes back, with the number of bytes that were written into it; or untouched.
    pub fn give_back(&self, body: Box<Body>, written: Option<u32>) {
        let mut used = lock(&self.used);
        let signal = match written {
            _ if self.closed.load(Ordering::SeqCst) => Ok(false),
            Some(written) => {
                self.places[usize::from(body.head)].store(0, Ordering::SeqCst);
                let written = written.min(body.writable_len);
                self.put(&mut used, body.head, written)
                    .and_then(|()| self.publish(&mut used))
            }
            None => {
                self.return_untouched(&mut used, body.head);
                Ok(false)
            }
        };
        if used.pool.len() < usize::from(self.layout.size) {
            used.pool.push(body);
        }
        drop(used);
        // A ring that is no longer in memory is found by the next round, which has somebody to tell.
        if signal == Ok(true) {
            self.signal();
        }
        self.word.give_back();
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

/// Owes a signal when it is dropped.
struct Owing<'a>(&'a AtomicBool);

impl Drop for Owing<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Used {
    #[inline]
    fn view(&mut self, shared: &Shared) -> Result<&View, QueueError> {
        match &mut self.view {
            Some(view) => Ok(view),
            view => Ok(view.insert(shared.look_up()?)),
        }
    }
}

impl Shared {
    /// Looks the areas up in the map as it is now.
    #[cold]
    pub fn look_up(&self) -> Result<View, QueueError> {
        View::new(self.memory.pin(), &self.layout, u16::MAX)
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
