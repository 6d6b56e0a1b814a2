//! A request, and the commands that it takes.

use std::{io, ops::Range, task::Waker, time::Duration};

use super::{
    super::{Buffers, Ended, Operation, Tag},
    handshake::Export,
    journal::Ticket,
    reply::Reply,
    wire::{Command, REQUEST_LEN, command_flag, flag, kind},
};

/// Bytes that are bounced at a time.
const BOUNCE: u64 = 64 * 1024;
/// Bytes of zeros that are sent at a time to a server that cannot make them itself.
const ZEROS: u64 = 256 * 1024;
/// Bytes of a range that one command has: what fits into its length, and is a multiple of any block.
const RANGE: u64 = 1 << 30;

/// Who is told of the end of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Request {
        lane: usize,
        tag: Tag,
    },
    /// It was given up: what the server says of it is of no interest.
    Nobody,
    /// What was written is written again.
    Repeated,
    /// A flush of our own.
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// To be sent.
    Waiting,
    /// Being sent.
    Out,
    /// The server has it.
    Sent,
}

/// What a command moves other than the buffers of its request.
pub struct Own {
    pub buffers: Buffers,
    /// Bytes of it that are not of the request, at the beginning.
    pub head: u64,
    /// Bytes that are.
    pub len: u64,
    /// It is read to be changed, and written back then.
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One command is all.
    Only,
    ReadFirst,
    WriteBack,
}

pub struct Job {
    pub owner: Owner,
    pub operation: Operation,
    pub buffers: Buffers,
    /// When it came.
    pub since: Duration,
    pub canceled: bool,
    /// Bytes of its range that are done.
    pub done: u64,
    pub state: State,
    pub own: Option<Own>,
    pub ticket: Option<Ticket>,
    /// What of it is under way, if anything.
    pub command: Command,
    pub header: [u8; REQUEST_LEN],
    pub sent_at: Duration,
    /// What a flush makes stable.
    pub covers: u64,
    pub reply: Reply,
}

/// What a job does next.
pub enum Plan {
    /// Nothing.
    End(io::Result<u64>),
    Send(Command, Option<Own>),
}

impl Job {
    pub fn new(owner: Owner, operation: Operation, buffers: Buffers, since: Duration) -> Self {
        Self {
            owner,
            operation,
            buffers,
            since,
            canceled: false,
            done: 0,
            state: State::Waiting,
            own: None,
            ticket: None,
            command: Command::default(),
            header: [0; REQUEST_LEN],
            sent_at: Duration::ZERO,
            covers: 0,
            reply: Reply::default(),
        }
    }

    /// The memory of its command.
    pub fn memory(&self) -> &Buffers {
        match &self.own {
            Some(own) => &own.buffers,
            None => &self.buffers,
        }
    }

    /// Its connection has gone: it begins anew.
    pub fn rewind(&mut self) {
        self.state = State::Waiting;
        self.own = None;
        self.reply = Reply::default();
    }

