//! What rsemu brings: an AArch64 core, and an address space for it and its RAM.
//!
//! It is to this example what `/dev/kvm` is to a VMM: run a little, be called for each access to a device, be told which
//! interrupt lines are up.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use devisor::{
    bus::Bus,
    interrupt::{LevelInterrupt, level_from_fn},
};
use rsemu::{
    core::{
        device::Device,
        error::BusError,
        hosts::HostObjects,
        props::Props,
        space::{AddressSpace, MemAttrs, MemOps, MemResult, Region},
        wire::{Level, Wire, WireId, WireIdAllocator, WireSink, WireSource},
    },
    cpu::arm::a64::{
        Cpu, Lines,
        psci::{Cluster, DEFAULT_CLUSTER},
    },
};

use crate::{ram::Ram, wing::PowerRequest};

/// One tick of the core is one memory access, and one count of its generic timer.
pub const TICKS_PER_SECOND: u64 = 62_500_000;

/// How long the core runs before it looks up: 160 microseconds of the guest's time.
const QUANTUM: u64 = 10_000;
/// How long it runs before it is asked whether it sleeps: in WFI it takes ticks one by one, and each costs us as much as an instruction.
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

/// One core with its RAM and its devices.
pub struct Machine {
    cpu: Cpu,
    lines: Arc<Lines>,
    space: Arc<AddressSpace>,
    power: Arc<OnceLock<PowerRequest>>,
    wires: WireIdAllocator,
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
            power: Arc::default(),
            wires: WireIdAllocator::new(),
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
        let region = Region::io("devices", len, Arc::new(Exits(bus)));
        self.space.topology().map(region, 0)?;
        Ok(())
    }

    /// Connects one of the core's timers, `cntv` (virtual) or `cntp` (physical), to `line`.
    pub fn connect(&self, output: &str, line: impl LevelInterrupt + 'static) -> rsemu::Result<()> {
        let id = self.wires.alloc();
        let wire = Wire::builder().source(id).sink(Arc::new(Output(line)), 0);
        self.cpu.connect(output, WireSource::new(wire.build_shared(), id))
    }

    /// Runs a little, or until it sleeps. Devices are called on this thread.
    pub fn run(&self) {
        if self.sleeps() {
            // Has it see whether one of its timers is due.
            self.cpu.run_budget(1);
        }
        for _ in 0..QUANTUM / SLICE {
            if self.sleeps() {
                break;
            }
            self.cpu.run_budget(SLICE);
        }
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
#[derive(Debug)]
struct Exits(Bus);

impl MemOps for Exits {
    fn read(&self, address: u64, data: &mut [u8], attributes: MemAttrs) -> MemResult {
        if attributes.debug {
            return Err(BusError::BadAccess); // it must not have side effects, and ours have
        }
        self.0.read(address, data).map_err(|_| BusError::Unassigned)
    }

    fn write(&self, address: u64, data: &[u8], attributes: MemAttrs) -> MemResult {
        if attributes.debug {
            return Err(BusError::BadAccess);
        }
        self.0.write(address, data).map_err(|_| BusError::Unassigned)
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
