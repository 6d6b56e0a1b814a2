//! What the platform does for the function by address, and so depends on where the BARs decode.

use super::{
    VirtioPci,
    layout::{Region, SHARED_MEMORY, STRUCTURES, Structure},
};
use crate::{
    bus::{DoorbellStore, Doorbells, Space},
    sync::lock,
    virtio::VirtioDevice,
};

/// Stores that the platform catches, and memory that the embedder maps.
#[derive(Default)]
pub(super) struct Outside {
    pub doorbells: Option<Box<dyn Doorbells>>,
    pub map: Option<Box<dyn SharedMemoryMap>>,
    /// Where the structures decode, and for each queue its caught store.
    at: Option<u64>,
    stores: Vec<Store>,
    /// Where the shared memory decodes.
    shared_memory_at: Option<u64>,
}

/// The doorbell of a queue.
#[derive(Default)]
enum Store {
    #[default]
    Exits,
    /// Kept until it is to be caught no more.
    Caught(#[allow(dead_code, reason = "what is dropped")] Box<dyn Send + Sync>),
    /// The platform will not be asked again before the doorbell is another one.
    Refused,
}

/// Maps the memory of shared memory regions where the guest has placed them.
///
/// *For embedders*: any `Fn(u8, Option<u64>)` is one. A region is unmapped before it is mapped elsewhere. Do not access the
/// device's BARs or configuration space from in here.
pub trait SharedMemoryMap: Send + Sync {
    /// The region `id` is at the guest physical address `address` from now on, or nowhere. Where memory is not mapped, the
    /// guest's accesses read as ones and write nothing.
    ///
    /// The guest chooses the address, and may choose one beside the host bridge's windows, or where its own memory or another
    /// device is: leave the region unmapped then.
    fn map(&self, id: u8, address: Option<u64>);
}

impl<F: Fn(u8, Option<u64>) + Send + Sync> SharedMemoryMap for F {
    fn map(&self, id: u8, address: Option<u64>) {
        self(id, address);
    }
}

impl Outside {
    /// Catches the doorbells of the queues that are `kickable`, while the structures decode `at` an address. All of the old
    /// place are let go before any of a new one.
    fn catch(&mut self, at: Option<u64>, kickable: &[bool]) {
        let Some(platform) = &self.doorbells else { return };
        self.stores.resize_with(kickable.len(), Store::default);
        for (store, kickable) in self.stores.iter_mut().zip(kickable) {
            if at != self.at || !kickable {
                *store = Store::Exits;
            }
        }
        self.at = at;
        let Some(at) = at else { return };
        for ((store, kickable), queue) in self.stores.iter_mut().zip(kickable).zip(0..) {
            if *kickable && matches!(store, Store::Exits) {
                let doorbell = DoorbellStore {
                    space: Space::Memory,
                    address: at + Structure::doorbell(queue),
                    // The address says which queue it is. What else the driver stores is for devices that look at it.
                    len: None,
                    value: None,
                };
                *store = match platform.catch(queue, doorbell) {
                    Ok(caught) => Store::Caught(caught),
                    Err(_) => Store::Refused,
                };
            }
        }
    }

    fn map(&mut self, at: Option<u64>, regions: &[Region]) {
        if at == self.shared_memory_at {
            return;
        }
        let before = std::mem::replace(&mut self.shared_memory_at, at);
        let Some(map) = &self.map else { return };
        if before.is_some() {
            regions.iter().for_each(|region| map.map(region.id, None));
        }
        if let Some(at) = at {
            regions
                .iter()
                .for_each(|region| map.map(region.id, Some(at + region.offset)));
        }
    }

    /// Lets everything go.
    pub fn let_go(&mut self, regions: &[Region]) {
        self.stores.clear();
        self.at = None;
        self.map(None, regions);
    }
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// Derives all that follows from the registers and lies outside of them. Called after every change, with nothing
    /// locked; who comes last sees all changes.
    pub(super) fn follow(&self) {
        if self.derive_outside() {
            self.core.look_again();
        }
    }

    /// Whether the device may use memory from here on, and could not before.
    pub(super) fn derive_outside(&self) -> bool {
        let mut outside = lock(&self.outside);
        let endpoint = &self.interrupt.endpoint;
        let master = endpoint.is_bus_master();
        let changed = self.core.set_bus_master(master);
        if outside.doorbells.is_some() {
            outside.catch(endpoint.decoded(STRUCTURES), &self.core.kickable());
        }
        if !self.regions.is_empty() {
            outside.map(endpoint.decoded(SHARED_MEMORY), &self.regions);
        }
        changed && master
    }
}
