//! A storage whose requests end later: submitted, reaped, canceled.

use std::{io, sync::Arc, task::Waker};

use super::{Abilities, Buffers, Lifetime, Limits, ZoneAction, Zones};
use crate::virtio::{QueueIndex, Wait};

/// The data of a block device, whose requests end when they end: many under way at a time, in any order.
///
/// A device [opens](Self::open) a channel for each of its queues, and asks everything else of the storage itself. What answers at
/// once is a [`Storage`](super::Storage), which every device takes as well; as one of these it is
/// [`Synchronous`](super::Synchronous), or has its calls made on [threads of the embedder's](super::Pool).
///
/// *Order*: requests that are under way at the same time have none. A flush covers every write, discard and write of zeros that had
/// ended when it was submitted, whatever channel that was on.
///
/// ```
/// use devisor::virtio::{QueueIndex, Wait, block::{AsyncStorage, Block, BlockOptions, Buffers, Channel, Ended, Operation, Tag}};
/// use std::{io, task::Waker};
///
/// /// A disk that reads as zeros, and answers when it is asked to.
/// struct Zeros;
///
/// #[derive(Default)]
/// struct Queue(Vec<(Tag, Operation, Buffers)>);
///
/// impl AsyncStorage for Zeros {
///     fn capacity(&self) -> io::Result<u64> {
///         Ok(1 << 20)
///     }
///
///     fn open(&self, _: QueueIndex, _: Waker) -> io::Result<Box<dyn Channel>> {
///         Ok(Box::new(Queue::default()))
///     }
/// }
///
/// impl Channel for Queue {
///     fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
///         self.0.push((tag, operation, buffers));
///     }
///
///     fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
///         for (tag, operation, buffers) in self.0.drain(..) {
///             let result = match operation {
///                 Operation::Read { .. } => {
///                     buffers.fill(0);
///                     Ok(buffers.len())
///                 }
///                 Operation::Flush => Ok(0),
///                 _ => Err(io::ErrorKind::Unsupported.into()),
///             };
///             ended(Ended::done(tag, buffers, result));
///         }
///     }
/// }
///
/// let disk = Block::with_async(Zeros, BlockOptions { read_only: true, ..BlockOptions::default() })?;
/// assert_eq!(disk.capacity(), 2048);
/// # Ok::<(), devisor::virtio::block::BlockError>(())
/// ```
pub trait AsyncStorage: Send + Sync {
    /// As [`Storage::capacity`](super::Storage::capacity).
    ///
    /// # Errors
    /// It cannot be found out.
    fn capacity(&self) -> io::Result<u64>;

    /// As [`Storage::abilities`](super::Storage::abilities).
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    /// As [`Storage::limits`](super::Storage::limits).
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// As [`Storage::lifetime`](super::Storage::lifetime).
    fn lifetime(&self) -> Option<Lifetime> {
        None
    }

    /// As [`Storage::zones`](super::Storage::zones); of what there is, limits and reports are asked here, everything else on a channel.
    fn zones(&self) -> Option<&dyn Zones> {
        None
    }

    /// A channel for this queue. `waker` is to be called, from any thread, when there may be something to [reap](Channel::reap) that
    /// neither a call of the channel has brought about nor one of its [waits](Channel::waits) tells of.
    ///
    /// # Errors
    /// The host cannot give what it needs: the device then needs a reset, and so says its driver.
    fn open(&self, queue: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>>;
}

/// Where the requests of one queue go.
///
/// *For who implements it*: calls come one at a time, and none may wait for a request to end. Dropped, it has to see to it that
/// nothing touches the [`Buffers`] of its requests any more once it lets go of them.
///
/// *For who calls it*: a round is some [`submit`](Self::submit), a [`commit`](Self::commit), and a [`reap`](Self::reap); then whoever
/// has the channel waits for what [`waits`](Self::waits) says, or for the waker, and reaps again.
pub trait Channel: Send {
    /// Takes a request. `tag` is that of no other request that is under way on this channel. What the request is to read or write is
    /// where `buffers` says; it stays mapped while they are kept, and the guest may change it at any time.
    ///
    /// Offsets and lengths are in bytes, multiples of 512, and within the capacity that was told last, which may no longer be the
    /// real one.
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers);

