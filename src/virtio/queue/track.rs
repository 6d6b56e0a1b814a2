//! What a queue has in flight, told to somebody who keeps it where it outlives this process.

use super::{format::Format, spot::Spot, view::View};

/// A table of what is in flight: what it says is what a queue goes on from if this process ends at any point.
///
/// In a split ring, a chain that is answered in the round that finds it is not told of until it is put: none is taken after it before
/// the driver sees it, so that chains which nobody knows of are the last that were made available. In a packed ring, where what is put
/// may overwrite it, it is taken first.
pub(crate) trait Tracker: Send + Sync {
    /// A chain is taken, after all others that are.
    fn taken(&self, chain: &Taken<'_>);

    /// A chain of so many descriptors is to be in the used ring, where the driver does not see it yet. One call at a time with
    /// [`published`](Self::published).
    fn put(&self, head: u16, descriptors: u16);

    /// The driver sees all that was put, up to here in the used ring.
    fn published(&self, next_used: u16);
}

/// A chain that is taken.
#[cfg_attr(
    not(all(target_os = "linux", feature = "vhost-user")),
    allow(dead_code, reason = "a transport's")
)]
pub(crate) struct Taken<'a> {
    pub head: u16,
    /// How many descriptors of a packed ring it takes.
    pub descriptors: u16,
    at: Spot,
    size: u16,
    view: &'a View,
}

impl<'a> Taken<'a> {
    /// `at`: where it was made available, in a packed ring.
    pub(super) fn new(head: u16, descriptors: u16, at: u16, size: u16, view: &'a View) -> Self {
        Self {
            head,
            descriptors,
            at: Spot::new(at),
            size,
            view,
        }
    }

    /// Its descriptor in a packed ring with this number in it: address, and length, ID and flags.
    #[cfg_attr(
        not(all(target_os = "linux", feature = "vhost-user")),
        allow(dead_code, reason = "a transport's")
    )]
    pub fn descriptor(&self, number: u16) -> Option<[u64; 2]> {
        let Format::Packed(view) = self.view.ring() else {
            return None;
        };
        let slot = self.at.after(number, self.size).slot;
        let descriptor = view.descriptor(slot, None).ok().flatten()?;
        Some(descriptor.words())
    }
}
