//! What queues cost each other: nothing, if the ratios are one.
//!
//! - Two queues of one device on two threads, beside two devices on two threads.
//! - A read of the configuration space while all queues are busy (with backends that sleep), beside one while they are idle.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    virtio::{
        DeviceId, Fault, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio, features, transport::mmio::Line,
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const SIZE: u16 = 256;
const QUEUES: u16 = 4;
const QUEUE_NOTIFY: u64 = 0x50;

/// Answers each request at once, or after a while.
#[derive(Clone, Copy)]
struct Answers(Option<Duration>);

impl VirtioDevice for Answers {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE; QUEUES as usize]
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(*self)
    }
}

impl QueueHandler for Answers {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        Ok(round.each(|chain| {
            if let Some(time) = self.0 {
                thread::sleep(time);
            }
            Ok(chain.writable_len())
        })?)
    }
}

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("two MiB"))
}

/// A device whose driver is ready, in the memory of its machine: a queue each 64 KiB, all of its heads a buffer of a byte.
struct Machine {
    first: u32,
    mmio: VirtioMmio<Answers>,
    memory: Arc<GuestMemoryMmap>,
}

impl Machine {
    /// Its queues begin at `first`.
    fn new(device: Answers, memory: &Arc<GuestMemoryMmap>, first: u32) -> Self {
        let memory = Arc::clone(memory);
        let line = Line::Edge(Arc::new(NoInterrupt));
        let mmio = VirtioMmio::new(device, Arc::clone(&memory), line).expect("a device");
        let machine = Self { first, mmio, memory };
        let accepted = features::VERSION_1 | features::EVENT_IDX;
        for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 0), (0x20, accepted as u32), (0x24, 1)] {
            machine.write(register, value);
        }
        machine.write(0x20, (accepted >> 32) as u32);
        machine.write(0x70, 11);
        for queue in 0..QUEUES {
            let base = first + 0x10000 * u32::from(queue);
            let descriptor = [u64::from(base) + 0x8000, 1 | 2 << 32];
            machine
                .memory
                .write_obj(descriptor, GuestAddress(base.into()))
                .expect("in memory");
            for (register, value) in [
                (0x30, queue.into()),
                (0x38, SIZE.into()),
                (0x80, base),
                (0x90, base + 0x2000),
            ] {
                machine.write(register, value);
            }
            machine.write(0xa0, base + 0x4000);
            machine.write(0x44, 1);
        }
        machine.write(0x70, 15);
        machine
    }

    fn write(&self, register: u64, value: u32) {
        self.mmio.write(register, &value.to_le_bytes());
    }

    /// A request of queue `queue`, and its kick. No signal is wanted.
    fn request(&self, queue: u16, idx: u16) {
        let base = u64::from(self.first) + 0x10000 * u64::from(queue);
        let driver = self
            .memory
            .get_host_address(GuestAddress(base + 0x2000))
            .expect("in memory");
        // SAFETY: the driver area is inside the mapping, which outlives this; one thread drives a queue.
        unsafe {
            driver
                .cast::<u16>()
                .add(2 + usize::from(SIZE))
                .write_volatile(idx.wrapping_add(1000));
            std::sync::atomic::fence(SeqCst);
            driver.cast::<u16>().add(1).write_volatile(idx);
        }
        self.write(QUEUE_NOTIFY, queue.into());
    }
}

/// The time that two threads take for so many requests each.
fn two_threads(requests: u64, each: [(&Machine, u16); 2], idx: &mut u16) -> Duration {
    let first = *idx;
    *idx = first.wrapping_add(requests as u16);
    let begun = Instant::now();
    thread::scope(|scope| {
        for (machine, queue) in each {
            scope.spawn(move || (1..=requests).for_each(|n| machine.request(queue, first.wrapping_add(n as u16))));
        }
    });
    begun.elapsed()
}

fn apart(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("two threads, a request each");
    let memory = memory();
    let one = Machine::new(Answers(None), &memory, 0x1_0000);
    let other = Machine::new(Answers(None), &memory, 0x10_0000);
    let mut idx = 0;
    group.bench_function("two devices", |bencher| {
        bencher.iter_custom(|times| two_threads(times, [(&one, 0), (&other, 0)], &mut idx));
    });
    let machine = Machine::new(Answers(None), &self::memory(), 0x1_0000);
    let mut idx = 0;
    group.bench_function("two queues of one device", |bencher| {
        bencher.iter_custom(|times| two_threads(times, [(&machine, 0), (&machine, 1)], &mut idx));
    });
    group.finish();

    let mut group = criterion.benchmark_group("configuration read");
    let machine = Machine::new(Answers(Some(Duration::from_millis(1))), &self::memory(), 0x1_0000);
    let read = || {
        let mut data = [0; 8];
        machine.mmio.read(0x100, black_box(&mut data));
        data
    };
    group.bench_function("queues idle", |bencher| bencher.iter(read));
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        for queue in 0..QUEUES {
            let (machine, busy) = (&machine, &busy);
            scope.spawn(move || {
                for n in 1.. {
                    if !busy.load(SeqCst) {
                        break;
                    }
                    machine.request(queue, n);
                }
            });
        }
        group.bench_function("queues busy", |bencher| bencher.iter(read));
        busy.store(false, SeqCst);
    });
    group.finish();
}

criterion_group!(benches, apart);
criterion_main!(benches);
