//! A place for a function, which it holds as long as it lives.

use std::{
    fmt, ptr,
    sync::{Arc, Weak},
};

use super::{address::DeviceFunction, config::Pin};
use crate::interrupt::{LevelInterrupt, MsiVectors};

/// A place for a function: its address, its line and where its messages go. An [`Endpoint`](super::Endpoint) is built in it.
///
/// [`RootBus::slot`](super::RootBus::slot) gives those of a bus, which become free again when they are dropped.
pub struct Slot {
    address: DeviceFunction,
    vectors: Arc<dyn MsiVectors>,
    at: Place,
}

enum Place {
    /// The line, until it is taken.
    Alone(Option<Box<dyn LevelInterrupt>>),
    /// Which of the bus's wires it pulls, the pin says.
    On(Weak<dyn Slots>),
}

/// What a slot asks of the bus that it is of. Called with nothing locked.
pub(super) trait Slots: Send + Sync {
    /// What `pin` of the function at `address` pulls.
    fn line(&self, address: DeviceFunction, pin: Pin) -> Option<Box<dyn LevelInterrupt>>;
    /// The BARs of a function decode elsewhere now.
    fn refresh(&self);
    /// The slot is free again.
    fn free(&self, address: DeviceFunction);
}

impl Slot {
    /// A slot without a bus: for a bus of yours, and for tests. `line` is what the function's pin pulls.
    pub fn new(address: DeviceFunction, line: Box<dyn LevelInterrupt>, vectors: Arc<dyn MsiVectors>) -> Self {
        let at = Place::Alone(Some(line));
        Self { address, vectors, at }
    }

    pub(super) fn on(bus: Weak<dyn Slots>, address: DeviceFunction, vectors: Arc<dyn MsiVectors>) -> Self {
        let at = Place::On(bus);
        Self { address, vectors, at }
    }

    /// Where the function will be.
    pub fn address(&self) -> DeviceFunction {
        self.address
    }

    pub(super) fn is_of<T>(&self, bus: &Arc<T>) -> bool {
        match &self.at {
            Place::Alone(_) => false,
            Place::On(of) => ptr::addr_eq(of.as_ptr(), Arc::as_ptr(bus)),
        }
    }

    pub(super) fn vectors(&self) -> Arc<dyn MsiVectors> {
        Arc::clone(&self.vectors)
    }

    /// What `pin` pulls. None without a pin, or a bus that is gone.
    pub(super) fn take_line(&mut self, pin: Option<Pin>) -> Option<Box<dyn LevelInterrupt>> {
        let pin = pin?;
        match &mut self.at {
            Place::Alone(line) => line.take(),
            Place::On(bus) => bus.upgrade()?.line(self.address, pin),
        }
    }

    /// The endpoint's BARs decode elsewhere now. Called with nothing locked.
    pub(super) fn refresh(&self) {
        if let Some(bus) = self.bus() {
            bus.refresh();
        }
    }

    fn bus(&self) -> Option<Arc<dyn Slots>> {
        match &self.at {
            Place::Alone(_) => None,
            Place::On(bus) => bus.upgrade(),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(bus) = self.bus() {
            bus.free(self.address);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
