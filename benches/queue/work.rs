//! The same work for a bare loop over the ring, for `virtio-queue` bare, and for this crate's queue.
//!
//! The bare loop trusts the ring and checks nothing; `virtio-queue` checks no buffer. A driver in the same thread makes each chain
//! available just before it is looked for, and asks for a signal far ahead.
#![allow(dead_code, reason = "each bench uses its own part of this")]

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use devisor::{
    memory::Memory,
    virtio::{
        DeviceState, QueueIndex, VirtioDevice, features,
        iommu::{DomainState, EndpointId, Iommu, IommuEndpoint, IommuOptions, IommuState, MappingState},
        queue::{Chain, OwnedChain, Queue, QueueLayout, Silent},
    },
};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    bitmap::{AtomicBitmap, NewBitmap},
};

const SIZE: u16 = 256;
pub const DESCRIPTOR_AREA: u64 = 0x1000;
pub const DRIVER_AREA: u64 = 0x3000;
pub const DEVICE_AREA: u64 = 0x4000;
pub const TABLE: u64 = 0x6000;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// How many chains a call does.
pub const CHAINS: u16 = 64;
/// How many of them are published at once, in a batch.
pub const BATCH: u16 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A descriptor of 64 bytes to read.
    One,
    /// 16 bytes to read, 4096 and 1 to write.
    Three,
    /// The same in an indirect table.
    Indirect,
    /// 16 bytes to read and 512 to write, which are read and written.
    Moved,
}

impl Shape {
    pub fn chain(self) -> &'static [(u64, u32, u16)] {
        match self {
            Self::One => &[(0x10000, 64, 0)],
            Self::Three | Self::Indirect => &[(0x10000, 16, 0), (0x11000, 4096, WRITE), (0x12000, 1, WRITE)],
            Self::Moved => &[(0x10000, 16, 0), (0x11000, 512, WRITE)],
        }
    }
}

/// The driver's side of a ring.
pub trait Offers {
    /// Makes `n` chains available, and asks for a signal far ahead.
    fn offer(&mut self, n: u16);
    /// The device's side.
    fn queue(&self) -> Queue;
    fn shape(&self) -> Shape;
}

/// Guest memory with a ring of chains of this shape. Every head is a chain of its own.
pub struct Rig<B: NewBitmap = ()> {
    pub memory: Arc<GuestMemoryMmap<B>>,
    shape: Shape,
    avail: *mut u16,
    available: u16,
}

impl<B: NewBitmap + Send + Sync + 'static> Rig<B> {
    pub fn new(shape: Shape) -> Self {
        let memory = GuestMemoryMmap::<B>::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("one MiB");
        let put = |table: u64, index: u16, (address, len, flags): (u64, u32, u16), next: u16| {
            let words = [address, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48];
            let at = table + 16 * u64::from(index);
            memory.write_obj(words, GuestAddress(at)).expect("in memory");
        };
        let chain = shape.chain();
        let stride = if shape == Shape::Indirect {
            1
        } else {
            chain.len() as u16
        };
        for n in 0..CHAINS {
            let head = n * stride;
            let table = if shape == Shape::Indirect {
                TABLE
            } else {
                DESCRIPTOR_AREA
            };
            let first = if shape == Shape::Indirect { 0 } else { head };
            for (position, &(address, len, flags)) in (0..).zip(chain) {
                let last = usize::from(position) + 1 == chain.len();
                let index = first + position;
                let flags = flags | if last { 0 } else { NEXT };
                put(table, index, (address, len, flags), if last { 0 } else { index + 1 });
            }
            if shape == Shape::Indirect {
                put(DESCRIPTOR_AREA, head, (TABLE, 16 * chain.len() as u32, INDIRECT), 0);
            }
            for slot in (n..SIZE).step_by(CHAINS.into()) {
                let at = DRIVER_AREA + 4 + 2 * u64::from(slot);
                memory.write_obj(head, GuestAddress(at)).expect("in memory");
            }
        }
        let avail = memory.get_host_address(GuestAddress(DRIVER_AREA)).expect("in memory");
        Self {
            memory: Arc::new(memory),
            shape,
            avail: avail.cast(),
            available: 0,
        }
    }
}

