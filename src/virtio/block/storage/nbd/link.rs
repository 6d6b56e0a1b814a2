//! A connection that comes back, and the requests that are under way on it.

use std::{
    collections::VecDeque,
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Waker,
    time::Duration,
};

use super::{
    super::{Buffers, Ended, Operation, Outcome, Tag},
    NbdError, Shared,
    handshake::Export,
    job::{Job, Lane, Owner, Plan, State},
    journal::Data,
    opening::Opening,
    receive::{Inbox, Receiving},
    socket::{Stream, Vector, Vectors},
    wire::{self, Command, REQUEST_LEN, kind},
};
use crate::{sync::lock, virtio::Wait};

/// Writes of what is written again that are under way at a time.
const REPEATED: usize = 32;

pub struct Link {
    pub(super) shared: Arc<Shared>,
    phase: Phase,
    lanes: Vec<Option<Lane>>,
    /// By number. How often a place was used is part of the cookie.
    pub(super) jobs: Vec<(u32, Option<Job>)>,
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
            self.wake.extend(agreed.to_wake());
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
                self.wake.extend(agreed.to_wake());
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

    /// Does what can be done without waiting.
    fn drive(&mut self, look: bool) {
        // A connection that is made and lost again is one of several steps.
        for _ in 0..8 {
            match self.step(look) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => self.lose(error),
            }
        }
    }

    /// Whether there may be more to do at once.
    fn step(&mut self, look: bool) -> Result<bool, NbdError> {
        let now = self.shared.clock.now();
        let needed = !self.waiting.is_empty();
        match &mut self.phase {
            Phase::Idle if needed => self.open(now),
            Phase::Idle => Ok(false),
            Phase::BackOff(time) if now >= *time && needed => self.open(now),
            Phase::Opening(opening, deadline) => {
                let deadline = *deadline;
                match opening.step(&self.shared.wanted)? {
                    Some(export) => self.opened(export),
                    None if now >= deadline => Err(NbdError::TimedOut),
                    None => {
                        self.expire(now);
                        Ok(false)
                    }
                }
            }
            Phase::BackOff(_) => {
                self.expire(now);
                Ok(false)
            }
            Phase::Ready(ready) => {
                if (look || ready.more) && self.in_flight != 0 {
                    self.receive()?;
                }
                self.look_for_overdue(now)?;
                if self.renew && self.in_flight == 0 {
                    self.close();
                    return Ok(true);
                }
                self.start(now);
                if !self.is_serving() {
                    self.expire(now);
                }
                self.send()?;
                Ok(false)
            }
        }
    }

    fn open(&mut self, now: Duration) -> Result<bool, NbdError> {
        let deadline = now.saturating_add(self.shared.options.connect_timeout);
        let attempt = self.attempts as usize;
        // Until it stands, it has failed.
        self.phase = Phase::Idle;
        let opening = Opening::begin(&self.shared.wanted, attempt)?;
        self.phase = Phase::Opening(Box::new(opening), deadline);
        Ok(true)
    }

    fn opened(&mut self, export: Export) -> Result<bool, NbdError> {
        if let Some(why) = export.differs(&self.shared.first) {
            return Err(NbdError::Changed(why));
        }
        if let Phase::Opening(opening, _) = mem::replace(&mut self.phase, Phase::Idle) {
            self.shared.size.store(export.size, Relaxed);
            self.shared.counts.established.fetch_add(1, Relaxed);
            self.phase = Phase::Ready(Box::new(Ready::new(opening.into_stream(), export)));
        }
        Ok(true)
    }

    /// Ends requests for which there has been no server for too long.
    fn expire(&mut self, now: Duration) {
        let Some(time) = self.shared.options.give_up else { return };
        for index in 0..self.jobs.len() {
            if let Some(job) = &self.jobs[index].1
                && let Owner::Request { .. } = job.owner
                && job.since.saturating_add(time) <= now
                && self.take_back(index)
            {
                let late = io::Error::new(io::ErrorKind::TimedOut, "there has been no connection to the NBD server for too long");
                self.end(index, Outcome::Done(Err(late)));
            }
        }
    }

    fn look_for_overdue(&mut self, now: Duration) -> Result<(), NbdError> {
        if self.in_flight == 0 || now < self.overdue {
            return Ok(());
        }
        let under_way = self.jobs.iter().filter_map(|(_, job)| job.as_ref());
        let sent = under_way.filter(|job| job.state != State::Waiting).map(|job| job.sent_at);
        let first = sent.min().unwrap_or(now);
        self.overdue = first.saturating_add(self.shared.options.request_timeout);
        match self.overdue <= now {
            true => {
                self.shared.counts.timed_out.fetch_add(1, Relaxed);
                Err(NbdError::TimedOut)
            }
            false => Ok(()),
        }
    }

    /// Makes commands of what waits, as far as they may go.
    fn start(&mut self, now: Duration) {
        if !self.is_serving() {
            if !self.repeat(now) {
                return;
            }
            if let Phase::Ready(ready) = &mut self.phase {
                ready.serving = true;
            }
        }
        for _ in 0..self.waiting.len() {
            if self.renew {
                break;
            }
            let Some(index) = self.waiting.pop_front() else { break };
            if !self.begin(index, now) {
                self.waiting.push_back(index);
            }
        }
        let mut agreed = lock(&self.shared.agreed);
        if agreed.flush_wanted && !agreed.flushing && !self.renew {
            (agreed.flush_wanted, agreed.flushing) = (false, true);
            drop(agreed);
            let index = self.put(Job::new(Owner::Flush, Operation::Flush, Buffers::default(), now));
            self.begin(index, now);
        }
    }

    fn is_serving(&self) -> bool {
        matches!(&self.phase, Phase::Ready(ready) if ready.serving)
    }

    /// Writes again what may be lost. Whether there is nothing left of it.
    fn repeat(&mut self, now: Duration) -> bool {
        let Phase::Ready(ready) = &self.phase else { return false };
        let most = u64::from(ready.export.max_payload);
        if self.to_repeat.is_none() {
            let mut agreed = lock(&self.shared.agreed);
            if !agreed.to_repeat {
                return true;
            }
            if agreed.repeating && !self.claimed {
                // Another connection is at it.
                agreed.stir();
                return false;
            }
            self.claimed = true;
            agreed.repeating = true;
            if !agreed.is_quiet() {
                // What changes data now is waited for.
                agreed.stir();
                return false;
            }
            let mut list = VecDeque::new();
            for (offset, len, data) in agreed.entries() {
                match data {
                    Data::Bytes(bytes) => {
                        for (at, piece) in (0..).step_by(most as usize).zip(bytes.chunks(most as usize)) {
                            list.push_back((offset + at, piece.len() as u64, Data::Bytes(piece.into())));
                        }
                    }
                    zeros => list.push_back((offset, len, zeros.clone())),
                }
            }
            self.to_repeat = Some(list);
        }
        // Those that take several commands.
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { break };
            let is_repeated = matches!(&self.jobs[index].1, Some(job) if job.owner == Owner::Repeated);
            if !is_repeated || !self.begin(index, now) {
                self.waiting.push_back(index);
            }
        }
        while self.repeating < REPEATED
            && let Some((offset, len, data)) = self.to_repeat.as_mut().and_then(VecDeque::pop_front)
        {
            let (operation, buffers) = match data {
                Data::Bytes(bytes) => (Operation::Write { offset, fua: false }, Buffers::from(&bytes[..])),
                Data::Zeros { may_unmap } => (Operation::WriteZeroes { offset, len, may_unmap }, Buffers::default()),
            };
            self.shared.counts.rewritten.fetch_add(1, Relaxed);
            let index = self.put(Job::new(Owner::Repeated, operation, buffers, now));
            self.repeating += 1;
            if !self.begin(index, now) {
                self.waiting.push_back(index);
            }
        }
        if self.repeating != 0 {
            return false;
        }
        self.to_repeat = None;
        self.claimed = false;
        let mut agreed = lock(&self.shared.agreed);
        (agreed.to_repeat, agreed.repeating) = (false, false);
        agreed.stir();
        self.wake.extend(agreed.to_wake());
        true
    }

    /// Makes a command of a job. Whether it has come to something: it is sent, or has ended.
    fn begin(&mut self, index: usize, now: Duration) -> bool {
        let Phase::Ready(ready) = &self.phase else { return false };
        let export = ready.export;
        let (generation, Some(job)) = &mut self.jobs[index] else {
            return true;
        };
        let (command, own) = match job.plan(&export) {
            Plan::Send(command, own) => (command, own),
            Plan::End(result) => {
                self.end(index, Outcome::Done(result));
                return true;
            }
        };
        if command.end() > export.size {
            if command.end() <= self.shared.size.load(Relaxed) {
                // A connection knows the size that there was when it was made.
                job.own = own;
                self.renew = true;
                return false;
            }
            let beyond = io::Error::new(io::ErrorKind::UnexpectedEof, "the NBD export is not that long");
            self.end(index, Outcome::Done(Err(beyond)));
            return true;
        }
        job.own = own;
        let alone = job.is_part();
        if (command.modifies() || alone) && job.ticket.is_none() && job.owner != Owner::Repeated {
            let bytes = match job.operation {
                Operation::Write { fua: false, .. } => command.len as usize,
                _ => 0,
            };
            let mut agreed = lock(&self.shared.agreed);
            job.ticket = agreed.enter(bytes, alone, self.shared.remembered());
            if job.ticket.is_none() {
                job.own = None;
                return false;
            }
        }
        if command.kind == kind::FLUSH {
            let mut agreed = lock(&self.shared.agreed);
            job.covers = agreed.flush_covers();
            if let Owner::Request { .. } = job.owner
                && let Some(lost) = agreed.lost.take()
            {
                drop(agreed);
                self.end(index, Outcome::Done(Err(lost)));
                return true;
            }
        }
        *generation = generation.wrapping_add(1);
        job.command = command;
        job.header = command.header(u64::from(*generation) << 32 | index as u64);
        job.state = State::Out;
        job.sent_at = now;
        if self.in_flight == 0 {
            self.overdue = now.saturating_add(self.shared.options.request_timeout);
        }
        self.in_flight += 1;
        self.outbox.push_back(index);
        true
    }

    /// Sends what is to be sent, as far as the socket takes it.
    fn send(&mut self) -> Result<(), NbdError> {
        let Phase::Ready(ready) = &mut self.phase else { return Ok(()) };
        ready.unsent = ready.stream.flush().map_err(NbdError::Connect)?;
        while !self.outbox.is_empty() {
            let mut vectors = Vectors::new();
            let mut skip = self.sent;
            for &index in &self.outbox {
                let Some(job) = &self.jobs[index].1 else { continue };
                vectors.push(Vector::of(&job.header[skip.min(REQUEST_LEN)..]));
                let behind = skip.saturating_sub(REQUEST_LEN);
                vectors.push_pieces(job.memory().pieces(), behind, job.command.payload() - behind);
                skip = 0;
                if vectors.is_full() {
                    break;
                }
            }
            // SAFETY: headers and memory are those of jobs, which stay where they are for the call.
            let mut count = match unsafe { ready.stream.write(&vectors) } {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(NbdError::Connect(error)),
            };
            while let Some(&index) = self.outbox.front() {
                let Some(job) = &mut self.jobs[index].1 else { break };
                let left = REQUEST_LEN + job.command.payload() - self.sent;
                if count < left {
                    self.sent += count;
                    break;
                }
                count -= left;
                self.sent = 0;
                self.outbox.pop_front();
                job.state = State::Sent;
                if job.owner == Owner::Nobody {
                    job.buffers.clear();
                    job.own = None;
                }
            }
        }
        ready.unsent = ready.stream.flush().map_err(NbdError::Connect)?;
        Ok(())
    }

    pub(super) fn ready(&mut self) -> Option<(&mut Ready, &mut Vec<(u32, Option<Job>)>)> {
        match &mut self.phase {
            Phase::Ready(ready) => Some((ready, &mut self.jobs)),
            _ => None,
        }
    }

    /// The reply to a job is whole.
    pub(super) fn replied(&mut self, index: usize) -> Result<(), NbdError> {
        let Some(job) = &mut self.jobs[index].1 else { return Ok(()) };
        let command = job.command;
        if let Some((wire::ESHUTDOWN, _)) = job.reply.error {
            return Err(NbdError::ShuttingDown);
        }
        let reply = mem::take(&mut job.reply);
        if reply.error.is_none() && !reply.is_whole(&command) {
            return Err(NbdError::Protocol("it leaves out a part of what was read"));
        }
        self.in_flight -= 1;
        self.attempts = 0;
        job.state = State::Waiting;
        if let Some((code, message)) = reply.error {
            self.release(index);
            self.end(index, Outcome::Done(Err(wire::error(code, &message))));
            return Ok(());
        }
        if command.kind == kind::FLUSH {
            let mut agreed = lock(&self.shared.agreed);
            agreed.flushed(job.covers);
            self.wake.extend(agreed.to_wake());
        }
        if job.owner == Owner::Nobody {
            self.release(index);
            self.free(index);
            return Ok(());
        }
        self.remember(index, command);
        let Some(job) = &mut self.jobs[index].1 else { return Ok(()) };
        let result = job.stepped();
        if !job.is_part() {
            self.release(index);
        }
        let canceled = self.jobs[index].1.as_ref().is_some_and(|job| job.canceled);
        match result {
            Some(result) => self.end(index, Outcome::Done(Ok(result))),
            None if canceled => {
                self.release(index);
                self.end(index, Outcome::Canceled);
            }
            None => self.waiting.push_front(index),
        }
        Ok(())
    }

    /// What was written may be lost with the server.
    fn remember(&mut self, index: usize, command: Command) {
        let Some(job) = &self.jobs[index].1 else { return };
        let fua = command.flags & wire::command_flag::FUA != 0;
        if !self.shared.is_volatile() || !command.modifies() || job.owner == Owner::Repeated {
            return;
        }
        let memory = job.memory();
        let mut agreed = lock(&self.shared.agreed);
        let (offset, len, limit) = (command.offset, command.len.into(), self.shared.options.remember);
        match (command.kind, job.operation) {
            // It is stable, or nobody counts on it.
            _ if fua || command.kind == kind::TRIM => agreed.remove(command.offset..command.end()),
            (kind::WRITE, Operation::WriteZeroes { may_unmap, .. }) if !job.is_part() => {
                agreed.written(offset, len, limit, |_, _| Data::Zeros { may_unmap });
            }
            (kind::WRITE, _) => agreed.written(offset, len, limit, |at, len| {
                let mut bytes = vec![0; len];
                memory.read(at, &mut bytes);
                Data::Bytes(bytes.into())
            }),
            (kind::WRITE_ZEROES, Operation::WriteZeroes { may_unmap, .. }) => {
                agreed.written(offset, len, limit, |_, _| Data::Zeros { may_unmap });
            }
            _ => {}
        }
    }

    /// Tells the owner of a job how it has ended.
    fn end(&mut self, index: usize, outcome: Outcome) {
        self.release(index);
        let Some(job) = self.free(index) else { return };
        self.tell(job.owner, job.buffers, outcome);
    }

    fn tell(&mut self, owner: Owner, buffers: Buffers, outcome: Outcome) {
        match owner {
            Owner::Request { lane, tag } => {
                let is_caller = self.caller == Some(lane);
                if let Some(Some(lane)) = self.lanes.get_mut(lane) {
                    lane.ended.push(Ended { tag, buffers, outcome });
                    if !is_caller {
                        self.wake.push(lane.waker.clone());
                    }
                }
            }
            Owner::Nobody => {}
            Owner::Repeated => {
                self.repeating = self.repeating.saturating_sub(1);
                if let Outcome::Done(Err(error)) = outcome {
                    self.shared.failures.record(error);
                    lock(&self.shared.agreed).lost =
                        Some(io::Error::other("what was written could not be written again after the NBD server was lost"));
                }
            }
            Owner::Flush => {
                let mut agreed = lock(&self.shared.agreed);
                agreed.flushing = false;
                if let Outcome::Done(Err(error)) = outcome {
                    self.shared.failures.record(error);
                    agreed.forget("the NBD server could not make stable what was written");
                }
                agreed.stir();
                self.wake.extend(agreed.to_wake());
            }
        }
    }

    /// The connection has gone, or is given up: what is under way begins anew on the next.
    fn lose(&mut self, error: NbdError) {
        let stood = self.disconnect();
        let counts = &self.shared.counts;
        if stood.is_some() {
            counts.lost.fetch_add(1, Relaxed);
        }
        self.shared.failures.record(io::Error::other(error));
        let now = self.shared.clock.now();
        self.phase = match stood {
            // One that has served is missed at once.
            Some(true) => Phase::BackOff(now),
            _ => {
                let options = &self.shared.options;
                let time = options.back_off.saturating_mul(1 << self.attempts.min(16));
                self.attempts = self.attempts.saturating_add(1);
                Phase::BackOff(now.saturating_add(time.min(options.back_off_limit)))
            }
        };
        self.expire(now);
    }

    /// Closes the connection; the next request makes another.
    fn close(&mut self) {
        if let Phase::Ready(ready) = &mut self.phase
            && self.in_flight == 0
        {
            // If it does not go out at once, the end of the connection says the same.
            let bye = Command {
                kind: kind::DISC,
                ..Command::default()
            };
            let _ = ready.stream.write_bytes(&bye.header(0));
            self.phase = Phase::Idle;
        } else {
            self.disconnect();
        }
        self.renew = false;
    }

    /// Whether a connection stood, and whether anything was answered on it.
    fn disconnect(&mut self) -> Option<bool> {
        let stood = match mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Ready(ready) => Some(ready.proven),
            _ => None,
        };
        self.outbox.clear();
        (self.sent, self.in_flight, self.renew, self.just_looked) = (0, 0, false, false);
        for index in 0..self.jobs.len() {
            self.release(index);
            let Some(job) = &mut self.jobs[index].1 else { continue };
            let was_sent = job.state != State::Waiting;
            job.rewind();
            match job.owner {
                Owner::Request { .. } if job.canceled => {
                    self.waiting.retain(|other| *other != index);
                    self.end(index, Outcome::Canceled);
                }
                Owner::Request { .. } if was_sent => {
                    self.shared.counts.resent.fetch_add(1, Relaxed);
                    self.waiting.push_back(index);
                }
                Owner::Request { .. } => {}
                owner => {
                    self.waiting.retain(|other| *other != index);
                    self.free(index);
                    if owner == Owner::Flush {
                        let mut agreed = lock(&self.shared.agreed);
                        (agreed.flushing, agreed.flush_wanted) = (false, true);
                    }
                }
            }
        }
        self.lost_agreement(stood.is_some());
        stood
    }

    /// What all connections have agreed on, now that this one has gone.
    fn lost_agreement(&mut self, stood: bool) {
        let mut agreed = lock(&self.shared.agreed);
        self.to_repeat = None;
        if mem::take(&mut self.claimed) {
            agreed.repeating = false;
        }
        self.repeating = 0;
        if stood {
            agreed.connection_lost(self.shared.options.remember);
        }
        agreed.stir();
        self.wake.extend(agreed.to_wake());
    }
}
