//! Serves a request queue over a storage that answers at once.

use std::{io, sync::Arc};

use super::{
    Storage, Zones,
    disk::Disk,
    registers::{Status, request::HEADER},
    request::{Asked, Failure, finish, finish_append},
    storage::transfer,
};
use crate::virtio::{
    ChainError, Fault, QueueHandler, Round,
    queue::{Chain, Slices},
};

pub fn handler(disk: &Arc<Disk>, storage: &Arc<dyn Storage>) -> Box<dyn QueueHandler> {
    Box::new(AtOnce {
        disk: Arc::clone(disk),
        storage: Arc::clone(storage),
        room: Slices::default(),
    })
}

struct AtOnce {
    disk: Arc<Disk>,
    storage: Arc<dyn Storage>,
    room: Slices,
}

impl QueueHandler for AtOnce {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        Ok(round.each(|chain| self.answer(chain))?)
    }
}

impl AtOnce {
    /// Answers one request. Returns how many bytes were written into the chain: all that are device-writable.
    fn answer(&mut self, chain: &Chain<'_, '_>) -> Result<u32, ChainError> {
        let mut filled = 0;
        let result = match self.disk.parse(chain.reader(), chain.writable_len())? {
            Ok(Asked::Append(zone)) => match self.append(chain, zone) {
                Ok(at) => {
                    finish_append(chain.writer(), at)?;
                    return Ok(chain.writable_len());
                }
                Err(failure) => Err(failure),
            },
            Ok(asked) => self.perform(chain, asked, &mut filled),
            Err(status) => Err(Failure::Refused(status)),
        };
        let status = self.disk.status(result)?;
        finish(chain.writer(), filled, status)?;
        Ok(chain.writable_len())
    }

    /// `filled` tells how far the data got, also if the storage failed on the way.
    fn perform(&mut self, chain: &Chain<'_, '_>, asked: Asked, filled: &mut u32) -> Result<(), Failure> {
        let Self { disk, storage, room } = self;
        match asked {
            Asked::Read(range) => {
                let (output, _) = chain.writer().split_at(chain.writable_len() - 1)?;
                let (moved, result) = output.with_slices(room, |buffers| {
                    transfer(buffers, range.start, |offset, rest| storage.read_at(offset, rest))
                })?;
                // At most what the chain has room for, which is counted in 32 bits.
                *filled = moved as u32;
                Ok(result?)
            }
            Asked::Write(range) => {
                let (_, input) = chain.reader().split_at(HEADER as u32)?;
                let (_, result) = input.with_slices(room, |buffers| {
                    transfer(buffers, range.start, |offset, rest| storage.write_at(offset, rest))
                })?;
                result?;
                self.commit()
            }
            Asked::Flush => Ok(storage.flush()?),
            Asked::Answer(answer) => {
                *filled = answer.put(chain.writer(), disk)?;
                Ok(())
            }
            Asked::Discard(segments) => {
                for segment in segments {
                    storage.discard(segment.range.start, segment.len())?;
                }
                Ok(())
            }
            Asked::SecureErase(segments) => {
                for segment in segments {
                    storage.secure_erase(segment.range.start, segment.len())?;
                }
                Ok(())
            }
            Asked::Zone(action, zone) => Ok(zones(storage)?.act(action, zone)?),
            Asked::ResetZones => Ok(zones(storage)?.reset_all()?),
            // By itself.
            Asked::Append(_) => Err(Failure::Refused(Status::Unsupp)),
            Asked::WriteZeroes(segments) => {
                for segment in segments {
                    storage.write_zeroes(segment.range.start, segment.len(), segment.unmap)?;
                }
                self.commit()
            }
        }
    }

    /// Where it has gone.
    fn append(&mut self, chain: &Chain<'_, '_>, zone: u64) -> Result<u64, Failure> {
        let Self { storage, room, .. } = self;
        let (_, input) = chain.reader().split_at(HEADER as u32)?;
        let at = input.with_slices(room, |buffers| zones(storage)?.append(zone, buffers))??;
        self.commit()?;
        Ok(at)
    }

    /// Makes what was written stable before it is completed, if the driver counts on that.
    fn commit(&self) -> Result<(), Failure> {
        match self.disk.is_writeback() {
            true => Ok(()),
            false => Ok(self.storage.flush()?),
        }
    }
}

fn zones(storage: &Arc<dyn Storage>) -> io::Result<&dyn Zones> {
    storage.zones().ok_or_else(|| io::ErrorKind::Unsupported.into())
}
