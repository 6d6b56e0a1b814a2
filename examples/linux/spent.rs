//! What a run costs.

use std::time::Duration;

/// What this process has used of the CPU, all its threads together.
pub fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: there is room for what is written, and zeros are a valid value of it too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |of: libc::timeval| Duration::new(of.tv_sec as u64, of.tv_usec as u32 * 1_000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
