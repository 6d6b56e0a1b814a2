//! Stores that a hypervisor turns into a signal by itself, without an exit to the embedder.

use std::io;

/// The address space that a guest's access goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Guest physical addresses.
    Memory,
    /// The ports of x86.
    Ports,
}

/// A guest's store that means "look at this": where it goes, how wide it is, and what it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DoorbellStore {
    /// Where `address` counts.
    pub space: Space,
    /// The first byte that is stored to.
    pub address: u64,
    /// Bytes that are stored: 1, 2, 4 or 8, or `None` for any number of them.
    pub len: Option<u8>,
    /// The value that means this doorbell, if other values mean others. Needs a `len`.
    pub value: Option<u64>,
}

/// A hypervisor's way to catch doorbell stores before they exit: KVM's ioeventfd, Hyper-V's port connections.
///
/// One of these serves one device, and tells its doorbells apart by number; whoever is told (an event loop of the
/// embedder's) hands the number on to the device. A store that is not caught exits as ever and does the same.
///
/// *For who calls it*: catch each store once, and drop what it gave before the address means something else. *For who
/// implements it*: a store that comes before the drop has returned is a ring that must not be lost.
///
/// ```
/// use devisor::bus::{Doorbells, DoorbellStore, Space};
/// use std::io;
///
/// /// A platform without any: the store exits.
/// struct NoDoorbells;
///
/// impl Doorbells for NoDoorbells {
///     fn catch(&self, _number: u16, _store: DoorbellStore) -> io::Result<Box<dyn Send + Sync>> {
///         Err(io::ErrorKind::Unsupported.into())
///     }
/// }
///
/// let store = DoorbellStore { space: Space::Memory, address: 0x0a00_0050, len: Some(4), value: Some(0) };
/// assert!(NoDoorbells.catch(0, store).is_err());
/// ```
pub trait Doorbells: Send + Sync {
    /// Rings doorbell `number` on each such store from now on, until what this returns is dropped.
    ///
    /// # Errors
    /// The platform cannot catch this store, or no further one. It exits.
    fn catch(&self, number: u16, store: DoorbellStore) -> io::Result<Box<dyn Send + Sync>>;
}
