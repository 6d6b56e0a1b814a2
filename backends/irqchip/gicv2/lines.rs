//! The inputs of a GICv2: lines for devices, and the way back that tells an adapter that the guest has finished.

use std::{
    fmt, io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{CpuId, GicV2, GicV2Error, Ppi, Shared, Spi};
use crate::{
    backends::irqchip::IntId,
    interrupt::{Interrupt, LevelInterrupt},
    sync::lock,
};

impl GicV2 {
    /// A level line into an SPI.
    ///
    /// The guest decides how it is understood (GICD_ICFGRn): level-sensitive, the interrupt is pending while the line is
    /// up; edge-triggered, each rise makes it pending. Several handles of one SPI are a wired-OR, and dropping one lets go.
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchSpi`].
    pub fn level_line(&self, spi: Spi) -> Result<LevelLine, GicV2Error> {
        let intid = self.shared.spi(spi)?;
        Ok(LevelLine::new(&self.shared, Input { cpu: 0, intid }))
    }

    /// An edge line into an SPI: each trigger is a pulse, which makes the interrupt pending until the guest acknowledges
    /// it, whatever the level that a [`LevelLine`] of the same SPI holds.
    ///
    /// This also holds while the guest has the SPI level-sensitive, as it is after a reset: on a real wire such a pulse
    /// could go by unseen, here it is never lost.
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchSpi`].
    pub fn edge_line(&self, spi: Spi) -> Result<EdgeLine, GicV2Error> {
        let intid = self.shared.spi(spi)?;
        Ok(EdgeLine {
            gic: Arc::clone(&self.shared),
            input: Input { cpu: 0, intid },
        })
    }

    /// A level line into a private interrupt of a CPU, such as its timers'. Otherwise as [`level_line`](Self::level_line).
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchCpu`] or [`GicV2Error::NoSuchPpi`].
    pub fn ppi_line(&self, cpu: CpuId, ppi: Ppi) -> Result<LevelLine, GicV2Error> {
        let cpu = self.shared.cpu(cpu)?;
        let intid = self.shared.ppi(ppi)?;
        Ok(LevelLine::new(&self.shared, Input { cpu, intid }))
    }

    /// Calls `hook` whenever the guest has finished with an SPI, that is, when it has deactivated it, as long as the
    /// returned [`FinishedHook`] lives. Several hooks of one SPI are all called.
    ///
    /// This is for adapters that hold a level outside of the GIC and must look at it again when the guest is done: an
    /// assigned device whose interrupt stays masked on the host until then, or an
    /// [`EdgeToLevel`](crate::interrupt::EdgeToLevel). Devices on a [`LevelLine`] need no hook.
    ///
    /// The hook is called on the thread of the CPU that deactivates the interrupt, with no lock held. It may be called
    /// once more while the [`FinishedHook`] is dropped on another thread.
    ///
    /// ```
    /// # use devisor::backends::irqchip::{CpuId, Spi, gicv2::{CpuOutputs, GicV2, GicV2Config}};
    /// # use devisor::{bus::BusDevice, interrupt::{EdgeToLevel, LevelInterrupt, Interrupt, NoInterrupt}};
    /// # use std::sync::Arc;
    /// # let outputs = vec![CpuOutputs { irq: Box::new(NoInterrupt), fiq: Box::new(NoInterrupt) }];
    /// # let gic = GicV2::new(GicV2Config::default(), outputs)?;
    /// let line = Arc::new(EdgeToLevel::new(gic.edge_line(Spi(5))?));
    /// let hook = gic.on_finished(Spi(5), {
    ///     let line = Arc::downgrade(&line);
    ///     move || {
    ///         if let Some(line) = line.upgrade() {
    ///             // A refusal stays owed.
    ///             let _ = line.guest_done();
    ///         }
    ///     }
    /// })?;
    /// line.trigger()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchSpi`].
    pub fn on_finished(&self, spi: Spi, hook: impl Fn() + Send + Sync + 'static) -> Result<FinishedHook, GicV2Error> {
        self.shared.spi(spi)?;
        let mut hooks = lock(&self.shared.hooks);
        let number = hooks.next;
        hooks.next += 1;
        hooks.by_spi.insert((spi.0, number), Arc::new(hook));
        Ok(FinishedHook {
            gic: Arc::downgrade(&self.shared),
            key: (spi.0, number),
        })
    }
}

