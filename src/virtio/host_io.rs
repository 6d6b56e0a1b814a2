//! Vectored I/O between guest memory and descriptors of the host.

use std::{io, mem::MaybeUninit, os::fd::RawFd};

use vm_memory::VolatileSlice;

/// How many pieces of guest memory one system call is given at most; what is beyond them is for the next.
pub(super) const PIECES: usize = 128;

/// Fills `room` with what is at `fd`: a pipe, a terminal, a socket.
pub(super) fn read(fd: RawFd, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
    if let [one] = room {
        let guard = one.ptr_guard_mut();
        // SAFETY: the memory may be written for as long as the guard is there.
        return again(|| unsafe { libc::read(fd, guard.as_ptr().cast(), guard.len()) });
    }
    // SAFETY: the vectors name memory that may be written, for as long as the call takes.
    with_vectors(room, |vectors, count| unsafe { libc::readv(fd, vectors, count) })
}

/// Writes `data` to `fd`, which is no socket.
pub(super) fn write(fd: RawFd, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
    // SAFETY: the vectors name memory that may be read, for as long as the call takes.
    with_vectors(data, |vectors, count| unsafe { libc::writev(fd, vectors, count) })
}

/// Sends `data` to the socket `fd`. One whose other end has gone is an error and no signal.
pub(super) fn send(fd: RawFd, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
    if let [one] = data {
        let guard = one.ptr_guard();
        // SAFETY: the memory may be read for as long as the guard is there.
        return again(|| unsafe { libc::send(fd, guard.as_ptr().cast(), guard.len(), NO_SIGNAL) });
    }
    with_vectors(data, |vectors, count| {
        // SAFETY: a message header of zeros is an empty one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vectors.cast_mut();
        message.msg_iovlen = count as _;
        // SAFETY: the vectors name memory that may be read, for as long as the call takes.
        unsafe { libc::sendmsg(fd, &message, NO_SIGNAL) }
    })
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(super) const NO_SIGNAL: libc::c_int = libc::MSG_NOSIGNAL;
/// Elsewhere it is a property of the socket, which the standard library sets.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub(super) const NO_SIGNAL: libc::c_int = 0;

/// One call with all that it takes of `slices`.
fn with_vectors(
    slices: &[VolatileSlice<'_>],
    call: impl Fn(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    match slices.len() {
        0..=8 => with_up_to::<8>(slices, call),
        9..=32 => with_up_to::<32>(slices, call),
        _ => with_up_to::<PIECES>(slices, call),
    }
}

/// The same, with `N` at most.
fn with_up_to<const N: usize>(
    slices: &[VolatileSlice<'_>],
    call: impl Fn(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(N)];
    // They keep the memory mapped until the call is over.
    let mut guards = [const { None }; N];
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; N];
    for ((slice, guard), vector) in slices.iter().zip(&mut guards).zip(&mut vectors) {
        let guard = guard.insert(slice.ptr_guard_mut());
        vector.write(libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        });
    }
    again(|| call(vectors.as_ptr().cast(), slices.len() as libc::c_int))
}

/// A call, again if a signal has interrupted it.
fn again(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(moved) = usize::try_from(call()) {
            return Ok(moved);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sets O_NONBLOCK. Returns the flags of before.
pub(super) fn set_nonblocking(fd: RawFd) -> io::Result<libc::c_int> {
    let flags = flags(fd)?;
    set_flags(fd, flags | libc::O_NONBLOCK)?;
    Ok(flags)
}

/// The status flags of an open file, and how it is open.
pub(super) fn flags(fd: RawFd) -> io::Result<libc::c_int> {
    // SAFETY: no memory is involved.
    match unsafe { libc::fcntl(fd, libc::F_GETFL) } {
        ..0 => Err(io::Error::last_os_error()),
        flags => Ok(flags),
    }
}

/// Sets the status flags of an open file.
pub(super) fn set_flags(fd: RawFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::fcntl(fd, libc::F_SETFL, flags) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What of `events` is there now at `fd`, with what is always told.
pub(super) fn poll(fd: RawFd, events: libc::c_short) -> libc::c_short {
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one structure, which is there for the call; it does not wait.
    match unsafe { libc::poll(&mut polled, 1, 0) } {
        1 => polled.revents,
        _ => 0,
    }
}
