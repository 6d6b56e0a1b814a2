//! Arm Generic Interrupt Controller, architecture version 2 (ARM IHI 0048B), without the Security Extensions and
//! without the Virtualization Extensions.
//!
//! A [`GicV2`] has up to 8 CPUs. Devices drive its lines ([`GicV2::level_line`], [`GicV2::edge_line`],
//! [`GicV2::ppi_line`]); each CPU sees its registers through two faces ([`GicV2::distributor`],
//! [`GicV2::cpu_interface`]) and is told the level of its IRQ and FIQ inputs through [`CpuOutputs`].
//!
//! Both interrupt groups are there, in a single security state: GICD_CTLR and GICC_CTLR have an enable bit for each, and
//! GICC_CTLR has AckCtl, FIQEn, CBPR and EOImode, as the specification says for a GIC without the Security Extensions.
//! Registers are accessed as 32-bit words; GICD_IPRIORITYRn, GICD_ITARGETSRn, GICD_CPENDSGIRn and GICD_SPENDSGIRn also
//! as bytes. All other accesses read as zero and write nothing.
//!
//! ```
//! use devisor::{
//!     backends::irqchip::{CpuId, Spi, gicv2::{CpuOutputs, GicV2, GicV2Config}},
//!     bus::{BusDevice, read_le},
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
//! let gic = GicV2::new(GicV2Config::default(), vec![outputs])?;
//!
//! // What the guest does: enable SPI 1, which is INTID 33, and take interrupts of any priority.
//! let (distributor, cpu) = (gic.distributor(CpuId(0))?, gic.cpu_interface(CpuId(0))?);
//! distributor.write(0x104, &(1_u32 << 1).to_le_bytes()); // GICD_ISENABLER1
//! distributor.write(0x000, &1_u32.to_le_bytes()); // GICD_CTLR
//! cpu.write(0x004, &0xff_u32.to_le_bytes()); // GICC_PMR
//! cpu.write(0x000, &1_u32.to_le_bytes()); // GICC_CTLR
//!
//! // What a device does, and how the guest handles it.
//! let line = gic.level_line(Spi(1))?;
//! line.trigger()?;
//! assert!(irq.load(SeqCst));
//! let mut iar = [0; 4];
//! cpu.read(0x00c, &mut iar); // GICC_IAR
//! assert_eq!(read_le(&iar), 33);
//! assert!(!irq.load(SeqCst), "acknowledged");
//! line.clear()?;
//! cpu.write(0x010, &iar); // GICC_EOIR
//! assert!(!irq.load(SeqCst));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cpu_interface;
mod describe;
mod distributor;
mod faces;
mod handling;
mod lines;
mod model;
mod registers;
mod snapshot;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use self::model::{Model, News, cpus_of};
use super::gic::{
    Ppi, Spi,
    ids::{PRIVATE, SGIS},
    outputs::Output,
};
use crate::{
    backends::irqchip::{CpuId, finished::FinishedHooks},
    sync::lock,
};

pub use super::gic::outputs::CpuOutputs;
pub use crate::backends::irqchip::{
    finished::FinishedHook,
    lines::{EdgeLine, LevelLine},
};
pub use describe::describe;
pub use faces::{CpuInterface, Distributor};
pub use snapshot::{CpuState, GicV2State, GicV2StateError, SpiState};

/// What a [`GicV2`] has. The guest reads it from GICD_TYPER and from the registers that have bits for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GicV2Config {
    /// CPUs: 1 to 8.
    pub cpus: u32,
    /// SPIs: a multiple of 32 up to 960, or 988, which is all that the architecture has room for.
    pub spis: u32,
    /// Bits of priority: 4 to 8, which are 16 to 256 priorities.
    pub priority_bits: u32,
}

impl Default for GicV2Config {
    /// One CPU, 96 SPIs and 5 bits of priority, as a GIC-400 has.
    fn default() -> Self {
        Self {
            cpus: 1,
            spis: 96,
            priority_bits: 5,
        }
    }
}

impl GicV2Config {
    /// The most SPIs there can be: INTIDs 32 to 1019.
    pub const MAX_SPIS: u32 = 988;

    fn check(&self) -> Result<(), GicV2Error> {
        let Self {
            cpus,
            spis,
            priority_bits,
        } = *self;
        if !(1..=8).contains(&cpus) {
            return Err(GicV2Error::Cpus(cpus));
        }
        if spis != Self::MAX_SPIS && (spis > Self::MAX_SPIS || !spis.is_multiple_of(32)) {
            return Err(GicV2Error::Spis(spis));
        }
        if !(4..=8).contains(&priority_bits) {
            return Err(GicV2Error::PriorityBits(priority_bits));
        }
        Ok(())
    }

    /// The number of INTIDs, private ones included.
    fn interrupts(&self) -> u32 {
        PRIVATE + self.spis
    }

    fn all_cpus(&self) -> u8 {
        (0xff_u32 >> (8 - self.cpus)) as u8
    }
}

