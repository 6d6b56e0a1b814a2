//! The register file of virtio-mmio and the status machine behind it.

#[path = "support/ring.rs"]
mod ring;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use devisor::{
    bus::{BusDevice, read_le},
    interrupt::{LevelInterrupt, NoInterrupt, from_fn, level_from_fn},
    virtio::{
        DeviceId, QueueError, QueueIndex, Queues, Round, SharedMemoryRegion, VirtioDevice, VirtioMmio,
        device::read_config_bytes,
        features,
        transport::{
            RestoreError, TransportError, TransportState,
            mmio::{Line, VirtioMmioState},
            status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK},
        },
    },
};
use proptest::prelude::*;
use ring::{Ring, memory, readable, writable};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap};

const MAGIC_VALUE: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const SHM_SEL: u64 = 0x0ac;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_LEN_HIGH: u64 = 0x0b4;
const SHM_BASE_LOW: u64 = 0x0b8;
const SHM_BASE_HIGH: u64 = 0x0bc;
const QUEUE_RESET: u64 = 0x0c0;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

const SIZE: u16 = 8;
/// A feature of the test device, and one that it refuses to be without the first.
const FEATURE: u64 = 1 << 0;
const NEEDS_FEATURE: u64 = 1 << 1;
const ALL: u64 = features::COMMON | FEATURE;

/// Two queues, six bytes of configuration space (a MAC address), one shared memory region. Fills what is writable.
#[derive(Default)]
struct Probe {
    mac: [u8; 6],
    activated: Vec<u64>,
    resets: u32,
    processed: u32,
    written: Vec<(u64, Vec<u8>)>,
    negotiated: Vec<u64>,
    stopped: Vec<QueueIndex>,
}

impl<M: GuestMemory> VirtioDevice<M> for Probe {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn features(&self) -> u64 {
        FEATURE | NEEDS_FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, 2 * SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.mac, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.written.push((offset, data.to_vec()));
    }

    fn shared_memory(&self, id: u8) -> Option<SharedMemoryRegion> {
        (id == 1).then_some(SharedMemoryRegion {
            base: 0x12_3456_7000,
            len: 0x3_0000_1000,
        })
    }

    fn accepts(&self, features: u64) -> bool {
        features & NEEDS_FEATURE == 0 || features & FEATURE != 0
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated.push(features);
    }

    fn activate(&mut self, features: u64) {
        self.activated.push(features);
    }

    fn queue_stopped(&mut self, index: QueueIndex) {
        self.stopped.push(index);
    }

    fn process(&mut self, index: QueueIndex, queues: &mut Queues<'_, M>) -> Result<Round, QueueError> {
        self.processed += 1;
        let Some((queue, memory)) = queues.get(index) else {
            return Ok(Round::Drained);
        };
        queue.serve(memory, |chain, memory| {
            chain.writer(memory).fill(0xa5, chain.writable_len())?;
            Ok(chain.writable_len())
        })
    }

    fn reset(&mut self) {
        self.resets += 1;
    }
}

type Mmio<A = Arc<GuestMemoryMmap>> = VirtioMmio<A, Probe>;

/// A driver at the registers.
struct Driver<A = Arc<GuestMemoryMmap>> {
    mmio: Arc<Mmio<A>>,
    memory: Arc<GuestMemoryMmap>,
}

/// A line that counts, and that can be told to refuse.
#[derive(Clone, Default)]
struct Counted {
    raised: Arc<AtomicU32>,
    refuse: Arc<AtomicBool>,
}

impl Counted {
    fn edge(&self) -> Line {
        let Self { raised, refuse } = self.clone();
        Line::Edge(Arc::new(from_fn(move || {
            if refuse.load(Ordering::SeqCst) {
                return Err(io::Error::other("refused"));
            }
            raised.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })))
    }

    fn count(&self) -> u32 {
        self.raised.load(Ordering::SeqCst)
    }
}

/// A level line and every level that it was told.
fn level() -> (Line, Arc<Mutex<Vec<bool>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let line = level_from_fn(move |up| {
        log.lock().unwrap().push(up);
        Ok(())
    });
    (Line::Level(Arc::new(line) as Arc<dyn LevelInterrupt>), heard)
}

impl Driver {
    fn new(line: Line) -> Self {
        let memory = memory();
        let mmio = VirtioMmio::new(Probe::default(), Arc::clone(&memory), line).expect("a valid device");
        Self {
            mmio: Arc::new(mmio),
            memory,
        }
    }

    fn silent() -> Self {
        Self::new(Line::Edge(Arc::new(NoInterrupt)))
    }
}

