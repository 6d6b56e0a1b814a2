//! Memory of rsemu's, as devisor's devices want it.

use std::{error::Error, fs::File, io, os::fd::AsRawFd, sync::Arc};

use rsemu::core::space::{RamStore, Region};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::virtio::Window;

/// The memory of the machine, seen from the cores and from the devices.
pub struct Ram {
    stores: Vec<(u64, Arc<RamStore>)>,
    memory: Arc<GuestMemoryMmap>,
    file: Option<File>,
}

impl Ram {
    /// Zeroed bytes at these places; at the beginning of the last of them a file, if there is one, mapped shared.
    pub fn new(windows: &[Window], file: Option<File>) -> Result<Self, Box<dyn Error>> {
        let mut stores = Vec::new();
        let mut regions = Vec::new();
        for window in windows {
            let (store, region) = Self::region(*window)?;
            stores.push((window.base, store));
            regions.push(region);
        }
        if let (Some(file), Some((_, store))) = (&file, stores.last()) {
            place(file, store)?;
        }
        let memory = Arc::new(GuestMemoryMmap::from_regions(regions)?);
        Ok(Self { stores, memory, file })
    }

    fn region(window: Window) -> Result<(Arc<RamStore>, GuestRegionMmap), Box<dyn Error>> {
        let Window { base, len: size } = window;
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
        Ok((store, region))
    }

    /// It as the emulator maps it: where each part begins, and the part.
    pub fn regions(&self) -> impl Iterator<Item = (u64, Region)> {
        let region = |(base, store): &(u64, Arc<RamStore>)| (*base, Region::ram("ram", Arc::clone(store)));
        self.stores.iter().map(region)
    }

    /// The same bytes, as devices want them.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// What is in the last part.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }
}

/// Maps a file in the place of a store's first bytes: the emulator has only memory of its own.
fn place(file: &File, store: &RamStore) -> io::Result<()> {
    let len = file.metadata()?.len().min(store.len()) as usize;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: these bytes are the store's alone, begin with a page of the host, and are never freed.
    let mapped = unsafe { libc::mmap(store.host_addr() as *mut _, len, protection, flags, file.as_raw_fd(), 0) };
    match std::ptr::eq(mapped, libc::MAP_FAILED) {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}
