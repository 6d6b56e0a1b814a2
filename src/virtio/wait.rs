//! What a queue waits for besides its driver.

use std::time::Duration;

/// A descriptor of the host, as its operating system counts them.
#[cfg(unix)]
pub type Descriptor = std::os::fd::RawFd;
/// A socket of the host, as its operating system counts them.
#[cfg(windows)]
pub type Descriptor = std::os::windows::io::RawSocket;

/// What a handler waits for when it has left something undone: once it is there, the queue is to be looked at again.
///
/// It counts once, and only until the next look: a handler says so again in each round in which it is still so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// There is something to read, or the other end has gone: a level, not an edge, as it may have come before this was said.
    Readable(Descriptor),
    /// There is room to write, or the other end has gone.
    Writable(Descriptor),
    /// The time, on the scale of the [`Clock`](crate::time::Clock) that the embedder runs its devices by.
    Until(Duration),
}
