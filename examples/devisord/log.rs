//! What is said of front ends on stderr: who does wrong again and again fills no disk with it.

use std::{
    cell::Cell,
    fmt::Display,
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use devisor::time::Clock;

/// A line in so much time, in the long run.
const EACH: Duration = Duration::from_secs(1);
/// So many more at once.
const BURST: u32 = 16;

/// Says this on stderr. That nobody hears it is no reason to end.
pub fn say(what: impl Display) {
    let _ = writeln!(io::stderr(), "devisord: {what}");
}

/// Lines on stderr.
pub struct Log {
    clock: Arc<dyn Clock>,
    /// The time that what was said has used up.
    until: Cell<Duration>,
    unsaid: Cell<u64>,
}

impl Log {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            until: Cell::default(),
            unsaid: Cell::default(),
        }
    }

    /// Says this, if there is time for it.
    pub fn say(&self, what: impl Display) {
        let now = self.clock.now();
        let until = self.until.get().max(now);
        if until > now + BURST * EACH {
            self.unsaid.set(self.unsaid.get() + 1);
            return;
        }
        self.until.set(until + EACH);
        match self.unsaid.take() {
            0 => say(what),
            more => say(format_args!("{what} ({more} before it were not said)")),
        }
    }
}
