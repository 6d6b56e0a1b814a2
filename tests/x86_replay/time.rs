//! When it happened: a recording has the host's microseconds, which are between two events, and not those that QEMU's timers
//! read. So a counter that is read gives the answer of *some* moment in between, to the tick.

use std::time::Duration;

/// Between which two moments the next event happened.
#[derive(Clone, Copy, Default)]
pub struct Window {
    pub from: Duration,
    pub to: Duration,
}

/// QEMU starts a counter at a moment between two events as well, and ours starts it at the first of them.
const SLACK: Duration = Duration::from_micros(300);

/// By how much QEMU's main loop may look at a timer too late, where the host runs something else.
pub const LATE: Duration = Duration::from_millis(100);

impl Window {
    pub fn new(from: u64, to: u64) -> Self {
        // A microsecond that was told has not ended.
        Self {
            from: Duration::from_micros(from),
            to: Duration::from_micros(to + 1),
        }
    }

    /// The moments at which a counter may have been read that ours started too early, but not before `now`.
    pub fn moments(self, now: Duration) -> (Duration, Duration) {
        let from = self.from.saturating_sub(SLACK).max(now);
        (from, self.to.max(from))
    }

    /// A timer of ours goes off at `deadline`, and QEMU's did in this window: how late that was.
    pub fn lateness(self, deadline: Duration) -> Result<Duration, String> {
        let late = self.from.saturating_sub(deadline);
        match deadline <= self.to && late <= LATE {
            true => Ok(late),
            false => Err(format!(
                "ours goes off at {deadline:?}, and QEMU's from {:?} to {:?}",
                self.from, self.to
            )),
        }
    }
}
