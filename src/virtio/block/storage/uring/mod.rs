//! A storage in a file or on a block device of the host, by way of `io_uring` (feature `io-uring`, Linux).

mod channel;
mod gate;
mod lane;
mod registered;
mod seat;
mod seats;
#[cfg(test)]
mod tests;
mod transfer;
mod waiter;

use std::{
    io,
    sync::{Arc, Mutex},
    task::Waker,
    time::Duration,
};

use super::{Abilities, AsyncStorage, Channel, FileStorage, Limits, Storage};
use crate::{sync::lock, virtio::QueueIndex};
use gate::Gate;
use lane::{Kind, Lane};
use seats::Seats;

pub use waiter::UringWaiter;

/// A [`FileStorage`] whose requests are under way in the kernel: a ring for each queue, with the file registered, and one system call
/// for all requests of a round.
///
/// *What it does* is what [`FileStorage`] does; discard and write zeroes are `fallocate`, on block devices too. A write that is to be
/// stable when it ends is one with `RWF_DSYNC`. *Direct I/O* (a file that is open with `O_DIRECT`): aligned buffers go straight, others
/// through at most 64 KiB at a time; a write of a part of a block waits until no other change is under way on any queue, and is done
/// on the thread that serves its queue. *A file in memory* (tmpfs, `memfd_create`): its data is moved on the thread that serves the queue,
/// within the system call for the round, or on the one that [looks for submissions](UringOptions::poll_submissions); the kernel would wake a
/// thread for that, which costs more than the data. For this the file is opened once more, with `O_NONBLOCK` and `O_DIRECT`, which mean
/// nothing to its file system; where that is refused (before Linux 6.6, without `/proc`, to who may not open it) all goes as with any file.
/// Pages that were swapped out keep the queue waiting, as they would its guest.
///
/// *What is waited for* is the ring's descriptor ([`Wait::Readable`](crate::virtio::Wait::Readable)); a thread that serves one queue and nothing
/// else waits [in the ring](UringWaiter), which costs less. *Cancel* takes back what the
/// kernel has not begun. A channel that is dropped waits until the kernel has let go of the guest's memory.
///
/// ```no_run
/// use devisor::virtio::block::{Block, BlockOptions, FileStorage, UringOptions, UringStorage};
///
/// let storage = UringStorage::new(FileStorage::open("disk.img")?, UringOptions::default())?;
/// let disk = Block::with_async(storage, BlockOptions { queues: 4, ..BlockOptions::default() })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct UringStorage(Arc<Shared>);

/// How a [`UringStorage`] uses its rings.
///
/// *What is not among them*: `IORING_SETUP_SINGLE_ISSUER` and `IORING_SETUP_DEFER_TASKRUN` bind a ring to the thread that has entered it
/// first. A queue here is served by whoever looks at it, and a device may be dropped elsewhere, where such a ring could neither be asked
/// what has ended nor be waited for until the kernel has let go of the guest's memory. `IORING_SETUP_COOP_TASKRUN` would leave a completion untold while the thread that has submitted it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringOptions {
    /// Entries of the submission queue, a power of two up to 32768. Requests beyond it are submitted by more system calls.
    pub entries: u32,
    /// Has a thread of the kernel's look for submissions (`IORING_SETUP_SQPOLL`), so that a busy queue needs no system call; it sleeps
    /// after so long without one. It costs a CPU.
    pub poll_submissions: Option<Duration>,
    /// Looks for the completions of reads and writes in place of being told (`IORING_SETUP_IOPOLL`): less latency, no interrupt of the
    /// host's device, and a CPU that is busy for as long as requests are under way. The file has to be open with `O_DIRECT`, and what it is
    /// on must have queues for that.
    ///
    /// *Who looks* is whoever serves the queue: it waits for a time that has come
    /// ([`Wait::Until`](crate::virtio::Wait::Until) zero), so that it is served again and again, and others in turn with it. With
    /// [`poll_submissions`](Self::poll_submissions) it is the kernel's thread, and a descriptor is waited for. Everything that cannot be polled
    /// for (flushes, forced unit access, discards, zeros, writes that are not whole blocks of the file system, in memory too) goes through another ring beside it, which is waited for as always. Polled
    /// requests are not canceled: they end.
    pub poll_completions: bool,
    /// Has each ring register the guest's memory (`IORING_REGISTER_BUFFERS`) with its first request, and again when the map has changed:
    /// then the kernel need not find the pages of a request each time, which costs as much as a small request itself.
    ///
    /// *Not for every guest*: all of its memory is there and stays there, as for a device that is passed through. A balloon, free page
    /// reporting, or whoever else takes pages from under the guest would leave the rings with the old ones, and the guest without its
    /// data. What is taken out of the guest's memory is let go of in the next round of the queue.
    ///
    /// Where the kernel refuses (no room within RLIMIT_MEMLOCK, memory in a file that is not shared memory), requests go the plain way:
    /// [`UringStorage::status`] tells.
    pub register_memory: bool,
}

impl Default for UringOptions {
    fn default() -> Self {
        Self {
            entries: 256,
            poll_submissions: None,
            poll_completions: false,
            register_memory: false,
        }
    }
}

#[derive(Debug)]
struct Shared {
    file: FileStorage,
    options: UringOptions,
    gate: Gate,
    /// Who waits for its queues.
    seats: Seats,
    status: Mutex<UringStatus>,
}

/// What the rings of a [`UringStorage`] have of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UringStatus {
    /// How many there are: one for each queue that is in use.
    pub rings: u32,
    /// In how many of them guest memory is registered.
    pub registered: u32,
    /// Why it was refused, when that happened last.
    pub refused: Option<String>,
    /// Requests that were to be [polled for](UringOptions::poll_completions), which the device then would not: they have gone the plain
    /// way.
    pub unpolled: u64,
}

impl UringStorage {
    /// Over an open file or block device.
    ///
    /// # Errors
    /// The kernel has no `io_uring`, or not for this process: so an embedder can take another way. Completions are to be
    /// [polled for](UringOptions::poll_completions), and the file or what it is on is not fit for that; it is
    /// flushed, and one block is read, to find out.
    pub fn new(mut file: FileStorage, options: UringOptions) -> io::Result<Self> {
        file.move_at_once();
        let shared = Shared {
            file,
            options,
            gate: Gate::default(),
            seats: Seats::default(),
            status: Mutex::default(),
        };
        // Tried once, so that it does not show when the guest runs.
        Lane::new(&shared.file, &options, Kind::Plain)?;
        if options.poll_completions {
            lane::try_polling(&shared.file, &options)?;
        }
        Ok(Self(Arc::new(shared)))
    }

    /// The file.
    pub fn file(&self) -> &FileStorage {
        &self.0.file
    }

    /// What its rings have of the kernel now.
    pub fn status(&self) -> UringStatus {
        lock(&self.0.status).clone()
    }
}

impl AsyncStorage for UringStorage {
    fn capacity(&self) -> io::Result<u64> {
        self.0.file.capacity()
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            fua: true,
            ..self.0.file.abilities()
        }
    }

    fn limits(&self) -> Limits {
        self.0.file.limits()
    }

    fn open(&self, queue: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        Ok(Box::new(channel::Ring::new(Arc::clone(&self.0), queue, waker)?))
    }
}
