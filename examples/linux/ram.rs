//! RAM of rsemu's, as devisor's devices want it.

use std::{error::Error, sync::Arc};

use rsemu::core::space::{RamStore, Region};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// The RAM of the machine, seen from the cores and from the devices.
pub struct Ram {
    store: Arc<RamStore>,
    base: u64,
    memory: GuestMemoryMmap,
}

impl Ram {
    /// `size` zeroed bytes at guest address `base`.
    pub fn new(base: u64, size: u64) -> Result<Self, Box<dyn Error>> {
        let store = Arc::new(RamStore::new(size));
        // Devices may hold clones of the memory for as long as they like, and those do not know the store.
        std::mem::forget(Arc::clone(&store));
        // SAFETY: the store owns `size` bytes at its host address, neither moves nor resizes them, and is never freed.
        let mapping = unsafe {
            MmapRegion::build_raw(
                store.host_addr() as *mut u8,
                usize::try_from(size)?,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            )?
        };
        let region = GuestRegionMmap::new(mapping, GuestAddress(base)).ok_or("the RAM ends past the address space")?;
        let memory = GuestMemoryMmap::from_regions(vec![region])?;
        Ok(Self { store, base, memory })
    }

    /// The guest address that it begins at.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// It as the emulator maps it.
    pub fn region(&self) -> Region {
        Region::ram("ram", Arc::clone(&self.store))
    }

    /// The same bytes, as devices want them.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}
