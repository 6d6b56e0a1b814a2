//! One counter of the 8254. Time is counted in ticks of CLK, and nothing is stepped: count and output at any tick follow
//! from when the count was loaded.

use super::registers::*;

/// The six modes. Of the eight codes, 6 and 7 mean the same as 2 and 3.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    InterruptOnTerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}
use Mode::*;

/// What a guest can change of a counter. All times are ticks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CounterState {
    /// RW, M and BCD as last written: the low six bits of the status byte.
    pub format: u8,
    /// The level of GATE.
    pub gate: bool,
    /// The count that is being counted down, 1 to 65536; `None` before the first one since the control word.
    pub count: Option<u32>,
    /// A count that was written and waits: for the end of the period, or for a trigger.
    pub next: Option<u32>,
    /// How many ticks of `count` had gone by at `since`.
    pub counted: u64,
    /// Since when it counts; `None` while it does not.
    pub since: Option<u64>,
    /// The first byte of a count of which the second is to come.
    pub low_byte: Option<u8>,
    /// The next read of two gives the high byte.
    pub read_high: bool,
    /// What the counter latch holds.
    pub latched_count: Option<u16>,
    /// What the status latch holds.
    pub latched_status: Option<u8>,
}

impl CounterState {
    /// Mode 0 without a count: OUT is low. The data sheet leaves open what a counter is at power-up.
    pub(super) fn new(gate: bool) -> Self {
        Self {
            format: RW_BOTH << RW_SHIFT,
            gate,
            count: None,
            next: None,
            counted: 0,
            since: None,
            low_byte: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn mode(&self) -> Mode {
        match self.format >> 1 & 7 {
            0 => InterruptOnTerminalCount,
            1 => OneShot,
            2 | 6 => RateGenerator,
            3 | 7 => SquareWave,
            4 => SoftwareStrobe,
            _ => HardwareStrobe,
        }
    }

    pub(super) fn rw(&self) -> u8 {
        self.format >> RW_SHIFT & RW
    }

    fn is_bcd(&self) -> bool {
        self.format & BCD != 0
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode(), RateGenerator | SquareWave)
    }

    /// Whether a rise of GATE starts it, and nothing else.
    fn is_triggered(&self) -> bool {
        matches!(self.mode(), OneShot | HardwareStrobe)
    }

    /// How many ticks of the count have gone by.
    fn elapsed(&self, now: u64) -> u64 {
        self.counted + self.since.map_or(0, |since| now.saturating_sub(since))
    }

    /// Lets time pass up to `now`. Returns whether OUT has risen after `before`, by itself, and no later than `now`.
    pub(super) fn advance(&mut self, before: u64, now: u64) -> bool {
        let mut rose = self.next_rise(before).is_some_and(|rise| rise <= now);
        if let (true, Some(next), Some(end)) = (self.is_periodic(), self.next, self.period_end(before, 1))
            && end <= now
        {
            // A new count takes over at the end of the period in which it was written.
            rose |= !self.out(end - 1);
            (self.count, self.next) = (Some(next), None);
            (self.counted, self.since) = (0, Some(end));
            rose |= self.next_rise(end).is_some_and(|rise| rise <= now);
        }
        rose
    }

    /// When the period ends in which `after` is, or the last of `several` that are looked at as one.
    fn period_end(&self, after: u64, several: u64) -> Option<u64> {
        let period = several * u64::from(self.count?);
        Some(self.since? + (self.elapsed(after) / period + 1) * period - self.counted)
    }

    /// When OUT will next rise by itself, after `after`.
    pub(super) fn next_rise(&self, after: u64) -> Option<u64> {
        let (count, since) = (u64::from(self.count?), self.since?);
        let elapsed = self.elapsed(after);
        let at = match self.mode() {
            InterruptOnTerminalCount | OneShot => Some(count).filter(|count| elapsed < *count),
            // A count of 1 is not allowed: OUT does not move.
            RateGenerator | SquareWave => (count > 1).then(|| (elapsed / count + 1) * count),
            SoftwareStrobe | HardwareStrobe => Some(count + 1).filter(|end| elapsed < *end),
        };
        Some(since + (at? - self.counted))
    }

    /// When it is next to be looked at: when OUT will next move by itself, and stay for more than a tick.
    pub(super) fn next_look(&self, after: u64) -> Option<u64> {
        let period = u64::from(self.count?);
        // A count of 1 does nothing, but the one that follows it waits for the end of its period.
        if self.is_periodic() && period < MIN_PERIOD && (period > 1 || self.next.is_some()) {
            // At the end of every so many of its periods.
            return self.period_end(after, MIN_PERIOD.div_ceil(period));
        }
        let rise = self.next_rise(after)?;
        if self.mode() != SquareWave || !self.out(after) {
            return Some(rise);
        }
        // High is the first half of the period, which ends with this rise.
        Some(rise - period / 2)
    }

    /// The output.
    pub(super) fn out(&self, now: u64) -> bool {
        let Some(count) = self.count else {
            return self.mode() != InterruptOnTerminalCount;
        };
        let (count, elapsed) = (u64::from(count), self.elapsed(now));
        match self.mode() {
            InterruptOnTerminalCount => elapsed >= count,
            OneShot => elapsed >= count,
            // GATE low forces it high.
            RateGenerator | SquareWave if !self.gate => true,
            RateGenerator => elapsed % count != count - 1,
            SquareWave => elapsed % count < count.div_ceil(2),
            SoftwareStrobe | HardwareStrobe => elapsed != count,
        }
    }

    /// What the counting element reads, as 16 bits or four digits.
    fn reading(&self, now: u64) -> u16 {
        let Some(count) = self.count else { return 0 };
        let (count, elapsed) = (u64::from(count), self.elapsed(now));
        let wrap = if self.is_bcd() { 10_000 } else { 0x1_0000 };
        let left = match self.mode() {
            RateGenerator => count - elapsed % count,
            SquareWave => {
                // It counts by two, twice a period. From an odd count it takes one off first.
                let (at, high) = (elapsed % count, count.div_ceil(2));
                let at = if at < high { at } else { at - high };
                (count & !1) - 2 * at
            }
            // It goes on beyond zero.
            _ => (count % wrap + wrap - elapsed % wrap) % wrap,
        };
        let left = (left % wrap) as u16;
        if self.is_bcd() { to_bcd(left) } else { left }
    }

    pub(super) fn set_gate(&mut self, up: bool, now: u64) {
        if std::mem::replace(&mut self.gate, up) == up {
            return;
        }
        match (up, self.mode()) {
            (true, OneShot | HardwareStrobe | RateGenerator | SquareWave) => {
                if let Some(count) = self.next.take().or(self.count) {
                    self.load(count, now);
                }
            }
            (true, InterruptOnTerminalCount | SoftwareStrobe) => self.since = self.count.map(|_| now),
            (false, OneShot | HardwareStrobe) => (),
            (false, _) => {
                self.counted = self.elapsed(now);
                self.since = None;
            }
        }
    }

    /// The next CLK loads `count`, and those after it count.
    fn load(&mut self, count: u32, now: u64) {
        self.count = Some(count);
        self.counted = 0;
        self.since = (self.gate || self.is_triggered()).then_some(now + 1);
    }

    /// A control word for this counter, other than a latch.
    pub(super) fn set_format(&mut self, format: u8) {
        let gate = self.gate;
        *self = Self {
            format: format & FORMAT,
            ..Self::new(gate)
        };
    }

    pub(super) fn write(&mut self, value: u8, now: u64) {
        let written = match (self.rw(), self.low_byte.take()) {
            (RW_LSB, _) => value.into(),
            (RW_MSB, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, value]),
            (_, None) => {
                self.low_byte = Some(value);
                if self.mode() == InterruptOnTerminalCount {
                    // The first byte stops it, and OUT is low.
                    (self.count, self.since) = (None, None);
                }
                return;
            }
        };
        let count = match (self.is_bcd(), written) {
            (false, 0) => 0x1_0000,
            (true, 0) => 10_000,
            (false, count) => count.into(),
            (true, digits) => from_bcd(digits),
        };
        if self.is_triggered() || (self.is_periodic() && self.count.is_some()) {
            self.next = Some(count);
        } else {
            self.load(count, now);
        }
    }

