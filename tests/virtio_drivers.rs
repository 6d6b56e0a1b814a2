//! Guest drivers that others wrote, over virtio-mmio, woken by recorded interrupts.
#![cfg(feature = "recorder")]

#[path = "../examples/tour/guest.rs"]
mod guest;
#[path = "support/guest_cpu.rs"]
mod guest_cpu;
#[path = "support/guest_drivers.rs"]
mod guest_drivers;
#[path = "support/worker.rs"]
mod worker;

use std::{
    ops::Range,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use devisor::{
    backends::recorder::{self, Recorder},
    bus::{BusDevice, read_le, write_le},
    virtio::{
        QueueIndex, VirtioDevice, VirtioMmio, VirtioTransport,
        block::{Block, BlockOptions, MemoryStorage},
        entropy::{Entropy, SeededRandom, Source},
        features,
        queue::QueueCounters,
        transport::mmio::Line,
    },
};
use guest::{Disk, GuestError, Rng, Sectors};
use guest_cpu::{CallError, Cpu, RecorderCpu, barrier_before_sleep};
use guest_drivers::{GuestDma, MmioTransport, Sleeping, acknowledge, dma_in_use, give_dma_memory};
use virtio_drivers::{Error, device::common::Feature, queue::VirtQueue, transport::Transport};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use worker::{Bell, Worker};

/// How long a test waits for an interrupt that must come.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Edge,
    Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunsOn {
    Kick,
    Worker,
    /// A doorbell that nobody hears: the test runs the device.
    Nobody,
}

/// A device behind virtio-mmio, the CPU that takes its interrupts, and memory for its drivers.
struct Machine<D> {
    device: Arc<VirtioMmio<D>>,
    memory: GuestMemoryMmap,
    recorder: Recorder,
    worker: Option<Worker>,
    offer: u64,
    patience: Duration,
}

const LINE: &str = "device";
/// What the drivers have of the guest's memory.
const DMA: Range<u64> = 0x1000..1 << 20;

impl<D: VirtioDevice + 'static> Machine<D> {
    fn new(device: D, wire: Wire, runs_on: RunsOn) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        give_dma_memory(&memory, DMA);
        let recorder = Recorder::new();
        let line = match wire {
            Wire::Edge => Line::Edge(Arc::new(recorder.edge(LINE))),
            Wire::Level => Line::Level(Arc::new(recorder.level(LINE))),
        };
        let device = VirtioMmio::new(device, Arc::new(memory.clone()), line).unwrap();
        let bell = Bell::default();
        let device = match runs_on {
            RunsOn::Kick => Arc::new(device),
            RunsOn::Worker | RunsOn::Nobody => Arc::new(device.with_doorbell(bell.clone())),
        };
        let worker = (runs_on == RunsOn::Worker).then(|| {
            let device = Arc::clone(&device);
            Worker::spawn(&bell, move || device.run()).unwrap()
        });
        Self {
            device,
            memory,
            recorder,
            worker,
            offer: u64::MAX,
            patience: PATIENCE,
        }
    }

    /// Hides features from the driver.
    fn without(mut self, features: u64) -> Self {
        self.offer &= !features;
        self
    }

    fn registers(&self) -> Arc<dyn BusDevice> {
        self.registers_without(0)
    }

    /// The registers, with these features hidden too.
    fn registers_without(&self, features: u64) -> Arc<dyn BusDevice> {
        Arc::new(Offer {
            device: Arc::clone(&self.device) as _,
            mask: self.offer & !features,
            selected: AtomicU32::new(0),
        })
    }

    fn cpu(&self) -> Rc<dyn Cpu> {
        let device = Arc::clone(&self.device);
        let line = self.line();
        Rc::new(RecorderCpu::new(line, self.patience, move || {
            !acknowledge(&*device).is_empty()
        }))
    }

    fn line(&self) -> recorder::Line {
        self.recorder.line(LINE).unwrap()
    }

    /// How often the line was raised.
    fn raised(&self) -> u64 {
        self.line().counts().raised
    }

    fn counters(&self) -> QueueCounters {
        // A signal is counted when it has been delivered, and the driver may be faster.
        self.settle();
        self.device.queue_counters(QueueIndex(0)).unwrap()
    }

    /// Sleeps until the device has asked for the next kick. In a blocking call, a driver whose kicks are suppressed polls.
    fn settle(&self) {
        self.worker.iter().for_each(Worker::settle);
    }
}

