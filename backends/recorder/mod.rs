//! A recorder of everything that devices signal, for tests and for a look at what a device really does.
//!
//! A [`Recorder`] hands out named lines of every kind that a device can ask for, and keeps one ordered log of what is
//! done to them. A line stands alone, or is wrapped around the line of another backend and passes everything on:
//!
//! | for | stands alone | over another backend |
//! |---|---|---|
//! | [`Interrupt`] | [`edge`](Recorder::edge) | [`wrap_edge`](Recorder::wrap_edge) |
//! | [`LevelInterrupt`] | [`level`](Recorder::level) | [`wrap_level`](Recorder::wrap_level) |
//! | [`MsiSink`] | [`sink`](Recorder::sink) | [`wrap_sink`](Recorder::wrap_sink) |
//! | [`MsiVectors`] | [`vectors`](Recorder::vectors) | [`wrap_vectors`](Recorder::wrap_vectors) |
//!
//! What the log knows of one line, and the means to let its calls fail, are its [`Line`].
//!
//! ```
//! use devisor::backends::recorder::{Awaited, Recorder};
//! use devisor::interrupt::{Interrupt, LevelInterrupt};
//! use std::time::Duration;
//!
//! let recorder = Recorder::new();
//! let uart = recorder.level("uart");
//! let device = uart.clone(); // any device: it knows an `impl LevelInterrupt` and no more
//! let worker = std::thread::spawn(move || device.trigger());
//!
//! let rise = uart.line().wait_for(Awaited::Raised, 1, Duration::from_secs(10))?;
//! assert_eq!(&*rise.line, "uart");
//! assert!(uart.line().is_up());
//! worker.join().unwrap()?;
//!
//! uart.line().fail_next();
//! assert!(uart.clear().is_err());
//! uart.clear()?;
//! assert_eq!(uart.line().counts().failed, 1);
//! println!("{recorder}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod event;
mod lines;
mod log;
mod timeline;
mod vcd;

use std::{
    fmt, io,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

pub use event::{Action, Awaited, Counts, Event, Outcome, WaitError};
pub use lines::{AnyDoorbell, RecordedEdge, RecordedLevel, RecordedSink, RecordedVectors};
use log::{Kind, Log, Snapshot};

use crate::{
    interrupt::{Interrupt, LevelInterrupt, MsiSink, MsiVectors, NoInterrupt, SinkVectors},
    sync::lock,
    time::Clock,
};

/// Hands out named lines, and keeps the log of what is done to them. Clones share the log.
///
/// *Order*: events are logged in the order in which the calls began; an event whose inner line has not returned yet
/// is [`Outcome::Pending`]. No lock is held while an inner line or the clock is called.
///
/// *Names* are unique: a name that is taken gets a number (`uart`, `uart.2`, `uart.3`).
///
/// *Memory* is bounded: the log keeps the last [`capacity`](Builder::capacity) events, drops the oldest first and
/// counts what it [`dropped`](Self::dropped). Counts and levels stay right.
///
/// It prints as a timeline, time running down and a column for each line, and [`write_vcd`](Self::write_vcd) gives
/// the same as a waveform.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Option<Arc<dyn Clock>>,
    log: Mutex<Log>,
    /// Told of every event whose outcome is known.
    news: Condvar,
}

/// How a [`Recorder`] is made: see [`Recorder::builder`].
pub struct Builder {
    clock: Option<Arc<dyn Clock>>,
    capacity: usize,
}

/// The record of one line: its events, its counts, its level, and the means to let its calls fail.
#[derive(Clone)]
pub struct Line {
    shared: Arc<Shared>,
    lane: usize,
    name: Arc<str>,
}

/// How much of the log a [`WaitError`] prints.
const EVENTS_IN_ERROR: usize = 60;

