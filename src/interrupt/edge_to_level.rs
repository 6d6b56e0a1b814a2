//! A level line over something that only knows edges.

use std::{fmt, io};

use super::{Interrupt, LevelInterrupt};
use crate::sync::{AtomicU64, Ordering};

/// The device holds the line up.
const UP: u64 = 1 << 0;
/// The level outlived the guest's handler, and the edge that says so was refused.
const OWED: u64 = 1 << 1;
/// Above the two, calls of `trigger` are counted: who fails to deliver an edge sees whether others relied on it.
const CALL: u64 = 1 << 2;

/// Lifts an edge to a level: holds the level, and triggers again when the guest is done and the level is still up.
///
/// *For device authors*: it is a [`LevelInterrupt`] like any other. *For backend authors*: use it where the platform
/// can only signal edges but says when the guest has finished (KVM's resamplefd, an EOI of a software controller), and
/// call [`guest_done`](Self::guest_done) from there. *For who implements the edge below*: extra triggers come; a guest sees
/// them as a spurious interrupt at worst. None is left out.
///
/// No schedule of `trigger`, `clear` and `guest_done` loses an interrupt: while the level is up, an edge is under way to
/// the guest that it has not yet finished, or the last attempt failed, somebody was told so, and the next call tries again.
/// A `trigger` that fails has not raised the level.
///
/// ```
/// use devisor::interrupt::{EdgeToLevel, Interrupt, LevelInterrupt, from_fn};
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// let edges = AtomicU32::new(0);
/// let line = EdgeToLevel::new(from_fn(|| {
///     edges.fetch_add(1, Ordering::SeqCst);
///     Ok(())
/// }));
///
/// line.trigger()?;
/// line.trigger()?;
/// assert_eq!(edges.load(Ordering::SeqCst), 1, "the level rose once");
/// line.guest_done()?;
/// assert_eq!(edges.load(Ordering::SeqCst), 2, "the guest finished, but the device is not satisfied");
/// line.clear()?;
/// line.guest_done()?;
/// assert_eq!(edges.load(Ordering::SeqCst), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct EdgeToLevel<I> {
    edge: I,
    state: AtomicU64,
}

impl<I: Interrupt> EdgeToLevel<I> {
    /// A level line that is down, over `edge`.
    pub fn new(edge: I) -> Self {
        Self {
            edge,
            state: AtomicU64::new(0),
        }
    }

    /// The edge below.
    pub fn edge(&self) -> &I {
        &self.edge
    }

    /// Whether the level is up.
    pub fn is_up(&self) -> bool {
        self.state.load(Ordering::SeqCst) & UP != 0
    }

    /// The guest has finished an interrupt: an edge follows if the level is still up. Call it after every EOI, from
    /// any thread; one too many does no harm.
    ///
    /// # Errors
    /// What the edge answered. The edge stays owed, and the next `trigger` or `guest_done` tries again. Do not wait for
    /// the device to make that call: to it, the level is up and there is nothing to add.
    pub fn guest_done(&self) -> io::Result<()> {
        let before = self.change(|state| state & !OWED);
        if before & UP == 0 {
            return Ok(());
        }
        self.deliver(before, |state| state | OWED)
    }

    /// Delivers an edge. A refusal is tried again for those who have called `trigger` since `claimed` and left it at that,
    /// and otherwise noted by `refused`, if the level is still up.
    fn deliver(&self, mut claimed: u64, refused: impl Fn(u64) -> u64) -> io::Result<()> {
        loop {
            let Err(error) = self.edge.trigger() else {
                return Ok(());
            };
            let alone = |state: u64| state / CALL == claimed / CALL;
            let before = self.change(|state| match state & UP {
                0 => state,
                _ if alone(state) => refused(state),
                _ => state,
            });
            if before & UP == 0 || alone(before) {
                return Err(error);
            }
            claimed = before;
        }
    }

    /// Changes the state in one atomic step, and returns what it was.
    fn change(&self, change: impl Fn(u64) -> u64) -> u64 {
        let mut state = self.state.load(Ordering::SeqCst);
        loop {
            match self
                .state
                .compare_exchange_weak(state, change(state), Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return state,
                Err(now) => state = now,
            }
        }
    }
}

impl<I: Interrupt> Interrupt for EdgeToLevel<I> {
    fn trigger(&self) -> io::Result<()> {
        // Counted, so exchanged, also when the level is up: who then takes it down and looks for work must see what the
        // device did before it came here.
        let raise = |state: u64| ((state | UP) & !OWED).wrapping_add(CALL);
        let before = self.change(raise);
        match (before & UP != 0, before & OWED != 0) {
            // An edge is with the guest, or on its way there.
            (true, false) => Ok(()),
            (true, true) => self.deliver(raise(before), |state| state | OWED),
            (false, _) => self.deliver(raise(before), |state| state & !(UP | OWED)),
        }
    }
}

impl<I: Interrupt> LevelInterrupt for EdgeToLevel<I> {
    fn clear(&self) -> io::Result<()> {
        self.state.fetch_and(!(UP | OWED), Ordering::SeqCst);
        Ok(())
    }
}

impl<I> fmt::Debug for EdgeToLevel<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load(Ordering::SeqCst);
        f.debug_struct("EdgeToLevel")
            .field("up", &(state & UP != 0))
            .field("owed", &(state & OWED != 0))
            .finish_non_exhaustive()
    }
}
