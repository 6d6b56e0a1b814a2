//! What a test does that a VMM cannot: it says what plays the guest, and when the virtual timer fires.

use super::{
    guest::{GuestCpu, GuestEvent, GuestStep},
    process::Process,
    vcpu::Vcpu,
};
use crate::{
    backends::hvf::{HvError, VcpuHandle},
    sync::lock,
};

/// The guest's side. None of these is a call of the framework.
impl Process {
    /// Sets what plays the guest on a vCPU: `hv_vcpu_run` calls it, on its thread, while an interrupt is signalled, and
    /// to go on after an instruction that trapped. A vCPU without a guest sleeps through all interrupts.
    ///
    /// ```
    /// use devisor::backends::hvf::{GicConfig, HvGic, HvVcpus, SysReg, VcpuExit, mock::{GuestStep, Process}};
    /// use devisor::backends::irqchip::{IntId, TriggerMode};
    ///
    /// let framework = Process::new();
    /// framework.hv_vm_create()?;
    /// framework.hv_gic_create(&GicConfig::default())?;
    /// let vcpu = framework.hv_vcpu_create()?;
    /// framework.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0)?;
    /// framework.set_guest(vcpu, |cpu, _event| {
    ///     let intid = cpu.acknowledge().expect("an interrupt was signalled");
    ///     assert_eq!(intid, IntId(33));
    ///     cpu.end(intid);
    ///     GuestStep::hvc()
    /// })?;
    /// let cpu = framework.guest_cpu(vcpu)?;
    /// cpu.start();
    /// cpu.enable(IntId(33), TriggerMode::Edge);
    ///
    /// framework.hv_gic_set_spi(IntId(33), true)?; // a device, on any thread
    /// assert!(matches!(framework.hv_vcpu_run(vcpu)?, VcpuExit::Exception { .. }));
    /// # Ok::<(), devisor::backends::hvf::HvError>(())
    /// ```
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn set_guest(
        &self,
        vcpu: VcpuHandle,
        guest: impl FnMut(&GuestCpu, GuestEvent) -> GuestStep + Send + 'static,
    ) -> Result<(), HvError> {
        *lock(&self.vcpu(vcpu)?.guest) = Some(Box::new(guest));
        Ok(())
    }

    /// The guest is not asleep: the next run calls it with [`GuestEvent::Resumed`], whether it has executed something or
    /// not.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn wake_guest(&self, vcpu: VcpuHandle) -> Result<(), HvError> {
        self.vcpu(vcpu)?.wires.resume();
        Ok(())
    }

    /// The GIC as software on this vCPU sees it: for what a guest does before it waits for interrupts.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn guest_cpu(&self, vcpu: VcpuHandle) -> Result<GuestCpu, HvError> {
        let vcpu = self.vcpu(vcpu)?;
        Ok(vcpu.guest_cpu(self.model().ok()))
    }

    /// Sets the condition of a vCPU's virtual timer: that the guest has enabled it and its time has come. Unless the guest
    /// masks it, by IMASK in `CNTV_CTL_EL0`, it stops the vCPU, which
    /// [`hv_vcpu_set_vtimer_mask`](crate::backends::hvf::HvVcpus::hv_vcpu_set_vtimer_mask) holds off; with the framework's GIC it is the
    /// line of INTID 27 instead.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn set_vtimer(&self, vcpu: VcpuHandle, met: bool) -> Result<(), HvError> {
        let vcpu = self.vcpu(vcpu)?;
        lock(&vcpu.registers).set_timer(met);
        self.tell_timer(&vcpu);
        Ok(())
    }

    /// The condition of the timer has changed, or its mask.
    pub(super) fn tell_timer(&self, vcpu: &Vcpu) {
        let fires = lock(&vcpu.registers).timer_fires();
        if let (Ok(model), Some(cpu)) = (self.model(), vcpu.cpu()) {
            model.set_timer(cpu, fires);
        }
        vcpu.wires.set_timer(fires);
    }
}