/// Registers through which a driver is offered less than the device offers.
struct Offer {
    device: Arc<dyn BusDevice>,
    mask: u64,
    selected: AtomicU32,
}

impl BusDevice for Offer {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read(offset, data);
        if offset == 0x010 {
            let word = match self.selected.load(Ordering::SeqCst) {
                0 => self.mask,
                1 => self.mask >> 32,
                _ => 0,
            };
            write_le(data, read_le(data) & word);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0x014 {
            self.selected.store(read_le(data) as u32, Ordering::SeqCst);
        }
        self.device.write(offset, data);
    }
}

const SEED: u64 = 7;
const SECTOR: usize = 512;
const SECTORS: usize = 512;

/// A disk, and what is on it.
fn disk() -> (Block, Arc<MemoryStorage>) {
    let storage = Arc::new(MemoryStorage::new(SECTORS * SECTOR));
    let options = BlockOptions {
        id: "drivers".into(),
        ..BlockOptions::default()
    };
    (Block::new(Arc::clone(&storage), options).unwrap(), storage)
}

/// The whole disk in pieces, with random contents.
fn pieces(seed: u64, sectors: usize) -> Vec<Sectors> {
    let mut random = SeededRandom::new(seed);
    (0..SECTORS)
        .step_by(sectors)
        .map(|first| {
            let mut data = vec![0; sectors * SECTOR];
            random.fill(&mut data).unwrap();
            Sectors { first, data }
        })
        .collect()
}

fn blank(pieces: &[Sectors]) -> Vec<Sectors> {
    let blank = |piece: &Sectors| Sectors {
        first: piece.first,
        data: vec![0; piece.data.len()],
    };
    pieces.iter().map(blank).collect()
}

fn bytes(pieces: &[Sectors]) -> Vec<u8> {
    pieces.iter().flat_map(|piece| piece.data.clone()).collect()
}

/// What the seeded source gives in requests of `len` bytes.
fn entropy(len: usize, requests: usize) -> Vec<Vec<u8>> {
    let mut random = SeededRandom::new(SEED);
    let mut next = || {
        let mut bytes = vec![0; len];
        random.fill(&mut bytes).unwrap();
        bytes
    };
    (0..requests).map(|_| next()).collect()
}

/// The source is asked for so much at a time, and what a request leaves of that is dropped.
const CHUNK: usize = 512;

#[test]
fn a_disk_is_written_flushed_and_read_back_however_it_was_negotiated_and_wired() {
    for wire in [Wire::Edge, Wire::Level] {
        for runs_on in [RunsOn::Kick, RunsOn::Worker] {
            for hidden in [
                0,
                features::INDIRECT_DESC,
                features::EVENT_IDX,
                features::INDIRECT_DESC | features::EVENT_IDX,
            ] {
                let case = format!("{wire:?} {runs_on:?} without {hidden:#x}");
                let (disk, storage) = disk();
                let machine = Machine::new(disk, wire, runs_on).without(hidden);
                let mut disk = Disk::new(machine.registers(), machine.cpu()).unwrap();
                assert_eq!(disk.driver().capacity(), SECTORS as u64);
                // Without EVENT_IDX the driver does not kick a device that is looking already, and so would poll.
                machine.settle();
                assert_eq!(disk.id().unwrap(), "drivers", "{case}");

                let mut written = pieces(1, 4);
                disk.write(&mut written, 16).unwrap();
                machine.settle();
                disk.flush().unwrap();
                assert_eq!(storage.contents(), bytes(&written), "{case}");

                let mut read = blank(&written);
                disk.read(&mut read, 16).unwrap();
                assert!(read == written, "{case}");

                let QueueCounters {
                    requests,
                    bytes,
                    malformed,
                    malformed_by: _,
                    wanted,
                    suppressed,
                    delivered,
                    failed,
                } = machine.counters();
                assert_eq!(requests, disk.requests(), "{case}");
                assert_eq!((wanted + suppressed, failed, malformed), (requests, 0, 0), "{case}");
                assert_eq!(delivered, wanted, "one at a time: {case}");
                assert!(bytes > 2 * storage.contents().len() as u64, "{case}");
                assert!(machine.raised() > 0 && machine.raised() <= 2 * delivered, "{case}");
            }
        }
    }
}

