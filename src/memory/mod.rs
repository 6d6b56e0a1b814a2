//! Guest memory as devices use it: looked up once, kept alive while it is used, marked where it was written.
//!
//! An embedder's memory is `vm-memory`'s, of whatever type. [`Memory`] hides the type; a [`Pin`] of it is one map of it, with
//! the host addresses of all regions. What has a pin may use the addresses: the map that they came from is alive.

mod backing;
#[cfg(target_os = "linux")]
mod file_system;
mod map;
#[cfg(unix)]
mod mapping;
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
mod replaceable;
mod runs;
mod scattered;
mod span;
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
mod switched;
mod tally;
mod translated;

use std::{
    any::TypeId,
    fmt,
    ptr::NonNull,
    sync::{Arc, Mutex, Weak},
};

use vm_memory::{GuestAddressSpace, Permissions, VolatileSlice};

use crate::sync::lock;
use backing::Backing;
#[cfg(target_os = "linux")]
pub(crate) use file_system::FileSystem;
use map::Map;
#[cfg(unix)]
pub(crate) use mapping::Mapping;
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
pub(crate) use replaceable::Replaceable;
pub(crate) use runs::{Asked, Piece, Translate};
pub(crate) use span::{Near, Stretch};
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
pub(crate) use switched::Switched;
pub(crate) use tally::Ticket;
pub(crate) use translated::{Behind, Over, Translated};

/// Bytes of guest memory.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes. May be zero.
    pub len: u32,
    /// The span in which the first byte was found last: where to look first.
    hint: u32,
}

impl Segment {
    /// The `len` bytes from `address` on.
    pub fn new(address: u64, len: u32) -> Self {
        Self { address, len, hint: 0 }
    }

    /// Bytes in the same span.
    #[inline]
    pub(crate) fn at(self, address: u64, len: u32) -> Self {
        Self { address, len, ..self }
    }
}

impl PartialEq for Segment {
    fn eq(&self, other: &Self) -> bool {
        (self.address, self.len) == (other.address, other.len)
    }
}

impl Eq for Segment {}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.address, self.len)
    }
}

/// These bytes are not, or no longer, all in guest memory, or may not be accessed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {address:#x} are not all in guest memory")]
pub struct Outside {
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
}

/// An embedder's guest memory, whatever its type.
///
/// The address space may change while devices run (memory is plugged, unplugged, moved): a new [`pin`](Self::pin) is of the map
/// as it is then.
///
/// ```
/// use devisor::memory::Memory;
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let ram = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)])?);
/// let memory = Memory::new(ram);
/// let pin = memory.pin();
/// assert!(memory.is_current(&pin));
/// pin.write(0x10, b"hello")?;
/// assert!(pin.write(0xffe, b"hello").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Memory {
    space: Arc<dyn Space>,
    /// It is an `Arc` of one map, which never changes: to ask it would have all devices of a machine count in one place.
    is_fixed: bool,
}

/// What [`Memory`] asks of an address space.
trait Space: Send + Sync {
    fn pin(&self) -> Pin;
    fn is_current(&self, pin: &Pin) -> bool;
    fn maps_held(&self) -> usize;

    fn is_translated(&self) -> bool {
        false
    }

    fn add_behind(&self, behind: Weak<dyn Behind>) {
        let _ = behind;
    }
}

impl Memory {
    /// Hides the type of `space`.
    pub fn new<A>(space: A) -> Self
    where
        A: GuestAddressSpace + Send + Sync + 'static,
        A::T: Send + Sync + 'static,
    {
        let is_fixed = TypeId::of::<A>() == TypeId::of::<Arc<A::M>>();
        let maps = Mutex::default();
        let space = Arc::new(Erased { space, is_fixed, maps });
        Self { space, is_fixed }
    }

    /// Memory whose addresses are translated.
    pub(crate) fn translated(by: Arc<Translated>) -> Self {
        Self {
            space: Arc::new(translated::Addresses(by)),
            is_fixed: false,
        }
    }

    /// Whether addresses are translated on their way to this memory, by an IOMMU of this crate.
    pub fn is_translated(&self) -> bool {
        self.space.is_translated()
    }

    /// Has `behind` told when translations are taken back.
    pub(crate) fn add_behind(&self, behind: Weak<dyn Behind>) {
        self.space.add_behind(behind);
    }

    /// The map as it is now.
    pub fn pin(&self) -> Pin {
        self.space.pin()
    }

    /// Whether `pin` is of the map as it is now.
    #[inline]
    pub fn is_current(&self, pin: &Pin) -> bool {
        self.is_fixed || self.space.is_current(pin)
    }

