//! The device's end of a level line: a set of causes from which the line is derived, delivered without a lock.

use std::{fmt, io, mem};

use super::LevelInterrupt;
use crate::sync::{AtomicU64, Ordering};

/// Somebody is telling the line its level now; whoever changes a cause meanwhile leaves the telling to them.
const BUSY: u64 = 1 << 63;
/// The level that the line was last told.
const TOLD: u64 = 1 << 62;
/// Somebody came while the line was being told, and left it at that: a refusal is to be tried again for them.
const AGAIN: u64 = 1 << 61;
/// There was no cause since the line was told that it is up: if there is one again, fall and rise are still to be told.
const FELL: u64 = 1 << 60;

/// Derives a level line from a set of causes: the line is up while any cause is.
///
/// A device that computes its level under a lock must not call its line there (the backend may call back into the
/// device), and must not call it after the unlock either (two threads would race, and the stale one could win and
/// leave the line stuck). This type settles it: causes change with [`update`](Self::update), which calls nobody and
/// is safe under any lock; [`settle`](Self::settle), called after the unlock, tells the line. One thread at a time does
/// the telling and goes on until line and causes agree; others that come meanwhile return at once. So
///
/// - the line hears transitions, never repeats, and always in order;
/// - a rise after a fall is heard, also if the fall had not been told by then: an input that takes edges, or that wakes
///   somebody who has looked since, would miss it otherwise. Of several such pairs one is heard;
/// - when all calls have returned, the line is what the causes say;
/// - no lock is held while the line is called, so the line may call back, even into this output.
///
/// *For device authors*: keep one of these per line, and call [`set`](Self::set) from the one place that derives it.
/// *For who implements the line*: your `trigger` and `clear` alternate, one at a time.
///
/// A `trigger` or `clear` that fails is told again by the next `settle`; [`failures`](Self::failures) counts them.
///
/// ```
/// use devisor::interrupt::{LevelOutput, level_from_fn};
/// use std::sync::Mutex;
///
/// let heard = Mutex::new(Vec::new());
/// let output = LevelOutput::new(level_from_fn(|up| Ok(heard.lock().unwrap().push(up))));
///
/// const TX: u64 = 1 << 0;
/// const RX: u64 = 1 << 1;
/// for causes in [TX, TX | RX, RX, 0, 0] {
///     output.update(|_| causes);
///     output.settle()?;
/// }
/// assert_eq!(*heard.lock().unwrap(), [true, false]);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct LevelOutput<L> {
    line: L,
    /// Causes and notes, and above them `FELL`, `AGAIN`, `TOLD` and `BUSY`: one word, so that a change of a cause and the decision
    /// who tells the line are one step.
    state: AtomicU64,
    failures: AtomicU64,
}

impl<L: LevelInterrupt> LevelOutput<L> {
    /// The bits that are causes: each of them alone holds the line up.
    pub const CAUSES: u64 = (1 << 48) - 1;
    /// Bits that the owner may use for whatever must change in one step with the causes. They do not move the line.
    pub const NOTES: u64 = (FELL - 1) & !Self::CAUSES;

