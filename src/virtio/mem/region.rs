//! The region of a memory device: what its parts share.

use std::sync::{Mutex, OnceLock, atomic::AtomicBool};

use super::{MemoryDeviceOptions, blocks::Blocks};
use crate::virtio::{FailureLog, Handle, reclaim::Reclaim};

/// What the control face and the queue share.
pub(super) struct Region {
    // Configured.
    pub options: MemoryDeviceOptions,
    // Plugged in.
    pub reclaim: Box<dyn Reclaim>,
    pub failures: FailureLog,
    pub handle: OnceLock<Handle>,
    /// The embedder wants no block to change.
    pub busy: AtomicBool,
    // What the guest can change.
    /// Held while blocks change, which the host may take long for.
    pub alone: Mutex<()>,
    /// Held for moments.
    pub now: Mutex<Now>,
}

/// What the configuration space shows.
#[derive(Clone)]
pub(super) struct Now {
    pub requested: u64,
    pub usable: u64,
    pub blocks: Blocks,
}
