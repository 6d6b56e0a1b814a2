//! Three counters and port B, on one count of ticks.

use std::time::Duration;

use super::{counter::CounterState, registers::*};

/// Ticks of a clock. What is beyond two hundred thousand years of them stands still.
pub(super) const MAX_TICKS: u64 = 1 << 62;

pub(super) fn host_ticks(now: Duration) -> u64 {
    let ticks = now.as_nanos().saturating_mul(TICKS.into()) / u128::from(NANOSECONDS);
    u64::try_from(ticks).unwrap_or(u64::MAX).min(MAX_TICKS)
}

/// The first nanosecond of a tick.
fn time_of(ticks: u64) -> Duration {
    let nanoseconds = (u128::from(ticks) * u128::from(NANOSECONDS)).div_ceil(TICKS.into());
    let second = 1_000_000_000;
    Duration::new((nanoseconds / second) as u64, (nanoseconds % second) as u32)
}

#[derive(Debug)]
pub(super) struct Model {
    /// The tick of the clock up to which everything has happened.
    pub(super) host: u64,
    /// The same as the counters count it: ticks since the timer was made, over all saves and restores.
    pub(super) now: u64,

    // What the guest can change.
    pub(super) counters: [CounterState; 3],
    /// What was written to port B.
    pub(super) port_b: u8,

    /// OUT of counter 0 has risen, and the line was not told, or has refused.
    pub(super) rose: bool,
}

impl Model {
    pub(super) fn new(host: u64) -> Self {
        Self {
            host,
            now: 0,
            counters: [true, true, false].map(CounterState::new),
            port_b: 0,
            rose: false,
        }
    }

    pub(super) fn reset(&mut self) {
        let Self { host, now, rose, .. } = *self;
        *self = Self {
            now,
            rose,
            ..Self::new(host)
        };
    }

    /// Lets the time up to a tick of the clock happen. One that has passed already is no time.
    pub(super) fn advance(&mut self, host: u64) {
        let before = self.now;
        let elapsed = host.saturating_sub(self.host);
        self.host += elapsed;
        self.now = (before + elapsed).min(MAX_TICKS);
        for (index, counter) in self.counters.iter_mut().enumerate() {
            let rose = counter.advance(before, self.now);
            self.rose |= rose && index == 0;
        }
    }

    pub(super) fn out0(&self) -> bool {
        self.counters[0].out(self.now)
    }

    /// Where the line is derived: the level to tell it next, if it is `up` now.
    pub(super) fn next_level(&mut self, up: bool) -> bool {
        if !self.rose {
            return self.out0();
        }
        self.rose = up;
        !up
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let at = self.counters[0].next_look(self.now)?;
        Some(time_of(self.host.checked_add(at - self.now)?))
    }

    pub(super) fn speaker(&self) -> bool {
        self.port_b & SPEAKER_ENABLE != 0 && self.counters[2].out(self.now)
    }

    pub(super) fn read(&mut self, port: u64) -> u8 {
        match self.counters.get_mut(port as usize) {
            Some(counter) => counter.read(self.now),
            // The control word cannot be read.
            None => 0,
        }
    }

    pub(super) fn write(&mut self, port: u64, value: u8) {
        match self.counters.get_mut(port as usize) {
            Some(counter) => counter.write(value, self.now),
            None => self.write_control(value),
        }
    }

    fn write_control(&mut self, value: u8) {
        let select = value >> SC_SHIFT;
        if select == READ_BACK {
            for (index, counter) in self.counters.iter_mut().enumerate() {
                if value >> (index + 1) & 1 == 0 {
                    continue;
                }
                if value & READ_BACK_COUNT == 0 {
                    counter.latch_count(self.now);
                }
                if value & READ_BACK_STATUS == 0 {
                    counter.latch_status(self.now);
                }
            }
            return;
        }
        let counter = &mut self.counters[usize::from(select)];
        if value >> RW_SHIFT & RW == LATCH {
            counter.latch_count(self.now);
        } else {
            counter.set_format(value);
        }
    }

    pub(super) fn read_port_b(&self) -> u8 {
        let refresh = ((self.now / REFRESH_TICKS) & 1) as u8 * REFRESH;
        let out = u8::from(self.counters[2].out(self.now)) * TIMER_2_OUT;
        self.port_b | refresh | out
    }

    pub(super) fn write_port_b(&mut self, value: u8) {
        self.port_b = value & PORT_B_WRITABLE;
        self.counters[2].set_gate(value & TIMER_2_GATE != 0, self.now);
    }
}
