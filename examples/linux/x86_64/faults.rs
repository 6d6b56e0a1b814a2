//! A fault of the emulator's, and what is done about it.

use std::sync::atomic::{AtomicU64, Ordering};

use rsemu::cpu::x86::X86;

/// rsemu's x86 core keeps the translation that has caused a page fault, and would run into it for ever once the guest has mended its
/// tables.
#[derive(Default)]
pub struct Faults {
    /// CR2 after the last run.
    at: AtomicU64,
    runs: AtomicU64,
}

impl Faults {
    /// To be called after each run. If there was a fault, all translations are dropped; and now and then, as a second fault at the same
    /// address is not told from the first.
    pub fn forget(&self, core: &X86) {
        const NOW_AND_THEN: u64 = 64;
        let sys = core.sys();
        let faulted = self.at.swap(sys.cr2, Ordering::Relaxed) != sys.cr2;
        if self.runs.fetch_add(1, Ordering::Relaxed).is_multiple_of(NOW_AND_THEN) || faulted {
            core.set_sys(sys);
        }
    }
}