impl Recorder {
    /// A recorder without a clock: the time of an event is its position in the log, which makes logs comparable.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A recorder to be configured.
    ///
    /// ```
    /// use devisor::{backends::recorder::Recorder, interrupt::Interrupt, time::ManualClock};
    /// use std::{sync::Arc, time::Duration};
    ///
    /// let clock = Arc::new(ManualClock::default());
    /// let recorder = Recorder::builder().clock(clock.clone()).capacity(1000).build();
    /// let kick = recorder.edge("kick");
    /// clock.advance(Duration::from_micros(5));
    /// kick.trigger()?;
    /// assert_eq!(recorder.events()[0].time, Duration::from_micros(5));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn builder() -> Builder {
        Builder {
            clock: None,
            capacity: Builder::DEFAULT_CAPACITY,
        }
    }

    /// An edge line that leads nowhere.
    pub fn edge(&self, name: &str) -> RecordedEdge {
        self.wrap_edge(name, NoInterrupt)
    }

    /// A level line that leads nowhere. It is down.
    pub fn level(&self, name: &str) -> RecordedLevel {
        self.wrap_level(name, NoInterrupt)
    }

    /// A sink that takes every message.
    pub fn sink(&self, name: &str) -> RecordedSink {
        self.wrap_sink(name, AnyDoorbell)
    }

    /// Vectors that take every message: as many as are asked for. Their lines are `name.0`, `name.1` and so on; the
    /// line of a vector that was dropped is taken by the next one.
    pub fn vectors(&self, name: &str) -> RecordedVectors {
        self.wrap_vectors(name, SinkVectors::new(Arc::new(AnyDoorbell)))
    }

    /// Records what goes to the edge line `inner`, and passes it on.
    pub fn wrap_edge<I: Interrupt>(&self, name: &str, inner: I) -> RecordedEdge<I> {
        RecordedEdge::new(self.add(name, Kind::Edge), inner)
    }

    /// Records what goes to the level line `inner`, which is down, and passes it on.
    pub fn wrap_level<L: LevelInterrupt>(&self, name: &str, inner: L) -> RecordedLevel<L> {
        RecordedLevel::new(self.add(name, Kind::Level), inner)
    }

    /// Records the messages that go to `inner`, and passes them on.
    pub fn wrap_sink<S: MsiSink>(&self, name: &str, inner: S) -> RecordedSink<S> {
        RecordedSink::new(self.add(name, Kind::Message), inner)
    }

    /// Records what goes to the vectors of `inner`, and passes it on. Lines as of [`vectors`](Self::vectors).
    pub fn wrap_vectors<V: MsiVectors>(&self, name: &str, inner: V) -> RecordedVectors<V> {
        RecordedVectors::new(self.clone(), name, inner)
    }

    /// The line of this name.
    pub fn line(&self, name: &str) -> Option<Line> {
        let log = lock(&self.shared.log);
        let lane = log.lanes().iter().position(|lane| &*lane.name == name)?;
        let name = Arc::clone(&log.lanes()[lane].name);
        drop(log);
        let shared = Arc::clone(&self.shared);
        Some(Line { shared, lane, name })
    }

    /// All events that the log still has, oldest first.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.shared.log).events(None)
    }

    /// The sum over all lines.
    pub fn counts(&self) -> Counts {
        lock(&self.shared.log).counts(None)
    }

    /// How many events the log has dropped because it was full: the oldest ones.
    pub fn dropped(&self) -> u64 {
        lock(&self.shared.log).dropped()
    }

    /// Waits for the `nth` awaited event of any line, counted from 1 and from the first event of the recorder. Returns
    /// at once if it has come already. Sleeps, and does not poll.
    ///
    /// # Errors
    /// [`WaitError`] if it does not come within `timeout` of host time, or the log has dropped it already.
    pub fn wait_for(&self, awaited: Awaited, nth: u64, timeout: Duration) -> Result<Event, WaitError> {
        self.shared.wait_for(None, awaited, nth, timeout)
    }

    /// Writes the log as a value change dump (IEEE 1364-2005, clause 18), which waveform viewers open.
    ///
    /// A level line is a wire and an edge line an event. A sink or vector is a scope with an event `sent` and the
    /// registers `address`, `data` and `requester` as last sent. Every line has an event `NAME_failed`. One unit is a
    /// nanosecond; events that the clock puts at one instant are written one nanosecond apart, so that none hides
    /// another. Where a name has characters that viewers stumble over, they become `_`.
    ///
    /// # Errors
    /// What `writer` answered.
    pub fn write_vcd(&self, writer: &mut impl io::Write) -> io::Result<()> {
        vcd::write(&self.snapshot(), writer)
    }

    fn add(&self, name: &str, kind: Kind) -> Line {
        let (lane, name) = lock(&self.shared.log).add(name, kind);
        let shared = Arc::clone(&self.shared);
        Line { shared, lane, name }
    }

    fn snapshot(&self) -> Snapshot {
        lock(&self.shared.log).snapshot(usize::MAX)
    }
}

