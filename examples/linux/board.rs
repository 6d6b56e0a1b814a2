//! The board: its devices, where they are, and which interrupts they have. The addresses are those of QEMU's `virt`,
//! which nothing asks for: the guest reads them from the device tree.

use std::{
    error::Error,
    fs::File,
    io,
    path::Path,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use devisor::{
    backends::{
        irqchip::{
            CpuId, Ppi, Spi,
            gicv2::{CpuOutputs, GicV2, GicV2Config, LevelLine},
        },
        recorder::{RecordedLevel, Recorder},
    },
    bus::{Bus, BusDevice},
    event_loop::EventLoop,
    platform::{
        pl011::{Pl011, Pl011Config},
        pl031::Pl031,
    },
    time::ManualClock,
    virtio::{
        VirtioTransport,
        block::{Block, BlockOptions, FileStorage},
        entropy::{Entropy, OsRandom},
    },
};
use vm_memory::GuestMemoryMmap;

use crate::{
    completion::{Completion, Gate, completed},
    devices::{Around, Devices, More},
    disk::NotedReads,
    machine::{InterruptPins, Machine},
    verdict::Check,
    virtio::{Place, Slots, Transport},
    watch::{Console, Watch, WatchedCpuInterface, WatchedSource},
};

/// A region of the guest's address space.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub base: u64,
    pub len: u64,
}

const fn window(base: u64, len: u64) -> Window {
    Window { base, len }
}

pub const GIC_DISTRIBUTOR: Window = window(0x0800_0000, 0x1000);
pub const GIC_CPU_INTERFACE: Window = window(0x0801_0000, 0x2000);
/// The frame that turns messages into SPIs.
pub const GIC_MESSAGES: Window = window(0x0802_0000, 0x1000);
pub const UART: Window = window(0x0900_0000, 0x1000);
pub const RTC: Window = window(0x0901_0000, 0x1000);
/// Where the guest may place BARs, and the configuration space of the one bus.
pub const PCI_MEMORY: Window = window(0x1000_0000, 0x2eff_0000);
pub const PCI_CONFIG: Window = window(0x3f00_0000, 0x10_0000);
/// All of the above, and nothing else.
pub const DEVICES: Window = window(0, 0x4000_0000);

pub const RAM: Window = window(0x4000_0000, 256 << 20);
/// What the guest may plug: a memory block of Linux's on arm64. And persistent memory.
pub const PLUGGABLE: Window = window(0x8000_0000, 128 << 20);
pub const PERSISTENT: Window = window(0xa000_0000, 16 << 20);
/// An arm64 `Image` wants to be at a multiple of 2 MiB (plus its `text_offset`, which is 0 in each recent kernel).
pub const KERNEL: u64 = 0x4020_0000;
/// At most 2 MiB, and it must not cross a multiple of 2 MiB.
pub const DEVICE_TREE: u64 = 0x47e0_0000;
pub const INITRD: u64 = 0x4800_0000;

pub const UART_SPI: Spi = Spi(1);
pub const RTC_SPI: Spi = Spi(2);
/// Where INTA to INTD of the PCI bus end.
pub const PCI_WIRES: [Spi; 4] = [Spi(3), Spi(4), Spi(5), Spi(6)];
/// The first of the SPIs that are for messages, and how many they are.
pub const MESSAGES: (Spi, u32) = (Spi(48), 32);
pub const VIRTUAL_TIMER_PPI: Ppi = Ppi(11);
pub const PHYSICAL_TIMER_PPI: Ppi = Ppi(14);

/// When the guest's time begins: 1 January 2030, counted from the Unix epoch.
pub const EPOCH: Duration = Duration::from_secs(1_893_456_000);

/// About a megabit per second, given how long the core runs at a time.
const CHARACTERS_AT_A_TIME: usize = 16;

const CPU: CpuId = CpuId(0);

