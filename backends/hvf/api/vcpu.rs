//! The calls of `hv_vcpu.h`.

use super::{InterruptType, Reg, SysReg, VcpuExit, VcpuHandle};
use crate::backends::hvf::HvError;

/// The vCPUs. Except for [`hv_vcpus_exit`](Self::hv_vcpus_exit), *every call belongs to the thread that created the
/// vCPU*; a thread has one vCPU at most.
///
/// The methods for registers answer [`HvError::Unsupported`] unless implemented.
pub trait HvVcpus: Send + Sync {
    /// Runs the vCPU until something stops it. Interrupts of the framework's own GIC do not: the guest takes them.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_vcpu_run(&self, vcpu: VcpuHandle) -> Result<VcpuExit, HvError>;

    /// Sets or clears a pending interrupt of the next run: for VMs without the framework's GIC. Pending interrupts are
    /// *cleared when [`hv_vcpu_run`](Self::hv_vcpu_run) returns*, so set them again before every run:
    /// [`VcpuInputs`](super::super::VcpuInputs) does.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_vcpu_set_pending_interrupt(
        &self,
        vcpu: VcpuHandle,
        kind: InterruptType,
        pending: bool,
    ) -> Result<(), HvError>;

    /// Whether an interrupt is pending.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_vcpu_get_pending_interrupt(&self, vcpu: VcpuHandle, kind: InterruptType) -> Result<bool, HvError>;

    /// Masks or unmasks the virtual timer's exit, which masks itself: see [`VcpuExit::VtimerActivated`].
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_vcpu_set_vtimer_mask(&self, vcpu: VcpuHandle, masked: bool) -> Result<(), HvError>;

    /// Whether the virtual timer's exit is masked.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_vcpu_get_vtimer_mask(&self, vcpu: VcpuHandle) -> Result<bool, HvError>;

    /// Stops vCPUs, from any thread. It sticks: the next run of a vCPU that does not run returns at once.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    fn hv_vcpus_exit(&self, vcpus: &[VcpuHandle]) -> Result<(), HvError>;

    /// Reads a general register (`hv_reg_t`).
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_vcpu_get_reg(&self, vcpu: VcpuHandle, register: Reg) -> Result<u64, HvError> {
        let _ = (vcpu, register);
        Err(HvError::Unsupported)
    }

    /// Writes a general register.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_vcpu_set_reg(&self, vcpu: VcpuHandle, register: Reg, value: u64) -> Result<(), HvError> {
        let _ = (vcpu, register, value);
        Err(HvError::Unsupported)
    }

    /// Reads a system register (`hv_sys_reg_t`).
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for one that the framework does not know.
    fn hv_vcpu_get_sys_reg(&self, vcpu: VcpuHandle, register: SysReg) -> Result<u64, HvError> {
        let _ = (vcpu, register);
        Err(HvError::Unsupported)
    }

    /// Writes a system register. `MPIDR_EL1` comes before the first run, and is different on each vCPU.
    ///
    /// # Errors
    /// As [`hv_vcpu_get_sys_reg`](Self::hv_vcpu_get_sys_reg).
    fn hv_vcpu_set_sys_reg(&self, vcpu: VcpuHandle, register: SysReg, value: u64) -> Result<(), HvError> {
        let _ = (vcpu, register, value);
        Err(HvError::Unsupported)
    }
}
