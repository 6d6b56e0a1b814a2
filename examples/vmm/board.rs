//! The devices of the machine, all of devisor's: where they are, and which interrupts they have.

use std::{fs::File, io, path::Path, sync::Arc};

use devisor::{
    backends::irqchip::{pc::Gsi, pic::Irq},
    bus::{Bus, BusDevice},
    interrupt::{LevelInterrupt, NoInterrupt},
    pci::{DeviceFunction, HostBridge, Identity, NoMessages, RootBus},
    platform::{
        acpi_pm::{AcpiPm, AcpiPmConfig, AcpiPmPlace},
        debugcon::{self, DebugCon},
        fw_cfg::{FwCfg, Key},
        i8042::{I8042, I8042Lines},
        mc146818::{self, Mc146818, Mc146818State},
        reset_control::ResetControl,
        system_control::{self, SystemControl},
        uart16550::{self, Uart16550, Uart16550Config},
    },
    virtio::{
        VirtioMmio, VirtioPci,
        block::{Block, BlockOptions, FileStorage},
        transport::mmio::{self, Line},
    },
};
use vm_memory::GuestMemoryMmap;

use crate::{
    console::Keyboard,
    devices::{exit_port, line_tester},
    irqchip::{Irqchip, PINS},
    machine::{End, Ending},
    options::{Error, Options},
    timers::{Calendar, CalendarSlot, Timers},
};

pub const UART_PORT: u64 = 0x3f8;
pub const UART_IRQ: Irq = Irq(4);
pub const KEYBOARD_IRQ: Irq = Irq(1);
pub const RTC_IRQ: Irq = Irq(8);
pub const SCI: Irq = Irq(9);
pub const MOUSE_IRQ: Irq = Irq(12);

/// ACPI's power management, from here on.
pub const PM_BASE: u16 = 0x600;

/// Where a kernel finds the disk: it is told so on its command line.
pub const DISK_ADDRESS: u64 = 0xfeb0_0000;
pub const DISK_IRQ: Irq = Irq(5);

/// Where firmware finds it: on a PCI bus, whose BARs it places here, and whose wires are at the IOAPIC's pins from there on.
const DISK_FUNCTION: u8 = 1;
const PCI_MEMORY_END: u64 = 0xfec0_0000;
/// SeaBIOS asks fw_cfg for memory and files where it sees this bridge with these subsystem IDs.
const I440FX: Identity = Identity {
    vendor: 0x8086,
    device: 0x1237,
    revision: 2,
    class: [0x06, 0x00, 0x00],
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};
const PCI_PORTS: (u64, u64) = (0xc000, 0x1000);
const PCI_WIRES: Gsi = Gsi(16);

pub type Rtc = Mc146818<Box<dyn LevelInterrupt>, Calendar, CalendarSlot>;

/// What the guest reaches by its addresses.
pub struct Buses {
    pub memory: Bus,
    pub ports: Bus,
}

/// The devices, placed, and the clock, whose battery outlives the machine.
pub struct Board {
    pub buses: Buses,
    pub rtc: Arc<Rtc>,
    pub pm: AcpiPm,
}

/// Makes the devices, and places them. `battery` is what the clock has kept from before a reboot.
pub fn build(
    options: &Options,
    irqchip: &Irqchip,
    memory: &GuestMemoryMmap,
    ending: &Ending,
    keyboard: &Keyboard,
    timers: &Timers,
    battery: Option<&Mc146818State>,
) -> Result<Board, Error> {
    let mut buses = Buses {
        memory: Bus::new(),
        ports: Bus::new(),
    };
    irqchip.plug(&mut buses.memory, &mut buses.ports)?;
    let line = |irq| irqchip.level_line(Gsi::of_irq(irq));

    let has_mmio_disk = options.disk.is_some() && options.firmware.is_none();
    // The line tester has a hand on each wire, but for the disk's, and for pin 0, where nothing is soldered to.
    let mut tester = Vec::new();
    for gsi in (0..PINS).map(Gsi) {
        let disk = has_mmio_disk && gsi == Gsi::of_irq(DISK_IRQ);
        let has_wire = gsi != Gsi(0) && !disk;
        tester.push(has_wire.then(|| irqchip.level_line(gsi)).transpose()?);
    }

    let uart = Uart16550::new(Uart16550Config::default(), line(UART_IRQ)?, Output(ending.clone()));
    let room = keyboard.room();
    let uart = Arc::new(uart.with_room_hook(move || room.notify()));
    let input = Arc::clone(&uart);
    keyboard.plug(move |typed| input.receive(typed));

    // Whichever way, the machine is reset: that of the CPUs alone is not told from it, as on the boards of today.
    let reset = || {
        let ending = ending.clone();
        move || ending.end(End::Reset)
    };
    let i8042 = I8042::new(I8042Lines {
        keyboard: line(KEYBOARD_IRQ)?,
        mouse: line(MOUSE_IRQ)?,
        // KVM lets address line 20 through, whatever a guest does.
        a20: Box::new(NoInterrupt),
        reset: Box::new(reset()),
    });
    let system_control = SystemControl::new(NoInterrupt, reset());
    let hard = reset();
    let reset_control = Arc::new(ResetControl::new(move |_| hard()));

    let rtc = Rtc::new(line(RTC_IRQ)?, timers.calendar(), timers.calendar_slot());
    match battery {
        Some(kept) => {
            rtc.restore(kept)?;
            rtc.reset();
        }
        None => {
            rtc.set_memory_size(options.memory, 0);
            // Where firmware has the number of CPUs, less the first.
            rtc.set_memory(0x5f, &[(options.cpus - 1) as u8])?;
        }
    }
    let rtc = Arc::new(rtc);

    let debugcon: Box<dyn io::Write + Send> = match &options.debugcon {
        Some(file) => Box::new(
            File::options()
                .create(true)
                .append(true)
                .open(file)
                .map_err(|error| format!("the debug console {} cannot be opened: {error}", file.display()))?,
        ),
        None => Box::new(io::sink()),
    };
    let place = AcpiPmPlace::from_base(PM_BASE);
    let off = ending.clone();
    let sleep = move |kind| {
        if kind == place.s5 {
            off.end(End::Off);
        }
    };
    // Its slot is behind that of the clock.
    let pm = AcpiPm::new(
        AcpiPmConfig::default(),
        line(SCI)?,
        sleep,
        timers.clock(),
        timers.slot(),
    )?;
    let fw_cfg = fw_cfg(options, memory)?;
    let devices: [(u64, u64, Arc<dyn BusDevice>); 14] = [
        (0xf4, 4, Arc::new(exit_port(ending.clone()))),
        (0x2000, PINS.into(), Arc::new(line_tester(tester))),
        (UART_PORT, uart16550::REGION_SIZE, uart),
        (0x60, 1, Arc::new(i8042.data_port())),
        (0x64, 1, Arc::new(i8042.command_port())),
        (0x70, mc146818::PORTS, Arc::clone(&rtc) as _),
        (0x92, system_control::PORTS, Arc::new(system_control)),
        (0x402, debugcon::PORTS, Arc::new(DebugCon::new(debugcon))),
        (0x510, 12, Arc::new(fw_cfg.ports())),
        (place.event.into(), 4, Arc::new(pm.event_block())),
        (place.control.into(), 2, Arc::new(pm.control_block())),
        (place.timer.into(), 4, Arc::new(pm.timer_block())),
        (place.gpe.into(), pm.gpe_block_len(), Arc::new(pm.gpe_block())),
        (0xcf8, 8, pci(options, irqchip, memory, reset_control, &mut buses)?),
    ];
    for (base, len, device) in devices {
        buses.ports.insert(base, len, device)?;
    }
    if let (Some(image), true) = (&options.disk, has_mmio_disk) {
        let line = Line::Edge(irqchip.edge_line(Gsi::of_irq(DISK_IRQ))?);
        let disk = VirtioMmio::new(disk(image)?, Arc::new(memory.clone()), line)?;
        buses.memory.insert(DISK_ADDRESS, mmio::REGION_SIZE, Arc::new(disk))?;
    }
    Ok(Board { buses, rtc, pm })
}

