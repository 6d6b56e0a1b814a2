//! What kicking, serving, completing and stopping agree on about a queue: one atomic word.
//!
//! One thread serves a queue at a time. A kick marks the queue; who finds it served may wait, alone, to relieve the server, or
//! leaves the mark, and the server leaves only when no mark is left or it was relieved. A stop lets nobody begin; the queue is
//! *still* once its handler has been told, nobody serves, and no chain that was taken is out. Who does not serve a queue may *hold* it, to
//! look at it: not while it is served, and who begins to serve waits for the moment that this takes.
//!
//! So the word is a lock of the handler and the queue, and there is no other.

use std::fmt;

use super::stillness::Stillness;
use crate::sync::{Arc, AtomicU64, Gate, Ordering};

/// Somebody has something for the queue since it was last looked at.
const KICKED: u64 = 1 << 0;
/// A thread serves the queue.
const SERVED: u64 = 1 << 1;
/// A thread waits for that one to leave, and serves next.
const AWAITED: u64 = 1 << 2;
/// There is a handler.
const RUNS: u64 = 1 << 3;
/// The handler has been told of the stop.
const TOLD: u64 = 1 << 4;
/// A thread that does not serve the queue has it, for a moment: who begins to serve waits for that.
const HELD: u64 = 1 << 5;
/// One chain that was taken and is not done with.
const CHAIN: u64 = 1 << 32;
/// All chains.
const CHAINS: u64 = !(CHAIN - 1);

/// Why a queue is not to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Stop {
    /// The embedder says so.
    Embedder = 1 << 8,
    /// The bus does not let the device at memory.
    Bus = 1 << 9,
    /// The device is being reset.
    Device = 1 << 10,
    /// The queue is being reset or disabled.
    Queue = 1 << 11,
    /// The device needs a reset.
    Broken = 1 << 12,
}

const STOPS: u64 =
    Stop::Embedder as u64 | Stop::Bus as u64 | Stop::Device as u64 | Stop::Queue as u64 | Stop::Broken as u64;

/// What who has come to serve a queue is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// A round. Then [`Word::end`].
    Serve,
    /// Nothing: another thread sees to it, or it is for after a stop.
    Leave,
}

/// What who has served a round is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Another round.
    Again,
    /// Tell the handler of the stop. Then [`Word::told`].
    Tell,
    /// Nothing. Another thread goes on if there is more.
    Leave,
}

/// In a cache line of its own.
#[repr(align(128))]
pub(crate) struct Word {
    bits: AtomicU64,
    /// For who waits to serve.
    turn: Gate,
    stillness: Arc<Stillness>,
}

impl Word {
    pub fn new(stillness: Arc<Stillness>) -> Self {
        Self {
            bits: AtomicU64::new(0),
            turn: Gate::default(),
            stillness,
        }
    }

    /// Which device's it is, for as long as that is there.
    pub fn device(&self) -> usize {
        std::ptr::from_ref(&*self.stillness).addr()
    }

    #[inline]
    fn bits(&self) -> u64 {
        self.bits.load(Ordering::SeqCst)
    }

