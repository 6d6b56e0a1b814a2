//! What a request has come to: one operation of the storage after the other.

use std::io;

use super::super::{
    Buffers, Operation,
    disk::Disk,
    registers::{Status, request::HEADER},
    request::{Asked, Segment},
};
use crate::virtio::{ChainError, queue::OwnedChain};

/// Bytes that are copied at a time where guest memory has no address that stays.
const BOUNCE: u32 = 64 * 1024;

/// Of memory of ours, so that it suits direct I/O.
const ALIGNMENT: usize = 4096;

pub enum Work {
    Transfer(Transfer),
    /// Ranges, one by one.
    Ranges {
        kind: Ranges,
        segments: Vec<Segment>,
        done: usize,
    },
    Append {
        zone: u64,
        len: u32,
        at: Option<u64>,
    },
    Zone {
        operation: Operation,
        done: bool,
    },
    Flush {
        done: bool,
        /// Where an append has gone before it.
        appended: Option<u64>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ranges {
    Discard,
    WriteZeroes,
    SecureErase,
}

pub struct Transfer {
    writes: bool,
    /// The data is on stable storage when it is written.
    fua: bool,
    offset: u64,
    len: u32,
    moved: u32,
    memory: Memory,
}

/// Where the data of a transfer is for the storage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Unknown,
    /// Where the guest has it.
    Guest,
    /// In a copy, piece by piece: guest memory has no address that stays.
    Copied,
}

/// What comes after an operation.
pub enum After {
    /// The next.
    Submit,
    /// The end.
    Finish(Status),
    /// The storage has failed.
    Fail(io::Error),
    /// The chain is not what it was.
    Refuse,
    /// As if it had not been taken.
    GiveBack,
}

impl Work {
    /// `len`: bytes behind the header.
    pub fn new(asked: Asked, len: u32, disk: &Disk) -> Self {
        let transfer = |range: std::ops::Range<u64>, writes: bool| {
            Self::Transfer(Transfer {
                writes,
                fua: writes && disk.fua && !disk.is_writeback(),
                offset: range.start,
                // At most what a chain has room for.
                len: (range.end - range.start) as u32,
                moved: 0,
                memory: Memory::Unknown,
            })
        };
        let ranges = |segments, kind| Self::Ranges {
            kind,
            segments,
            done: 0,
        };
        match asked {
            Asked::Read(range) => transfer(range, false),
            Asked::Write(range) => transfer(range, true),
            Asked::Discard(segments) => ranges(segments, Ranges::Discard),
            Asked::WriteZeroes(segments) => ranges(segments, Ranges::WriteZeroes),
            Asked::SecureErase(segments) => ranges(segments, Ranges::SecureErase),
            Asked::Append(zone) => Self::Append { zone, len, at: None },
            Asked::Zone(action, zone) => Self::Zone {
                operation: Operation::Zone { action, zone },
                done: false,
            },
            Asked::ResetZones => Self::Zone {
                operation: Operation::ResetZones,
                done: false,
            },
            Asked::Flush => Self::Flush {
                done: false,
                appended: None,
            },
            Asked::Answer(_) => Self::Flush {
                done: true,
                appended: None,
            },
        }
    }

    /// Whether nothing is left to do. What was written is made stable first, if the driver counts on that.
    #[inline(always)]
    pub fn is_done(&mut self, disk: &Disk) -> bool {
        let (done, volatile) = match self {
            Self::Transfer(Transfer {
                writes,
                fua,
                len,
                moved,
                ..
            }) => (len == moved, *writes && !*fua),
            Self::Ranges { kind, segments, done } => (*done == segments.len(), *kind == Ranges::WriteZeroes),
            Self::Append { at, .. } => (at.is_some(), true),
            Self::Zone { done, .. } | Self::Flush { done, .. } => return *done,
        };
        if done && volatile && !disk.is_writeback() {
            let (done, appended) = (false, self.appended());
            *self = Self::Flush { done, appended };
            return false;
        }
        done
    }

    /// What the storage is to do next.
    #[inline]
    pub fn operation(&self) -> Operation {
        match self {
            Self::Transfer(Transfer {
                writes,
                fua,
                offset,
                moved,
                ..
            }) => {
                let offset = offset + u64::from(*moved);
                match writes {
                    true => Operation::Write { offset, fua: *fua },
                    false => Operation::Read { offset },
                }
            }
            Self::Ranges { kind, segments, done } => {
                let Segment { range, unmap } = &segments[*done];
                let (offset, len) = (range.start, range.end - range.start);
                match kind {
                    Ranges::Discard => Operation::Discard { offset, len },
                    Ranges::SecureErase => Operation::SecureErase { offset, len },
                    Ranges::WriteZeroes => Operation::WriteZeroes {
                        offset,
                        len,
                        may_unmap: *unmap,
                    },
                }
            }
            Self::Append { zone, .. } => Operation::Append { zone: *zone },
            Self::Zone { operation, .. } => *operation,
            Self::Flush { .. } => Operation::Flush,
        }
    }