impl<A> Driver<A>
where
    A: GuestAddressSpace<M = GuestMemoryMmap> + Send + Sync,
{
    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        self.mmio.write(register, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.read(STATUS)
    }

    fn accept(&self, features: u64) {
        for sel in 0..2 {
            self.write(DRIVER_FEATURES_SEL, sel);
            self.write(DRIVER_FEATURES, (features >> (32 * sel)) as u32);
        }
    }

    /// Up to FEATURES_OK.
    fn negotiate(&self, features: u64) {
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        self.accept(features);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn write_layout(&self, ring: &Ring) {
        self.write(QUEUE_SIZE, ring.layout.size.into());
        for (low, address) in [
            (QUEUE_DESC_LOW, ring.layout.descriptor_area),
            (QUEUE_DRIVER_LOW, ring.layout.driver_area),
            (QUEUE_DEVICE_LOW, ring.layout.device_area),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
    }

    fn set_up_queue(&self, index: u16) -> Ring {
        let ring = Ring::new(&self.memory, 0x10000 * (1 + u64::from(index)), SIZE);
        self.write(QUEUE_SEL, index.into());
        self.write_layout(&ring);
        self.write(QUEUE_READY, 1);
        ring
    }

    fn go(&self) {
        self.write(STATUS, self.status() | DRIVER_OK);
    }

    /// All the way, with queue 0.
    fn start(&self) -> Ring {
        self.negotiate(ALL & !features::EVENT_IDX);
        let ring = self.set_up_queue(0);
        self.go();
        ring
    }
}

// Identification and configuration space.

#[test]
fn the_device_says_what_it_is() {
    let driver = Driver::silent();
    assert_eq!(driver.read(MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(VERSION), 2);
    assert_eq!(driver.read(DEVICE_ID), 42);
    let mut offered = 0;
    for sel in 0..4 {
        driver.write(DEVICE_FEATURES_SEL, sel);
        offered |= u128::from(driver.read(DEVICE_FEATURES)) << (32 * sel);
    }
    assert_eq!(offered, u128::from(features::COMMON | FEATURE | NEEDS_FEATURE));
}

#[test]
fn configuration_space_answers_every_width_and_offset() {
    let driver = Driver::silent();
    driver.mmio.with_device(|probe| probe.mac = [1, 2, 3, 4, 5, 6]);
    for len in [1, 2, 4, 8, 3] {
        for offset in 0..12u64 {
            let mut data = vec![0xff; len];
            driver.mmio.read(CONFIG + offset, &mut data);
            let expected: Vec<_> = (offset..)
                .take(len)
                .map(|at| if at < 6 { at as u8 + 1 } else { 0 })
                .collect();
            assert_eq!(data, expected, "{len} bytes at {offset}");
        }
    }
    driver.mmio.write(CONFIG + 3, &[9]);
    driver.mmio.write(u64::MAX, &[9]);
    assert_eq!(driver.mmio.with_device(|probe| probe.written.len()), 2);
}

#[test]
fn a_torn_read_of_the_configuration_is_detectable() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    driver.start();
    let before = driver.read(CONFIG_GENERATION);
    driver.mmio.change_config(|probe| probe.mac[0] = 7);
    assert_ne!(driver.read(CONFIG_GENERATION), before);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert_eq!(counted.count(), 1);
}

#[test]
fn the_generation_moves_once_a_read_however_often_the_configuration_has_changed() {
    let driver = Driver::silent();
    driver.start();
    let mut last = driver.read(CONFIG_GENERATION);
    for changes in [1, 2, 256, 1000] {
        (0..changes).for_each(|_| driver.mmio.change_config(|probe| probe.mac[0] ^= 1));
        let state = driver.mmio.save();
        assert!(state.transport.config_changed);
        let restored = Driver::silent();
        restored.mmio.restore(&state).unwrap();
        for driver in [&driver, &restored] {
            assert_eq!(driver.read(CONFIG_GENERATION), last + 1, "{changes} changes");
            assert_eq!(driver.read(CONFIG_GENERATION), last + 1);
        }
        last += 1;
    }
    driver.mmio.write(CONFIG, &[9]);
    assert_eq!(driver.read(CONFIG_GENERATION), last + 1, "the driver's own write");
    let mut state = driver.mmio.save();
    (state.transport.config_generation, state.transport.config_changed) = (u32::MAX, true);
    let restored = Driver::silent();
    restored.mmio.restore(&state).unwrap();
    assert_eq!(restored.read(CONFIG_GENERATION), 0, "it wraps");
    assert!(!restored.mmio.save().transport.config_changed);
}

#[test]
fn a_configuration_change_before_the_driver_is_ready_is_silent_but_counted() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let before = driver.read(CONFIG_GENERATION);
    driver.mmio.change_config(|probe| probe.mac[0] = 7);
    assert_ne!(driver.read(CONFIG_GENERATION), before);
    assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (0, 0));
}

#[test]
fn a_configuration_change_while_the_driver_initialises_is_told_when_it_is_ready() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    driver.negotiate(ALL);
    // The driver has read the configuration by now, and only an interrupt would make it look again.
    driver.mmio.change_config(|probe| probe.mac[0] = 7);
    assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (0, 0));
    driver.go();
    assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (2, 1));
    driver.write(INTERRUPT_ACK, 2);

    driver.write(STATUS, 0);
    driver.mmio.change_config(|probe| probe.mac[0] = 8);
    driver.start();
    assert_eq!(counted.count(), 1, "one before the driver came is no news to it");
}

#[test]
fn shared_memory_regions_are_told_and_absent_ones_are_all_ones() {
    let driver = Driver::silent();
    let registers = [SHM_LEN_LOW, SHM_LEN_HIGH, SHM_BASE_LOW, SHM_BASE_HIGH];
    driver.write(SHM_SEL, 1);
    assert_eq!(
        registers.map(|register| driver.read(register)),
        [0x1000, 3, 0x3456_7000, 0x12]
    );
    for absent in [0, 2, 0x101, u32::MAX] {
        driver.write(SHM_SEL, absent);
        assert_eq!(registers.map(|register| driver.read(register)), [u32::MAX; 4]);
    }
}

#[test]
fn registers_answer_aligned_words_only() {
    let driver = Driver::silent();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 1), (0xfe, 4)] {
        let mut data = vec![0xff; len];
        driver.mmio.read(offset, &mut data);
        assert_eq!(read_le(&data), 0, "{len} bytes at {offset:#x}");
        driver.mmio.write(STATUS + offset % 4, &vec![1; len]);
    }
    assert_eq!(driver.status(), 0);
}

#[test]
fn write_only_registers_read_as_zero_and_read_only_ones_do_not_change() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    driver.set_up_queue(0);
    for register in (0..0x100).step_by(4) {
        let write_only = [
            DEVICE_FEATURES_SEL,
            DRIVER_FEATURES,
            DRIVER_FEATURES_SEL,
            QUEUE_SEL,
            QUEUE_SIZE,
            QUEUE_NOTIFY,
            INTERRUPT_ACK,
            SHM_SEL,
            0x80,
            0x84,
            0x90,
            0x94,
            0xa0,
            0xa4,
        ];
        if write_only.contains(&register) {
            assert_eq!(driver.read(register), 0, "{register:#x}");
        }
    }
    for register in [
        MAGIC_VALUE,
        VERSION,
        DEVICE_ID,
        QUEUE_SIZE_MAX,
        CONFIG_GENERATION,
        INTERRUPT_STATUS,
    ] {
        let before = driver.read(register);
        driver.write(register, !before);
        assert_eq!(driver.read(register), before, "{register:#x}");
    }
}

