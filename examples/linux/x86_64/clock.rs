//! The guest's time: how far its cores have come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use devisor::time::Clock;
use rsemu::core::sched::TickCursor;

/// Ticks of a core in a second, of its time-stamp counter and of its local APIC's timer: a tick is a nanosecond.
pub const HZ: u64 = 1_000_000_000;

/// How far one core is: what it ran, which it publishes before each access to a device, and what it slept.
#[derive(Default)]
pub struct Position {
    /// Where it is while it runs.
    pub cursor: TickCursor,
    ran: AtomicU64,
    slept: AtomicU64,
}

impl Position {
    pub fn ticks(&self) -> u64 {
        self.cursor.get() + self.slept.load(Ordering::SeqCst)
    }

    /// It has run by so many.
    pub fn ran(&self, ticks: u64) {
        self.cursor.set(self.ran.fetch_add(ticks, Ordering::SeqCst) + ticks);
    }

    pub fn sleep(&self, ticks: u64) {
        self.slept.fetch_add(ticks, Ordering::SeqCst);
    }
}

/// The time of the core that runs. Cores take turns, and one whose turn it is may be behind the one before it: the time that was
/// once told does not go back.
pub struct GuestClock {
    pub cores: Vec<Position>,
    running: AtomicUsize,
    told: AtomicU64,
}

impl GuestClock {
    pub fn new(cores: usize) -> Self {
        Self {
            cores: (0..cores).map(|_| Position::default()).collect(),
            running: AtomicUsize::new(0),
            told: AtomicU64::new(0),
        }
    }

    /// It is the turn of this core.
    pub fn turn(&self, core: usize) {
        self.running.store(core, Ordering::SeqCst);
    }

    pub fn ticks(&self) -> u64 {
        let now = self.cores[self.running.load(Ordering::SeqCst)].ticks();
        self.told.fetch_max(now, Ordering::SeqCst).max(now)
    }
}

impl Clock for GuestClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.ticks())
    }
}

/// The same time for a clock that shows the date.
pub struct Calendar {
    pub clock: Arc<GuestClock>,
    /// The date that it begins with, counted from the Unix epoch.
    pub epoch: Duration,
}

impl Clock for Calendar {
    fn now(&self) -> Duration {
        self.epoch + self.clock.now()
    }
}
