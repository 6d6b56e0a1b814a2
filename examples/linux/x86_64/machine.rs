//! What rsemu brings: x86-64 cores, and address spaces for memory and for ports.
//!
//! Cores take turns on one thread, each for a quantum of the guest's time.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use devisor::{
    backends::irqchip::{CpuId, lapic::LocalApics, pic::Pic},
    bus::Bus,
};
use rsemu::{
    core::{
        device::Device,
        error::BusError,
        props::Props,
        space::{AddressSpace, MemAttrs, MemOps, MemResult, Region, RequesterId, RomStore, RomWrite},
        wire::{IntAck, LocalController, WireIdAllocator},
    },
    cpu::x86::{Variant, X86},
};

use super::{
    board::REGIONS,
    clock::GuestClock,
    controller::{Attention, Controller, Inputs},
    faults::Faults,
    vectors::Acknowledged,
};
use crate::{accesses::Accesses, ram::Ram, virtio::Window};

/// How long a core runs at most where there are others that it may wait for, and that wait for their turn meanwhile: 20 microseconds of
/// the guest's time.
const TURN: u64 = 20_000;

/// Cores that nothing is connected to yet.
pub struct Cores {
    cores: Vec<Arc<X86>>,
    clock: Arc<GuestClock>,
    attention: Vec<Attention>,
}

impl Cores {
    pub fn new(engine: &str, count: u32) -> rsemu::Result<Self> {
        let clock = GuestClock::new(count as usize);
        let mut cores = Vec::new();
        for (number, position) in (1..).zip(&clock.cores) {
            let props = Props::new().with("variant", "x86-64").with("engine", engine);
            let core = X86::from_props_defaulting(&props, Variant::X86_64)?;
            core.attach_cursor(&position.cursor);
            core.set_requester(RequesterId(number));
            cores.push(Arc::new(core));
        }
        Ok(Self {
            cores,
            clock: Arc::new(clock),
            attention: (0..count).map(|_| Attention::default()).collect(),
        })
    }

    pub fn clock(&self) -> &Arc<GuestClock> {
        &self.clock
    }

    /// What each core's local APIC is to raise.
    pub fn attention(&self) -> &[Attention] {
        &self.attention
    }
}

/// Cores with their RAM, their devices and their local APICs.
pub struct Machine {
    cores: Vec<Core>,
    clock: Arc<GuestClock>,
    space: Arc<AddressSpace>,
    accesses: Arc<Accesses>,
}

struct Core {
    cpu: Arc<X86>,
    controller: Arc<Controller>,
    faults: Faults,
}

/// What the cores are connected to.
pub struct Around {
    pub apics: LocalApics,
    pub pic: Pic,
    pub acknowledged: Arc<Acknowledged>,
    /// Where there are devices in memory, local APICs included, and what they are.
    pub window: Window,
    pub memory: Bus,
    pub ports: Bus,
}

impl Machine {
    pub fn new(cores: Cores, ram: &Ram, around: Around) -> Result<Self, Box<dyn Error>> {
        let Cores {
            cores,
            clock,
            attention,
        } = cores;
        let wire = WireIdAllocator::new().alloc();
        let mut connected = Vec::new();
        for ((number, cpu), attention) in (0..).zip(cores).zip(attention) {
            let input = |name: &str| {
                let sink = cpu.sink(name, &[wire]).ok_or("a core without INTR or NMI")?;
                Ok::<_, Box<dyn Error>>(sink.sink)
            };
            let inputs = Inputs {
                intr: input("intr")?,
                nmi: input("nmi")?,
                wire,
            };
            let apic = around.apics.cpu(CpuId(number))?;
            let (pic, acknowledged) = (around.pic.clone(), Arc::clone(&around.acknowledged));
            let controller = Arc::new(Controller::new(number, apic, pic, attention, inputs, acknowledged));
            cpu.attach_int_ack("intr", Arc::downgrade(&controller) as Weak<dyn IntAck>);
            cpu.attach_local_controller("intr", Arc::downgrade(&controller) as Weak<dyn LocalController>);
            connected.push(Core {
                cpu,
                controller,
                faults: Faults::default(),
            });
        }

        let controllers: Vec<_> = connected.iter().map(|core| Arc::clone(&core.controller)).collect();
        let space = Arc::new(AddressSpace::new("memory", 64));
        for (base, region) in ram.regions() {
            space.topology().map(region, base)?;
        }
        let Window { base, len } = around.window;
        let accesses = Arc::new(Accesses::new(&REGIONS));
        let memory = Exits {
            accesses: Arc::clone(&accesses),
            bus: around.memory,
            base,
            apics: true,
            controllers: controllers.clone(),
        };
        space
            .topology()
            .map(Region::io("devices", len, Arc::new(memory)), base)?;
        let ports = Arc::new(AddressSpace::new("ports", 16));
        let exits = Exits {
            accesses: Arc::clone(&accesses),
            bus: around.ports,
            base: 0,
            apics: false,
            controllers,
        };
        ports
            .topology()
            .map(Region::io("ports", 0x1_0000, Arc::new(exits)), 0)?;
        for core in &connected {
            core.cpu.attach_space(Arc::clone(&space));
            core.cpu.attach_io_space(Arc::clone(&ports));
        }
        Ok(Self {
            cores: connected,
            clock,
            space,
            accesses,
        })
    }

