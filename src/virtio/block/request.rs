//! Requests of the block device (virtio 1.2, section 5.2.6): what they ask for, checked, and how they are answered.

use std::{io, ops::Range};

use super::{
    RangeLimits, ZoneAction, ZoneError, ZoneLimits, ZoneState,
    disk::Disk,
    registers::{
        SECTOR, Status, feature,
        request::{self, APPEND_SECTOR, FLAG_UNMAP, HEADER, SEGMENT},
    },
};
use crate::virtio::{
    ChainError,
    queue::{Reader, Writer},
};

/// Why a request did not succeed.
pub enum Failure {
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
const INVALID_COMMAND: Failure = Failure::Refused(Status::ZoneInvalidCmd);
const UNSUPPORTED: Failure = Failure::Refused(Status::Unsupp);

/// What a request asks for, which has passed all checks. Ranges are in bytes of the storage.
pub enum Asked {
    /// Its data is all device-writable bytes but the last.
    Read(Range<u64>),
    /// Its data is all device-readable bytes behind the header.
    Write(Range<u64>),
    Flush,
    Discard(Vec<Segment>),
    WriteZeroes(Vec<Segment>),
    SecureErase(Vec<Segment>),
    /// Its data is all device-readable bytes behind the header, for the zone that begins there.
    Append(u64),
    /// Something for the zone that begins there.
    Zone(ZoneAction, u64),
    ResetZones,
    /// What the device knows by itself.
    Answer(Answer),
}

impl From<ZoneError> for Status {
    fn from(error: ZoneError) -> Self {
        match error {
            ZoneError::Invalid => Self::ZoneInvalidCmd,
            ZoneError::Unaligned => Self::ZoneUnalignedWp,
            ZoneError::OpenResource => Self::ZoneOpenResource,
            ZoneError::ActiveResource => Self::ZoneActiveResource,
        }
    }
}

/// A segment of a discard or write zeroes request. Not empty.
pub struct Segment {
    pub range: Range<u64>,
    pub unmap: bool,
}

impl Segment {
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// An answer from what the device knows.
pub enum Answer {
    /// To GET_ID.
    Id([u8; request::ID]),
    /// To GET_LIFETIME.
    Lifetime([u8; request::LIFETIME]),
    /// To ZONE_REPORT: so many zones at most, from this one on.
    Zones { first: usize, count: usize },
}

impl Answer {
    /// Puts it where the data goes. Returns its length.
    pub fn put(&self, mut output: Writer<'_>, disk: &Disk) -> Result<u32, ChainError> {
        let bytes = match self {
            &Self::Zones { first, count } => return report(output, disk, first, count),
            Self::Id(id) => &id[..],
            Self::Lifetime(lifetime) => lifetime,
        };
        output.write(bytes)?;
        Ok(bytes.len() as u32)
    }
}

/// Zones that are looked at at a time.
const AT_A_TIME: usize = 64;

fn report(output: Writer<'_>, disk: &Disk, mut index: usize, count: usize) -> Result<u32, ChainError> {
    let (mut header, mut zones) = output.split_at(request::ZONE as u32)?;
    let (end, first) = (index.saturating_add(count), index);
    while let Some(behind) = disk.behind.storage.zones()
        && index < end
    {
        let some = behind.report(index, AT_A_TIME.min(end - index));
        if some.is_empty() {
            break;
        }
        index += some.len();
        for zone in some {
            let mut descriptor = [0; request::ZONE];
            for (at, bytes) in [(0, zone.capacity), (8, zone.start), (16, zone.write_pointer)] {
                descriptor[at..at + 8].copy_from_slice(&(bytes / SECTOR).to_le_bytes());
            }
            let kind = match zone.state {
                ZoneState::NotWritePointer => request::ZONE_CONVENTIONAL,
                _ => request::ZONE_SEQUENTIAL,
            };
            descriptor[24..26].copy_from_slice(&[kind, zone.state as u8]);
            zones.write(&descriptor)?;
        }
    }
    let mut bytes = [0; request::ZONE];
    bytes[..8].copy_from_slice(&((index - first) as u64).to_le_bytes());
    header.write(&bytes)?;
    // As many as there was room for.
    Ok(((1 + index - first) * request::ZONE) as u32)
}

/// Ends an append: its first sector comes before the status.
pub fn finish_append(output: Writer<'_>, at: u64) -> Result<(), ChainError> {
    let unfilled = output.remaining() - 1 - APPEND_SECTOR;
    let (mut unused, mut rest) = output.split_at(unfilled)?;
    unused.fill(0, unfilled)?;
    rest.write(&(at / SECTOR).to_le_bytes())?;
    rest.write(&[Status::Ok as u8])
}

/// Ends a request whose first `filled` device-writable bytes hold its answer: zeros up to the last, and that is the status.
pub fn finish(mut output: Writer<'_>, filled: u32, status: Status) -> Result<(), ChainError> {
    output.skip(filled)?;
    let unfilled = output.remaining().saturating_sub(1);
    if unfilled != 0 {
        output.fill(0, unfilled)?;
    }
    output.write(&[status as u8])
}

impl Disk {
    /// What is asked, or the status that refuses it.
    ///
    /// # Errors
    /// There is no room for header or status, or the chain is not what it was: no status can be told.
    pub fn parse(&self, mut input: Reader<'_>, writable_len: u32) -> Result<Result<Asked, Status>, ChainError> {
        if let Some(missing @ 1..) = HEADER.checked_sub(input.remaining() as usize) {
            return Err(ChainError::Short(missing));
        }
        let Some(room) = writable_len.checked_sub(1) else {
            return Err(ChainError::Short(1));
        };
        let mut header = [0; HEADER];
        input.read(&mut header)?;
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        let asked = match kind {
            request::IN => self
                .locate(sector, room.into())
                .and_then(|range| self.within_a_zone(range))
                .map(Asked::Read),
            request::OUT => self.write(sector, input.remaining().into()),
            request::FLUSH if self.has(feature::FLUSH) => Ok(Asked::Flush),
            request::GET_ID => self.get_id(room),
            request::GET_LIFETIME if self.has(feature::LIFETIME) => self.get_lifetime(room),
            request::DISCARD if self.has(feature::DISCARD) => {
                // Unmap is for write zeroes alone.
                self.segments(input, self.options.discard, 0).map(Asked::Discard)
            }
            request::WRITE_ZEROES if self.has(feature::WRITE_ZEROES) => self
                .segments(input, self.options.write_zeroes, FLAG_UNMAP)
                .map(Asked::WriteZeroes),
            request::SECURE_ERASE if self.has(feature::SECURE_ERASE) => self
                .segments(input, self.options.secure_erase, 0)
                .map(Asked::SecureErase),
            _ if self.has(feature::ZONED) => self.zone_request(kind, sector, input.remaining(), room),
            _ => Err(UNSUPPORTED),
        };
        match asked {
            Ok(asked) => Ok(Ok(asked)),
            Err(failure) => Ok(Err(self.status(Err(failure))?)),
        }
    }

