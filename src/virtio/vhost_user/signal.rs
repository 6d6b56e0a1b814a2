//! Eventfds that others have too, signaled without waiting.
//!
//! A write to an eventfd waits where its count is as high as can be, unless its flags say otherwise, which belong to all who have it; and
//! there is no write that says so for itself. But the kernel never waits where it signals an eventfd by itself, and it does so when
//! asynchronous I/O (`io_submit(2)`) has ended, well or not: here a read of no bytes, which an eventfd refuses (since Linux 5.9; before,
//! all of it is refused).

use std::{io, mem, os::fd::RawFd, ptr, sync::OnceLock};

/// `struct iocb` (linux/aio_abi.h). The two fields that change places with the order of bytes are zero.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `IOCB_CMD_PREAD`.
const PREAD: u16 = 0;
/// `IOCB_FLAG_RESFD`: an eventfd is signaled.
const SIGNALS: u32 = 1;
/// Bytes of `struct io_event`, in words.
const EVENT: usize = 4;
/// So many ends are forgotten at a time.
const ENDS: usize = 64;

/// Signals an eventfd. One that is as full as can be stays so.
///
/// # Errors
/// It is none, or the system has nothing to signal it by; nor has a process that was forked off since.
pub(crate) fn signal(eventfd: RawFd) -> io::Result<()> {
    // One for all: to end one takes the kernel milliseconds.
    static CONTEXT: OnceLock<Option<Context>> = OnceLock::new();
    let context = match CONTEXT.get() {
        Some(context) => context,
        None => match Context::new() {
            // There never will be one. What else is in the way may be gone the next time.
            Err(error) if ![Some(libc::ENOSYS), Some(libc::EPERM)].contains(&error.raw_os_error()) => {
                return Err(error);
            }
            context => CONTEXT.get_or_init(|| context.ok()),
        },
    };
    match context {
        Some(context) => context.signal(eventfd),
        None => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Of requests.
#[derive(Debug)]
struct Context(libc::c_ulong);

impl Context {
    fn new() -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number, which outlives the call.
        match unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) } {
            0 => Ok(Self(context)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn signal(&self, eventfd: RawFd) -> io::Result<()> {
        let mut request = Request {
            opcode: PREAD,
            file: eventfd as u32,
            flags: SIGNALS,
            eventfd: eventfd as u32,
            ..Request::default()
        };
        match self.submit(&mut request) {
            // The ends of others before it have not been looked at.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                self.forget_ends();
                self.submit(&mut request)
            }
            result => result,
        }
    }

    fn submit(&self, request: &mut Request) -> io::Result<()> {
        let (count, requests): (libc::c_long, _) = (1, [ptr::from_mut(request)]);
        // SAFETY: one request, in which the kernel writes a key, and which moves no bytes and has ended when the call returns.
        match unsafe { libc::syscall(libc::SYS_io_submit, self.0, count, requests.as_ptr()) } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn forget_ends(&self) {
        let mut ends = [0_u64; ENDS * EVENT];
        // SAFETY: all zeros are a time.
        let at_once: libc::timespec = unsafe { mem::zeroed() };
        let (least, most): (libc::c_long, libc::c_long) = (0, ENDS as _);
        // SAFETY: there is room for as many ends as are asked for, and both outlive the call, which does not wait.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.0,
                least,
                most,
                ends.as_mut_ptr(),
                &raw const at_once,
            )
        };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nobody has it any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}
