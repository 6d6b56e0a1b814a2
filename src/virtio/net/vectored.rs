//! Vectored system calls on slices of guest memory.

use std::io;

use vm_memory::VolatileSlice;

use super::{
    MAX_FRAME,
    port::{copy_from, copy_to, length},
};

/// The most buffers that one call takes, on Linux and the BSDs.
const IOV_MAX: usize = 1024;

/// As many buffers need no allocation.
const INLINE: usize = 8;

fn vector(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: len,
    }
}

fn of(slice: &VolatileSlice<'_>) -> libc::iovec {
    let guard = slice.ptr_guard_mut();
    vector(guard.as_ptr(), guard.len())
}

fn with<R>(
    head: libc::iovec,
    slices: &[VolatileSlice<'_>],
    tail: Option<libc::iovec>,
    f: impl FnOnce(&mut [libc::iovec]) -> R,
) -> R {
    if slices.len() + 2 > INLINE {
        let all = [head].into_iter().chain(slices.iter().map(of)).chain(tail);
        return f(&mut all.collect::<Vec<_>>());
    }
    let mut vectors = [vector(std::ptr::null_mut(), 0); INLINE];
    vectors[0] = head;
    for (place, slice) in vectors[1..].iter_mut().zip(slices) {
        *place = of(slice);
    }
    let mut count = 1 + slices.len();
    if let Some(tail) = tail {
        vectors[count] = tail;
        count += 1;
    }
    f(&mut vectors[..count])
}

/// Calls `f` with vectors of `head` and then `frame`, both of which it may read.
pub(super) fn gather<R>(head: &mut [u8], frame: &[VolatileSlice<'_>], f: impl FnOnce(&mut [libc::iovec]) -> R) -> R {
    let head = vector(head.as_mut_ptr(), head.len());
    if frame.len() + 2 <= IOV_MAX {
        return with(head, frame, None, f);
    }
    let mut bytes = vec![0; length(frame).min(MAX_FRAME)];
    let len = copy_from(frame, &mut bytes);
    with(head, &[VolatileSlice::from(&mut bytes[..len])], None, f)
}

/// Calls `f` with vectors of `head`, `room` and `overflow`, all of which it may write. It returns how many bytes it has written.
pub(super) fn scatter(
    head: &mut [u8],
    room: &[VolatileSlice<'_>],
    overflow: &mut [u8],
    f: impl FnOnce(&mut [libc::iovec]) -> io::Result<usize>,
) -> io::Result<usize> {
    let head_len = head.len();
    let head = vector(head.as_mut_ptr(), head.len());
    if room.len() + 2 <= IOV_MAX {
        let tail = vector(overflow.as_mut_ptr(), overflow.len());
        return with(head, room, Some(tail), f);
    }
    let mut bytes = vec![0; MAX_FRAME];
    let done = with(head, &[], Some(vector(bytes.as_mut_ptr(), bytes.len())), f)?;
    let len = done.saturating_sub(head_len).min(bytes.len());
    copy_to(&bytes[..len], room, overflow);
    Ok(done)
}

/// Calls `f` with vectors of `room`, which is one slice, and `overflow`, both of which it may write.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for TAP interfaces"))]
pub(super) fn scatter_two<R>(
    room: &VolatileSlice<'_>,
    overflow: &mut [u8],
    f: impl FnOnce(&mut [libc::iovec]) -> R,
) -> R {
    f(&mut [of(room), vector(overflow.as_mut_ptr(), overflow.len())])
}

/// Calls again as long as a signal interrupts the call.
pub(super) fn uninterrupted(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
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