    /// The status that tells of a result. What the storage has failed at is counted.
    pub fn status(&self, result: Result<(), Failure>) -> Result<Status, ChainError> {
        match result {
            Ok(()) => Ok(Status::Ok),
            Err(Failure::Refused(status)) => Ok(status),
            // What the driver has done wrong.
            Err(Failure::Storage(error)) if ZoneError::of(&error).is_some() => {
                Ok(ZoneError::of(&error).map_or(Status::IoErr, Status::from))
            }
            Err(Failure::Storage(error)) => {
                self.failures.record(error);
                Ok(Status::IoErr)
            }
            Err(Failure::Rules(error)) => Err(error),
        }
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

    fn write(&self, sector: u64, len: u64) -> Result<Asked, Failure> {
        let range = self.locate(sector, len)?;
        match self.is_read_only() {
            true => Err(IO_ERROR),
            false => Ok(Asked::Write(self.within_a_zone(range)?)),
        }
    }

    /// A transfer is within one zone, if there are zones.
    fn within_a_zone(&self, range: Range<u64>) -> Result<Range<u64>, Failure> {
        match self.zones {
            Some(zones) if !range.is_empty() && range.start / zones.zone_size != (range.end - 1) / zones.zone_size => {
                Err(INVALID_COMMAND)
            }
            _ => Ok(range),
        }
    }

    /// What is for zones alone. `len` bytes are there to be written, and there is `room` for an answer.
    fn zone_request(&self, kind: u32, sector: u64, len: u32, room: u32) -> Result<Asked, Failure> {
        let zones = self.zones.ok_or(UNSUPPORTED)?;
        let action = match kind {
            request::ZONE_REPORT => return self.zone_report(zones, sector, room),
            request::ZONE_APPEND => None,
            request::ZONE_OPEN => Some(ZoneAction::Open),
            request::ZONE_CLOSE => Some(ZoneAction::Close),
            request::ZONE_FINISH => Some(ZoneAction::Finish),
            request::ZONE_RESET => Some(ZoneAction::Reset),
            request::ZONE_RESET_ALL if self.is_read_only() => return Err(IO_ERROR),
            request::ZONE_RESET_ALL => return Ok(Asked::ResetZones),
            _ => return Err(UNSUPPORTED),
        };
        let start = self.locate(sector, 0)?.start;
        if self.is_read_only() || sector == self.capacity() {
            return Err(IO_ERROR);
        }
        if !start.is_multiple_of(zones.zone_size) {
            return Err(INVALID_COMMAND);
        }
        match action {
            Some(action) => Ok(Asked::Zone(action, start)),
            None if zones.max_append == 0 => Err(UNSUPPORTED),
            None if room < APPEND_SECTOR || !u64::from(len).is_multiple_of(SECTOR) => Err(IO_ERROR),
            None if len == 0 || len > zones.max_append => Err(INVALID_COMMAND),
            None => Ok(Asked::Append(start)),
        }
    }

    fn zone_report(&self, zones: ZoneLimits, sector: u64, room: u32) -> Result<Asked, Failure> {
        let start = self.locate(sector, 0)?.start;
        let Some(count) = (room as usize / request::ZONE).checked_sub(1) else {
            return Err(IO_ERROR);
        };
        let first = usize::try_from(start / zones.zone_size).unwrap_or(usize::MAX);
        Ok(Asked::Answer(Answer::Zones { first, count }))
    }

    fn get_id(&self, room: u32) -> Result<Asked, Failure> {
        match room < request::ID as u32 {
            true => Err(IO_ERROR),
            false => Ok(Asked::Answer(Answer::Id(self.options.id_bytes()))),
        }
    }

    fn get_lifetime(&self, room: u32) -> Result<Asked, Failure> {
        match self.behind.storage.lifetime() {
            Some(lifetime) if room >= request::LIFETIME as u32 => {
                Ok(Asked::Answer(Answer::Lifetime(lifetime.to_bytes())))
            }
            // A storage that does not tell any more.
            _ => Err(IO_ERROR),
        }
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
    bytes[offset..].first_chunk().copied().map_or(0, u32::from_le_bytes)
}

fn le64(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..].first_chunk().copied().map_or(0, u64::from_le_bytes)
}
