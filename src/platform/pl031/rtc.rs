//! The PL031 as its guest sees it, at whole seconds of the clock that drives it.

use std::time::Duration;

use super::registers::*;
use crate::platform::primecell;

/// After how many seconds the counter reads the same again.
const WRAP: u64 = 1 << 32;

#[derive(Clone, Debug, Default)]
pub(super) struct Rtc {
    /// The second of the clock up to which everything has happened. Its ticks are CLK1HZ.
    pub(super) seconds: u64,

    // What the guest can change.
    /// RTCDR at `seconds`.
    pub(super) counter: u32,
    pub(super) matched: u32,
    pub(super) load: u32,
    pub(super) running: bool,
    pub(super) imsc: bool,
    pub(super) ris: bool,
}

impl Rtc {
    pub(super) fn mis(&self) -> bool {
        self.ris && self.imsc
    }

    /// Lets the time up to `now` happen, the match interrupt included. A `now` that has passed already is no time.
    pub(super) fn advance(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.seconds);
        self.seconds += elapsed;
        if self.running {
            self.ris |= elapsed >= self.until_match();
            self.counter = self.counter.wrapping_add(elapsed as u32);
        }
    }

    /// Seconds until the counter comes to the match value: a whole turn if it is there.
    fn until_match(&self) -> u64 {
        match self.matched.wrapping_sub(self.counter) {
            0 => WRAP,
            seconds => seconds.into(),
        }
    }

    /// When the line will rise by itself.
    pub(super) fn deadline(&self) -> Option<Duration> {
        if !self.running || !self.imsc || self.ris {
            return None;
        }
        let seconds = self.seconds.checked_add(self.until_match())?;
        Some(Duration::from_secs(seconds))
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            RTCDR => self.counter,
            RTCMR => self.matched,
            RTCLR => self.load,
            RTCCR => u32::from(self.running) * START,
            RTCIMSC => u32::from(self.imsc) * INTERRUPT,
            RTCRIS => u32::from(self.ris) * INTERRUPT,
            RTCMIS => u32::from(self.mis()) * INTERRUPT,
            _ => primecell::identification(offset, PERIPH_ID).map_or(0, u32::from),
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            RTCMR => {
                self.matched = value;
                self.compare();
            }
            RTCLR => {
                self.load = value;
                self.counter = value;
                self.compare();
            }
            RTCCR if value & START != 0 && !self.running => {
                self.running = true;
                self.compare();
            }
            RTCIMSC => self.imsc = value & INTERRUPT != 0,
            RTCICR if value & INTERRUPT != 0 => self.ris = false,
            _ => (),
        }
    }

    /// The counter or the match value was set: if that made them equal, this is the match, and not a turn later.
    fn compare(&mut self) {
        self.ris |= self.running && self.counter == self.matched;
    }
}