// The status machine.

#[test]
fn status_bits_come_in_the_order_of_the_specification() {
    let driver = Driver::silent();
    for early in [
        DRIVER,
        FEATURES_OK,
        DRIVER_OK,
        DRIVER | FEATURES_OK,
        DEVICE_NEEDS_RESET,
        16,
        32,
    ] {
        driver.write(STATUS, early);
        assert_eq!(driver.status(), 0, "{early:#x}");
    }
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    driver.accept(ALL);
    driver.write(STATUS, FEATURES_OK);
    assert_eq!(
        driver.status(),
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        "bits are added, none is taken away"
    );
    driver.write(STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_driver_that_has_failed_may_try_again_without_a_reset() {
    // As Linux does when it probes a driver again that was deferred, for its interrupt controller was not there yet: it
    // adds FAILED, and later DRIVER and what follows to what it reads, and does not look whether DRIVER_OK was taken.
    let driver = Driver::silent();
    let add = |bit| driver.write(STATUS, driver.status() | bit);
    driver.negotiate(ALL & !features::EVENT_IDX);
    add(FAILED);
    add(DRIVER);
    driver.accept(ALL & !features::EVENT_IDX);
    add(FEATURES_OK);
    let mut ring = driver.set_up_queue(0);
    add(DRIVER_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn features_ok_is_refused_for_what_was_not_offered_or_without_version_1() {
    for refused in [
        ALL | 1 << 20,
        ALL | 1 << 63,
        ALL & !features::VERSION_1,
        0,
        features::COMMON | NEEDS_FEATURE,
    ] {
        let driver = Driver::silent();
        driver.negotiate(refused);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "{refused:#x}");
        driver.accept(ALL);
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(driver.status() & FEATURES_OK, FEATURES_OK, "it may try again");
    }
    let driver = Driver::silent();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.accept(ALL);
    driver.write(DRIVER_FEATURES_SEL, 2);
    driver.write(DRIVER_FEATURES, 1);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(
        driver.status() & FEATURES_OK,
        0,
        "a feature in a word that does not exist"
    );
}

#[test]
fn features_are_frozen_by_features_ok_and_told_to_the_device() {
    let driver = Driver::silent();
    driver.accept(ALL);
    driver.negotiate(features::VERSION_1);
    driver.accept(ALL);
    driver.go();
    assert_eq!(
        driver.mmio.with_device(|probe| probe.activated.clone()),
        [features::VERSION_1]
    );
}

#[test]
fn needs_reset_is_cleared_by_reset_alone_and_comes_with_a_configuration_interrupt() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    ring.set_avail_idx(SIZE + 1);
    driver.write(QUEUE_NOTIFY, 0);
    let working = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(driver.status(), working | DEVICE_NEEDS_RESET);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert_eq!(counted.count(), 1);
    assert!(matches!(driver.mmio.fault(), Some(QueueError::AvailIndex { .. })));
    driver.write(STATUS, working);
    assert_eq!(driver.status(), working | DEVICE_NEEDS_RESET);

    // It is quiet from here on: no spinning, no second interrupt.
    let processed = driver.mmio.with_device(|probe| probe.processed);
    for _ in 0..10 {
        driver.write(QUEUE_NOTIFY, 0);
    }
    assert_eq!(driver.mmio.with_device(|probe| probe.processed), processed);
    assert_eq!(counted.count(), 1);

    driver.write(STATUS, 0);
    assert_eq!(driver.mmio.fault(), None);
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used(), [(0, 1)], "it works again");
}

#[test]
fn a_queue_that_cannot_be_breaks_its_device_at_driver_ok() {
    for (register, value) in [
        (QUEUE_SIZE, 3),
        (QUEUE_SIZE, 0x10008),
        (QUEUE_DESC_LOW, 8),
        (QUEUE_DEVICE_LOW + 4, 1),
    ] {
        let counted = Counted::default();
        let driver = Driver::new(counted.edge());
        driver.negotiate(ALL);
        driver.write(QUEUE_SEL, 0);
        driver.write_layout(&Ring::new(&driver.memory, 0x10000, SIZE));
        driver.write(register, value);
        driver.write(QUEUE_READY, 1);
        driver.go();
        assert_eq!(
            driver.status() & DEVICE_NEEDS_RESET,
            DEVICE_NEEDS_RESET,
            "{register:#x} = {value:#x}"
        );
        assert_eq!(counted.count(), 1);
    }
}

#[test]
fn reset_works_at_every_stage_and_clears_everything() {
    let (line, heard) = level();
    let driver = Driver::new(line);
    let cleared = |stage: &str| {
        driver.write(STATUS, 0);
        assert_eq!(driver.status(), 0, "{stage}");
        assert_eq!(driver.read(INTERRUPT_STATUS), 0, "{stage}");
        assert!(!heard.lock().unwrap().last().copied().unwrap_or(false), "{stage}");
        for queue in 0..2 {
            driver.write(QUEUE_SEL, queue);
            assert_eq!(driver.read(QUEUE_READY), 0, "{stage}");
        }
        // Accepted features are gone: FEATURES_OK has nothing to say yes to.
        driver.write(STATUS, ACKNOWLEDGE | DRIVER);
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "{stage}");
        driver.write(STATUS, 0);
    };
    cleared("power-on");
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.accept(ALL);
    cleared("negotiation");
    driver.negotiate(ALL);
    driver.set_up_queue(0);
    cleared("queue set-up");
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(*heard.lock().unwrap(), [true]);
    cleared("running, with an interrupt pending");
    // A kick now does nothing: the queue is gone.
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 1);
    driver.start();
    driver.mmio.change_config(|_| ());
    cleared("configuration change pending");
    let fill = || {
        driver.start();
        driver.mmio.change_config(|_| ());
        driver.write(SHM_SEL, 1);
        driver.write(QUEUE_SEL, 1);
    };
    fill();
    driver.write(STATUS, 0);
    let fresh = VirtioMmioState {
        // It counts on, so that a driver which reads across a reset sees it too.
        transport: TransportState {
            config_generation: driver.read(CONFIG_GENERATION),
            ..Driver::silent().mmio.save().transport
        },
        ..Driver::silent().mmio.save()
    };
    assert_eq!(driver.mmio.save(), fresh, "nothing of the driver is left");
    fill();
    driver.mmio.reset();
    let [by_driver, from_outside] = [fresh, driver.mmio.save()].map(|state| VirtioMmioState {
        transport: TransportState {
            config_generation: 0,
            config_changed: false,
            ..state.transport
        },
        ..state
    });
    assert_eq!(from_outside, by_driver);
    assert!(!heard.lock().unwrap().last().copied().unwrap());
}

