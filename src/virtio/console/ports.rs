//! Plugging and unplugging, while the guest runs.

use std::{fmt, sync::Arc};

use super::{ConsoleError, Port, Size, shared::Shared};
use crate::virtio::HostFailures;

/// The ports of a [`Console`](super::Console), to its embedder: they are plugged in and out while the guest runs, from any thread.
/// Clones are the same.
#[derive(Clone)]
pub struct Ports(pub(super) Arc<Shared>);

impl Ports {
    /// Plugs `port` in as number `index`. A driver that is there is told.
    ///
    /// # Errors
    /// There is no such port, it is taken, or it cannot be what it is to be.
    pub fn plug(&self, index: u16, port: Port) -> Result<(), ConsoleError> {
        self.0.plug(index, port)
    }

    /// Unplugs a port, which is returned. A driver that is there is told; what it has put out and nobody has read is gone.
    ///
    /// # Errors
    /// There is no such port, or it is empty.
    pub fn unplug(&self, index: u16) -> Result<Port, ConsoleError> {
        self.0.unplug(index)
    }

    /// A terminal has another size. The driver is told, if it is a console and the size is news: of port 0 by a configuration change,
    /// and of each by a control message if it has these. Not from inside the device's configuration.
    ///
    /// # Errors
    /// There is no such port.
    pub fn resize(&self, index: u16, size: Size) -> Result<(), ConsoleError> {
        if index >= self.0.ports() {
            return Err(self.0.no_such_port(index));
        }
        self.0.resize(index, size);
        Ok(())
    }

    /// Asks the peer of a port for its size: after SIGWINCH, say.
    ///
    /// # Errors
    /// There is no such port.
    pub fn refresh_size(&self, index: u16) -> Result<(), ConsoleError> {
        match self.0.peer(index).and_then(|peer| peer.size()) {
            Some(size) => self.resize(index, size),
            None if index < self.0.ports() => Ok(()),
            None => Err(self.0.no_such_port(index)),
        }
    }

    /// Whether the driver has its end of a port open.
    pub fn is_guest_open(&self, index: u16) -> bool {
        self.0.slot(index).is_some_and(|slot| slot.guest_open)
    }

    /// What peers have failed at.
    pub fn host_failures(&self) -> HostFailures {
        self.0.failures.get()
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports")
            .field("max", &self.0.ports())
            .finish_non_exhaustive()
    }
}
