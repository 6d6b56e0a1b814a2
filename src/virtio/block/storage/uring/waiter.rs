//! A thread that waits for a queue in the ring of its requests.

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use io_uring::{IoUring, opcode};

use super::{
    UringStorage,
    seat::{Here, Seat, listen},
};
use crate::virtio::QueueIndex;

/// A thread of the embedder's that serves one queue over a [`UringStorage`], and waits *in the ring* of its requests: they are
/// submitted and waited for by one call of the kernel, where a loop around epoll needs two, and one more for the bell.
///
/// What else the thread is to wake for is the *bell*: an eventfd that a [`Doorbell`](crate::virtio::transport::Doorbell) rings, or that
/// KVM itself does for the driver (an ioeventfd). Nobody else reads it: the ring sees it rise, so a bell costs no call either. Whenever
/// it has rung, another [turn](Self::run) begins after that, whoever has served the queue meanwhile.
///
/// *One queue a waiter*, and one waiter a queue, of one device: where several use the storage, the one is waited for that has begun
/// first, and another once that has let go of the queue. Others that the same thread serves have their requests submitted at once, and say what
/// they wait for as always. The queue may be served by others beside this thread, from its first round on; what they begin ends here all
/// the same. Another waiter takes a queue over once the one before it was dropped. A ring that is
/// [polled for](super::UringOptions::poll_completions), or from whose submissions
/// [a thread of the kernel's](super::UringOptions::poll_submissions) takes them, is not waited in.
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
/// let waiter = Arc::new(UringWaiter::new(&storage, QueueIndex(0))?);
/// let disk = Block::with_async(storage, BlockOptions::default())?;
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
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

impl UringWaiter {
    /// For a queue over `storage`, with a bell of its own.
    ///
    /// # Errors
    /// As [`with_bell`](Self::with_bell), or there is no descriptor to be had.
    pub fn new(storage: &UringStorage, queue: QueueIndex) -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is new, and nobody else's.
        Self::with_bell(storage, queue, unsafe { std::os::fd::FromRawFd::from_raw_fd(bell) })
    }

    /// The same with `bell`, an eventfd that nobody else reads. It does not block from here on (`O_NONBLOCK`).
    ///
    /// # Errors
    /// The kernel has no `io_uring`, or none that sees a descriptor rise again and again (Linux 5.13);
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if another waits for that queue.
    pub fn with_bell(storage: &UringStorage, queue: QueueIndex, bell: OwnedFd) -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let flags = unsafe { libc::fcntl(bell.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: the same.
        if flags < 0 || unsafe { libc::fcntl(bell.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut ring = IoUring::new(2)?;
        let listen = [listen(&bell, 0), opcode::Nop::new().build().user_data(1)];
        // SAFETY: they point to nothing.
        unsafe { ring.submission().push_multiple(&listen) }.map_err(io::Error::other)?;
        ring.submit()?;
        if let Some(refused) = ring
            .completion()
            .find(|entry| entry.user_data() == 0 && entry.result() < 0)
        {
            return Err(io::Error::from_raw_os_error(-refused.result()));
        }
        let seat = Arc::new(Seat::new(bell));
        storage.0.seats.reserve(queue, &seat)?;
        Ok(Self(seat))
    }

    /// The bell: for the hypervisor to signal, say.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.0.bell()
    }

    /// Rings it: from any thread.
    ///
    /// # Errors
    /// It is no eventfd.
    pub fn ring(&self) -> io::Result<()> {
        self.0.ring_bell()
    }

    /// Calls `turn`, which is to serve the queue; then submits what that has left and waits until a request has ended, the bell has rung,
    /// or the time is over that `turn` has said, if it has; and so on, until it says that it is over. It may also come back for
    /// nothing. A bell that rings while a turn runs is followed by another turn. A turn does not wait for requests itself: it may be the
    /// one to submit them.
    ///
    /// # Errors
    /// The kernel refuses to wait; [`ResourceBusy`](io::ErrorKind::ResourceBusy) if it is run already: that is for one thread at a time.
    pub fn run(&self, mut turn: impl FnMut() -> ControlFlow<(), Option<Duration>>) -> io::Result<()> {
        let mut here = Here::new(Arc::clone(&self.0))?;
        while let ControlFlow::Continue(limit) = turn() {
            here.wait(limit)?;
        }
        Ok(())
    }
}

impl Drop for UringWaiter {
    fn drop(&mut self) {
        self.0.go();
    }
}