// Queue registers.

#[test]
fn queues_that_are_not_there_have_no_size_and_take_nothing() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    for (queue, max) in [(0, SIZE), (1, 2 * SIZE), (2, 0), (0x1_0000, 0), (u32::MAX, 0)] {
        driver.write(QUEUE_SEL, queue);
        assert_eq!(driver.read(QUEUE_SIZE_MAX), u32::from(max), "queue {queue}");
        driver.write(QUEUE_SIZE, 4);
        driver.write(QUEUE_READY, 1);
        assert_eq!(driver.read(QUEUE_READY), u32::from(max != 0));
        driver.write(QUEUE_NOTIFY, queue);
    }
}

#[test]
fn low_and_high_halves_are_kept_apart() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    let ring = Ring::new(&driver.memory, 0x10000, SIZE);
    driver.write(QUEUE_SEL, 0);
    driver.write_layout(&ring);
    for low in [QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW] {
        driver.write(low + 4, 0xdead_beef);
    }
    let layout = driver.mmio.save().transport.setup[0].layout;
    assert_eq!(
        layout.descriptor_area,
        0xdead_beef_0000_0000 | ring.layout.descriptor_area
    );
    assert_eq!(layout.driver_area, 0xdead_beef_0000_0000 | ring.layout.driver_area);
    assert_eq!(layout.device_area, 0xdead_beef_0000_0000 | ring.layout.device_area);
}

#[test]
fn queue_registers_written_after_driver_ok_change_nothing() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    let before = driver.mmio.save();
    driver.write(QUEUE_SEL, 0);
    driver.write(QUEUE_SIZE, 2);
    driver.write(QUEUE_DESC_LOW, 0x7000);
    driver.write(QUEUE_READY, 1);
    driver.write(QUEUE_SEL, 1);
    driver.write_layout(&Ring::new(&driver.memory, 0x20000, SIZE));
    driver.write(QUEUE_READY, 1);
    driver.write(QUEUE_SEL, 0);
    assert_eq!(driver.mmio.save(), before);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used(), [(0, 1)]);
}

#[test]
fn a_ready_queue_is_frozen_and_one_before_features_ok_not_open_yet() {
    let driver = Driver::silent();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.set_up_queue(0);
    assert_eq!(driver.read(QUEUE_READY), 0);
    driver.negotiate(ALL);
    driver.set_up_queue(0);
    let before = driver.mmio.save();
    driver.write(QUEUE_SIZE, 2);
    driver.write(QUEUE_DRIVER_LOW, 0x4000);
    assert_eq!(driver.mmio.save(), before);
}

#[test]
fn a_queue_that_is_not_ready_is_not_touched() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    driver.write(QUEUE_READY, 0);
    assert_eq!(driver.read(QUEUE_READY), 0);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 0);
}

#[test]
fn a_queue_that_was_stopped_runs_again_once_it_is_enabled() {
    let stopped = |features| {
        let driver = Driver::silent();
        driver.negotiate(features);
        let mut ring = driver.set_up_queue(0);
        driver.go();
        ring.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
        driver.write(QUEUE_READY, 0);
        assert_eq!((driver.read(QUEUE_READY), ring.used().len()), (0, 1));
        driver
    };
    for features in [features::VERSION_1, ALL & !features::EVENT_IDX] {
        // Where it was, begun anew by its driver.
        let driver = stopped(features);
        let mut again = Ring::new(&driver.memory, 0x10000, SIZE);
        again.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_READY, 1);
        assert_eq!((driver.read(QUEUE_READY), again.used().len()), (1, 1), "looked at once");
        again.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(again.used().len(), 1);
        driver.write(QUEUE_SIZE, 2);
        assert_eq!(driver.mmio.save().transport.setup[0].layout.size, SIZE, "frozen again");

        // Elsewhere, and on another host.
        let driver = stopped(features);
        let state = driver.mmio.save();
        let mmio = VirtioMmio::new(
            Probe::default(),
            Arc::clone(&driver.memory),
            Line::Edge(Arc::new(NoInterrupt)),
        );
        let other = Driver {
            mmio: Arc::new(mmio.unwrap()),
            ..driver
        };
        other.mmio.restore(&state).unwrap();
        assert_eq!(other.mmio.save(), state);
        other.mmio.resume();
        let mut elsewhere = Ring::new(&other.memory, 0x30000, 4);
        other.write_layout(&elsewhere);
        elsewhere.request(&[writable(0x8000, 2)]);
        other.write(QUEUE_READY, 1);
        assert_eq!((other.read(QUEUE_READY), elsewhere.used()), (1, vec![(0, 2)]));
        assert_eq!(other.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }
}

