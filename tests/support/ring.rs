//! The driver's side of a split virtqueue, written straight into guest memory: right or wrong, as a test wants it.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::sync::Arc;

use devisor::virtio::queue::QueueLayout;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap, bitmap::Bitmap};

/// Descriptor flags (virtio 1.2, section 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One descriptor as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A buffer of a chain: where, how long, and whether the device may write it.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// A buffer that the device reads.
pub fn readable(address: u64, len: u32) -> Buffer {
    Buffer {
        address,
        len,
        writable: false,
    }
}

/// A buffer that the device writes.
pub fn writable(address: u64, len: u32) -> Buffer {
    Buffer {
        address,
        len,
        writable: true,
    }
}

/// One mebibyte of guest memory at zero.
pub fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("one MiB"))
}

/// A split ring at `base`, as its driver sees it.
pub struct Ring<B = ()> {
    pub memory: Arc<GuestMemoryMmap<B>>,
    pub layout: QueueLayout,
    /// The next descriptor that [`add`](Self::add) uses.
    free: u16,
    avail_idx: u16,
    used_seen: u16,
}

impl<B: Bitmap + Send + Sync + 'static> Ring<B> {
    /// A ring of `size` descriptors in the 4 * 0x1000 + 16 * `size` bytes from `base` on.
    pub fn new(memory: &Arc<GuestMemoryMmap<B>>, base: u64, size: u16) -> Self {
        let descriptor_area = base;
        let driver_area = (base + 16 * u64::from(size)).next_multiple_of(0x1000);
        let device_area = (driver_area + 6 + 2 * u64::from(size)).next_multiple_of(0x1000);
        Self::at(
            memory,
            QueueLayout {
                size,
                descriptor_area,
                driver_area,
                device_area,
            },
        )
    }

    /// A ring wherever a test wants it.
    pub fn at(memory: &Arc<GuestMemoryMmap<B>>, layout: QueueLayout) -> Self {
        let mut ring = Self {
            memory: Arc::clone(memory),
            layout,
            free: 0,
            avail_idx: 0,
            used_seen: 0,
        };
        ring.start_at(0);
        ring
    }

    pub fn put<T: ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("in guest memory");
    }

    pub fn get<T: ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).expect("in guest memory")
    }

    /// Writes entry `index` of the descriptor table at `table`.
    pub fn write_descriptor(&self, table: u64, index: u16, descriptor: Descriptor) {
        let at = table + 16 * u64::from(index);
        self.put(at, descriptor.address);
        self.put(at + 8, descriptor.len);
        self.put(at + 12, descriptor.flags);
        self.put(at + 14, descriptor.next);
    }

    /// Writes a descriptor of the ring's own table.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(
            self.layout.descriptor_area,
            index,
            Descriptor {
                address,
                len,
                flags,
                next,
            },
        );
    }

    /// Writes `buffers` as a chain of fresh descriptors, without offering it. Returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.free;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.free;
            self.free = (self.free + 1) % self.layout.size;
            let last = position + 1 == buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(
                index,
                buffer.address,
                buffer.len,
                flags,
                if last { 0 } else { self.free },
            );
        }
        head
    }

    /// Writes `buffers` into an indirect table at `table`, named by one fresh descriptor. Returns its head.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (index, buffer) in (0u16..).zip(buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let Buffer { address, len, .. } = *buffer;
            self.write_descriptor(
                table,
                index,
                Descriptor {
                    address,
                    len,
                    flags,
                    next: index + 1,
                },
            );
        }
        let head = self.free;
        self.free = (self.free + 1) % self.layout.size;
        self.descriptor(head, table, 16 * buffers.len() as u32, INDIRECT, 0);
        head
    }

    /// Makes a head available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.layout.size);
        self.put(self.layout.driver_area + 4 + 2 * slot, head);
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Writes a chain and makes it available. Returns its head.
    pub fn request(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.add(buffers);
        self.offer(head);
        head
    }

    /// Writes descriptors with these flags, and NEXT on all but the last, without offering them. Returns their head.
    pub fn raw(&mut self, descriptors: &[(u64, u32, u16)]) -> u16 {
        let head = self.free;
        for (position, &(address, len, flags)) in descriptors.iter().enumerate() {
            let index = self.free;
            self.free = (self.free + 1) % self.layout.size;
            let next = if position + 1 < descriptors.len() { NEXT } else { 0 };
            self.descriptor(index, address, len, flags | next, self.free);
        }
        head
    }

    /// Wants an interrupt for the next that is used.
    pub fn want_signal(&self) {
        self.set_used_event(self.used_idx());
    }

    /// Sets `avail.idx`, to whatever.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        self.put(self.layout.driver_area + 2, idx);
    }

    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// Sets VIRTQ_AVAIL_F_NO_INTERRUPT or clears it.
    pub fn set_no_interrupt(&self, set: bool) {
        self.put(self.layout.driver_area, u16::from(set));
    }

    /// Sets `used_event`.
    pub fn set_used_event(&self, event: u16) {
        self.put(self.layout.driver_area + 4 + 2 * u64::from(self.layout.size), event);
    }

    /// `avail_event`, as the device has set it.
    pub fn avail_event(&self) -> u16 {
        self.get(self.layout.device_area + 4 + 8 * u64::from(self.layout.size))
    }

    /// The flags of the used ring.
    pub fn used_flags(&self) -> u16 {
        self.get(self.layout.device_area)
    }

    pub fn used_idx(&self) -> u16 {
        self.get(self.layout.device_area + 2)
    }

    /// What was used since this was last asked: heads and lengths.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        while self.used_seen != self.used_idx() {
            let entry = self.layout.device_area + 4 + 8 * u64::from(self.used_seen % self.layout.size);
            used.push((self.get(entry), self.get(entry + 4)));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        used
    }

    /// Where the driver is: for a test that starts in mid-flight.
    pub fn start_at(&mut self, idx: u16) {
        (self.avail_idx, self.used_seen) = (idx, idx);
        self.put(self.layout.driver_area + 2, idx);
        self.put(self.layout.device_area + 2, idx);
    }
}
