//! The board: a PC's devices, where they are, and which interrupts they have. What has no place of its own by tradition the guest
//! finds by its tables.

use std::{
    error::Error,
    fs,
    sync::{Arc, OnceLock},
    time::Duration,
};

use devisor::{
    backends::{
        irqchip::{
            CpuId,
            lapic::{ApicId, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig},
            pc::{Gsi, LevelLine, Pc, PcConfig, TIMER_GSI},
            pic::Irq,
        },
        recorder::{RecordedLevel, Recorder},
    },
    bus::{Bus, BusDevice},
    interrupt::{LevelInterrupt, MsiMessage, RequesterId},
    platform::{
        acpi_pm::{AcpiPm, AcpiPmConfig},
        cfi_flash::CfiFlashConfig,
        fw_cfg::{FwCfg, FwCfgPorts},
        i8042::{I8042, I8042Lines},
        mc146818::{self, Mc146818},
        reset_control::{self, ResetControl},
        uart16550::{REGION_SIZE, Uart16550, Uart16550Config},
    },
};

use super::{
    chipset,
    clock::{Calendar, GuestClock, HZ},
    controller::Attention,
    machine::Around,
    vectors::{Acknowledged, INTERPROCESSOR, LOCAL_TIMER, NotedMessages},
};
use crate::{
    counts::{By, Id, Rows, Source},
    devices::Devices,
    firmware,
    more::Room,
    options::{Chips, Options},
    ram::Ram,
    virtio::{Behind, MESSAGE_LINE, Place, Slots, Transport, Window, pci_bus, recorded, window},
    watch::Console,
    wing::{Clock, Facts, Plan, PowerRequest},
};

pub const RAM: Window = window(0, 512 << 20);
/// How much of it is below where a PC has its screen, and where it goes on.
pub const CONVENTIONAL: u64 = 640 << 10;
pub const HIGH: u64 = 1 << 20;
/// What the guest may plug: a memory block of Linux's.
const PLUGGABLE: Window = window(0x8000_0000, 128 << 20);
/// Where the guest looks for its tables: past conventional memory, where a PC has its firmware.
pub const TABLES: Window = window(0xe_0000, 0x1_0000);
/// Where the guest may place BARs, and the configuration space of the one bus.
pub const PCI_MEMORY: Window = window(0xc000_0000, 0x1000_0000);
pub const PCI_CONFIG: Window = window(0xe000_0000, 0x10_0000);
/// Where firmware has it that is older.
pub const OLDER_PCI_CONFIG: Window = window(0xb000_0000, 0x10_0000);
pub const IOAPIC: Window = window(0xfec0_0000, 0x1000);
/// All of the above but for RAM, and nothing else.
pub const DEVICES: Window = window(0xb000_0000, 0x4fff_0000);

// Ports.
pub const KEYBOARD_DATA: u64 = 0x60;
pub const KEYBOARD_COMMAND: u64 = 0x64;
pub const RTC: u64 = 0x70;
pub const COM1: u64 = 0x3f8;
pub const PM_EVENTS: u64 = 0x600;
pub const PM_CONTROL: u64 = 0x604;
pub const PM_TIMER: u64 = 0x608;
pub const GPES: u64 = 0x620;
pub const FW_CFG: u64 = 0x510;
pub const PCI_PORTS: u64 = 0xcf8;

/// Where firmware places BARs, besides [`PCI_MEMORY`]: up to where it has its flash.
const PCI_MEMORY_BELOW_CONFIG: Window = window(0xd000_0000, 0x1000_0000);
const PCI_MEMORY_ABOVE_CONFIG: Window = window(0xe010_0000, 0x1bf0_0000);

/// Where BARs may be.
pub fn pci_memory(options: &Options) -> Vec<Window> {
    match options.firmware {
        None => vec![PCI_MEMORY],
        Some(_) => vec![PCI_MEMORY, PCI_MEMORY_BELOW_CONFIG, PCI_MEMORY_ABOVE_CONFIG],
    }
}

/// Where firmware with so much code keeps its settings: before the code, both together a power of two. `None` if that is too much.
pub fn settings(code: u64) -> Option<Window> {
    const MOST: u64 = 8 << 20;
    let all = code.next_power_of_two();
    let len = all - code;
    (code <= MOST && len != 0).then(|| window((1 << 32) - all, len))
}

