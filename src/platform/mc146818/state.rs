//! Saved states of the clock.

use super::{registers::*, rtc::Rtc};

/// The state of an [`Mc146818`](super::Mc146818), as plain data. The line follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mc146818State {
    /// What the injected clock read, in ticks of 32768 Hz.
    pub ticks: u64,
    /// How many ticks the divider was ahead of that: it makes a second when both together are a multiple of 32768.
    pub ahead: u16,
    /// What was written to the index port.
    pub index: u8,
    /// All registers by their index: register A without UIP, register C without IRQF.
    pub registers: [u8; COUNT],
}

/// An [`Mc146818State`] is not one that a clock can have. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mc146818StateError {
    /// Bits are set that the register does not have.
    #[error("register {index:#04x} is {value:#04x}: it has no bits but {mask:#04x}")]
    Bits {
        /// Which one.
        index: usize,
        /// What is in the state.
        value: u8,
        /// What can be.
        mask: u8,
    },
    /// The battery of this chip is never empty.
    #[error("register D is {0:#04x}: it is 0x80")]
    RegisterD(u8),
    /// The divider is a second or more ahead.
    #[error("the divider is {0} ticks ahead: less than 32768 make a difference")]
    Divider(u16),
}

impl Rtc {
    pub(super) fn save(&self) -> Mc146818State {
        let Self {
            ticks,
            ahead,
            index,
            registers,
        } = self;
        Mc146818State {
            ticks: *ticks,
            ahead: *ahead as u16,
            index: *index,
            registers: *registers,
        }
    }

    /// To where a state was at its time, or is now if that has not come.
    pub(super) fn restored(state: &Mc146818State, now: u64) -> Result<Self, Mc146818StateError> {
        let Mc146818State {
            ticks,
            ahead,
            index,
            registers,
        } = state;
        for (index, mask) in [(SECONDS, SECONDS_WRITABLE), (A, !a::UIP), (C, c::FLAGS)] {
            let value = registers[index];
            if value & !mask != 0 {
                return Err(Mc146818StateError::Bits { index, value, mask });
            }
        }
        if registers[D] != VRT {
            return Err(Mc146818StateError::RegisterD(registers[D]));
        }
        if u64::from(*ahead) >= HZ {
            return Err(Mc146818StateError::Divider(*ahead));
        }
        // Of two numbers less than a second each: where in its second the divider was, it still is.
        let behind = ticks.saturating_sub(now) % HZ;
        Ok(Self {
            ticks: (*ticks).min(now),
            ahead: (u64::from(*ahead) + behind) % HZ,
            index: *index,
            registers: *registers,
        })
    }
}
