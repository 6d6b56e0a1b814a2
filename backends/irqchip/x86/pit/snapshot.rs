//! The state of the timer as plain data: taken, checked and put back.

use super::{
    Pit,
    counter::CounterState,
    model::{MAX_TICKS, Model},
    registers::*,
};
use crate::sync::lock;

/// Everything of a [`Pit`] that a guest can see. Made by [`Pit::save`], taken by [`Pit::restore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PitState {
    /// The tick at which it was saved, on the scale of [`CounterState::since`].
    pub now: u64,
    /// The counters.
    pub counters: [CounterState; 3],
    /// What was written to port B.
    pub port_b: u8,
    /// OUT of counter 0 has risen, and the line has refused to hear of it.
    pub rose: bool,
}

/// A [`PitState`] cannot be restored. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} of counter {counter} is {value:#x}: accepted {accepted}")]
pub struct PitStateError {
    /// Which counter. What is not a counter's own counts as counter 2's.
    pub counter: usize,
    /// Which field.
    pub field: &'static str,
    /// What it is.
    pub value: u64,
    /// What it may be.
    pub accepted: &'static str,
}

impl Pit {
    /// The state now.
    pub fn save(&self) -> PitState {
        // Up to now, and the line hears of it: what it has not refused is not to be told again.
        self.shared.change(|_| ());
        let model = lock(&self.shared.model);
        let Model {
            host: _,
            now,
            counters,
            port_b,
            rose,
        } = &*model;
        PitState {
            now: *now,
            counters: counters.clone(),
            port_b: *port_b,
            rose: *rose,
        }
    }

    /// Puts a state back. Time goes on for the guest from where it was saved: what was left of a deadline then is left now.
    /// The line is driven to where OUT was, which is no new edge for a controller that was restored too; a
    /// rise that the line had refused is told now.
    ///
    /// # Errors
    /// [`PitStateError`]: the state is refused as a whole.
    pub fn restore(&self, state: &PitState) -> Result<(), PitStateError> {
        let PitState {
            now,
            counters,
            port_b,
            rose,
        } = state;
        state.check()?;
        self.shared.change(|model| {
            model.now = *now;
            model.counters = counters.clone();
            model.port_b = *port_b;
            model.rose = *rose;
        });
        Ok(())
    }
}

impl PitState {
    pub(in crate::backends::irqchip) fn check(&self) -> Result<(), PitStateError> {
        let PitState {
            now,
            counters,
            port_b,
            rose: _,
        } = self;
        let accept = |counter, field, value, accepted, is_accepted| match is_accepted {
            true => Ok(()),
            false => Err(PitStateError {
                counter,
                field,
                value,
                accepted,
            }),
        };
        let written = u64::from(*port_b);
        accept(2, "port B", written, "bits 0 to 3", port_b & !PORT_B_WRITABLE == 0)?;
        accept(2, "now", *now, "at most 2^61", *now <= MAX_TICKS / 2)?;
        for (index, counter) in counters.iter().enumerate() {
            let CounterState {
                format,
                gate,
                count,
                next,
                counted,
                since,
                low_byte: _,
                read_high: _,
                latched_count: _,
                latched_status: _,
            } = counter;
            let accept = |field, value, accepted, is_accepted| accept(index, field, value, accepted, is_accepted);
            let is_format = format & !FORMAT == 0 && counter.rw() != LATCH;
            accept("format", (*format).into(), "six bits with RW of 1 to 3", is_format)?;
            let expected = index != 2 || port_b & TIMER_2_GATE != 0;
            let what = "high, or for counter 2 as in port B";
            accept("gate", u64::from(*gate), what, *gate == expected)?;
            for count in [count, next].into_iter().flatten() {
                let is_count = (1..=0x1_0000).contains(count);
                accept("count", u64::from(*count), "1 to 65536", is_count)?;
            }
            if let Some(since) = since {
                let is_since = *since <= now + 1 && count.is_some();
                accept("since", *since, "at most the next tick, with a count", is_since)?;
            }
            // What went by did so before it began to count again, or stopped: so it never comes to more than now.
            let is_counted = counted <= since.as_ref().unwrap_or(now).min(now);
            accept(
                "counted",
                *counted,
                "at most since, or at most now while it stands",
                is_counted,
            )?;
        }
        Ok(())
    }
}
