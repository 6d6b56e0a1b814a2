//! An event descriptor: a kick, a call, an error.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::virtio::Descriptor;

pub(super) struct Event(OwnedFd);

impl Event {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes numbers, and its result is a descriptor that nobody else has, or none.
        unsafe {
            match libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) {
                ..0 => Err(io::Error::last_os_error()),
                descriptor => Ok(Self(OwnedFd::from_raw_fd(descriptor))),
            }
        }
    }

    pub fn descriptor(&self) -> Descriptor {
        self.0.as_raw_fd()
    }

    pub fn borrow(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// The same event, for the other end.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// It has come. One that is full has.
    pub fn signal(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes are read from a number that outlives the call.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Whether it has come since this was last asked.
    pub fn take(&self) -> bool {
        let mut count = 0_u64;
        // SAFETY: eight bytes are written to a number that outlives the call.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
        read == size_of::<u64>() as isize && count != 0
    }
}