    /// Replaces the word by what `change` makes of it, or leaves it if that is nothing. What it was.
    fn update(&self, change: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change)
    }

    /// Whether a stopped queue is still.
    #[inline]
    fn still(bits: u64) -> bool {
        bits & STOPS != 0 && (bits & RUNS == 0 || bits & (SERVED | TOLD) == TOLD && bits & CHAINS == 0)
    }

    pub fn is_still(&self) -> bool {
        Self::still(self.bits())
    }

    pub fn runs(&self) -> bool {
        self.bits() & RUNS != 0
    }

    #[inline]
    pub fn is_stopped(&self) -> bool {
        self.bits() & STOPS != 0
    }

    pub fn is_stopped_for(&self, reason: Stop) -> bool {
        self.bits() & reason as u64 != 0
    }

    /// Whether somebody is to look at the queue, and may.
    pub fn is_due(&self) -> bool {
        let bits = self.bits();
        bits & (RUNS | KICKED) == RUNS | KICKED && (bits & STOPS == 0 || bits & CHAINS != 0)
    }

    /// How many chains are out.
    #[inline]
    pub fn chains(&self) -> u64 {
        self.bits() / CHAIN
    }

    /// Tells who waits for stillness, if a change has brought it.
    #[inline]
    fn noticed(&self, before: u64, after: u64) {
        if !Self::still(before) && Self::still(after) {
            self.stillness.reached();
        }
    }

    /// There is a handler from here on, and its queue is to be looked at. No thread serves it.
    pub fn start(&self) {
        let _ = self.update(|bits| {
            // There is nothing yet of which it would have to be told.
            let told = if bits & STOPS != 0 { TOLD } else { 0 };
            Some(bits | RUNS | KICKED | told)
        });
    }

    /// The handler is gone. The queue was still.
    pub fn finish(&self) {
        self.bits.fetch_and(!(RUNS | KICKED | TOLD), Ordering::SeqCst);
    }

    // Serving.

    /// Marks the queue. Follow it with [`begin`](Self::begin), here or elsewhere.
    #[inline]
    pub fn kick(&self) {
        self.bits.fetch_or(KICKED, Ordering::SeqCst);
    }

    /// Takes the queue to serve it, if it is marked. `patient`: waits for the thread that serves it now and relieves that one,
    /// unless another does so already.
    ///
    /// A stopped queue is served only while chains are out, so that what completes them in its rounds can.
    #[inline]
    pub fn begin(&self, patient: bool) -> Begin {
        let taken = self.update(|bits| match () {
            _ if bits & RUNS == 0 || bits & KICKED == 0 => None,
            _ if bits & STOPS != 0 && bits & CHAINS == 0 => None,
            _ if bits & (SERVED | AWAITED) == 0 => Some(bits & !KICKED | SERVED),
            _ if patient && bits & (AWAITED | STOPS) == 0 => Some(bits | AWAITED),
            _ => None,
        });
        match taken {
            Err(_) => Begin::Leave,
            Ok(before) if before & SERVED == 0 => self.serves(before),
            Ok(_) => self.wait_to_serve(),
        }
    }

    /// This thread serves from here on, once nobody else has the queue.
    #[inline]
    fn serves(&self, before: u64) -> Begin {
        if before & HELD != 0 {
            self.turn.wait(|| self.bits() & HELD == 0);
        }
        Begin::Serve
    }

    /// [`kick`](Self::kick) and [`begin`](Self::begin) in one step.
    #[inline]
    pub fn kick_and_begin(&self, patient: impl FnOnce() -> bool) -> Begin {
        let bits = self.bits();
        if bits & (RUNS | STOPS | SERVED | AWAITED | HELD) == RUNS
            && self
                .bits
                .compare_exchange(bits, bits & !KICKED | SERVED, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            return Begin::Serve;
        }
        self.kick_and_begin_among(patient())
    }

    /// The same among others.
    #[cold]
    fn kick_and_begin_among(&self, patient: bool) -> Begin {
        let taken = |bits| match bits & (RUNS | STOPS | SERVED | AWAITED) {
            RUNS => bits & !KICKED | SERVED,
            served if served == RUNS | SERVED && patient => bits | KICKED | AWAITED,
            _ => bits | KICKED,
        };
        let before = self.update(|bits| Some(taken(bits))).unwrap_or_else(|bits| bits);
        match taken(before) & !before {
            new if new & SERVED != 0 => self.serves(before),
            new if new & AWAITED != 0 => self.wait_to_serve(),
            // Marked, for another thread or for later; but a stopped queue whose chains are out is served.
            _ if before & STOPS != 0 => self.begin(false),
            _ => Begin::Leave,
        }
    }

    #[cold]
    fn wait_to_serve(&self) -> Begin {
        self.turn.wait(|| self.bits() & SERVED == 0);
        // Nobody else begins while this is awaited, but for who tells the handler of a stop.
        let taken = self.update(|bits| match bits & (STOPS | SERVED) {
            0 => Some(bits & !(AWAITED | KICKED) | SERVED),
            _ => Some(bits & !AWAITED),
        });
        match taken {
            Ok(before) if before & (STOPS | SERVED) == 0 => self.serves(before),
            _ => Begin::Leave,
        }
    }

    /// After a round. `more`: there is something left. `stay`: go on as long as there is and nobody waits.
    #[inline]
    pub fn end(&self, more: bool, stay: bool) -> End {
        let bits = self.bits();
        if !more
            && bits & (STOPS | AWAITED | KICKED) == 0
            && self
                .bits
                .compare_exchange(bits, bits & !SERVED, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            return End::Leave;
        }
        self.end_among(more, stay)
    }

    /// The same with something to do, or among others.
    fn end_among(&self, more: bool, stay: bool) -> End {
        let kicked = if more { KICKED } else { 0 };
        let ended = self.update(|bits| {
            let bits = bits | kicked;
            match () {
                _ if bits & STOPS != 0 && bits & TOLD == 0 => None,
                _ if bits & (STOPS | AWAITED) != 0 || bits & KICKED == 0 || !stay => Some(bits & !SERVED),
                _ => Some(bits & !KICKED),
            }
        });
        match ended {
            Err(_) => {
                self.bits.fetch_or(kicked, Ordering::SeqCst);
                End::Tell
            }
            Ok(before) => {
                let before = before | kicked;
                if before & (STOPS | AWAITED) == 0 && before & KICKED != 0 && stay {
                    return End::Again;
                }
                if before & AWAITED != 0 {
                    self.turn.knock();
                }
                self.noticed(before, before & !SERVED);
                End::Leave
            }
        }
    }

    /// A round has panicked: whoever comes next serves, and finds the mark of those who relied on this one.
    pub fn abandon(&self) {
        let left = |bits| {
            // The handler cannot be told any more of what has been stopped by now.
            let told = if bits & STOPS != 0 { TOLD } else { 0 };
            bits & !SERVED | KICKED | told
        };
        if let Ok(before) = self.update(|bits| Some(left(bits))) {
            self.turn.knock();
            self.noticed(before, left(before));
        }
    }

    // What is done by who does not serve.

    /// Has the queue to itself, if no thread serves it nor has it: then [`let_go`](Self::let_go) follows, soon, and nothing is waited for
    /// in between.
    pub fn hold(&self) -> bool {
        let held = self.update(|bits| (bits & (SERVED | HELD) == 0).then_some(bits | HELD));
        held.is_ok()
    }

    /// Others may have the queue again.
    pub fn let_go(&self) {
        let before = self.bits.fetch_and(!HELD, Ordering::SeqCst);
        // Who has begun meanwhile waits.
        if before & (SERVED | AWAITED) != 0 {
            self.turn.knock();
        }
    }

    // Stopping.

    /// Lets nobody begin a round from here on. [`End::Tell`]: the handler is to be told, by who has called this; otherwise the
    /// thread that serves does so, or it was told before, and so may be still: who waits for that is to be told with nothing locked.
    pub fn stop(&self, reason: Stop) -> End {
        self.bits.fetch_or(reason as u64, Ordering::SeqCst);
        let taken = self.update(|bits| match bits & (RUNS | SERVED | TOLD) {
            RUNS => Some(bits | SERVED),
            _ => None,
        });
        match taken {
            Ok(before) => {
                self.serves(before);
                End::Tell
            }
            Err(_) => End::Leave,
        }
    }

    /// The handler has been told of the stop. That one may have ended meanwhile: the next is told anew.
    pub fn told(&self) {
        let before = self.update(|bits| (bits & STOPS != 0).then_some(bits | TOLD));
        debug_assert!(before.unwrap_or_else(|bits| bits) & SERVED != 0);
    }

    /// Ends a stop, unless there is another reason. The queue is marked then: who came meanwhile may have found it closed.
    pub fn resume(&self, reason: Stop) {
        let _ = self.update(|bits| {
            let bits = bits & !(reason as u64);
            let mark = if bits & RUNS != 0 { KICKED } else { 0 };
            Some(if bits & STOPS == 0 { bits & !TOLD | mark } else { bits })
        });
    }

    // Chains.

    /// A chain is taken away from the round.
    #[inline]
    pub fn take(&self) {
        self.bits.fetch_add(CHAIN, Ordering::SeqCst);
    }

    /// It is done with, whatever has become of it; and so is its signal.
    #[inline]
    pub fn give_back(&self) {
        let before = self.bits.fetch_sub(CHAIN, Ordering::SeqCst);
        if before & STOPS != 0 {
            self.given_back_under_stop(before);
        }
    }

    #[cold]
    fn given_back_under_stop(&self, before: u64) {
        self.noticed(before, before - CHAIN);
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits();
        let has = |bit| bits & bit != 0;
        f.debug_struct("Word")
            .field("runs", &has(RUNS))
            .field("kicked", &has(KICKED))
            .field("served", &has(SERVED))
            .field("stopped", &has(STOPS))
            .field("chains", &(bits / CHAIN))
            .finish()
    }
}
