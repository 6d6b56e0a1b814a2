//! One thread for the alarms of all timers.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
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
    /// The date when it was at zero, counted from the Unix epoch.
    epoch: Duration,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    deadlines: Mutex<Vec<Option<Duration>>>,
    changed: Condvar,
    stopped: AtomicBool,
}

/// Where one timer says when it wants to be called.
pub struct Slot {
    shared: Arc<Shared>,
    number: usize,
}

impl Timers {
    pub fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            clock: HostClock::starting_at(Duration::ZERO),
            epoch: since_epoch.unwrap_or_default(),
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

    /// The same clock as one that shows the date.
    pub fn calendar(&self) -> Calendar {
        Calendar {
            clock: self.clock,
            epoch: self.epoch,
        }
    }

    /// A slot for a timer that goes by that clock.
    pub fn calendar_slot(&self) -> CalendarSlot {
        CalendarSlot {
            slot: self.slot(),
            epoch: self.epoch,
        }
    }

    /// Calls each timer when its deadline has passed, from now until it is stopped or the process ends.
    pub fn start(self, expiries: Vec<Expiry>) -> std::io::Result<Stop> {
        let stop = Stop(Arc::clone(&self.shared));
        let run = move || {
            while let Some(due) = self.wait() {
                due.into_iter().for_each(|number| expiries[number]());
            }
        };
        thread::Builder::new().name("timers".into()).spawn(run)?;
        Ok(stop)
    }

    /// Waits until there is something due, and takes it. `None` when it is stopped.
    fn wait(&self) -> Option<Vec<usize>> {
        let mut deadlines = lock(&self.shared.deadlines);
        while !self.shared.stopped.load(Ordering::SeqCst) {
            let now = self.clock.now();
            let mut due = Vec::new();
            for (number, deadline) in deadlines.iter_mut().enumerate() {
                if deadline.is_some_and(|deadline| deadline <= now) {
                    *deadline = None;
                    due.push(number);
                }
            }
            if !due.is_empty() {
                return Some(due);
            }
            let next = deadlines.iter().flatten().min();
            let patience = next.map_or(Duration::from_secs(3600), |next| *next - now);
            let woken = self.shared.changed.wait_timeout(deadlines, patience);
            deadlines = woken.expect(NOT_POISONED).0;
        }
        None
    }
}

/// Ends the thread of the timers.
pub struct Stop(Arc<Shared>);

impl Stop {
    pub fn stop(self) {
        let _deadlines = lock(&self.0.deadlines);
        self.0.stopped.store(true, Ordering::SeqCst);
        self.0.changed.notify_one();
    }
}

/// The date.
pub struct Calendar {
    clock: HostClock,
    epoch: Duration,
}

impl Clock for Calendar {
    fn now(&self) -> Duration {
        self.epoch + self.clock.now()
    }
}

/// A slot for a timer that goes by the date.
pub struct CalendarSlot {
    slot: Slot,
    epoch: Duration,
}

impl Alarm for CalendarSlot {
    fn set(&self, deadline: Option<Duration>) {
        self.slot
            .set(deadline.map(|deadline| deadline.saturating_sub(self.epoch)));
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