#[test]
fn a_blocking_call_is_woken_by_one_interrupt() {
    for wire in [Wire::Edge, Wire::Level] {
        for runs_on in [RunsOn::Kick, RunsOn::Worker] {
            let machine = Machine::new(Entropy::seeded(SEED), wire, runs_on);
            let mut rng = Rng::new(machine.registers(), machine.cpu()).unwrap();
            for expected in entropy(CHUNK, 50) {
                assert_eq!(rng.request(CHUNK).unwrap(), expected);
                machine.settle();
            }
            assert_eq!((rng.requests(), machine.raised()), (50, 50), "{wire:?} {runs_on:?}");
        }
    }
}

#[test]
fn with_event_idx_a_batch_interrupts_once() {
    let (disk, _) = disk();
    let machine = Machine::new(disk, Wire::Edge, RunsOn::Kick);
    let mut disk = Disk::new(machine.registers(), machine.cpu()).unwrap();
    disk.write(&mut pieces(1, SECTORS / 16), 16).unwrap();
    assert_eq!(machine.raised(), 1);
    let QueueCounters {
        delivered, suppressed, ..
    } = machine.counters();
    assert_eq!((delivered, suppressed), (1, 15));
}

#[test]
fn without_event_idx_a_driver_that_disabled_interrupts_gets_none() {
    let (disk, _) = disk();
    let machine = Machine::new(disk, Wire::Edge, RunsOn::Kick).without(features::EVENT_IDX);
    let mut disk = Disk::new(machine.registers(), machine.cpu()).unwrap();

    disk.driver().disable_interrupts();
    disk.driver().flush().unwrap();
    assert_eq!(machine.raised(), 0);
    assert_eq!(machine.counters().suppressed, 1);

    disk.driver().enable_interrupts();
    disk.driver().flush().unwrap();
    assert_eq!(machine.raised(), 1);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let storage = Arc::new(MemoryStorage::from(vec![0x77; SECTORS * SECTOR]));
    let options = BlockOptions {
        read_only: true,
        ..BlockOptions::default()
    };
    let disk = Block::new(Arc::clone(&storage), options).unwrap();
    let machine = Machine::new(disk, Wire::Level, RunsOn::Worker);
    let mut disk = Disk::new(machine.registers(), machine.cpu()).unwrap();
    assert!(disk.driver().readonly());

    let error = disk.write(&mut pieces(1, 4), 8).unwrap_err();
    assert!(
        matches!(error, GuestError::Call(CallError::Driver(Error::IoError))),
        "{error}"
    );
    let mut read = blank(&pieces(1, 4));
    disk.read(&mut read, 8).unwrap();
    assert_eq!(bytes(&read), vec![0x77; SECTORS * SECTOR]);
    assert_eq!(storage.contents(), bytes(&read));
}

#[test]
fn a_request_past_the_end_fails_alone() {
    let (disk, storage) = disk();
    let machine = Machine::new(disk, Wire::Edge, RunsOn::Worker);
    let mut disk = Disk::new(machine.registers(), machine.cpu()).unwrap();
    let mut batch = pieces(1, 4);
    batch.insert(
        3,
        Sectors {
            first: SECTORS - 1,
            data: vec![0xee; 2 * SECTOR],
        },
    );
    let error = disk.write(&mut batch, 8).unwrap_err();
    assert!(
        matches!(error, GuestError::Call(CallError::Driver(Error::IoError))),
        "{error}"
    );
    batch.remove(3);
    assert_eq!(storage.contents(), bytes(&batch));
}

