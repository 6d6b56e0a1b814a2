//! A device that a thread runs, and a transport to it for drivers that others wrote.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use devisor::{
    bus::Bus as Addresses,
    interrupt::{LevelInterrupt, NoInterrupt, from_fn, level_from_fn},
    pci::{DeviceFunction, HostBridge, RootBus},
    virtio::{VirtioDevice, VirtioMmio, VirtioPci, VirtioTransport, transport::mmio::Line},
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    guest_drivers::{MmioTransport, give_dma_memory},
    guest_pci::{Messages, PciTransport, guest_bus},
    worker::{Bell, Worker},
};

const DMA: Range<u64> = 0x1000..1 << 20;
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device behind virtio-mmio or virtio-pci, whose interrupts are counted.
pub struct Plugged<D> {
    pub mmio: Option<Arc<VirtioMmio<D>>>,
    pub pci: Option<(Arc<VirtioPci<D>>, Arc<Addresses>)>,
    worker: Worker,
    interrupts: Arc<AtomicU64>,
}

impl<D: VirtioDevice + 'static> Plugged<D> {
    fn memory() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        give_dma_memory(&memory, DMA);
        memory
    }

    pub fn mmio(device: D) -> (Self, MmioTransport) {
        Self::mmio_in(|_| device)
    }

    /// The same of a device that is made with the guest's memory.
    pub fn mmio_in(device: impl FnOnce(GuestMemoryMmap) -> D) -> (Self, MmioTransport) {
        let (memory, bell, interrupts) = (Self::memory(), Bell::default(), Arc::new(AtomicU64::new(0)));
        let device = device(memory.clone());
        let count = Arc::clone(&interrupts);
        let line = from_fn(move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let device = VirtioMmio::new(device, Arc::new(memory), Line::Edge(Arc::new(line))).unwrap();
        let device = Arc::new(device.with_doorbell(bell.clone()));
        let worker = Worker::spawn(&bell, {
            let device = Arc::clone(&device);
            move || device.run()
        });
        let transport = MmioTransport::new(Arc::clone(&device) as _).unwrap();
        let plugged = Self {
            mmio: Some(device),
            pci: None,
            worker: worker.unwrap(),
            interrupts,
        };
        (plugged, transport)
    }

    pub fn pci(device: D) -> (Self, PciTransport) {
        Self::pci_in(|_| device)
    }

    /// The same of a device that is made with the guest's memory.
    pub fn pci_in(device: impl FnOnce(GuestMemoryMmap) -> D) -> (Self, PciTransport) {
        let (memory, bell, interrupts) = (Self::memory(), Bell::default(), Arc::new(AtomicU64::new(0)));
        let device = device(memory.clone());
        let count = Arc::clone(&interrupts);
        let wire = level_from_fn(move |up| {
            count.fetch_add(up.into(), Ordering::SeqCst);
            Ok(())
        });
        let silent = || Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>;
        let wires = [silent(), Arc::new(wire), silent(), silent()];
        let root = RootBus::new(wires, Arc::new(crate::machine::no_messages()));
        let bridge = HostBridge::new(root.slot(DeviceFunction::new(0, 0).unwrap()).unwrap());
        root.insert(Arc::new(bridge)).unwrap();
        let slot = root.slot(DeviceFunction::new(1, 0).unwrap()).unwrap();
        let device = VirtioPci::new(device, Arc::new(memory), slot).unwrap();
        let device = Arc::new(device.with_doorbell(bell.clone()));
        root.insert(Arc::clone(&device) as _).unwrap();
        let worker = Worker::spawn(&bell, {
            let device = Arc::clone(&device);
            move || device.run()
        });
        let bus = guest_bus(&root);
        let transport = PciTransport::new(&bus, &Messages::Intx).unwrap();
        let plugged = Self {
            mmio: None,
            pci: Some((device, bus)),
            worker: worker.unwrap(),
            interrupts,
        };
        (plugged, transport)
    }

    pub fn interrupts(&self) -> u64 {
        self.worker.settle();
        self.interrupts.load(Ordering::SeqCst)
    }
}

/// Waits until there is something.
pub fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = there() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}
