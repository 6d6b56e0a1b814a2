//! A device that does little, and a driver that writes its registers one by one.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use devisor::{
    bus::{read_le, write_le},
    interrupt::{MsiMessage, level_from_fn},
    pci::{BarIndex, DeviceFunction, Function, Slot},
    virtio::{
        DeviceId, Fault, QueueHandler, QueueIndex, Round, SharedMemoryRegion, VirtioDevice, VirtioPci,
        device::read_config_bytes,
        features,
        transport::{
            SavedDevice,
            pci::{VirtioPciError, VirtioPciOptions},
            status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
        },
    },
};
use vm_memory::GuestMemoryMmap;

use crate::{
    platform::{Platform, Vectors},
    rest,
    ring::{Ring, memory, writable},
};

// Not the device's own constants: a wrong one would go unseen.
pub const COMMAND: u64 = 0x04;
pub const STATUS: u64 = 0x06;
pub const BAR0: u64 = 0x10;
pub const MEMORY_SPACE: u16 = 2;
pub const BUS_MASTER: u16 = 4;
pub const INTX_DISABLE: u16 = 1 << 10;
/// The capability of MSI-X comes first.
pub const MSIX_CONTROL: u64 = 0x42;
pub const ENABLE: u16 = 1 << 15;
pub const FUNCTION_MASK: u16 = 1 << 14;

pub const STRUCTURES: BarIndex = BarIndex::Bar0;
pub const MSIX: BarIndex = BarIndex::Bar1;
/// Where the PBA of a table of up to 256 vectors is.
pub const PBA: u64 = 0x1000;
/// Where the structures are in BAR 0. A test compares these with the capabilities.
pub const ISR: u64 = 0x1000;
pub const CONFIG: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;

pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
pub const DEVICE_FEATURE: u64 = 0x04;
pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub const DRIVER_FEATURE: u64 = 0x0c;
pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
pub const NUM_QUEUES: u64 = 0x12;
pub const DEVICE_STATUS: u64 = 0x14;
pub const CONFIG_GENERATION: u64 = 0x15;
pub const QUEUE_SELECT: u64 = 0x16;
pub const QUEUE_SIZE: u64 = 0x18;
pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
pub const QUEUE_ENABLE: u64 = 0x1c;
pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
pub const QUEUE_DESC: u64 = 0x20;
pub const QUEUE_DRIVER: u64 = 0x28;
pub const QUEUE_DEVICE: u64 = 0x30;
pub const QUEUE_NOTIFY_DATA: u64 = 0x38;
pub const QUEUE_RESET: u64 = 0x3a;
pub const NO_VECTOR: u64 = 0xffff;

pub const SIZE: u16 = 8;
pub const FEATURE: u64 = 1 << 0;
pub const ALL: u64 = features::COMMON | features::NOTIFICATION_DATA | features::NOTIF_CONFIG_DATA | FEATURE;
pub const WORKING: u64 = (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK) as u64;

/// Fills what is writable. Queues, regions and type are the test's choice.
#[derive(Clone, Debug)]
pub struct Probe {
    pub id: u32,
    pub sizes: Vec<u16>,
    pub regions: Vec<(u8, u64)>,
    pub config: [u8; 6],
    /// Rounds.
    pub processed: Arc<AtomicU32>,
    pub resets: u32,
    pub written: Vec<(u64, Vec<u8>)>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            id: 42,
            sizes: vec![SIZE, 2 * SIZE],
            regions: Vec::new(),
            config: [1, 2, 3, 4, 5, 6],
            processed: Arc::default(),
            resets: 0,
            written: Vec::new(),
        }
    }
}

impl VirtioDevice for Probe {
    fn device_id(&self) -> DeviceId {
        DeviceId(self.id)
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.written.push((offset, data.to_vec()));
    }

    fn shared_memory(&self, id: u8) -> Option<SharedMemoryRegion> {
        let region = self.regions.iter().find(|region| region.0 == id);
        region.map(|&(_, len)| SharedMemoryRegion { base: 0, len })
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Fill(Arc::clone(&self.processed)))
    }

    fn reset(&mut self) {
        self.resets += 1;
    }
}

struct Fill(Arc<AtomicU32>);

impl QueueHandler for Fill {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        self.0.fetch_add(1, SeqCst);
        Ok(round.each(|chain| {
            chain.writer().fill(0xa5, chain.writable_len())?;
            Ok(chain.writable_len())
        })?)
    }
}

