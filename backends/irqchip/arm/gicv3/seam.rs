//! The redistributors as an ITS drives them.

use std::sync::Arc;

use super::{super::gic::lpis::Lpis, GicV3, Shared, cpu::Cpu};
use crate::backends::irqchip::CpuId;

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
        Some(self.with_cpu(cpu, change))
    }

    /// What was pending at `from` becomes so at `to`. A command is ignored as far as LPIs cannot be there (IHI 0069,
    /// GICR_CTLR.EnableLPIs): those become pending again where they were.
    fn put_down(&self, mut moved: Vec<u32>, to: CpuId, from: CpuId) {
        for cpu in [to, from] {
            if !moved.is_empty() {
                self.with_lpis_of(cpu, |cpu| {
                    moved.retain(|&lpi| {
                        cpu.set_lpi(lpi, true);
                        !cpu.lpis.is_pending(lpi)
                    });
                });
            }
        }
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
            self.put_down(vec![lpi], to, from);
        }
    }

    fn move_all_pending(&self, from: CpuId, to: CpuId) {
        if from == to {
            return;
        }
        let moved = self.with_lpis_of(from, |cpu| cpu.lpis.take_pending(&mut cpu.competing));
        self.put_down(moved.unwrap_or_default(), to, from);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{CpuInterface, CpuOutputs, GicV3Config, LpiSupport, SysReg},
        *,
    };
    use crate::{bus::BusDevice, interrupt::NoInterrupt};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    const RAM: u64 = 0x8000_0000;

    /// Two CPUs awake, with LPIs on if `enabled` says so.
    fn gic(enabled: [bool; 2]) -> (Arc<dyn Lpis>, [CpuInterface; 2], Arc<GuestMemoryMmap>) {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x10_0000)]).unwrap());
        memory.write_slice(&[0x81; 0xe000], GuestAddress(RAM)).unwrap();
        let config = GicV3Config {
            lpis: LpiSupport::Its,
            ..GicV3Config::new(2)
        };
        let outputs = [0, 1].map(|_| CpuOutputs {
            irq: Box::new(NoInterrupt),
            fiq: Box::new(NoInterrupt),
        });
        let gic = GicV3::with_lpis(config, outputs.into(), memory.clone()).unwrap();
        gic.distributor().write(0, &2_u32.to_le_bytes());
        let interfaces = [0, 1].map(|number| start(&gic, number, enabled[number as usize]));
        (gic.lpis(), interfaces, memory)
    }

    /// Wakes a CPU that takes interrupts of any priority.
    fn start(gic: &GicV3, number: u32, enabled: bool) -> CpuInterface {
        let redistributor = gic.redistributor(CpuId(number)).unwrap();
        redistributor.write(0x14, &0_u32.to_le_bytes());
        redistributor.write(0x70, &(RAM | 15).to_le_bytes());
        redistributor.write(0x78, &(RAM + 0x2_0000 + 0x1_0000 * u64::from(number)).to_le_bytes());
        redistributor.write(0, &u32::from(enabled).to_le_bytes());
        let interface = gic.cpu_interface(CpuId(number)).unwrap();
        interface.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
        interface.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
        interface
    }

    /// Acknowledges and ends all that a CPU has.
    fn taken(interface: &CpuInterface) -> Vec<u64> {
        std::iter::from_fn(|| {
            let intid = interface.read_sysreg(SysReg::ICC_IAR1_EL1).unwrap();
            interface.write_sysreg(SysReg::ICC_EOIR1_EL1, intid).unwrap();
            (intid != 1023).then_some(intid)
        })
        .collect()
    }

    #[test]
    fn an_lpi_becomes_pending_and_is_taken_back() {
        let (lpis, cpus, _) = gic([true; 2]);
        let cpu = lpis.redistributor(1).unwrap();
        for (lpi, pending) in [(8193, true), (8192, true), (8194, true), (8194, false), (8195, false)] {
            lpis.set_pending(cpu, lpi, pending);
        }
        assert_eq!(cpus.each_ref().map(taken), [vec![], vec![8192, 8193]]);
    }

    #[test]
    fn pending_lpis_move_and_those_that_are_not_do_not() {
        let (lpis, cpus, _) = gic([true; 2]);
        let [from, to] = [0, 1].map(CpuId);
        for lpi in [8192, 8200, 65535] {
            lpis.set_pending(from, lpi, true);
        }
        lpis.move_pending(from, to, 8200);
        lpis.move_pending(from, to, 8201);
        lpis.move_pending(from, from, 8192);
        assert_eq!(cpus.each_ref().map(taken), [vec![8192, 65535], vec![8200]]);
        for lpi in [8192, 9000] {
            lpis.set_pending(from, lpi, true);
        }
        lpis.set_pending(to, 9000, true);
        lpis.move_all_pending(from, from);
        lpis.move_all_pending(from, to);
        assert_eq!(cpus.each_ref().map(taken), [vec![], vec![8192, 9000]]);
    }

    #[test]
    fn the_configuration_is_read_again_where_it_is_invalidated() {
        let (lpis, cpus, memory) = gic([true; 2]);
        for cpu in [0, 1].map(CpuId) {
            lpis.set_pending(cpu, 8192, true);
            lpis.set_pending(cpu, 8193, true);
        }
        memory.write_slice(&[0x80, 0x80], GuestAddress(RAM)).unwrap();
        lpis.invalidate(CpuId(0), 8193);
        assert_eq!(cpus.each_ref().map(taken), [vec![8192], vec![8192, 8193]]);
        lpis.set_pending(CpuId(1), 8193, true);
        lpis.invalidate_all(CpuId(1));
        assert!(taken(&cpus[1]).is_empty());
        memory.write_slice(&[0x81, 0x81], GuestAddress(RAM)).unwrap();
        lpis.invalidate_all(CpuId(0));
        lpis.invalidate(CpuId(1), 8193);
        assert_eq!(cpus.each_ref().map(taken), [vec![8193], vec![8193]]);
    }

    #[test]
    fn what_does_not_exist_or_is_off_changes_nothing() {
        let (lpis, cpus, _) = gic([true, false]);
        assert_eq!((lpis.redistributor(2), lpis.redistributor(u32::MAX)), (None, None));
        for cpu in [CpuId(1), CpuId(2), CpuId(u32::MAX)] {
            lpis.set_pending(cpu, 8192, true);
            lpis.invalidate(cpu, 8192);
            lpis.invalidate_all(cpu);
            lpis.move_all_pending(cpu, CpuId(0));
            lpis.move_pending(cpu, CpuId(0), 8192);
        }
        for lpi in [0, 32, 1023, 4096, 8191, 65536, u32::MAX] {
            lpis.set_pending(CpuId(0), lpi, true);
            lpis.invalidate(CpuId(0), lpi);
            lpis.move_pending(CpuId(0), CpuId(1), lpi);
        }
        assert!(cpus.iter().all(|cpu| taken(cpu).is_empty()));
    }

    /// The input of CPU 0 falls as its LPI is taken away: what another CPU does in that moment finds the LPI nowhere.
    #[test]
    fn an_lpi_in_transit_is_kept_where_lpis_are_on_when_it_arrives() {
        use crate::interrupt::level_from_fn;
        use std::sync::OnceLock;

        const ENABLE: u64 = 0;
        for (switched_off, kept) in [
            (None, [false, true]),
            (Some(0), [false, true]),
            (Some(1), [true, false]),
        ] {
            for all in [false, true] {
                let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x10_0000)]).unwrap();
                memory.write_slice(&[0x81; 0xe000], GuestAddress(RAM)).unwrap();
                let config = GicV3Config {
                    lpis: LpiSupport::Its,
                    ..GicV3Config::new(2)
                };
                let other_cpu: Arc<OnceLock<GicV3>> = Arc::default();
                let outputs = [0, 1].map(|number| {
                    let other_cpu = Arc::clone(&other_cpu);
                    let irq = level_from_fn(move |up| {
                        if let (false, 0, Some(gic), Some(cpu)) = (up, number, other_cpu.get(), switched_off) {
                            let redistributor = gic.redistributor(CpuId(cpu)).unwrap();
                            redistributor.write(ENABLE, &0_u32.to_le_bytes());
                        }
                        Ok(())
                    });
                    CpuOutputs {
                        irq: Box::new(irq),
                        fiq: Box::new(NoInterrupt),
                    }
                });
                let gic = GicV3::with_lpis(config, outputs.into(), Arc::new(memory)).unwrap();
                gic.distributor().write(0, &2_u32.to_le_bytes());
                let interfaces = [0, 1].map(|number| start(&gic, number, true));
                gic.lpis().set_pending(CpuId(0), 8200, true);
                assert!(other_cpu.set(gic.clone()).is_ok());
                match all {
                    true => gic.lpis().move_all_pending(CpuId(0), CpuId(1)),
                    false => gic.lpis().move_pending(CpuId(0), CpuId(1), 8200),
                }
                let pending = interfaces.each_ref().map(|interface| taken(interface) == [8200]);
                assert_eq!(pending, kept, "{switched_off:?}, all: {all}");
            }
        }
    }
}
