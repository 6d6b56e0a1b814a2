//! A thread that waits for a queue in the ring of its requests.

use std::{
    cell::RefCell,
    io,
    ops::ControlFlow,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::Waker,
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue, types};

use crate::sync::lock;

/// A thread of the embedder's that serves one queue over a [`UringStorage`](super::UringStorage), and waits *in the ring* of its requests: they are
/// submitted and waited for by one call of the kernel, where a loop around epoll needs two, and one more for the bell.
///
/// What else the thread is to wake for is the *bell*: an eventfd that a [`Doorbell`](crate::virtio::transport::Doorbell) rings, or that
/// KVM itself does for the driver (an ioeventfd). Nobody else reads it: the ring sees it rise, so a bell costs no call either.
///
/// *One queue a waiter*: the first ring that is served in [`run`](Self::run) is the one that is waited in, until its queue is reset.
/// A second one has its requests submitted at once, and says what it waits for as always. The queue may be served by others beside this
/// thread; what they begin ends here all the same. A ring that is [polled for](super::UringOptions::poll_completions), or from whose
/// submissions [a thread of the kernel's](super::UringOptions::poll_submissions) takes them, is not waited in.
///
/// ```no_run
/// use devisor::{
///     interrupt::NoInterrupt,
///     virtio::{
///         QueueIndex, VirtioMmio, VirtioTransport,
///         block::{Block, BlockOptions, FileStorage, UringOptions, UringStorage, UringWaiter},
///         transport::mmio::Line,
///     },
/// };
/// use std::{ops::ControlFlow, sync::{Arc, atomic::{AtomicBool, Ordering}}, thread};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let storage = UringStorage::new(FileStorage::open("disk.img")?, UringOptions::default())?;
/// let disk = Block::with_async(storage, BlockOptions::default())?;
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let waiter = Arc::new(UringWaiter::new()?);
/// let bell = Arc::clone(&waiter);
/// let disk = VirtioMmio::new(disk, memory, Line::Edge(Arc::new(NoInterrupt)))?.with_doorbell(move |_: QueueIndex| bell.ring());
/// let stopped = AtomicBool::new(false);
/// thread::scope(|scope| {
///     let thread = scope.spawn(|| {
///         waiter.run(|| {
///             while disk.serve(QueueIndex(0)) {}
///             match stopped.load(Ordering::SeqCst) {
///                 true => ControlFlow::Break(()),
///                 false => ControlFlow::Continue(None),
///             }
///         })
///     });
///     // The guest runs...
///     stopped.store(true, Ordering::SeqCst);
///     waiter.ring()?;
///     thread.join().expect("the device has not panicked")
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct UringWaiter(Arc<Seat>);

/// What a waiter and the ring it waits in share.
pub(super) struct Seat {
    bell: OwnedFd,
    taken: Mutex<Option<Taken>>,
    /// It is run.
    occupied: AtomicBool,
    /// How often it has waited. Wraps.
    turn: AtomicU32,
    /// The waiter is no more.
    gone: AtomicBool,
}

#[derive(Clone)]
struct Taken {
    ring: Arc<IoUring>,
    /// Of its queue.
    waker: Waker,
}

thread_local! {
    /// Where this thread will wait next, while it runs.
    static HERE: RefCell<Option<Arc<Seat>>> = const { RefCell::new(None) };
}

impl UringWaiter {
    /// With a bell of its own.
    ///
    /// # Errors
    /// As [`with_bell`](Self::with_bell), or there is no descriptor to be had.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is new, and nobody else's.
        Self::with_bell(unsafe { std::os::fd::FromRawFd::from_raw_fd(bell) })
    }

    /// With `bell`, an eventfd that nobody else reads.
    ///
    /// # Errors
    /// The kernel has no `io_uring`, or none that sees a descriptor rise again and again (Linux 5.13).
    pub fn with_bell(bell: OwnedFd) -> io::Result<Self> {
        let mut ring = IoUring::new(2)?;
        let listen = [listen(&bell, 0), opcode::Nop::new().build().user_data(1)];
        // SAFETY: they point to nothing.
        unsafe { ring.submission().push_multiple(&listen) }.map_err(io::Error::other)?;
        ring.submit()?;
        match ring
            .completion()
            .find(|entry| entry.user_data() == 0 && entry.result() < 0)
        {
            Some(refused) => Err(io::Error::from_raw_os_error(-refused.result())),
            None => Ok(Self(Arc::new(Seat {
                bell,
                taken: Mutex::default(),
                occupied: AtomicBool::new(false),
                turn: AtomicU32::new(0),
                gone: AtomicBool::new(false),
            }))),
        }
    }

    /// The bell: for the hypervisor to signal, say.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    /// Rings it: from any thread.
    ///
    /// # Errors
    /// It is no eventfd.
    pub fn ring(&self) -> io::Result<()> {
        let one = 1_u64;
        // SAFETY: eight bytes.
        let written = unsafe { libc::write(self.0.bell.as_raw_fd(), (&raw const one).cast(), 8) };
        match written {
            8 => Ok(()),
            _ => match io::Error::last_os_error() {
                // It has been rung so often that it holds no more.
                full if full.kind() == io::ErrorKind::WouldBlock => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Calls `turn`, which is to serve the queue; then submits what that has left and waits until a request has ended, the bell has rung,
    /// or the time is over that `turn` has said, if it has; and so on, until it says that it is over. It may also come back for
    /// nothing. By one thread at a time. A turn does not wait for requests itself: it may be the one to submit them.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn run(&self, mut turn: impl FnMut() -> ControlFlow<(), Option<Duration>>) -> io::Result<()> {
        let _here = Here::new(Arc::clone(&self.0));
        while let ControlFlow::Continue(limit) = turn() {
            self.0.wait(limit)?;
        }
        Ok(())
    }
}

impl Drop for UringWaiter {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::SeqCst);
        // So that the ring listens no more.
        let left = lock(&self.0.taken).take();
        left.inspect(|taken| taken.waker.wake_by_ref());
    }
}

