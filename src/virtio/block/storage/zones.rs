//! Zoned storages: what they say of themselves, and one that emulates its zones over any storage.

use std::{
    fmt, io,
    sync::{Arc, Mutex},
};

use vm_memory::VolatileSlice;

use super::{Abilities, Lifetime, Limits, Storage};
use crate::sync::lock;

/// What a host-managed zoned storage looks like (section 5.2.4 of virtio 1.3, `struct virtio_blk_zoned_characteristics`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneLimits {
    /// Bytes from the beginning of a zone to that of the next, a power of two.
    pub zone_size: u64,
    /// The most zones that may be open; zero for any number.
    pub max_open: u32,
    /// The most zones that may be open or closed; zero for any number.
    pub max_active: u32,
    /// Bytes that one append writes at most.
    pub max_append: u32,
    /// What writes are multiples of, in bytes.
    pub write_granularity: u32,
}

/// What is done to a zone (section 5.2.6 of virtio 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneAction {
    /// Opens it explicitly.
    Open,
    /// Closes it.
    Close,
    /// Makes it full.
    Finish,
    /// Makes it empty.
    Reset,
}

/// The state of a zone, by its number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ZoneState {
    /// A conventional zone, which is written anywhere: it has no write pointer.
    NotWritePointer = 0,
    /// Nothing is written in it.
    Empty = 1,
    /// A write has opened it.
    ImplicitlyOpen = 2,
    /// It was opened.
    ExplicitlyOpen = 3,
    /// Something is written in it, and it is not open.
    Closed = 4,
    /// Nothing can be written in it any more.
    ReadOnly = 13,
    /// Nothing can be written behind what is.
    Full = 14,
    /// It is lost.
    Offline = 15,
}

impl ZoneState {
    fn is_open(self) -> bool {
        matches!(self, Self::ImplicitlyOpen | Self::ExplicitlyOpen)
    }

    fn is_active(self) -> bool {
        self.is_open() || self == Self::Closed
    }
}

/// A zone. Positions are in bytes of the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Where it begins.
    pub start: u64,
    /// Bytes that can be written in it.
    pub capacity: u64,
    /// Where the next write goes.
    pub write_pointer: u64,
    /// Its state.
    pub state: ZoneState,
}

/// Why a zone does not do what it is asked: the guest gets the status that says so. As the inner error of an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// It is no command for this zone, or in its state.
    #[error("no command for this zone")]
    Invalid,
    /// A write that is not where the write pointer is.
    #[error("not at the write pointer")]
    Unaligned,
    /// As many zones are open as may be.
    #[error("too many open zones")]
    OpenResource,
    /// As many zones are active as may be.
    #[error("too many active zones")]
    ActiveResource,
}

