//! The inputs of a GICv2: lines for devices, and the way back that tells an adapter that the guest has finished.

use super::{super::gic::ids::GicInput, CpuId, FinishedHook, GicV2, GicV2Error, Ppi, Shared, Spi, model::Model};
use crate::backends::irqchip::lines::{EdgeLine, Held, Inputs, LevelLine};

impl GicV2 {
    /// A level line into an SPI.
    ///
    /// The guest decides how it is understood (GICD_ICFGRn): level-sensitive, the interrupt is pending while the line is
    /// up; edge-triggered, each rise makes it pending. Several handles of one SPI are a wired-OR, and dropping one lets go.
    /// What an output of the GIC refuses is told again by the GIC ([`CpuOutputs`](super::CpuOutputs)), and not by the device.
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchSpi`].
    pub fn level_line(&self, spi: Spi) -> Result<LevelLine, GicV2Error> {
        let intid = self.shared.spi(spi)?;
        Ok(LevelLine::new(self.shared.clone(), GicInput::shared(intid).number()))
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
        Ok(EdgeLine::new(self.shared.clone(), GicInput::shared(intid).number()))
    }

    /// A level line into a private interrupt of a CPU, such as its timers'. Otherwise as [`level_line`](Self::level_line).
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchCpu`] or [`GicV2Error::NoSuchPpi`].
    pub fn ppi_line(&self, cpu: CpuId, ppi: Ppi) -> Result<LevelLine, GicV2Error> {
        let cpu = self.shared.cpu(cpu)?;
        let intid = self.shared.ppi(ppi)?;
        Ok(LevelLine::new(
            self.shared.clone(),
            GicInput::private(cpu, intid).number(),
        ))
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
    ///             // A line of a GIC refuses nothing.
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
        let intid = self.shared.spi(spi)?;
        Ok(self.shared.finished.add(intid, hook))
    }
}

impl Inputs for Shared {
    fn hold(&self, input: u32, held: &Held, up: bool) {
        self.drive(input, |model, cpu, intid| {
            if held.set(up) {
                model.hold(cpu, intid, up);
            }
        });
    }

    fn pulse(&self, input: u32) {
        self.drive(input, Model::pulse);
    }

    fn name(&self, input: u32) -> String {
        GicInput::of(input).to_string()
    }
}

impl Shared {
    fn drive(&self, input: u32, change: impl FnOnce(&mut Model, usize, u32)) {
        let GicInput { cpu, intid } = GicInput::of(input);
        // An SPI is the same for all CPUs.
        let cpu = cpu.unwrap_or(0);
        self.with(|model| {
            change(model, cpu, intid);
            // Also where nothing is new: an output that refused the last time is told again.
            model.concern(cpu, intid);
        });
    }
}