#[test]
fn a_queue_that_was_not_enabled_at_driver_ok_reads_as_not_ready_for_good() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    driver.set_up_queue(0);
    driver.write(QUEUE_READY, 0);
    driver.go();
    for queue in [0, 1] {
        driver.write(QUEUE_SEL, queue);
        driver.write(QUEUE_READY, 0);
        driver.write(QUEUE_READY, 1);
        assert_eq!(driver.read(QUEUE_READY), 0);
    }
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

#[test]
fn a_queue_can_be_reset_by_itself_and_set_up_elsewhere() {
    let driver = Driver::silent();
    let mut first = driver.start();
    first.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.write(QUEUE_RESET, 1);
    assert_eq!((driver.read(QUEUE_RESET), driver.read(QUEUE_READY)), (0, 0));
    first.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(first.used().len(), 1, "the old ring is not looked at any more");

    let mut second = Ring::new(&driver.memory, 0x30000, 4);
    driver.write_layout(&second);
    second.request(&[writable(0x8000, 2)]);
    driver.write(QUEUE_READY, 1);
    assert_eq!(second.used(), [(0, 2)], "what was there before it was enabled is found");
    assert_eq!(driver.read(QUEUE_RESET), 0);
    driver.write(QUEUE_SIZE, 8);
    second.request(&[writable(0x8000, 2)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(second.used().len(), 1, "and it is frozen again");
}

#[test]
fn a_queue_reset_that_was_not_negotiated_does_nothing() {
    let driver = Driver::silent();
    driver.negotiate(ALL & !features::RING_RESET);
    driver.set_up_queue(0);
    driver.go();
    driver.write(QUEUE_RESET, 1);
    assert_eq!(driver.read(QUEUE_READY), 1);
}

/// A device at work, whose line calls `then` as it falls, without a lock: as a platform may that runs its handlers there.
fn reset_with(then: impl Fn(&Mmio) + Send + Sync + 'static) -> Driver {
    let slot: Arc<Mutex<Option<Arc<Mmio>>>> = Arc::default();
    let device = Arc::clone(&slot);
    let line = level_from_fn(move |up| {
        let mmio = device.lock().unwrap().take_if(|_| !up);
        mmio.iter().for_each(|mmio| then(mmio));
        Ok(())
    });
    let driver = Driver::new(Line::Level(Arc::new(line)));
    driver.start().request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    *slot.lock().unwrap() = Some(Arc::clone(&driver.mmio));
    driver.write(STATUS, 0);
    assert!(slot.lock().unwrap().is_none(), "the line fell");
    driver
}

#[test]
fn a_device_that_is_reset_is_not_called_again_by_a_late_kick() {
    let driver = reset_with(|mmio| {
        let before = mmio.with_device(|probe| (probe.resets, probe.processed));
        assert_eq!(before.0, 1);
        mmio.write(QUEUE_NOTIFY, &[0; 4]);
        assert_eq!(mmio.with_device(|probe| (probe.resets, probe.processed)), before);
    });
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_late_configuration_change_leaves_nothing_pending_on_a_device_that_is_reset() {
    let driver = reset_with(|mmio| mmio.change_config(|probe| probe.mac[0] = 7));
    assert_eq!((driver.status(), driver.read(INTERRUPT_STATUS)), (0, 0));
}

#[test]
fn registers_written_while_the_line_of_a_reset_device_falls_are_those_of_a_device_that_was_reset() {
    let driver = reset_with(|mmio| mmio.write(STATUS, &ACKNOWLEDGE.to_le_bytes()));
    assert_eq!(
        driver.status(),
        ACKNOWLEDGE,
        "and not taken back by the end of the reset"
    );
}

// Interrupts.

#[test]
fn a_used_buffer_sets_its_bit_before_the_line_is_raised() {
    let memory = memory();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let slot: Arc<Mutex<Option<Arc<Mmio>>>> = Arc::default();
    let (log, device) = (Arc::clone(&seen), Arc::clone(&slot));
    // The handler runs inside `trigger`, as on a platform that injects synchronously: it reads, acknowledges and
    // kicks again.
    let line = from_fn(move || {
        let mmio = device.lock().unwrap().clone().expect("it is set up");
        let mut status = [0; 4];
        mmio.read(INTERRUPT_STATUS, &mut status);
        log.lock().unwrap().push(u32::from_le_bytes(status));
        mmio.write(INTERRUPT_ACK, &status);
        mmio.write(QUEUE_NOTIFY, &[0; 4]);
        Ok(())
    });
    let mmio = VirtioMmio::new(Probe::default(), Arc::clone(&memory), Line::Edge(Arc::new(line))).unwrap();
    let driver = Driver {
        mmio: Arc::new(mmio),
        memory,
    };
    *slot.lock().unwrap() = Some(Arc::clone(&driver.mmio));
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(*seen.lock().unwrap(), [1]);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    *slot.lock().unwrap() = None;
}

#[test]
fn an_acknowledgement_clears_the_bits_written_and_raises_an_edge_for_the_rest() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.change_config(|_| ());
    assert_eq!(counted.count(), 2);
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert_eq!(counted.count(), 3);
    driver.write(INTERRUPT_ACK, 0xffff_fffc);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    driver.write(INTERRUPT_ACK, 2);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}

#[test]
fn an_event_between_the_read_of_the_status_and_its_acknowledgement_is_not_stranded() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    let mut use_one = || {
        ring.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
    };
    use_one();
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    use_one();
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(
        driver.read(INTERRUPT_STATUS),
        1,
        "the second buffer is not acknowledged"
    );
    assert_eq!(counted.count(), 3, "and an edge says so");
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    // A driver that acknowledges without looking has acknowledged everything.
    use_one();
    use_one();
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}

#[test]
fn a_level_line_is_up_as_long_as_the_status_is_not_zero() {
    let (line, heard) = level();
    let driver = Driver::new(line);
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.change_config(|_| ());
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(*heard.lock().unwrap(), [true]);
    driver.write(INTERRUPT_ACK, 2);
    assert_eq!(*heard.lock().unwrap(), [true, false]);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(*heard.lock().unwrap(), [true, false, true]);
    drop(driver);
    assert_eq!(
        *heard.lock().unwrap(),
        [true, false, true, false],
        "a device that is dropped lets go"
    );
}

#[test]
fn a_refused_interrupt_leaves_its_status_and_comes_with_the_next_kick() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    counted.refuse.store(true, Ordering::SeqCst);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.change_config(|_| ());
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    assert_eq!(driver.mmio.line_failures(), 2);
    counted.refuse.store(false, Ordering::SeqCst);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(counted.count(), 2, "both are told");
}