const BLOCK: Place = Place {
    name: "virtio-blk",
    mmio: (window(0x0a00_0000, 0x200), Spi(16)),
    pci: (1, "virtio0"),
};
const ENTROPY: Place = Place {
    name: "virtio-rng",
    mmio: (window(0x0a00_0200, 0x200), Spi(17)),
    pci: (2, "virtio1"),
};
/// The virtio devices of every board. Each is at the one place or at the other.
pub const VIRTIO: [Place; 2] = [BLOCK, ENTROPY];

/// The place of the device with this number, after those.
pub const fn place(number: u8, name: &'static str, guest_name: &'static str) -> Place {
    Place {
        name,
        mmio: (
            window(0x0a00_0000 + 0x200 * number as u64, 0x200),
            Spi(16 + number as u32),
        ),
        pci: (1 + number, guest_name),
    }
}

pub const TIMER: &str = "virtual timer";
pub const UART_LINE: &str = "uart";
pub const RTC_LINE: &str = "rtc";

type RecordedLine = RecordedLevel<LevelLine>;

/// The devices that are to be called between two runs of the core.
pub struct Board {
    uart: Arc<Pl011<RecordedLine, Console>>,
    /// How many characters the wire behind the UART takes now.
    wire: Arc<AtomicUsize>,
    clock: Arc<ManualClock>,
    rtc: Arc<Pl031<RecordedLine, Arc<ManualClock>, ()>>,
    virtio: Vec<Arc<dyn VirtioTransport>>,
    /// What is not on every board.
    more: Vec<More>,
    /// What runs the virtio devices.
    events: EventLoop,
    /// Held while the core runs.
    core_runs: Gate,
    disk_was_read: Arc<AtomicBool>,
}

impl Board {
    /// Makes the devices and wires them to each other and to the core.
    #[allow(clippy::too_many_arguments, reason = "an embedder plugs in many things")]
    pub fn new(
        machine: &Machine,
        (transport, completion, devices): (Transport, Completion, Devices),
        pins: InterruptPins,
        memory: GuestMemoryMmap,
        (disk, persistent): (&Path, Option<File>),
        clock: Arc<ManualClock>,
        watch: &Arc<Watch>,
        recorder: &Recorder,
    ) -> Result<Self, Box<dyn Error>> {
        let outputs = CpuOutputs {
            irq: Box::new(pins.irq()),
            fiq: Box::new(pins.fiq()),
        };
        let gic = GicV2::new(GicV2Config::default(), vec![outputs])?;
        let line = |name, spi| gic.level_line(spi).map(|line| recorder.wrap_level(name, line));
        let timer = |name, ppi| gic.ppi_line(CPU, ppi).map(|line| recorder.wrap_level(name, line));

        let wire = Arc::new(AtomicUsize::new(0));
        let console = Console {
            watch: Arc::clone(watch),
            room: Arc::clone(&wire),
        };
        let uart = Arc::new(Pl011::new(Pl011Config::default(), line(UART_LINE, UART_SPI)?, console));
        let rtc = Arc::new(Pl031::new(line(RTC_LINE, RTC_SPI)?, Arc::clone(&clock), ()));

        // Virtio devices do not run within the guest's kick but after it, by an event loop on the thread of all the rest. Where
        // another thread is to complete requests, it runs a loop of its own.
        let events = EventLoop::new()?;
        let core_runs = Gate::default();
        let completing = match completion {
            Completion::Thread => {
                let elsewhere = EventLoop::new()?;
                let run = elsewhere.clone();
                // It ends with the process.
                thread::Builder::new().name("disk".into()).spawn(move || run.run())?;
                elsewhere
            }
            _ => events.clone(),
        };
        let memory = Arc::new(memory);
        let mut bus = Bus::new();
        let slots = Slots::new(transport, &gic, recorder, &mut bus, &devices.places())?;
        let disk_was_read = Arc::new(AtomicBool::new(false));
        let storage = Arc::new(NotedReads::new(FileStorage::open(disk)?, Arc::clone(&disk_was_read)));
        let block = Block::new(Arc::clone(&storage), BlockOptions::default())?;
        let block = completed(block, storage, completion, &completing, Arc::clone(&core_runs));
        let entropy = Entropy::new(WatchedSource::new(OsRandom, Arc::clone(watch)));
        let mut virtio = vec![
            slots.plug(&BLOCK, block, &memory, &events, &mut bus)?.transport(),
            slots.plug(&ENTROPY, entropy, &memory, &events, &mut bus)?.transport(),
        ];
        let mut more = Vec::new();
        for (place, plug) in devices.more() {
            let (device, added) = plug(Around {
                place,
                slots: &slots,
                memory: &memory,
                events: &events,
                bus: &mut bus,
                persistent: persistent.as_ref(),
            })?;
            virtio.push(device);
            more.push(added);
        }

        let gic_cpu_interface = WatchedCpuInterface::new(gic.cpu_interface(CPU)?, Arc::clone(watch));
        let devices: [(Window, Arc<dyn BusDevice>); 4] = [
            (GIC_DISTRIBUTOR, Arc::new(gic.distributor(CPU)?)),
            (GIC_CPU_INTERFACE, Arc::new(gic_cpu_interface)),
            (UART, Arc::clone(&uart) as _),
            (RTC, Arc::clone(&rtc) as _),
        ];
        for (window, device) in devices {
            bus.insert(window.base, window.len, device)?;
        }
        machine.plug(bus, DEVICES.len)?;
        machine.connect("cntv", timer(TIMER, VIRTUAL_TIMER_PPI)?)?;
        machine.connect("cntp", timer("physical timer", PHYSICAL_TIMER_PPI)?)?;
        Ok(Self {
            uart,
            wire,
            clock,
            rtc,
            virtio,
            more,
            events,
            core_runs,
            disk_was_read,
        })
    }

