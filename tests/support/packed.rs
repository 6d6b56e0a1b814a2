//! The driver's side of a packed virtqueue (virtio 1.2, section 2.8), written straight into guest memory as the specification has it:
//! right or wrong, as a test wants it. It has the face of the split one in `ring.rs`.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{collections::BTreeMap, sync::Arc};

use devisor::virtio::queue::QueueLayout;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap, bitmap::Bitmap};

use super::ring::{Buffer, INDIRECT, NEXT, WRITE};

pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;
/// Values of event suppression flags.
pub const ENABLE: u16 = 0;
pub const DISABLE: u16 = 1;
pub const DESC: u16 = 2;

/// A place in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub slot: u16,
    pub wrap: bool,
}

impl Place {
    pub fn after(self, count: u16, size: u16) -> Self {
        let (mut slot, mut wrap) = (u32::from(self.slot) + u32::from(count), self.wrap);
        while slot >= size.into() {
            (slot, wrap) = (slot - u32::from(size), !wrap);
        }
        let slot = slot as u16;
        Self { slot, wrap }
    }

    /// As event structures and saved states have it.
    pub fn raw(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }
}

/// A chain that is written but for the flags of its first descriptor.
struct Staged {
    first: u16,
    flags: u16,
}

/// A packed ring at `base`, as its driver sees it.
pub struct PackedRing<B = ()> {
    pub memory: Arc<GuestMemoryMmap<B>>,
    pub layout: QueueLayout,
    pub next: Place,
    used: Place,
    /// How many descriptors each ID in flight takes.
    descriptors: BTreeMap<u16, u16>,
    staged: BTreeMap<u16, Staged>,
    used_chains: u16,
}

