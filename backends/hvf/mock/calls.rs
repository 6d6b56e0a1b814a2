//! The calls of vCPUs.

use std::sync::Arc;

use super::{process::Process, vcpu::Vcpu};
use crate::{
    backends::hvf::{HvError, HvVcpus, InterruptType, Reg, SysReg, VcpuExit, VcpuHandle},
    sync::lock,
};

impl Process {
    /// The vCPU, if the thread that calls owns it.
    pub(super) fn mine(&self, handle: VcpuHandle) -> Result<Arc<Vcpu>, HvError> {
        let vcpu = self.vcpu(handle)?;
        match vcpu.is_mine() {
            true => Ok(vcpu),
            false => Err(self.config().codes.foreign_thread),
        }
    }
}

impl HvVcpus for Process {
    fn hv_vcpu_run(&self, vcpu: VcpuHandle) -> Result<VcpuExit, HvError> {
        let vcpu = self.mine(vcpu)?;
        self.about_to_run(&vcpu)?;
        let model = self.model().ok();
        let has_gic = model.is_some();
        let cpu = vcpu.guest_cpu(model);
        let timer_exits = !has_gic || self.config().vtimer_exits_with_gic;
        if std::mem::replace(&mut vcpu.wires.state().running, true) {
            // By the guest of this very run, for there is one owner.
            return Err(HvError::Busy);
        }
        // Taken out, so that it may call anything of the process, and be replaced.
        let mut guest = lock(&vcpu.guest).take();
        let exit = vcpu.run(&mut guest, &cpu, timer_exits);
        let mut slot = lock(&vcpu.guest);
        *slot = slot.take().or(guest);
        drop(slot);
        vcpu.wires.change(|state| {
            state.running = false;
            if !has_gic {
                state.signalled = [false; 2];
            }
        });
        Ok(exit)
    }

    fn hv_vcpu_set_pending_interrupt(
        &self,
        vcpu: VcpuHandle,
        kind: InterruptType,
        pending: bool,
    ) -> Result<(), HvError> {
        let vcpu = self.mine(vcpu)?;
        if self.model().is_ok() {
            return Err(self.config().codes.pending_with_gic);
        }
        vcpu.wires.change(|state| state.signalled[kind as usize] = pending);
        Ok(())
    }

    fn hv_vcpu_get_pending_interrupt(&self, vcpu: VcpuHandle, kind: InterruptType) -> Result<bool, HvError> {
        Ok(self.mine(vcpu)?.wires.state().signalled[kind as usize])
    }

    fn hv_vcpu_set_vtimer_mask(&self, vcpu: VcpuHandle, masked: bool) -> Result<(), HvError> {
        self.mine(vcpu)?.wires.change(|state| state.timer_masked = masked);
        Ok(())
    }

    fn hv_vcpu_get_vtimer_mask(&self, vcpu: VcpuHandle) -> Result<bool, HvError> {
        Ok(self.mine(vcpu)?.wires.state().timer_masked)
    }

    fn hv_vcpus_exit(&self, vcpus: &[VcpuHandle]) -> Result<(), HvError> {
        // All or none.
        let vcpus: Vec<_> = vcpus.iter().map(|vcpu| self.vcpu(*vcpu)).collect::<Result<_, _>>()?;
        for vcpu in vcpus {
            vcpu.wires.change(|state| state.exit = true);
        }
        Ok(())
    }

    fn hv_vcpu_get_reg(&self, vcpu: VcpuHandle, register: Reg) -> Result<u64, HvError> {
        Ok(lock(&self.mine(vcpu)?.registers).get(register))
    }

    fn hv_vcpu_set_reg(&self, vcpu: VcpuHandle, register: Reg, value: u64) -> Result<(), HvError> {
        lock(&self.mine(vcpu)?.registers).set(register, value);
        Ok(())
    }

    fn hv_vcpu_get_sys_reg(&self, vcpu: VcpuHandle, register: SysReg) -> Result<u64, HvError> {
        Ok(lock(&self.mine(vcpu)?.registers).system(register))
    }

    fn hv_vcpu_set_sys_reg(&self, vcpu: VcpuHandle, register: SysReg, value: u64) -> Result<(), HvError> {
        let mine = self.mine(vcpu)?;
        self.with_vm(|vm| {
            let mut others = vm.vcpus.iter().filter(|other| other.handle != vcpu);
            if register == SysReg::MPIDR_EL1 && others.any(|other| lock(&other.registers).mpidr() == Some(value)) {
                return Err(HvError::BadArgument);
            }
            if register == SysReg::MPIDR_EL1
                && let Some(gic) = &vm.gic
            {
                let cpu = gic.model.cpu(value).ok_or(HvError::BadArgument)?;
                if !vm.seats[cpu.0 as usize].take(&mine) {
                    return Err(HvError::BadArgument);
                }
                if let Some(old) = lock(&mine.cpu).replace(cpu).filter(|old| *old != cpu) {
                    vm.seats[old.0 as usize].forget();
                }
            }
            lock(&mine.registers).set_system(register, value);
            Ok(())
        })?;
        if register == SysReg::CNTV_CTL_EL0 {
            self.tell_timer(&mine);
        }
        Ok(())
    }
}
