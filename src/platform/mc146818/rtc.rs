//! The MC146818 as its guest sees it, at ticks of the crystal.

use std::time::Duration;

use super::{calendar, registers::*};

const NANOSECONDS: u128 = 1_000_000_000;
/// Ticks of a clock. What is beyond four million years of them stands still.
pub(super) const MAX_TICKS: u64 = 1 << 62;

pub(super) fn ticks_of(now: Duration) -> u64 {
    let ticks = now.as_nanos().saturating_mul(HZ.into()) / NANOSECONDS;
    u64::try_from(ticks).unwrap_or(u64::MAX).min(MAX_TICKS)
}

/// The first nanosecond of a tick.
fn time_of(ticks: u64) -> Duration {
    let nanoseconds = (u128::from(ticks) * NANOSECONDS).div_ceil(HZ.into());
    Duration::new((nanoseconds / NANOSECONDS) as u64, (nanoseconds % NANOSECONDS) as u32)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rtc {
    /// The tick of the clock up to which everything has happened.
    pub(super) ticks: u64,

    // What the guest can change.
    /// How much the divider is ahead of the clock's ticks: less than a second.
    pub(super) ahead: u64,
    /// What was written to the index port.
    pub(super) index: u8,
    /// All as they read, but for UIP of register A and IRQF of register C, which are derived.
    pub(super) registers: [u8; COUNT],
}

impl Rtc {
    /// A clock that tells the time at `ticks` since 1970, as a PC's firmware wants it: in BCD and 24 hours.
    pub(super) fn new(ticks: u64) -> Self {
        let mut registers = [0; COUNT];
        // 1024 Hz.
        registers[A] = a::HZ_32768 | 6;
        registers[B] = b::HOURS_24;
        registers[D] = VRT;
        calendar::set(&mut registers, ticks / HZ);
        Self {
            ticks,
            ahead: 0,
            index: 0,
            registers,
        }
    }

    /// The RESET pin (the data sheet's section on it): the time and the memory are not affected.
    pub(super) fn reset(&mut self) {
        self.index = 0;
        self.registers[B] &= !(b::PIE | b::AIE | b::UIE | b::SQWE);
        self.registers[C] = 0;
    }

    /// Lets the time up to `now` happen. A `now` that has passed already is no time.
    pub(super) fn advance(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.ticks);
        let before = self.divider();
        self.ticks += elapsed;
        if !self.counts() {
            return;
        }
        let edges = |shift: u32| (self.divider() >> shift) - (before >> shift);
        let periodic = self.period().is_some_and(|shift| edges(shift) != 0);
        let seconds = if self.updates() { edges(SECOND_SHIFT) } else { 0 };
        if periodic {
            self.registers[C] |= c::PF;
        }
        if seconds != 0 {
            self.registers[C] |= c::UF;
            if calendar::until_alarm(&self.registers).is_some_and(|until| until <= seconds) {
                self.registers[C] |= c::AF;
            }
            calendar::advance(&mut self.registers, seconds);
        }
    }

    /// All that the divider has counted.
    fn divider(&self) -> u64 {
        self.ticks + self.ahead
    }

    /// Whether the divider counts: not while it is held in reset, or in a mode for the factory's tests.
    fn counts(&self) -> bool {
        self.registers[A] & a::DIVIDER <= a::HZ_32768
    }

    /// Whether the time is updated each second.
    fn updates(&self) -> bool {
        self.counts() && self.registers[B] & b::SET == 0
    }

    /// The tap of the divider that is the periodic interrupt (table 5 of the data sheet).
    fn period(&self) -> Option<u32> {
        match u32::from(self.registers[A] & a::RATE) {
            0 => None,
            // 256 and 128 Hz, which are two more of the taps above.
            rate @ (1 | 2) => Some(rate + 6),
            rate => Some(rate - 1),
        }
    }

    /// How many ticks it is to the next edge of a tap.
    fn until(&self, shift: u32) -> u64 {
        (1 << shift) - (self.divider() & ((1 << shift) - 1))
    }

    /// Whether the interrupt line is up: the one place from which it is derived.
    pub(super) fn irqf(&self) -> bool {
        self.registers[B] & self.registers[C] & c::FLAGS != 0
    }

    /// When the line will rise by itself.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let enabled = |bit: u8| self.registers[B] & bit != 0;
        if !self.counts() || self.irqf() {
            return None;
        }
        let periodic = self.period().filter(|_| enabled(b::PIE)).map(|shift| self.until(shift));
        let second = self.until(SECOND_SHIFT);
        let update = (enabled(b::UIE) && self.updates()).then_some(second);
        let alarm = match enabled(b::AIE) && self.updates() {
            true => calendar::until_alarm(&self.registers).map(|seconds| second + (seconds - 1) * HZ),
            false => None,
        };
        let next = [periodic, update, alarm].into_iter().flatten().min()?;
        let at = self.ticks.checked_add(next).filter(|at| *at <= MAX_TICKS)?;
        Some(time_of(at))
    }

    /// A read of the data port.
    pub(super) fn read(&mut self) -> u8 {
        let index = self.index();
        let value = self.registers[index];
        match index {
            A if self.updates() && self.until(SECOND_SHIFT) <= UIP_TICKS => value | a::UIP,
            C => {
                let irqf = if self.irqf() { c::IRQF } else { 0 };
                self.registers[C] = 0;
                value | irqf
            }
            _ => value,
        }
    }

    /// A write of the data port.
    pub(super) fn write(&mut self, value: u8) {
        let index = self.index();
        match index {
            SECONDS => self.registers[index] = value & SECONDS_WRITABLE,
            A => {
                let counted = self.counts();
                self.registers[A] = value & !a::UIP;
                if !counted && self.counts() {
                    self.ahead = (HZ - RELEASE_TICKS).wrapping_sub(self.ticks) % HZ;
                }
            }
            B => {
                let rises = value & !self.registers[B] & b::SET != 0;
                self.registers[B] = if rises { value & !b::UIE } else { value };
            }
            C | D => {}
            _ => self.registers[index] = value,
        }
    }

    fn index(&self) -> usize {
        usize::from(self.index & !NMI_MASK)
    }
}