#[test]
fn a_device_that_needs_a_reset_says_so_with_the_next_kick_if_the_line_refused_it() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    counted.refuse.store(true, Ordering::SeqCst);
    ring.set_avail_idx(SIZE + 1);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(driver.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
    counted.refuse.store(false, Ordering::SeqCst);
    // All that a driver does which waits for an answer.
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (2, 1));
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(counted.count(), 1, "once is enough");
}

#[test]
fn an_edge_that_was_refused_at_the_acknowledgement_comes_with_the_next_kick() {
    for saved in [false, true] {
        let counted = Counted::default();
        let mut driver = Driver::new(counted.edge());
        let mut ring = driver.start();
        let mut use_one = || {
            ring.request(&[writable(0x8000, 1)]);
            driver.write(QUEUE_NOTIFY, 0);
        };
        use_one();
        assert_eq!(driver.read(INTERRUPT_STATUS), 1);
        use_one();
        counted.refuse.store(true, Ordering::SeqCst);
        driver.write(INTERRUPT_ACK, 1);
        counted.refuse.store(false, Ordering::SeqCst);
        assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (1, 2));
        if saved {
            let mmio = VirtioMmio::new(Probe::default(), Arc::clone(&driver.memory), counted.edge()).unwrap();
            mmio.restore(&driver.mmio.save()).unwrap();
            assert_eq!(counted.count(), 2, "nothing is raised by the restore itself");
            driver.mmio = Arc::new(mmio);
            driver.mmio.resume();
        } else {
            // Nothing new is there: this kick has no other reason to interrupt.
            driver.write(QUEUE_NOTIFY, 0);
        }
        assert_eq!(counted.count(), 3, "saved: {saved}");
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(counted.count(), 3, "once is enough");
    }
}

// Kicks and threads.

#[test]
fn a_kick_before_driver_ok_means_nothing_but_the_queue_is_looked_at_then() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    let mut ring = driver.set_up_queue(0);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 0);
    driver.go();
    assert_eq!(ring.used(), [(0, 1)]);
}

#[test]
fn a_kick_out_of_range_is_ignored() {
    let driver = Driver::silent();
    driver.start();
    for queue in [1, 2, 0xffff, 0x1_0000, u32::MAX] {
        driver.write(QUEUE_NOTIFY, queue);
    }
    assert_eq!(driver.status() & DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_doorbell_moves_the_work_to_the_worker() {
    let memory = memory();
    let (sender, receiver) = mpsc::channel();
    let line = Counted::default();
    let mmio = VirtioMmio::new(Probe::default(), Arc::clone(&memory), line.edge()).unwrap();
    let mmio = mmio.with_doorbell(move |queue| sender.send(queue).map_err(io::Error::other));
    let driver = Driver {
        mmio: Arc::new(mmio),
        memory,
    };
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 0, "the kicking thread does no work");
    assert_eq!(
        receiver.try_iter().filter(|queue| *queue == QueueIndex(0)).count(),
        2,
        "at activation and by the kick"
    );
    let worker = Arc::clone(&driver.mmio);
    thread::spawn(move || worker.run()).join().unwrap();
    assert_eq!(ring.used_idx(), 1);
    // A doorbell that fails: the kicking thread does it rather than lose it.
    drop(receiver);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 2);
}

#[test]
fn kicks_from_many_threads_lose_no_request() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    for _ in 0..200 {
        ring.request(&[writable(0x8000, 1)]);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
            }
        });
        assert_eq!(ring.used().len(), 1);
    }
}

#[test]
fn reset_from_another_thread_ends_the_work_before_it_returns() {
    let driver = Driver::silent();
    for _ in 0..50 {
        let mut ring = driver.start();
        for _ in 0..4 {
            ring.request(&[writable(0x8000, 64)]);
        }
        thread::scope(|scope| {
            scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
            driver.write(STATUS, 0);
            let used = ring.used_idx();
            thread::yield_now();
            assert_eq!(ring.used_idx(), used, "nothing is used after the reset");
        });
        assert_eq!(driver.status(), 0);
    }
}