/// Where a line leads.
#[derive(Clone, Copy)]
struct Input {
    /// The CPU of a private interrupt. Does not matter for an SPI.
    cpu: usize,
    intid: u32,
}

/// A device's level line into a [`GicV2`]. Dropping it lets go of the line.
pub struct LevelLine {
    gic: Arc<Shared>,
    input: Input,
    /// Whether this handle holds the line up. Changes under the lock of the GIC only.
    up: AtomicBool,
}

impl LevelLine {
    fn new(gic: &Arc<Shared>, input: Input) -> Self {
        Self {
            gic: Arc::clone(gic),
            input,
            up: AtomicBool::new(false),
        }
    }

    /// Holds the line up, or lets go of it. Whether that is new, and what the outputs answered.
    fn drive(&self, up: bool) -> (bool, io::Result<()>) {
        let Input { cpu, intid } = self.input;
        self.gic.with(|model| {
            let moves = self.up.load(Ordering::Relaxed) != up;
            if moves {
                self.up.store(up, Ordering::Relaxed);
                model.hold(cpu, intid, up);
            }
            // Also where nothing is new: an output that refused the last time is told again.
            model.concern(cpu, intid);
            moves
        })
    }
}

/// An `Err` says that an output of a CPU refused to be told. The line is then as it was: what its device failed to raise,
/// it does not clear.
impl Interrupt for LevelLine {
    fn trigger(&self) -> io::Result<()> {
        let (raised, told) = self.drive(true);
        if raised && told.is_err() {
            let _ = self.drive(false);
        }
        told
    }
}

/// Never refused: the GIC has the level, and tells an output that refused again with the next change that concerns it, and
/// when its CPU finds nothing to acknowledge.
impl LevelInterrupt for LevelLine {
    fn clear(&self) -> io::Result<()> {
        let _ = self.drive(false);
        Ok(())
    }
}

impl Drop for LevelLine {
    fn drop(&mut self) {
        let _ = self.drive(false);
    }
}

impl fmt::Debug for LevelLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelLine")
            .field("intid", &IntId(self.input.intid))
            .field("up", &self.up.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// An edge line into a [`GicV2`].
pub struct EdgeLine {
    gic: Arc<Shared>,
    input: Input,
}

/// An `Err` says that an output of a CPU refused to be told. The interrupt is pending all the same.
impl Interrupt for EdgeLine {
    fn trigger(&self) -> io::Result<()> {
        let Input { cpu, intid } = self.input;
        let ((), told) = self.gic.with(|model| {
            model.pulse(cpu, intid);
            model.concern(cpu, intid);
        });
        told
    }
}

impl fmt::Debug for EdgeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLine")
            .field("intid", &IntId(self.input.intid))
            .finish_non_exhaustive()
    }
}

/// Keeps a hook of [`GicV2::on_finished`] in place. Dropping it takes the hook away.
#[must_use = "dropping it takes the hook away"]
pub struct FinishedHook {
    gic: Weak<Shared>,
    key: (u32, u64),
}

impl Drop for FinishedHook {
    fn drop(&mut self) {
        if let Some(gic) = self.gic.upgrade() {
            // Dropped after the unlock: what the hook owns may call back.
            let hook = lock(&gic.hooks).by_spi.remove(&self.key);
            drop(hook);
        }
    }
}

impl fmt::Debug for FinishedHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishedHook")
            .field("spi", &Spi(self.key.0))
            .finish_non_exhaustive()
    }
}
