//! The timer (SDM 12.5.4): a countdown, or a comparison with the time-stamp counter.
//!
//! Ticks are counted from the origin of the injected clock, so that a periodic timer does not drift, whatever its
//! period.

use std::time::Duration;

use super::registers::{DIVIDE_WRITABLE, TimerMode};

const NANOSECONDS: u128 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    // What is configured.
    /// Ticks of the undivided countdown in a second.
    pub hz: u64,
    pub tsc_hz: u64,
    /// A periodic timer asks to be looked at no more often than this many ticks.
    pub min_period: u64,

    // What is plugged in.
    /// The time-stamp counter at the clock's origin.
    pub tsc_base: u64,

    // What the guest can change.
    pub initial: u32,
    pub divide: u32,
    /// The tick at which the count reaches zero. `None` if it has, or is not running.
    pub end: Option<u64>,
    /// IA32_TSC_DEADLINE; zero is disarmed.
    pub tsc_deadline: u64,
    /// The tick of `tsc_hz` at which the counter reaches it, also if it wraps around soon after. `None` if it never does.
    pub tsc_end: Option<u64>,
}

/// Whole ticks of `hz` that fit into `time`.
pub(super) fn ticks(time: Duration, hz: u64) -> u64 {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    saturate(u128::from(nanoseconds) * u128::from(hz) / NANOSECONDS)
}

/// When `tick` has come; `None` if it is later than a clock can tell.
fn time_of(tick: u128, hz: u64) -> Option<Duration> {
    let nanoseconds = tick.checked_mul(NANOSECONDS)?.div_ceil(hz.into());
    u64::try_from(nanoseconds).ok().map(Duration::from_nanos)
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

impl Timer {
    /// Stopped, as after a reset. The time-stamp counter goes on.
    pub fn reset(&mut self) {
        *self = Self {
            initial: 0,
            divide: 0,
            end: None,
            tsc_deadline: 0,
            tsc_end: None,
            ..*self
        };
    }

    /// The same in every mode: nothing runs.
    pub fn disarm(&mut self) {
        self.initial = 0;
        self.end = None;
        self.tsc_deadline = 0;
        self.tsc_end = None;
    }

    fn divisor(&self) -> u64 {
        let code = self.divide >> 1 & 4 | self.divide & 3;
        1 << ((code + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    pub fn tsc(&self, now: Duration) -> u64 {
        self.tsc_base.wrapping_add(ticks(now, self.tsc_hz))
    }

    /// Makes the time-stamp counter read `tsc` at `now`. The deadline is as far away as that says.
    pub fn set_tsc(&mut self, tsc: u64, now: Duration) {
        self.tsc_base = tsc.wrapping_sub(ticks(now, self.tsc_hz));
        self.arm(self.tsc_deadline, now);
    }

    /// Sets IA32_TSC_DEADLINE; zero disarms it.
    pub fn arm(&mut self, deadline: u64, now: Duration) {
        let left = deadline.saturating_sub(self.tsc(now));
        self.tsc_deadline = deadline;
        self.tsc_end = ticks(now, self.tsc_hz).checked_add(left).filter(|_| deadline != 0);
    }

    /// Lets the time up to `now` happen. Whether the timer's interrupt is due: once, also after many periods.
    pub fn advance(&mut self, mode: TimerMode, now: Duration) -> bool {
        match mode {
            TimerMode::TscDeadline => {
                let due = self.tsc_end.is_some_and(|end| ticks(now, self.tsc_hz) >= end);
                if due {
                    (self.tsc_deadline, self.tsc_end) = (0, None);
                }
                due
            }
            TimerMode::OneShot | TimerMode::Periodic => {
                let tick = ticks(now, self.hz);
                let Some(end) = self.end.filter(|end| tick >= *end) else {
                    return false;
                };
                let period = self.period();
                // A period that would end after the clock does never ends: the timer stops.
                self.end = match mode == TimerMode::Periodic && period != 0 {
                    true => ((tick - end) / period + 1)
                        .checked_mul(period)
                        .and_then(|on| end.checked_add(on)),
                    false => None,
                };
                true
            }
            TimerMode::Reserved => false,
        }
    }

    /// When to look at it next.
    pub fn deadline(&self, mode: TimerMode) -> Option<Duration> {
        match mode {
            TimerMode::TscDeadline => time_of(self.tsc_end?.into(), self.tsc_hz),
            TimerMode::OneShot => time_of(self.end?.into(), self.hz),
            TimerMode::Periodic => {
                let (end, period) = (self.end?, self.period().max(1));
                let skipped = self.min_period.saturating_sub(period).div_ceil(period);
                let skipped = u128::from(skipped) * u128::from(period);
                time_of(u128::from(end) + skipped, self.hz)
            }
            TimerMode::Reserved => None,
        }
    }

    /// Current Count.
    pub fn current(&self, now: Duration) -> u32 {
        let left = self.left(now).unwrap_or(0);
        u32::try_from(left.div_ceil(self.divisor())).unwrap_or(u32::MAX)
    }

    /// Ticks until the count reaches zero.
    pub fn left(&self, now: Duration) -> Option<u64> {
        Some(self.end?.saturating_sub(ticks(now, self.hz)))
    }

    /// The most that can be left.
    pub fn most_left(&self) -> u64 {
        u64::from(u32::MAX) * self.divisor()
    }

    /// Starts to count down; from zero, stops.
    pub fn start(&mut self, initial: u32, now: Duration) {
        self.initial = initial;
        let end = ticks(now, self.hz).checked_add(self.period());
        self.end = end.filter(|_| initial != 0);
    }

    /// The count goes on from where it is, at the new rate.
    pub fn set_divide(&mut self, divide: u32, now: Duration) {
        let current = self.current(now);
        self.divide = divide & DIVIDE_WRITABLE;
        if self.end.is_some() {
            let left = u64::from(current) * self.divisor();
            self.end = ticks(now, self.hz).checked_add(left);
        }
    }
}
