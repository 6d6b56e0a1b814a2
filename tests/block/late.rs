//! A storage whose requests end when the test says so.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::Waker,
};

use devisor::virtio::{
    QueueIndex,
    block::{Abilities, AsyncStorage, Buffers, Channel, Ended, MemoryStorage, Operation, Storage, Tag},
};

use crate::support::pattern;

/// Clones are the same one.
#[derive(Clone)]
pub struct Late(Arc<Shared>);

struct Shared {
    data: MemoryStorage,
    /// Under way, in the order in which they were submitted.
    requests: Mutex<Vec<Pending>>,
    /// Everything that was ever submitted.
    asked: Mutex<Vec<Operation>>,
    /// Canceled requests end as such.
    obeys: AtomicBool,
    cancels: AtomicUsize,
    fua: AtomicBool,
    refuses: AtomicBool,
}

struct Pending {
    lane: Arc<Lane>,
    tag: Tag,
    operation: Operation,
    buffers: Buffers,
}

struct Lane {
    ended: Mutex<Vec<Ended>>,
    waker: Waker,
}

impl Late {
    /// So many sectors of [`pattern`].
    pub fn new(sectors: usize) -> Self {
        Self(Arc::new(Shared {
            data: pattern(sectors * 512).into(),
            requests: Mutex::default(),
            asked: Mutex::default(),
            obeys: AtomicBool::new(false),
            cancels: AtomicUsize::new(0),
            fua: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
        }))
    }

    pub fn with_fua(self) -> Self {
        self.0.fua.store(true, SeqCst);
        self
    }

    pub fn obey(&self, obeys: bool) {
        self.0.obeys.store(obeys, SeqCst);
    }

    /// Has no channel for anybody from here on.
    pub fn refuse(&self) {
        self.0.refuses.store(true, SeqCst);
    }

    pub fn cancels(&self) -> usize {
        self.0.cancels.load(SeqCst)
    }

    pub fn contents(&self) -> Vec<u8> {
        self.0.data.contents()
    }

    pub fn under_way(&self) -> Vec<Operation> {
        let requests = self.0.requests.lock().unwrap();
        requests.iter().map(|pending| pending.operation).collect()
    }

    pub fn asked(&self) -> Vec<Operation> {
        std::mem::take(&mut self.0.asked.lock().unwrap())
    }

    fn take(&self, which: usize) -> Pending {
        self.0.requests.lock().unwrap().remove(which)
    }

    /// Ends a request as it should.
    pub fn end(&self, which: usize) {
        let pending = self.take(which);
        let result = self.perform(&pending.operation, &pending.buffers);
        pending.end(|tag, buffers| Ended::done(tag, buffers, result));
    }

    /// Ends a request after it has moved so many bytes.
    pub fn end_short(&self, which: usize, len: u64) {
        let pending = self.take(which);
        let result = self.perform(&pending.operation, &pending.buffers.part(0, len));
        pending.end(|tag, buffers| Ended::done(tag, buffers, result));
    }

    /// Ends a request so, without doing anything.
    pub fn end_as(&self, which: usize, result: io::Result<u64>) {
        self.take(which).end(|tag, buffers| Ended::done(tag, buffers, result));
    }

    /// Ends a request as canceled, whether that was asked or not.
    pub fn end_canceled(&self, which: usize) {
        self.take(which).end(Ended::canceled);
    }

    /// Says that a request has ended which there is not.
    pub fn end_nobodys(&self, tag: u64, beside: usize) {
        let lane = Arc::clone(&self.0.requests.lock().unwrap()[beside].lane);
        lane.end(Ended::done(Tag(tag), Buffers::default(), Ok(512)));
    }

    fn perform(&self, operation: &Operation, buffers: &Buffers) -> io::Result<u64> {
        let data = &self.0.data;
        match *operation {
            Operation::Read { offset } => buffers
                .with_slices(|slices| data.read_at(offset, slices))
                .map(|moved| moved as u64),
            Operation::Write { offset, .. } => buffers
                .with_slices(|slices| data.write_at(offset, slices))
                .map(|moved| moved as u64),
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                data.write_zeroes(offset, len, false).map(|()| 0)
            }
            _ => Ok(0),
        }
    }
}

impl Pending {
    fn end(self, ended: impl FnOnce(Tag, Buffers) -> Ended) {
        self.lane.end(ended(self.tag, self.buffers));
    }
}

impl Lane {
    fn end(&self, ended: Ended) {
        self.ended.lock().unwrap().push(ended);
        self.waker.wake_by_ref();
    }
}

impl AsyncStorage for Late {
    fn capacity(&self) -> io::Result<u64> {
        self.0.data.capacity()
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            discard: true,
            fua: self.0.fua.load(SeqCst),
            ..Abilities::default()
        }
    }

    fn open(&self, _: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        if self.0.refuses.load(SeqCst) {
            return Err(io::Error::other("no channel today"));
        }
        let lane = Lane {
            ended: Mutex::default(),
            waker,
        };
        Ok(Box::new(Queue {
            late: self.clone(),
            lane: Arc::new(lane),
        }))
    }
}

struct Queue {
    late: Late,
    lane: Arc<Lane>,
}

impl Channel for Queue {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        self.late.0.asked.lock().unwrap().push(operation);
        self.late.0.requests.lock().unwrap().push(Pending {
            lane: Arc::clone(&self.lane),
            tag,
            operation,
            buffers,
        });
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        let all = std::mem::take(&mut *self.lane.ended.lock().unwrap());
        all.into_iter().for_each(ended);
    }

    fn cancel(&mut self) {
        self.late.0.cancels.fetch_add(1, SeqCst);
        if !self.late.0.obeys.load(SeqCst) {
            return;
        }
        let mut requests = self.late.0.requests.lock().unwrap();
        let mine = |pending: &mut Pending| Arc::ptr_eq(&pending.lane, &self.lane);
        let mine: Vec<_> = requests.extract_if(.., mine).collect();
        drop(requests);
        mine.into_iter().for_each(|pending| pending.end(Ended::canceled));
    }
}
