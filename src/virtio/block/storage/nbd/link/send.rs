//! Commands go out.

use std::{collections::VecDeque, io, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    super::{
        super::{Buffers, Operation, Outcome},
        NbdError,
        job::{Job, Owner, Plan, State},
        journal::Data,
        vectors::{Vector, Vectors},
        wire::{REQUEST_LEN, kind},
    },
    Link, Phase,
};
use crate::sync::lock;

/// Writes of what is written again that are under way at a time.
const REPEATED: usize = 32;

impl Link {
    /// Makes commands of what waits, as far as they may go.
    pub(super) fn start(&mut self, now: Duration) {
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

    pub(super) fn is_serving(&self) -> bool {
        matches!(&self.phase, Phase::Ready(ready) if ready.serving)
    }

    /// Writes again what may be lost. Whether there is nothing left of it.
    pub(super) fn repeat(&mut self, now: Duration) -> bool {
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
        self.wake.extend(agreed.take_wakers());
        true
    }

    /// Makes a command of a job. Whether it has come to something: it is sent, or has ended.
    pub(super) fn begin(&mut self, index: usize, now: Duration) -> bool {
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
    pub(super) fn send(&mut self) -> Result<(), NbdError> {
        let Phase::Ready(ready) = &mut self.phase else {
            return Ok(());
        };
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
}
