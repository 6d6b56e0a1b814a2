//! A device that does little, and a driver that writes its registers one by one.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use devisor::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, NoInterrupt, from_fn, level_from_fn},
    virtio::{
        DeviceId, Fault, QueueHandler, QueueIndex, Round, SharedMemoryRegion, VirtioDevice, VirtioMmio,
        device::read_config_bytes,
        features,
        transport::{
            SavedDevice, VirtioTransport,
            mmio::Line,
            status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
        },
    },
};
use vm_memory::GuestMemoryMmap;

use crate::{
    rest,
    ring::{Ring, memory},
};

// Not the device's own constants: a wrong one would go unseen.
pub const MAGIC_VALUE: u64 = 0x000;
pub const VERSION: u64 = 0x004;
pub const DEVICE_ID: u64 = 0x008;
pub const DEVICE_FEATURES: u64 = 0x010;
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_SIZE_MAX: u64 = 0x034;
pub const QUEUE_SIZE: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_STATUS: u64 = 0x060;
pub const INTERRUPT_ACK: u64 = 0x064;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESC_LOW: u64 = 0x080;
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub const SHM_SEL: u64 = 0x0ac;
pub const SHM_LEN_LOW: u64 = 0x0b0;
pub const SHM_LEN_HIGH: u64 = 0x0b4;
pub const SHM_BASE_LOW: u64 = 0x0b8;
pub const SHM_BASE_HIGH: u64 = 0x0bc;
pub const QUEUE_RESET: u64 = 0x0c0;
pub const CONFIG_GENERATION: u64 = 0x0fc;
pub const CONFIG: u64 = 0x100;

pub const SIZE: u16 = 8;
/// A feature of the test device, and one that it refuses to be without the first.
pub const FEATURE: u64 = 1 << 0;
pub const NEEDS_FEATURE: u64 = 1 << 1;
pub const ALL: u64 = features::COMMON | FEATURE;

/// Two queues, six bytes of configuration space (a MAC address), one shared memory region. Fills what is writable.
#[derive(Default)]
pub struct Probe {
    pub mac: [u8; 6],
    pub resets: u32,
    pub written: Vec<(u64, Vec<u8>)>,
    pub negotiated: Vec<u64>,
    pub queues: Arc<QueueLog>,
}

/// What happened to the queues.
#[derive(Default)]
pub struct QueueLog {
    /// Rounds.
    processed: AtomicU32,
    pub started: Mutex<Vec<QueueIndex>>,
    /// Handlers that were dropped.
    pub stopped: Mutex<Vec<QueueIndex>>,
    /// Of the last round.
    pub features: Mutex<Option<u64>>,
}

impl Probe {
    /// How many rounds there were.
    pub fn processed(&self) -> u32 {
        self.queues.processed.load(Ordering::SeqCst)
    }
}

impl VirtioDevice for Probe {
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

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        self.queues.started.lock().unwrap().push(queue);
        Box::new(Fill {
            queue,
            log: Arc::clone(&self.queues),
        })
    }

    fn reset(&mut self) {
        self.resets += 1;
    }
}

struct Fill {
    queue: QueueIndex,
    log: Arc<QueueLog>,
}

impl QueueHandler for Fill {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        self.log.processed.fetch_add(1, Ordering::SeqCst);
        *self.log.features.lock().unwrap() = Some(round.features());
        Ok(round.each(|chain| {
            chain.writer().fill(0xa5, chain.writable_len())?;
            Ok(chain.writable_len())
        })?)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.log.stopped.lock().unwrap().push(self.queue);
    }
}

pub type Mmio<D = Probe> = VirtioMmio<D>;

/// A driver at the registers.
pub struct Driver<D = Probe> {
    pub mmio: Arc<Mmio<D>>,
    pub memory: Arc<GuestMemoryMmap>,
}

/// A line that counts, and that can be told to refuse.
#[derive(Clone, Default)]
pub struct Counted {
    raised: Arc<AtomicU32>,
    pub refuse: Arc<AtomicBool>,
}

impl Counted {
    pub fn edge(&self) -> Line {
        let Self { raised, refuse } = self.clone();
        Line::Edge(Arc::new(from_fn(move || {
            if refuse.load(Ordering::SeqCst) {
                return Err(io::Error::other("refused"));
            }
            raised.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })))
    }

    pub fn count(&self) -> u32 {
        self.raised.load(Ordering::SeqCst)
    }
}

/// A level line and every level that it was told.
pub fn level() -> (Line, Arc<Mutex<Vec<bool>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let line = level_from_fn(move |up| {
        log.lock().unwrap().push(up);
        Ok(())
    });
    (Line::Level(Arc::new(line) as Arc<dyn LevelInterrupt>), heard)
}

/// A line that leads nowhere.
pub fn silent() -> Line {
    Line::Edge(Arc::new(NoInterrupt))
}

impl Driver {
    pub fn new(line: Line) -> Self {
        Self::with(Probe::default(), line)
    }

    pub fn silent() -> Self {
        Self::new(silent())
    }

    pub fn processed(&self) -> u32 {
        self.mmio.with_device(|probe| probe.processed())
    }
}

impl<D: VirtioDevice + 'static> Driver<D> {
    pub fn with(device: D, line: Line) -> Self {
        let memory = memory();
        let mmio = VirtioMmio::new(device, Arc::clone(&memory), line).expect("a valid device");
        Self {
            mmio: Arc::new(mmio),
            memory,
        }
    }

    /// The same guest with another device, in the state of this one's.
    pub fn moved(&self, device: D, line: Line) -> Self {
        let mmio = VirtioMmio::new(device, Arc::clone(&self.memory), line).expect("a valid device");
        mmio.restore(&rest::at_rest(&*self.mmio)).expect("it was saved so");
        Self {
            mmio: Arc::new(mmio),
            memory: Arc::clone(&self.memory),
        }
    }

    /// The state of a device that goes on.
    pub fn saved(&self) -> SavedDevice {
        rest::saved(&*self.mmio)
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.mmio.write(register, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(STATUS)
    }

    pub fn accept(&self, features: u64) {
        for sel in 0..2 {
            self.write(DRIVER_FEATURES_SEL, sel);
            self.write(DRIVER_FEATURES, (features >> (32 * sel)) as u32);
        }
    }

    /// Up to FEATURES_OK.
    pub fn negotiate(&self, features: u64) {
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        self.accept(features);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    pub fn write_layout(&self, ring: &Ring) {
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

    pub fn set_up_queue(&self, index: u16) -> Ring {
        let ring = Ring::new(&self.memory, 0x10000 * (1 + u64::from(index)), SIZE);
        self.write(QUEUE_SEL, index.into());
        self.write_layout(&ring);
        self.write(QUEUE_READY, 1);
        ring
    }

    pub fn go(&self) {
        self.write(STATUS, self.status() | DRIVER_OK);
    }

    /// All the way, with queue 0.
    pub fn start(&self) -> Ring {
        self.start_with(ALL & !features::EVENT_IDX)
    }

    pub fn start_with(&self, features: u64) -> Ring {
        self.negotiate(features);
        let ring = self.set_up_queue(0);
        self.go();
        ring
    }
}
