//! A platform that notes what it is asked, and a device that does no more than to be there.

#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
use std::{
    fs::File,
    io,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use devisor::{
    bus::{read_le, write_le},
    interrupt::{
        Interrupt, LevelInterrupt, MsiMessage, MsiVector, MsiVectors, NoInterrupt, RequesterId, level_from_fn,
    },
    pci::*,
};

pub const COMMAND: u64 = 0x04;
pub const STATUS: u64 = 0x06;
pub const IO_SPACE: u16 = 1;
pub const MEMORY_SPACE: u16 = 2;
pub const BUS_MASTER: u16 = 4;
pub const INTX_DISABLE: u16 = 1 << 10;
/// The MSI-X capability is the test device's first, MSI its second.
pub const MSIX: u64 = 0x40;
pub const MSIX_CONTROL: u64 = MSIX + 2;
pub const ENABLE: u16 = 1 << 15;
pub const FUNCTION_MASK: u16 = 1 << 14;
pub const MSI: u64 = 0x4c;
pub const VENDOR_SPECIFIC: u64 = 0x64;
pub const MSIX_BAR: BarIndex = BarIndex::Bar3;
/// Where the PBA of a table of up to 256 vectors is.
pub const PBA: u64 = 0x1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Allocated(RequesterId),
    Programmed(Option<MsiMessage>),
    Sent(MsiMessage),
    Refused,
    Dropped,
}

#[derive(Default)]
pub struct Platform {
    pub log: Mutex<Vec<Event>>,
    pub refuse: AtomicBool,
    pub alive: AtomicUsize,
    /// Vectors that have a message.
    pub live: AtomicUsize,
    /// Those that were given, in this order.
    given: Mutex<Vec<Weak<Shown>>>,
}

/// What the descriptor of a vector leads to.
#[derive(Default)]
struct Shown {
    message: Mutex<Option<MsiMessage>>,
    waiting: AtomicBool,
}

impl Platform {
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    pub fn sent(&self) -> Vec<MsiMessage> {
        let sent = |event| match event {
            Event::Sent(message) => Some(message),
            _ => None,
        };
        self.take().into_iter().filter_map(sent).collect()
    }

    /// Who holds the descriptor of the vector that was given as the `index`th signals. Nothing if that vector is no more.
    pub fn signal_outside(&self, index: usize) {
        let shown = self.given.lock().unwrap().get(index).and_then(Weak::upgrade);
        let Some(shown) = shown else { return };
        match *shown.message.lock().unwrap() {
            Some(message) => self.log.lock().unwrap().push(Event::Sent(message)),
            None => shown.waiting.store(true, SeqCst),
        }
    }

    fn note(&self, event: Event) -> io::Result<()> {
        let event = if self.refuse.load(SeqCst) {
            Event::Refused
        } else {
            event
        };
        self.log.lock().unwrap().push(event);
        match event {
            Event::Refused => Err(io::Error::other("as told")),
            _ => Ok(()),
        }
    }
}

pub struct Vectors(pub Arc<Platform>);

impl MsiVectors for Vectors {
    fn vector(&self, requester: RequesterId) -> io::Result<Box<dyn MsiVector>> {
        self.0.note(Event::Allocated(requester))?;
        self.0.alive.fetch_add(1, SeqCst);
        let shown = Arc::default();
        self.0.given.lock().unwrap().push(Arc::downgrade(&shown));
        Ok(Box::new(Vector {
            platform: Arc::clone(&self.0),
            shown,
            descriptor: File::open("/dev/null").ok(),
        }))
    }
}

struct Vector {
    platform: Arc<Platform>,
    shown: Arc<Shown>,
    /// Any will do: nobody writes to it.
    #[cfg_attr(not(unix), allow(dead_code))]
    descriptor: Option<File>,
}

impl Interrupt for Vector {
    fn trigger(&self) -> io::Result<()> {
        let message = self
            .shown
            .message
            .lock()
            .unwrap()
            .expect("a vector without a message is triggered");
        self.platform.note(Event::Sent(message))
    }
}

impl MsiVector for Vector {
    fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut now = self.shown.message.lock().unwrap();
        self.platform.note(Event::Programmed(message))?;
        self.platform.live.fetch_sub(now.is_some().into(), SeqCst);
        self.platform.live.fetch_add(message.is_some().into(), SeqCst);
        *now = message;
        if let Some(message) = message
            && self.take_signal()
        {
            self.platform.log.lock().unwrap().push(Event::Sent(message));
        }
        Ok(())
    }

    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(File::as_fd)
    }

    fn is_signalled(&self) -> bool {
        self.shown.waiting.load(SeqCst)
    }

    fn take_signal(&self) -> bool {
        self.shown.waiting.swap(false, SeqCst)
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.platform.log.lock().unwrap().push(Event::Dropped);
        self.platform.alive.fetch_sub(1, SeqCst);
        self.platform
            .live
            .fetch_sub(self.shown.message.lock().unwrap().is_some().into(), SeqCst);
    }
}

/// A device whose BARs read as their number in every byte, and remember the last write.
pub struct Device {
    pub endpoint: Endpoint,
    pub written: Mutex<Option<(BarIndex, u64, Vec<u8>)>>,
}