    /// The next command.
    pub fn plan(&mut self, export: &Export) -> Plan {
        let block = u64::from(export.min_block);
        let most = u64::from(export.max_payload);
        match self.operation {
            Operation::Read { offset } => {
                let len = self.buffers.len().min(most);
                match aligned(offset, len, block) {
                    _ if len == 0 => Plan::End(Ok(0)),
                    Some(len) => send(kind::READ, 0, offset, len),
                    None => {
                        let (range, own) = bounced(offset, len, block, most, Stage::Only);
                        Plan::Send(command(kind::READ, 0, range.start, range.end - range.start), Some(own))
                    }
                }
            }
            Operation::Write { offset, fua } => {
                let len = self.buffers.len().min(most);
                let flags = if fua { command_flag::FUA } else { 0 };
                match aligned(offset, len, block) {
                    _ if len == 0 => Plan::End(Ok(0)),
                    Some(len) => send(kind::WRITE, flags, offset, len),
                    None => self.part(offset, len, flags, block, most),
                }
            }
            Operation::Flush => match export.has(flag::SEND_FLUSH) {
                true => send(kind::FLUSH, 0, 0, 0),
                // Nothing is volatile there, or nobody can tell.
                false => Plan::End(Ok(0)),
            },
            Operation::Discard { offset, len } => {
                let start = offset.next_multiple_of(block) + self.done;
                let end = (offset + len) / block * block;
                match start < end && export.has(flag::SEND_TRIM) {
                    true => send(kind::TRIM, 0, start, (end - start).min(RANGE)),
                    false => Plan::End(Ok(0)),
                }
            }
            Operation::WriteZeroes { offset, len, may_unmap } => {
                let (offset, len) = (offset + self.done, len - self.done);
                let whole = len / block * block;
                if len == 0 {
                    Plan::End(Ok(0))
                } else if !offset.is_multiple_of(block) || whole == 0 {
                    self.part(offset, len, 0, block, block)
                } else if export.has(flag::SEND_WRITE_ZEROES) {
                    let flags = if may_unmap { 0 } else { command_flag::NO_HOLE };
                    send(kind::WRITE_ZEROES, flags, offset, whole.min(RANGE))
                } else {
                    let len = whole.min(ZEROS).min(most);
                    let own = Own {
                        buffers: Buffers::zeroed(len as usize, 8),
                        head: 0,
                        len,
                        stage: Stage::Only,
                    };
                    Plan::Send(command(kind::WRITE, 0, offset, len), Some(own))
                }
            }
            _ => Plan::End(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// A part of a block is changed: it is read, and written back.
    fn part(&mut self, offset: u64, len: u64, flags: u16, block: u64, most: u64) -> Plan {
        match self.own.take() {
            Some(own) if own.stage == Stage::WriteBack => {
                let (start, len) = (offset - own.head, own.buffers.len());
                Plan::Send(command(kind::WRITE, flags, start, len), Some(own))
            }
            _ => {
                let (range, own) = bounced(offset, len, block, most, Stage::ReadFirst);
                Plan::Send(command(kind::READ, 0, range.start, range.end - range.start), Some(own))
            }
        }
    }

    /// What it does after its command has succeeded: more, if `None`.
    pub fn stepped(&mut self) -> Option<u64> {
        let (head, len, stage) = match &self.own {
            None => (0, u64::from(self.command.len), Stage::Only),
            Some(own) => (own.head, own.len, own.stage),
        };
        if let (Stage::ReadFirst, Some(own)) = (stage, &mut self.own) {
            let part = own.buffers.part(head, len);
            match self.operation {
                Operation::Write { .. } => self.buffers.copy_to(&part),
                _ => part.fill(0),
            }
            own.stage = Stage::WriteBack;
            return None;
        }
        if let (Operation::Read { .. }, Some(own)) = (self.operation, &self.own) {
            own.buffers.part(head, len).copy_to(&self.buffers);
        }
        self.own = None;
        match self.operation {
            Operation::Read { .. } | Operation::Write { .. } => Some(len),
            Operation::Flush => Some(0),
            // Whether there is more shows with the next plan.
            _ => {
                self.done += len;
                None
            }
        }
    }

    /// Whether it has the place to itself.
    pub fn is_part(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.stage != Stage::Only)
    }
}

fn command(kind: u16, flags: u16, offset: u64, len: u64) -> Command {
    Command {
        kind,
        flags,
        offset,
        // Cut to what fits by all callers.
        len: len as u32,
    }
}

fn send(kind: u16, flags: u16, offset: u64, len: u64) -> Plan {
    Plan::Send(command(kind, flags, offset, len), None)
}

/// How many of the bytes can be moved in whole blocks, if any.
fn aligned(offset: u64, len: u64, block: u64) -> Option<u64> {
    let whole = len / block * block;
    (offset.is_multiple_of(block) && whole != 0).then_some(whole)
}

/// Whole blocks around the beginning of a range.
fn bounced(offset: u64, len: u64, block: u64, most: u64, stage: Stage) -> (Range<u64>, Own) {
    let start = offset / block * block;
    let end = (offset + len)
        .next_multiple_of(block)
        .min(start + BOUNCE.min(most).max(block));
    let own = Own {
        buffers: Buffers::zeroed((end - start) as usize, 8),
        head: offset - start,
        len: len.min(end - offset),
        stage,
    };
    (start..end, own)
}

/// One queue of a device.
pub struct Lane {
    pub waker: Waker,
    pub ended: Vec<Ended>,
}
