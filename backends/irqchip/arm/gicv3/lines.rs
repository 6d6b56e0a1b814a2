//! The inputs of a GICv3: lines for devices, and what else makes an interrupt pending.

use super::{
    super::gic::{IntId, ids::GicInput},
    CpuId, FinishedHook, GicV3, GicV3Error, LpiSupport, Ppi, Shared, Spi,
};
use crate::backends::irqchip::lines::{EdgeLine, Held, Inputs, LevelLine};

impl GicV3 {
    /// A level line into an SPI.
    ///
    /// The guest decides how it is understood (GICD_ICFGRn): level-sensitive, the interrupt is pending while the line is
    /// up; edge-triggered, each rise makes it pending. Several handles of one SPI are a wired-OR, and dropping one lets go.
    /// What an output of the GIC refuses is told again by the GIC ([`CpuOutputs`](super::CpuOutputs)), and not by the device.
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchSpi`].
    pub fn level_line(&self, spi: Spi) -> Result<LevelLine, GicV3Error> {
        let intid = self.shared.layout.spi(spi)?;
        Ok(LevelLine::new(self.shared.clone(), GicInput::shared(intid).number()))
    }

    /// An edge line into an SPI: each trigger is a pulse, which makes the interrupt pending until the guest acknowledges
    /// it, whatever the level that a [`LevelLine`] of the same SPI holds.
    ///
    /// This also holds while the guest has the SPI level-sensitive, as it is after a reset: on a real wire such a pulse
    /// could go by unseen, here it is never lost.
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchSpi`].
    pub fn edge_line(&self, spi: Spi) -> Result<EdgeLine, GicV3Error> {
        let intid = self.shared.layout.spi(spi)?;
        Ok(EdgeLine::new(self.shared.clone(), GicInput::shared(intid).number()))
    }

    /// A level line into a private interrupt of a CPU, such as its timers'. Otherwise as [`level_line`](Self::level_line).
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchCpu`] or [`GicV3Error::NoSuchPpi`].
    pub fn ppi_line(&self, cpu: CpuId, ppi: Ppi) -> Result<LevelLine, GicV3Error> {
        let cpu = self.shared.cpu(cpu)?;
        let intid = self.shared.layout.ppi(ppi)?;
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
    /// # Errors
    /// [`GicV3Error::NoSuchSpi`].
    pub fn on_finished(&self, spi: Spi, hook: impl Fn() + Send + Sync + 'static) -> Result<FinishedHook, GicV3Error> {
        let intid = self.shared.layout.spi(spi)?;
        Ok(self.shared.finished.add(intid, hook))
    }

    /// Makes an LPI pending at a CPU, as a write to its GICR_SETLPIR does: for an embedder that has no ITS.
    ///
    /// It changes nothing while the guest has not enabled LPIs there, or its tables have no room for this one. An output of
    /// the CPU that refuses is told again later, as for a line.
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchCpu`], or [`GicV3Error::NoSuchLpi`] also if LPIs are not [`Direct`](LpiSupport::Direct).
    pub fn send_lpi(&self, cpu: CpuId, intid: IntId) -> Result<(), GicV3Error> {
        let cpu = self.shared.cpu(cpu)?;
        if self.shared.layout.lpis != LpiSupport::Direct || !self.shared.layout.is_lpi(intid.0) {
            return Err(GicV3Error::NoSuchLpi { intid });
        }
        self.shared.with_cpu(cpu, |cpu| cpu.set_lpi(intid.0, true));
        Ok(())
    }
}

impl Inputs for Shared {
    fn hold(&self, input: u32, held: &Held, up: bool) {
        let GicInput { cpu, intid } = GicInput::of(input);
        if let Some(cpu) = cpu {
            self.with_cpu(cpu, |cpu| {
                if held.set(up) {
                    cpu.change(intid, |source| source.hold(up));
                }
            });
            return;
        }
        self.with_distributor(|distributor| {
            if held.set(up) {
                distributor.change(intid, |spi| spi.hold(up));
            }
            // Also where nothing is new: an output that refused the last time is told again.
            distributor.concern(intid);
        });
    }

    /// There are edge lines into SPIs only.
    fn pulse(&self, input: u32) {
        let intid = GicInput::of(input).intid;
        self.with_distributor(|distributor| {
            distributor.change(intid, |spi| spi.pulse());
            distributor.concern(intid);
        });
    }

    fn name(&self, input: u32) -> String {
        GicInput::of(input).to_string()
    }
}
