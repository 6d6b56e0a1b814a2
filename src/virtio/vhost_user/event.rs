//! Event descriptors that both ends share, and with them whether they are waited for: either end can change that at any time.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

/// Whether a descriptor can be read or written without waiting, as far as is known now: whoever shares it may come first.
pub(crate) fn is_ready(descriptor: RawFd, events: libc::c_short) -> bool {
    let mut poll = libc::pollfd {
        fd: descriptor,
        events,
        revents: 0,
    };
    // SAFETY: one structure, as is said, which outlives the call.
    (unsafe { libc::poll(&raw mut poll, 1, 0) }) == 1
}

/// Takes what is there, and does not wait. Whether there was anything.
pub(crate) fn take(event: &impl AsRawFd) -> bool {
    let event = event.as_raw_fd();
    let mut value = [0u8; 8];
    let iov = libc::iovec {
        iov_base: value.as_mut_ptr().cast(),
        iov_len: value.len(),
    };
    // SAFETY: one buffer of the length that is said, which outlives the call.
    let read = unsafe { libc::preadv2(event, &raw const iov, 1, -1, libc::RWF_NOWAIT) };
    match read {
        ..0 if io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) => {
            // SAFETY: as above.
            is_ready(event, libc::POLLIN) && (unsafe { libc::read(event, value.as_mut_ptr().cast(), value.len()) }) > 0
        }
        read => read > 0,
    }
}

/// Has it come, and does not wait. No eventfd takes a write that says for itself that it is not to be waited for (`pwritev2` with
/// RWF_NOWAIT). One that is as full as can be needs no more: the other end has not looked since.
///
/// # Errors
/// Nobody can hear of it any more.
pub(crate) fn signal(event: &impl AsRawFd) -> io::Result<()> {
    let event = event.as_raw_fd();
    if !is_ready(event, libc::POLLOUT) {
        return Ok(());
    }
    let one = 1u64.to_ne_bytes();
    // SAFETY: one buffer of the length that is said, which outlives the call.
    if unsafe { libc::write(event, one.as_ptr().cast(), one.len()) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        error => Err(error),
    }
}
