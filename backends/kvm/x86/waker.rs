//! How other threads reach a vCPU's thread: out of the guest, or out of its sleep.

use std::{
    fmt, io,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
    thread,
};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::run_page::RunPage;
use crate::interrupt::{Interrupt, LevelInterrupt};

/// The vCPU's thread is in KVM_RUN, or about to be.
const IN_GUEST: u32 = 1 << 0;
/// The vCPU's thread waits for a wake-up.
const ASLEEP: u32 = 1 << 1;
/// There was a wake-up since the vCPU last looked.
const WOKEN: u32 = 1 << 2;

/// Makes a vCPU look: it comes out of the guest or out of its sleep, sees to its events, and goes on.
///
/// As a line it is what a local APIC's wake line, or INTR, is connected to: a rise wakes, a fall does nothing. Clones are
/// handles to the same vCPU. It is made before the vCPU, for the local APICs need it first.
///
/// A wake-up costs nothing while the vCPU is neither in the guest nor asleep, and nothing if one is under way; otherwise
/// a signal, `SIGRTMIN`, or a wake-up of the thread. [`VcpuWaker::new`] gives that signal a handler that does nothing; the
/// process is to leave it at that, and not to block the signal on threads of vCPUs.
#[derive(Clone, Default)]
pub struct VcpuWaker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: AtomicU32,
    /// The vCPU's thread as the kernel names it, from its first run on.
    thread: AtomicI32,
    handle: OnceLock<thread::Thread>,
    page: OnceLock<RunPage>,
}

impl VcpuWaker {
    /// For a vCPU that is yet to be made.
    ///
    /// # Errors
    /// What the operating system answers when it is asked to handle the signal.
    pub fn new() -> io::Result<Self> {
        extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        static HANDLER: Once = Once::new();
        let mut registered = Ok(());
        HANDLER.call_once(|| registered = register_signal_handler(SIGRTMIN(), ignore));
        registered?;
        Ok(Self::default())
    }

    /// Makes the vCPU look. From any thread.
    pub fn wake(&self) {
        let before = self.shared.state.fetch_or(WOKEN, Ordering::SeqCst);
        if before & WOKEN != 0 {
            return;
        }
        if before & IN_GUEST != 0 {
            // First the flag, for KVM_RUN that has not begun yet; then the signal, for one that has. One that comes too
            // late finds the flag cleared again, or ends the next run early: it looks once more.
            if let Some(page) = self.shared.page.get() {
                page.set_immediate_exit(true);
            }
            signal(self.shared.thread.load(Ordering::SeqCst));
        }
        if before & ASLEEP != 0
            && let Some(handle) = self.shared.handle.get()
        {
            handle.unpark();
        }
    }

    pub(super) fn attach(&self, page: RunPage) -> Result<(), RunPage> {
        self.shared.page.set(page)
    }

    pub(super) fn page(&self) -> &RunPage {
        self.shared.page.get().expect("a vCPU has attached its page")
    }

    /// The vCPU's thread has looked and enters the guest. `false` if it has to look again.
    pub(super) fn enter(&self) -> bool {
        self.shared.thread.store(thread_id(), Ordering::SeqCst);
        self.page().set_immediate_exit(false);
        let state = &self.shared.state;
        let entered = state.compare_exchange(0, IN_GUEST, Ordering::SeqCst, Ordering::SeqCst);
        if entered.is_err() {
            state.store(0, Ordering::SeqCst);
        }
        entered.is_ok()
    }

    /// The vCPU's thread is out of the guest, and about to look.
    pub(super) fn leave(&self) {
        self.shared.state.store(0, Ordering::SeqCst);
    }

    /// The vCPU's thread has looked and sleeps until it is woken.
    pub(super) fn sleep(&self) {
        self.shared.handle.get_or_init(thread::current);
        let state = &self.shared.state;
        if state
            .compare_exchange(0, ASLEEP, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
        {
            while state.load(Ordering::SeqCst) & WOKEN == 0 {
                thread::park();
            }
        }
        state.store(0, Ordering::SeqCst);
    }
}

/// The calling thread as the kernel names it.
fn thread_id() -> i32 {
    thread_local! {
        // SAFETY: the call has no arguments, touches no memory and cannot fail.
        static ID: i32 = unsafe { libc::gettid() };
    }
    ID.with(|id| *id)
}

/// A thread that has ended, or whose number is another's of this process by now, is no harm: the handler does nothing.
fn signal(thread: i32) {
    // SAFETY: the system call takes three numbers and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
}

/// A rise wakes the vCPU.
impl Interrupt for VcpuWaker {
    fn trigger(&self) -> io::Result<()> {
        self.wake();
        Ok(())
    }
}

/// A fall is nothing that the vCPU has to hear of.
impl LevelInterrupt for VcpuWaker {
    fn clear(&self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for VcpuWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuWaker")
            .field("thread", &self.shared.thread.load(Ordering::SeqCst))
            .finish_non_exhaustive()
    }
}
