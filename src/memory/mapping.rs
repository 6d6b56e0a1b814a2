//! A file in the memory of this process.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    ptr::{self, NonNull},
};

/// The beginning of a file, mapped shared, as long as this is there. Others may change what is there at any time. Who accesses what is no
/// longer in the file is ended by a signal.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: the address leads to memory that is shared by its nature; nothing here follows it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Of `len` bytes, to read, and to write too if `writable`.
    pub fn new(file: &File, len: usize, writable: bool) -> io::Result<Self> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // An empty mapping is refused; of an empty file this one is not accessed.
        let (fd, flags, mapped) = (file.as_raw_fd(), libc::MAP_SHARED, len.max(1));
        // SAFETY: a new mapping at an address that the system chooses: it is in nobody's way.
        let address = unsafe { libc::mmap(ptr::null_mut(), mapped, protection, flags, fd, 0) };
        let failed = ptr::eq(address, libc::MAP_FAILED);
        match NonNull::new(address.cast()).filter(|_| !failed) {
            Some(address) => Ok(Self { address, len }),
            None => Err(io::Error::last_os_error()),
        }
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever has the address uses it no more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len.max(1)) };
    }
}
