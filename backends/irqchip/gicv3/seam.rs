//! The redistributors as an ITS drives them.

use std::sync::Arc;

use super::{
    super::{CpuId, lpis::Lpis},
    GicV3, Shared,
    cpu::Cpu,
};

impl GicV3 {
    /// The redistributors of this GIC.
    pub(in super::super) fn lpis(&self) -> Arc<dyn Lpis> {
        self.shared.clone()
    }
}

impl Shared {
    /// Changes the LPIs of a CPU, if there is such a CPU.
    fn with_lpis_of<T>(&self, cpu: CpuId, change: impl FnOnce(&mut Cpu) -> T) -> Option<T> {
        let cpu = self.cpu(cpu).ok()?;
        Some(self.with_cpu(cpu, change).0)
    }
}

/// An output that refuses counts it, and is told again with the next change: the LPI is pending.
impl Lpis for Shared {
    fn redistributor(&self, processor_number: u32) -> Option<CpuId> {
        let cpu = CpuId(processor_number);
        self.cpu(cpu).is_ok().then_some(cpu)
    }

    fn set_pending(&self, cpu: CpuId, lpi: u32, pending: bool) {
        self.with_lpis_of(cpu, |cpu| cpu.set_lpi(lpi, pending));
    }

    fn invalidate(&self, cpu: CpuId, lpi: u32) {
        self.with_lpis_of(cpu, |cpu| cpu.lpis.invalidate(lpi, &mut cpu.competing));
    }

    fn invalidate_all(&self, cpu: CpuId) {
        self.with_lpis_of(cpu, |cpu| cpu.lpis.invalidate_all(&mut cpu.competing));
    }

    fn move_pending(&self, from: CpuId, to: CpuId, lpi: u32) {
        let moved = self.with_lpis_of(from, |cpu| {
            let pending = cpu.lpis.is_pending(lpi);
            cpu.set_lpi(lpi, false);
            pending
        });
        if moved == Some(true) {
            self.set_pending(to, lpi, true);
        }
    }

    fn move_all_pending(&self, from: CpuId, to: CpuId) {
        if from == to {
            return;
        }
        let moved = self.with_lpis_of(from, |cpu| cpu.lpis.take_pending(&mut cpu.competing));
        self.with_lpis_of(to, |cpu| {
            for lpi in moved.into_iter().flatten() {
                cpu.set_lpi(lpi, true);
            }
        });
    }
}