pub type Device<D = Probe> = VirtioPci<D>;

/// A driver at the registers of a function, with its wire and its platform in sight.
pub struct Driver<D = Probe> {
    pub pci: Arc<Device<D>>,
    pub memory: Arc<GuestMemoryMmap>,
    pub platform: Arc<Platform>,
    wire: Arc<Mutex<Vec<bool>>>,
}

pub fn address() -> DeviceFunction {
    DeviceFunction::new(3, 1).unwrap()
}

impl Driver {
    /// A function that nobody has touched.
    pub fn cold() -> Self {
        Self::with(Probe::default(), VirtioPciOptions::default()).unwrap()
    }

    /// Placed, decoding, master of the bus. INTx is the way to interrupt.
    pub fn new() -> Self {
        let driver = Self::cold();
        driver.place();
        driver
    }

    /// [`new`](Self::new), with MSI-X: vector 0 for the configuration, 1 and 2 for the queues; all open.
    pub fn with_msix() -> Self {
        let driver = Self::new();
        driver.enable_msix();
        driver
    }

    /// How many rounds there were.
    pub fn processed(&self) -> u32 {
        self.pci.with_device(|probe| probe.processed.load(SeqCst))
    }

    /// The configuration changes.
    pub fn change(&self) {
        self.pci.change_config(|probe| probe.config[0] ^= 1);
    }
}

