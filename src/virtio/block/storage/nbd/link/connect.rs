//! The connection of a link: made, lost, closed.

use std::{io, mem, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    super::{
        super::Outcome,
        NbdError,
        handshake::Export,
        job::{Owner, State},
        opening::Opening,
        wire::{Command, kind},
    },
    Link, Phase, Ready,
};
use crate::sync::lock;

impl Link {
    /// Does what can be done without waiting.
    pub(super) fn drive(&mut self, look: bool) {
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
    pub(super) fn step(&mut self, look: bool) -> Result<bool, NbdError> {
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

    pub(super) fn open(&mut self, now: Duration) -> Result<bool, NbdError> {
        let deadline = now.saturating_add(self.shared.options.connect_timeout);
        let attempt = self.attempts as usize;
        // Until it stands, it has failed.
        self.phase = Phase::Idle;
        let opening = Opening::begin(&self.shared.wanted, attempt)?;
        self.phase = Phase::Opening(Box::new(opening), deadline);
        Ok(true)
    }

    pub(super) fn opened(&mut self, export: Export) -> Result<bool, NbdError> {
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
    pub(super) fn expire(&mut self, now: Duration) {
        let Some(time) = self.shared.options.give_up else {
            return;
        };
        for index in 0..self.jobs.len() {
            if let Some(job) = &self.jobs[index].1
                && let Owner::Request { .. } = job.owner
                && job.since.saturating_add(time) <= now
                && self.take_back(index)
            {
                let late = io::Error::new(
                    io::ErrorKind::TimedOut,
                    "there has been no connection to the NBD server for too long",
                );
                self.end(index, Outcome::Done(Err(late)));
            }
        }
    }

    pub(super) fn look_for_overdue(&mut self, now: Duration) -> Result<(), NbdError> {
        if self.in_flight == 0 || now < self.overdue {
            return Ok(());
        }
        let under_way = self.jobs.iter().filter_map(|(_, job)| job.as_ref());
        let sent = under_way
            .filter(|job| job.state != State::Waiting)
            .map(|job| job.sent_at);
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

    /// The connection has gone, or is given up: what is under way begins anew on the next.
    pub(super) fn lose(&mut self, error: NbdError) {
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
    pub(super) fn close(&mut self) {
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
    pub(super) fn disconnect(&mut self) -> Option<bool> {
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
    pub(super) fn lost_agreement(&mut self, stood: bool) {
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
        self.wake.extend(agreed.take_wakers());
    }
}

impl Drop for Link {
    /// The server is told, so that it does not take it for a fault.
    fn drop(&mut self) {
        self.close();
    }
}