    /// Makes `buffers` those of the next operation; they are new, or those of the last one.
    #[inline(always)]
    pub fn prepare(&mut self, chain: &OwnedChain, buffers: &mut Buffers) -> Result<(), ChainError> {
        match self {
            Self::Transfer(transfer) => transfer.prepare(chain, buffers),
            Self::Append { len, .. } => {
                let skip = HEADER as u32;
                if !buffers.set_guest(chain.pin(), chain.readable(), skip, *len) {
                    // At most what an append may have.
                    *buffers = copy(chain, skip, *len)?;
                }
                Ok(())
            }
            _ => {
                buffers.clear();
                Ok(())
            }
        }
    }

    /// An operation has ended.
    #[inline]
    pub fn ended(&mut self, result: io::Result<u64>, chain: &OwnedChain, buffers: &mut Buffers, disk: &Disk) -> After {
        let moved = match result {
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return After::Submit,
            Err(error) => return After::Fail(error),
        };
        match self {
            Self::Transfer(_) if moved > buffers.len() => {
                return After::Fail(io::Error::other("the storage moved more than it was asked to"));
            }
            Self::Transfer(_) if moved == 0 => return After::Fail(io::ErrorKind::UnexpectedEof.into()),
            Self::Transfer(transfer) => {
                if transfer.advance(chain, buffers, moved).is_err() {
                    return After::Refuse;
                }
            }
            Self::Ranges { done, .. } => *done += 1,
            // All of it, or none.
            Self::Append { at, .. } => *at = Some(moved),
            Self::Zone { done, .. } | Self::Flush { done, .. } => *done = true,
        }
        match self.is_done(disk) {
            true => After::Finish(Status::Ok),
            false => After::Submit,
        }
    }

    /// Where an append has gone, in bytes.
    pub fn appended(&self) -> Option<u64> {
        match self {
            Self::Append { at, .. } => *at,
            Self::Flush { appended, .. } => *appended,
            _ => None,
        }
    }

    /// Device-writable bytes that hold data.
    pub fn filled(&self) -> u32 {
        match self {
            Self::Transfer(Transfer {
                writes: false, moved, ..
            }) => *moved,
            _ => 0,
        }
    }

    /// Marks what the storage may have written into guest memory: all that it was lent, as nobody knows how far it got.
    pub fn mark(&self, chain: &OwnedChain) {
        if let Self::Transfer(Transfer {
            writes: false,
            memory: Memory::Guest,
            ..
        }) = self
            && chain.pin().tracks()
        {
            for segment in chain.writable() {
                chain.pin().mark_dirty(segment.address, segment.len.into());
            }
        }
    }
}

impl Transfer {
    #[inline(always)]
    fn prepare(&mut self, chain: &OwnedChain, buffers: &mut Buffers) -> Result<(), ChainError> {
        let (segments, skip) = match self.writes {
            true => (chain.readable(), HEADER as u32),
            false => (chain.writable(), 0),
        };
        match self.memory {
            // What was moved is behind already.
            Memory::Guest => return Ok(()),
            Memory::Unknown if buffers.set_guest(chain.pin(), segments, skip, self.len) => {
                self.memory = Memory::Guest;
                return Ok(());
            }
            _ => self.memory = Memory::Copied,
        }
        let len = (self.len - self.moved).min(BOUNCE);
        *buffers = match self.writes {
            true => copy(chain, skip + self.moved, len)?,
            false => Buffers::zeroed(len as usize, ALIGNMENT),
        };
        Ok(())
    }

    /// So many bytes were moved, of those in `buffers`.
    #[inline]
    fn advance(&mut self, chain: &OwnedChain, buffers: &mut Buffers, moved: u64) -> Result<(), ChainError> {
        if !self.writes && self.memory == Memory::Copied {
            // At most a piece.
            let mut data = vec![0; moved as usize];
            buffers.read(0, &mut data);
            let (_, mut output) = chain.writer().split_at(self.moved)?;
            output.write(&data)?;
        }
        buffers.advance(moved);
        self.moved += moved as u32;
        Ok(())
    }
}

/// A copy of the `len` device-readable bytes behind the first `skip` ones.
fn copy(chain: &OwnedChain, skip: u32, len: u32) -> Result<Buffers, ChainError> {
    let mut data = vec![0; len as usize];
    let (_, mut input) = chain.reader().split_at(skip)?;
    input.read(&mut data)?;
    let buffers = Buffers::zeroed(data.len(), ALIGNMENT);
    buffers.write(0, &data);
    Ok(buffers)
}
