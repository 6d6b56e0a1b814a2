//! The board: its devices, where they are, and which interrupts they have. The addresses are those of QEMU's `virt`,
//! which nothing asks for: the guest reads them from the device tree.

use std::{error::Error, sync::Arc, time::Duration};

use devisor::{
    backends::{
        irqchip::{CpuId, IntId, Ppi, Spi, gicv2::LevelLine},
        recorder::{RecordedLevel, Recorder},
    },
    bus::{Bus, BusDevice},
    interrupt::{LevelInterrupt, NoInterrupt},
    pci::RootBus,
    platform::{
        cfi_flash::CfiFlashConfig,
        fw_cfg::FwCfgMmio,
        pl011::{Pl011, Pl011Config},
        pl031::Pl031,
    },
    time::ManualClock,
    virtio::iommu::{EndpointId, Iommu, IommuEndpoint, IommuError, IommuOptions},
};

use super::{
    acpi,
    gic::{self, Gic, id_of_lpi, id_of_spi},
    machine::{InterruptPins, Machine},
};
use crate::{
    counts::{By, Id, Rows, Source},
    devices::Devices,
    firmware,
    more::Room,
    options::{Gic as GicVersion, Options},
    ram::Ram,
    virtio::{MESSAGE_LINE, Place, Slots, Transport, Window, pci_bus, recorded, window},
    watch::Console,
    wing::{Clock, Facts, Plan},
};

/// Of a GICv2 the first 0x1000 bytes.
pub const GIC_DISTRIBUTOR: Window = window(0x0800_0000, 0x1_0000);
pub const GIC_CPU_INTERFACE: Window = window(0x0801_0000, 0x2000);
/// The frame that turns messages into SPIs.
pub const GIC_MESSAGES: Window = window(0x0802_0000, 0x1000);
/// In place of these a GICv3 has its one redistributor, and an ITS.
pub const GIC_ITS: Window = window(0x0808_0000, 0x2_0000);
pub const GIC_REDISTRIBUTOR: Window = window(0x080a_0000, 0x2_0000);
/// The firmware's code, which it cannot write to, and its settings.
pub const CODE: Window = window(0, 0x400_0000);
pub const SETTINGS: Window = window(0x400_0000, 0x400_0000);
pub const FW_CFG: Window = window(0x0902_0000, FwCfgMmio::SIZE);
/// Where each device's registers begin.
pub const REGIONS: [(u64, &str); 12] = [
    (CODE.base, "flash"),
    (GIC_DISTRIBUTOR.base, "GIC distributor"),
    (GIC_CPU_INTERFACE.base, "GICv2 CPU interface"),
    (GIC_MESSAGES.base, "GICv2m"),
    (GIC_ITS.base, "ITS"),
    (GIC_REDISTRIBUTOR.base, "GIC redistributor"),
    (UART.base, "uart"),
    (RTC.base, "clock"),
    (FW_CFG.base, "fw_cfg"),
    (place(0, "").mmio.base, "virtio-mmio"),
    (PCI_MEMORY.base, "virtio-pci"),
    (PCI_CONFIG.base, "PCI, ECAM"),
];
pub const UART: Window = window(0x0900_0000, 0x1000);
pub const RTC: Window = window(0x0901_0000, 0x1000);
/// Where the guest may place BARs, and the configuration space of the one bus.
pub const PCI_MEMORY: Window = window(0x1000_0000, 0x2eff_0000);
pub const PCI_CONFIG: Window = window(0x3f00_0000, 0x10_0000);
/// All of the above, and nothing else.
pub const DEVICES: Window = window(0, 0x4000_0000);

pub const RAM: Window = window(0x4000_0000, 256 << 20);
/// What the guest may plug: a memory block of Linux's on arm64. And persistent memory.
const PLUGGABLE: Window = window(0x8000_0000, 128 << 20);
const PERSISTENT: Window = window(0xa000_0000, 16 << 20);
/// An arm64 `Image` wants to be at a multiple of 2 MiB (plus its `text_offset`, which is 0 in each recent kernel).
pub const KERNEL: u64 = 0x4020_0000;
/// Where firmware finds its device tree: where RAM begins.
pub const FIRMWARE_DEVICE_TREE: u64 = RAM.base;
/// At most 2 MiB, and it must not cross a multiple of 2 MiB.
pub const DEVICE_TREE: u64 = 0x47e0_0000;
pub const INITRD: u64 = 0x4800_0000;

pub const UART_SPI: Spi = Spi(1);
pub const RTC_SPI: Spi = Spi(2);
/// Where INTA to INTD of the PCI bus end.
pub const PCI_WIRES: [Spi; 4] = [Spi(3), Spi(4), Spi(5), Spi(6)];
/// The first of the SPIs that are for messages, and how many they are: all that a GIC has after those of lines. All devices together have
/// more than 32 vectors.
pub const MESSAGES: (Spi, u32) = (Spi(48), 48);
pub const VIRTUAL_TIMER_PPI: Ppi = Ppi(11);
pub const PHYSICAL_TIMER_PPI: Ppi = Ppi(14);

