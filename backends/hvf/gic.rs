//! The framework's GIC as a source of lines and a sink of messages.

use std::{
    collections::BTreeSet,
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{GicConfig, HvError, HvGic, IntIdRange, MsiConfig};
use crate::{
    backends::irqchip::{IntId, Spi},
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, RequesterId},
    sync::lock,
};

/// The GIC of the VM. Clones name the same one.
///
/// ```
/// use devisor::backends::hvf::{Gic, GicConfig, IntIdRange, MsiConfig, mock::Process};
/// use devisor::backends::irqchip::{IntId, Spi};
/// use devisor::interrupt::{Interrupt, LevelInterrupt};
/// use std::sync::Arc;
///
/// let framework = Arc::new(Process::new()); // on macOS: your implementation of `HvGic`
/// framework.hv_vm_create()?;
/// let gic = Gic::create(framework, GicConfig {
///     distributor_base: 0x0800_0000,
///     redistributor_base: 0x080a_0000,
///     msi: Some(MsiConfig {
///         region_base: 0x0802_0000,
///         interrupts: IntIdRange { first: IntId(64), count: 32 },
///     }),
/// })?;
///
/// let uart = gic.level_line(Spi(1))?;
/// uart.trigger()?;
/// uart.clear()?;
/// assert!(gic.level_line(Spi(1)).is_err(), "the UART has it");
/// assert!(gic.edge_line(Spi(32)).is_err(), "INTID 64 is for messages");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Gic<H> {
    inner: Arc<Inner<H>>,
}

struct Inner<H> {
    framework: Arc<H>,
    spis: IntIdRange,
    msi: Option<MsiConfig>,
    /// SPIs that a level line is out for.
    taken: Mutex<BTreeSet<Spi>>,
}

/// A GIC or a line of it cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GicError {
    /// An address in the configuration is not aligned as the framework wants it.
    #[error("{region} at {base:#x}: the address must be a multiple of {alignment:#x}")]
    Unaligned {
        /// Which region.
        region: &'static str,
        /// Its refused address.
        base: u64,
        /// What it must be a multiple of.
        alignment: u64,
    },
    /// The interrupts for messages are no SPIs.
    #[error("MSI range of {msi}: it needs at least one, and all of them in the SPI range, {spis}")]
    MsiRange {
        /// What was refused.
        msi: IntIdRange,
        /// The SPI range.
        spis: IntIdRange,
    },
    /// The GIC does not have this SPI, or has it for messages.
    #[error("{spi} is {}: lines are for {spis}, without the MSI range", IntId::from(*spi))]
    NoSuchLine {
        /// What was refused.
        spi: Spi,
        /// The SPI range.
        spis: IntIdRange,
    },
    /// Another level line for it is out.
    #[error("{spi} has a level line already: put a `SharedLine` over it for several devices")]
    Taken {
        /// What was refused.
        spi: Spi,
    },
    /// The configuration has no place for messages.
    #[error("the GIC was made without an MSI region: set `GicConfig::msi`")]
    NoMsi,
    /// The framework refused.
    #[error("{call} failed")]
    Refused {
        /// Which of its calls.
        call: &'static str,
        /// What it answered.
        #[source]
        error: HvError,
    },
}

impl<H: HvGic> Gic<H> {
    /// Makes the VM's GIC: call it after `hv_vm_create` and before the first vCPU.
    ///
    /// # Errors
    /// [`GicError`] with what was refused and what would be accepted.
    pub fn create(framework: Arc<H>, config: GicConfig) -> Result<Self, GicError> {
        let refused = |call| move |error| GicError::Refused { call, error };
        let GicConfig {
            distributor_base,
            redistributor_base,
            msi,
        } = config;
        let alignment = framework
            .hv_gic_get_distributor_base_alignment()
            .map_err(refused("hv_gic_get_distributor_base_alignment"))?;
        aligned("distributor", distributor_base, alignment)?;
        let alignment = framework
            .hv_gic_get_redistributor_base_alignment()
            .map_err(refused("hv_gic_get_redistributor_base_alignment"))?;
        aligned("redistributor region", redistributor_base, alignment)?;
        let spis = framework
            .hv_gic_get_spi_interrupt_range()
            .map_err(refused("hv_gic_get_spi_interrupt_range"))?;
        if let Some(MsiConfig {
            region_base,
            interrupts,
        }) = msi
        {
            let alignment = framework
                .hv_gic_get_msi_region_base_alignment()
                .map_err(refused("hv_gic_get_msi_region_base_alignment"))?;
            aligned("MSI region", region_base, alignment)?;
            if interrupts.count == 0 || !spis.covers(interrupts) {
                return Err(GicError::MsiRange { msi: interrupts, spis });
            }
        }
        framework.hv_gic_create(&config).map_err(refused("hv_gic_create"))?;
        Ok(Self {
            inner: Arc::new(Inner {
                framework,
                spis,
                msi,
                taken: Mutex::default(),
            }),
        })
    }

