//! A virtio-pci device that a driver kicks by hand, for who counts what that costs.

use std::{
    cell::Cell,
    hint::black_box,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use devisor::{
    bus::Bus,
    interrupt::{MsiMessage, MsiSink, NoInterrupt, RequesterId, SinkVectors},
    pci::{DeviceFunction, Ecam, RootBus},
    virtio::{VirtioPci, entropy::Entropy},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const ECAM: u64 = 0x3000_0000;
const APERTURE: u64 = 0x4000_0000;
const FUNCTION: u64 = ECAM + (1 << 15);
const BAR0: u64 = APERTURE;
const BAR1: u64 = APERTURE + 0x1_0000;
const DOORBELL: u64 = BAR0 + 0x3000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// A sink that does as little as a sink can.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl MsiSink for Counter {
    fn send(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.0.fetch_add(message.data.into(), Ordering::Relaxed);
        Ok(())
    }
}

/// An entropy device that is driven by hand, one byte a request.
pub struct Driven {
    bus: Bus,
    memory: Arc<GuestMemoryMmap>,
    next: Cell<u16>,
}

impl Driven {
    /// `vector` for its queue: 1, or 0xffff for none.
    pub fn new(vector: u16) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        memory.write_obj(0x4000_u64, GuestAddress(DESCRIPTORS)).unwrap();
        memory.write_obj(1_u32, GuestAddress(DESCRIPTORS + 8)).unwrap();
        memory.write_obj(2_u16, GuestAddress(DESCRIPTORS + 12)).unwrap();
        let silent = [(); 4].map(|()| Arc::new(NoInterrupt) as _);
        let root = RootBus::new(silent, Arc::new(SinkVectors::new(Arc::new(Counter::default()))));
        let slot = root.slot(DeviceFunction::new(1, 0).unwrap()).unwrap();
        let device = VirtioPci::new(Entropy::seeded(1), Arc::clone(&memory), slot).unwrap();
        root.insert(Arc::new(device)).unwrap();
        let mut bus = Bus::new();
        bus.insert(ECAM, Ecam::SIZE, Arc::new(root.ecam())).unwrap();
        let window = Arc::new(root.memory_window(APERTURE));
        bus.insert(APERTURE, 1 << 20, window).unwrap();

        let write = |address: u64, len: usize, value: u64| bus.write(address, &value.to_le_bytes()[..len]).unwrap();
        write(FUNCTION + 0x10, 4, BAR0);
        write(FUNCTION + 0x14, 4, BAR1);
        write(FUNCTION + 0x04, 2, 6);
        write(FUNCTION + 0x42, 2, 0x8000);
        write(BAR1 + 0x10, 8, 0xfee0_0000);
        write(BAR1 + 0x18, 8, 0x41);
        let common = |register: u64, len, value| write(BAR0 + register, len, value);
        common(0x14, 1, 1);
        common(0x14, 1, 3);
        // VIRTIO_F_VERSION_1.
        common(0x08, 4, 1);
        common(0x0c, 4, 1);
        common(0x14, 1, 0xb);
        common(0x18, 2, 64);
        common(0x1a, 2, vector.into());
        for (register, address) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            common(register, 4, address);
            common(register + 4, 4, 0);
        }
        common(0x1c, 2, 1);
        common(0x14, 1, 0xf);
        let next = Cell::new(0);
        let driven = Self { bus, memory, next };
        driven.request();
        let used: u16 = driven.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        assert_eq!(used, 1, "the device works");
        driven
    }

    pub fn kick(&self) {
        self.bus.write(black_box(DOORBELL), &[0; 2]).unwrap();
    }

    /// The driver's part of a request: it is available, and the device does not know.
    pub fn offer(&self) {
        self.next.set(self.next.get().wrapping_add(1));
        self.memory
            .write_obj(self.next.get(), GuestAddress(AVAILABLE + 2))
            .unwrap();
    }

    pub fn request(&self) {
        self.offer();
        self.kick();
    }
}