#[test]
fn a_driver_that_comes_after_another_finds_a_device_as_new() {
    for runs_on in [RunsOn::Kick, RunsOn::Worker] {
        let (disk, storage) = disk();
        let machine = Machine::new(disk, Wire::Level, runs_on);
        let cpu = machine.cpu();
        let mut written = vec![];
        for round in 0..5 {
            // Each negotiates something else.
            let registers = machine.registers_without(match round % 2 {
                0 => features::EVENT_IDX,
                _ => features::INDIRECT_DESC,
            });
            let mut disk = Disk::new(registers, Rc::clone(&cpu)).unwrap();
            if round > 0 {
                let mut read = blank(&written);
                disk.read(&mut read, 8).unwrap();
                assert!(read == written, "round {round}");
            }
            written = pieces(round, 8);
            disk.write(&mut written, 8).unwrap();
            assert_eq!(machine.counters().requests, disk.requests(), "counted from the start");
            drop(disk);
            assert_eq!(dma_in_use(), 0, "all memory came back");
            assert_eq!(machine.device.status(), 0);
            assert!(!machine.line().is_up(), "a reset lowers the line");
        }
        assert_eq!(storage.contents(), bytes(&written));
    }
}

#[test]
fn a_driver_may_go_while_its_requests_are_in_flight() {
    let (disk, _) = disk();
    let machine = Machine::new(disk, Wire::Level, RunsOn::Worker);
    for _ in 0..50 {
        give_dma_memory(&machine.memory, DMA);
        let mut queue = RawQueue::new(&machine);
        // Block requests that are nothing but a header and a status: whatever the device says to them, it does not
        // matter to a driver that has gone.
        let request = [0; 16];
        let mut status = [0; 1];
        for _ in 0..4 {
            queue.submit(&[&request], &mut status);
        }
        drop(queue);
        assert_eq!(machine.device.status(), 0);
        assert!(!machine.line().is_up());
    }
    give_dma_memory(&machine.memory, DMA);
    let mut disk = Disk::new(machine.registers(), machine.cpu()).unwrap();
    assert_eq!(disk.id().unwrap(), "drivers");
}

#[test]
fn entropy_requests_in_flight_are_answered_in_order() {
    for hidden in [0, features::EVENT_IDX] {
        for runs_on in [RunsOn::Kick, RunsOn::Worker] {
            let machine = Machine::new(Entropy::seeded(SEED), Wire::Edge, runs_on).without(hidden);
            let cpu = machine.cpu();
            let mut queue = RawQueue::new(&machine);
            let expected = entropy(CHUNK, 200);
            for expected in expected.chunks(8) {
                let mut buffers = vec![vec![0; CHUNK]; expected.len()];
                let tokens: Vec<_> = buffers.iter_mut().map(|buffer| queue.submit(&[], buffer)).collect();
                for (token, buffer) in tokens.into_iter().zip(&mut buffers) {
                    while !queue.can_pop() {
                        cpu.take_interrupt().unwrap();
                    }
                    assert_eq!(queue.pop(token, buffer), CHUNK as u32);
                }
                assert_eq!(buffers, expected);
            }
        }
    }
}

#[test]
fn interrupts_go_on_when_the_ring_indices_wrap() {
    let machine = Machine::new(Entropy::seeded(SEED), Wire::Edge, RunsOn::Kick);
    let mut queue = RawQueue::new(&machine);
    let mut byte = [0; 1];
    for request in 1..=(1 << 16) + 1000 {
        let token = queue.submit(&[], &mut byte);
        // The device ran in the kick, so the interrupt is there.
        assert_eq!(machine.raised(), request);
        assert!(!acknowledge(&*machine.device).is_empty());
        assert_eq!(queue.pop(token, &mut byte), 1);
    }
}

#[test]
fn an_interrupt_that_the_line_refused_comes_with_the_next() {
    let machine = Machine::new(Entropy::seeded(SEED), Wire::Edge, RunsOn::Kick);
    let cpu = machine.cpu();
    let mut queue = RawQueue::new(&machine);
    let expected = entropy(CHUNK, 2);

    // The round tries once more at its end.
    machine.line().fail_always();
    let mut first = [0; CHUNK];
    let first_token = queue.submit(&[], &mut first);
    assert_eq!((machine.raised(), machine.device.line_failures()), (0, 2));
    machine.line().heal();

    let mut second = [0; CHUNK];
    let second_token = queue.submit(&[], &mut second);
    cpu.take_interrupt().unwrap();
    queue.pop(first_token, &mut first);
    queue.pop(second_token, &mut second);
    assert_eq!([&first[..], &second[..]], [&expected[0][..], &expected[1][..]]);
}

