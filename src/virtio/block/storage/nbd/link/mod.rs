//! A connection that comes back, and the requests that are under way on it.
//!
//! | file | what is in it |
//! |---|---|
//! | this one | jobs, and what the channels of queues call |
//! | `connect` | the connection: made, lost, closed |
//! | `send`, `receive` | commands go out, replies come in |
//! | `end` | what becomes of a job that was replied to |

mod connect;
mod end;
mod receive;
mod send;

use std::{
    collections::VecDeque,
    mem,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use super::{
    super::{Buffers, Ended, Operation, Outcome, Tag},
    NbdError, Shared,
    handshake::Export,
    job::{Job, Lane, Owner, State},
    journal::Data,
    opening::Opening,
    socket::Stream,
    wire::kind,
};
use crate::{sync::lock, virtio::Wait};
use receive::{Inbox, Receiving};

/// Where a job may be, and how often the place was used: the cookie of its command says both.
type Place = (u32, Option<Job>);

pub struct Link {
    shared: Arc<Shared>,
    phase: Phase,
    lanes: Vec<Option<Lane>>,
    /// By number.
    jobs: Vec<Place>,
    free: Vec<usize>,
    /// Jobs to be sent, in order.
    waiting: VecDeque<usize>,
    /// Jobs that are sent now.
    outbox: VecDeque<usize>,
    /// Bytes of the first of them that were.
    sent: usize,
    /// Jobs that are sent or were, and not replied to.
    in_flight: usize,
    /// Attempts to connect that came to nothing, in a row.
    attempts: u32,
    /// When a reply is overdue, at the earliest.
    overdue: Duration,
    /// What is left to be written again on this connection, and how much of it is under way.
    to_repeat: Option<VecDeque<(u64, u64, Data)>>,
    repeating: usize,
    /// It is this connection on which that happens, or is about to.
    claimed: bool,
    /// The export is larger than this connection knows.
    renew: bool,
    /// The lane whose channel is called.
    caller: Option<usize>,
    /// Whom to wake once nothing is locked.
    pub(super) wake: Vec<Waker>,
    /// The last to be reaped were looked for.
    just_looked: bool,
}

enum Phase {
    /// Nothing is needed.
    Idle,
    /// The next attempt comes later.
    BackOff(Duration),
    Opening(Box<Opening>, Duration),
    Ready(Box<Ready>),
}

/// A connection that stands.
pub struct Ready {
    pub stream: Stream,
    pub export: Export,
    pub inbox: Inbox,
    pub receiving: Receiving,
    /// Something was answered on it.
    pub proven: bool,
    /// What was written before is all there.
    serving: bool,
    /// There may be more to read.
    pub more: bool,
    /// What was written is kept by TLS.
    unsent: bool,
}

impl Ready {
    pub fn new(stream: Stream, export: Export) -> Self {
        Self {
            stream,
            export,
            inbox: Inbox::default(),
            receiving: Receiving::Head,
            proven: false,
            serving: false,
            more: false,
            unsent: false,
        }
    }
}

impl Link {
    pub fn new(shared: Arc<Shared>, ready: Option<Ready>) -> Self {
        let phase = ready.map_or(Phase::Idle, |ready| Phase::Ready(Box::new(ready)));
        Self {
            shared,
            phase,
            lanes: Vec::new(),
            jobs: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            outbox: VecDeque::new(),
            sent: 0,
            in_flight: 0,
            attempts: 0,
            overdue: Duration::ZERO,
            to_repeat: None,
            repeating: 0,
            claimed: false,
            renew: false,
            caller: None,
            wake: Vec::new(),
            just_looked: false,
        }
    }

    pub fn lanes(&self) -> usize {
        self.lanes.iter().flatten().count()
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Ready(_))
    }

    pub fn add_lane(&mut self, waker: Waker) -> usize {
        let lane = Some(Lane {
            waker,
            ended: Vec::new(),
        });
        match self.lanes.iter().position(Option::is_none) {
            Some(free) => {
                self.lanes[free] = lane;
                free
            }
            None => {
                self.lanes.push(lane);
                self.lanes.len() - 1
            }
        }
    }

    /// Nothing of its requests is touched any more.
    pub fn remove_lane(&mut self, lane: usize) {
        for index in 0..self.jobs.len() {
            match self.jobs[index].1.as_ref().map(|job| job.owner) {
                Some(Owner::Request { lane: of, .. }) if of == lane => self.give_up(index),
                _ => {}
            }
        }
        self.lanes[lane] = None;
        if self.lanes() == 0 && (self.in_flight != 0 || !matches!(self.phase, Phase::Ready(_))) {
            // Nobody would look at it any more.
            self.close();
        }
    }

    /// A job without an owner: what was not sent is forgotten, what was is waited for.
    fn give_up(&mut self, index: usize) {
        if self.take_back(index) {
            self.free(index);
        } else if let Some(job) = &mut self.jobs[index].1 {
            job.owner = Owner::Nobody;
            if job.state == State::Sent {
                job.buffers.clear();
                job.own = None;
            }
        }
    }

    /// Takes a job out of what is to be sent, if no byte of it was.
    fn take_back(&mut self, index: usize) -> bool {
        let Some(job) = &mut self.jobs[index].1 else {
            return false;
        };
        match job.state {
            State::Sent => return false,
            State::Waiting => self.waiting.retain(|other| *other != index),
            State::Out if self.sent != 0 && self.outbox.front() == Some(&index) => return false,
            State::Out => {
                self.outbox.retain(|other| *other != index);
                self.in_flight -= 1;
                job.state = State::Waiting;
            }
        }
        self.release(index);
        true
    }

    /// What the job had to itself is anybody's again.
    fn release(&mut self, index: usize) {
        if let Some(job) = &mut self.jobs[index].1
            && let Some(ticket) = job.ticket.take()
        {
            let mut agreed = lock(&self.shared.agreed);
            agreed.leave(ticket);
            self.wake.extend(agreed.take_wakers());
        }
    }

    fn free(&mut self, index: usize) -> Option<Job> {
        let job = self.jobs[index].1.take();
        if job.is_some() {
            self.free.push(index);
        }
        job
    }

    fn put(&mut self, job: Job) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.jobs[index].1 = Some(job);
                index
            }
            None => {
                self.jobs.push((0, Some(job)));
                self.jobs.len() - 1
            }
        }
    }

    pub fn submit(&mut self, lane: usize, tag: Tag, operation: Operation, buffers: Buffers) {
        let now = self.shared.clock.now();
        let job = Job::new(Owner::Request { lane, tag }, operation, buffers, now);
        let index = self.put(job);
        self.waiting.push_back(index);
    }

    /// Sends what can be sent.
    pub fn commit(&mut self, lane: usize) {
        self.caller = Some(lane);
        self.drive(false);
    }

    pub fn reap(&mut self, lane: usize, ended: &mut Vec<Ended>) {
        self.caller = Some(lane);
        // A round looks at its beginning and at its end, where what it has sent is not answered yet.
        if !mem::take(&mut self.just_looked) {
            self.drive(true);
            self.just_looked = self.is_connected();
        }
        if let Some(Some(lane)) = self.lanes.get_mut(lane) {
            ended.append(&mut lane.ended);
        }
    }

    pub fn cancel(&mut self, lane: usize) {
        self.caller = Some(lane);
        for index in 0..self.jobs.len() {
            let Some(job) = &mut self.jobs[index].1 else { continue };
            match job.owner {
                Owner::Request { lane: of, .. } if of == lane => {}
                _ => continue,
            }
            job.canceled = true;
            if self.take_back(index) {
                self.end(index, Outcome::Canceled);
            } else if let Some(job) = &mut self.jobs[index].1
                && (job.state, job.command.kind, job.is_part()) == (State::Sent, kind::READ, false)
            {
                // What comes of it is of no interest.
                self.cancel_sent(index);
            }
        }
        if self.lanes() == 1 {
            // Nobody may look at it for long.
            self.hand_over();
        }
    }

    /// A read that the server has: its reply is dropped.
    fn cancel_sent(&mut self, index: usize) {
        let Some(job) = &mut self.jobs[index].1 else { return };
        let mut rest = Job::new(Owner::Nobody, job.operation, Buffers::default(), job.since);
        rest.state = job.state;
        rest.command = job.command;
        rest.sent_at = job.sent_at;
        rest.reply = mem::take(&mut job.reply);
        let job = mem::replace(job, rest);
        self.tell(job.owner, job.buffers, Outcome::Canceled);
    }

    /// What others wait for is left to them.
    fn hand_over(&mut self) {
        if self.claimed {
            self.lose(NbdError::Stopped);
            return;
        }
        for (_, job) in &mut self.jobs {
            if let Some(job) = job
                && job.owner == Owner::Flush
            {
                job.owner = Owner::Nobody;
                let mut agreed = lock(&self.shared.agreed);
                (agreed.flushing, agreed.flush_wanted) = (false, true);
                agreed.stir();
                self.wake.extend(agreed.take_wakers());
            }
        }
    }

    /// Tells of what the link waits for.
    pub fn waits(&mut self, wait: &mut dyn FnMut(Wait)) -> Option<Arc<OwnedFd>> {
        let give_up = self.shared.options.give_up;
        let first = self.jobs.iter().filter_map(|(_, job)| Some(job.as_ref()?.since)).min();
        let given_up = first.zip(give_up).map(|(first, time)| first.saturating_add(time));
        let mut until = |time| wait(Wait::Until(time));
        match &self.phase {
            Phase::Idle => None,
            Phase::BackOff(time) => {
                if first.is_some() {
                    until(given_up.map_or(*time, |given_up| given_up.min(*time)));
                }
                None
            }
            Phase::Opening(opening, deadline) => {
                until(given_up.map_or(*deadline, |given_up| given_up.min(*deadline)));
                opening.waits().into_iter().flatten().for_each(wait);
                Some(Arc::clone(opening.socket()))
            }
            Phase::Ready(ready) => {
                if ready.more {
                    until(Duration::ZERO);
                }
                if let Some(given_up) = given_up.filter(|_| !ready.serving) {
                    until(given_up);
                }
                if self.in_flight == 0 {
                    return None;
                }
                until(self.overdue);
                let fd = ready.stream.socket().as_raw_fd();
                wait(Wait::Readable(fd));
                if ready.unsent || !self.outbox.is_empty() {
                    wait(Wait::Writable(fd));
                }
                Some(Arc::clone(ready.stream.socket()))
            }
        }
    }

    fn ready(&mut self) -> Option<(&mut Ready, &mut [Place])> {
        match &mut self.phase {
            Phase::Ready(ready) => Some((ready, &mut self.jobs)),
            _ => None,
        }
    }
}
