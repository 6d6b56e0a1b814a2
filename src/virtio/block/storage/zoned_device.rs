//! A zoned block device of the host, with its own zones (Linux).

mod kernel;

use std::{fmt, io, sync::Mutex};

use vm_memory::VolatileSlice;

use super::{
    Abilities, FileError, FileStorage, Limits, Storage, Zone, ZoneAction, ZoneError, ZoneLimits, ZoneState, Zones,
};
use crate::sync::lock;
use kernel::{Device, Kernel};

/// Bytes that one append writes at most: what direct I/O takes at once, also from memory that is not aligned.
const MAX_APPEND: u32 = 64 * 1024;

/// A host-managed zoned disk of the host (or the zoned namespace of one), zone for zone the guest's.
///
/// *What the zones are* is the device's word, at any time: nothing of it is kept here, and so nothing is to be saved. *Writes* come one
/// at a time, past the host's cache. *Append* is a write where the write pointer is, as the kernel has no other way for block devices.
/// For many requests at a time it goes on [threads](super::Pool).
///
/// ```no_run
/// use devisor::virtio::block::{Block, BlockOptions, ZonedDevice};
/// use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt};
///
/// let disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open("/dev/sdb")?;
/// let disk = Block::new(ZonedDevice::new(disk)?, BlockOptions::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ZonedDevice {
    file: FileStorage,
    device: Box<dyn Device>,
    zones: ZoneLimits,
    /// Held for each write, so that those of one zone do not pass each other.
    writing: Mutex<()>,
}

/// A file cannot be such a storage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZonedDeviceError {
    /// It is no file or device that a guest can have.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no block device with zones.
    #[error("not a zoned block device: one whose zones are host-managed is accepted")]
    NotZoned(#[source] io::Error),
    /// Zones of no power of two.
    #[error("zones of {0} sectors: a power of two is accepted")]
    Size(u32),
    /// Zones are not written by way of the host's cache, which has an order of its own.
    #[error("open without O_DIRECT: a zoned device must be open with it")]
    Cached,
}

impl ZonedDevice {
    /// Over an open block device.
    ///
    /// # Errors
    /// It has no zones, or none that a guest can have.
    pub fn new(file: std::fs::File) -> Result<Self, ZonedDeviceError> {
        let kernel = Kernel(file.try_clone().map_err(FileError::from)?);
        Self::over(FileStorage::new(file)?, Box::new(kernel))
    }

    fn over(file: FileStorage, device: Box<dyn Device>) -> Result<Self, ZonedDeviceError> {
        let sectors = device.zone_sectors().map_err(ZonedDeviceError::NotZoned)?;
        if sectors == 0 {
            return Err(ZonedDeviceError::NotZoned(io::ErrorKind::Unsupported.into()));
        }
        if !sectors.is_power_of_two() {
            return Err(ZonedDeviceError::Size(sectors));
        }
        if !file.is_direct() {
            return Err(ZonedDeviceError::Cached);
        }
        let [max_open, max_active, granularity] =
            ["max_open_zones", "max_active_zones", "zone_write_granularity"].map(|name| device.attribute(name));
        let zones = ZoneLimits {
            zone_size: u64::from(sectors) * 512,
            max_open: max_open.unwrap_or(0),
            max_active: max_active.unwrap_or(0),
            max_append: MAX_APPEND.min(sectors.saturating_mul(512)),
            write_granularity: granularity.unwrap_or(0).max(file.limits().logical_block),
        };
        Ok(Self {
            file,
            device,
            zones,
            writing: Mutex::default(),
        })
    }

    /// The zone that begins at `start`.
    fn zone(&self, start: u64) -> io::Result<Zone> {
        let zone = self.device.report(start / 512, 1)?.first().copied();
        zone.filter(|zone| zone.start == start).ok_or(ZoneError::Invalid.into())
    }

