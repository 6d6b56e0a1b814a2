//! A storage whose calls are made on threads of the embedder's.

use std::{
    collections::VecDeque,
    fmt, io, mem,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::Waker,
};

use super::{AsyncStorage, Buffers, Channel, Ended, Operation, Storage, Tag, adapter};
use crate::{sync::lock, virtio::QueueIndex};

/// Makes the calls of any [`Storage`], on as many threads as [`run`](Self::run) it: as many requests are under way at a time.
/// Several storages may share a pool. Clones are the same one.
///
/// ```
/// use devisor::virtio::block::{Block, BlockOptions, MemoryStorage, Pool};
/// use std::thread;
///
/// let pool = Pool::new();
/// let disk = Block::with_async(pool.storage(MemoryStorage::new(1 << 20)), BlockOptions::default())?;
/// thread::scope(|scope| {
///     let workers = [(); 4].map(|()| scope.spawn(|| pool.run()));
///     // The guest runs...
///     pool.close();
///     workers.map(|worker| worker.join().expect("a storage does not panic"))
/// });
/// # Ok::<(), devisor::virtio::block::BlockError>(())
/// ```
#[derive(Clone, Default)]
pub struct Pool(Arc<Shared>);

#[derive(Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    /// For threads that have nothing to do.
    there: Condvar,
    /// Called for each job that is there, by who has put it.
    told: Option<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    idle: usize,
    closed: bool,
}

/// A call to be made.
struct Job {
    lane: Arc<Lane>,
    tag: Tag,
    operation: Operation,
    buffers: Buffers,
}

/// Where the calls for a channel end.
struct Lane {
    storage: Arc<dyn Storage>,
    ended: Mutex<Vec<Ended>>,
    waker: Waker,
}

impl Lane {
    fn end(&self, ended: Ended) {
        let first = {
            let mut list = lock(&self.ended);
            list.push(ended);
            list.len() == 1
        };
        // All of them are reaped at once.
        if first {
            self.waker.wake_by_ref();
        }
    }
}

impl Pool {
    /// Without a thread yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose embedder runs jobs on an executor of its own: `told` is called once for each job, and is to have
    /// [`run_one`](Self::run_one) called elsewhere.
    pub fn on_executor(told: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            told: Some(Box::new(told)),
            ..Shared::default()
        }))
    }

    /// `storage` with its calls made here.
    pub fn storage(&self, storage: impl Storage + 'static) -> Pooled {
        Pooled {
            pool: self.clone(),
            storage: Arc::new(storage),
        }
    }

    /// Makes calls on this thread, until the pool is [closed](Self::close). A storage that panics takes its thread with it; its
    /// request has failed.
    pub fn run(&self) {
        loop {
            let mut jobs = lock(&self.0.jobs);
            let job = loop {
                if let Some(job) = jobs.queue.pop_front() {
                    break job;
                }
                if jobs.closed {
                    return;
                }
                jobs.idle += 1;
                jobs = self.0.there.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                jobs.idle -= 1;
            };
            drop(jobs);
            job.run();
        }
    }

    /// Makes one call on this thread, if there is one to make. Whether there was.
    pub fn run_one(&self) -> bool {
        let job = lock(&self.0.jobs).queue.pop_front();
        job.map(Job::run).is_some()
    }

    /// Has threads return from [`run`](Self::run) once nothing is left to do. What is submitted after this fails.
    pub fn close(&self) {
        lock(&self.0.jobs).closed = true;
        self.0.there.notify_all();
    }

    fn put(&self, submitted: &mut Vec<Job>) {
        let count = submitted.len();
        let refused = {
            let mut jobs = lock(&self.0.jobs);
            let refused = match jobs.closed {
                true => mem::take(submitted),
                false => {
                    jobs.queue.extend(submitted.drain(..));
                    Vec::new()
                }
            };
            (0..count.min(jobs.idle)).for_each(|_| self.0.there.notify_one());
            refused
        };
        match refused.is_empty() {
            true => (0..count).for_each(|_| self.0.told.iter().for_each(|told| told())),
            false => refused.into_iter().for_each(|job| {
                let closed = io::Error::other("the pool of threads is closed");
                job.lane.end(Ended::done(job.tag, job.buffers, Err(closed)));
            }),
        }
    }
}

impl Job {
    fn run(self) {
        let Self {
            lane,
            tag,
            operation,
            buffers,
        } = self;
        let mut ending = Ending {
            lane: &lane,
            request: Some((tag, buffers)),
            result: None,
        };
        if let Some((_, buffers)) = &ending.request {
            ending.result = Some(adapter::perform(&*lane.storage, operation, buffers));
        }
    }
}

/// Ends a request when it is dropped, by a panic too.
struct Ending<'a> {
    lane: &'a Lane,
    request: Option<(Tag, Buffers)>,
    result: Option<io::Result<u64>>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let Some((tag, buffers)) = self.request.take() {
            let panicked = || Err(io::Error::other("the storage has panicked"));
            let result = self.result.take().unwrap_or_else(panicked);
            self.lane.end(Ended::done(tag, buffers, result));
        }
    }
}

/// A [`Storage`] with its calls made by a [`Pool`].
#[derive(Clone)]
pub struct Pooled {
    pool: Pool,
    storage: Arc<dyn Storage>,
}

impl AsyncStorage for Pooled {
    as_told_by!(self => self.storage);

    fn open(&self, _: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        let lane = Lane {
            storage: Arc::clone(&self.storage),
            ended: Mutex::default(),
            waker,
        };
        Ok(Box::new(Queue {
            pool: self.pool.clone(),
            lane: Arc::new(lane),
            submitted: Vec::new(),
            reaped: Vec::new(),
        }))
    }
}

struct Queue {
    pool: Pool,
    lane: Arc<Lane>,
    /// Not committed yet.
    submitted: Vec<Job>,
    /// Room for what is reaped.
    reaped: Vec<Ended>,
}

impl Queue {
    /// Those of this channel that nobody has begun with.
    fn take_back(&mut self) -> Vec<Job> {
        let mut mine = mem::take(&mut self.submitted);
        let mut jobs = lock(&self.pool.0.jobs);
        let (own, others) = mem::take(&mut jobs.queue)
            .into_iter()
            .partition::<VecDeque<_>, _>(|job| Arc::ptr_eq(&job.lane, &self.lane));
        jobs.queue = others;
        mine.extend(own);
        mine
    }
}

impl Channel for Queue {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        self.submitted.push(Job {
            lane: Arc::clone(&self.lane),
            tag,
            operation,
            buffers,
        });
    }

    fn commit(&mut self) {
        if !self.submitted.is_empty() {
            self.pool.put(&mut self.submitted);
        }
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        mem::swap(&mut *lock(&self.lane.ended), &mut self.reaped);
        self.reaped.drain(..).for_each(ended);
    }

    fn cancel(&mut self) {
        for job in self.take_back() {
            self.lane.end(Ended::canceled(job.tag, job.buffers));
        }
    }
}

impl Drop for Queue {
    /// What is being done keeps its memory until it has ended.
    fn drop(&mut self) {
        drop(self.take_back());
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jobs = lock(&self.0.jobs);
        f.debug_struct("Pool")
            .field("waiting", &jobs.queue.len())
            .field("idle", &jobs.idle)
            .field("closed", &jobs.closed)
            .finish()
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