/// Where each device's part of an address space begins, ports and memory together: what is below the next one is its own.
pub const REGIONS: [(u64, &str); 18] = [
    (0, "other ports"),
    (0x20, "8259"),
    (0x40, "8254"),
    (KEYBOARD_DATA, "8042, port B"),
    (RTC, "clock"),
    (0x80, "other ports above"),
    (0xa0, "8259, second"),
    (0xa2, "further ports"),
    (COM1, "uart"),
    (0x400, "8259, ELCR"),
    (PM_EVENTS, "ACPI PM"),
    (PCI_PORTS, "PCI, ports"),
    (OLDER_PCI_CONFIG.base, "PCI, older ECAM"),
    (PCI_MEMORY.base, "virtio-pci"),
    (PCI_MEMORY.base + PCI_MEMORY.len, "virtio-mmio"),
    (PCI_CONFIG.base, "PCI, ECAM"),
    (IOAPIC.base, "IOAPIC"),
    (0xfee0_0000, "local APICs"),
];

pub const KEYBOARD_IRQ: Irq = Irq(1);
pub const COM1_IRQ: Irq = Irq(4);
pub const RTC_IRQ: Irq = Irq(8);
pub const SCI: Irq = Irq(9);
pub const MOUSE_IRQ: Irq = Irq(12);

/// What `\_S5` has as SLP_TYP: what OVMF takes for granted.
pub const POWER_OFF: u8 = 0;

/// When the guest's time begins: 1 January 2030, counted from the Unix epoch.
pub const EPOCH: Duration = Duration::from_secs(1_893_456_000);

/// The virtio devices of every board: the disk and the entropy device.
const VIRTIO: [Place; 2] = [place(0, "virtio-blk"), place(1, "virtio-rng")];

/// What there is for more.
pub const ROOM: Room = Room {
    ram: RAM,
    pluggable: PLUGGABLE,
    persistent: Err("rsemu's x86_64 core has no MOVNTI, by which Linux writes to persistent memory"),
    place,
};

/// The place of the virtio device with this number: it is at the one of the two or at the other.
const fn place(number: u8, name: &'static str) -> Place {
    Place {
        name,
        mmio: window(0xd000_0000 + 0x200 * number as u64, 0x200),
        pci: 1 + number,
        virtio: number,
    }
}

/// Where all virtio devices are.
pub fn places(options: &Options) -> Vec<Place> {
    options.devices.places(VIRTIO, &ROOM)
}

/// Where a wire of the PCI bus ends, the first of which is INTA.
pub fn wire_gsi(wire: usize, chips: Chips) -> Gsi {
    match chips {
        Chips::Apic => Gsi(16 + wire as u32),
        // Behind 8259s there is but what the ISA bus has. Two of these are wired together.
        Chips::Pic => Gsi([11, 10, 11, 10][wire]),
    }
}

/// Where the line of a virtio-mmio device ends.
pub fn mmio_gsi(place: &Place, chips: Chips) -> Gsi {
    match chips {
        Chips::Apic => Gsi(15 + u32::from(place.pci)),
        Chips::Pic => Gsi(9 + u32::from(place.pci)),
    }
}

const TIMER: &str = "8254";
const UART: &str = "uart";
const CLOCK: &str = "rtc";

/// What interrupts the guest.
fn sources(options: &Options) -> Vec<Source> {
    let Options { transport, chips, .. } = *options;
    let controller = match chips {
        Chips::Apic => "IO-APIC",
        Chips::Pic => "XT-PIC",
    };
    let line = |name, gsi, device: &str| Source {
        name,
        by: By::Line(Id::Gsi(gsi)),
        rows: Rows::Device(controller, device.into()),
    };
    let timer = Source {
        name: TIMER,
        by: By::Cores(vec![Id::Gsi(TIMER_GSI)]),
        rows: Rows::Device(controller, "timer".into()),
    };
    let mut sources = vec![
        timer,
        line(UART, Gsi::of_irq(COM1_IRQ), "ttyS0"),
        line(CLOCK, Gsi::of_irq(RTC_IRQ), "rtc0"),
    ];
    if chips == Chips::Apic {
        sources.push(Source {
            name: "local timers",
            by: By::Cores(vec![LOCAL_TIMER]),
            rows: Rows::Labels(&["LOC"]),
        });
    }
    if options.cpus > 1 {
        sources.push(Source {
            name: "from CPU to CPU",
            by: By::Cores(INTERPROCESSOR.to_vec()),
            rows: Rows::Labels(&["RES", "CAL"]),
        });
    }
    sources.extend(places(options).iter().map(|place| {
        let gsi = match transport {
            Transport::Mmio => mmio_gsi(place, chips),
            Transport::Pci | Transport::PciIntx => wire_gsi(place.wire(), chips),
        };
        let rows = Rows::Device(controller, place.guest_name());
        Source::virtio(place, transport, Id::Gsi(gsi), rows, id_of_message)
    }));
    sources
}

/// A message is told by its sender.
fn id_of_message(requester: RequesterId, _: MsiMessage) -> Result<Id, String> {
    Ok(Id::Message(requester))
}

