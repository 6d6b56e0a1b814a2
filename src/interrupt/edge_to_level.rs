//! A level line over something that only knows edges.

use std::{fmt, io};

use super::{Interrupt, LevelInterrupt};
use crate::sync::{AtomicU64, Ordering};

/// The device holds the line up.
const UP: u64 = 1 << 0;
/// The guest is owed an edge: the level rose, or outlived the guest's handler, and the edge is not delivered yet.
const OWED: u64 = 1 << 1;

/// Lifts an edge to a level: holds the level, and triggers again when the guest is done and the level is still up.
///
/// *For device authors*: it is a [`LevelInterrupt`] like any other. *For backend authors*: use it where the platform
/// can only signal edges but says when the guest has finished (KVM's resamplefd, an EOI of a software controller), and
/// call [`guest_done`](Self::guest_done) from there. *For who implements the edge below*: extra triggers come; a guest sees
/// them as a spurious interrupt at worst. None is left out.
///
/// No schedule of `trigger`, `clear` and `guest_done` loses an interrupt: while the level is up, an edge is under way to
/// the guest that it has not yet finished, or the last attempt failed and the next call tries again.
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
    /// What the edge answered. The edge stays owed; the next `trigger` or `guest_done` tries again.
    pub fn guest_done(&self) -> io::Result<()> {
        self.change(|state| if state & UP != 0 { state | OWED } else { state });
        self.pay()
    }

    fn change(&self, change: impl Fn(u64) -> u64) {
        let mut state = self.state.load(Ordering::SeqCst);
        while let Err(now) = self
            .state
            .compare_exchange_weak(state, change(state), Ordering::SeqCst, Ordering::SeqCst)
        {
            state = now;
        }
    }

    /// Delivers the edge that is owed, if one is. Only who takes `OWED` off delivers, so two threads never deliver for
    /// one cause; a failure puts it back for the next call, whoever makes it.
    fn pay(&self) -> io::Result<()> {
        if self.state.fetch_and(!OWED, Ordering::SeqCst) & OWED == 0 {
            return Ok(());
        }
        let result = self.edge.trigger();
        if result.is_err() {
            self.change(|state| if state & UP != 0 { state | OWED } else { state });
        }
        result
    }
}

impl<I: Interrupt> Interrupt for EdgeToLevel<I> {
    fn trigger(&self) -> io::Result<()> {
        self.change(|state| if state & UP == 0 { UP | OWED } else { state });
        self.pay()
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
