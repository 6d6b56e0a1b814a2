//! What a queue has in flight, told to somebody who keeps it where it outlives this process.

/// A table of what is in flight: what it says is what a queue goes on from if this process ends at any point.
///
/// A chain that is answered in the round that finds it is not told of until it is put: none is taken after it before the driver sees
/// it, so that chains which nobody knows of are the last that were made available.
pub(crate) trait Tracker: Send + Sync {
    /// A chain is taken, after all others that are.
    fn taken(&self, head: u16);

    /// A chain is in the used ring, where the driver does not see it yet. One call at a time with [`published`](Self::published).
    fn put(&self, head: u16);

    /// The driver sees all that was put, up to here in the used ring.
    fn published(&self, next_used: u16);
}
