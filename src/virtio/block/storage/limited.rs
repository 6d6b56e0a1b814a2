//! A storage that lets so many requests and bytes pass in a time.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Mutex},
    task::Waker,
    time::Duration,
};

use super::{AsyncStorage, Buffers, Channel, Ended, Operation, Tag};
use crate::{
    rate::{NoRate, Rate, TokenBucket},
    sync::lock,
    time::Clock,
    virtio::{QueueIndex, Wait},
};

/// What a [`Limited`] storage lets pass, all queues together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Operations: a request is one, and each range of a discard is.
    pub operations: Option<Rate>,
    /// Bytes that are read and written.
    pub bytes: Option<Rate>,
}

/// Any [`AsyncStorage`], which is given requests at a rate. Those that have to wait do so in the order in which they came, each queue's
/// by itself, [until](Wait::Until) a time of the clock; whoever runs the device looks then. A queue that is stopped gives them back.
///
/// ```
/// use devisor::{rate::Rate, time::HostClock, virtio::block::{Allowance, Limited, MemoryStorage, Synchronous}};
/// use std::{sync::Arc, time::Duration};
///
/// let storage = Limited::new(
///     Synchronous::new(MemoryStorage::new(1 << 20)),
///     Allowance {
///         bytes: Some(Rate { per_second: 100 << 20, burst: 10 << 20 }),
///         ..Allowance::default()
///     },
///     Arc::new(HostClock::starting_at(Duration::ZERO)),
/// )?;
/// # Ok::<(), devisor::rate::NoRate>(())
/// ```
pub struct Limited<S> {
    storage: S,
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    operations: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
}

impl Buckets {
    fn new(allowance: Allowance) -> Result<Self, NoRate> {
        Ok(Self {
            operations: allowance.operations.map(TokenBucket::new).transpose()?,
            bytes: allowance.bytes.map(TokenBucket::new).transpose()?,
        })
    }

    /// Lets an operation on so many bytes pass, or says when it may be tried again.
    fn pass(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        let Self { operations, bytes: all } = self;
        // Nothing is taken from one if the other has not enough.
        let ready =
            |bucket: &Option<TokenBucket>, tokens| bucket.as_ref().map_or(Ok(()), |bucket| bucket.ready(now, tokens));
        match (ready(operations, 1), ready(all, bytes)) {
            (Ok(()), Ok(())) => {
                operations.iter_mut().for_each(|bucket| bucket.owe(now, 1));
                all.iter_mut().for_each(|bucket| bucket.owe(now, bytes));
                Ok(())
            }
            (Err(when), Err(later)) => Err(when.max(later)),
            (Err(when), Ok(())) | (Ok(()), Err(when)) => Err(when),
        }
    }
}

impl<S: AsyncStorage> Limited<S> {
    /// Lets pass what `allowance` says, by the time of `clock`: that by which the embedder runs its devices.
    ///
    /// # Errors
    /// A rate by which nothing would ever pass.
    pub fn new(storage: S, allowance: Allowance, clock: Arc<dyn Clock>) -> Result<Self, NoRate> {
        let buckets = Mutex::new(Buckets::new(allowance)?);
        let shared = Arc::new(Shared { clock, buckets });
        Ok(Self { storage, shared })
    }

    /// Another allowance from here on. Requests that wait look again when their time has come.
    ///
    /// # Errors
    /// As [`new`](Self::new); the one of before stays.
    pub fn allow(&self, allowance: Allowance) -> Result<(), NoRate> {
        *lock(&self.shared.buckets) = Buckets::new(allowance)?;
        Ok(())
    }

    /// The storage behind.
    pub fn storage(&self) -> &S {
        &self.storage
    }
}

impl<S: AsyncStorage> AsyncStorage for Limited<S> {
    as_told_by!(self => self.storage);

    fn open(&self, queue: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        Ok(Box::new(Queue {
            inner: self.storage.open(queue, waker)?,
            shared: Arc::clone(&self.shared),
            held: VecDeque::new(),
            until: None,
            canceled: Vec::new(),
        }))
    }
}

struct Queue {
    inner: Box<dyn Channel>,
    shared: Arc<Shared>,
    held: VecDeque<(Tag, Operation, Buffers)>,
    /// When the first of those may pass.
    until: Option<Duration>,
    canceled: Vec<Ended>,
}

impl Queue {
    /// Lets pass what may.
    fn let_pass(&mut self) {
        self.until = None;
        if self.held.is_empty() {
            return;
        }
        let now = self.shared.clock.now();
        let mut buckets = lock(&self.shared.buckets);
        while let Some((_, _, buffers)) = self.held.front() {
            match buckets.pass(now, buffers.len()) {
                Ok(()) => {
                    if let Some((tag, operation, buffers)) = self.held.pop_front() {
                        self.inner.submit(tag, operation, buffers);
                    }
                }
                Err(when) => {
                    self.until = Some(when);
                    return;
                }
            }
        }
    }
}

impl Channel for Queue {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        self.held.push_back((tag, operation, buffers));
    }

    fn commit(&mut self) {
        self.let_pass();
        self.inner.commit();
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        self.canceled.drain(..).for_each(&mut *ended);
        self.inner.reap(ended);
    }

    fn cancel(&mut self) {
        let held = self.held.drain(..);
        self.canceled
            .extend(held.map(|(tag, _, buffers)| Ended::canceled(tag, buffers)));
        self.until = None;
        self.inner.cancel();
    }

    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        self.until.map(Wait::Until).into_iter().for_each(&mut *wait);
        self.inner.waits(wait);
    }
}

impl<S: fmt::Debug> fmt::Debug for Limited<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited")
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}