    /// An output without a cause, over a `line` that is down.
    pub fn new(line: L) -> Self {
        Self {
            line,
            state: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// The line behind this output.
    pub fn line(&self) -> &L {
        &self.line
    }

    /// The causes and notes as they are now.
    #[inline]
    pub fn bits(&self) -> u64 {
        self.state.load(Ordering::SeqCst) & (Self::CAUSES | Self::NOTES)
    }

    /// Whether any cause holds the line up. The line itself may not have been told yet.
    pub fn is_up(&self) -> bool {
        self.bits() & Self::CAUSES != 0
    }

    /// How often the line refused to be told.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Changes causes and notes in one atomic step, and returns what they were. Does not call the line: follow it
    /// with [`settle`](Self::settle) once your locks are released. `change` may run more than once.
    pub fn update(&self, mut change: impl FnMut(u64) -> u64) -> u64 {
        let bits = Self::CAUSES | Self::NOTES;
        let mut state = self.state.load(Ordering::SeqCst);
        loop {
            // Exchanged also when nothing changes: who then takes the cause away and looks for work must see what the
            // device did before it came here. A plain load could run ahead of that.
            let mut new = state & !bits | change(state & bits) & bits;
            let falls = state & Self::CAUSES != 0 && new & Self::CAUSES == 0;
            if falls && state & (BUSY | TOLD) != 0 {
                new |= FELL;
            }
            match self
                .state
                .compare_exchange_weak(state, new, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return state & bits,
                Err(now) => state = now,
            }
        }
    }

    /// [`update`](Self::update) for a device with one cause.
    pub fn set(&self, up: bool) {
        self.update(|notes| notes & Self::NOTES | u64::from(up));
    }

    /// Tells the line its level, if it was last told another.
    ///
    /// A thread that finds another one telling returns `Ok`, and the other tells also for it: a refusal is then tried
    /// again, so that one failure costs one signal. So the line may be told a moment after this has returned, and a guest
    /// whose acknowledgement falls into that moment sees the level once more.
    ///
    /// The telling ends when nobody has come meanwhile. A line that calls back and *always* undoes what it was just
    /// told, or refuses, is told for ever.
    ///
    /// # Errors
    /// What the line answered. The causes stand, and the next `settle` tells it again.
    #[inline]
    pub fn settle(&self) -> io::Result<()> {
        match self.is_settled() {
            true => Ok(()),
            false => self.settle_now(),
        }
    }

    #[inline(never)]
    fn settle_now(&self) -> io::Result<()> {
        let mut state = self.state.load(Ordering::SeqCst);
        loop {
            if Self::agrees(state) {
                return Ok(());
            }
            let (mark, new) = match state & BUSY {
                0 => (BUSY, (state | BUSY) & !FELL),
                _ => (AGAIN, state | AGAIN),
            };
            match self
                .state
                .compare_exchange_weak(state, new, Ordering::SeqCst, Ordering::SeqCst)
            {
                // The other thread cannot let go before it has seen the causes as they are now: see the exchange below.
                Ok(_) if mark == AGAIN => return Ok(()),
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        self.tell(state)
    }

    /// Whether the line was told what the causes say, so that there is nothing to [`settle`](Self::settle).
    #[inline]
    pub fn is_settled(&self) -> bool {
        Self::agrees(self.state.load(Ordering::SeqCst))
    }

    /// Tells the line until it and the causes agree, beginning with what `state` says. `BUSY` is ours.
    fn tell(&self, mut state: u64) -> io::Result<()> {
        let bits = Self::CAUSES | Self::NOTES;
        let mut teller = Teller {
            state: &self.state,
            told: state & TOLD,
        };
        loop {
            let up = state & Self::CAUSES != 0;
            teller.told |= state & FELL;
            let result = teller.tell(&self.line, up);
            if result.is_err() {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
            // Only `bits`, `FELL` and `AGAIN` can have changed under us. If they did, somebody may have left the telling to us:
            // look again, also after a failure, for theirs is the later signal that is to carry the lost one.
            let held = state & (bits | TOLD) | BUSY;
            match self
                .state
                .compare_exchange(held, state & bits | teller.told, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => {
                    mem::forget(teller);
                    return result;
                }
                Err(_) => state = self.state.fetch_and(!(AGAIN | FELL), Ordering::SeqCst),
            }
        }
    }

    /// [`set`](Self::set) and [`settle`](Self::settle): for a device that holds no lock.
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    pub fn drive(&self, up: bool) -> io::Result<()> {
        self.set(up);
        self.settle()
    }

    #[inline]
    fn agrees(state: u64) -> bool {
        let told = match state & Self::CAUSES {
            0 => 0,
            _ => TOLD,
        };
        // A fall that is not told, before a rise or for good, is what has to be.
        state & (BUSY | TOLD | FELL) == told
    }
}

/// Holds `BUSY` while the line is called. Dropped only if the line panics: that call counts as refused, and the next
/// `settle` tells the line again. Without it, one panic would leave the line as it is for ever.
struct Teller<'a> {
    state: &'a AtomicU64,
    /// What the line was last told: `TOLD` if that is up, and with it `FELL` if a fall is to come before anything else.
    told: u64,
}

impl Teller<'_> {
    fn tell(&mut self, line: &impl LevelInterrupt, up: bool) -> io::Result<()> {
        if self.told & TOLD != 0 && (!up || self.told & FELL != 0) {
            line.clear()?;
        } else if self.told & TOLD != 0 {
            return Ok(());
        }
        self.told = 0;
        if up {
            line.trigger()?;
            self.told = TOLD;
        }
        Ok(())
    }
}

impl Drop for Teller<'_> {
    fn drop(&mut self) {
        self.state.fetch_or(self.told, Ordering::SeqCst);
        self.state
            .fetch_and(!(BUSY | AGAIN | TOLD) | self.told & TOLD, Ordering::SeqCst);
    }
}

impl<L> fmt::Debug for LevelOutput<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelOutput")
            .field("state", &format_args!("{:#x}", self.state.load(Ordering::SeqCst)))
            .field("failures", &self.failures.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
