//! Arm Generic Interrupt Controller, architecture version 3 (ARM IHI 0069), with affinity routing, in a single security
//! state and without the Virtualization Extensions.
//!
//! A [`GicV3`] has up to 512 CPUs. Devices drive its lines ([`GicV3::level_line`], [`GicV3::edge_line`],
//! [`GicV3::ppi_line`]). All CPUs share the registers of the [`Distributor`]; each has a [`Redistributor`] and the system
//! registers of its [`CpuInterface`], and is told the level of its IRQ and FIQ inputs through [`CpuOutputs`]: interrupts of
//! Group 0 are FIQs, those of Group 1 are IRQs.
//!
//! What there is beyond that says [`GicV3Config`]: routing to any one of several CPUs, message-based SPIs, the extended
//! ranges of PPIs and SPIs, range selectors, and LPIs with their tables in guest memory ([`GicV3::with_lpis`]).
//!
//! ```
//! use devisor::{
//!     backends::irqchip::{CpuId, Spi, gicv3::{CpuOutputs, GicV3, GicV3Config, SysReg}},
//!     bus::BusDevice,
//!     interrupt::{Interrupt, LevelInterrupt, NoInterrupt, level_from_fn},
//! };
//! use std::sync::{Arc, atomic::{AtomicBool, Ordering::SeqCst}};
//!
//! // What an embedder hooks to its vCPU.
//! let irq = Arc::new(AtomicBool::new(false));
//! let pin = Arc::clone(&irq);
//! let outputs = CpuOutputs {
//!     irq: Box::new(level_from_fn(move |up| Ok(pin.store(up, SeqCst)))),
//!     fiq: Box::new(NoInterrupt),
//! };
//! let gic = GicV3::new(GicV3Config::new(1), vec![outputs])?;
//!
//! // What the guest does: wake its redistributor, enable SPI 1, which is INTID 33, in Group 1, and take interrupts of any
//! // priority. GICD_IROUTER33 is zero, where CPU 0 is.
//! let (distributor, redistributor) = (gic.distributor(), gic.redistributor(CpuId(0))?);
//! redistributor.write(0x14, &0_u32.to_le_bytes()); // GICR_WAKER
//! distributor.write(0x084, &(1_u32 << 1).to_le_bytes()); // GICD_IGROUPR1
//! distributor.write(0x104, &(1_u32 << 1).to_le_bytes()); // GICD_ISENABLER1
//! distributor.write(0x000, &0b10_u32.to_le_bytes()); // GICD_CTLR
//! let cpu = gic.cpu_interface(CpuId(0))?;
//! cpu.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
//! cpu.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
//!
//! // What a device does, and how the guest handles it. A trapped access names its register by ESR_EL2.
//! let line = gic.level_line(Spi(1))?;
//! line.trigger()?;
//! assert!(irq.load(SeqCst));
//! let trapped = SysReg::from_iss(0x30_3018 | 1);
//! assert_eq!(trapped, SysReg::ICC_IAR1_EL1);
//! assert_eq!(cpu.read_sysreg(trapped), Some(33));
//! assert!(!irq.load(SeqCst), "acknowledged");
//! line.clear()?;
//! cpu.write_sysreg(SysReg::ICC_EOIR1_EL1, 33).unwrap();
//! assert!(!irq.load(SeqCst));
//! assert_eq!(cpu.read_sysreg(SysReg::new(3, 4, 12, 9, 5)), None, "ICC_SRE_EL2: the embedder injects an exception");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Locks
//! Each CPU has a lock of its own, for its private interrupts, its LPIs and its CPU interface; SPIs are behind that of the
//! distributor. Acknowledging and ending an SGI, PPI or LPI takes the CPU's lock alone, and so does sending it one. No
//! output and no hook is called with a lock held.
//!
//! # Two security states
//! GICD_CTLR.DS is set and fixed. Two states would need: a third group, by GICD_IGRPMODRn and GICR_IGRPMODRn, in the state
//! of an interrupt; the state of who accesses, in every register face; Secure and Non-secure copies of GICD_CTLR, ICC_CTLR,
//! ICC_BPR1 and ICC_IGRPEN1, with the Non-secure view of priorities; GICD_NSACRn, GICD_SETSPI_SR and GICD_CLRSPI_SR; and the
//! choice between IRQ and FIQ by the state that the CPU is in, which the embedder would have to tell.
//!
//! # What the architecture leaves open
//! Of equal priorities the lowest INTID comes first. An SPI for any one CPU goes to one that is awake, has its group enabled
//! and has not opted out by GICR_CTLR.DPG, the next from its INTID's remainder on; it stays there while that holds. An
//! interrupt of a group that ICC_IGRPENn_EL1 disables hides less urgent ones of the other group, but not one of a group that
//! GICD_CTLR disables. While GICR_WAKER.ProcessorSleep is set nothing is forwarded; whether it is after a reset says
//! [`GicV3Config::redistributors_awake`], for a guest that never writes it, such as EDK2's. GICD_CTLR.E1NWF is RAZ/WI: a CPU that
//! sleeps is not picked for an SPI for any one. While all sleep such an SPI stays pending and raises
//! no WakeRequest, and the first to wake has it. GICR_CTLR.EnableLPIs can be cleared again. The configuration of all LPIs is
//! read when it is set, and that of an LPI by invalidation, here or at another CPU. ICC_CTLR_EL1.PMHE is not there: where an
//! SPI goes does not depend on ICC_PMR_EL1.