    /// How many maps are pinned that are not the current one any more: zero says that nothing which was taken out of the guest's
    /// memory is in use by a device.
    pub fn old_maps_held(&self) -> usize {
        self.space.maps_held()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

struct Erased<A> {
    space: A,
    /// As of [`Memory`].
    is_fixed: bool,
    /// The maps that are still in use, the newest last.
    maps: Mutex<Vec<Weak<Map>>>,
}

impl<A> Space for Erased<A>
where
    A: GuestAddressSpace + Send + Sync,
    A::T: Send + Sync + 'static,
{
    fn pin(&self) -> Pin {
        let mut maps = lock(&self.maps);
        let newest = maps.last().and_then(Weak::upgrade).map(Pin);
        if let Some(pin) = newest.filter(|pin| self.is_current(pin)) {
            return pin;
        }
        let map = Arc::new(Map::new(self.space.memory()));
        maps.retain(|map| map.strong_count() != 0);
        maps.push(Arc::downgrade(&map));
        Pin(map)
    }

    /// By identity: the map that is held cannot have been replaced by another one at its address.
    fn is_current(&self, pin: &Pin) -> bool {
        self.is_fixed || std::ptr::eq(std::ptr::from_ref(&*self.space.memory()).cast(), pin.0.identity)
    }

    fn maps_held(&self) -> usize {
        let maps: Vec<_> = lock(&self.maps).iter().filter_map(Weak::upgrade).map(Pin).collect();
        maps.iter().filter(|pin| !self.is_current(pin)).count()
    }
}

/// One map of guest memory, alive as long as this is.
///
/// Its memory is shared with the guest, which changes it at any time: everything is copied out once, then looked at.
#[derive(Clone)]
pub struct Pin(Arc<Map>);

impl Pin {
    /// Reads `data.len()` bytes at `address`.
    ///
    /// # Errors
    /// [`Outside`]; what was read by then is in `data`.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Outside> {
        let mut segment = segment(address, data.len())?;
        self.check_translated(&mut segment, Permissions::Read)?;
        self.0.read(&mut segment, data)
    }

    /// Writes `data` at `address`, and marks it.
    ///
    /// # Errors
    /// [`Outside`]; what was written by then is there.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Outside> {
        let mut segment = segment(address, data.len())?;
        self.check_translated(&mut segment, Permissions::Write)?;
        self.0.write(&mut segment, data)
    }

    /// What is translated may be there for one direction alone.
    fn check_translated(&self, segment: &mut Segment, access: Permissions) -> Result<(), Outside> {
        match self.0.runs {
            Some(_) => self.0.check(segment, access),
            None => Ok(()),
        }
    }

    /// Chains of a queue may be looked for here until what this returns is dropped.
    pub(crate) fn view(self) -> Viewed {
        Viewed::new(self)
    }

    /// A chain with these segments is taken. Each of them is [left](Self::leave) when it is done with, as it is.
    #[cold]
    pub(crate) fn enter(&self, segments: &[Segment]) {
        if let Some(runs) = &self.0.runs {
            runs.enter(segments);
        }
    }

    /// No byte of these is accessed any more by who has [entered](Self::enter) them.
    #[cold]
    pub(crate) fn leave(&self, segments: &[Segment]) {
        if let Some(runs) = &self.0.runs {
            runs.leave(segments);
        }
    }

    /// Whether the device may access all of `segment` so. Remembers where it was found.
    #[inline]
    pub(crate) fn check(&self, segment: &mut Segment, access: Permissions) -> Result<(), Outside> {
        self.0.check(segment, access)
    }

    /// The span in which `earlier` was found, if it is for both directions; otherwise one that has nothing.
    #[inline]
    pub(crate) fn stretch(&self, earlier: &Segment) -> &Stretch {
        self.0.stretch(earlier)
    }

    /// Whether addresses are translated.
    #[inline]
    pub(crate) fn is_translated(&self) -> bool {
        self.0.runs.is_some()
    }

    /// Whether a translation that was missed since this was called last is still to come, instead of being refused.
    #[cold]
    pub(crate) fn awaits(&self) -> bool {
        self.0.runs.as_ref().is_some_and(|runs| runs.awaits())
    }

    /// Puts a segment into `place` if this pin, which is translated, has seen it before. Whether it has.
    #[inline]
    pub(crate) fn place(&self, place: &mut Segment, address: u64, len: u32, access: Permissions) -> bool {
        self.0.place(place, address, len, access)
    }

