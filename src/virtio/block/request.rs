//! Requests of the block device (virtio 1.2, section 5.2.6).

use std::{io, ops::Range};

use super::{
    Disk, RangeLimits,
    registers::{
        SECTOR, Status, feature,
        request::{self, FLAG_UNMAP, HEADER, SEGMENT},
    },
    storage::transfer,
};
use crate::virtio::{
    ChainError,
    queue::{Chain, Reader, Slices, Writer},
};

/// Why a request did not succeed.
enum Failure {
    /// The device says no.
    Refused(Status),
    /// The storage says no.
    Storage(io::Error),
    /// The chain is not what it was: no status can be told.
    Rules(ChainError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Storage(error)
    }
}

impl From<ChainError> for Failure {
    fn from(error: ChainError) -> Self {
        Self::Rules(error)
    }
}

const IO_ERROR: Failure = Failure::Refused(Status::IoErr);
const UNSUPPORTED: Failure = Failure::Refused(Status::Unsupp);

/// A segment of a discard or write zeroes request that has passed all checks.
struct Segment {
    /// In bytes.
    range: Range<u64>,
    unmap: bool,
}

impl Disk {
    /// Answers one request. Returns how many bytes were written into the chain: all that are device-writable.
    pub(super) fn answer(&self, chain: &Chain<'_, '_>, slices: &mut Slices) -> Result<u32, ChainError> {
        let mut input = chain.reader();
        if input.remaining() < HEADER as u32 {
            return Err(ChainError::Request("a block request has no room for its header"));
        }
        let Some(room) = chain.writable_len().checked_sub(1) else {
            return Err(ChainError::Request("a block request has no room for its status"));
        };
        let mut header = [0; HEADER];
        input.read(&mut header)?;
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        let (output, _) = chain.writer().split_at(room)?;

        let mut filled = 0;
        let result = match kind {
            request::IN => self.read(sector, output, slices, &mut filled),
            request::OUT => self.write(sector, input, slices),
            request::FLUSH if self.has(feature::FLUSH) => self.storage.flush().map_err(Failure::from),
            request::GET_ID => self.get_id(output, &mut filled),
            request::DISCARD if self.has(feature::DISCARD) => self.discard(input),
            request::WRITE_ZEROES if self.has(feature::WRITE_ZEROES) => self.write_zeroes(input),
            _ => Err(UNSUPPORTED),
        };
        let status = match result {
            Ok(()) => Status::Ok,
            Err(Failure::Refused(status)) => status,
            Err(Failure::Storage(error)) => {
                self.failures.record(error);
                Status::IoErr
            }
            Err(Failure::Rules(error)) => return Err(error),
        };

        let (_, mut rest) = chain.writer().split_at(filled)?;
        rest.fill(0, room - filled)?;
        rest.write(&[status as u8])?;
        Ok(chain.writable_len())
    }

    /// Where `len` bytes from `sector` on are in the storage, if they are whole sectors within the capacity.
    fn locate(&self, sector: u64, len: u64) -> Result<Range<u64>, Failure> {
        if !len.is_multiple_of(SECTOR) {
            return Err(IO_ERROR);
        }
        match sector.checked_add(len / SECTOR) {
            // The capacity came from a number of bytes, so this does not overflow.
            Some(end) if end <= self.capacity() => Ok(sector * SECTOR..end * SECTOR),
            _ => Err(IO_ERROR),
        }
    }

    /// `filled` tells how far the data got, also if the storage failed on the way.
    fn read(&self, sector: u64, output: Writer<'_>, slices: &mut Slices, filled: &mut u32) -> Result<(), Failure> {
        let range = self.locate(sector, output.remaining().into())?;
        let (moved, result) = output.with_slices(slices, |buffers| {
            transfer(buffers, range.start, |offset, rest| self.storage.read_at(offset, rest))
        })?;
        // At most what the chain has room for, which is counted in 32 bits.
        *filled = moved as u32;
        Ok(result?)
    }

    fn write(&self, sector: u64, input: Reader<'_>, slices: &mut Slices) -> Result<(), Failure> {
        let range = self.locate(sector, input.remaining().into())?;
        if self.is_read_only() {
            return Err(IO_ERROR);
        }
        let (_, result) = input.with_slices(slices, |buffers| {
            transfer(buffers, range.start, |offset, rest| self.storage.write_at(offset, rest))
        })?;
        result?;
        self.commit()
    }

    /// Makes what was written stable before it is completed, if the driver counts on that.
    fn commit(&self) -> Result<(), Failure> {
        match self.is_writeback() {
            true => Ok(()),
            false => Ok(self.storage.flush()?),
        }
    }

    fn get_id(&self, mut output: Writer<'_>, filled: &mut u32) -> Result<(), Failure> {
        if output.remaining() < request::ID as u32 {
            return Err(IO_ERROR);
        }
        output.write(&self.options.id_bytes())?;
        *filled = request::ID as u32;
        Ok(())
    }

    fn discard(&self, input: Reader<'_>) -> Result<(), Failure> {
        // Unmap is for write zeroes alone.
        for Segment { range, .. } in self.segments(input, self.options.discard, 0)? {
            self.storage.discard(range.start, range.end - range.start)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, input: Reader<'_>) -> Result<(), Failure> {
        for Segment { range, unmap } in self.segments(input, self.options.write_zeroes, FLAG_UNMAP)? {
            self.storage.write_zeroes(range.start, range.end - range.start, unmap)?;
        }
        self.commit()
    }

    /// The segments of a request that are not empty, all of them checked. They are read once: what the guest changes
    /// after that is not seen.
    fn segments(
        &self,
        mut input: Reader<'_>,
        limits: Option<RangeLimits>,
        known_flags: u32,
    ) -> Result<Vec<Segment>, Failure> {
        let limits = limits.ok_or(UNSUPPORTED)?;
        let len = input.remaining() as usize;
        let count = len / SEGMENT;
        // Before anything is allocated.
        if !len.is_multiple_of(SEGMENT) || count == 0 || count > limits.max_segments as usize {
            return Err(IO_ERROR);
        }
        let mut bytes = vec![0; len];
        input.read(&mut bytes)?;
        let segments = || bytes.chunks_exact(SEGMENT);
        // "MUST set the status byte to VIRTIO_BLK_S_UNSUPP [...] if any unknown flag is set" (section 5.2.6.2), so this
        // goes before what is an I/O error.
        if segments().any(|segment| le32(segment, 12) & !known_flags != 0) {
            return Err(UNSUPPORTED);
        }
        let checked = segments().map(|segment| {
            let sectors = le32(segment, 8);
            if sectors > limits.max_sectors {
                return Err(IO_ERROR);
            }
            Ok(Segment {
                range: self.locate(le64(segment, 0), u64::from(sectors) * SECTOR)?,
                unmap: le32(segment, 12) & FLAG_UNMAP != 0,
            })
        });
        let mut checked: Vec<_> = checked.collect::<Result<_, _>>()?;
        checked.retain(|segment| !segment.range.is_empty());
        Ok(checked)
    }
}

fn le32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[offset + i]))
}

fn le64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[offset + i]))
}