mod config;
mod cpu;
mod cpu_interface;
mod describe;
mod distributor;
mod faces;
mod handling;
mod lines;
mod lpi;
mod messages;
mod mutex;
#[cfg(all(test, loom))]
mod races;
mod redistributor;
mod registers;
mod routing;
mod seam;
mod snapshot;
mod sysreg;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use vm_memory::GuestAddressSpace;

use self::{
    config::Layout,
    cpu::Cpu,
    distributor::{Distributor as Model, News, Route, Session},
    mutex::{Mutex, lock},
    routing::Routing,
};
use super::gic::{Ppi, Spi, memory::Tables, outputs::Output};
use crate::{
    backends::irqchip::{CpuId, finished::FinishedHooks},
    interrupt::{LevelInterrupt, LevelOutput},
};

pub use super::gic::outputs::CpuOutputs;
pub use crate::backends::irqchip::{
    finished::FinishedHook,
    lines::{EdgeLine, LevelLine},
};
pub use config::{Affinity, GicV3Config, GicV3Error, LpiSupport};
pub use describe::describe;
pub use faces::{CpuInterface, Distributor, Redistributor, RedistributorRegion};
pub use messages::SpiMessages;
pub use snapshot::{CpuState, GicV3State, GicV3StateError, SpiState};
pub use sysreg::SysReg;

/// A GICv3. Clones are handles to the same controller, which lives as long as any of them, of its lines or its faces.
///
/// All methods can be called from any thread. An embedder whose [`CpuOutputs`] or [`FinishedHook`]s hold a handle makes
/// a cycle that keeps the controller alive: hold a [`Weak`](std::sync::Weak) of what owns the handle there.
#[derive(Clone)]
pub struct GicV3 {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    config: GicV3Config,
    layout: Layout,
    routing: Routing,
    distributor: Mutex<Model>,
    cpus: Vec<Cell>,
    finished: Arc<FinishedHooks>,
}

/// A CPU, its lock and its outputs. Who has locked one locks nothing else.
// On cache lines of its own: CPUs do not slow each other down.
#[repr(align(128))]
struct Cell {
    model: Mutex<Cpu>,
    output: Output,
    wake_request: OnceLock<LevelOutput<Box<dyn LevelInterrupt>>>,
}

impl GicV3 {
    /// A GIC without LPIs as it is after a reset, with all lines down and nothing enabled.
    ///
    /// # Errors
    /// [`GicV3Error`] if the configuration is not one that a GICv3 can have, or `outputs` are not one for each CPU.
    pub fn new(config: GicV3Config, outputs: Vec<CpuOutputs>) -> Result<Self, GicV3Error> {
        Self::build(config, outputs, None)
    }

    /// The same with LPIs, whose tables are in `memory`: the guest's, as `Arc<GuestMemoryMmap>` or anything else that is a
    /// [`GuestAddressSpace`].
    ///
    /// # Errors
    /// As [`new`](Self::new), or if [`GicV3Config::lpis`] asks for none.
    pub fn with_lpis<A>(config: GicV3Config, outputs: Vec<CpuOutputs>, memory: A) -> Result<Self, GicV3Error>
    where
        A: GuestAddressSpace + Send + Sync + 'static,
    {
        Self::build(config, outputs, Some(Arc::new(memory)))
    }

    fn build(
        config: GicV3Config,
        outputs: Vec<CpuOutputs>,
        tables: Option<Arc<dyn Tables>>,
    ) -> Result<Self, GicV3Error> {
        config.check()?;
        if outputs.len() != config.affinities.len() {
            return Err(GicV3Error::Outputs {
                outputs: outputs.len(),
                cpus: config.cpus(),
            });
        }
        if (config.lpis != LpiSupport::None) != tables.is_some() {
            return Err(GicV3Error::Lpis {
                lpis: config.lpis,
                memory: tables.is_some(),
            });
        }
        let layout = config.layout();
        let routing = Routing::new(&config.affinities);
        let invalidations = Arc::default();
        let cell = |outputs| {
            let mut cpu = Cpu::new(layout, tables.clone());
            cpu.lpis.share_invalidations(&invalidations);
            Cell {
                model: Mutex::new(cpu),
                output: Output::new(outputs),
                wake_request: OnceLock::new(),
            }
        };
        Ok(Self {
            shared: Arc::new(Shared {
                layout,
                distributor: Mutex::new(Model::new(layout, Route::to(&routing, 0))),
                routing,
                cpus: outputs.into_iter().map(cell).collect(),
                finished: Arc::default(),
                config,
            }),
        })
    }

