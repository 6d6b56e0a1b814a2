//! One thread for the alarms of all timers.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use devisor::time::{Alarm, Clock, HostClock};

/// A panic ends the process, whatever thread it is on.
pub const NOT_POISONED: &str = "no thread survives a panic";

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect(NOT_POISONED)
}

/// What is called when the time has come.
type Expiry = Box<dyn Fn() + Send>;

/// The deadlines of a few timers, on a clock that all of them share.
#[derive(Clone)]
pub struct Timers {
    clock: HostClock,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    deadlines: Mutex<Vec<Option<Duration>>>,
    changed: Condvar,
}

/// Where one timer says when it wants to be called.
pub struct Slot {
    shared: Arc<Shared>,
    number: usize,
}

impl Timers {
    pub fn new() -> Self {
        Self {
            clock: HostClock::starting_at(Duration::ZERO),
            shared: Arc::default(),
        }
    }

    pub fn clock(&self) -> HostClock {
        self.clock
    }

    /// The next timer's slot: `start` takes what to call for each, in the same order.
    pub fn slot(&self) -> Slot {
        let shared = Arc::clone(&self.shared);
        let mut deadlines = lock(&shared.deadlines);
        let number = deadlines.len();
        deadlines.push(None);
        drop(deadlines);
        Slot { shared, number }
    }

    /// Calls each timer when its deadline has passed, from now until the process ends.
    pub fn start(self, expiries: Vec<Expiry>) -> std::io::Result<()> {
        let run = move || {
            loop {
                for number in self.wait() {
                    expiries[number]();
                }
            }
        };
        thread::Builder::new().name("timers".into()).spawn(run).map(drop)
    }

    /// Waits until there is something due, and takes it.
    fn wait(&self) -> Vec<usize> {
        let mut deadlines = lock(&self.shared.deadlines);
        loop {
            let now = self.clock.now();
            let mut due = Vec::new();
            for (number, deadline) in deadlines.iter_mut().enumerate() {
                if deadline.is_some_and(|deadline| deadline <= now) {
                    *deadline = None;
                    due.push(number);
                }
            }
            if !due.is_empty() {
                return due;
            }
            let next = deadlines.iter().flatten().min();
            let patience = next.map_or(Duration::from_secs(3600), |next| *next - now);
            let woken = self.shared.changed.wait_timeout(deadlines, patience);
            deadlines = woken.expect(NOT_POISONED).0;
        }
    }
}

impl Alarm for Slot {
    fn set(&self, deadline: Option<Duration>) {
        let mut deadlines = lock(&self.shared.deadlines);
        deadlines[self.number] = deadline;
        drop(deadlines);
        self.shared.changed.notify_one();
    }
}
