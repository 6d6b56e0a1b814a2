//! What a request costs in the queue: a chain of three descriptors is popped, completed, and its signal suppressed.
//!
//! Beside it, in the same run, the same work with `virtio-queue` bare (which checks less) and with a bare loop over the
//! ring (which checks nothing). Read the ratios; absolute times are the machine's.

use std::{hint::black_box, io, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use devisor::memory::Memory;
use devisor::virtio::{
    QueueIndex, features,
    queue::{Queue, QueueLayout, VirtioInterrupt},

};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const SIZE: u16 = 256;
const DESCRIPTOR_AREA: u64 = 0x1000;
const DRIVER_AREA: u64 = 0x3000;
const DEVICE_AREA: u64 = 0x4000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Silence;

impl VirtioInterrupt for Silence {
    fn used(&self, _queues: &[QueueIndex]) -> io::Result<()> {
        panic!("the driver asked not to be signalled");
    }

    fn config_changed(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) {}
}

/// Guest memory with one chain of three descriptors: 16 bytes to read, 4096 and 1 to write.
fn memory() -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("one MiB");
    let chain = [
        (0x10000u64, 16u32, NEXT, 1u16),
        (0x11000, 4096, NEXT | WRITE, 2),
        (0x12000, 1, WRITE, 0),
    ];
    for (index, (address, len, flags, next)) in (0u64..).zip(chain) {
        let at = DESCRIPTOR_AREA + 16 * index;
        memory.write_obj(address, GuestAddress(at)).expect("in memory");
        memory.write_obj(len, GuestAddress(at + 8)).expect("in memory");
        memory.write_obj(flags, GuestAddress(at + 12)).expect("in memory");
        memory.write_obj(next, GuestAddress(at + 14)).expect("in memory");
    }
    memory
}

/// The driver's part, the same for all three: it makes the chain available again and asks for a signal far ahead.
struct Driver {
    ring: *mut u16,
    available: u16,
}

impl Driver {
    fn new(memory: &GuestMemoryMmap) -> Self {
        let ring = memory
            .get_host_address(GuestAddress(DRIVER_AREA))
            .expect("in memory")
            .cast();
        Self { ring, available: 0 }
    }

    fn offer(&mut self) {
        self.available = self.available.wrapping_add(1);
        // SAFETY: the driver area is inside the mapping, which outlives the driver; nobody else accesses it now.
        unsafe {
            self.ring
                .add(2 + usize::from(SIZE))
                .write_volatile(self.available.wrapping_add(100));
            self.ring.add(1).write_volatile(self.available);
        }
    }
}

/// What a careless device would do: trust the ring.
struct BareLoop {
    descriptors: *const (u64, u32, u16, u16),
    avail: *const u16,
    used: *mut u32,
    next: u16,
}

impl BareLoop {
    fn new(memory: &GuestMemoryMmap) -> Self {
        let host = |address| memory.get_host_address(GuestAddress(address)).expect("in memory");
        Self {
            descriptors: host(DESCRIPTOR_AREA).cast(),
            avail: host(DRIVER_AREA).cast(),
            used: host(DEVICE_AREA).cast(),
            next: 0,
        }
    }

    fn serve(&mut self) -> u32 {
        use std::sync::atomic::{Ordering, fence};
        let mut total = 0;
        // SAFETY: this bench wrote the ring itself, all of it is inside the mapping, and one thread works on it.
        unsafe {
            while self.avail.add(1).read_volatile() != self.next {
                fence(Ordering::Acquire);
                let slot = usize::from(self.next % SIZE);
                let head = self.avail.add(2 + slot).read_volatile();
                let mut index = head;
                loop {
                    let descriptor = self.descriptors.cast::<u8>().add(16 * usize::from(index));
                    black_box(descriptor.cast::<u64>().read_volatile());
                    total += descriptor.add(8).cast::<u32>().read_volatile();
                    if descriptor.add(12).cast::<u16>().read_volatile() & NEXT == 0 {
                        break;
                    }
                    index = descriptor.add(14).cast::<u16>().read_volatile();
                }
                self.used.add(1 + 2 * slot).write_volatile(head.into());
                self.used.add(2 + 2 * slot).write_volatile(total);
                self.next = self.next.wrapping_add(1);
                fence(Ordering::Release);
                self.used.cast::<u16>().add(1).write_volatile(self.next);
                fence(Ordering::SeqCst);
                black_box(self.avail.add(2 + usize::from(SIZE)).read_volatile());
            }
        }
        total
    }
}

fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");

    let memory = std::sync::Arc::new(memory());
    let layout = QueueLayout {
        size: SIZE,
        descriptor_area: DESCRIPTOR_AREA,
        driver_area: DRIVER_AREA,
        device_area: DEVICE_AREA,
    };

    let (mut driver, mut bare) = (Driver::new(&memory), BareLoop::new(&memory));
    group.bench_function("bare loop over the ring", |bencher| {
        bencher.iter(|| {
            driver.offer();
            bare.serve()
        });
    });

    let mut driver = Driver::new(&memory);
    let mut ring = virtio_queue::Queue::new(SIZE).expect("a size");
    ring.set_desc_table_address(Some(DESCRIPTOR_AREA as u32), None);
    ring.set_avail_ring_address(Some(DRIVER_AREA as u32), None);
    ring.set_used_ring_address(Some(DEVICE_AREA as u32), None);
    ring.set_event_idx(true);
    ring.set_ready(true);
    group.bench_function("virtio-queue bare", |bencher| {
        bencher.iter(|| {
            driver.offer();
            let mut total = 0;
            while let Some(mut chain) = ring.iter(&*memory).expect("a valid ring").next() {
                let head = chain.head_index();
                total += chain.by_ref().map(|descriptor| descriptor.len()).sum::<u32>();
                ring.add_used(&*memory, head, 4097).expect("a valid ring");
                assert!(!ring.needs_notification(&*memory).expect("a valid ring"));
            }
            total
        });
    });

    let mut driver = Driver::new(&memory);
    let mut queue = Queue::new(
        QueueIndex(0),
        SIZE,
        layout,
        1<<35|1<<29|1<<28|1<<32,
        &Memory::new(memory.clone()),
        Arc::new(Silence),
    )
    .expect("a valid layout");
    group.bench_function("devisor", |bencher| {
        bencher.iter(|| {
            driver.offer();
            let mut total = 0;
            let mut round = queue.round().unwrap();
            while let Some(chain) = round.next().expect("a valid ring") {
                total += chain.readable_len() + chain.writable_len();
                chain.complete(4097).expect("a valid ring");
            }
            drop(round);
            total
        });
    });
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