impl From<ZoneError> for io::Error {
    fn from(error: ZoneError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

impl ZoneError {
    /// The one in an error.
    pub(in crate::virtio::block) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// The zones of a storage, beside its data.
pub trait Zones: Send + Sync {
    /// What they look like. Asked once.
    fn limits(&self) -> ZoneLimits;

    /// Up to `count` zones, from the one at `index` on.
    fn report(&self, index: usize, count: usize) -> Vec<Zone>;

    /// Does something to the zone that begins at `start`.
    ///
    /// # Errors
    /// A [`ZoneError`], or the storage failed.
    fn act(&self, action: ZoneAction, start: u64) -> io::Result<()>;

    /// Makes all zones empty.
    ///
    /// # Errors
    /// The storage failed.
    fn reset_all(&self) -> io::Result<()>;

    /// Writes `buffers` where the write pointer of the zone that begins at `start` is, all of them or none. Returns where that was.
    ///
    /// # Errors
    /// A [`ZoneError`], or the storage failed.
    fn append(&self, start: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<u64>;
}

/// Any [`Storage`] as a host-managed zoned one: each zone is written from its beginning on, where its write pointer is.
///
/// What the zones have come to is kept in memory, as plain data: an embedder that saves the data saves [them](Self::save) too. A zone that
/// is reset reads as zeros. Writes come one at a time.
pub struct ZonedStorage<S> {
    storage: S,
    limits: ZoneLimits,
    zones: Mutex<Vec<Zone>>,
}

/// A storage cannot have such zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZonedError {
    /// No such zone size.
    #[error("zones of {0} bytes: a power of two from 4096 on is accepted")]
    Size(u64),
    /// No such granularity.
    #[error("writes of multiples of {0} bytes: a power of two from 512 up to the size of a zone is accepted")]
    Granularity(u32),
    /// The storage does not tell its capacity, or has none.
    #[error("the storage does not tell its capacity, or has none")]
    Capacity,
    /// Zones that contradict themselves or the storage.
    #[error("the zones are not of this storage: as many of the same size are needed, none of them past its limits")]
    Zones,
}

impl<S: Storage> ZonedStorage<S> {
    /// Zones that are empty, over all of `storage`; the last may be smaller than the others.
    ///
    /// # Errors
    /// There cannot be such zones.
    pub fn new(storage: S, limits: ZoneLimits) -> Result<Self, ZonedError> {
        let ZoneLimits {
            zone_size,
            write_granularity,
            ..
        } = limits;
        if !zone_size.is_power_of_two() || zone_size < 4096 {
            return Err(ZonedError::Size(zone_size));
        }
        if !write_granularity.is_power_of_two() || write_granularity < 512 || u64::from(write_granularity) > zone_size {
            return Err(ZonedError::Granularity(write_granularity));
        }
        let granularity = u64::from(write_granularity);
        let capacity = storage.capacity().map_err(|_| ZonedError::Capacity)? / granularity * granularity;
        if capacity == 0 {
            return Err(ZonedError::Capacity);
        }
        let zones = (0..capacity.div_ceil(zone_size)).map(|index| Zone {
            start: index * zone_size,
            capacity: zone_size.min(capacity - index * zone_size),
            write_pointer: index * zone_size,
            state: ZoneState::Empty,
        });
        Ok(Self {
            zones: Mutex::new(zones.collect()),
            storage,
            limits,
        })
    }

    /// All zones as they are.
    pub fn save(&self) -> Vec<Zone> {
        lock(&self.zones).clone()
    }

    /// Has them be as they were.
    ///
    /// # Errors
    /// They are not of this storage.
    pub fn restore(&self, zones: Vec<Zone>) -> Result<(), ZonedError> {
        let mut present = lock(&self.zones);
        let granularity = u64::from(self.limits.write_granularity);
        let fits = |(zone, present): (&Zone, &Zone)| {
            let written = zone.write_pointer.checked_sub(zone.start);
            let right = match zone.state {
                ZoneState::Empty => written == Some(0),
                ZoneState::Full => written == Some(zone.capacity),
                ZoneState::ExplicitlyOpen => written.is_some_and(|written| written < zone.capacity),
                ZoneState::ImplicitlyOpen | ZoneState::Closed => {
                    written.is_some_and(|written| written != 0 && written < zone.capacity)
                }
                // There are none of these here.
                ZoneState::NotWritePointer | ZoneState::ReadOnly | ZoneState::Offline => false,
            };
            right
                && written.is_some_and(|written| written.is_multiple_of(granularity))
                && (zone.start, zone.capacity) == (present.start, present.capacity)
        };
        let count = |which: fn(ZoneState) -> bool| zones.iter().filter(|zone| which(zone.state)).count() as u64;
        let within = |count: u64, most: u32| most == 0 || count <= most.into();
        let right = zones.len() == present.len()
            && zones.iter().zip(&*present).all(fits)
            && within(count(ZoneState::is_open), self.limits.max_open)
            && within(count(ZoneState::is_active), self.limits.max_active);
        match right {
            true => {
                *present = zones;
                Ok(())
            }
            false => Err(ZonedError::Zones),
        }
    }

    /// Which zone begins at `start`.
    fn index(&self, zones: &[Zone], start: u64) -> Result<usize, ZoneError> {
        let index = usize::try_from(start / self.limits.zone_size).unwrap_or(usize::MAX);
        match zones.get(index) {
            Some(zone) if zone.start == start => Ok(index),
            _ => Err(ZoneError::Invalid),
        }
    }

    /// Whether a zone can be opened: another one that a write has opened is closed for it, if that is what it takes.
    fn make_room(&self, zones: &mut [Zone], index: usize) -> Result<(), ZoneError> {
        let state = zones[index].state;
        let count =
            |zones: &[Zone], which: fn(ZoneState) -> bool| zones.iter().filter(|zone| which(zone.state)).count();
        let ZoneLimits {
            max_open, max_active, ..
        } = self.limits;
        if !state.is_active() && max_active != 0 && count(zones, ZoneState::is_active) >= max_active as usize {
            return Err(ZoneError::ActiveResource);
        }
        if !state.is_open() && max_open != 0 && count(zones, ZoneState::is_open) >= max_open as usize {
            let other = zones.iter_mut().find(|zone| zone.state == ZoneState::ImplicitlyOpen);
            other.ok_or(ZoneError::OpenResource)?.state = ZoneState::Closed;
        }
        Ok(())
    }

    /// Writes to a zone, at its write pointer. How many bytes were written.
    fn write(&self, zones: &mut [Zone], index: usize, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        if len == 0 {
            return Ok(0);
        }
        let Zone {
            start,
            capacity,
            write_pointer,
            state,
        } = zones[index];
        if state == ZoneState::Full || len > start + capacity - write_pointer {
            return Err(ZoneError::Invalid.into());
        }
        self.make_room(zones, index)?;
        let written = self.storage.write_at(write_pointer, buffers)?;
        let zone = &mut zones[index];
        zone.write_pointer += (written as u64).min(len);
        zone.state = match zone.write_pointer - start {
            all if all == capacity => ZoneState::Full,
            _ if state == ZoneState::ExplicitlyOpen => state,
            _ => ZoneState::ImplicitlyOpen,
        };
        Ok(written)
    }

    fn reset(&self, zone: &mut Zone) -> io::Result<()> {
        if zone.state != ZoneState::Empty {
            self.storage.write_zeroes(zone.start, zone.capacity, true)?;
            (zone.write_pointer, zone.state) = (zone.start, ZoneState::Empty);
        }
        Ok(())
    }
}

impl<S: Storage> Storage for ZonedStorage<S> {
    fn capacity(&self) -> io::Result<u64> {
        let zones = lock(&self.zones);
        Ok(zones.last().map_or(0, |zone| zone.start + zone.capacity))
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            read_only: self.storage.abilities().read_only,
            ..Abilities::default()
        }
    }

    fn limits(&self) -> Limits {
        let limits = self.storage.limits();
        Limits {
            physical_block: limits.physical_block.max(self.limits.write_granularity),
            ..limits
        }
    }

    fn lifetime(&self) -> Option<Lifetime> {
        self.storage.lifetime()
    }

    fn zones(&self) -> Option<&dyn Zones> {
        Some(self)
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.storage.read_at(offset, buffers)
    }

    /// Only where the write pointer of its zone is.
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut zones = lock(&self.zones);
        let start = offset / self.limits.zone_size * self.limits.zone_size;
        let index = self.index(&zones, start)?;
        if zones[index].state == ZoneState::Full {
            return Err(ZoneError::Invalid.into());
        }
        if zones[index].write_pointer != offset {
            return Err(ZoneError::Unaligned.into());
        }
        self.write(&mut zones, index, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.storage.flush()
    }

    /// There is none for zones: they are reset.
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<S: Storage> Zones for ZonedStorage<S> {
    fn limits(&self) -> ZoneLimits {
        self.limits
    }

    fn report(&self, index: usize, count: usize) -> Vec<Zone> {
        let zones = lock(&self.zones);
        zones.iter().skip(index).take(count).copied().collect()
    }

    fn act(&self, action: ZoneAction, start: u64) -> io::Result<()> {
        let mut zones = lock(&self.zones);
        let index = self.index(&zones, start)?;
        let state = zones[index].state;
        match (action, state) {
            (ZoneAction::Reset, _) => return self.reset(&mut zones[index]),
            (ZoneAction::Open, ZoneState::Full) | (ZoneAction::Close, ZoneState::Empty | ZoneState::Full) => {
                return Err(ZoneError::Invalid.into());
            }
            (ZoneAction::Open, _) => {
                self.make_room(&mut zones, index)?;
                zones[index].state = ZoneState::ExplicitlyOpen;
            }
            (ZoneAction::Close, _) => {
                let zone = &mut zones[index];
                zone.state = match zone.write_pointer == zone.start {
                    true => ZoneState::Empty,
                    false => ZoneState::Closed,
                };
            }
            (ZoneAction::Finish, ZoneState::Full) => {}
            (ZoneAction::Finish, _) => {
                // Through being open.
                self.make_room(&mut zones, index)?;
                let zone = &mut zones[index];
                (zone.write_pointer, zone.state) = (zone.start + zone.capacity, ZoneState::Full);
            }
        }
        Ok(())
    }

    fn reset_all(&self) -> io::Result<()> {
        lock(&self.zones).iter_mut().try_for_each(|zone| self.reset(zone))
    }

    fn append(&self, start: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<u64> {
        let mut zones = lock(&self.zones);
        let index = self.index(&zones, start)?;
        let at = zones[index].write_pointer;
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        if len > start + zones[index].capacity - at {
            return Err(ZoneError::Invalid.into());
        }
        // What follows from a failure midway is a hole that the write pointer is behind of.
        super::transfer(buffers, at, |_, rest| self.write(&mut zones, index, rest)).1?;
        Ok(at)
    }
}

impl<S: fmt::Debug> fmt::Debug for ZonedStorage<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZonedStorage")
            .field("storage", &self.storage)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<Z: Zones + ?Sized> Zones for Arc<Z> {
    fn limits(&self) -> ZoneLimits {
        (**self).limits()
    }

    fn report(&self, index: usize, count: usize) -> Vec<Zone> {
        (**self).report(index, count)
    }

    fn act(&self, action: ZoneAction, start: u64) -> io::Result<()> {
        (**self).act(action, start)
    }

    fn reset_all(&self) -> io::Result<()> {
        (**self).reset_all()
    }

    fn append(&self, start: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<u64> {
        (**self).append(start, buffers)
    }
}
