//! The framework's interrupt calls as traits. Every method is the call of its name, on an Apple silicon host with
//! macOS 15 or later (`hv_gic.h`), or 11 and later (`hv_vcpu.h`).

use super::HvError;
use crate::backends::irqchip::IntId;

/// A vCPU as the framework names it (`hv_vcpu_t`): an opaque handle, and not the index of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VcpuHandle(pub u64);

/// What `hv_gic_create` is given (`hv_gic_config_t`). The framework's object lives only inside a binding's
/// [`hv_gic_create`](HvGic::hv_gic_create), so nobody can forget to release it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GicConfig {
    /// Guest physical address of the distributor, for `hv_gic_config_set_distributor_base`.
    pub distributor_base: u64,
    /// Guest physical address of the redistributors of *all vCPUs that the host supports*, for
    /// `hv_gic_config_set_redistributor_base`.
    pub redistributor_base: u64,
    /// Where message-signalled interrupts go; none without it.
    pub msi: Option<MsiConfig>,
}

/// The MSI part of a [`GicConfig`]. Both of its calls are needed for MSI to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiConfig {
    /// Guest physical address of the MSI frame, for `hv_gic_config_set_msi_region_base`.
    pub region_base: u64,
    /// The interrupts that messages raise, for `hv_gic_config_set_msi_interrupt_range`. They lie in the SPI range, and
    /// [`hv_gic_set_spi`](HvGic::hv_gic_set_spi) no longer takes them.
    pub interrupts: IntIdRange,
}

/// `count` interrupts from `first` on, in absolute INTIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntIdRange {
    /// The first of them.
    pub first: IntId,
    /// How many there are.
    pub count: u32,
}

/// Which input of a vCPU (`hv_interrupt_type_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterruptType {
    /// `HV_INTERRUPT_TYPE_IRQ`, 0.
    Irq,
    /// `HV_INTERRUPT_TYPE_FIQ`, 1.
    Fiq,
}

/// Why a vCPU stopped (`hv_vcpu_exit_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuExit {
    /// `HV_EXIT_REASON_CANCELED`, 0: [`hv_vcpus_exit`](HvVcpus::hv_vcpus_exit) asked for it.
    Canceled,
    /// `HV_EXIT_REASON_EXCEPTION`, 1: the guest trapped.
    Exception {
        /// `ESR_EL2` of the exception.
        syndrome: u64,
        /// The faulting guest physical address of an abort.
        physical_address: u64,
    },
    /// `HV_EXIT_REASON_VTIMER_ACTIVATED`, 2: the virtual timer fired, *and is masked now*:
    /// [`hv_vcpu_set_vtimer_mask`](HvVcpus::hv_vcpu_set_vtimer_mask) it off once the guest has dealt with it.
    VtimerActivated,
    /// `HV_EXIT_REASON_UNKNOWN`, 3.
    Unknown,
}

/// The interrupt controller of the VM: one in a process, as there is one VM in a process.
///
/// *Order*: [`hv_gic_create`](Self::hv_gic_create) comes after `hv_vm_create` and before the first vCPU, and once.
/// The sizes, alignments and the SPI range can be asked before. *Threads*: any, unless a method says otherwise.
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
}

/// The vCPUs. Except for [`hv_vcpus_exit`](Self::hv_vcpus_exit), *every call belongs to the thread that created the
/// vCPU*; a thread has one vCPU at most.
pub trait HvVcpus: Send + Sync {
    /// Runs the vCPU until something stops it. Interrupts of the framework's own GIC do not: the guest takes them.
    ///
    /// # Errors
    /// What the framework answered.
    fn hv_vcpu_run(&self, vcpu: VcpuHandle) -> Result<VcpuExit, HvError>;

    /// Sets or clears a pending interrupt of the next run: for VMs without the framework's GIC. Pending interrupts are
    /// *cleared when [`hv_vcpu_run`](Self::hv_vcpu_run) returns*, so set them again before every run:
    /// [`VcpuInputs`](super::VcpuInputs) does.
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
}

impl IntIdRange {
    /// Whether `intid` is one of them.
    pub fn contains(self, intid: IntId) -> bool {
        intid.0.checked_sub(self.first.0).is_some_and(|at| at < self.count)
    }

    /// Whether all of `other` are among them. A range of none is in every range that its `first` is in.
    pub fn covers(self, other: Self) -> bool {
        let last = other.first.0.checked_add(other.count.saturating_sub(1));
        self.contains(other.first) && last.is_some_and(|last| self.contains(IntId(last)))
    }
}

impl std::fmt::Display for IntIdRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.count {
            0 => f.write_str("no INTID"),
            count => write!(
                f,
                "INTIDs {} to {}",
                self.first.0,
                u64::from(self.first.0) + u64::from(count) - 1
            ),
        }
    }
}

impl MsiConfig {
    /// `GICM_SET_SPI_NSR`, where messages are written to, in the frame.
    const SET_SPI_NSR: u64 = 0x40;

    /// The address of the messages that the guest is told to program: `GICM_SET_SPI_NSR` of the frame.
    pub fn doorbell(&self) -> u64 {
        self.region_base.wrapping_add(Self::SET_SPI_NSR)
    }
}