    /// The guest has printed a line.
    pub fn hear(&self, line: &str) -> Result<(), Box<dyn Error>> {
        self.more.iter().try_for_each(|more| more.hear(line))
    }

    /// What has come of what is not on every board.
    pub fn more(&self, console: &str) -> Vec<(&'static str, Check)> {
        self.more.iter().flat_map(|more| more.check(console)).collect()
    }

    /// Lets the wire behind the UART take some characters. Returns whether there are more.
    pub fn send_characters(&self) -> io::Result<bool> {
        self.wire.store(CHARACTERS_AT_A_TIME, Ordering::SeqCst);
        match self.uart.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(self.uart.unsent() != 0),
        }
    }

    /// Types at the guest's console. Returns how many of the characters the UART had room for.
    pub fn type_in(&self, characters: &[u8]) -> usize {
        self.uart.receive(characters)
    }

    /// Runs the core by `run`, during which no request of the disk ends. `forget` is called before if something of the disk has got
    /// into RAM.
    pub fn with_core(&self, forget: impl FnOnce(), run: impl FnOnce()) {
        let _runs = self.core_runs.lock().unwrap_or_else(PoisonError::into_inner);
        if self.disk_was_read.swap(false, Ordering::SeqCst) {
            forget();
        }
        run();
    }

    /// Runs the virtio devices that the guest has kicked. Returns whether requests are under way.
    pub fn run_virtio_devices(&self) -> io::Result<bool> {
        while self.events.run_once(Duration::ZERO)? {}
        Ok(self.virtio.iter().any(|device| !device.waiting().is_empty()))
    }

    /// Sets the time, as the guest has been running for `uptime`, and returns the uptime at which the clock's alarm is
    /// to go off.
    pub fn let_time_pass(&self, uptime: Duration) -> Option<Duration> {
        let now = EPOCH + uptime;
        self.clock.advance_to(now);
        if self.rtc.deadline().is_some_and(|deadline| deadline <= now) {
            self.rtc.expire();
        }
        Some(self.rtc.deadline()?.saturating_sub(EPOCH))
    }
}
