//! The interrupt inputs of a CPU, which a GIC drives.

use std::fmt;

use crate::interrupt::{LevelInterrupt, LevelOutput};

/// The interrupt inputs of one CPU, which the GIC drives.
///
/// Each hears transitions only, in order, from the thread whose line or register access caused it, and never while the
/// GIC holds a lock: it may call back into the GIC.
///
/// One that refuses, with an `Err`, is the GIC's to tell again, and not the device's: a line into a GIC takes every change.
/// It is told again, once each time, with the next change that concerns its CPU, when its CPU finds nothing to acknowledge,
/// and by the GIC's `retry`. An embedder whose outputs can refuse and then take again calls `retry` when they can, or else
/// the CPU hears of it with the next event only.
pub struct CpuOutputs {
    /// The CPU's IRQ input.
    pub irq: Box<dyn LevelInterrupt>,
    /// The CPU's FIQ input, for interrupts of Group 0: always on a GICv3, and on a GICv2 while the guest has set
    /// GICC_CTLR.FIQEn.
    pub fiq: Box<dyn LevelInterrupt>,
}

impl fmt::Debug for CpuOutputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuOutputs").finish_non_exhaustive()
    }
}

/// The level of a CPU's interrupt inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Signals {
    pub irq: bool,
    pub fiq: bool,
}

/// The outputs of one CPU as a GIC holds them.
pub(in super::super) struct Output {
    irq: LevelOutput<Box<dyn LevelInterrupt>>,
    fiq: LevelOutput<Box<dyn LevelInterrupt>>,
}

impl Output {
    pub fn new(CpuOutputs { irq, fiq }: CpuOutputs) -> Self {
        Self {
            irq: LevelOutput::new(irq),
            fiq: LevelOutput::new(fiq),
        }
    }

    /// To be called under the lock that the signals are derived under, and under that one alone.
    pub fn set(&self, Signals { irq, fiq }: Signals) {
        // They change under this lock alone: one that stays costs a look, and no exchange.
        for (output, up) in [(&self.irq, irq), (&self.fiq, fiq)] {
            if output.is_up() != up {
                output.set(up);
            }
        }
    }

    /// Tells the CPU, with no lock held. An input that refuses counts it, and is told again by the next call.
    pub fn settle(&self) {
        for output in [&self.irq, &self.fiq] {
            let _ = output.settle();
        }
    }

    pub fn failures(&self) -> u64 {
        self.irq.failures() + self.fiq.failures()
    }
}
