//! What the parts of a PMEM device share.

use std::sync::atomic::AtomicU64;

use super::persist::Persist;
use crate::virtio::FailureLog;

/// What the control face and the queue share.
pub(super) struct Shared {
    pub persist: Box<dyn Persist>,
    pub failures: FailureLog,
    /// What the driver has accepted.
    pub negotiated: AtomicU64,
}