impl Device {
    pub fn new(config: EndpointConfig, slot: Slot) -> Arc<Self> {
        Arc::new(Self {
            endpoint: Endpoint::new(config, slot),
            written: Mutex::default(),
        })
    }
}

impl Function for Device {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn read_bar(&self, bar: BarIndex, _offset: u64, data: &mut [u8]) {
        data.fill(self.endpoint.address().function() << 4 | bar as u8);
    }

    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        *self.written.lock().unwrap() = Some((bar, offset, data.to_vec()));
    }
}

pub const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    revision: 1,
    class: [0x01, 0x80, 0x02],
    subsystem_vendor: 0x1af4,
    subsystem: 0x0040,
};

/// One of everything: BARs of each kind, MSI-X of `vectors`, MSI of 8, and a capability of its own.
pub fn config(vectors: u16) -> EndpointConfig {
    let mut config = EndpointConfig::new(IDENTITY).unwrap();
    config.pin(Pin::A);
    config.bar(BarIndex::Bar0, Bar::memory64(0x4000)).unwrap();
    config.bar(BarIndex::Bar2, Bar::io(0x20)).unwrap();
    config.msix(MSIX_BAR, vectors).unwrap();
    config.bar(BarIndex::Bar4, Bar::memory32(0x1000)).unwrap();
    config.msi(8).unwrap();
    config.capability(0x09, &[6, 0xaa, 0x55, 0], &[0, 0, 0x0f, 0]).unwrap();
    config
}

pub fn at(device: u8, function: u8) -> DeviceFunction {
    DeviceFunction::new(device, function).unwrap()
}

/// An endpoint alone, with its wire and its platform in sight.
pub struct World {
    pub endpoint: Endpoint,
    pub platform: Arc<Platform>,
    pub wire: Arc<Mutex<Vec<bool>>>,
}

impl World {
    pub fn new(vectors: u16) -> Self {
        let platform = Arc::new(Platform::default());
        let wire = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&wire);
        let line = level_from_fn(move |up| {
            heard.lock().unwrap().push(up);
            Ok(())
        });
        let slot = Slot::new(at(3, 1), Box::new(line), Arc::new(Vectors(Arc::clone(&platform))));
        Self {
            endpoint: Endpoint::new(config(vectors), slot),
            platform,
            wire,
        }
    }

    /// With the bus mastered and MSI-X enabled, every vector masked.
    pub fn enabled(vectors: u16) -> Self {
        let world = Self::new(vectors);
        world.write(COMMAND, MEMORY_SPACE | BUS_MASTER);
        world.write(MSIX_CONTROL, ENABLE);
        world
    }

    pub fn msix(&self) -> &MsiX {
        self.endpoint.msix().unwrap()
    }

    pub fn msi(&self) -> &devisor::pci::Msi {
        self.endpoint.msi().unwrap()
    }

    pub fn heard(&self) -> Vec<bool> {
        std::mem::take(&mut *self.wire.lock().unwrap())
    }

    pub fn write(&self, offset: u64, value: u16) -> bool {
        self.endpoint.write_config(offset, &value.to_le_bytes())
    }

    pub fn write32(&self, offset: u64, value: u32) -> bool {
        self.endpoint.write_config(offset, &value.to_le_bytes())
    }

    pub fn read(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.endpoint.read_config(offset, &mut data[..len]);
        read_le(&data[..len])
    }

    pub fn table(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        assert!(self.endpoint.read_bar(MSIX_BAR, offset, &mut data[..len]));
        read_le(&data[..len])
    }

    pub fn set_table(&self, offset: u64, len: usize, value: u64) {
        let mut data = [0; 8];
        write_le(&mut data[..len], value);
        assert!(self.endpoint.write_bar(MSIX_BAR, offset, &data[..len]));
    }

    /// Gives `vector` its message, and unmasks it.
    pub fn open(&self, vector: u16) {
        let entry = u64::from(vector) * 16;
        let MsiMessage { address, data } = message(vector);
        self.set_table(entry, 8, address);
        self.set_table(entry + 8, 4, data.into());
        self.mask(vector, false);
    }

    pub fn mask(&self, vector: u16, masked: bool) {
        self.set_table(u64::from(vector) * 16 + 12, 4, masked.into());
    }
}

pub fn message(vector: u16) -> MsiMessage {
    MsiMessage {
        address: 0x1_fee0_0000,
        data: 0x40 + u32::from(vector),
    }
}

/// A bus whose wires and messages are in sight.
pub fn root_bus() -> (RootBus, Arc<Platform>, Arc<Mutex<[bool; 4]>>) {
    let platform = Arc::new(Platform::default());
    let levels = Arc::new(Mutex::new([false; 4]));
    let wires = [0, 1, 2, 3].map(|wire| {
        let levels = Arc::clone(&levels);
        Arc::new(level_from_fn(move |up| {
            levels.lock().unwrap()[wire] = up;
            Ok(())
        })) as Arc<dyn LevelInterrupt>
    });
    let bus = RootBus::new(wires, Arc::new(Vectors(Arc::clone(&platform))));
    (bus, platform, levels)
}

pub fn silent_slot(address: DeviceFunction) -> Slot {
    Slot::new(address, Box::new(NoInterrupt), Arc::new(NoMessages))
}