/// What kernels ask for that run without firmware, and what firmware asks for.
fn fw_cfg(options: &Options, memory: &GuestMemoryMmap) -> Result<FwCfg, Error> {
    let fw_cfg = FwCfg::new(Arc::new(memory.clone()));
    let cpus = (options.cpus as u16).to_le_bytes();
    fw_cfg.set_item(Key::RAM_SIZE, options.memory.to_le_bytes())?;
    fw_cfg.set_item(Key::NB_CPUS, cpus)?;
    fw_cfg.set_item(Key::MAX_CPUS, cpus)?;
    if options.firmware.is_some() {
        // SeaBIOS shows its screen there, as no other is here, and takes keys from there.
        fw_cfg.add_file("etc/sercon-port", UART_PORT.to_le_bytes())?;
    }
    Ok(fw_cfg)
}

/// The ports of PCI's configuration mechanism and of the reset control, with the disk on the bus if there is firmware to find it.
fn pci(
    options: &Options,
    irqchip: &Irqchip,
    memory: &GuestMemoryMmap,
    reset_control: Arc<ResetControl>,
    buses: &mut Buses,
) -> Result<Arc<dyn BusDevice>, Error> {
    let wire =
        |pin| -> Result<Arc<dyn LevelInterrupt>, Error> { Ok(irqchip.level_line(Gsi(PCI_WIRES.0 + pin))?.into()) };
    let wires = [wire(0)?, wire(1)?, wire(2)?, wire(3)?];
    let root = RootBus::new(wires, Arc::new(NoMessages));
    if options.firmware.is_some() {
        let function = |device| DeviceFunction::new(device, 0).ok_or("a PCI bus has 32 devices");
        root.insert(Arc::new(HostBridge::with_identity(root.slot(function(0)?)?, I440FX)?))?;
        if let Some(image) = &options.disk {
            let slot = root.slot(function(DISK_FUNCTION)?)?;
            root.insert(Arc::new(VirtioPci::new(disk(image)?, Arc::new(memory.clone()), slot)?))?;
        }
        // That firmware begins with the first GiB past memory, and with the third at least.
        let base = options.memory.next_multiple_of(1 << 30).max(2 << 30);
        let len = PCI_MEMORY_END - base;
        buses.memory.insert(base, len, Arc::new(root.memory_window(base)))?;
        let (base, len) = PCI_PORTS;
        buses.ports.insert(base, len, Arc::new(root.port_window(base)))?;
    }
    Ok(Arc::new(root.config_ports().beside(reset_control)))
}

fn disk(image: &Path) -> Result<Block, Error> {
    let storage = FileStorage::open(image);
    let storage = storage.map_err(|error| format!("the disk {} cannot be opened: {error}", image.display()))?;
    Ok(Block::new(storage, BlockOptions::default())?)
}

/// stdout. If nobody takes what the guest prints it would wait for ever: the machine ends.
struct Output(Ending);

impl Output {
    fn check<T>(&self, done: io::Result<T>) -> io::Result<T> {
        const TRANSIENT: [io::ErrorKind; 2] = [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock];
        done.inspect_err(|error| {
            if !TRANSIENT.contains(&error.kind()) {
                self.0.end(End::Failed(format!("stdout: {error}")));
            }
        })
    }
}

impl io::Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.check(io::stdout().write(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check(io::stdout().flush())
    }
}