    /// Where to begin to look, with the hint of an earlier segment.
    #[inline]
    pub(crate) fn near(&self, earlier: &Segment) -> Near {
        self.0.near(earlier)
    }

    /// As [`check`](Self::check), beginning where the last segment was found.
    #[inline]
    pub(crate) fn check_near(
        &self,
        near: &mut Near,
        address: u64,
        len: u32,
        access: Permissions,
    ) -> Result<Segment, Outside> {
        self.0.check_near(near, address, len, access)
    }

    /// The host address of `segment`, if all of it is in one span.
    #[inline]
    pub(crate) fn host(&self, segment: &mut Segment) -> Option<NonNull<u8>> {
        self.0.host(segment)
    }

    /// Reads the first `data.len()` bytes of `segment`.
    #[inline]
    pub(crate) fn read_from(&self, segment: &mut Segment, data: &mut [u8]) -> Result<(), Outside> {
        self.0.read(segment, data)
    }

    /// Writes the first `data.len()` bytes of `segment`.
    #[inline]
    pub(crate) fn write_to(&self, segment: &mut Segment, data: &[u8]) -> Result<(), Outside> {
        self.0.write(segment, data)
    }

    /// Whether writes are to be marked.
    #[inline]
    pub(crate) fn tracks(&self) -> bool {
        self.0.tracks
    }

    /// Marks bytes that were written by their host address.
    #[inline]
    pub(crate) fn mark_dirty(&self, address: u64, len: u64) {
        if self.0.tracks {
            self.0.backing.mark_dirty(address, len);
        }
    }

    /// Lends all of `segment`, to be written, if it is in one piece of host memory; marks it afterwards. `None`: it is not, and `f` did
    /// not run.
    #[inline]
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for TAP interfaces"))]
    pub(crate) fn lend_whole<R>(&self, segment: &mut Segment, f: impl FnOnce(&VolatileSlice<'_>) -> R) -> Option<R> {
        self.0.lend_whole(segment, f)
    }

    /// Lends `segments` as slices of host memory, put together in `scratch`; marks them afterwards if they may have been written.
    pub(crate) fn lend<R>(
        &self,
        segments: impl Iterator<Item = Segment>,
        access: Permissions,
        scratch: &mut Scratch,
        f: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, Outside> {
        self.0.lend(segments, access, scratch, f)
    }

    pub(crate) fn backing(&self) -> &dyn Backing {
        &*self.0.backing
    }

    /// The host addresses of its regions and their lengths; none, if an address is not stable.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub(crate) fn host_ranges(&self) -> impl Iterator<Item = (NonNull<u8>, u64)> {
        self.0.host_ranges()
    }

    /// Which map it is of.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub(crate) fn which(&self) -> Which {
        Which(Arc::downgrade(&self.0))
    }
}

/// Which map a pin is of, without keeping that in use.
#[cfg(all(target_os = "linux", feature = "io-uring"))]
pub(crate) struct Which(Weak<Map>);

#[cfg(all(target_os = "linux", feature = "io-uring"))]
impl Which {
    /// Whether `pin` is of the same map.
    pub fn is_of(&self, pin: &Pin) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&pin.0))
    }

    /// Whether nobody has it in use any more.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pin").field(&self.0).finish()
    }
}

/// A [`Pin`] of a queue, which looks for chains in it: whoever takes a translation back waits for it.
pub(crate) struct Viewed(Pin);

impl Viewed {
    fn new(pin: Pin) -> Self {
        if let Some(runs) = &pin.0.runs {
            runs.view();
        }
        Self(pin)
    }
}

impl Clone for Viewed {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl std::ops::Deref for Viewed {
    type Target = Pin;

    #[inline]
    fn deref(&self) -> &Pin {
        &self.0
    }
}

impl Drop for Viewed {
    fn drop(&mut self) {
        if let Some(runs) = &self.0.0.runs {
            runs.end_view();
        }
    }
}

/// Room for slices, kept from one use to the next.
#[derive(Default)]
pub(crate) struct Scratch {
    slices: Vec<VolatileSlice<'static>>,
    marks: Vec<Segment>,
}

// SAFETY: between two uses there is nothing in it but room.
unsafe impl Send for Scratch {}
// SAFETY: as above; it is used through `&mut` alone.
unsafe impl Sync for Scratch {}

fn segment(address: u64, len: usize) -> Result<Segment, Outside> {
    let outside = || Outside {
        address,
        len: len as u64,
    };
    Ok(Segment::new(address, u32::try_from(len).map_err(|_| outside())?))
}

#[cfg(all(test, not(loom)))]
mod tests;
