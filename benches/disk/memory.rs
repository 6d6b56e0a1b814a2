//! Memory as a guest's.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Of each queue.
pub const APART: u64 = 32 << 20;
/// Where the data of its requests is there.
pub const DATA: u64 = 1 << 20;

/// For so many queues: in large pages if the host has some, as QEMU asks for all of a guest's.
pub fn new(queues: u16) -> Arc<GuestMemoryMmap> {
    let len = (APART * u64::from(queues)) as usize;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).expect("guest memory");
    let base = memory.get_host_address(GuestAddress(0)).expect("in memory");
    // SAFETY: all of one mapping. A host that has none refuses.
    unsafe { libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE) };
    Arc::new(memory)
}