/// A [`GicV2`] cannot be made, or has no such part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GicV2Error {
    /// [`GicV2Config::cpus`].
    #[error("{0} CPUs: a GICv2 has 1 to 8")]
    Cpus(u32),
    /// [`GicV2Config::spis`].
    #[error("{0} SPIs: a GICv2 has a multiple of 32 up to 960, or 988")]
    Spis(u32),
    /// [`GicV2Config::priority_bits`].
    #[error("{0} bits of priority: a GICv2 has 4 to 8")]
    PriorityBits(u32),
    /// One [`CpuOutputs`] is needed for each CPU.
    #[error("outputs for {outputs} CPUs: this GIC has {cpus}")]
    Outputs {
        /// How many there were.
        outputs: usize,
        /// How many are needed.
        cpus: u32,
    },
    /// There is no such SPI.
    #[error("{spi}: this GIC has SPIs 0 to {}, {spis} in all", spis.saturating_sub(1))]
    NoSuchSpi {
        /// The SPI that was asked for.
        spi: Spi,
        /// How many there are.
        spis: u32,
    },
    /// There is no such PPI.
    #[error("{0}: there are PPIs 0 to 15")]
    NoSuchPpi(Ppi),
    /// There is no such CPU.
    #[error("{cpu}: this GIC has CPUs 0 to {}", cpus - 1)]
    NoSuchCpu {
        /// The CPU that was asked for.
        cpu: CpuId,
        /// How many there are.
        cpus: u32,
    },
}

/// A GICv2. Clones are handles to the same controller, which lives as long as any of them, of its lines or its faces.
///
/// All methods can be called from any thread. An embedder whose [`CpuOutputs`] or [`FinishedHook`]s hold a handle makes
/// a cycle that keeps the controller alive: hold a [`Weak`](std::sync::Weak) of what owns the handle there.
#[derive(Clone)]
pub struct GicV2 {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    config: GicV2Config,
    model: Mutex<Model>,
    outputs: Vec<Output>,
    finished: Arc<FinishedHooks>,
}

impl GicV2 {
    /// A GIC as it is after a reset, with all lines down and nothing enabled.
    ///
    /// # Errors
    /// [`GicV2Error`] if the configuration is not one that a GICv2 can have, or `outputs` are not one for each CPU.
    pub fn new(config: GicV2Config, outputs: Vec<CpuOutputs>) -> Result<Self, GicV2Error> {
        config.check()?;
        if outputs.len() != config.cpus as usize {
            return Err(GicV2Error::Outputs {
                outputs: outputs.len(),
                cpus: config.cpus,
            });
        }
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                model: Mutex::new(Model::new(config)),
                outputs: outputs.into_iter().map(Output::new).collect(),
                finished: Arc::default(),
            }),
        })
    }

    /// A reset of the system: every register goes back to what it was at the start. The lines stay as their devices drive
    /// them, and no interrupt counts as finished: devices and adapters are reset too.
    pub fn reset(&self) {
        self.shared.with(Model::reset);
    }

    /// Tells the outputs again that have refused: see [`CpuOutputs`].
    pub fn retry(&self) {
        for output in &self.shared.outputs {
            output.settle();
        }
    }

    /// What this GIC was made with.
    pub fn config(&self) -> GicV2Config {
        self.shared.config
    }

    /// How often an output of this CPU refused to be told its level: see
    /// [`LevelOutput::failures`](crate::interrupt::LevelOutput::failures).
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchCpu`].
    pub fn output_failures(&self, cpu: CpuId) -> Result<u64, GicV2Error> {
        let output = &self.shared.outputs[self.shared.cpu(cpu)?];
        Ok(output.failures())
    }
}

impl fmt::Debug for GicV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GicV2")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Runs `change` under the lock, then tells the outside what came of it.
    fn with<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let mut model = lock(&self.model);
        let value = change(&mut model);
        let news = std::mem::take(&mut model.news);
        for cpu in cpus_of(news.cpus) {
            self.outputs[cpu].set(model.signals(cpu));
        }
        drop(model);
        self.tell(news);
        value
    }

    /// Tells CPUs and hooks, with no lock held.
    fn tell(&self, news: News) {
        for cpu in cpus_of(news.cpus) {
            self.outputs[cpu].settle();
        }
        news.finished.tell(&self.finished);
    }

    fn cpu(&self, cpu: CpuId) -> Result<usize, GicV2Error> {
        let cpus = self.config.cpus;
        if cpu.0 < cpus {
            Ok(cpu.0 as usize)
        } else {
            Err(GicV2Error::NoSuchCpu { cpu, cpus })
        }
    }

    fn spi(&self, spi: Spi) -> Result<u32, GicV2Error> {
        let spis = self.config.spis;
        if spi.0 < spis {
            Ok(PRIVATE + spi.0)
        } else {
            Err(GicV2Error::NoSuchSpi { spi, spis })
        }
    }

    fn ppi(&self, ppi: Ppi) -> Result<u32, GicV2Error> {
        if ppi.0 < PRIVATE - SGIS {
            Ok(SGIS + ppi.0)
        } else {
            Err(GicV2Error::NoSuchPpi(ppi))
        }
    }
}