    /// How often each of [`REGIONS`] was accessed.
    pub fn accesses(&self) -> Vec<(&'static str, u64)> {
        self.accesses.counts()
    }

    /// The address space of memory.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Plugs in memory with these bytes that ends where addresses of 32 bits do: cores begin there, and writes to it go nowhere. So a
    /// hypervisor maps a flash while it shows its contents.
    pub fn plug_code(&self, code: Vec<u8>) -> rsemu::Result<()> {
        let base = (1 << 32) - code.len() as u64;
        let region = Region::rom("code", Arc::new(RomStore::new(code)), RomWrite::Ignore);
        self.space.topology().map_with_priority(region, base, 1)?;
        Ok(())
    }

    /// Runs each core for so long or less, and not past `deadline`. Devices are called on this thread.
    pub fn run(&self, quantum: Duration, deadline: Option<Duration>) {
        let begin = self.clock.cores.iter().map(|core| core.ticks()).min().unwrap_or(0);
        let quantum = ticks(quantum);
        let quantum = if self.cores.len() == 1 {
            quantum
        } else {
            quantum.min(TURN)
        };
        let until = begin.saturating_add(quantum);
        let until = deadline.map_or(until, |deadline| until.min(ticks(deadline)).max(begin + 1));
        for (number, (core, position)) in self.cores.iter().zip(&self.clock.cores).enumerate() {
            self.clock.turn(number);
            core.controller.attend();
            let left = until.saturating_sub(position.ticks());
            if left != 0 && !core.sleeps() {
                let ran = core.cpu.run(left);
                core.faults.forget(&core.cpu);
                position.ran(ran);
            }
            if core.sleeps() {
                self.sleep(number, until);
            }
        }
    }

    /// How long the guest has been running, in its own time.
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.clock.ticks())
    }

    /// Whether all cores do.
    pub fn sleeps(&self) -> bool {
        self.cores.iter().all(Core::sleeps)
    }

    /// Lets time pass at once until `time`, while all cores sleep.
    pub fn sleep_until(&self, time: Duration) {
        (0..self.cores.len()).for_each(|core| self.sleep(core, ticks(time)));
    }

    /// A core's time passes, and its time-stamp counter counts, without it running.
    fn sleep(&self, core: usize, until: u64) {
        let position = &self.clock.cores[core];
        let ticks = until.saturating_sub(position.ticks());
        let cpu = &self.cores[core].cpu;
        cpu.set_cycles(cpu.cycles() + ticks);
        position.sleep(ticks);
    }

    /// To be called when a device may have written code to RAM.
    pub fn forget_translations(&self) {
        self.space.topology().rebuild();
    }
}

impl Core {
    /// Whether it waits, and nothing has come that it waits for.
    fn sleeps(&self) -> bool {
        let halted = self.cpu.is_halted() && !self.cpu.intr_asserted() && !self.cpu.nmi_pending();
        (halted || self.cpu.is_waiting_for_startup()) && self.controller.is_quiet()
    }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// rsemu calls us for an access: what an exit is to a VMM. Each core sees its own local APIC.
struct Exits {
    accesses: Arc<Accesses>,
    bus: Bus,
    base: u64,
    /// Whether local APICs are here.
    apics: bool,
    controllers: Vec<Arc<Controller>>,
}

impl Exits {
    /// Who accesses, and which address.
    fn access(&self, offset: u64, attributes: MemAttrs) -> Result<(&Controller, u64), BusError> {
        // One of a debugger must not have side effects, and ours have.
        let core = attributes.requester.0.checked_sub(1).filter(|_| !attributes.debug);
        let controller = core.and_then(|core| self.controllers.get(core as usize));
        Ok((controller.ok_or(BusError::BadAccess)?, self.base + offset))
    }
}

impl MemOps for Exits {
    fn read(&self, offset: u64, data: &mut [u8], attributes: MemAttrs) -> MemResult {
        let (controller, address) = self.access(offset, attributes)?;
        match controller.page_offset(address).filter(|_| self.apics) {
            Some(offset) => {
                self.accesses.note(address);
                controller.read(offset, data);
            }
            None => {
                self.accesses.note(address);
                // Where nothing is, a PC reads ones.
                let _ = self.bus.read(address, data);
                controller.attend_if_wanted();
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], attributes: MemAttrs) -> MemResult {
        let (controller, address) = self.access(offset, attributes)?;
        match controller.page_offset(address).filter(|_| self.apics) {
            Some(offset) => {
                self.accesses.note(address);
                controller.write(offset, data);
            }
            None => {
                self.accesses.note(address);
                let _ = self.bus.write(address, data);
                controller.attend_if_wanted();
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exits").field("bus", &self.bus).finish_non_exhaustive()
    }
}
