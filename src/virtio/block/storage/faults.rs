//! A storage that fails on demand.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::Duration,
};

use super::{AsyncStorage, Buffers, Channel, Ended, Operation, Outcome, Tag};
use crate::{
    time::Clock,
    virtio::{QueueIndex, Wait},
};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failing {
    /// It is done.
    #[default]
    Not,
    /// It has this error, and no effect.
    Error(io::ErrorKind),
    /// It begins so much later.
    Delayed(Duration),
    /// It moves so many bytes at most.
    Short(u64),
    /// Its first so many bytes are written, and then it has an error: a torn write. Other requests have the error alone.
    Torn(u64),
}

/// Any [`AsyncStorage`], some of whose requests fail: for tests of what stands above it. Lost power is what a
/// [`Recording`](super::Recording) leaves after a crash.
///
/// ```
/// use devisor::{time::ManualClock, virtio::block::{Block, BlockOptions, Failing, Faulty, MemoryStorage, Operation, Synchronous}};
/// use std::{io, sync::Arc};
///
/// let storage = Faulty::new(Synchronous::new(MemoryStorage::new(1 << 20)), Arc::new(ManualClock::default()), |operation, _| {
///     match operation {
///         Operation::Flush => Failing::Error(io::ErrorKind::StorageFull),
///         _ => Failing::Not,
///     }
/// });
/// let disk = Block::with_async(storage, BlockOptions::default())?;
/// # Ok::<(), devisor::virtio::block::BlockError>(())
/// ```
pub struct Faulty<S> {
    storage: S,
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    decide: Box<Decide>,
    cut: AtomicBool,
}

type Decide = dyn Fn(&Operation, u64) -> Failing + Send + Sync;

impl<S: AsyncStorage> Faulty<S> {
    /// `decide` is asked for each operation and the bytes of its buffers, when it is submitted; delays are by the time of `clock`.
    pub fn new(
        storage: S,
        clock: Arc<dyn Clock>,
        decide: impl Fn(&Operation, u64) -> Failing + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            clock,
            decide: Box::new(decide),
            cut: AtomicBool::new(false),
        };
        Self {
            storage,
            shared: Arc::new(shared),
        }
    }

    /// From here on nothing reaches the storage: every request fails, also those that are delayed; or, after `false`, everything does
    /// again.
    pub fn unplug(&self, unplugged: bool) {
        self.shared.cut.store(unplugged, Ordering::SeqCst);
    }

    /// The storage behind.
    pub fn storage(&self) -> &S {
        &self.storage
    }
}

impl<S: AsyncStorage> AsyncStorage for Faulty<S> {
    as_told_by!(self => self.storage);

    fn open(&self, queue: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        Ok(Box::new(Queue {
            inner: self.storage.open(queue, waker)?,
            shared: Arc::clone(&self.shared),
            delayed: Vec::new(),
            whole: HashMap::new(),
            ended: Vec::new(),
        }))
    }
}

struct Queue {
    inner: Box<dyn Channel>,
    shared: Arc<Shared>,
    /// What begins later, and when.
    delayed: Vec<(Duration, Tag, Operation, Buffers)>,
    /// What was submitted in part: all of its buffers, and whether it then fails.
    whole: HashMap<Tag, (Buffers, bool)>,
    ended: Vec<Ended>,
}

fn failed(kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, "a fault was injected")
}

impl Queue {
    fn pass(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        match self.shared.cut.load(Ordering::SeqCst) {
            true => self.fail(tag, buffers, io::ErrorKind::NotConnected),
            false => self.inner.submit(tag, operation, buffers),
        }
    }

    fn fail(&mut self, tag: Tag, buffers: Buffers, kind: io::ErrorKind) {
        self.ended.push(Ended::done(tag, buffers, Err(failed(kind))));
    }

    fn pass_part(&mut self, tag: Tag, operation: Operation, buffers: Buffers, len: u64, fails: bool) {
        let part = buffers.part(0, len);
        self.whole.insert(tag, (buffers, fails));
        self.pass(tag, operation, part);
    }

    /// Begins with what was delayed long enough.
    fn begin_delayed(&mut self) {
        if self.delayed.is_empty() {
            return;
        }
        let now = self.shared.clock.now();
        let all = std::mem::take(&mut self.delayed);
        for (when, tag, operation, buffers) in all {
            match when <= now {
                true => self.pass(tag, operation, buffers),
                false => self.delayed.push((when, tag, operation, buffers)),
            }
        }
    }
}

impl Channel for Queue {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        let len = buffers.len();
        match (self.shared.decide)(&operation, len) {
            Failing::Error(kind) => self.fail(tag, buffers, kind),
            Failing::Delayed(time) => {
                let when = self.shared.clock.now().saturating_add(time);
                self.delayed.push((when, tag, operation, buffers));
            }
            Failing::Short(most) if most < len => self.pass_part(tag, operation, buffers, most, false),
            Failing::Torn(most) => match operation {
                Operation::Write { .. } if most != 0 => self.pass_part(tag, operation, buffers, most, true),
                _ => self.fail(tag, buffers, io::ErrorKind::Other),
            },
            _ => self.pass(tag, operation, buffers),
        }
    }

    fn commit(&mut self) {
        self.begin_delayed();
        self.inner.commit();
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        self.ended.drain(..).for_each(&mut *ended);
        let whole = &mut self.whole;
        self.inner.reap(&mut |mut one| {
            if let Some((buffers, fails)) = whole.remove(&one.tag) {
                one.buffers = buffers;
                if let (true, Outcome::Done(Ok(_))) = (fails, &one.outcome) {
                    one.outcome = Outcome::Done(Err(failed(io::ErrorKind::Other)));
                }
            }
            ended(one);
        });
    }

    fn cancel(&mut self) {
        let delayed = self.delayed.drain(..);
        self.ended
            .extend(delayed.map(|(_, tag, _, buffers)| Ended::canceled(tag, buffers)));
        self.inner.cancel();
    }

    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        let first = self.delayed.iter().map(|(when, ..)| *when).min();
        first.map(Wait::Until).into_iter().for_each(&mut *wait);
        self.inner.waits(wait);
    }
}

impl<S: fmt::Debug> fmt::Debug for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}