impl<B: Bitmap + Send + Sync + 'static> PackedRing<B> {
    /// A ring of `size` descriptors in the 3 * 0x1000 + 16 * `size` bytes from `base` on.
    pub fn new(memory: &Arc<GuestMemoryMmap<B>>, base: u64, size: u16) -> Self {
        let driver_area = (base + 16 * u64::from(size)).next_multiple_of(0x1000);
        Self::at(
            memory,
            QueueLayout {
                size,
                descriptor_area: base,
                driver_area,
                device_area: driver_area + 0x1000,
            },
        )
    }

    /// A ring wherever a test wants it.
    pub fn at(memory: &Arc<GuestMemoryMmap<B>>, layout: QueueLayout) -> Self {
        let first = Place { slot: 0, wrap: true };
        Self {
            memory: Arc::clone(memory),
            layout,
            next: first,
            used: first,
            descriptors: BTreeMap::new(),
            staged: BTreeMap::new(),
            used_chains: 0,
        }
    }

    pub fn put<T: ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("in guest memory");
    }

    pub fn get<T: ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).expect("in guest memory")
    }

    fn slot(&self, slot: u16) -> u64 {
        self.layout.descriptor_area + 16 * u64::from(slot)
    }

    /// Writes a descriptor of the ring, to whatever.
    pub fn descriptor(&self, slot: u16, (address, len, id, flags): (u64, u32, u16, u16)) {
        let at = self.slot(slot);
        self.put(at, address);
        self.put(at + 8, len);
        self.put(at + 12, id);
        self.put(at + 14, flags);
    }

    /// The marks of what is available at a place.
    pub fn marks(place: Place) -> u16 {
        if place.wrap { AVAIL } else { USED }
    }

    /// How many descriptors are free.
    pub fn free(&self) -> u16 {
        self.layout.size - self.descriptors.values().sum::<u16>()
    }

    /// The ID that the next chain gets: that of its first slot, as the head of a split one, if it is free.
    fn next_id(&self) -> u16 {
        let mut all = (self.next.slot..self.layout.size).chain(0..self.next.slot);
        all.find(|id| !self.descriptors.contains_key(id)).expect("a free ID")
    }

    /// Writes descriptors with these flags, and NEXT on all but the last, without offering them. Returns their ID.
    pub fn raw(&mut self, descriptors: &[(u64, u32, u16)]) -> u16 {
        let (id, first, count) = (self.next_id(), self.next, descriptors.len() as u16);
        assert!(count <= self.free(), "the driver has {} descriptors", self.free());
        for (number, &(address, len, flags)) in (0u16..).zip(descriptors) {
            let next = if number + 1 < count { NEXT } else { 0 };
            let flags = flags | next | Self::marks(self.next);
            if number == 0 {
                let at = self.slot(first.slot);
                self.put(at, address);
                self.put(at + 8, len);
                self.put(at + 12, id);
                let first = first.slot;
                self.staged.insert(id, Staged { first, flags });
            } else {
                self.descriptor(self.next.slot, (address, len, id, flags));
            }
            self.next = self.next.after(1, self.layout.size);
        }
        self.descriptors.insert(id, count);
        id
    }

    /// Writes `buffers` as a chain, without offering it. Returns its ID.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let raw = |buffer: &Buffer| (buffer.address, buffer.len, if buffer.writable { WRITE } else { 0 });
        self.raw(&buffers.iter().map(raw).collect::<Vec<_>>())
    }

    /// Writes `buffers` into an indirect table at `table`, named by one descriptor. Returns its ID.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (index, buffer) in (0u64..).zip(buffers) {
            let at = table + 16 * index;
            self.put(at, buffer.address);
            self.put(at + 8, buffer.len);
            // No NEXT, and what is reserved is not looked at.
            self.put(at + 12, 0xffffu16);
            self.put(at + 14, if buffer.writable { WRITE } else { 0 });
        }
        self.raw(&[(table, 16 * buffers.len() as u32, INDIRECT)])
    }

    /// Makes a chain available.
    pub fn offer(&mut self, id: u16) {
        let Staged { first, flags } = self.staged.remove(&id).expect("written, and not offered yet");
        self.put(self.slot(first) + 14, flags);
    }

    /// Writes a chain and makes it available. Returns its ID.
    pub fn request(&mut self, buffers: &[Buffer]) -> u16 {
        let id = self.add(buffers);
        self.offer(id);
        id
    }

    fn set_event(&self, at: Place, flags: u16) {
        self.put(self.layout.driver_area, at.raw());
        self.put(self.layout.driver_area + 2, flags);
    }

    /// Wants no interrupts, or all.
    pub fn set_no_interrupt(&self, set: bool) {
        self.set_event(self.used, if set { DISABLE } else { ENABLE });
    }

    /// Wants an interrupt once the descriptor is used that comes after so many from the first on.
    pub fn set_used_event(&self, event: u16) {
        let first = Place { slot: 0, wrap: true };
        self.set_event(first.after(event, self.layout.size), DESC);
    }

    /// Wants one for the next that is used.
    pub fn want_signal(&self) {
        self.set_event(self.used, DESC);
    }

    /// What the device has said about kicks: place and flags.
    pub fn device_event(&self) -> (u16, u16) {
        (self.get(self.layout.device_area), self.get(self.layout.device_area + 2))
    }

    /// Whether the driver is to kick for `count` descriptors that it has just made available.
    pub fn is_to_kick(&self, count: u16) -> bool {
        match self.device_event() {
            (_, ENABLE) => true,
            (at, DESC) => (0..count).any(|back| {
                let mut place = self.next;
                for _ in 0..=back {
                    place = match place.slot {
                        0 => Place {
                            slot: self.layout.size - 1,
                            wrap: !place.wrap,
                        },
                        slot => Place {
                            slot: slot - 1,
                            ..place
                        },
                    };
                }
                place.raw() == at
            }),
            _ => false,
        }
    }

    fn peek(&self, at: Place) -> Option<(u16, u32)> {
        let flags: u16 = self.get(self.slot(at.slot) + 14);
        let marks = if at.wrap { AVAIL | USED } else { 0 };
        let is_used = flags & (AVAIL | USED) == marks;
        let len = if flags & WRITE != 0 {
            self.get(self.slot(at.slot) + 8)
        } else {
            0
        };
        is_used.then(|| (self.get(self.slot(at.slot) + 12), len))
    }

    /// What is in a slot.
    pub fn descriptor_at(&self, slot: u16) -> u128 {
        self.get(self.slot(slot))
    }

    /// What was used since this was last asked: IDs and lengths.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        while let Some((id, len)) = self.peek(self.used) {
            let count = self.descriptors.remove(&id).expect("used, and so in flight before");
            used.push((id.into(), len));
            self.used = self.used.after(count, self.layout.size);
        }
        self.used_chains = self.used_chains.wrapping_add(used.len() as u16);
        used
    }

    /// As [`used`](Self::used), where chains are used in order: a used descriptor is for all of those that were made available up to its own
    /// (section 2.8.8). For how many each is; `made` are those that are not used.
    pub fn used_in_order(&mut self, made: &mut Vec<u16>) -> Vec<usize> {
        let mut used = Vec::new();
        while let Some((last, _)) = self.peek(self.used) {
            let all = 1 + made.iter().position(|id| *id == last).expect("in flight before");
            for id in made.drain(..all) {
                let count = self.descriptors.remove(&id).expect("in flight before");
                self.used = self.used.after(count, self.layout.size);
            }
            used.push(all);
        }
        used
    }

    /// How many chains were used so far.
    pub fn used_idx(&self) -> u16 {
        let (mut count, mut at) = (self.used_chains, self.used);
        let mut seen = std::collections::BTreeSet::new();
        while let Some((id, _)) = self.peek(at) {
            let Some(&descriptors) = self.descriptors.get(&id).filter(|_| seen.insert(id)) else {
                break;
            };
            count = count.wrapping_add(1);
            at = at.after(descriptors, self.layout.size);
        }
        count
    }

    /// Where the device uses next, as far as the driver has looked.
    pub fn used_place(&self) -> Place {
        self.used
    }
}