    /// What the guest is told of an error of the host's, which does not say so itself, in a zone that now is `zone`.
    fn explain(error: io::Error, wrong: Option<ZoneError>) -> io::Error {
        match (error.raw_os_error(), wrong) {
            // As the block layer's BLK_STS_ZONE_OPEN_RESOURCE and BLK_STS_ZONE_ACTIVE_RESOURCE come to a program.
            (Some(libc::ETOOMANYREFS), _) => ZoneError::OpenResource.into(),
            (Some(libc::EOVERFLOW), _) => ZoneError::ActiveResource.into(),
            (_, Some(wrong)) => wrong.into(),
            _ => error,
        }
    }

    fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let start = offset / self.zones.zone_size * self.zones.zone_size;
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        if !(offset | len).is_multiple_of(self.zones.write_granularity.into()) {
            // A part of a block would be read, and written back where the write pointer is not any more.
            return Err(ZoneError::Invalid.into());
        }
        // Looked at before: what comes of the wrong place is the device's matter, some of which take it as an error of the disk.
        let zone = self.zone(start)?;
        let wrong = match zone.state {
            ZoneState::NotWritePointer => None,
            ZoneState::Full | ZoneState::ReadOnly | ZoneState::Offline => Some(ZoneError::Invalid),
            _ if zone.write_pointer != offset => Some(ZoneError::Unaligned),
            _ => (len > start + zone.capacity - offset).then_some(ZoneError::Invalid),
        };
        match wrong {
            Some(wrong) => Err(wrong.into()),
            None => self
                .file
                .write_at(offset, buffers)
                .map_err(|error| Self::explain(error, None)),
        }
    }
}

impl Storage for ZonedDevice {
    fn capacity(&self) -> io::Result<u64> {
        self.file.capacity()
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            read_only: self.file.abilities().read_only,
            ..Abilities::default()
        }
    }

    fn limits(&self) -> Limits {
        let limits = self.file.limits();
        Limits {
            physical_block: limits.physical_block.max(self.zones.write_granularity),
            ..limits
        }
    }

    fn zones(&self) -> Option<&dyn Zones> {
        Some(self)
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.file.read_at(offset, buffers)
    }

    /// Only where the write pointer of its zone is, if it has one.
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let _writing = lock(&self.writing);
        self.write(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    /// There is none for zones: they are reset.
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Zones for ZonedDevice {
    fn limits(&self) -> ZoneLimits {
        self.zones
    }

    /// None, if the device does not tell.
    fn report(&self, index: usize, count: usize) -> Vec<Zone> {
        let sector = (index as u64).saturating_mul(self.zones.zone_size / 512);
        let mut zones = self.device.report(sector, count).unwrap_or_default();
        zones.truncate(count);
        zones
    }

    fn act(&self, action: ZoneAction, start: u64) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let state = self.zone(start)?.state;
        let refused = matches!(
            (action, state),
            (_, ZoneState::NotWritePointer | ZoneState::ReadOnly | ZoneState::Offline)
                | (ZoneAction::Open, ZoneState::Full)
                | (ZoneAction::Close, ZoneState::Empty | ZoneState::Full)
        );
        if refused {
            return Err(ZoneError::Invalid.into());
        }
        let len = self.zones.zone_size.min(self.capacity()?.saturating_sub(start));
        let done = self.device.act(action, start / 512, len / 512);
        done.map_err(|error| Self::explain(error, None))
    }

    fn reset_all(&self) -> io::Result<()> {
        let _writing = lock(&self.writing);
        self.device.act(ZoneAction::Reset, 0, self.capacity()? / 512)
    }

    fn append(&self, start: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<u64> {
        let _writing = lock(&self.writing);
        let Zone {
            write_pointer,
            capacity,
            state,
            ..
        } = self.zone(start)?;
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        if state == ZoneState::NotWritePointer || len > (start + capacity).saturating_sub(write_pointer) {
            return Err(ZoneError::Invalid.into());
        }
        super::transfer(buffers, write_pointer, |at, rest| self.write(at, rest)).1?;
        Ok(write_pointer)
    }
}

impl fmt::Debug for ZonedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZonedDevice")
            .field("file", &self.file)
            .field("zones", &self.zones)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
