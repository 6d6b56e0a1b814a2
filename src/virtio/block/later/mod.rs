//! Serves a request queue over a storage whose requests end later, many at a time and in any order.

mod work;

use std::{
    io, mem,
    sync::{Arc, atomic::Ordering},
    task::{Wake, Waker},
};

use super::{
    Buffers, Channel, Ended, Outcome, Tag,
    disk::Disk,
    registers::{Status, request::HEADER},
    request::{Asked, Failure, finish, finish_append},
};
use crate::virtio::{
    Fault, Handle, QueueError, QueueHandler, QueueIndex, Round,
    queue::{Chain, OwnedChain},
};
use work::{After, Work};

pub fn handler(disk: &Arc<Disk>, queue: QueueIndex, handle: Option<Handle>) -> Box<dyn QueueHandler> {
    let waker = match handle {
        Some(handle) => Waker::from(Arc::new(Look { handle, queue })),
        None => Waker::noop().clone(),
    };
    match disk.behind.storage.open(queue, waker.clone()) {
        Ok(channel) => Box::new(Later {
            under_way: UnderWay {
                disk: Arc::clone(disk),
                requests: Requests::default(),
                again: Vec::new(),
                spare: Vec::new(),
                stopped: false,
            },
            channel,
            waker,
        }),
        Err(error) => Box::new(Unopened(error)),
    }
}

/// Has a queue looked at.
struct Look {
    handle: Handle,
    queue: QueueIndex,
}

impl Wake for Look {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.handle.look(self.queue);
    }
}

/// A queue for which the storage has no channel.
struct Unopened(io::Error);

impl QueueHandler for Unopened {
    fn serve(&mut self, _: &mut Round<'_>) -> Result<(), Fault> {
        Err(Fault::Host(format!(
            "the storage has no channel for a queue: {}",
            self.0
        )))
    }
}

/// Fields drop in this order: chains go back first, and what still touches their memory keeps that by itself.
struct Later {
    under_way: UnderWay,
    channel: Box<dyn Channel>,
    waker: Waker,
}

/// What is under way in a channel, as the device knows it.
struct UnderWay {
    disk: Arc<Disk>,
    requests: Requests,
    /// Those that go on with another operation.
    again: Vec<(usize, Buffers)>,
    /// Room for the pieces of requests to come.
    spare: Vec<Buffers>,
    /// The queue was stopped, and no new request has been found since.
    stopped: bool,
}

/// A request under way.
struct Request {
    chain: OwnedChain,
    work: Work,
    /// It was to be canceled: it may be given back.
    canceled: bool,
}

/// All of them, by their tag: as many as the queue is long.
#[derive(Default)]
struct Requests {
    slots: Vec<Option<Request>>,
    free: Vec<usize>,
}

impl Requests {
    fn put(&mut self, request: Request) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.slots[index] = Some(request);
                index
            }
            None => {
                self.slots.push(Some(request));
                self.slots.len() - 1
            }
        }
    }

    fn get(&mut self, index: usize) -> Option<&mut Request> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// Whether none is under way.
    fn are_none(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    fn take(&mut self, index: usize) -> Option<Request> {
        let request = self.slots.get_mut(index)?.take()?;
        self.free.push(index);
        Some(request)
    }
}

impl QueueHandler for Later {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let canceled = &self.under_way.disk.cancels[usize::from(round.index().0)];
        if canceled.load(Ordering::Relaxed) && canceled.swap(false, Ordering::SeqCst) && self.under_way.stopped {
            // What is under way is from before the stop.
            self.cancel();
        }
        // Nothing has ended where nothing is under way: what the channel has to do for itself comes below.
        let idle = self.under_way.requests.are_none();
        if !idle {
            self.reap(Some(round))?;
        }
        while let Some(chain) = round.next()? {
            self.under_way.stopped = false;
            self.begin(chain)?;
        }
        self.channel.commit();
        // What has ended at once; what follows from that is committed too.
        let (mut again, mut look) = (false, idle || !self.under_way.requests.are_none());
        while look && self.reap(Some(round))? {
            self.channel.commit();
            (again, look) = (true, !self.under_way.requests.are_none());
        }
        if again && self.under_way.stopped {
            // Some may have been given back after the round had looked, if the stop has ended by now.
            self.waker.wake_by_ref();
        }
        self.channel.waits(&mut |wait| round.wait(wait));
        Ok(())
    }

    fn pause(&mut self) {
        self.under_way.stopped = true;
        self.cancel();
        // A ring that is gone shows in the next round.
        while let Ok(true) = self.reap(None) {
            self.channel.commit();
        }
    }
}

impl Later {
    fn cancel(&mut self) {
        for request in self.under_way.requests.slots.iter_mut().flatten() {
            request.canceled = true;
        }
        self.channel.cancel();
        self.channel.commit();
    }

