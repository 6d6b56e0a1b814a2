//! Memory of rsemu's, as devisor's devices want it.

use std::{
    error::Error,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    sync::Arc,
};

use rsemu::core::space::{RamStore, Region};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, mmap::MmapRegionBuilder};

use crate::virtio::Window;

/// The memory of the machine, seen from the cores and from the devices.
pub struct Ram {
    stores: Vec<(u64, Arc<RamStore>)>,
    memory: Arc<GuestMemoryMmap>,
    file: Option<File>,
}

impl Ram {
    /// Zeroed bytes at these places, of this process alone.
    pub fn private(windows: &[Window]) -> Result<Self, Box<dyn Error>> {
        Self::new(windows, Backing::Private, None)
    }

    /// The same, in which daemons can have a part; at the beginning of the last of them a file, if there is one, mapped shared.
    pub fn shared(windows: &[Window], file: Option<File>) -> Result<Self, Box<dyn Error>> {
        Self::new(windows, Backing::Shared, file)
    }

    fn new(windows: &[Window], backing: Backing, file: Option<File>) -> Result<Self, Box<dyn Error>> {
        let mut stores = Vec::new();
        let mut regions = Vec::new();
        for window in windows {
            let (store, region) = Self::region(*window, backing)?;
            stores.push((window.base, store));
            regions.push(region);
        }
        if let (Some(file), Some((_, store))) = (&file, stores.last()) {
            place(file, store)?;
        }
        let memory = Arc::new(GuestMemoryMmap::from_regions(regions)?);
        Ok(Self { stores, memory, file })
    }

    fn region(window: Window, backing: Backing) -> Result<(Arc<RamStore>, GuestRegionMmap), Box<dyn Error>> {
        let Window { base, len: size } = window;
        let store = Arc::new(RamStore::new(size));
        // Devices may hold clones of the memory for as long as they like, and those do not know the store.
        std::mem::forget(Arc::clone(&store));
        let mapping = MmapRegionBuilder::new(usize::try_from(size)?).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let mapping = match backing {
            Backing::Private => {
                renew(&store)?;
                mapping.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            }
            Backing::Shared => {
                let file = shared_file(size)?;
                place(&file, &store)?;
                let mapping = mapping.with_mmap_flags(libc::MAP_SHARED);
                mapping.with_file_offset(FileOffset::new(file, 0))
            }
        };
        // SAFETY: the store owns `size` bytes at its host address, neither moves nor resizes them, and is never freed.
        let mapping = unsafe { mapping.with_raw_mmap_pointer(store.host_addr() as *mut u8) }.build()?;
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

/// Whose the bytes are.
#[derive(Clone, Copy)]
enum Backing {
    /// The fastest: in pages as large as the host has, all of them there before the guest runs.
    Private,
    /// In a file without a name.
    Shared,
}

/// Maps new zeroed bytes in the place of a store's: it has written to its own one by one, and so they are in small pages.
fn renew(store: &RamStore) -> io::Result<()> {
    let (address, len) = (store.host_addr() as *mut libc::c_void, store.len() as usize);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: these bytes are the store's alone, begin with a page of the host, and are never freed.
    let mapped = unsafe { libc::mmap(address, len, protection, flags, -1, 0) };
    if std::ptr::eq(mapped, libc::MAP_FAILED) {
        return Err(io::Error::last_os_error());
    }
    // A host that knows neither gives small pages, as they are used.
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE] {
        // SAFETY: as above, and neither advice changes what the bytes are.
        unsafe { libc::madvise(address, len, advice) };
    }
    Ok(())
}

/// A file of so many bytes that has no name.
fn shared_file(size: u64) -> io::Result<File> {
    // SAFETY: the name is a string, and the descriptor is nobody else's, or none.
    let file = unsafe {
        match libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC) {
            ..0 => return Err(io::Error::last_os_error()),
            descriptor => File::from_raw_fd(descriptor),
        }
    };
    file.set_len(size)?;
    Ok(file)
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