/// When the guest's time begins: 1 January 2030, counted from the Unix epoch.
pub const EPOCH: Duration = Duration::from_secs(1_893_456_000);

pub const CPU: CpuId = CpuId(0);

/// The virtio devices of every board: the disk and the entropy device.
pub const VIRTIO: [Place; 2] = [place(0, "virtio-blk"), place(1, "virtio-rng")];

/// What there is for more.
pub const ROOM: Room = Room {
    ram: RAM,
    pluggable: PLUGGABLE,
    persistent: Ok(PERSISTENT),
    place,
};

/// The place of the virtio device with this number: it is at the one of the two or at the other.
const fn place(number: u8, name: &'static str) -> Place {
    Place {
        name,
        mmio: window(0x0a00_0000 + 0x200 * number as u64, 0x200),
        pci: 1 + number,
        virtio: number,
    }
}

/// Where all virtio devices are.
pub fn places(options: &Options) -> Vec<Place> {
    let mut places = options.devices.places(VIRTIO, &ROOM);
    if options.iommu {
        // On PCI the guest's first virtio device is the IOMMU, and all others wait for it; elsewhere they are not known by number.
        for place in &mut places {
            place.virtio += 1;
        }
        places.push(IOMMU);
    }
    places
}

/// The IOMMU of all others, if there is one.
pub const IOMMU: Place = Place {
    virtio: 0,
    ..place(15, "virtio-iommu")
};

/// Whether a device can be behind it: Linux's driver of the balloon does not accept ACCESS_PLATFORM, since its pages are physical ones, and
/// a daemon is not told how memory is translated.
pub fn may_be_behind(place: &Place) -> bool {
    !["virtio-balloon", "virtio-fs by virtiofsd", IOMMU.name].contains(&place.name)
}

/// By which the IOMMU knows a device.
pub fn endpoint(place: &Place, transport: Transport) -> EndpointId {
    EndpointId(match transport {
        Transport::Mmio => place.pci.into(),
        Transport::Pci | Transport::PciIntx => place.requester().0.into(),
    })
}

fn iommu(options: &Options, ram: &Ram) -> Result<Iommu, IommuError> {
    let transport = options.transport;
    let endpoints = places(options).into_iter().filter(may_be_behind).map(|place| {
        let endpoint = IommuEndpoint::new(endpoint(&place, transport));
        match transport {
            Transport::Mmio => endpoint,
            // What functions send to the interrupt controller is not translated.
            Transport::Pci | Transport::PciIntx => endpoint.with_msi(gic::doorbell(options.gic)),
        }
    });
    let options = IommuOptions {
        endpoints: endpoints.collect(),
        ..IommuOptions::default()
    };
    Iommu::new(Arc::clone(ram.memory()), options)
}

/// Where the line of a virtio-mmio device ends.
pub fn mmio_spi(place: &Place) -> Spi {
    Spi(15 + u32::from(place.pci))
}

/// Where its line, or its wire, ends.
fn spi(place: &Place, transport: Transport) -> Spi {
    match transport {
        Transport::Mmio => mmio_spi(place),
        Transport::Pci | Transport::PciIntx => PCI_WIRES[place.wire()],
    }
}

pub const TIMER: &str = "virtual timer";
pub const UART_LINE: &str = "uart";
pub const RTC_LINE: &str = "rtc";

type RecordedLine = RecordedLevel<LevelLine>;

/// The clock for a guest that a device tree tells of it.
pub const CLOCK: Clock = Clock::of_ours("rtc-pl031");

/// What interrupts the guest.
pub fn sources(gic: GicVersion, transport: Transport, places: &[Place], clock: Clock) -> Vec<Source> {
    let rows = |id: IntId| Rows::Input("GIC", id.0);
    let line = |name, id| Source {
        name,
        by: By::Line(Id::IntId(id)),
        rows: rows(id),
    };
    let mut sources = vec![line(TIMER, VIRTUAL_TIMER_PPI.into()), line(UART_LINE, UART_SPI.into())];
    if clock.no_alarm.is_none() {
        sources.push(line(RTC_LINE, RTC_SPI.into()));
    }
    sources.extend(places.iter().map(|place| {
        let id = spi(place, transport).into();
        let id_of_message = match gic {
            GicVersion::V2 => id_of_spi,
            GicVersion::V3 => id_of_lpi,
        };
        Source::virtio(place, transport, Id::IntId(id), rows(id), id_of_message)
    }));
    sources
}

/// What the guest has to see of it.
pub fn facts(options: &Options) -> Facts {
    let (transport, [disk, _]) = (options.transport, &VIRTIO);
    let clock = if options.acpi { Clock::OF_UEFI } else { CLOCK };
    Facts {
        epoch: EPOCH,
        clock,
        disk_parent: match transport {
            Transport::Mmio => format!("/{:x}.virtio_mmio/", disk.mmio.base),
            Transport::Pci | Transport::PciIntx => disk.pci_parent(),
        },
        sources: sources(options.gic, transport, &places(options), clock),
    }
}

