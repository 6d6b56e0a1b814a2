//! Who waits for a device to be still: asked, told, or waited for.

use std::sync::{Arc, Mutex};

use crate::sync::{Gate, lock};

/// Shared by the queues of a device.
#[derive(Default)]
pub(crate) struct Stillness {
    gate: Gate,
    told: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Stillness {
    /// Something has become still that was not. Comes once too often rather than not.
    pub fn reached(&self) {
        self.gate.knock();
        // Called with nothing locked.
        let told = lock(&self.told).clone();
        if let Some(tell) = told {
            tell();
        }
    }

    /// Has `tell` called whenever something has become still.
    pub fn tell(&self, tell: Box<dyn Fn() + Send + Sync>) {
        let before = lock(&self.told).replace(tell.into());
        drop(before);
    }

    /// Waits until `still` says so.
    pub fn wait(&self, still: impl Fn() -> bool) {
        self.gate.wait(still);
    }

    /// As [`wait`](Self::wait), until `deadline` at the latest. Whether it is still.
    #[cfg(not(loom))]
    pub fn wait_until(&self, deadline: std::time::Instant, still: impl Fn() -> bool) -> bool {
        self.gate.wait_until(deadline, still)
    }
}