    /// Connects the WakeRequest of a CPU: a line that is up while something waits for the CPU that its redistributor does
    /// not forward because the guest has set GICR_WAKER.ProcessorSleep there.
    ///
    /// It is for the embedder's power controller: a CPU that has suspended itself so (PSCI's CPU_SUSPEND) runs on.
    /// It is told as [`CpuOutputs`] are. False if one is connected already, which stays.
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchCpu`].
    pub fn connect_wake_request(&self, cpu: CpuId, line: Box<dyn LevelInterrupt>) -> Result<bool, GicV3Error> {
        let cpu = self.shared.cpu(cpu)?;
        let connected = self.shared.cpus[cpu].wake_request.set(LevelOutput::new(line)).is_ok();
        self.shared.with_cpu(cpu, |_| ());
        Ok(connected)
    }

    /// A reset of the system: every register goes back to what it was at the start. The lines stay as their devices drive
    /// them, and no interrupt counts as finished: devices and adapters are reset too. Tables in guest memory are not
    /// written.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// A reset of one CPU, as by PSCI's CPU_ON: its ICC_*_EL1 registers go back to what they were at the start. Its
    /// redistributor stays.
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchCpu`].
    pub fn reset_cpu_interface(&self, cpu: CpuId) -> Result<(), GicV3Error> {
        let cpu = self.shared.cpu(cpu)?;
        let priority_bits = self.shared.layout.priority_bits;
        self.shared.with_distributor(|distributor| {
            distributor.change_participation(cpu, |cpu| {
                cpu.interface = cpu_interface::CpuInterface::new(priority_bits)
            });
        });
        Ok(())
    }

    /// Tells the outputs again that have refused, and WakeRequests: see [`CpuOutputs`].
    pub fn retry(&self) {
        for cpu in &self.shared.cpus {
            cpu.settle();
        }
    }

    /// What this GIC was made with.
    pub fn config(&self) -> &GicV3Config {
        &self.shared.config
    }

    /// How often an output of this CPU refused to be told its level: see [`LevelOutput::failures`].
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchCpu`].
    pub fn output_failures(&self, cpu: CpuId) -> Result<u64, GicV3Error> {
        let cell = &self.shared.cpus[self.shared.cpu(cpu)?];
        let wake_request = cell.wake_request.get().map_or(0, LevelOutput::failures);
        Ok(cell.output.failures() + wake_request)
    }
}

impl fmt::Debug for GicV3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GicV3")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

impl Cell {
    fn look<T>(&self, look: impl FnOnce(&Cpu) -> T) -> T {
        look(&lock(&self.model))
    }

    /// Runs `change` under the lock and derives the outputs. They are to be settled once no lock is held.
    fn change<T>(&self, change: impl FnOnce(&mut Cpu) -> T) -> T {
        let mut model = lock(&self.model);
        let value = change(&mut model);
        self.output.set(model.signals());
        if let Some(line) = self.wake_request.get() {
            let up = model.wake_request();
            if line.is_up() != up {
                line.set(up);
            }
        }
        value
    }

    fn settle(&self) {
        self.output.settle();
        if let Some(line) = self.wake_request.get() {
            let _ = line.settle();
        }
    }
}

impl Shared {
    /// Changes what a CPU has of its own, then tells it what came of it.
    fn with_cpu<T>(&self, cpu: usize, change: impl FnOnce(&mut Cpu) -> T) -> T {
        let cell = &self.cpus[cpu];
        let value = cell.change(change);
        cell.settle();
        value
    }

    /// Runs `change` with the distributor locked, then tells the outside what came of it.
    fn with_distributor<T>(&self, change: impl FnOnce(&mut Session<'_>) -> T) -> T {
        let mut session = self.session();
        let value = change(&mut session);
        let Session { model, news, .. } = session;
        drop(model);
        self.tell(news);
        value
    }

    fn look_at_distributor<T>(&self, look: impl FnOnce(&Session<'_>) -> T) -> T {
        look(&self.session())
    }

    fn session(&self) -> Session<'_> {
        Session {
            shared: self,
            model: lock(&self.distributor),
            news: News::default(),
        }
    }

    /// Tells CPUs and hooks, with no lock held.
    fn tell(&self, news: News) {
        for cpu in news.cpus.iter() {
            self.cpus[cpu].settle();
        }
        news.finished.tell(&self.finished);
    }

    fn cpu(&self, cpu: CpuId) -> Result<usize, GicV3Error> {
        let cpus = self.config.cpus();
        if cpu.0 < cpus {
            Ok(cpu.0 as usize)
        } else {
            Err(GicV3Error::NoSuchCpu { cpu, cpus })
        }
    }
}
