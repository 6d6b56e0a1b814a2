//! What a driver can get wrong: a chain, which costs that chain, or a ring, which costs the device.

use crate::memory::Outside;

/// How the driver broke a virtqueue. No chain can be given back: the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The queue size is zero or above the maximum, or of a split ring and no power of two.
    #[error("queue size {size}: {} up to {max} is needed", if *.packed { "at least 1 and" } else { "a power of two" })]
    Size {
        /// What the driver asked for.
        size: u16,
        /// What the device offers.
        max: u16,
        /// The ring is a packed one.
        packed: bool,
    },
    /// A part of the ring is misaligned.
    #[error("the {area} area at {address:#x} is not aligned to {align} bytes")]
    Alignment {
        /// `descriptor`, `driver` or `device`.
        area: &'static str,
        /// Where the driver put it.
        address: u64,
        /// What the specification asks for.
        align: u64,
    },
    /// A part of the ring is not in guest memory.
    #[error("the ring: {0}")]
    Outside(#[from] Outside),
    /// `avail.idx` runs further ahead of what was seen than the queue is long.
    #[error("avail.idx is {ahead} ahead of the device, in a queue of {size}")]
    AvailIndex {
        /// How far.
        ahead: u16,
        /// The queue size.
        size: u16,
    },
    /// A head names a descriptor beyond the table. In a packed ring, a buffer ID is not below the queue size: to that many a driver can
    /// count, which keeps a list by it (section 2.8.21).
    #[error("head {head} was made available in a queue of {size}")]
    Head {
        /// What was named.
        head: u16,
        /// The queue size.
        size: u16,
    },
    /// A head, or a buffer ID, was made available again before it was used.
    #[error("head {0} is in flight already")]
    InFlight(u16),
    /// A chain in a packed ring has no end, where its buffer ID would be.
    #[error("a chain that goes through all {0} descriptors of a packed ring and has no end")]
    Endless(u16),
    /// More descriptors of a packed ring were made available than it has, with those that are in flight.
    #[error("{made} descriptors are in flight or available in a queue of {size}")]
    Overrun {
        /// How many.
        made: u32,
        /// The queue size.
        size: u16,
    },
}

/// How the driver broke a chain, or the request in it. The chain is given back, with a used length of 0 where the device type
/// has no status that says more; the device goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A `next` names a descriptor beyond its table.
    #[error("descriptor {index} named in a table of {len}")]
    DescriptorIndex {
        /// What was named.
        index: u16,
        /// How long the table is.
        len: u16,
    },
    /// A chain has more descriptors than it may have, or a loop.
    #[error("a chain of more than {0} descriptors")]
    TooLong(u16),
    /// The lengths of a chain add up to 2^32 bytes or more.
    #[error("a chain describes 4 GiB or more")]
    TooLarge,
    /// A device-readable descriptor comes after a device-writable one.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// An indirect table where there must be none, or of a length that cannot be.
    #[error("bad indirect descriptor: {0}")]
    Indirect(&'static str),
    /// A buffer or an indirect table is not in guest memory, or the embedder has taken it away since.
    #[error(transparent)]
    Outside(#[from] Outside),
    /// A device read or wrote beyond what the chain gave.
    #[error("the chain is {0} bytes short")]
    Short(usize),
    /// The request in a chain is not what the device type prescribes.
    #[error("malformed request: {0}")]
    Request(&'static str),
}

/// Why a device needs a reset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The driver broke the rules of the ring.
    #[error("the driver broke a queue: {0}")]
    Driver(#[from] QueueError),
    /// The device cannot go on, for a reason that is the host's and not the driver's.
    #[error("the host failed the device: {0}")]
    Host(String),
    /// Who serves a queue in our stead has given up.
    #[error("a queue that is served elsewhere: {0}")]
    Elsewhere(String),
}

/// A part of the ring that was in guest memory is there no longer: which, who asks for the error finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;