impl<D: VirtioDevice + 'static> Driver<D> {
    pub fn with(device: D, options: VirtioPciOptions) -> Result<Self, VirtioPciError> {
        Self::build(device, options, |pci| pci)
    }

    pub fn build(
        device: D,
        options: VirtioPciOptions,
        plug: impl FnOnce(Device<D>) -> Device<D>,
    ) -> Result<Self, VirtioPciError> {
        let platform = Arc::new(Platform::default());
        let wire = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&wire);
        let line = level_from_fn(move |up| {
            heard.lock().unwrap().push(up);
            Ok(())
        });
        let slot = Slot::new(address(), Box::new(line), Arc::new(Vectors(Arc::clone(&platform))));
        let memory = memory();
        let pci = VirtioPci::with_options(device, Arc::clone(&memory), slot, &options)?;
        Ok(Self {
            pci: Arc::new(plug(pci)),
            memory,
            platform,
            wire,
        })
    }

    /// The state of a device that goes on.
    pub fn saved(&self) -> SavedDevice {
        rest::saved(&*self.pci)
    }

    pub fn place(&self) {
        self.set_config(BAR0, 4, 0x4000_0000);
        self.set_config(BAR0 + 4, 4, 0x4001_0000);
        self.set_config(COMMAND, 2, (MEMORY_SPACE | BUS_MASTER).into());
    }

    pub fn enable_msix(&self) {
        for vector in 0..3 {
            self.open(vector);
        }
        self.set_config(MSIX_CONTROL, 2, ENABLE.into());
    }

    /// Every level that the wire was told since this was last asked.
    pub fn heard(&self) -> Vec<bool> {
        std::mem::take(&mut *self.wire.lock().unwrap())
    }

    // Accesses.

    pub fn config(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.pci.read_config(offset, &mut data[..len]);
        read_le(&data[..len])
    }

    pub fn set_config(&self, offset: u64, len: usize, value: u64) {
        let mut data = [0; 8];
        write_le(&mut data[..len], value);
        self.pci.write_config(offset, &data[..len]);
    }

    pub fn bar(&self, bar: BarIndex, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        if !self.pci.endpoint().read_bar(bar, offset, &mut data[..len]) {
            self.pci.read_bar(bar, offset, &mut data[..len]);
        }
        read_le(&data[..len])
    }

    pub fn set_bar(&self, bar: BarIndex, offset: u64, len: usize, value: u64) {
        let mut data = [0; 8];
        write_le(&mut data[..len], value);
        if !self.pci.endpoint().write_bar(bar, offset, &data[..len]) {
            self.pci.write_bar(bar, offset, &data[..len]);
        }
    }

    /// A register of the common configuration, in its own width.
    pub fn get(&self, register: u64) -> u64 {
        self.bar(STRUCTURES, register, width(register))
    }

    pub fn set(&self, register: u64, value: u64) {
        self.set_bar(STRUCTURES, register, width(register), value);
    }

    pub fn status(&self) -> u64 {
        self.get(DEVICE_STATUS)
    }

    pub fn isr(&self) -> u64 {
        self.bar(STRUCTURES, ISR, 1)
    }

    // What drivers do.

    /// Gives `vector` its message, and unmasks it.
    pub fn open(&self, vector: u16) {
        let entry = u64::from(vector) * 16;
        let MsiMessage { address, data } = message(vector);
        self.set_bar(MSIX, entry, 8, address);
        self.set_bar(MSIX, entry + 8, 4, data.into());
        self.mask(vector, false);
    }

    pub fn mask(&self, vector: u16, masked: bool) {
        self.set_bar(MSIX, u64::from(vector) * 16 + 12, 4, masked.into());
    }

    pub fn pending(&self) -> u64 {
        self.bar(MSIX, PBA, 8)
    }

    pub fn accept(&self, features: u64) {
        for select in 0..2 {
            self.set(DRIVER_FEATURE_SELECT, select);
            self.set(DRIVER_FEATURE, features >> (32 * select) & 0xffff_ffff);
        }
    }

    /// Up to FEATURES_OK.
    pub fn negotiate(&self, features: u64) {
        self.set(DEVICE_STATUS, ACKNOWLEDGE.into());
        self.set(DEVICE_STATUS, (ACKNOWLEDGE | DRIVER).into());
        self.accept(features);
        self.set(DEVICE_STATUS, (ACKNOWLEDGE | DRIVER | FEATURES_OK).into());
    }

    pub fn write_layout(&self, ring: &Ring) {
        self.set(QUEUE_SIZE, ring.layout.size.into());
        for (register, address) in [
            (QUEUE_DESC, ring.layout.descriptor_area),
            (QUEUE_DRIVER, ring.layout.driver_area),
            (QUEUE_DEVICE, ring.layout.device_area),
        ] {
            self.set_bar(STRUCTURES, register, 4, address & 0xffff_ffff);
            self.set_bar(STRUCTURES, register + 4, 4, address >> 32);
        }
    }

    pub fn set_up_queue(&self, index: u16) -> Ring {
        let ring = Ring::new(&self.memory, 0x10000 * (1 + u64::from(index)), SIZE);
        self.set(QUEUE_SELECT, index.into());
        self.write_layout(&ring);
        self.set(QUEUE_ENABLE, 1);
        ring
    }

    pub fn map_vectors(&self) {
        self.set(CONFIG_MSIX_VECTOR, 0);
        for queue in 0..2 {
            self.set(QUEUE_SELECT, queue);
            self.set(QUEUE_MSIX_VECTOR, 1 + queue);
        }
    }

    pub fn go(&self) {
        self.set(DEVICE_STATUS, self.status() | u64::from(DRIVER_OK));
    }

    /// All the way, with both queues and vectors mapped, if there are any.
    pub fn start(&self) -> [Ring; 2] {
        self.start_with(ALL & !features::EVENT_IDX)
    }

    pub fn start_with(&self, features: u64) -> [Ring; 2] {
        self.negotiate(features);
        let rings = [0, 1].map(|index| self.set_up_queue(index));
        self.map_vectors();
        self.go();
        assert_eq!(self.status(), WORKING);
        rings
    }

    pub fn kick(&self, queue: u16) {
        self.set_bar(STRUCTURES, NOTIFY + 4 * u64::from(queue), 2, queue.into());
    }

    /// A request that the device answers at once, on the queue of this ring.
    pub fn request(&self, queue: u16, ring: &mut Ring) {
        ring.request(&[writable(0x8000, 1)]);
        self.kick(queue);
    }

    /// The data of the messages that were sent since this was last asked.
    pub fn sent(&self) -> Vec<u32> {
        self.platform.sent().iter().map(|message| message.data).collect()
    }
}

pub fn message(vector: u16) -> MsiMessage {
    MsiMessage {
        address: 0x1_fee0_0000,
        data: 0x40 + u32::from(vector),
    }
}

/// The data of the messages of the configuration and of the queues.
pub const OF_CONFIG: u32 = 0x40;
pub const OF_QUEUE: [u32; 2] = [0x41, 0x42];

/// How wide a register is (virtio 1.2, section 4.1.4.3).
pub fn width(register: u64) -> usize {
    match register {
        ..CONFIG_MSIX_VECTOR => 4,
        DEVICE_STATUS | CONFIG_GENERATION => 1,
        QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE => 8,
        _ => 2,
    }
}

/// No message was sent.
pub const NONE: [u32; 0] = [];
