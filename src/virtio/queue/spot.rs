//! A place in a packed ring (virtio 1.2, section 2.8.1), and what flags mean there.

use super::table::WRITE;

/// Flags of a descriptor (sections 2.8.1, 2.8.3, 2.8.6 and 2.8.7). The bindings have the first two by their numbers alone.
const AVAIL: u16 = 1 << virtio_bindings::virtio_ring::VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << virtio_bindings::virtio_ring::VRING_PACKED_DESC_F_USED;

/// Values of the flags of an event suppression structure (section 2.8.10).
pub(super) const ENABLE: u16 = virtio_bindings::virtio_ring::VRING_PACKED_EVENT_FLAG_ENABLE as u16;
pub(super) const DISABLE: u16 = virtio_bindings::virtio_ring::VRING_PACKED_EVENT_FLAG_DISABLE as u16;
pub(super) const DESC: u16 = virtio_bindings::virtio_ring::VRING_PACKED_EVENT_FLAG_DESC as u16;

/// A wrap counter beside an offset.
const WRAP: u16 = 1 << virtio_bindings::virtio_ring::VRING_PACKED_EVENT_F_WRAP_CTR;

/// A place in a packed ring: a slot, below the size, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub slot: u16,
    pub wrap: bool,
}

impl Spot {
    /// Where both sides begin.
    pub const FIRST: Self = Self { slot: 0, wrap: true };

    /// As it is saved and as event structures have it: the offset, and the wrap counter in bit 15.
    #[inline]
    pub fn new(raw: u16) -> Self {
        Self {
            slot: raw & !WRAP,
            wrap: raw & WRAP != 0,
        }
    }

    #[inline]
    pub fn raw(self) -> u16 {
        self.slot | if self.wrap { WRAP } else { 0 }
    }

    /// So many descriptors further on, at most as many as there are.
    #[inline(always)]
    pub fn after(self, descriptors: u16, size: u16) -> Self {
        let slot = u32::from(self.slot) + u32::from(descriptors);
        match slot.checked_sub(size.into()) {
            Some(slot) => Self {
                slot: slot as u16,
                wrap: !self.wrap,
            },
            None => Self {
                slot: slot as u16,
                wrap: self.wrap,
            },
        }
    }

    /// How many descriptors `later` is ahead, less than twice as many as there are.
    pub fn distance(self, later: Self, size: u16) -> u32 {
        let lap = |spot: Self| u32::from(spot.slot) + if spot.wrap == self.wrap { 0 } else { size.into() };
        let (from, to) = (lap(self), lap(later));
        match to.checked_sub(from) {
            Some(ahead) => ahead,
            None => to + 2 * u32::from(size) - from,
        }
    }

    /// Whether a descriptor with these flags is available here.
    #[inline(always)]
    pub fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == if self.wrap { AVAIL } else { USED }
    }

    /// The second half of a used descriptor that is written here (section 2.8.4).
    #[inline(always)]
    pub fn used(self, id: u16, written: u32) -> u64 {
        let marks = if self.wrap { AVAIL | USED } else { 0 };
        let flags = marks | if written != 0 { WRITE } else { 0 };
        u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48
    }
}

/// Whether the driver wants to hear that `used` descriptors up to before `next` were used, by its event suppression structure.
#[inline(always)]
pub(super) fn wants(event: u32, event_idx: bool, used: u32, next: Spot, size: u32) -> bool {
    let (at, flags) = (event as u16, (event >> 16) as u16 & 3);
    if flags == DESC && event_idx {
        let at = Spot::new(at);
        let lap = if at.wrap == next.wrap { 0 } else { size };
        let behind = (u32::from(next.slot) + lap).wrapping_sub(at.slot.into());
        return behind.wrapping_sub(1) < used;
    }
    // What is reserved is heard.
    flags != DISABLE
}
