//! What the host has failed at, for a device.

use std::{
    fmt, io,
    sync::{Arc, Mutex},
};

use crate::sync::lock;

/// How often what stands behind a device has failed, and how the last time. The guest hears of it as its device type says; nothing is
/// logged, since a guest could have it logged without end.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HostFailures {
    /// How often.
    pub count: u64,
    /// The last error.
    pub last: Option<Arc<io::Error>>,
}

/// Counts the [failures](HostFailures) of what stands behind a device, from any thread.
#[derive(Default)]
pub struct FailureLog(Mutex<HostFailures>);

impl FailureLog {
    /// It has failed once more.
    pub fn record(&self, error: io::Error) {
        let mut failures = lock(&self.0);
        failures.count += 1;
        failures.last = Some(Arc::new(error));
    }

    /// So far.
    pub fn get(&self) -> HostFailures {
        lock(&self.0).clone()
    }
}

impl fmt::Debug for FailureLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
