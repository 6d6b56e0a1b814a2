//! The virtio devices, on the transport that the command line asks for. The devices are the same on each.

use std::{error::Error, sync::Arc};

use devisor::{
    backends::{
        irqchip::{Spi, gicv2::GicV2, gicv2m::GicV2mFrame},
        recorder::Recorder,
    },
    bus::Bus,
    event_loop::EventLoop,
    interrupt::{LevelInterrupt, NoInterrupt, RequesterId, SinkVectors},
    pci::{DeviceFunction, HostBridge, Pin, RootBus},
    virtio::{VirtioDevice, VirtioMmio, VirtioPci, VirtioTransport, transport::mmio::Line},
};
use vm_memory::GuestMemoryMmap;

use crate::board::{self, GIC_MESSAGES, MESSAGES, PCI_CONFIG, PCI_MEMORY, Window};

/// What is between the guest's drivers and our devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Registers in memory, and a line for each device.
    Mmio,
    /// A PCI bus, and messages.
    Pci,
    /// The same bus, with a guest that is told to use its wires.
    PciIntx,
}

impl Transport {
    /// All of them, by the names that the command line has for them.
    pub const NAMES: [(&str, Self); 3] = [("mmio", Self::Mmio), ("pci", Self::Pci), ("pci-intx", Self::PciIntx)];

    /// Whether there is a PCI bus.
    pub fn is_pci(self) -> bool {
        self != Self::Mmio
    }
}

/// One of the devices, as the board and the device tree know it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The name under which its line is recorded.
    pub name: &'static str,
    /// Its registers, and its line.
    pub mmio: (Window, Spi),
    /// Its number on the PCI bus, and the guest's number for it as a virtio device.
    pub pci: (u8, &'static str),
}

impl Place {
    pub fn address(&self) -> DeviceFunction {
        DeviceFunction::new(self.pci.0, 0).expect("less than 32")
    }

    /// Who sends its messages.
    pub fn requester(&self) -> RequesterId {
        self.address().requester()
    }

    /// Where its line, or its wire, ends.
    pub fn spi(&self, transport: Transport) -> Spi {
        match transport {
            Transport::Mmio => self.mmio.1,
            Transport::Pci | Transport::PciIntx => board::PCI_WIRES[self.address().wire(Pin::A)],
        }
    }
}

type Memory = Arc<GuestMemoryMmap>;

/// Where the devices are plugged in.
pub enum Slots<'a> {
    Mmio { gic: &'a GicV2, recorder: &'a Recorder },
    Pci(RootBus),
}

/// The name under which messages are recorded.
pub const MESSAGE_LINE: &str = "GICv2m";

impl<'a> Slots<'a> {
    /// Puts on `bus` what the transport needs besides devices.
    pub fn new(
        transport: Transport,
        gic: &'a GicV2,
        recorder: &'a Recorder,
        bus: &mut Bus,
        places: &[Place],
    ) -> Result<Self, Box<dyn Error>> {
        if !transport.is_pci() {
            return Ok(Self::Mmio { gic, recorder });
        }
        let (first, count) = MESSAGES;
        let frame = Arc::new(GicV2mFrame::new(gic, GIC_MESSAGES.base, first, count)?);
        bus.insert(GIC_MESSAGES.base, GIC_MESSAGES.len, Arc::clone(&frame) as _)?;

        let mut wires = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>);
        let mut named = [false; 4];
        for place in places {
            let wire = place.address().wire(Pin::A);
            // Who shares a wire is counted with whoever had it first.
            if std::mem::replace(&mut named[wire], true) {
                continue;
            }
            wires[wire] = Arc::new(recorder.wrap_level(place.name, gic.level_line(board::PCI_WIRES[wire])?));
        }
        let sink = Arc::new(recorder.wrap_sink(MESSAGE_LINE, frame));
        let root = RootBus::new(wires, Arc::new(SinkVectors::new(sink)));
        let bridge = DeviceFunction::new(0, 0).expect("there is a device 0");
        root.insert(Arc::new(HostBridge::new(root.slot(bridge)?)))?;
        bus.insert(PCI_CONFIG.base, PCI_CONFIG.len, Arc::new(root.ecam()))?;
        bus.insert(
            PCI_MEMORY.base,
            PCI_MEMORY.len,
            Arc::new(root.memory_window(PCI_MEMORY.base)),
        )?;
        Ok(Self::Pci(root))
    }

    /// Plugs in a device, to be run by `events`. What changes it is for whoever has something to do with it.
    pub fn plug<D: VirtioDevice + 'static>(
        &self,
        place: &Place,
        device: D,
        memory: &Memory,
        events: &EventLoop,
        bus: &mut Bus,
    ) -> Result<Plugged<D>, Box<dyn Error>> {
        let memory = Arc::clone(memory);
        let seat = events.seat();
        let device = match self {
            Self::Mmio { gic, recorder } => {
                let (window, spi) = place.mmio;
                let line = Arc::new(recorder.wrap_level(place.name, gic.level_line(spi)?));
                let device = VirtioMmio::new(device, memory, Line::Level(line))?.with_doorbell(seat.clone());
                let device = Arc::new(device);
                bus.insert(window.base, window.len, Arc::clone(&device) as _)?;
                Plugged::Mmio(device)
            }
            Self::Pci(root) => {
                let slot = root.slot(place.address())?;
                let device = Arc::new(VirtioPci::new(device, memory, slot)?.with_doorbell(seat.clone()));
                root.insert(Arc::clone(&device) as _)?;
                Plugged::Pci(device)
            }
        };
        seat.take(&device.transport());
        Ok(device)
    }
}

/// A device that is plugged in.
pub enum Plugged<D> {
    Mmio(Arc<VirtioMmio<D>>),
    Pci(Arc<VirtioPci<D>>),
}

impl<D: VirtioDevice + 'static> Plugged<D> {
    pub fn transport(&self) -> Arc<dyn VirtioTransport> {
        match self {
            Self::Mmio(device) => Arc::clone(device) as _,
            Self::Pci(device) => Arc::clone(device) as _,
        }
    }

    /// Looks at the device, or has it do something that the guest does not read.
    pub fn with<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        match self {
            Self::Mmio(device) => device.with_device(f),
            Self::Pci(device) => device.with_device(f),
        }
    }

    /// Changes what the guest reads, and tells it.
    pub fn change_config<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        match self {
            Self::Mmio(device) => device.change_config(f),
            Self::Pci(device) => device.change_config(f),
        }
    }
}
