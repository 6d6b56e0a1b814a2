//! What rsemu brings: an AArch64 core, and an address space for it and its RAM.
//!
//! It is to this example what `/dev/kvm` is to a VMM: run a little, be called for each access to a device, be told which
//! interrupt lines are up.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use devisor::{
    backends::irqchip::gicv3::SysReg,
    bus::Bus,
    interrupt::{LevelInterrupt, level_from_fn},
};
use rsemu::{
    core::{
        device::Device,
        error::BusError,
        exec::{Exit, ExitMask, ExitReason, ExitingCore},
        hosts::HostObjects,
        props::Props,
        space::{AddressSpace, MemAttrs, MemOps, MemResult, Region, RomStore, RomWrite},
        wire::{Level, Wire, WireId, WireIdAllocator, WireSink, WireSource},
    },
    cpu::arm::a64::{
        Cpu, Lines,
        psci::{Cluster, DEFAULT_CLUSTER},
        sysreg::El,
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::board;
use crate::{accesses::Accesses, ram::Ram, wing::PowerRequest};

/// One tick of the core is one memory access, and one count of its generic timer.
pub const TICKS_PER_SECOND: u64 = 62_500_000;

/// How long it runs before it is asked whether it sleeps, after it has slept: in WFI it takes ticks one by one, and each costs us as much
/// as an instruction. While it does not sleep it is twice as long each time, as to begin a run costs too.
const SLICE: u64 = 500;

/// The interrupt inputs of the core. Taken before there is a [`Machine`], for the interrupt controller to drive.
pub struct InterruptPins(Arc<Lines>);

impl InterruptPins {
    /// The core's IRQ input.
    pub fn irq(&self) -> impl LevelInterrupt + use<> {
        self.pin(Lines::IRQ)
    }

    /// The core's FIQ input.
    pub fn fiq(&self) -> impl LevelInterrupt + use<> {
        self.pin(Lines::FIQ)
    }

    fn pin(&self, pin: u64) -> impl LevelInterrupt + use<> {
        let lines = Arc::clone(&self.0);
        level_from_fn(move |up| {
            lines.set(pin, up);
            Ok(())
        })
    }
}

/// System registers that the core does not have itself. `None`: there is no such register either.
pub trait SystemRegisters {
    fn read(&self, register: SysReg) -> Option<u64>;
    fn write(&self, register: SysReg, value: u64) -> Option<()>;
}

/// One core with its RAM and its devices.
pub struct Machine {
    cpu: Cpu,
    lines: Arc<Lines>,
    space: Arc<AddressSpace>,
    memory: Arc<GuestMemoryMmap>,
    power: Arc<OnceLock<PowerRequest>>,
    wires: WireIdAllocator,
    registers: OnceLock<Box<dyn SystemRegisters>>,
    accesses: Arc<Accesses>,
    /// How long the next run is: see [`SLICE`].
    slice: AtomicU64,
}

impl Machine {
    /// A core without devices, about to execute `entry` with `x0` in its first register, and its interrupt inputs.
    pub fn new(engine: &str, ram: &Ram, entry: u64, x0: u64) -> rsemu::Result<(Self, InterruptPins)> {
        let hosts = Arc::new(HostObjects::new());
        let props = Props::new()
            .with("cpu", "cortex-a53")
            .with("engine", engine)
            .with("cntfrq", TICKS_PER_SECOND)
            .with("psci", "smc")
            .with_hosts(Arc::clone(&hosts));
        let cpu = Cpu::from_props(&props)?;
        let lines = Cluster::open(&hosts, DEFAULT_CLUSTER)?
            .find(0)
            .expect("the core has joined its cluster under affinity 0");
        let space = Arc::new(AddressSpace::new("memory", 64));
        for (base, region) in ram.regions() {
            space.topology().map(region, base)?;
        }
        cpu.attach_space(Arc::clone(&space));
        cpu.set_pc(entry);
        cpu.set_x(0, x0);

        let machine = Self {
            cpu,
            lines: Arc::clone(&lines),
            space,
            memory: Arc::clone(ram.memory()),
            power: Arc::default(),
            wires: WireIdAllocator::new(),
            registers: OnceLock::new(),
            accesses: Arc::new(Accesses::new(&board::REGIONS)),
            slice: AtomicU64::new(SLICE),
        };
        for (output, request) in [("poweroff", PowerRequest::Off), ("reboot", PowerRequest::Reset)] {
            let power = Arc::clone(&machine.power);
            let line = level_from_fn(move |up| {
                if up {
                    power.get_or_init(|| request);
                }
                Ok(())
            });
            machine.connect(output, line)?;
        }
        Ok((machine, InterruptPins(lines)))
    }

    /// Plugs the devices in: accesses to the `len` bytes from guest address 0 on go to `bus`.
    pub fn plug(&self, bus: Bus, len: u64) -> rsemu::Result<()> {
        let accesses = Arc::clone(&self.accesses);
        let region = Region::io("devices", len, Arc::new(Exits { bus, accesses }));
        self.space.topology().map(region, 0)?;
        Ok(())
    }

    /// Plugs in memory with these bytes, before whatever else is there: the core runs them, and writes to them go nowhere. So a
    /// hypervisor maps a flash while it shows its contents.
    pub fn plug_code(&self, mut code: Vec<u8>, base: u64) -> rsemu::Result<()> {
        const PAGE: usize = 4096;
        code.resize(code.len().next_multiple_of(PAGE), 0xff);
        let region = Region::rom("code", Arc::new(RomStore::new(code)), RomWrite::Ignore);
        self.space.topology().map_with_priority(region, base, 1)?;
        Ok(())
    }

    /// Connects one of the core's timers, `cntv` (virtual) or `cntp` (physical), to `line`.
    pub fn connect(&self, output: &str, line: impl LevelInterrupt + 'static) -> rsemu::Result<()> {
        let id = self.wires.alloc();
        let wire = Wire::builder().source(id).sink(Arc::new(Output(line)), 0);
        self.cpu.connect(output, WireSource::new(wire.build_shared(), id))
    }

    /// From now on the core has these registers too.
    pub fn add_registers(&self, registers: Box<dyn SystemRegisters>) {
        let _ = self.registers.set(registers);
        self.cpu.set_exit_mask(FAULTS);
    }

    /// How often each of [`board::REGIONS`] was accessed.
    pub fn accesses(&self) -> Vec<(&'static str, u64)> {
        self.accesses.counts()
    }

    /// Runs for so long, or until it sleeps. Devices are called on this thread.
    pub fn run(&self, quantum: Duration) {
        if self.sleeps() {
            // Has it see whether one of its timers is due.
            self.cpu.run_budget(1);
        }
        let mut left = time_to_ticks(quantum);
        while left != 0 {
            let longest = self.slice.load(Ordering::Relaxed);
            let slice = longest.min(left);
            if self.sleeps() {
                self.slice.store(SLICE, Ordering::Relaxed);
                break;
            }
            self.advance(slice);
            left -= slice;
            self.slice.store(longest.saturating_mul(2), Ordering::Relaxed);
        }
    }

    fn advance(&self, ticks: u64) {
        let Some(registers) = self.registers.get() else {
            self.cpu.run_budget(ticks);
            return;
        };
        let mut left = ticks;
        while left != 0 {
            let run = self.cpu.run_to_exit_ticks(left);
            left = left.saturating_sub(run.consumed.ticks.max(1));
            let Some(exit) = run.exit else { return };
            if self.access(&exit, &**registers).is_none() {
                self.take_exception();
            }
        }
    }

    /// What the core has stopped at is the guest's own: it comes again, and stays in the core. A store-exclusive faults the second time
    /// only if the load before it is made again too.
    fn take_exception(&self) {
        const LOOP: u32 = 64;
        const VECTORS: u64 = 0x800; // D1.3.1.5
        self.cpu.set_exit_mask(ExitMask::NONE);
        for _ in 0..LOOP {
            self.cpu.step();
            let vectors = self.cpu.sysregs().vbar_el1;
            if (vectors..vectors + VECTORS).contains(&self.cpu.pc()) {
                break;
            }
        }
        self.cpu.set_exit_mask(FAULTS);
    }

    /// If the core has stopped at an access to one of the registers that it does not have, makes it.
    fn access(&self, exit: &Exit, registers: &dyn SystemRegisters) -> Option<()> {
        const UNKNOWN: u64 = 0; // ESR_EL1.EC
        if exit.detail >> 26 != UNKNOWN || self.cpu.el() != El::El1 {
            return None;
        }
        let mut word = [0; 4];
        let address = self.cpu.translate_debug(exit.pc)?;
        self.memory.read_slice(&mut word, GuestAddress(address)).ok()?;
        let Access {
            register,
            general,
            reads,
        } = Access::of(u32::from_le_bytes(word))?;
        let is_zero = general == 31;
        if reads {
            let value = registers.read(register)?;
            if !is_zero {
                self.cpu.set_x(general, value);
            }
        } else {
            let value = if is_zero { 0 } else { self.cpu.x(general) };
            registers.write(register, value)?;
        }
        self.cpu.set_pc(exit.pc.wrapping_add(4));
        Some(())
    }

    /// Whether it waits, and nothing has come that it waits for.
    pub fn sleeps(&self) -> bool {
        self.cpu.is_waiting() && self.lines.pending() == 0
    }

    /// What the guest has asked its firmware for (PSCI, DEN 0022), if anything.
    pub fn power_request(&self) -> Option<PowerRequest> {
        self.power.get().copied()
    }

    /// How long the guest has been running, in its own time.
    pub fn time(&self) -> Duration {
        ticks_to_time(self.cpu.counter())
    }

    /// When the next of its timers is due.
    pub fn deadline(&self) -> Option<Duration> {
        const ENABLE_AND_MASK: u64 = 0b11; // CNTV_CTL_EL0, CNTP_CTL_EL0: ENABLE, IMASK
        const ENABLED: u64 = 0b01;
        let timers = self.cpu.sysregs();
        let timers = [(timers.cntv_ctl, timers.cntv_cval), (timers.cntp_ctl, timers.cntp_cval)].into_iter();
        let running = timers.filter(|(control, _)| control & ENABLE_AND_MASK == ENABLED);
        running.map(|(_, deadline)| ticks_to_time(deadline)).min()
    }

    /// Lets time pass at once until `time`, while it sleeps.
    pub fn sleep_until(&self, time: Duration) {
        // The counter of a core that is switched off runs on, and takes any number of ticks in one step; a core in WFI
        // takes them one by one.
        let ticks = time_to_ticks(time).saturating_sub(self.cpu.counter());
        self.lines.set_powered(false);
        self.cpu.run_budget(ticks);
        self.lines.set_powered(true);
    }

    /// To be called when a device may have written code to RAM: the translating engines cannot see that, and would go on
    /// running what they made of the code that was there before.
    pub fn forget_translations(&self) {
        self.space.topology().rebuild();
    }
}

/// What the guest does that the core cannot: an access to a register that it does not know is among that.
const FAULTS: ExitMask = ExitMask::NONE.with(ExitReason::FAULT);

/// An `MRS` or `MSR` (DDI 0487, C6.2.228 and C6.2.230).
struct Access {
    register: SysReg,
    /// The number of the general register; 31 is always zero.
    general: u32,
    reads: bool,
}

impl Access {
    fn of(instruction: u32) -> Option<Self> {
        let reads = match instruction >> 20 {
            0xd53 => true,
            0xd51 => false,
            _ => return None,
        };
        let field = |shift: u32, bits: u32| (instruction >> shift & ((1 << bits) - 1)) as u8;
        Some(Self {
            register: SysReg::new(2 + field(19, 1), field(16, 3), field(12, 4), field(8, 4), field(5, 3)),
            general: instruction & 0x1f,
            reads,
        })
    }
}

fn ticks_to_time(ticks: u64) -> Duration {
    let fraction = ticks % TICKS_PER_SECOND * 1_000_000_000 / TICKS_PER_SECOND;
    Duration::new(ticks / TICKS_PER_SECOND, fraction as u32)
}

/// Rounds up: at this tick the time has come.
fn time_to_ticks(time: Duration) -> u64 {
    let fraction = (u64::from(time.subsec_nanos()) * TICKS_PER_SECOND).div_ceil(1_000_000_000);
    time.as_secs().saturating_mul(TICKS_PER_SECOND).saturating_add(fraction)
}

/// rsemu calls us for an access: what an MMIO exit is to a VMM.
struct Exits {
    bus: Bus,
    accesses: Arc<Accesses>,
}

impl fmt::Debug for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exits").field("bus", &self.bus).finish_non_exhaustive()
    }
}

impl MemOps for Exits {
    fn read(&self, address: u64, data: &mut [u8], attributes: MemAttrs) -> MemResult {
        if attributes.debug {
            return Err(BusError::BadAccess); // it must not have side effects, and ours have
        }
        self.accesses.note(address);
        self.bus.read(address, data).map_err(|_| BusError::Unassigned)
    }

    fn write(&self, address: u64, data: &[u8], attributes: MemAttrs) -> MemResult {
        if attributes.debug {
            return Err(BusError::BadAccess);
        }
        self.accesses.note(address);
        self.bus.write(address, data).map_err(|_| BusError::Unassigned)
    }
}

/// An output of the core drives one of our lines.
struct Output<L>(L);

impl<L: LevelInterrupt> WireSink for Output<L> {
    fn set_level(&self, _source: WireId, _line: u32, level: Level) {
        let told = match level {
            Level::High => self.0.trigger(),
            Level::Low => self.0.clear(),
        };
        if let Err(error) = told {
            eprintln!("an output of the core was not delivered: {error}");
        }
    }
}