    /// All of a round's requests are submitted: begin with them, if that has not happened yet. Also called in rounds without any.
    fn commit(&mut self) {}

    /// Hands over every request that has ended, once, with its buffers; does not wait.
    fn reap(&mut self, ended: &mut dyn FnMut(Ended));

    /// Has the requests end soon that are under way: those that have not begun as [`Outcome::Canceled`], the others as they can. All
    /// of them are still to be reaped.
    fn cancel(&mut self) {}

    /// What tells that there is something to reap, or that the channel itself has something to do: whatever is true now. Asked at the
    /// end of each round; each counts until the next.
    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        let _ = wait;
    }
}

/// By which the caller of a [`Channel`] knows a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// What is asked of a [`Channel`]. What it does not know ends with [`io::ErrorKind::Unsupported`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Fills the buffers with what is at `offset`. Ends with the number of bytes that were filled, which may be fewer: zero only at
    /// the end of the data.
    Read {
        /// Where, in bytes.
        offset: u64,
    },
    /// Writes the buffers to `offset`. Ends with the number of bytes that were written, which may be fewer.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// Force unit access: what is written is on stable storage when the request ends. Asked of storages that
        /// [can](Abilities::fua).
        fua: bool,
    },
    /// Ends when all is on stable storage that had ended when this was submitted, on any channel.
    Flush,
    /// Gives the space of a range back; what is read from it afterwards is undefined. Doing nothing is right too.
    Discard {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Makes a range read as zeros.
    WriteZeroes {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Its space may be given back.
        may_unmap: bool,
    },
    /// Makes what a range held irrecoverable, and all copies of it. Asked of storages that [can](Abilities::secure_erase).
    SecureErase {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Writes all of the buffers where the write pointer of a zone is, or none. Ends with the offset of where that was, in bytes. Asked
    /// of storages with [zones](AsyncStorage::zones), as what follows.
    Append {
        /// Where the zone begins, in bytes.
        zone: u64,
    },
    /// Does something to a zone.
    Zone {
        /// What.
        action: ZoneAction,
        /// Where it begins, in bytes.
        zone: u64,
    },
    /// Makes all zones empty.
    ResetZones,
}

impl Operation {
    /// Whether it moves the bytes of buffers.
    pub fn is_transfer(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Append { .. })
    }

    /// Whether data changes by it.
    pub fn changes_data(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Flush)
    }
}

/// A request that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Which one.
    pub tag: Tag,
    /// What it was submitted with.
    pub buffers: Buffers,
    /// How.
    pub outcome: Outcome,
}

impl Ended {
    /// It has succeeded, with as many bytes moved, or failed.
    pub fn done(tag: Tag, buffers: Buffers, result: io::Result<u64>) -> Self {
        let outcome = Outcome::Done(result);
        Self { tag, buffers, outcome }
    }

    /// It was canceled.
    pub fn canceled(tag: Tag, buffers: Buffers) -> Self {
        let outcome = Outcome::Canceled;
        Self { tag, buffers, outcome }
    }
}

/// How a request has ended.
#[derive(Debug)]
pub enum Outcome {
    /// With the bytes that a read or write has moved, zero for others; or with an error. After [`io::ErrorKind::Interrupted`] it is
    /// submitted again.
    Done(io::Result<u64>),
    /// It was [canceled](Channel::cancel): it has had no effect, or none that doing it again, later, would not have.
    Canceled,
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<S: AsyncStorage + ?Sized> AsyncStorage for $pointer {
            as_told_by!(self => (**self));

            fn open(&self, queue: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
                (**self).open(queue, waker)
            }
        }
    )*};
}

forward!(&S, Box<S>, Arc<S>);