/// What the guest has to see of it.
pub fn facts(options: &Options) -> Facts {
    Facts {
        epoch: EPOCH,
        clock: Clock::of_ours("rtc_cmos"),
        disk_parent: match options.transport {
            Transport::Mmio => "/LNRO0005:00/".into(),
            Transport::Pci | Transport::PciIntx => VIRTIO[0].pci_parent(),
        },
        sources: sources(options),
    }
}

type RecordedLine = RecordedLevel<LevelLine>;
type Rtc = Mc146818<RecordedLine, Calendar, ()>;

/// The devices that are to be called between two runs of the cores.
pub struct Board {
    pub uart: Arc<Uart16550<RecordedLine, Console>>,
    pub devices: Devices,
    apics: Vec<LocalApic>,
    pc: Pc,
    rtc: Arc<Rtc>,
    pm: AcpiPm,
    power: Arc<OnceLock<PowerRequest>>,
}

impl Board {
    /// Makes the devices and wires them to each other, and says what is to be wired to the cores.
    pub fn new(
        plan: &Plan<'_>,
        ram: &Ram,
        clock: &Arc<GuestClock>,
        attention: &[Attention],
        recorder: &Recorder,
        fw_cfg: Option<FwCfg>,
    ) -> Result<(Self, Around), Box<dyn Error>> {
        let options = plan.options;
        let config = LocalApicsConfig {
            timer_hz: HZ,
            tsc_hz: HZ,
            // rsemu's cores have neither x2APIC mode nor more address lines.
            x2apic: false,
            physical_address_bits: 40,
            ..LocalApicsConfig::default()
        };
        let parts = (0..).zip(attention).map(|(id, attention)| LocalApicParts {
            id: ApicId(id),
            wake: Box::new(attention.line()),
            alarm: Box::new(()),
        });
        let apics = LocalApics::new(config, Arc::clone(clock) as _, parts.collect())?;
        let pc = Pc::with_local_apics(PcConfig::default(), &apics, Arc::clone(clock), ())?;
        leave_as_firmware_does(&apics.cpu(CpuId(0))?);
        let line = |name, irq| pc.level_line(irq).map(|line| recorder.wrap_level(name, line));

        let power = Arc::new(OnceLock::new());
        let ask = |request| {
            let power = Arc::clone(&power);
            move || {
                power.get_or_init(|| request);
            }
        };
        let console = Console {
            watch: Arc::clone(plan.watch),
            wire: Arc::clone(plan.wire),
        };
        let uart = Arc::new(Uart16550::new(
            Uart16550Config::default(),
            line(UART, COM1_IRQ)?,
            console,
        ));
        let calendar = Calendar {
            clock: Arc::clone(clock),
            epoch: EPOCH,
        };
        let rtc = Arc::new(Rtc::new(line(CLOCK, RTC_IRQ)?, calendar, ()));
        let off = ask(PowerRequest::Off);
        let sleep = move |kind| {
            if kind == POWER_OFF {
                off();
            }
        };
        let sci = pc.level_line(SCI)?;
        let pm = AcpiPm::new(AcpiPmConfig::default(), sci, sleep, Arc::clone(clock), ())?;
        let keyboard = I8042::new(I8042Lines {
            keyboard: Box::new(pc.level_line(KEYBOARD_IRQ)?),
            mouse: Box::new(pc.level_line(MOUSE_IRQ)?),
            reset: Box::new(ask(PowerRequest::Reset)),
            ..I8042Lines::default()
        });
        let reset = ask(PowerRequest::Reset);
        let reset = Arc::new(ResetControl::new(move |_| reset()));

        let (mut in_memory, mut ports) = (Bus::new(), Bus::new());
        pc.plug(&mut in_memory, &mut ports)?;
        let platform: [(u64, u64, Arc<dyn BusDevice>); 8] = [
            (KEYBOARD_DATA, 1, Arc::new(keyboard.data_port())),
            (KEYBOARD_COMMAND, 1, Arc::new(keyboard.command_port())),
            (RTC, mc146818::PORTS, Arc::clone(&rtc) as _),
            (COM1, REGION_SIZE, Arc::clone(&uart) as _),
            (PM_EVENTS, 4, Arc::new(pm.event_block())),
            (PM_CONTROL, 2, Arc::new(pm.control_block())),
            (PM_TIMER, 4, Arc::new(pm.timer_block())),
            (GPES, pm.gpe_block_len(), Arc::new(pm.gpe_block())),
        ];
        for (port, len, device) in platform {
            ports.insert(port, len, device)?;
        }

        if let Some(image) = &options.firmware {
            rtc.set_memory_size(RAM.len, 0);
            let fw_cfg = fw_cfg.ok_or("firmware asks for its machine")?;
            ports.insert(FW_CFG, FwCfgPorts::SIZE, Arc::new(fw_cfg.ports()))?;
            if let Some(window) = settings(fs::metadata(image)?.len()) {
                let settings = firmware::settings(image, window, CfiFlashConfig::PC)?;
                in_memory.insert(window.base, window.len, Arc::new(settings))?;
            }
        }

        let acknowledged = Arc::new(Acknowledged::new(Arc::clone(plan.watch)));
        acknowledged.look_at(pc.ioapic());
        let slots = match options.transport {
            Transport::Mmio => {
                ports.insert(PCI_PORTS, reset_control::PORTS, reset)?;
                Slots::Mmio(
                    options.rings,
                    Box::new(|place| {
                        let line = pc.gsi_level_line(mmio_gsi(place, options.chips))?;
                        Ok(Arc::new(recorder.wrap_level(place.name, line)))
                    }),
                    Behind::new(),
                )
            }
            Transport::Pci | Transport::PciIntx => {
                let messages = NotedMessages {
                    inner: apics.clone(),
                    acknowledged: Arc::clone(&acknowledged),
                    cpus: options.cpus,
                };
                let root = pci_bus(
                    recorded(wires(&pc, options.chips)?, &places(options), recorder),
                    recorder.wrap_sink(MESSAGE_LINE, messages),
                )?;
                for Window { base, len } in pci_memory(options) {
                    in_memory.insert(base, len, Arc::new(root.memory_window(base)))?;
                }
                match options.firmware {
                    None => in_memory.insert(PCI_CONFIG.base, PCI_CONFIG.len, Arc::new(root.ecam()))?,
                    Some(_) => chipset::plug(&root, &mut in_memory)?,
                }
                ports.insert(PCI_PORTS, 8, Arc::new(root.config_ports().beside(reset)))?;
                Slots::Pci(options.rings, root, Behind::new())
            }
        };
        let devices = Devices::new(plan, &VIRTIO, &ROOM, &slots, &mut in_memory, ram, None)?;
        drop(slots);

        let cpus = (0..options.cpus).map(|cpu| apics.cpu(CpuId(cpu)));
        let cpus = cpus.collect::<Result<_, _>>()?;
        let around = Around {
            apics,
            pic: pc.pic().clone(),
            acknowledged,
            window: DEVICES,
            memory: in_memory,
            ports,
        };
        let board = Self {
            uart,
            devices,
            apics: cpus,
            pc,
            rtc,
            pm,
            power,
        };
        Ok((board, around))
    }