#[test]
fn a_line_that_panics_once_does_not_stop_the_device_for_good() {
    let panics = Arc::new(AtomicBool::new(true));
    let raised = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&raised);
    let line = from_fn(move || match panics.swap(false, Ordering::SeqCst) {
        true => panic!("an embedder's mistake"),
        false => {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let driver = Driver::new(Line::Edge(Arc::new(line)));
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    let kick = || driver.write(QUEUE_NOTIFY, 0);
    catch_unwind(AssertUnwindSafe(kick)).expect_err("the panic comes out where it belongs");
    kick();
    assert_eq!(raised.load(Ordering::SeqCst), 1, "the signal that was lost");
    ring.request(&[writable(0x8000, 1)]);
    kick();
    assert_eq!(ring.used().len(), 2);
}

#[test]
fn a_round_works_in_the_memory_that_is_there_when_it_begins() {
    let before = memory();
    let space = GuestMemoryAtomic::from(Arc::clone(&before));
    let line = Line::Edge(Arc::new(NoInterrupt));
    let mmio = VirtioMmio::new(Probe::default(), space.clone(), line).unwrap();
    let driver = Driver {
        mmio: Arc::new(mmio),
        memory: before,
    };
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    let after = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let mut bytes = vec![0; 0x20000];
    driver.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    after.write_slice(&bytes, GuestAddress(0)).unwrap();
    thread::scope(|scope| {
        driver.mmio.with_device(|_| {
            scope.spawn(|| driver.write(QUEUE_NOTIFY, 0));
            // Long enough for the kick to come as far as it can while the embedder has the device.
            thread::sleep(Duration::from_millis(50));
            space.lock().unwrap().replace(after);
        });
    });
    assert_eq!(
        ring.used_idx(),
        0,
        "memory that was taken away before the round is not written"
    );
    ring.memory = (*space.memory()).clone().into();
    assert_eq!(ring.used(), [(0, 1)]);
}

#[test]
fn a_pause_ends_the_work_for_a_driver_that_never_stops_and_keeps_its_kicks() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                ring.request(&[writable(0x8000, 1)]);
                driver.write(QUEUE_NOTIFY, 0);
                // As fast as the device lets it: all but one of the descriptors may be in flight.
                while ring.avail_idx().wrapping_sub(ring.used_idx()) >= SIZE - 1 && !stop.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            }
            ring.used_idx()
        });
        while driver.mmio.with_device(|probe| probe.processed) < 20 {
            thread::yield_now();
        }
        driver.mmio.pause();
        let processed = driver.mmio.with_device(|probe| probe.processed);
        driver.write(QUEUE_NOTIFY, 0);
        driver.mmio.run();
        thread::yield_now();
        assert_eq!(
            driver.mmio.with_device(|probe| probe.processed),
            processed,
            "no round while paused"
        );
        stop.store(true, Ordering::SeqCst);
        feeder.join().expect("its kick returned");
    });
    assert!(ring.used_idx() != ring.avail_idx() || ring.avail_idx() != 0);
    driver.mmio.resume();
    assert_eq!(
        ring.used_idx(),
        ring.avail_idx(),
        "what was kicked in the pause is done after it"
    );
}

#[test]
fn a_device_hears_of_a_queue_that_is_stopped_or_reset_alone() {
    let driver = Driver::silent();
    driver.start();
    driver.write(QUEUE_RESET, 1);
    driver.set_up_queue(0);
    driver.write(QUEUE_READY, 0);
    driver.write(QUEUE_READY, 0);
    assert_eq!(
        driver.mmio.with_device(|probe| probe.stopped.clone()),
        [QueueIndex(0), QueueIndex(0)]
    );
}

#[test]
fn a_device_hears_what_was_negotiated_before_its_queues_are_set_up_and_after_a_restore() {
    let driver = Driver::silent();
    driver.negotiate(ALL | 1 << 20);
    assert!(
        driver.mmio.with_device(|probe| probe.negotiated.is_empty()),
        "it was refused"
    );
    driver.accept(ALL);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.mmio.with_device(|probe| probe.negotiated.clone()), [ALL]);
    let restored = Driver::silent();
    restored.mmio.restore(&driver.mmio.save()).unwrap();
    assert_eq!(restored.mmio.with_device(|probe| probe.negotiated.clone()), [ALL]);
}

// State.

#[test]
fn a_device_goes_on_where_it_was_saved() {
    let (line, _) = level();
    let driver = Driver::new(line);
    let mut ring = driver.start();
    driver.write(SHM_SEL, 1);
    ring.request(&[readable(0x8000, 1), writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    let state = driver.mmio.save();
    // A request whose kick is not in the state.
    ring.request(&[writable(0x9000, 1)]);

    let (line, heard) = level();
    let mmio = VirtioMmio::new(Probe::default(), Arc::clone(&driver.memory), line).unwrap();
    mmio.restore(&state).unwrap();
    assert_eq!(mmio.save(), state);
    assert_eq!(*heard.lock().unwrap(), [true], "the level is derived again");
    let restored = Driver {
        mmio: Arc::new(mmio),
        memory: Arc::clone(&driver.memory),
    };
    assert_eq!(restored.read(SHM_LEN_HIGH), 3);
    restored.mmio.resume();
    assert_eq!(ring.used().len(), 2, "the queue is looked at once");
    restored.write(INTERRUPT_ACK, 1);
    assert_eq!(*heard.lock().unwrap(), [true, false]);
    ring.request(&[writable(0x9000, 1)]);
    restored.write(QUEUE_NOTIFY, 0);
    assert_eq!(*heard.lock().unwrap(), [true, false, true], "and it interrupts again");
    assert!(matches!(restored.mmio.restore(&state), Err(RestoreError::InUse(_))));
}

#[test]
fn restoring_raises_no_edge_that_the_guest_has_seen() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    let counted = Counted::default();
    let mmio = VirtioMmio::new(Probe::default(), Arc::clone(&driver.memory), counted.edge()).unwrap();
    mmio.restore(&driver.mmio.save()).unwrap();
    mmio.resume();
    assert_eq!(counted.count(), 0);
}

#[test]
fn impossible_states_are_refused_and_change_nothing() {
    let driver = Driver::silent();
    driver.start();
    let good = driver.mmio.save();
    type Spoil = fn(&mut devisor::virtio::transport::mmio::VirtioMmioState);
    let spoilers: [Spoil; 14] = [
        |state| state.transport.status = DRIVER_OK,
        |state| state.transport.status |= 16,
        |state| state.transport.status = ACKNOWLEDGE | DEVICE_NEEDS_RESET,
        |state| state.transport.driver_features |= 1 << 50,
        |state| state.transport.driver_features &= !features::VERSION_1,
        |state| _ = state.transport.setup.pop(),
        |state| state.transport.queues[0] = None,
        |state| state.transport.setup[0].layout.size = 4,
        |state| state.transport.setup[1].layout.size = 3,
        |state| state.transport.setup[1].layout.size = 4 * SIZE,
        |state| state.transport.queues[0].as_mut().unwrap().next_avail = 5,
        |state| state.transport.setup[0].ready = false,
        |state| state.interrupt.status = 4,
        |state| state.interrupt.seen = 1,
    ];
    for (number, spoil) in spoilers.iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad);
        let fresh = VirtioMmio::new(Probe::default(), memory(), Line::Edge(Arc::new(NoInterrupt))).unwrap();
        let before = fresh.save();
        assert!(fresh.restore(&bad).is_err(), "spoiler {number}");
        assert_eq!(fresh.save(), before);
    }
}