impl<B: NewBitmap + Send + Sync + 'static> Offers for Rig<B> {
    fn offer(&mut self, n: u16) {
        self.available = self.available.wrapping_add(n);
        // SAFETY: the driver area is inside the mapping, which outlives the rig; nobody else accesses it now.
        unsafe {
            self.avail
                .add(2 + usize::from(SIZE))
                .write_volatile(self.available.wrapping_add(1000));
            fence(Ordering::Release);
            self.avail.add(1).write_volatile(self.available);
        }
    }

    fn queue(&self) -> Queue {
        let memory = Memory::new(Arc::clone(&self.memory));
        let layout = QueueLayout {
            size: SIZE,
            descriptor_area: DESCRIPTOR_AREA,
            driver_area: DRIVER_AREA,
            device_area: DEVICE_AREA,
        };
        Queue::new(QueueIndex(0), SIZE, layout, features::COMMON, &memory, Arc::new(Silent)).expect("a valid layout")
    }

    fn shape(&self) -> Shape {
        self.shape
    }
}

/// How memory is mapped for a device behind an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// All of it, to be read and written.
    AtOnce,
    /// The ring so, and each buffer by itself and for its direction, as Linux does it.
    Each,
}

/// An IOMMU with one endpoint, which sees all of a rig's memory where it is.
pub fn iommu<B: NewBitmap + Send + Sync + 'static>(rig: &Rig<B>, mapped: Mapped) -> Iommu {
    let options = IommuOptions {
        endpoints: vec![IommuEndpoint::new(EndpointId(1))],
        ..IommuOptions::default()
    };
    let mut iommu = Iommu::new(Arc::clone(&rig.memory), options).expect("valid options");
    let map = |first: u64, len: u64, flags| MappingState {
        first,
        last: first + len - 1,
        physical: first,
        flags,
    };
    let mappings = match mapped {
        Mapped::AtOnce => vec![map(0, 1 << 20, 3)],
        Mapped::Each => [map(0, 0x1_0000, 3)]
            .into_iter()
            .chain(rig.shape.chain().iter().map(|&(address, _, flags)| {
                let flags = if flags & WRITE != 0 { 2 } else { 1 };
                map(address, 0x1000, flags)
            }))
            .collect(),
    };
    let domain = DomainState {
        id: 1,
        bypass: false,
        endpoints: vec![1],
        mappings,
    };
    let state = IommuState {
        domains: vec![domain],
        ..IommuState::default()
    };
    iommu.restore(&DeviceState::Iommu(state)).expect("a valid state");
    iommu
}

/// The device's side of a split ring behind it.
pub fn translated(iommu: &Iommu) -> Queue {
    let memory = iommu.memory(EndpointId(1)).expect("an endpoint");
    let layout = QueueLayout {
        size: SIZE,
        descriptor_area: DESCRIPTOR_AREA,
        driver_area: DRIVER_AREA,
        device_area: DEVICE_AREA,
    };
    Queue::new(QueueIndex(0), SIZE, layout, features::COMMON, &memory, Arc::new(Silent)).expect("a valid layout")
}

/// A round of chains that are completed in it.
/// What a bare loop does with a buffer of [`Shape::Moved`]: reads the header, or writes what has its first byte.
///
/// # Safety
/// `data` leads to 16 or 512 bytes.
#[inline(always)]
pub unsafe fn move_bytes(data: *mut u8, flags: u16, header: &mut [u8; 16]) {
    // SAFETY: as the caller says.
    unsafe {
        match flags & WRITE {
            0 => header.as_mut_ptr().copy_from_nonoverlapping(data, 16),
            _ => data.copy_from_nonoverlapping(black_box([header[0]; 512]).as_ptr(), 512),
        }
    }
}

pub fn lent(rig: &mut impl Offers, queue: &mut Queue) -> u32 {
    // Apart, so that what is counted of the one is not the other's.
    match rig.shape() {
        Shape::Moved => answered(rig, queue, |chain| {
            let mut header = [0; 16];
            chain.reader().read(&mut header).expect("16 bytes");
            chain.writer().write(&black_box([header[0]; 512])).expect("512 bytes");
        }),
        _ => answered(rig, queue, |_| ()),
    }
}

#[inline(always)]
fn answered(rig: &mut impl Offers, queue: &mut Queue, answer: impl Fn(&Chain<'_, '_>)) -> u32 {
    let mut total = 0;
    let mut round = queue.round().expect("a valid ring");
    for _ in 0..CHAINS {
        rig.offer(1);
        let chain = round.next().expect("a valid ring").expect("a chain");
        answer(&chain);
        total += chain.readable_len() + chain.writable_len();
        chain.complete(1).expect("a valid ring");
    }
    total
}

/// A round of chains of which [`BATCH`] are published at once.
pub fn batch(rig: &mut impl Offers, queue: &mut Queue) -> u32 {
    let mut total = 0;
    let mut round = queue.round().expect("a valid ring");
    for _ in 0..CHAINS / BATCH {
        rig.offer(BATCH);
        for _ in 0..BATCH {
            let chain = round.next().expect("a valid ring").expect("a chain");
            total += chain.readable_len() + chain.writable_len();
            chain.put(1).expect("a valid ring");
        }
        round.publish().expect("a valid ring");
    }
    total
}

