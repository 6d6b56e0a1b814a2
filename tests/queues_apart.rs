//! Queues that run apart: what one queue, one vCPU or one slow backend costs the others, which is nothing.

#[path = "virtio_mmio/driver.rs"]
#[allow(dead_code, reason = "the driver of another test")]
mod driver;
#[path = "support/late.rs"]
mod late;
#[path = "support/rest.rs"]
mod rest;
#[path = "support/ring.rs"]
mod ring;

use std::{
    io,
    sync::{
        Arc, Barrier, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use devisor::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, NoInterrupt},
    pci::{DeviceFunction, NoMessages, RootBus},
    virtio::{
        DeviceId, Fault, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio, VirtioPci, VirtioTransport,
        block::{Block, BlockOptions, MemoryStorage, Storage},
        entropy::Entropy,
        features,
        transport::SavedDevice,
    },
};
use driver::{CONFIG, DEVICE_ID, Driver, QUEUE_NOTIFY, QUEUE_SEL, SIZE, STATUS, silent};
use late::{Late, Stopped};
use ring::{Ring, memory, readable, writable};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

/// Long enough for whatever is to come; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where so many requests have to be under way at once before any goes on.
struct Meeting {
    of: u32,
    here: Mutex<u32>,
    all: Condvar,
}

impl Meeting {
    fn new(of: u32) -> Arc<Self> {
        Arc::new(Self {
            of,
            here: Mutex::new(0),
            all: Condvar::new(),
        })
    }

    /// Whether the others came too.
    fn attend(&self) -> bool {
        let mut here = self.here.lock().unwrap();
        *here += 1;
        self.all.notify_all();
        let last = here.next_multiple_of(self.of);
        let waited = self.all.wait_timeout_while(here, PATIENCE, |here| *here < last);
        !waited.unwrap().1.timed_out()
    }
}

/// Holds each request until as many are under way as there are queues.
struct Together(Arc<Meeting>);

impl VirtioDevice for Together {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Together(Arc::clone(&self.0)))
    }
}

impl QueueHandler for Together {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        Ok(round.each(|_| Ok(self.0.attend().into()))?)
    }
}

fn two_queues<D: VirtioDevice + 'static>(device: D) -> (Driver<D>, [Ring; 2]) {
    let driver = Driver::with(device, silent());
    driver.negotiate(features::COMMON & !features::EVENT_IDX);
    let rings = [driver.set_up_queue(0), driver.set_up_queue(1)];
    driver.go();
    (driver, rings)
}

#[test]
fn two_queues_that_are_kicked_from_two_threads_are_served_at_once() {
    let (driver, mut rings) = two_queues(Together(Meeting::new(2)));
    rings
        .iter_mut()
        .for_each(|ring| _ = ring.request(&[writable(0x8000, 1)]));
    thread::scope(|scope| {
        for queue in 0..2 {
            let driver = &driver;
            scope.spawn(move || driver.write(QUEUE_NOTIFY, queue));
        }
    });
    rings
        .iter_mut()
        .for_each(|ring| assert_eq!(ring.used(), [(0, 1)], "one after the other"));
}

#[test]
fn a_kick_returns_after_its_own_queues_round_whatever_another_vcpu_does() {
    let (driver, [mut mine, mut theirs]) = two_queues(Together(Meeting::new(1)));
    let (go_on, begun) = (AtomicBool::new(true), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Keeps its queue busy for as long as it may.
            for n in 0.. {
                theirs.request(&[readable(0x8000, 1)]);
                driver.write(QUEUE_NOTIFY, 1);
                if n == 3 {
                    begun.wait();
                }
                if !go_on.load(SeqCst) {
                    break;
                }
            }
        });
        begun.wait();
        for _ in 0..100 {
            (0..4).for_each(|_| _ = mine.request(&[readable(0x8000, 1)]));
            driver.write(QUEUE_NOTIFY, 0);
            assert_eq!(mine.used().len(), 4, "served by its own kick");
        }
        go_on.store(false, SeqCst);
    });
}

/// Its reads take until as many of them are under way as are to be.
struct Latent(MemoryStorage, Arc<Meeting>);

