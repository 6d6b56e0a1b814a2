//! Checking a saved state of a GIC before it is restored.

use std::fmt::Debug;

use super::{InterruptState, preemption::implemented};

/// A saved state cannot be restored. Nothing was changed. `C` is the configuration of the controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError<C: Debug> {
    /// It is of another GIC.
    #[error("state of a GIC with {saved:?}: this one has {this:?}")]
    Config {
        /// Of the state.
        saved: C,
        /// Of the GIC that was to be restored.
        this: C,
    },
    /// A list has not one entry for each part that there is.
    #[error("state has {saved} {what}: this GIC has {this}")]
    Count {
        /// Which list.
        what: &'static str,
        /// Its length.
        saved: usize,
        /// The length it must have.
        this: usize,
    },
    /// A field has a value that no guest could have brought about.
    #[error("{what} is {value:#x}: accepted {accepted}")]
    Value {
        /// Which field.
        what: String,
        /// What it is.
        value: u64,
        /// What it may be.
        accepted: String,
    },
}

pub(in super::super) fn count<C: Debug>(what: &'static str, saved: usize, this: u32) -> Result<(), StateError<C>> {
    let this = this as usize;
    if saved == this {
        Ok(())
    } else {
        Err(StateError::Count { what, saved, this })
    }
}

/// No other bits are set than these.
pub(in super::super) fn bits<C: Debug>(
    what: impl FnOnce() -> String,
    value: u64,
    allowed: u64,
) -> Result<(), StateError<C>> {
    accept(what, value, value & !allowed == 0, || format!("bits of {allowed:#x}"))
}

pub(in super::super) fn accept<C: Debug>(
    what: impl FnOnce() -> String,
    value: u64,
    accepted: bool,
    what_is: impl FnOnce() -> String,
) -> Result<(), StateError<C>> {
    if accepted {
        return Ok(());
    }
    Err(StateError::Value {
        what: what(),
        value,
        accepted: what_is(),
    })
}

/// The priority of an interrupt has only bits that are implemented.
pub(in super::super) fn priority<C: Debug>(
    what: impl FnOnce() -> String,
    state: &InterruptState,
    priority_bits: u32,
) -> Result<(), StateError<C>> {
    bits(what, state.priority.into(), implemented(priority_bits).into())
}