    /// Expires what is due.
    pub fn let_time_pass(&self, now: Duration) {
        let due = |deadline: Option<Duration>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.pc.pit().deadline()) {
            self.pc.pit().expire();
        }
        for apic in &self.apics {
            if due(apic.deadline()) {
                apic.expire();
            }
        }
        if due(self.rtc_deadline()) {
            self.rtc.expire();
        }
        if due(self.pm.deadline()) {
            self.pm.expire();
        }
    }

    /// When the next of the timers is due.
    pub fn deadline(&self) -> Option<Duration> {
        let apics = self.apics.iter().map(LocalApic::deadline);
        let others = [self.pc.pit().deadline(), self.rtc_deadline(), self.pm.deadline()];
        apics.chain(others).flatten().min()
    }

    fn rtc_deadline(&self) -> Option<Duration> {
        Some(self.rtc.deadline()?.saturating_sub(EPOCH))
    }

    pub fn power_request(&self) -> Option<PowerRequest> {
        self.power.get().copied()
    }
}

/// The wires of the PCI bus: as a PC has them, active low from GSI 16 on, or on the ISA bus.
fn wires(pc: &Pc, chips: Chips) -> Result<[Arc<dyn LevelInterrupt>; 4], Box<dyn Error>> {
    Ok(match chips {
        Chips::Apic => pc.pci_wires(wire_gsi(0, chips))?,
        Chips::Pic => {
            let wire = |wire| -> Result<Arc<dyn LevelInterrupt>, Box<dyn Error>> {
                Ok(Arc::new(pc.gsi_level_line(wire_gsi(wire, chips))?))
            };
            [wire(0)?, wire(1)?, wire(2)?, wire(3)?]
        }
    })
}

/// The local APIC of the first core in virtual wire mode (Intel MultiProcessor Specification, section 3.6.2.2): the 8259's requests
/// come through LINT0, NMI through LINT1.
fn leave_as_firmware_does(apic: &LocalApic) {
    const SVR: u64 = 0xf0;
    const LVT_LINT0: u64 = 0x350;
    const LVT_LINT1: u64 = 0x360;
    for (register, value) in [(SVR, 0x1ff_u32), (LVT_LINT0, 0x700), (LVT_LINT1, 0x400)] {
        apic.write(register, &value.to_le_bytes());
    }
}