/// Chains that are taken and given to `complete`.
pub fn owned(rig: &mut impl Offers, queue: &mut Queue, mut complete: impl FnMut(OwnedChain)) {
    let mut round = queue.round().expect("a valid ring");
    for _ in 0..CHAINS {
        rig.offer(1);
        complete(round.next().expect("a valid ring").expect("a chain").take());
    }
}

/// `virtio-queue`, as it is.
pub struct Foreign(virtio_queue::Queue);

impl Foreign {
    pub fn new() -> Self {
        let mut ring = virtio_queue::Queue::new(SIZE).expect("a size");
        ring.set_desc_table_address(Some(DESCRIPTOR_AREA as u32), None);
        ring.set_avail_ring_address(Some(DRIVER_AREA as u32), None);
        ring.set_used_ring_address(Some(DEVICE_AREA as u32), None);
        ring.set_event_idx(true);
        ring.set_ready(true);
        Self(ring)
    }

    pub fn serve<B: NewBitmap + Send + Sync + 'static>(&mut self, rig: &mut Rig<B>) -> u32 {
        let mut total = 0;
        let memory = Arc::clone(&rig.memory);
        for _ in 0..CHAINS {
            rig.offer(1);
            let chain = self.0.iter(&*memory).expect("a valid ring").next().expect("a chain");
            let head = chain.head_index();
            if rig.shape == Shape::Moved {
                let mut header = [0; 16];
                for descriptor in chain {
                    if descriptor.is_write_only() {
                        let data = black_box([header[0]; 512]);
                        memory.write_slice(&data, descriptor.addr()).expect("in memory");
                    } else {
                        memory.read_slice(&mut header, descriptor.addr()).expect("in memory");
                    }
                    total += descriptor.len();
                }
            } else {
                total += chain.map(|descriptor| descriptor.len()).sum::<u32>();
            }
            self.0.add_used(&*memory, head, 1).expect("a valid ring");
            assert!(!self.0.needs_notification(&*memory).expect("a valid ring"));
        }
        total
    }
}

/// What a careless device would do: trust the ring.
pub struct BareLoop {
    base: *mut u8,
    next: u16,
}

impl BareLoop {
    pub fn new<B: NewBitmap>(rig: &Rig<B>) -> Self {
        let base = rig.memory.get_host_address(GuestAddress(0)).expect("in memory");
        Self { base, next: 0 }
    }

    /// `publish`: after how many chains.
    pub fn serve<B: NewBitmap + Send + Sync + 'static>(&mut self, rig: &mut Rig<B>, publish: u16) -> u32 {
        let mut total = 0;
        for _ in 0..CHAINS / publish {
            rig.offer(publish);
            total += self.round(rig.shape);
        }
        total
    }

    fn round(&mut self, shape: Shape) -> u32 {
        let mut total = 0;
        // SAFETY: the rig wrote the ring itself, all of it is inside the mapping, and one thread works on it.
        unsafe {
            let avail = self.base.add(DRIVER_AREA as usize).cast::<u16>();
            let used = self.base.add(DEVICE_AREA as usize).cast::<u32>();
            while avail.add(1).read_volatile() != self.next {
                fence(Ordering::Acquire);
                let slot = usize::from(self.next % SIZE);
                let head = avail.add(2 + slot).read_volatile();
                let mut table = DESCRIPTOR_AREA;
                let mut index = head;
                let mut header = [0u8; 16];
                loop {
                    let descriptor = self.base.add(table as usize + 16 * usize::from(index));
                    let [address, rest] = descriptor.cast::<[u64; 2]>().read_volatile();
                    let flags = (rest >> 32) as u16;
                    if flags & INDIRECT != 0 {
                        (table, index) = (address, 0);
                        continue;
                    }
                    black_box(address);
                    total += rest as u32;
                    if shape == Shape::Moved {
                        move_bytes(self.base.add(address as usize), flags, &mut header);
                    }
                    if flags & NEXT == 0 {
                        break;
                    }
                    index = (rest >> 48) as u16;
                }
                used.add(1 + 2 * slot).write_volatile(head.into());
                used.add(2 + 2 * slot).write_volatile(total);
                self.next = self.next.wrapping_add(1);
            }
            fence(Ordering::Release);
            used.cast::<u16>().add(1).write_volatile(self.next);
            fence(Ordering::SeqCst);
            black_box(avail.add(2 + usize::from(SIZE)).read_volatile());
        }
        total
    }
}

/// Marks of dirty pages.
pub type Tracked = AtomicBitmap;