impl Builder {
    /// How many events a log keeps unless told: 65536.
    pub const DEFAULT_CAPACITY: usize = 1 << 16;

    /// The clock that tells the times of events: a [`HostClock`](crate::time::HostClock) for a real guest, a
    /// [`ManualClock`](crate::time::ManualClock) for a test of timing. It is read from every thread that signals. A
    /// time that is less than that of the event before is replaced by it.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// How many events the log keeps, at least one.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// The recorder.
    pub fn build(self) -> Recorder {
        let Self { clock, capacity } = self;
        Recorder {
            shared: Arc::new(Shared {
                log: Mutex::new(Log::new(capacity.max(1), clock.is_some())),
                clock,
                news: Condvar::new(),
            }),
        }
    }
}

impl Line {
    /// Its name, unique within the recorder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its events that the log still has, oldest first.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.shared.log).events(Some(self.lane))
    }

    /// How many events it had.
    pub fn counts(&self) -> Counts {
        lock(&self.shared.log).counts(Some(self.lane))
    }

    /// Whether it is a level line that is up.
    pub fn is_up(&self) -> bool {
        lock(&self.shared.log).lanes()[self.lane].up
    }

    /// [`Recorder::wait_for`], of this line alone.
    ///
    /// # Errors
    /// As there.
    pub fn wait_for(&self, awaited: Awaited, nth: u64, timeout: Duration) -> Result<Event, WaitError> {
        self.shared.wait_for(Some(self), awaited, nth, timeout)
    }

    /// Lets the next call fail, and no other.
    pub fn fail_next(&self) {
        self.fail_nth(1);
    }

    /// Lets the `nth` call from now fail, and no other: 1 is the next. Calls of every kind count. Replaces what was
    /// told before.
    pub fn fail_nth(&self, nth: u64) {
        lock(&self.shared.log).fail(self.lane, nth, false);
    }

    /// Lets the `nth` call from now and all after it fail until [`heal`](Self::heal). Replaces what was told before.
    pub fn fail_from(&self, nth: u64) {
        lock(&self.shared.log).fail(self.lane, nth, true);
    }

    /// Lets all calls fail until [`heal`](Self::heal).
    pub fn fail_always(&self) {
        self.fail_from(1);
    }

    /// Lets calls succeed again.
    pub fn heal(&self) {
        lock(&self.shared.log).heal(self.lane);
    }

    /// Logs the call, lets it fail if it is told to, and makes it otherwise: with no lock held.
    fn record<T>(&self, action: Action, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let now = self.shared.clock.as_ref().map(|clock| clock.now());
        let begun = lock(&self.shared.log).begin(self.lane, action, now);
        let result = match begun {
            Some(number) => {
                let result = call();
                let outcome = match &result {
                    Ok(_) => Outcome::Delivered,
                    Err(error) => Outcome::Refused(error.kind()),
                };
                lock(&self.shared.log).finish(number, self.lane, action, outcome);
                result
            }
            None => Err(io::Error::other(format!(
                "recorder: {} was told to fail here",
                self.name
            ))),
        };
        self.shared.news.notify_all();
        result
    }
}

impl Shared {
    fn wait_for(&self, line: Option<&Line>, awaited: Awaited, nth: u64, timeout: Duration) -> Result<Event, WaitError> {
        let lane = line.map(|line| line.lane);
        let of = || line.map_or_else(|| "any line".into(), |line| Arc::clone(&line.name));
        let nth = nth.max(1);
        let (log, _) = self
            .news
            .wait_timeout_while(lock(&self.log), timeout, |log| log.seen(lane, awaited) < nth)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let seen = log.seen(lane, awaited);
        if seen >= nth {
            return log.find(lane, awaited, nth).ok_or_else(|| WaitError::Dropped {
                awaited,
                nth,
                of: of(),
                capacity: log.capacity(),
            });
        }
        let snapshot = log.snapshot(EVENTS_IN_ERROR);
        drop(log);
        Err(WaitError::TimedOut {
            awaited,
            nth,
            of: of(),
            seen,
            timeout,
            log: snapshot.to_string(),
        })
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("counts", &self.counts())
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("clock", &self.clock.is_some())
            .field("capacity", &self.capacity)
            .finish()
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("name", &self.name)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
