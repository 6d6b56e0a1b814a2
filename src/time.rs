//! Time, injected: no device and no controller reads the host's clock itself.
//!
//! A device that keeps time is given a [`Clock`] to read and, if it has deadlines, an [`Alarm`] to set. The embedder
//! (or a test) decides what time is, and calls the device back when a deadline has passed.

use std::{
    fmt,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::sync;

/// Tells the time since an origin that the embedder chooses and that stays put. It never runs backwards.
///
/// ```
/// use devisor::time::{Clock, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::new(Duration::from_secs(100));
/// clock.advance(Duration::from_millis(1));
/// assert_eq!(clock.now(), Duration::from_millis(100_001));
/// ```
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Duration;
}

/// Where a device says when it next wants to be called.
///
/// *For device authors*: call [`set`](Self::set) whenever the next deadline changes, with no lock held. *For embedders*:
/// arrange that the device's expiry method runs once the [`Clock`] has reached the deadline; early or twice is
/// harmless, late is merely late. A new deadline replaces the last; `None` means that there is none.
///
/// An expiry uses the alarm up: one that came early, as of a timer that rounds down, is told the deadline again. So an
/// alarm that expires its device from within `set`, however early it is, is told for ever.
///
/// ```
/// use devisor::time::Alarm;
/// use std::{sync::Mutex, time::Duration};
///
/// struct Next(Mutex<Option<Duration>>);
/// impl Alarm for Next {
///     fn set(&self, deadline: Option<Duration>) {
///         *self.0.lock().unwrap() = deadline;
///     }
/// }
///
/// let next = Next(Mutex::new(None));
/// next.set(Some(Duration::from_secs(5)));
/// assert_eq!(*next.0.lock().unwrap(), Some(Duration::from_secs(5)));
/// ```
pub trait Alarm: Send + Sync {
    /// Replaces the deadline, on the same scale as [`Clock::now`].
    fn set(&self, deadline: Option<Duration>);
}

/// An alarm that is a closure.
///
/// The device that is to be called is not there yet when its alarm is made: let the closure say whose the deadline is, and
/// whoever keeps the timers find it by that.
///
/// ```
/// use devisor::{interrupt::NoInterrupt, platform::pl031::Pl031, time::{ManualClock, alarm_from_fn}};
/// use std::{sync::{Arc, mpsc}, time::Duration};
/// # use devisor::bus::BusDevice;
///
/// // A thread of the embedder's keeps the timers, and hears of each new deadline.
/// let (timers, deadlines) = mpsc::channel();
/// let clock = Arc::new(ManualClock::default());
/// let alarm = alarm_from_fn(move |deadline| timers.send(("rtc", deadline)).unwrap_or(()));
/// let rtc = Pl031::new(NoInterrupt, clock.clone(), alarm);
/// # rtc.write(0x04, &60_u32.to_le_bytes());
/// # rtc.write(0x10, &[1, 0, 0, 0]);
/// # rtc.write(0x0c, &[1, 0, 0, 0]);
///
/// // That thread: sleep until the earliest deadline or a new one, then call whoever set it.
/// let (whose, deadline) = deadlines.try_recv()?;
/// assert_eq!((whose, deadline), ("rtc", Some(Duration::from_secs(60))));
/// clock.advance(Duration::from_secs(60));
/// rtc.expire();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn alarm_from_fn<F>(set: F) -> impl Alarm + use<F>
where
    F: Fn(Option<Duration>) + Send + Sync,
{
    struct FromFn<F>(F);

    impl<F: Fn(Option<Duration>) + Send + Sync> Alarm for FromFn<F> {
        fn set(&self, deadline: Option<Duration>) {
            self.0(deadline);
        }
    }

    FromFn(set)
}

/// Deadlines are of no interest: for an embedder that polls the device anyway.
impl Alarm for () {
    fn set(&self, _deadline: Option<Duration>) {}
}

/// An [`Alarm`] as a device drives it: told one deadline at a time, in order, and only what is new. After an expiry, that
/// is any.
pub(crate) struct AlarmOutput<A> {
    /// How many there were.
    expiries: sync::AtomicU64,
    told: Mutex<Told<A>>,
}

/// An alarm, and what it was last told.
struct Told<A> {
    alarm: A,
    deadline: Option<Duration>,
    /// After how many expiries.
    expiries: u64,
}