#[test]
fn states_that_no_driver_can_reach_are_refused() {
    type Spoil = fn(&mut VirtioMmioState);
    let spoilers: [(&str, u32, Spoil); 7] = [
        ("InterruptStatus before DRIVER_OK", FEATURES_OK, |state| {
            state.interrupt.status = 1
        }),
        ("the same without any driver", 0, |state| state.interrupt.status = 2),
        ("a refused edge with nothing pending", DRIVER_OK, |state| {
            state.interrupt.owed = true
        }),
        ("a ready queue before FEATURES_OK", DRIVER, |state| {
            state.transport.setup[0].ready = true
        }),
        ("a queue that was reset before FEATURES_OK", DRIVER, |state| {
            state.transport.setup[1].was_reset = true
        }),
        ("a queue that was reset and is ready", DRIVER_OK, |state| {
            state.transport.setup[0].was_reset = true
        }),
        ("features before DRIVER", ACKNOWLEDGE, |state| {
            state.transport.driver_features = 1
        }),
    ];
    let refused = |state: &VirtioMmioState| {
        let fresh = VirtioMmio::new(Probe::default(), memory(), Line::Edge(Arc::new(NoInterrupt))).unwrap();
        let before = fresh.save();
        let restored = fresh.restore(state);
        assert!(restored.is_ok() || fresh.save() == before);
        restored.is_err()
    };
    for (what, stage, spoil) in spoilers {
        let driver = Driver::silent();
        match stage {
            0 => {}
            DRIVER | ACKNOWLEDGE => driver.write(STATUS, stage | ACKNOWLEDGE),
            FEATURES_OK => driver.negotiate(ALL),
            _ => _ = driver.start(),
        }
        let mut state = driver.mmio.save();
        assert!(!refused(&state), "{what}: good as it was");
        spoil(&mut state);
        assert!(refused(&state), "{what}");
    }

    let driver = Driver::silent();
    driver.negotiate(ALL & !features::RING_RESET);
    let mut state = driver.mmio.save();
    assert!(!refused(&state));
    state.transport.setup[0].was_reset = true;
    assert!(refused(&state), "a queue was reset though that was not negotiated");
    state.transport.status |= DRIVER_OK;
    assert!(!refused(&state), "or stopped, which takes no feature");
}

#[test]
fn a_device_may_have_no_queue_or_as_many_as_there_are_indices() {
    struct Many(Vec<u16>, u32);
    impl<M: GuestMemory> VirtioDevice<M> for Many {
        fn device_id(&self) -> DeviceId {
            DeviceId(1)
        }
        fn queue_sizes(&self) -> &[u16] {
            &self.0
        }
        fn process(&mut self, _: QueueIndex, _: &mut Queues<'_, M>) -> Result<Round, QueueError> {
            self.1 += 1;
            Ok(Round::Drained)
        }
    }
    let line = || Line::Edge(Arc::new(NoInterrupt));
    for queues in [0, 65535] {
        let mmio = VirtioMmio::new(Many(vec![1; queues as usize], 0), memory(), line()).unwrap();
        let write = |register, value: u32| mmio.write(register, &value.to_le_bytes());
        write(STATUS, ACKNOWLEDGE | DRIVER);
        write(DRIVER_FEATURES_SEL, 1);
        write(DRIVER_FEATURES, (features::VERSION_1 >> 32) as u32);
        write(STATUS, FEATURES_OK);
        write(STATUS, DRIVER_OK);
        assert_eq!(mmio.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(mmio.with_device(|many| many.1), queues, "each is looked at");
        for kicked in [queues, queues.saturating_sub(1), u32::MAX] {
            write(QUEUE_NOTIFY, kicked);
        }
        let expected = queues + u32::from(queues != 0);
        assert_eq!(mmio.with_device(|many| many.1), expected);
        write(STATUS, 0);
    }
    let too_many = VirtioMmio::new(Many(vec![1; 65536], 0), memory(), line());
    assert_eq!(too_many.err(), Some(TransportError::QueueCount(65536)));
}

#[test]
fn a_device_with_impossible_queues_is_refused() {
    struct Odd;
    impl<M: GuestMemory> VirtioDevice<M> for Odd {
        fn device_id(&self) -> DeviceId {
            DeviceId(1)
        }
        fn queue_sizes(&self) -> &[u16] {
            &[8, 12]
        }
        fn process(&mut self, _: QueueIndex, _: &mut Queues<'_, M>) -> Result<Round, QueueError> {
            Ok(Round::Drained)
        }
    }
    let refused = VirtioMmio::new(Odd, memory(), Line::Edge(Arc::new(NoInterrupt))).expect_err("12 is no power of two");
    assert_eq!(refused, TransportError::QueueSize { index: 1, size: 12 });
}

proptest! {
    /// Any accesses of any width anywhere: no panic, and the level is what InterruptStatus says.
    #[test]
    fn any_accesses_are_contained(
        accesses in proptest::collection::vec(
            (prop_oneof![(0u64..64).prop_map(|n| 4 * n), any::<u64>()], 0usize..10, any::<u32>(), any::<bool>()),
            0..200,
        ),
        walk in any::<bool>(),
    ) {
        let (line, heard) = level();
        let driver = Driver::new(line);
        if walk {
            driver.start().request(&[writable(0x8000, 1)]);
        }
        for (offset, len, value, write) in accesses {
            let mut data = vec![0; len];
            for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
                *byte = value;
            }
            match write {
                true => driver.mmio.write(offset, &data),
                false => driver.mmio.read(offset, &mut data),
            }
            let up = heard.lock().unwrap().last().copied().unwrap_or(false);
            prop_assert_eq!(up, driver.mmio.save().interrupt.status != 0);
        }
    }
}