/// The devices that are to be called between two runs of the core.
pub struct Board {
    pub uart: Arc<Pl011<RecordedLine, Console>>,
    pub devices: Devices,
    clock: Arc<ManualClock>,
    rtc: Arc<Pl031<RecordedLine, Arc<ManualClock>, ()>>,
}

impl Board {
    /// Makes the devices and wires them to each other and to the core.
    pub fn new(
        plan: &Plan<'_>,
        machine: &Machine,
        pins: InterruptPins,
        ram: &Ram,
        clock: Arc<ManualClock>,
        recorder: &Recorder,
    ) -> Result<Self, Box<dyn Error>> {
        let gic = Gic::new(plan.options.gic, pins, ram)?;
        let line = |name, spi| gic.level_line(spi).map(|line| recorder.wrap_level(name, line));
        let timer = |name, ppi| gic.timer_line(ppi).map(|line| recorder.wrap_level(name, line));

        let console = Console {
            watch: Arc::clone(plan.watch),
            wire: Arc::clone(plan.wire),
        };
        let uart = Arc::new(Pl011::new(Pl011Config::default(), line(UART_LINE, UART_SPI)?, console));
        let rtc = Arc::new(Pl031::new(line(RTC_LINE, RTC_SPI)?, Arc::clone(&clock), ()));

        let mut bus = Bus::new();
        let iommu = plan.options.iommu.then(|| iommu(plan.options, ram)).transpose()?;
        let transport = plan.options.transport;
        let behind = iommu.iter().flat_map(|iommu| {
            let memory = |place: &Place| Some((place.pci, iommu.memory(endpoint(place, transport))?));
            places(plan.options).iter().filter_map(memory).collect::<Vec<_>>()
        });
        let behind = behind.collect();
        let slots = match transport {
            Transport::Mmio => Slots::Mmio(
                plan.options.rings,
                Box::new(|place| Ok(Arc::new(line(place.name, mmio_spi(place))?) as _)),
                behind,
            ),
            Transport::Pci | Transport::PciIntx => Slots::Pci(
                plan.options.rings,
                pci(&gic, &places(plan.options), recorder, &mut bus)?,
                behind,
            ),
        };
        let watched = endpoint(&VIRTIO[1], transport);
        let iommu = iommu.map(|iommu| (IOMMU, iommu, watched));
        let devices = Devices::new(plan, &VIRTIO, &ROOM, &slots, &mut bus, ram, iommu)?;

        if let Some(registers) = gic.plug(&mut bus, plan.watch)? {
            machine.add_registers(registers);
        }
        let platform: [(Window, Arc<dyn BusDevice>); 2] =
            [(UART, Arc::clone(&uart) as _), (RTC, Arc::clone(&rtc) as _)];
        for (window, device) in platform {
            bus.insert(window.base, window.len, device)?;
        }
        if let Some(image) = &plan.options.firmware {
            let settings = firmware::settings(image, SETTINGS, CfiFlashConfig::VIRT)?;
            bus.insert(SETTINGS.base, SETTINGS.len, Arc::new(settings))?;
            let fw_cfg = firmware::fw_cfg(plan.options, ram, &super::command_line(plan.options))?;
            if plan.options.acpi {
                for (name, bytes) in acpi::files(plan.options)? {
                    fw_cfg.add_file(name, bytes)?;
                }
            }
            bus.insert(FW_CFG.base, FW_CFG.len, Arc::new(fw_cfg.mmio()))?;
        }
        machine.plug(bus, DEVICES.len)?;
        machine.connect("cntv", timer(TIMER, VIRTUAL_TIMER_PPI)?)?;
        machine.connect("cntp", timer("physical timer", PHYSICAL_TIMER_PPI)?)?;
        Ok(Self {
            uart,
            devices,
            clock,
            rtc,
        })
    }

    /// Sets the time, as the guest has been running for `uptime`.
    pub fn let_time_pass(&self, uptime: Duration) {
        let now = EPOCH + uptime;
        self.clock.advance_to(now);
        if self.rtc.deadline().is_some_and(|deadline| deadline <= now) {
            self.rtc.expire();
        }
    }

    /// The uptime at which the clock's alarm is to go off.
    pub fn alarm(&self) -> Option<Duration> {
        Some(self.rtc.deadline()?.saturating_sub(EPOCH))
    }
}

/// Puts a PCI bus on `bus`, with what takes its messages.
fn pci(gic: &Gic, places: &[Place], recorder: &Recorder, bus: &mut Bus) -> Result<RootBus, Box<dyn Error>> {
    let messages = gic.messages(bus)?;
    let mut wires = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>);
    for (wire, spi) in wires.iter_mut().zip(PCI_WIRES) {
        *wire = Arc::new(gic.level_line(spi)?);
    }
    let wires = recorded(wires, places, recorder);
    let root = pci_bus(wires, recorder.wrap_sink(MESSAGE_LINE, messages))?;
    bus.insert(PCI_CONFIG.base, PCI_CONFIG.len, Arc::new(root.ecam()))?;
    let window = root.memory_window(PCI_MEMORY.base);
    bus.insert(PCI_MEMORY.base, PCI_MEMORY.len, Arc::new(window))?;
    Ok(root)
}
