//! The calls of the framework's GIC.

use std::sync::Arc;

use super::{
    super::{
        DistributorReg, GicConfig, GicInterrupt, HvError, HvGic, IntIdRange, RedistributorReg, SysReg, VcpuHandle,
        icc::ICC_REGISTERS,
    },
    config::Config,
    model::{Model, read_frame, write_frame},
    process::{Gic, Process},
    vcpu::Seat,
};
use crate::{backends::irqchip::IntId, interrupt::MsiMessage};

impl HvGic for Process {
    fn hv_gic_get_distributor_size(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.distributor_size)
    }

    fn hv_gic_get_distributor_base_alignment(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.alignment)
    }

    fn hv_gic_get_redistributor_size(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.redistributor_size)
    }

    fn hv_gic_get_redistributor_region_size(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        let Config {
            redistributor_size,
            vcpus,
            ..
        } = self.config;
        Ok(redistributor_size.saturating_mul(vcpus.into()))
    }

    fn hv_gic_get_redistributor_base_alignment(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.alignment)
    }

    fn hv_gic_get_msi_region_size(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.msi_region_size)
    }

    fn hv_gic_get_msi_region_base_alignment(&self) -> Result<u64, HvError> {
        self.has_gic()?;
        Ok(self.config.alignment)
    }

    fn hv_gic_get_spi_interrupt_range(&self) -> Result<IntIdRange, HvError> {
        self.has_gic()?;
        Ok(Model::spis(self.config.spis))
    }

    fn hv_gic_create(&self, config: &GicConfig) -> Result<(), HvError> {
        self.has_gic()?;
        let codes = &self.config.codes;
        self.check_address(config.distributor_base)?;
        self.check_address(config.redistributor_base)?;
        if let Some(msi) = config.msi {
            self.check_address(msi.region_base)?;
            if msi.interrupts.count == 0 || !Model::spis(self.config.spis).covers(msi.interrupts) {
                return Err(HvError::BadArgument);
            }
        }
        self.with_vm(|vm| {
            if vm.gic.is_some() {
                return Err(codes.second_gic);
            }
            if !vm.vcpus.is_empty() {
                return Err(codes.gic_after_vcpu);
            }
            let outputs = vm.seats.iter().map(Seat::outputs).collect();
            let model = Model::new(config, self.config.spis, self.config.cpus_per_cluster, outputs)
                .map_err(|_| HvError::BadArgument)?;
            vm.gic = Some(Gic {
                config: *config,
                model: Arc::new(model),
            });
            Ok(())
        })
    }

    fn hv_gic_set_spi(&self, intid: IntId, level: bool) -> Result<(), HvError> {
        let Gic { config, model } = self.gic()?;
        if config.msi.is_some_and(|msi| msi.interrupts.contains(intid)) {
            return Err(HvError::BadArgument);
        }
        model.set_spi(intid, level).ok_or(HvError::BadArgument)
    }

    fn hv_gic_send_msi(&self, address: u64, intid: IntId) -> Result<(), HvError> {
        let message = MsiMessage { address, data: intid.0 };
        self.model()?.send(message).ok_or(HvError::BadArgument)
    }

    fn hv_gic_get_redistributor_base(&self, vcpu: VcpuHandle) -> Result<u64, HvError> {
        let base = self.gic()?.config.redistributor_base;
        let cpu = self.vcpu(vcpu)?.cpu().ok_or(HvError::BadArgument)?;
        let offset = self.config.redistributor_size.saturating_mul(cpu.0.into());
        Ok(base.saturating_add(offset))
    }

    fn hv_gic_reset(&self) -> Result<(), HvError> {
        self.model()?.reset();
        Ok(())
    }

    fn hv_gic_state_create(&self) -> Result<Vec<u8>, HvError> {
        Ok(self.model()?.save())
    }

    fn hv_gic_set_state(&self, state: &[u8]) -> Result<(), HvError> {
        let model = self.model()?;
        self.with_vm(|vm| match vm.vcpus.is_empty() || vm.started {
            true => Err(self.config.codes.state_out_of_order),
            false => Ok(()),
        })?;
        model.restore(state).map_err(|_| HvError::BadArgument)
    }

    fn hv_gic_get_intid(&self, interrupt: GicInterrupt) -> Result<IntId, HvError> {
        self.has_gic()?;
        Ok(interrupt.intid())
    }

    fn hv_gic_get_distributor_reg(&self, register: DistributorReg) -> Result<u64, HvError> {
        let model = self.model()?;
        read_frame(model.distributor(), register.0.into(), register.is_wide())
    }

    fn hv_gic_set_distributor_reg(&self, register: DistributorReg, value: u64) -> Result<(), HvError> {
        let model = self.model()?;
        write_frame(model.distributor(), register.0.into(), register.is_wide(), value)
    }

    fn hv_gic_get_redistributor_reg(&self, vcpu: VcpuHandle, register: RedistributorReg) -> Result<u64, HvError> {
        let (model, cpu) = self.mine_in_gic(vcpu)?;
        read_frame(model.redistributor(cpu), register.0.into(), register.is_wide())
    }

    fn hv_gic_set_redistributor_reg(
        &self,
        vcpu: VcpuHandle,
        register: RedistributorReg,
        value: u64,
    ) -> Result<(), HvError> {
        let (model, cpu) = self.mine_in_gic(vcpu)?;
        write_frame(model.redistributor(cpu), register.0.into(), register.is_wide(), value)
    }

    fn hv_gic_get_icc_reg(&self, vcpu: VcpuHandle, register: SysReg) -> Result<u64, HvError> {
        let (model, cpu) = self.mine_in_gic(vcpu)?;
        // The host looks, and acknowledges nothing by it.
        match ICC_REGISTERS.contains(&register) {
            true => model.interface(cpu).read_sysreg(register).ok_or(HvError::BadArgument),
            false => Err(HvError::BadArgument),
        }
    }

    fn hv_gic_set_icc_reg(&self, vcpu: VcpuHandle, register: SysReg, value: u64) -> Result<(), HvError> {
        let (model, cpu) = self.mine_in_gic(vcpu)?;
        match ICC_REGISTERS.contains(&register) {
            true => model
                .interface(cpu)
                .write_sysreg(register, value)
                .ok_or(HvError::BadArgument),
            false => Err(HvError::BadArgument),
        }
    }
}
