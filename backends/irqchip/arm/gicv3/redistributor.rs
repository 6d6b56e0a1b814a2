//! The registers of a redistributor (IHI 0069, 12.10).

use super::{
    Shared,
    config::{GicV3Config, LpiSupport},
    cpu::Cpu,
    registers::{
        self, Redistributor as Register, gicr_ctlr, gicr_typer, gicr_waker, is_read_only, pendbaser, propbaser,
    },
};

impl Shared {
    /// A read of a redistributor register.
    pub(super) fn read_redistributor(&self, cpu: usize, register: Register) -> u64 {
        if register == Register::Type {
            return type_register(&self.config, cpu);
        }
        self.cpus[cpu].look(|cpu| cpu.read_redistributor(register))
    }

    /// A write of a redistributor register, where only the bits of `written` are.
    pub(super) fn write_redistributor(&self, cpu: usize, register: Register, value: u64, written: u64) {
        match register {
            Register::Control => self.write_control(cpu, value as u32),
            Register::Waker => {
                let asleep = value as u32 & gicr_waker::PROCESSOR_SLEEP != 0;
                self.with_distributor(|distributor| {
                    distributor.change_participation(cpu, |cpu| cpu.asleep = asleep);
                });
            }
            _ => self.with_cpu(cpu, |cpu| cpu.write_redistributor(register, value, written)),
        }
    }

    /// GICR_CTLR.
    fn write_control(&self, cpu: usize, value: u32) {
        let layout = self.layout;
        self.with_cpu(cpu, |cpu| {
            if layout.lpis == LpiSupport::None {
                return;
            }
            match value & gicr_ctlr::ENABLE_LPIS {
                0 => cpu.lpis.disable(&mut cpu.competing),
                _ => cpu.lpis.enable(&mut cpu.competing),
            }
        });
        if !layout.one_of_n {
            return;
        }
        let dpg = value & (gicr_ctlr::DPG[0] | gicr_ctlr::DPG[1]);
        self.with_distributor(|distributor| {
            distributor.change_participation(cpu, |cpu| cpu.control = dpg);
        });
    }
}

impl Cpu {
    fn read_redistributor(&self, register: Register) -> u64 {
        let value = match register {
            // RWP and UWP are clear: nothing is left to do when a write returns.
            Register::Control => {
                let direct = match self.layout.lpis {
                    LpiSupport::None => 0,
                    LpiSupport::Its => gicr_ctlr::CES,
                    LpiSupport::Direct => gicr_ctlr::CES | gicr_ctlr::IR,
                };
                let enabled = if self.lpis.enabled() { gicr_ctlr::ENABLE_LPIS } else { 0 };
                self.control | direct | enabled
            }
            Register::ImplementerId => registers::IIDR,
            Register::Waker if self.asleep => gicr_waker::PROCESSOR_SLEEP | gicr_waker::CHILDREN_ASLEEP,
            Register::PropertiesBase => return self.lpis.properties_base,
            Register::PendingBase => return self.lpis.pending_base & !pendbaser::PTZ,
            Register::Array(array, first) => array.read(|index| Some(&self.source(first + index)?.state)),
            Register::Identification(index) => registers::GICR_IDENTIFICATION[index as usize],
            // GICR_SYNCR.Busy is clear, and the others are write-only.
            _ => 0,
        };
        value.into()
    }

    fn write_redistributor(&mut self, register: Register, value: u64, written: u64) {
        let intid = value as u32;
        let direct = self.layout.lpis == LpiSupport::Direct;
        match register {
            Register::Array(array, first) => {
                let priority_bits = self.layout.priority_bits;
                for (index, change) in array.changes(value as u32, written as u32, priority_bits) {
                    if !is_read_only(array, first + index) {
                        self.change(first + index, |source| change.make(&mut source.state));
                    }
                }
            }
            // Writing them while LPIs are enabled is UNPREDICTABLE: ignored.
            Register::PropertiesBase | Register::PendingBase
                if self.layout.lpis == LpiSupport::None || self.lpis.enabled() => {}
            Register::PropertiesBase => {
                let base = &mut self.lpis.properties_base;
                *base = (*base & !written | value & written) & propbaser::WRITABLE;
            }
            Register::PendingBase => {
                let base = &mut self.lpis.pending_base;
                *base = (*base & !written | value & written) & (pendbaser::WRITABLE | pendbaser::PTZ);
            }
            // The upper half of these is reserved: alone it names INTID 0, which is no LPI.
            _ if !direct => {}
            Register::SetLpi => self.set_lpi(intid, true),
            Register::ClearLpi => self.set_lpi(intid, false),
            Register::InvalidateLpi => self.lpis.invalidate(intid, &mut self.competing),
            Register::InvalidateAll => self.lpis.invalidate_all(&mut self.competing),
            _ => {}
        }
    }
}

/// GICR_TYPER (12.11).
fn type_register(config: &GicV3Config, cpu: usize) -> u64 {
    let mut end = 0;
    let last = config.redistributor_regions.iter().any(|&count| {
        end += count as usize;
        end == cpu + 1
    });
    let flags = [
        (config.lpis != LpiSupport::None, gicr_typer::PLPIS),
        (config.lpis == LpiSupport::Direct, gicr_typer::DIRECT_LPI),
        (last, gicr_typer::LAST),
        (config.one_of_n, gicr_typer::DPGS),
    ];
    let flags = flags
        .iter()
        .filter(|(there, _)| *there)
        .fold(0, |all, (_, flag)| all | flag);
    flags
        | (cpu as u64) << gicr_typer::NUMBER_SHIFT
        | gicr_typer::COMMON_LPI_AFF3
        | u64::from(config.extended_ppis / 32) << gicr_typer::PPI_NUM_SHIFT
        | u64::from(config.affinities[cpu].0) << gicr_typer::AFFINITY_SHIFT
}
