//! How other threads reach a vCPU's thread: out of the guest, or out of its sleep.

use std::{
    fmt, io,
    sync::{Arc, OnceLock, atomic::AtomicI32},
    thread,
};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::run_page::RunPage;
use crate::{
    interrupt::{Interrupt, LevelInterrupt},
    sync::{AtomicU64, Ordering},
};

/// Makes a vCPU look: it comes out of the guest or out of its sleep, sees to its events, and goes on.
///
/// As a line it is what a local APIC's wake line, or INTR, is connected to: a rise wakes, a fall does nothing. Clones are
/// handles to the same vCPU. It is made before the vCPU, for the local APICs need it first.
///
/// A wake-up costs nothing while the vCPU is neither in the guest nor asleep, and nothing if one is under way; otherwise
/// a signal, or a wake-up of the thread. [`VcpuWaker::new`] takes `SIGRTMIN` and gives it a handler that does nothing; a process
/// that has a signal for this already gives it to [`with_signal`](VcpuWaker::with_signal). Threads of vCPUs are not to
/// block it.
#[derive(Clone)]
pub struct VcpuWaker {
    shared: Arc<Shared>,
}

struct Shared {
    gate: Gate,
    signal: libc::c_int,
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
        static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
        let registered = HANDLER.get_or_init(|| {
            let registered = register_signal_handler(SIGRTMIN(), ignore);
            registered.map_err(|error| error.errno())
        });
        registered.map_err(io::Error::from_raw_os_error)?;
        Ok(Self::with_signal(SIGRTMIN()))
    }

    /// For a vCPU that is yet to be made, with a signal that has a handler. Whatever that does, KVM_RUN ends when it comes.
    pub fn with_signal(signal: libc::c_int) -> Self {
        let shared = Shared {
            gate: Gate::default(),
            signal,
            thread: AtomicI32::default(),
            handle: OnceLock::new(),
            page: OnceLock::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Makes the vCPU look. From any thread.
    pub fn wake(&self) {
        match self.shared.gate.wake() {
            Effort::None => (),
            Effort::Kick => {
                // First the flag, for KVM_RUN that has not begun yet; then the signal, for one that has. What comes too
                // late finds the flag cleared again, or ends the next run early: it looks once more.
                if let Some(page) = self.shared.page.get() {
                    page.set_immediate_exit(true);
                }
                signal(self.shared.thread.load(Ordering::SeqCst), self.shared.signal);
            }
            Effort::Unpark => {
                if let Some(handle) = self.shared.handle.get() {
                    handle.unpark();
                }
            }
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
        self.shared.gate.close(IN_GUEST)
    }

    /// The vCPU's thread is out of the guest, and about to look.
    pub(super) fn leave(&self) {
        self.shared.gate.open();
    }

    /// The vCPU's thread has looked and sleeps until it is woken.
    pub(super) fn sleep(&self) {
        self.shared.handle.get_or_init(thread::current);
        if self.shared.gate.close(ASLEEP) {
            while !self.shared.gate.is_woken() {
                thread::park();
            }
            self.shared.gate.open();
        }
    }
}

/// The vCPU's thread is in KVM_RUN, or about to be.
const IN_GUEST: u64 = 1 << 0;
/// The vCPU's thread waits for a wake-up.
const ASLEEP: u64 = 1 << 1;
/// There was a wake-up since the vCPU last looked.
const WOKEN: u64 = 1 << 2;

/// Whether the vCPU's thread looks by itself, and whether it is to look.
struct Gate(AtomicU64);

/// What a wake-up takes.
#[derive(Debug, PartialEq, Eq)]
enum Effort {
    None,
    Kick,
    Unpark,
}

impl Gate {
    fn wake(&self) -> Effort {
        match self.0.fetch_or(WOKEN, Ordering::SeqCst) {
            IN_GUEST => Effort::Kick,
            ASLEEP => Effort::Unpark,
            // It looks by itself before it does either; or somebody else sees to it.
            _ => Effort::None,
        }
    }

    /// From now on a wake-up takes an effort. `false` if there was one since the vCPU last began to look.
    fn close(&self, how: u64) -> bool {
        let closed = self.0.compare_exchange(0, how, Ordering::SeqCst, Ordering::SeqCst);
        if closed.is_err() {
            self.open();
        }
        closed.is_ok()
    }

    /// The vCPU begins to look. It sees what was done before each wake-up that it takes away here: hence the exchange.
    fn open(&self) {
        self.0.swap(0, Ordering::SeqCst);
    }

    fn is_woken(&self) -> bool {
        self.0.load(Ordering::SeqCst) & WOKEN != 0
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self(AtomicU64::new(0))
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
fn signal(thread: i32, number: libc::c_int) {
    // SAFETY: the system call takes three numbers and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, number) };
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

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{
        sync::{Arc, atomic::AtomicBool},
        thread,
    };

    use super::*;

    /// What the wakers leave for the vCPU, and how they reach it.
    struct Machine {
        gate: Gate,
        work: [AtomicBool; 2],
        immediate_exit: AtomicBool,
    }

    impl Machine {
        fn wake(&self, who: usize) {
            self.work[who].store(true, Ordering::SeqCst);
            match self.gate.wake() {
                Effort::None => (),
                Effort::Kick | Effort::Unpark => self.immediate_exit.store(true, Ordering::SeqCst),
            }
        }

        /// The vCPU looks. `false` if it stays where it goes then, unless somebody fetches it.
        fn looks_once(&self, how: u64) -> bool {
            let seen = self.work.iter().all(|work| work.load(Ordering::SeqCst));
            self.immediate_exit.store(false, Ordering::SeqCst);
            seen || !self.gate.close(how)
        }
    }

    fn nobody_is_forgotten(how: u64) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound.get_or_insert(3);
        builder.check(move || {
            let machine = Arc::new(Machine {
                gate: Gate::default(),
                work: [AtomicBool::new(false), AtomicBool::new(false)],
                immediate_exit: AtomicBool::new(false),
            });
            let wakers = [0, 1].map(|who| {
                let machine = machine.clone();
                thread::spawn(move || machine.wake(who))
            });
            let mut stays = false;
            for _ in 0..2 {
                stays = !machine.looks_once(how);
                if stays && machine.immediate_exit.load(Ordering::SeqCst) {
                    machine.gate.open();
                    stays = false;
                }
            }
            wakers.into_iter().for_each(|waker| waker.join().unwrap());
            assert!(
                !stays || machine.immediate_exit.load(Ordering::SeqCst),
                "there is work, and the vCPU neither looks nor is fetched"
            );
        });
    }

    #[test]
    fn loom_a_wake_up_between_the_look_and_the_entry_is_not_lost() {
        nobody_is_forgotten(IN_GUEST);
    }

    #[test]
    fn loom_a_wake_up_between_the_look_and_the_sleep_is_not_lost() {
        nobody_is_forgotten(ASLEEP);
    }
}
