//! The same for packed rings: the driver writes each chain's descriptors anew, since used ones overwrite them.
#![allow(dead_code, reason = "each bench uses its own part of this")]

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
};

use devisor::{
    memory::Memory,
    virtio::{
        QueueIndex, features,
        queue::{Queue, QueueLayout, Silent},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::work::{
    CHAINS, DESCRIPTOR_AREA, DEVICE_AREA, DRIVER_AREA, INDIRECT, NEXT, Offers, Shape, TABLE, WRITE, move_bytes,
};

/// A multiple of all chains' lengths, so that addresses stay where they are, and no power of two.
const SIZE: u16 = 3 * CHAINS;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Guest memory with a packed ring of chains of this shape.
pub struct PackedRig {
    memory: Arc<GuestMemoryMmap>,
    shape: Shape,
    base: *mut u8,
    /// The next slot and the wrap counter.
    next: (u16, bool),
    /// The second halves of a chain's descriptors, without ID and marks.
    rest: Vec<u64>,
}

impl PackedRig {
    pub fn new(shape: Shape) -> Self {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("one MiB");
        let chain = shape.chain();
        let put = |at: u64, word: u64| memory.write_obj(word, GuestAddress(at)).expect("in memory");
        let half = |&(_, len, flags): &(u64, u32, u16)| u64::from(len) | u64::from(flags) << 48;
        let mut rest: Vec<u64> = chain.iter().map(half).collect();
        if shape == Shape::Indirect {
            for (at, (descriptor, &rest)) in (TABLE..).step_by(16).zip(chain.iter().zip(&rest)) {
                put(at, descriptor.0);
                put(at + 8, rest);
            }
            let bytes = 16 * chain.len() as u64;
            rest = vec![bytes | u64::from(INDIRECT) << 48];
        } else {
            let last = rest.len() - 1;
            rest[..last].iter_mut().for_each(|rest| *rest |= u64::from(NEXT) << 48);
        }
        for slot in 0..SIZE {
            let address = match shape {
                Shape::Indirect => TABLE,
                _ => chain[usize::from(slot) % chain.len()].0,
            };
            put(DESCRIPTOR_AREA + 16 * u64::from(slot), address);
        }
        let base = memory.get_host_address(GuestAddress(0)).expect("in memory");
        Self {
            memory: Arc::new(memory),
            shape,
            base,
            next: (0, true),
            rest,
        }
    }

    fn rest_of(&self, slot: u16) -> *mut u64 {
        // SAFETY: a slot of the ring, all of which is inside the mapping.
        unsafe {
            self.base
                .add(DESCRIPTOR_AREA as usize + 16 * usize::from(slot) + 8)
                .cast()
        }
    }
}

impl Offers for PackedRig {
    fn offer(&mut self, n: u16) {
        for _ in 0..n {
            let (first, wrap) = self.next;
            let marks = u64::from(if wrap { AVAIL } else { USED }) << 48 | u64::from(first) << 32;
            let after = first + self.rest.len() as u16;
            // The first one last.
            for (slot, rest) in (first..after).zip(&self.rest).rev() {
                // SAFETY: in the ring, aligned, and no other thread accesses it.
                unsafe { AtomicU64::from_ptr(self.rest_of(slot)) }.store(rest | marks, Ordering::Release);
            }
            self.next = if after == SIZE { (0, !wrap) } else { (after, wrap) };
        }
        // A signal is asked for a lap ahead.
        let (slot, wrap) = self.next;
        let event = u32::from(slot) | u32::from(!wrap) << 15 | 2 << 16;
        // SAFETY: the driver area is inside the mapping.
        unsafe { self.base.add(DRIVER_AREA as usize).cast::<u32>().write_volatile(event) };
    }

    fn queue(&self) -> Queue {
        let memory = Memory::new(Arc::clone(&self.memory));
        let layout = QueueLayout {
            size: SIZE,
            descriptor_area: DESCRIPTOR_AREA,
            driver_area: DRIVER_AREA,
            device_area: DEVICE_AREA,
        };
        let features = features::COMMON | features::RING_PACKED;
        Queue::new(QueueIndex(0), SIZE, layout, features, &memory, Arc::new(Silent)).expect("a valid layout")
    }

    fn shape(&self) -> Shape {
        self.shape
    }
}

/// What a careless device would do: trust the ring.
pub struct BarePacked {
    base: *mut u8,
    next: (u16, bool),
    used: (u16, bool),
}

impl BarePacked {
    pub fn new(rig: &PackedRig) -> Self {
        Self {
            base: rig.base,
            next: (0, true),
            used: (0, true),
        }
    }

    /// `publish`: after how many chains.
    pub fn serve(&mut self, rig: &mut PackedRig, publish: u16) -> u32 {
        let mut total = 0;
        for _ in 0..CHAINS / publish {
            rig.offer(publish);
            total += self.round(rig.shape);
        }
        total
    }

    fn round(&mut self, shape: Shape) -> u32 {
        let mut total = 0;
        let on = |(slot, wrap): (u16, bool), count: u16| match slot + count {
            after if after >= SIZE => (after - SIZE, !wrap),
            after => (after, wrap),
        };
        // SAFETY: the rig wrote the ring itself, all of it is inside the mapping, and one thread works on it.
        unsafe {
            let ring = self.base.add(DESCRIPTOR_AREA as usize).cast::<[u64; 2]>();
            loop {
                let rest = |slot: u16| ring.add(slot.into()).cast::<u64>().add(1);
                let first = AtomicU64::from_ptr(rest(self.next.0)).load(Ordering::Acquire);
                let marks = (first >> 48) as u16 & (AVAIL | USED);
                if marks != if self.next.1 { AVAIL } else { USED } {
                    break;
                }
                let (mut count, mut header, mut half) = (0, [0u8; 16], first);
                let id = loop {
                    let slot = on(self.next, count).0;
                    let address = ring.add(slot.into()).cast::<u64>().read_volatile();
                    if count != 0 {
                        half = rest(slot).read_volatile();
                    }
                    count += 1;
                    let flags = (half >> 48) as u16;
                    if flags & INDIRECT != 0 {
                        let table = self.base.add(address as usize).cast::<[u64; 2]>();
                        for at in 0..half as u32 as usize / 16 {
                            let [address, rest] = table.add(at).read_volatile();
                            black_box(address);
                            total += rest as u32;
                        }
                    } else {
                        black_box(address);
                        total += half as u32;
                    }
                    if shape == Shape::Moved {
                        move_bytes(self.base.add(address as usize), flags, &mut header);
                    }
                    if flags & NEXT == 0 {
                        break (half >> 32) as u16;
                    }
                };
                self.next = on(self.next, count);
                let (slot, wrap) = self.used;
                let marks = if wrap { AVAIL | USED } else { 0 } | WRITE;
                let used = u64::from(total) | u64::from(id) << 32 | u64::from(marks) << 48;
                AtomicU64::from_ptr(rest(slot)).store(used, Ordering::Release);
                self.used = on(self.used, count);
            }
            fence(Ordering::SeqCst);
            black_box(self.base.add(DRIVER_AREA as usize).cast::<u32>().read_volatile());
        }
        total
    }
}
