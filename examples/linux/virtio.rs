//! The virtio devices, on the transport that the command line asks for. The devices are the same on each.

use std::{collections::BTreeMap, error::Error, sync::Arc};

use devisor::{
    backends::recorder::Recorder,
    bus::Bus,
    event_loop::EventLoop,
    interrupt::{LevelInterrupt, MsiSink, RequesterId, SinkVectors},
    memory::Memory as Translated,
    pci::{DeviceFunction, HostBridge, Pin, RootBus},
    virtio::{
        VirtioDevice, VirtioMmio, VirtioPci, VirtioTransport,
        transport::{TransportOptions, mmio::Line, pci::VirtioPciOptions},
    },
};
use vm_memory::GuestMemoryMmap;

/// A region of the guest's address space.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub base: u64,
    pub len: u64,
}

pub const fn window(base: u64, len: u64) -> Window {
    Window { base, len }
}

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

/// What the driver is offered for its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    Split,
    /// Packed ones too, with and without event indices: Linux takes them.
    Packed,
    PackedPlain,
}

impl Rings {
    pub const NAMES: [(&str, Self); 3] = [
        ("split", Self::Split),
        ("packed", Self::Packed),
        ("packed-plain", Self::PackedPlain),
    ];

    fn options(self) -> TransportOptions {
        TransportOptions {
            packed: self != Self::Split,
            event_idx: self != Self::PackedPlain,
            notification_data: true,
            ..TransportOptions::default()
        }
    }
}

/// One of the devices, as the board and the guest's tables know it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The name under which its line is recorded.
    pub name: &'static str,
    /// Its registers as a virtio-mmio device.
    pub mmio: Window,
    /// Its number on the PCI bus.
    pub pci: u8,
    /// The guest's number for it as a virtio device.
    pub virtio: u8,
}

impl Place {
    pub fn address(&self) -> DeviceFunction {
        DeviceFunction::new(self.pci, 0).expect("less than 32")
    }

    /// Who sends its messages.
    pub fn requester(&self) -> RequesterId {
        self.address().requester()
    }

    /// What is in its path below `/sys` where there is a PCI bus.
    pub fn pci_parent(&self) -> String {
        format!("/pci0000:00/0000:00:{}/", self.address())
    }

    /// What the guest calls it as a virtio device.
    pub fn guest_name(&self) -> String {
        format!("virtio{}", self.virtio)
    }

    /// Which of the four wires of the PCI bus its INTA is.
    pub fn wire(&self) -> usize {
        self.address().wire(Pin::A)
    }
}

/// The name under which messages are recorded.
pub const MESSAGE_LINE: &str = "messages";

type Memory = Arc<GuestMemoryMmap>;

/// The line of a virtio-mmio device.
pub type LineOf<'a> = Box<dyn Fn(&Place) -> Result<Arc<dyn LevelInterrupt>, Box<dyn Error>> + 'a>;

/// Memory as it is translated for the device of each number, where it is.
pub type Behind = BTreeMap<u8, Translated>;

/// Where the devices are plugged in.
pub enum Slots<'a> {
    /// On the bus of all the others, each with the line that this makes for it.
    Mmio(Rings, LineOf<'a>, Behind),
    Pci(Rings, RootBus, Behind),
}

/// A PCI bus with a host bridge. `wires` are INTA to INTD, `messages` takes what functions send.
pub fn pci_bus(
    wires: [Arc<dyn LevelInterrupt>; 4],
    messages: impl MsiSink + 'static,
) -> Result<RootBus, Box<dyn Error>> {
    let root = RootBus::new(wires, Arc::new(SinkVectors::new(Arc::new(messages))));
    let bridge = DeviceFunction::new(0, 0).expect("there is a device 0");
    root.insert(Arc::new(HostBridge::new(root.slot(bridge)?)))?;
    Ok(root)
}

/// Records the wires of that bus, each under the names of all that are on it.
pub fn recorded(
    mut wires: [Arc<dyn LevelInterrupt>; 4],
    places: &[Place],
    recorder: &Recorder,
) -> [Arc<dyn LevelInterrupt>; 4] {
    for place in places {
        let wire = &mut wires[place.wire()];
        *wire = Arc::new(recorder.wrap_level(place.name, Arc::clone(wire)));
    }
    wires
}

impl Slots<'_> {
    /// Plugs in a device, to be run by `events`. What changes it is for whoever has something to do with it.
    pub fn plug<D: VirtioDevice + 'static>(
        &self,
        place: &Place,
        device: D,
        memory: &Memory,
        events: &EventLoop,
        bus: &mut Bus,
    ) -> Result<Plugged<D>, Box<dyn Error>> {
        let (Self::Mmio(.., behind) | Self::Pci(.., behind)) = self;
        let translated = behind.get(&place.pci).cloned();
        let memory = translated.unwrap_or_else(|| Translated::new(Arc::clone(memory)));
        let seat = events.seat();
        let device = match self {
            Self::Mmio(rings, line_of, _) => {
                let line = Line::Level(line_of(place)?);
                let device = VirtioMmio::with_memory(device, memory, line, &rings.options())?;
                let device = Arc::new(device.with_doorbell(seat.clone()));
                bus.insert(place.mmio.base, place.mmio.len, Arc::clone(&device) as _)?;
                Plugged::Mmio(device)
            }
            Self::Pci(rings, root, _) => {
                let slot = root.slot(place.address())?;
                let options = VirtioPciOptions {
                    transport: rings.options(),
                    ..VirtioPciOptions::default()
                };
                let device = VirtioPci::with_memory(device, memory, slot, &options)?;
                let device = Arc::new(device.with_doorbell(seat.clone()));
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