/// This thread waits at a seat between its turns. Dropped, by a panic too, it leaves nothing there that is not submitted.
struct Here {
    seat: Arc<Seat>,
    before: Option<Arc<Seat>>,
}

impl Here {
    fn new(seat: Arc<Seat>) -> Self {
        seat.occupied.store(true, Ordering::SeqCst);
        let before = HERE.replace(Some(Arc::clone(&seat)));
        Self { seat, before }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        HERE.set(self.before.take());
        self.seat.occupied.store(false, Ordering::SeqCst);
        let taken = lock(&self.seat.taken).as_ref().map(Taken::clone);
        if let Some(Taken { ring, waker }) = taken {
            // What is refused is submitted by the next round. That says what it waits for.
            let _ = ring.submit();
            waker.wake();
        }
    }
}

impl Seat {
    fn ring(&self) -> Option<Arc<IoUring>> {
        Some(Arc::clone(&lock(&self.taken).as_ref()?.ring))
    }

    fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        self.turn.fetch_add(1, Ordering::Relaxed);
        let Some(ring) = self.ring() else {
            return self.wait_for_bell(limit);
        };
        let waited = match limit {
            None => ring.submitter().submit_and_wait(1),
            Some(Duration::ZERO) => ring.submit(),
            Some(limit) => {
                let limit = types::Timespec::from(limit);
                let args = types::SubmitArgs::new().timespec(&limit);
                ring.submitter().submit_with_args(1, &args)
            }
        };
        match waited {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The last two: completions are to be seen first, or the kernel has no memory for now.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// No ring is there to wait in.
    #[cold]
    fn wait_for_bell(&self, limit: Option<Duration>) -> io::Result<()> {
        let mut polled = libc::pollfd {
            fd: self.bell.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = limit.map_or(-1, |limit| {
            let millis = limit.as_nanos().div_ceil(1_000_000);
            i32::try_from(millis).unwrap_or(i32::MAX)
        });
        // SAFETY: one structure.
        match unsafe { libc::poll(&raw mut polled, 1, limit) } {
            0 => {}
            1.. => {
                let mut count = 0_u64;
                // SAFETY: eight bytes. There is something to read, and nobody else does.
                unsafe { libc::read(self.bell.as_raw_fd(), (&raw mut count).cast(), 8) };
            }
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
        Ok(())
    }

    /// How often the waiter has waited.
    pub fn turn(&self) -> u32 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Whether a thread is here, or comes back from its turn.
    pub fn is_occupied(&self) -> bool {
        self.occupied.load(Ordering::SeqCst)
    }

    /// The waiter has gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// The ring is not there to be waited in any more.
    pub fn leave(&self) {
        *lock(&self.taken) = None;
    }

    /// An entry that tells each time that the bell has rung.
    pub fn listen(&self, user_data: u64) -> squeue::Entry {
        listen(&self.bell, user_data)
    }
}

fn listen(bell: &OwnedFd, user_data: u64) -> squeue::Entry {
    let poll = opcode::PollAdd::new(types::Fd(bell.as_raw_fd()), libc::POLLIN as u32);
    poll.multi(true).build().user_data(user_data)
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("bell", &self.bell).finish_non_exhaustive()
    }
}

/// Whether this thread will wait at `seat`.
pub(super) fn waits_at(seat: &Arc<Seat>) -> bool {
    HERE.with_borrow(|here| here.as_ref().is_some_and(|here| Arc::ptr_eq(here, seat)))
}

/// Has this thread wait in `ring`, if it will wait and has none yet.
pub(super) fn sit_down(ring: &Arc<IoUring>, waker: &Waker) -> Option<Arc<Seat>> {
    HERE.with_borrow(|here| {
        let seat = here.as_ref()?;
        let mut taken = lock(&seat.taken);
        if taken.is_some() {
            return None;
        }
        *taken = Some(Taken {
            ring: Arc::clone(ring),
            waker: waker.clone(),
        });
        Some(Arc::clone(seat))
    })
}
