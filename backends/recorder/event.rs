//! What a recorder tells: events, counts, and why a wait ended without one.

use std::{fmt, io, sync::Arc, time::Duration};

use crate::interrupt::{MsiMessage, RequesterId};

/// One call of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Position among all events of the recorder, from 1.
    pub number: u64,
    /// When the call began, by the recorder's clock. Never less than that of the event before. Without a clock, as
    /// many nanoseconds as [`number`](Self::number) says.
    pub time: Duration,
    /// Name of the line.
    pub line: Arc<str>,
    /// What was asked of the line.
    pub action: Action,
    /// What became of it.
    pub outcome: Outcome,
}

/// What was asked of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// An edge, or a vector without a message, was triggered.
    Trigger,
    /// A level line was asserted.
    Raise,
    /// A level line was deasserted.
    Clear,
    /// A message was sent: by a sink, or by a vector that holds one.
    Send {
        /// Who sent it.
        requester: RequesterId,
        /// What was sent.
        message: MsiMessage,
    },
    /// A vector was given a message, or lost it.
    Program(Option<MsiMessage>),
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The inner line has not returned yet.
    Pending,
    /// It took effect.
    Delivered,
    /// The inner line answered with an error of this kind.
    Refused(io::ErrorKind),
    /// The recorder let it fail, as it was told to. The inner line was not called.
    Injected,
}

/// Which events are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Awaited {
    /// Every event whose outcome is known.
    Any,
    /// Delivered edges, rises and messages: whatever interrupts a guest.
    Raised,
    /// Delivered falls.
    Cleared,
    /// Calls that failed, by the inner line or by injection.
    Failed,
}

/// How many events there were, dropped ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Delivered edges, rises and messages. Repeats count: a rise of a line that was up is one.
    pub raised: u64,
    /// Delivered falls, repeats included.
    pub cleared: u64,
    /// Delivered changes of a vector's message.
    pub programmed: u64,
    /// Calls that failed, by the inner line or by injection.
    pub failed: u64,
}

/// An event that was waited for cannot be had. Prints the end of the log.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// It did not come in time.
    #[error("{awaited} event {nth} of {of} did not come within {timeout:?}, {seen} did. The log:\n{log}")]
    TimedOut {
        /// What was waited for.
        awaited: Awaited,
        /// Which of them, from 1.
        nth: u64,
        /// The line, or "any line".
        of: Arc<str>,
        /// How many came.
        seen: u64,
        /// How long the wait was.
        timeout: Duration,
        /// The end of the log as a timeline.
        log: String,
    },
    /// It came, and the log has dropped it since.
    #[error("{awaited} event {nth} of {of} is no longer in the log, which keeps the last {capacity} events")]
    Dropped {
        /// What was waited for.
        awaited: Awaited,
        /// Which of them, from 1.
        nth: u64,
        /// The line, or "any line".
        of: Arc<str>,
        /// How many events the log keeps.
        capacity: usize,
    },
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "known",
            Self::Raised => "raising",
            Self::Cleared => "clearing",
            Self::Failed => "failing",
        })
    }
}
