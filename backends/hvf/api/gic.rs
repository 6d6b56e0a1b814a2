//! The calls of `hv_gic.h`.

use super::{DistributorReg, GicConfig, GicInterrupt, IntIdRange, RedistributorReg, SysReg, VcpuHandle};
use crate::backends::{hvf::HvError, irqchip::IntId};

/// The interrupt controller of the VM: one in a process, as there is one VM in a process.
///
/// *Order*: [`hv_gic_create`](Self::hv_gic_create) comes after `hv_vm_create` and before the first vCPU, and once.
/// The sizes, alignments and the SPI range can be asked before. *Threads*: any, unless a method says otherwise.
///
/// The methods for registers answer [`HvError::Unsupported`] unless implemented: nothing but a save and restore of the CPU interfaces needs them.
pub trait HvGic: Send + Sync {
    /// Bytes of the distributor.
    ///
    /// # Errors
    /// What the framework answered; so for every method here.
    fn hv_gic_get_distributor_size(&self) -> Result<u64, HvError>;

    /// What the address of the distributor must be a multiple of.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_get_distributor_base_alignment(&self) -> Result<u64, HvError>;

    /// Bytes of one redistributor.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_get_redistributor_size(&self) -> Result<u64, HvError>;

    /// Bytes of the redistributors of all vCPUs that the host supports, not of those that the VM has.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_get_redistributor_region_size(&self) -> Result<u64, HvError>;

    /// What the address of the redistributors must be a multiple of.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_get_redistributor_base_alignment(&self) -> Result<u64, HvError>;

    /// Bytes of the MSI frame.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_get_msi_region_size(&self) -> Result<u64, HvError>;

    /// What the address of the MSI frame must be a multiple of.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_get_msi_region_base_alignment(&self) -> Result<u64, HvError>;

    /// Which interrupts are SPIs, MSIs among them.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_get_spi_interrupt_range(&self) -> Result<IntIdRange, HvError>;

    /// Makes the controller: `hv_gic_config_create`, a setter for each field, `hv_gic_create`, `os_release`.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for an address that is not aligned or an MSI range outside the SPI range. Another for a
    /// call out of order.
    fn hv_gic_create(&self, config: &GicConfig) -> Result<(), HvError>;

    /// Sets the line of an SPI, named by its absolute INTID. If the guest made it level-triggered, `level` is the state
    /// of the line; if edge-triggered, `true` is a pulse and `false` nothing.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] outside the SPI range and inside the MSI range.
    fn hv_gic_set_spi(&self, intid: IntId, level: bool) -> Result<(), HvError>;

    /// Sends a message: `address` is that of `GICM_SET_SPI_NSR`, the MSI frame's base + 0x40.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for another address, or an interrupt outside the MSI range.
    fn hv_gic_send_msi(&self, address: u64, intid: IntId) -> Result<(), HvError>;

    /// Where the redistributor of a vCPU is: known once its `MPIDR_EL1` is set.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU, or one without an `MPIDR_EL1`.
    fn hv_gic_get_redistributor_base(&self, vcpu: VcpuHandle) -> Result<u64, HvError>;

    /// Resets the controller, for a reset of the VM.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_reset(&self) -> Result<(), HvError>;

    /// The controller's state: `hv_gic_state_create`, `_get_size`, `_get_data`, `os_release`. The CPU interface
    /// (`ICC_*`) is not in it and belongs to the state of each vCPU. Call it while no vCPU runs.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_state_create(&self) -> Result<Vec<u8>, HvError>;

    /// Takes a state back: after the controller and all vCPUs are made, before any of them has run.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for bytes that are no state of this controller.
    fn hv_gic_set_state(&self, state: &[u8]) -> Result<(), HvError>;

    /// The INTID of an interrupt that the framework's GIC raises by itself, or has reserved.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_gic_get_intid(&self, interrupt: GicInterrupt) -> Result<IntId, HvError> {
        Ok(interrupt.intid())
    }

    /// Reads a register of the distributor, named by its offset in the frame (`hv_gic_distributor_reg_t`).
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for an offset that the framework does not know.
    fn hv_gic_get_distributor_reg(&self, register: DistributorReg) -> Result<u64, HvError> {
        let _ = register;
        Err(HvError::Unsupported)
    }

    /// Writes a register of the distributor.
    ///
    /// # Errors
    /// As [`hv_gic_get_distributor_reg`](Self::hv_gic_get_distributor_reg).
    fn hv_gic_set_distributor_reg(&self, register: DistributorReg, value: u64) -> Result<(), HvError> {
        let _ = (register, value);
        Err(HvError::Unsupported)
    }

    /// Reads a register of a vCPU's redistributor, named by its offset in both of its frames
    /// (`hv_gic_redistributor_reg_t`). *On the thread that owns the vCPU.*
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU, or an offset that the framework does not know.
    fn hv_gic_get_redistributor_reg(&self, vcpu: VcpuHandle, register: RedistributorReg) -> Result<u64, HvError> {
        let _ = (vcpu, register);
        Err(HvError::Unsupported)
    }

    /// Writes a register of a vCPU's redistributor. *On the thread that owns the vCPU.*
    ///
    /// # Errors
    /// As [`hv_gic_get_redistributor_reg`](Self::hv_gic_get_redistributor_reg).
    fn hv_gic_set_redistributor_reg(
        &self,
        vcpu: VcpuHandle,
        register: RedistributorReg,
        value: u64,
    ) -> Result<(), HvError> {
        let _ = (vcpu, register, value);
        Err(HvError::Unsupported)
    }

    /// Reads a register of a vCPU's CPU interface (`hv_gic_icc_reg_t`). *On the thread that owns the vCPU.*
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU, or a register that the framework does not know.
    fn hv_gic_get_icc_reg(&self, vcpu: VcpuHandle, register: SysReg) -> Result<u64, HvError> {
        let _ = (vcpu, register);
        Err(HvError::Unsupported)
    }

    /// Writes a register of a vCPU's CPU interface. *On the thread that owns the vCPU.*
    ///
    /// # Errors
    /// As [`hv_gic_get_icc_reg`](Self::hv_gic_get_icc_reg).
    fn hv_gic_set_icc_reg(&self, vcpu: VcpuHandle, register: SysReg, value: u64) -> Result<(), HvError> {
        let _ = (vcpu, register, value);
        Err(HvError::Unsupported)
    }
}
