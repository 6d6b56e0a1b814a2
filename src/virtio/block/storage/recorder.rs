//! A storage whose requests are written down, and what a crash would have left of them.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex},
    task::Waker,
};

use super::{AsyncStorage, Buffers, Channel, Ended, Operation, Outcome, Tag};
use crate::{
    sync::lock,
    virtio::{QueueIndex, Wait},
};

/// Any [`AsyncStorage`], with a [`Recording`] of what it is asked and how that ends. All of it is kept, data that is written too: for
/// tests.
pub struct Recorder<S> {
    storage: S,
    recording: Recording,
}

/// What a [`Recorder`] has seen so far. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Recording(Arc<Mutex<Recorded>>);

#[derive(Debug, Default)]
struct Recorded {
    events: Vec<Event>,
    /// The number of the next request.
    next: u64,
}

/// Something that happened, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A request was submitted.
    Begun {
        /// Its number.
        request: u64,
        /// What was asked.
        operation: Operation,
        /// Bytes in its buffers.
        len: u64,
        /// What was to be written.
        data: Vec<u8>,
    },
    /// It has ended.
    Ended {
        /// Its number.
        request: u64,
        /// Bytes that were moved, or what the error was; `None` if it was canceled.
        result: Option<Result<u64, io::ErrorKind>>,
    },
}

/// Bytes that are written as a whole, or not at all.
const SECTOR: usize = 512;

impl Recording {
    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.0).events.clone()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.0).events.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets them.
    pub fn clear(&self) {
        lock(&self.0).events.clear();
    }

    /// What the data could look like if the power had gone after the first `events` events, with `image` what it was before them.
    ///
    /// What had ended before a flush was submitted that has ended well is there, and so is a write with force unit access that has
    /// ended. Of everything else that was begun each sector is there or not, as `survives` says: of such a write some may be, in any
    /// order. What a discard would have left reads as zeros, where it survives.
    pub fn crash(&self, image: &mut [u8], events: usize, mut survives: impl FnMut() -> bool) {
        let recorded = lock(&self.0);
        let events = &recorded.events[..events.min(recorded.events.len())];
        let mut ended = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            if let Event::Ended {
                request,
                result: Some(Ok(moved)),
            } = event
            {
                ended.insert(*request, (at, *moved));
            }
        }
        // When the last flush began that has ended well: what had ended by then is there.
        let flushed = events.iter().enumerate().rev().find_map(|(at, event)| match event {
            Event::Begun {
                request,
                operation: Operation::Flush,
                ..
            } => ended.contains_key(request).then_some(at),
            _ => None,
        });
        for event in events {
            let Event::Begun {
                request,
                operation,
                data,
                ..
            } = event
            else {
                continue;
            };
            let end = ended.get(request);
            let stable = end.is_some_and(|(at, _)| flushed.is_some_and(|flushed| *at < flushed));
            let (offset, len, data, stable) = match *operation {
                Operation::Write { offset, fua } => {
                    // What was moved in part is asked for again.
                    let len = end.map_or(data.len() as u64, |(_, moved)| *moved);
                    (offset, len, Some(data), stable || fua && end.is_some())
                }
                Operation::Discard { offset, len }
                | Operation::WriteZeroes { offset, len, .. }
                | Operation::SecureErase { offset, len } => (offset, len, None, stable),
                // Nobody knows where it would have gone.
                Operation::Append { .. } => match end {
                    Some((_, at)) => (*at, data.len() as u64, Some(data), stable),
                    None => continue,
                },
                Operation::ResetZones | Operation::Zone { .. } | Operation::Read { .. } | Operation::Flush => continue,
            };
            let Some(range) = usize::try_from(offset).ok().and_then(|offset| image.get_mut(offset..)) else {
                continue;
            };
            let len = range.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            for (index, sector) in range[..len].chunks_mut(SECTOR).enumerate() {
                if stable || survives() {
                    match data.and_then(|data| data.get(index * SECTOR..index * SECTOR + sector.len())) {
                        Some(data) => sector.copy_from_slice(data),
                        None => sector.fill(0),
                    }
                }
            }
        }
    }

    fn begun(&self, operation: Operation, buffers: &Buffers) -> u64 {
        let mut data = Vec::new();
        if let Operation::Write { .. } | Operation::Append { .. } = operation {
            data.resize(usize::try_from(buffers.len()).unwrap_or(0), 0);
            buffers.read(0, &mut data);
        }
        let mut recorded = lock(&self.0);
        let request = recorded.next;
        recorded.next += 1;
        recorded.events.push(Event::Begun {
            request,
            operation,
            len: buffers.len(),
            data,
        });
        request
    }

    fn ended(&self, request: u64, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Done(result) => Some(result.as_ref().map(|moved| *moved).map_err(io::Error::kind)),
            Outcome::Canceled => None,
        };
        lock(&self.0).events.push(Event::Ended { request, result });
    }
}

impl<S: AsyncStorage> Recorder<S> {
    /// Over `storage`.
    pub fn new(storage: S) -> Self {
        Self {
            storage,
            recording: Recording::default(),
        }
    }

    /// What it has seen, and goes on to see.
    pub fn recording(&self) -> Recording {
        self.recording.clone()
    }

    /// The storage behind.
    pub fn storage(&self) -> &S {
        &self.storage
    }
}

impl<S: AsyncStorage> AsyncStorage for Recorder<S> {
    as_told_by!(self => self.storage);

    fn open(&self, queue: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        Ok(Box::new(Queue {
            inner: self.storage.open(queue, waker)?,
            recording: self.recording.clone(),
            numbers: HashMap::new(),
        }))
    }
}

struct Queue {
    inner: Box<dyn Channel>,
    recording: Recording,
    /// Of those under way.
    numbers: HashMap<Tag, u64>,
}

impl Channel for Queue {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        self.numbers.insert(tag, self.recording.begun(operation, &buffers));
        self.inner.submit(tag, operation, buffers);
    }

    fn commit(&mut self) {
        self.inner.commit();
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        let Self {
            inner,
            recording,
            numbers,
        } = self;
        inner.reap(&mut |one| {
            if let Some(number) = numbers.remove(&one.tag) {
                recording.ended(number, &one.outcome);
            }
            ended(one);
        });
    }

    fn cancel(&mut self) {
        self.inner.cancel();
    }

    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        self.inner.waits(wait);
    }
}

impl<S: fmt::Debug> fmt::Debug for Recorder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}
