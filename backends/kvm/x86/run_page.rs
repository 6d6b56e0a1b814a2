//! The page that a vCPU shares with the kernel: what KVM_RUN is told, and what it tells.

use std::{
    io,
    mem::size_of,
    os::fd::AsRawFd,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU8, Ordering},
};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// A mapping of its own of `struct kvm_run`, so that it outlives whatever the vCPU's thread does, and so that its
/// interrupt fields can be reached while an exit borrows the rest.
///
/// But for `immediate_exit`, only the vCPU's thread uses it.
pub(super) struct RunPage(NonNull<kvm_run>);

// SAFETY: the mapping is of this process and not of a thread, and every access through it is volatile or atomic.
unsafe impl Send for RunPage {}
// SAFETY: as above; the one field that several threads write is accessed as an atomic.
unsafe impl Sync for RunPage {}

/// A field of the page, as a raw pointer: to be used where it is known that the page is mapped.
macro_rules! field {
    ($page:expr, $($field:ident).+) => {
        &raw mut (*$page.0.as_ptr()).$($field).+
    };
}

impl RunPage {
    pub(super) fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is open.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// The next KVM_RUN, or the one that has not begun yet, finishes what the last exit left open and returns EINTR.
    pub(super) fn set_immediate_exit(&self, exit: bool) {
        // SAFETY: the byte is mapped as long as `self`, and accessed as an atomic by everybody in this process.
        let field = unsafe { AtomicU8::from_ptr(field!(self, immediate_exit)) };
        field.store(exit.into(), Ordering::SeqCst);
    }

    /// After an exit for a port: how many bytes an access has.
    pub(super) fn port_width(&self) -> usize {
        // SAFETY: the union is mapped as long as `self`, all of it integers, and it is this thread's.
        let width = unsafe { (field!(self, __bindgen_anon_1.io.size)).read_volatile() };
        // The kernel says 1, 2 or 4; nobody is to divide by anything else.
        usize::from(width).max(1)
    }
}

/// What an embedder needs who injects interrupts.
#[cfg(feature = "irqchip")]
impl RunPage {
    /// KVM_RUN is to return as soon as the guest takes interrupts.
    pub(super) fn request_interrupt_window(&self, wanted: bool) {
        // SAFETY: the field is mapped as long as `self`, and is this thread's.
        unsafe { (field!(self, request_interrupt_window)).write_volatile(wanted.into()) }
    }

    /// Whether the guest took interrupts at the last exit.
    pub(super) fn is_ready_for_interrupt(&self) -> bool {
        // SAFETY: as above.
        unsafe { (field!(self, ready_for_interrupt_injection)).read_volatile() != 0 }
    }

    /// It has one now, or is in another state altogether: not before the next exit.
    pub(super) fn is_no_longer_ready(&self) {
        // SAFETY: as above.
        unsafe { (field!(self, ready_for_interrupt_injection)).write_volatile(0) }
    }

    pub(super) fn cr8(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (field!(self, cr8)).read_volatile() }
    }

    pub(super) fn set_cr8(&self, value: u64) {
        // SAFETY: as above.
        unsafe { (field!(self, cr8)).write_volatile(value) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody has a pointer into it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<kvm_run>()) };
    }
}
