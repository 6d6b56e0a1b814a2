//! What an embedder's thread runs, or its event loop calls, to serve [`ResampleIrqfd`] lines.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

use super::ResampleIrqfd;
use crate::sync::lock;

/// Watches any number of [`ResampleIrqfd`] lines and tells each when the guest has finished an interrupt of it.
///
/// Run it on a thread of its own, or watch its file descriptor in an event loop and call [`serve`](Self::serve) when
/// it is readable. It holds no line: dropping one takes it off.
///
/// ```
/// use devisor::{
///     backends::kvm::{KvmIrqs, Resampler},
///     interrupt::{Interrupt, LevelInterrupt},
/// };
/// use std::{sync::Arc, thread};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(kvm) = kvm_ioctls::Kvm::new() else {
/// #     eprintln!("skipped: no /dev/kvm");
/// #     return Ok(());
/// # };
/// # if cfg!(not(target_arch = "x86_64")) {
/// #     eprintln!("skipped: written for the interrupt controller of x86_64");
/// #     return Ok(());
/// # }
/// # let vm = Arc::new(kvm.create_vm()?);
/// # vm.create_irq_chip()?;
/// let irqs = KvmIrqs::new(vm, 16..=23)?;
/// let line = Arc::new(irqs.allocate("uart")?.resample_irqfd()?);
///
/// let resampler = Arc::new(Resampler::new()?);
/// resampler.add(&line)?;
/// let served = Arc::clone(&resampler);
/// let thread = thread::spawn(move || served.run());
///
/// line.trigger()?;
/// // The guest takes it, and again after each EOI, until the device lets go:
/// line.clear()?;
///
/// resampler.stop()?;
/// thread.join().unwrap()?;
/// # Ok(())
/// # }
/// ```
pub struct Resampler {
    epoll: Epoll,
    stop: EventFd,
    lines: Mutex<Lines>,
    failures: AtomicU64,
}

#[derive(Default)]
struct Lines {
    by_token: BTreeMap<u64, Weak<ResampleIrqfd>>,
    next_token: u64,
}

/// The token of the eventfd that ends [`Resampler::run`]: lines count from 0 and do not get there.
const STOP: u64 = u64::MAX;

/// How many lines are looked at for one system call.
const BATCH: usize = 32;

impl Resampler {
    /// A resampler without lines.
    ///
    /// # Errors
    /// What the operating system answers when it is asked for an epoll instance and an eventfd.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        epoll.ctl(
            ControlOperation::Add,
            stop.as_raw_fd(),
            EpollEvent::new(EventSet::IN, STOP),
        )?;
        Ok(Self {
            epoll,
            stop,
            lines: Mutex::default(),
            failures: AtomicU64::new(0),
        })
    }

    /// Watches `line` until it is dropped. What the guest finished before is noticed too. Each line is added once, to one
    /// resampler.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` answers; `AlreadyExists` if the line was added before.
    pub fn add(&self, line: &Arc<ResampleIrqfd>) -> io::Result<()> {
        let mut lines = lock(&self.lines);
        lines.by_token.retain(|_, line| line.strong_count() != 0);
        let token = lines.next_token;
        // Edge-triggered: the kernel forgets a closed eventfd by itself only if it has no duplicate. If it has, nobody is
        // left to read it, and level-triggered it would be reported for ever.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(
            ControlOperation::Add,
            line.resample_fd().as_raw_fd(),
            EpollEvent::new(events, token),
        )?;
        lines.next_token += 1;
        lines.by_token.insert(token, Arc::downgrade(line));
        Ok(())
    }

    /// Tells every line whose guest has finished, until [`stop`](Self::stop). One thread at a time.
    ///
    /// # Errors
    /// What `epoll_wait(2)` answers. A line whose signal fails is counted in [`failures`](Self::failures) and does not end it.
    pub fn run(&self) -> io::Result<()> {
        const UNTIL_SOMETHING_HAPPENS: i32 = -1;
        while !self.wait(UNTIL_SOMETHING_HAPPENS)? {}
        // Taken, so that another `run` can follow.
        let _ = self.stop.read();
        Ok(())
    }

    /// Ends [`run`](Self::run), or the next one if none is running.
    ///
    /// # Errors
    /// What `write(2)` to an eventfd answers.
    pub fn stop(&self) -> io::Result<()> {
        self.stop.write(1)
    }

    /// Tells the lines whose guest has finished by now, a batch of them, and returns without waiting. The file
    /// descriptor stays readable if there are more.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn serve(&self) -> io::Result<()> {
        self.wait(0).map(|_stop| ())
    }

    /// How many signals failed. Each stays owed to its line, as [`ResampleIrqfd::guest_done`] says.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// One `epoll_wait(2)` and what follows from it. Returns whether `run` is to end.
    fn wait(&self, timeout_ms: i32) -> io::Result<bool> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(timeout_ms, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let mut stop = false;
        for token in events[..count].iter().map(EpollEvent::data) {
            stop |= token == STOP;
            let line = lock(&self.lines).by_token.get(&token).and_then(Weak::upgrade);
            if line.is_some_and(|line| line.guest_done().is_err()) {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(stop)
    }
}

/// Readable when [`Resampler::serve`] has something to do.
impl AsRawFd for Resampler {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl fmt::Debug for Resampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resampler")
            .field("lines", &lock(&self.lines).by_token.len())
            .field("failures", &self.failures())
            .finish_non_exhaustive()
    }
}