    /// A request that was found: refused, answered, or begun.
    fn begin(&mut self, chain: Chain<'_, '_>) -> Result<(), QueueError> {
        let Self { under_way, channel, .. } = self;
        let disk = &under_way.disk;
        let written = chain.writable_len();
        let answered = match disk.parse(chain.reader(), written) {
            Err(error) => return chain.refuse_for(&error),
            Ok(Err(status)) => finish(chain.writer(), 0, status),
            Ok(Ok(Asked::Answer(answer))) => {
                let put = answer.put(chain.writer(), disk);
                put.and_then(|filled| finish(chain.writer(), filled, Status::Ok))
            }
            Ok(Ok(asked)) => {
                let len = chain.readable_len().saturating_sub(HEADER as u32);
                let mut work = Work::new(asked, len, disk);
                if !work.is_done(disk) {
                    let chain = chain.take();
                    let canceled = false;
                    let mut buffers = under_way.spare.pop().unwrap_or_default();
                    match work.prepare(&chain, &mut buffers) {
                        Ok(()) => {
                            let operation = work.operation();
                            let index = under_way.requests.put(Request { chain, work, canceled });
                            channel.submit(Tag(index as u64), operation, buffers);
                        }
                        Err(_) => chain.refuse(),
                    }
                    return Ok(());
                }
                finish(chain.writer(), 0, Status::Ok)
            }
        };
        match answered {
            Ok(()) => chain.complete(written),
            Err(error) => chain.refuse_for(&error),
        }
    }

    /// Goes on with what has ended. Whether anything has.
    fn reap(&mut self, mut round: Option<&mut Round<'_>>) -> Result<bool, QueueError> {
        let Self { under_way, channel, .. } = self;
        let (mut any, mut result) = (false, Ok(()));
        channel.reap(&mut |ended| {
            any = true;
            if let Err(error) = under_way.ended(ended, round.as_deref_mut()) {
                // The others are gone through all the same.
                result = Err(error);
            }
        });
        if !under_way.again.is_empty() {
            self.go_on(round)?;
        }
        result.map(|()| any)
    }

    /// Submits what comes next of requests of which a part has ended.
    fn go_on(&mut self, mut round: Option<&mut Round<'_>>) -> Result<(), QueueError> {
        let Self { under_way, channel, .. } = self;
        let (mut again, mut result) = (mem::take(&mut under_way.again), Ok(()));
        for (index, mut buffers) in again.drain(..) {
            let Some(Request { chain, work, .. }) = under_way.requests.get(index) else {
                continue;
            };
            match work.prepare(chain, &mut buffers) {
                Ok(()) => channel.submit(Tag(index as u64), work.operation(), buffers),
                Err(_) => result = result.and(under_way.end(index, buffers, None, round.as_deref_mut())),
            }
        }
        under_way.again = again;
        result
    }
}

impl UnderWay {
    fn ended(&mut self, ended: Ended, round: Option<&mut Round<'_>>) -> Result<(), QueueError> {
        let Ended {
            tag: Tag(tag),
            mut buffers,
            outcome,
        } = ended;
        let index = usize::try_from(tag).unwrap_or(usize::MAX);
        let Some(request) = self.requests.get(index) else {
            let nobodys = io::Error::other("the storage has ended a request that is not under way");
            self.disk.failures.record(nobodys);
            return Ok(());
        };
        let Request { chain, work, canceled } = request;
        let after = match outcome {
            Outcome::Canceled if *canceled => After::GiveBack,
            Outcome::Canceled => After::Fail(io::Error::other("the storage has canceled what it was not asked to")),
            Outcome::Done(result) => work.ended(result, chain, &mut buffers, &self.disk),
        };
        match after {
            After::Submit => {
                self.again.push((index, buffers));
                Ok(())
            }
            After::GiveBack => {
                self.keep(buffers);
                let request = self.requests.take(index);
                // Memory may have changed.
                request.inspect(|Request { chain, work, .. }| work.mark(chain));
                Ok(())
            }
            After::Fail(error) => {
                let status = self.disk.status(Err(Failure::Storage(error)));
                self.end(index, buffers, status.ok(), round)
            }
            After::Finish(status) => self.end(index, buffers, Some(status), round),
            After::Refuse => self.end(index, buffers, None, round),
        }
    }

    /// Answers a request, or refuses it if there is no status.
    fn end(
        &mut self,
        index: usize,
        buffers: Buffers,
        status: Option<Status>,
        round: Option<&mut Round<'_>>,
    ) -> Result<(), QueueError> {
        // First: nothing of a map that was replaced is held once the chain is back.
        self.keep(buffers);
        let Some(Request { chain, work, .. }) = self.requests.take(index) else {
            return Ok(());
        };
        work.mark(&chain);
        let answered = status.map(|status| match work.appended() {
            Some(at) if status == Status::Ok => finish_append(chain.writer(), at),
            _ => finish(chain.writer(), work.filled(), status),
        });
        let written = chain.writable_len();
        match (answered, round) {
            // Shown with others at the end of the round.
            (Some(Ok(())), Some(round)) if !self.stopped => round.put(chain, written)?,
            (Some(Ok(())), _) => chain.complete(written),
            _ => chain.refuse(),
        }
        Ok(())
    }

    fn keep(&mut self, mut buffers: Buffers) {
        buffers.clear();
        self.spare.push(buffers);
    }
}
