//! What becomes of a job that was replied to.

use std::{io, mem};

use super::{
    super::{
        super::{Buffers, Ended, Operation, Outcome},
        NbdError,
        job::{Owner, State},
        journal::Data,
        wire::{self, Command, kind},
    },
    Link,
};
use crate::sync::lock;

impl Link {
    /// The reply to a job is whole.
    pub(super) fn replied(&mut self, index: usize) -> Result<(), NbdError> {
        let Some(job) = &mut self.jobs[index].1 else {
            return Ok(());
        };
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
            self.wake.extend(agreed.take_wakers());
        }
        if job.owner == Owner::Nobody {
            self.release(index);
            self.free(index);
            return Ok(());
        }
        self.remember(index, command);
        let Some(job) = &mut self.jobs[index].1 else {
            return Ok(());
        };
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
    pub(super) fn remember(&mut self, index: usize, command: Command) {
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
    pub(super) fn end(&mut self, index: usize, outcome: Outcome) {
        self.release(index);
        let Some(job) = self.free(index) else { return };
        self.tell(job.owner, job.buffers, outcome);
    }

    pub(super) fn tell(&mut self, owner: Owner, buffers: Buffers, outcome: Outcome) {
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
                    lock(&self.shared.agreed).lost = Some(io::Error::other(
                        "what was written could not be written again after the NBD server was lost",
                    ));
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
                self.wake.extend(agreed.take_wakers());
            }
        }
    }
}