impl Storage for Latent {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        match self.1.attend() {
            true => self.0.read_at(offset, buffers),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.0.write_at(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A disk of `queues` queues whose reads take until `meeting`, and so many reads on each of them.
fn disk(queues: u16, meeting: &Arc<Meeting>, reads: u16) -> (Driver<Block>, Vec<Ring>) {
    let storage = Latent(MemoryStorage::new(1 << 20), Arc::clone(meeting));
    let options = BlockOptions {
        queues,
        queue_size: SIZE,
        ..BlockOptions::default()
    };
    let driver = Driver::with(Block::new(storage, options).unwrap(), silent());
    driver.negotiate(driver.mmio.with_device(|disk| disk.features()) | features::VERSION_1);
    let mut rings: Vec<_> = (0..queues).map(|queue| driver.set_up_queue(queue)).collect();
    driver.go();
    for (n, ring) in (0..).zip(&mut rings) {
        for _ in 0..reads {
            let at = 0x8000 + 0x1000 * n;
            ring.request(&[readable(0x7000, 16), writable(at, 512), writable(at + 512, 1)]);
        }
    }
    (driver, rings)
}

#[test]
fn a_disk_of_four_queues_over_a_storage_with_latency_has_a_read_of_each_under_way() {
    let (driver, rings) = disk(4, &Meeting::new(4), 2);
    thread::scope(|scope| {
        for queue in 0..4 {
            let driver = &driver;
            scope.spawn(move || driver.write(QUEUE_NOTIFY, queue));
        }
    });
    for (n, ring) in (0..).zip(&rings) {
        assert_eq!(ring.used_idx(), 2);
        assert_eq!(ring.get::<u8>(0x8000 + 0x1000 * n + 512), 0, "its status");
    }
}

#[test]
fn registers_configuration_counters_and_faults_answer_while_a_disk_is_read() {
    let meeting = Meeting::new(2);
    let (driver, rings) = disk(1, &meeting, 1);
    thread::scope(|scope| {
        let kick = scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
        // Until the read is under way. It ends when this thread comes to the meeting.
        while *meeting.here.lock().unwrap() == 0 {
            thread::yield_now();
        }
        let mut capacity = [0; 8];
        driver.mmio.read(CONFIG, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 2048);
        assert_eq!(driver.read(DEVICE_ID), 2);
        driver.write(QUEUE_SEL, 0);
        assert!(driver.mmio.queue_counters(QueueIndex(0)).is_some());
        assert!(driver.mmio.fault().is_none());
        assert_eq!(driver.mmio.with_device(|disk| disk.capacity()), 2048);
        assert!(!kick.is_finished());
        assert!(meeting.attend());
    });
    assert_eq!(rings[0].used_idx(), 1);
}

#[test]
fn a_reset_while_a_disk_is_read_returns_when_that_has_ended() {
    let meeting = Meeting::new(2);
    let (driver, rings) = disk(1, &meeting, 1);
    thread::scope(|scope| {
        scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
        while *meeting.here.lock().unwrap() == 0 {
            thread::yield_now();
        }
        let reset = scope.spawn(|| driver.write(STATUS, 0));
        thread::yield_now();
        assert!(!reset.is_finished());
        assert!(meeting.attend());
        reset.join().unwrap();
        let used = rings[0].used_idx();
        driver.memory.write_obj(u64::MAX, GuestAddress(0x8000)).unwrap();
        assert_eq!((driver.status(), used), (0, 1), "the read ended before it");
        assert_eq!((rings[0].used_idx(), rings[0].get::<u64>(0x8000)), (used, u64::MAX));
    });
}

#[test]
fn a_backend_that_never_answers_is_seen_by_the_embedder_and_can_be_cancelled() {
    let device = Late::new(&[SIZE], Stopped::GoesOn);
    let held = device.held();
    let driver = Driver::with(device, silent());
    driver.negotiate(features::COMMON);
    let mut ring = driver.set_up_queue(0);
    driver.go();
    ring.request(&[writable(0x8000, 1)]);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.pause();
    assert!(!driver.mmio.wait_until_still(Some(Duration::from_millis(10))));
    assert_eq!(driver.mmio.waiting(), [(QueueIndex(0), 2)]);
    let before = driver.mmio.waiting_for().expect("it is not still");
    assert!(driver.mmio.waiting_for() >= Some(before));
    let refused = driver.mmio.save().expect_err("requests are under way");
    assert_eq!(refused.0, [(QueueIndex(0), 2)]);
    let told = Arc::new(AtomicU32::new(0));
    driver.mmio.when_still({
        let told = Arc::clone(&told);
        Box::new(move || _ = told.fetch_add(1, SeqCst))
    });
    // The backend does nothing of its own accord, and ends its requests when it is asked to.
    driver.mmio.cancel();
    assert_eq!(held.count(), 2);
    held.obey(true);
    driver.mmio.cancel();
    assert!(told.load(SeqCst) > 0);
    assert_eq!(driver.mmio.waiting_for(), None);
    assert!(driver.mmio.is_still() && driver.mmio.waiting().is_empty());
}

/// Unlike devices behind unlike transports, in one list.
fn machine(memory: &Arc<GuestMemoryMmap>, seed: u64) -> (Vec<Arc<dyn VirtioTransport>>, Arc<RootBus>) {
    let wires = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>);
    let bus = RootBus::new(wires, Arc::new(NoMessages));
    let slot = bus.slot(DeviceFunction::new(1, 0).unwrap()).unwrap();
    let disk = Block::new(MemoryStorage::new(1 << 20), BlockOptions::default()).unwrap();
    let boxed: Box<dyn VirtioDevice> = Box::new(Entropy::seeded(seed));
    let devices: Vec<Arc<dyn VirtioTransport>> = vec![
        Arc::new(VirtioMmio::new(boxed, Arc::clone(memory), silent()).unwrap()),
        Arc::new(VirtioPci::new(disk, Arc::clone(memory), slot).unwrap()),
        Arc::new(VirtioMmio::new(Entropy::seeded(seed + 1), Arc::clone(memory), silent()).unwrap()),
    ];
    (devices, Arc::new(bus))
}

#[test]
fn unlike_devices_behind_unlike_transports_are_paused_saved_restored_and_resumed_in_one_loop() {
    let memory = memory();
    let (devices, _bus) = machine(&memory, 7);
    devices.iter().for_each(|device| device.pause());
    assert!(devices.iter().all(|device| device.wait_until_still(None)));
    let states: Vec<SavedDevice> = devices.iter().map(|device| device.save().unwrap()).collect();
    let (others, _bus) = machine(&memory, 100);
    for (device, state) in others.iter().zip(&states) {
        device.restore(state).unwrap();
    }
    let again: Vec<_> = others.iter().map(|device| device.save().unwrap()).collect();
    assert_eq!(states, again);
    others.iter().for_each(|device| device.resume());
    let wrong = others[0].restore(&states[1]).expect_err("it is of another transport");
    assert_eq!(
        wrong.to_string(),
        "the state is of another transport: virtio-mmio's is needed"
    );
}
