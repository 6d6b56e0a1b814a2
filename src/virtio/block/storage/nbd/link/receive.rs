//! What comes from a server.

use super::{
    super::{
        NbdError,
        job::{Job, Owner, State},
        reply::{self, Meaning},
        socket::Stream,
        vectors::{Vector, Vectors},
    },
    Link, Place, Ready,
};
use std::io;

/// Bytes that are read ahead.
const INBOX: usize = 64 * 1024;
/// Bytes that are taken in at a time, before it is another's turn.
const BUDGET: usize = 4 << 20;

/// What was read and not looked at yet.
pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            bytes: vec![0; INBOX].into(),
            start: 0,
            end: 0,
        }
    }
}

impl Inbox {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Where more of it goes. The beginning of something longer than what is left is moved to the front.
    fn room(&mut self) -> &mut [u8] {
        if self.start != 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }
}

/// Where in a reply the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiving {
    /// At the beginning of it, or of a chunk.
    Head,
    /// In the data of a job.
    Data {
        index: usize,
        at: u32,
        left: u32,
        done: bool,
    },
}

impl Link {
    /// Takes in what there is.
    pub(super) fn receive(&mut self) -> Result<(), NbdError> {
        let mut budget = BUDGET;
        loop {
            let Some((ready, jobs)) = self.ready() else {
                return Ok(());
            };
            ready.more = false;
            let (asked, count) = match read(ready, jobs) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(NbdError::Connect(error)),
            };
            if count == 0 {
                return Err(NbdError::Connect(io::ErrorKind::UnexpectedEof.into()));
            }
            while self.take_in()? {}
            let Some((ready, _)) = self.ready() else { return Ok(()) };
            budget = budget.saturating_sub(count);
            if budget == 0 {
                ready.more = true;
                return Ok(());
            }
            // Of what is secured a record comes at a time.
            if count < asked && matches!(ready.stream, Stream::Plain(_)) {
                return Ok(());
            }
        }
    }

    /// Takes in one step of what was read. Whether there may be another.
    fn take_in(&mut self) -> Result<bool, NbdError> {
        let Some((ready, jobs)) = self.ready() else {
            return Ok(false);
        };
        if let Receiving::Data { index, at, left, done } = ready.receiving {
            let unread = ready.inbox.unread();
            let count = unread.len().min(left as usize);
            if let Some(job) = wanted(jobs, index) {
                job.memory().write(at.into(), &unread[..count]);
            }
            ready.inbox.consume(count);
            // At most what is left.
            let (at, left) = (at + count as u32, left - count as u32);
            ready.receiving = Receiving::Data { index, at, left, done };
            if left != 0 {
                return Ok(false);
            }
            ready.receiving = Receiving::Head;
            if done {
                ready.proven = true;
                self.replied(index)?;
            }
            return Ok(true);
        }
        let structured = ready.export.structured;
        let Some(head) = reply::head(ready.inbox.unread(), structured)? else {
            return Ok(false);
        };
        ready.inbox.consume(head.len);
        let index = head.cookie as u32 as usize;
        let place = jobs.get_mut(index);
        let job = match place {
            Some((generation, Some(job)))
                if u64::from(*generation) == head.cookie >> 32 && job.state == State::Sent =>
            {
                job
            }
            _ => return Err(NbdError::Protocol("it replies to a request that it does not have")),
        };
        let done = head.done;
        match reply::take(head.content, &job.command, structured, &mut job.reply)? {
            Meaning::Nothing => {}
            Meaning::Data { at, len } => {
                ready.receiving = Receiving::Data {
                    index,
                    at,
                    left: len,
                    done,
                };
                return Ok(true);
            }
            Meaning::Hole { at, len } => {
                if job.owner != Owner::Nobody {
                    job.memory().part(at.into(), len.into()).fill(0);
                }
            }
        }
        if done {
            ready.proven = true;
            self.replied(index)?;
        }
        Ok(true)
    }
}

/// The job whose data comes, if anybody wants it.
fn wanted(jobs: &[Place], index: usize) -> Option<&Job> {
    let job = jobs.get(index)?.1.as_ref()?;
    (job.owner != Owner::Nobody).then_some(job)
}

/// Reads once: data to where it belongs, and what follows it ahead. How many bytes there was room for, and how many came.
fn read(ready: &mut Ready, jobs: &[Place]) -> io::Result<(usize, usize)> {
    let Ready {
        stream,
        inbox,
        receiving,
        ..
    } = ready;
    let mut vectors = Vectors::new();
    let mut direct = 0;
    if let Receiving::Data { index, at, left, .. } = *receiving
        && let Some(job) = wanted(jobs, index)
    {
        // All that was read ahead is taken in by now.
        vectors.push_pieces(job.memory().pieces(), at as usize, left as usize);
        direct = vectors.len();
        if direct == left as usize {
            vectors.push(Vector::of_mut(inbox.room()));
        }
    } else {
        vectors.push(Vector::of_mut(inbox.room()));
    }
    // SAFETY: the memory is that of a job, or of the inbox; both stay where they are for the call.
    let count = unsafe { stream.read(&vectors) }?;
    let straight = count.min(direct);
    if let Receiving::Data { at, left, .. } = receiving {
        *at += straight as u32;
        *left -= straight as u32;
    }
    inbox.end += count - straight;
    Ok((vectors.len(), count))
}