    pub(super) fn latch_count(&mut self, now: u64) {
        // What is latched stays until it was read.
        if self.latched_count.is_none() {
            self.latched_count = Some(self.reading(now));
        }
    }

    pub(super) fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(now));
        }
    }

    fn status(&self, now: u64) -> u8 {
        let loading = self.since.is_some_and(|since| now < since);
        let null_count = self.count.is_none() || self.next.is_some() || loading;
        let out = u8::from(self.out(now)) * STATUS_OUT;
        let null_count = u8::from(null_count) * STATUS_NULL_COUNT;
        out | null_count | self.format
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.reading(now));
        let [low, high] = count.to_le_bytes();
        let both = self.rw() == RW_BOTH;
        let is_high = self.rw() == RW_MSB || (both && self.read_high);
        self.read_high = both && !self.read_high;
        if !self.read_high {
            self.latched_count = None;
        }
        if is_high { high } else { low }
    }
}

/// Four digits, each of four bits. What is no digit counts as what it is.
fn from_bcd(digits: u16) -> u32 {
    [12, 8, 4, 0]
        .iter()
        .fold(0, |value, shift| value * 10 + u32::from(digits >> shift & 0xf))
}

fn to_bcd(value: u16) -> u16 {
    [1000, 100, 10, 1]
        .iter()
        .fold(0, |digits, unit| (digits << 4) | (value / unit % 10))
}