impl<A: Alarm> AlarmOutput<A> {
    /// The alarm is not set.
    pub(crate) fn new(alarm: A) -> Self {
        Self {
            expiries: sync::AtomicU64::new(0),
            told: Mutex::new(Told {
                alarm,
                deadline: None,
                expiries: 0,
            }),
        }
    }

    /// The alarm has gone off, or somebody says so: it may be used up, and what it was told no longer counts. To be
    /// followed by [`settle`](Self::settle).
    pub(crate) fn expired(&self) {
        self.expiries.fetch_add(1, Ordering::SeqCst);
    }

    /// Tells the alarm what `deadline` reads, or leaves it to the thread that is at it. To be called with nothing locked,
    /// after whatever may have moved the deadline.
    pub(crate) fn settle(&self, deadline: impl Fn() -> Option<Duration>) {
        // Exchanged, not loaded: of an expiry and a thread that has just told, one sees the other.
        let look = || (self.expiries.fetch_add(0, Ordering::SeqCst), deadline());
        loop {
            let mut told = match self.told.try_lock() {
                Ok(told) => told,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let (expiries, now) = look();
            let used_up = told.expiries != expiries && now.is_some();
            if told.deadline != now || used_up {
                told.alarm.set(now);
            }
            (told.expiries, told.deadline) = (expiries, now);
            drop(told);
            // Whoever found the alarm taken had made a change before, which shows here.
            if look() == (expiries, now) {
                return;
            }
        }
    }
}

/// The host's monotonic clock, counted from `origin`. An embedder's choice; nothing in this crate makes one by itself.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    started: Instant,
    origin: Duration,
}

impl HostClock {
    /// A clock that reads `origin` now. For a real-time clock, give the time since the Unix epoch.
    pub fn starting_at(origin: Duration) -> Self {
        Self {
            started: Instant::now(),
            origin,
        }
    }
}

impl Clock for HostClock {
    fn now(&self) -> Duration {
        self.origin.saturating_add(self.started.elapsed())
    }
}

/// A clock that stands still until it is advanced: for tests, and for embedders with virtual time. Whole nanoseconds,
/// 584 years of them.
#[derive(Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that reads `now`.
    pub fn new(now: Duration) -> Self {
        Self(AtomicU64::new(nanoseconds(now)))
    }

    /// Lets `step` pass, up to the last nanosecond that fits: the clock stops there and does not wrap.
    pub fn advance(&self, step: Duration) {
        let step = nanoseconds(step);
        let mut now = self.0.load(Ordering::SeqCst);
        while let Err(moved) =
            self.0
                .compare_exchange_weak(now, now.saturating_add(step), Ordering::SeqCst, Ordering::SeqCst)
        {
            now = moved;
        }
    }

    /// Moves on to `now`; a time that has passed already changes nothing.
    pub fn advance_to(&self, now: Duration) {
        self.0.fetch_max(nanoseconds(now), Ordering::SeqCst);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ManualClock").field(&self.now()).finish()
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: Clock + ?Sized> Clock for $pointer {
            fn now(&self) -> Duration {
                (**self).now()
            }
        }

        impl<T: Alarm + ?Sized> Alarm for $pointer {
            fn set(&self, deadline: Option<Duration>) {
                (**self).set(deadline)
            }
        }
    )*};
}

forward!(&T, Box<T>, Arc<T>);

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64},
        },
        thread,
    };

    use super::{Alarm, AlarmOutput, Duration, Ordering};

    /// A timer that goes off once for each time that it is set.
    struct OneShot(Arc<AtomicBool>);

    impl Alarm for OneShot {
        fn set(&self, deadline: Option<Duration>) {
            self.0.store(deadline.is_some(), Ordering::SeqCst);
        }
    }

    #[test]
    fn loom_an_expiry_that_comes_early_while_others_tell_leaves_the_alarm_set() {
        loom::model(|| {
            let armed = Arc::new(AtomicBool::new(false));
            let output = Arc::new(AlarmOutput::new(OneShot(armed.clone())));
            // The device's lock: whoever takes it sees what was done before.
            let device = Arc::new(AtomicU64::new(1));
            let deadline = move || Some(Duration::from_secs(device.fetch_add(0, Ordering::SeqCst)));
            output.settle(&deadline);
            let (other, look) = (output.clone(), deadline.clone());
            let other = thread::spawn(move || other.settle(look));
            // It goes off early.
            armed.store(false, Ordering::SeqCst);
            output.expired();
            deadline();
            output.settle(deadline);
            other.join().unwrap();
            assert!(armed.load(Ordering::SeqCst), "used up, and nobody sets it again");
        });
    }
}