    /// A level line: describe the interrupt as level-triggered to the guest. There is one at a time for an SPI; dropping
    /// it clears the line.
    ///
    /// # Errors
    /// [`GicError::NoSuchLine`], [`GicError::Taken`].
    pub fn level_line(&self, spi: Spi) -> Result<LevelLine<H>, GicError> {
        let intid = self.line(spi)?;
        if !lock(&self.inner.taken).insert(spi) {
            return Err(GicError::Taken { spi });
        }
        let gic = Arc::clone(&self.inner);
        Ok(LevelLine {
            gic,
            spi,
            intid,
            up: AtomicBool::new(false),
        })
    }

    /// An edge line: describe the interrupt as edge-triggered to the guest. A guest that makes it level-triggered
    /// all the same would find it up for ever.
    ///
    /// # Errors
    /// [`GicError::NoSuchLine`].
    pub fn edge_line(&self, spi: Spi) -> Result<EdgeLine<H>, GicError> {
        let intid = self.line(spi)?;
        let gic = Arc::clone(&self.inner);
        Ok(EdgeLine { gic, intid })
    }

    /// The MSI frame as a sink. Messages go to [`MsiConfig::doorbell`], and their data is an INTID of the MSI range.
    ///
    /// # Errors
    /// [`GicError::NoMsi`].
    pub fn msi_sink(&self) -> Result<MsiFrame<H>, GicError> {
        let msi = self.inner.msi.ok_or(GicError::NoMsi)?;
        let gic = Arc::clone(&self.inner);
        Ok(MsiFrame { gic, msi })
    }

    /// The SPI range, the MSI range included.
    pub fn spis(&self) -> IntIdRange {
        self.inner.spis
    }

    fn line(&self, spi: Spi) -> Result<IntId, GicError> {
        let Inner { spis, msi, .. } = &*self.inner;
        let intid = IntId::from(spi);
        let is_msi = msi.is_some_and(|msi| msi.interrupts.contains(intid));
        match spis.contains(intid) && !is_msi {
            true => Ok(intid),
            false => Err(GicError::NoSuchLine { spi, spis: *spis }),
        }
    }
}

fn aligned(region: &'static str, base: u64, alignment: u64) -> Result<(), GicError> {
    match base.checked_rem(alignment) {
        None | Some(0) => Ok(()),
        Some(_) => Err(GicError::Unaligned {
            region,
            base,
            alignment,
        }),
    }
}

/// A level-triggered SPI: see [`Gic::level_line`].
pub struct LevelLine<H: HvGic> {
    gic: Arc<Inner<H>>,
    spi: Spi,
    intid: IntId,
    /// May be up as far as the framework knows.
    up: AtomicBool,
}

impl<H: HvGic> Interrupt for LevelLine<H> {
    fn trigger(&self) -> io::Result<()> {
        self.up.store(true, Ordering::SeqCst);
        Ok(self.gic.framework.hv_gic_set_spi(self.intid, true)?)
    }
}

impl<H: HvGic> LevelInterrupt for LevelLine<H> {
    fn clear(&self) -> io::Result<()> {
        self.gic.framework.hv_gic_set_spi(self.intid, false)?;
        self.up.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl<H: HvGic> Drop for LevelLine<H> {
    fn drop(&mut self) {
        if *self.up.get_mut() {
            // The framework refuses only if the VM is gone, and the line with it.
            let _ = self.gic.framework.hv_gic_set_spi(self.intid, false);
        }
        lock(&self.gic.taken).remove(&self.spi);
    }
}

/// An edge-triggered SPI: see [`Gic::edge_line`].
pub struct EdgeLine<H> {
    gic: Arc<Inner<H>>,
    intid: IntId,
}

impl<H: HvGic> Interrupt for EdgeLine<H> {
    fn trigger(&self) -> io::Result<()> {
        // No `false` after it: the framework makes the pulse.
        Ok(self.gic.framework.hv_gic_set_spi(self.intid, true)?)
    }
}

/// The MSI frame: see [`Gic::msi_sink`]. The requester does not matter to it, for the framework has no ITS.
pub struct MsiFrame<H> {
    gic: Arc<Inner<H>>,
    msi: MsiConfig,
}

impl<H: HvGic> MsiSink for MsiFrame<H> {
    fn send(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        // The message is the guest's. What the framework makes of a wrong one is not documented well enough.
        let MsiMessage { address, data } = message;
        let intid = IntId(data);
        if address != self.msi.doorbell() || !self.msi.interrupts.contains(intid) {
            return Err(HvError::BadArgument.into());
        }
        Ok(self.gic.framework.hv_gic_send_msi(address, intid)?)
    }
}

impl<H> Clone for Gic<H> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<H> fmt::Debug for Gic<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gic")
            .field("spis", &self.inner.spis)
            .field("msi", &self.inner.msi)
            .finish_non_exhaustive()
    }
}

impl<H: HvGic> fmt::Debug for LevelLine<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelLine")
            .field("intid", &self.intid)
            .field("up", &self.up)
            .finish_non_exhaustive()
    }
}

impl<H> fmt::Debug for EdgeLine<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLine")
            .field("intid", &self.intid)
            .finish_non_exhaustive()
    }
}

impl<H> fmt::Debug for MsiFrame<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiFrame")
            .field("msi", &self.msi)
            .finish_non_exhaustive()
    }
}
