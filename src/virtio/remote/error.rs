//! Why a device cannot be made of a back end, or is not what it was made for.

use std::io;

/// A device cannot be made of a back end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The back end cannot be reached, or what it says is no vhost-user.
    #[error("the back end: {0}")]
    BackEnd(#[from] io::Error),
    /// Memory without a file.
    #[error(
        "guest memory at {0:#x} has no file behind it: memory that is mapped from a file, a memfd say, and shared is accepted"
    )]
    NotShared(u64),
    /// Memory that is translated.
    #[error("guest memory that an IOMMU translates: memory with regions of its own is accepted")]
    Translated,
    /// More regions than a message carries.
    #[error("{0} regions of guest memory: up to {1} are accepted by this back end")]
    Regions(usize, u64),
    /// A back end for legacy drivers.
    #[error("a back end with features {0:#x}: one that offers VERSION_1 is accepted")]
    Features(u64),
    /// More queues than it has, or none.
    #[error("{asked} queues: 1 to {most} are accepted by this back end")]
    Queues {
        /// What was asked for.
        asked: u16,
        /// What it has; of a network device, pairs.
        most: u16,
    },
    /// No such queue size.
    #[error("queue size {0}: a power of two up to 32768 is accepted")]
    QueueSize(u16),
    /// No such configuration space.
    #[error("a configuration space of {0} bytes: up to 256 are accepted")]
    ConfigSize(usize),
    /// The back end has no configuration space.
    #[error("the back end has no configuration space (CONFIG): one that is said in the options is accepted")]
    NoConfig,
    /// The window is smaller than the back end's region.
    #[error(
        "shared memory region {id} has {given:#x} bytes of guest addresses: {needed:#x} are accepted by this back end"
    )]
    Window {
        /// The region.
        id: u8,
        /// What there is.
        given: u64,
        /// What the back end needs.
        needed: u64,
    },
    /// The back end does not note what it writes.
    #[error("a back end that logs no writes (LOG_ALL and LOG_SHMFD): one that does is accepted for this")]
    NoLog,
}