#[test]
fn an_interrupt_that_is_lost_is_an_error_and_no_hang() {
    let mut machine = Machine::new(Entropy::seeded(SEED), Wire::Edge, RunsOn::Kick);
    machine.patience = Duration::from_millis(50);
    let mut rng = Rng::new(machine.registers(), machine.cpu()).unwrap();
    machine.line().fail_always();
    let error = rng.request(3).unwrap_err();
    assert!(matches!(error, GuestError::Call(CallError::NotWoken(_))), "{error}");
    assert!(
        error.to_string().contains("failed as told"),
        "the timeline is in it: {error}"
    );
}

#[test]
fn a_call_that_polled_is_an_error() {
    let machine = Machine::new(disk().0, Wire::Edge, RunsOn::Kick);
    let mut disk = Disk::new(machine.registers_without(1 << 9), machine.cpu()).unwrap();
    // Without VIRTIO_BLK_F_FLUSH the driver has nothing to ask the device for.
    let error = disk.flush().unwrap_err();
    assert!(matches!(error, GuestError::Call(CallError::Polled)), "{error}");
}

#[test]
fn a_request_that_the_device_finds_before_the_driver_asks_for_kicks_needs_none() {
    let machine = Machine::new(Entropy::seeded(SEED), Wire::Edge, RunsOn::Nobody);
    let mut queue = RawQueue::new(&machine);
    let sleeper = queue.transport.sleeper();
    let mut byte = [0; 1];
    let found = sleeper.sleeping(&machine.cpu(), || {
        let token = queue.add(&[], &mut byte);
        // The look that is due since DRIVER_OK.
        machine.device.run();
        queue.kick();
        Ok(queue.pop(token, &mut byte))
    });
    assert_eq!(found.unwrap(), 1);
}

#[test]
fn a_driver_that_does_not_kick_although_it_is_asked_to_has_polled() {
    let machine = Machine::new(Entropy::seeded(SEED), Wire::Edge, RunsOn::Nobody);
    let mut queue = RawQueue::new(&machine);
    machine.device.run();
    let sleeper = queue.transport.sleeper();
    let polled = sleeper.sleeping(&machine.cpu(), || Ok(queue.add(&[], &mut [0; 1])));
    assert!(matches!(polled, Err(CallError::Polled)), "{polled:?}");
}

/// A queue of the drivers' without a driver on top, for what their interface cannot express.
struct RawQueue {
    // In this order: the transport resets the device before the queue gives its memory back.
    transport: MmioTransport,
    queue: VirtQueue<GuestDma, 8>,
}

impl RawQueue {
    fn new<D: VirtioDevice + 'static>(machine: &Machine<D>) -> Self {
        let mut transport = MmioTransport::new(machine.registers()).unwrap();
        let wanted = Feature::VERSION_1 | Feature::RING_INDIRECT_DESC | Feature::RING_EVENT_IDX;
        let agreed = transport.begin_init(wanted);
        let indirect = agreed.contains(Feature::RING_INDIRECT_DESC);
        let event_idx = agreed.contains(Feature::RING_EVENT_IDX);
        let queue = VirtQueue::new(&mut transport, 0, indirect, event_idx).unwrap();
        transport.finish_init();
        Self { transport, queue }
    }

    /// Puts in a request that ends in `output`, and kicks.
    fn submit(&mut self, inputs: &[&[u8]], output: &mut [u8]) -> u16 {
        let token = self.add(inputs, output);
        self.kick();
        token
    }

    fn add(&mut self, inputs: &[&[u8]], output: &mut [u8]) -> u16 {
        // SAFETY: `GuestDma` bounces, so the device does not know the buffers; who calls `pop` gives the same again.
        unsafe { self.queue.add(inputs, &mut [output]) }.unwrap()
    }

    /// Kicks, if the device asks for that.
    fn kick(&mut self) {
        if self.queue.should_notify() {
            self.transport.notify(0);
        }
    }

    fn can_pop(&self) -> bool {
        barrier_before_sleep();
        self.queue.can_pop()
    }

    /// Takes back a request that had no `inputs`. Returns how much of `output` the device wrote.
    fn pop(&mut self, token: u16, output: &mut [u8]) -> u32 {
        // SAFETY: the tests give the buffer of `submit` back.
        unsafe { self.queue.pop_used(token, &[], &mut [output]) }.unwrap()
    }
}
