//! What a mocked host has, and what nobody knows of the framework.

use super::model::Model;
use crate::backends::hvf::HvError;

/// What the host of a [`Process`](super::Process) has, and how it answers where Apple does not say how the framework does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// vCPUs that the host supports: 1 to 8.
    pub vcpus: u32,
    /// SPIs, from INTID 32 on: a multiple of 32 up to 960, or 988.
    pub spis: u32,
    /// Bytes of the distributor.
    pub distributor_size: u64,
    /// Bytes of one redistributor.
    pub redistributor_size: u64,
    /// Bytes of the MSI frame.
    pub msi_region_size: u64,
    /// What the addresses of all three regions must be multiples of: a power of two from 0x1000 on.
    pub alignment: u64,
    /// Whether the virtual timer stops a vCPU also when there is a GIC to deliver it. Unverified.
    pub vtimer_exits_with_gic: bool,
    /// The codes of refusals.
    pub codes: Codes,
}

/// Codes that Apple does not document. The defaults are guesses: let no decision hang on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// `hv_vm_create` while there is a VM.
    pub second_vm: HvError,
    /// A call that needs a VM.
    pub no_vm: HvError,
    /// `hv_vm_destroy` while there are vCPUs.
    pub vm_in_use: HvError,
    /// `hv_gic_create` for the second time.
    pub second_gic: HvError,
    /// `hv_gic_create` when there is a vCPU.
    pub gic_after_vcpu: HvError,
    /// A call that needs the GIC, such as `hv_gic_set_spi`, before `hv_gic_create`.
    pub no_gic: HvError,
    /// `hv_gic_set_state` before the first vCPU, or when one has run.
    pub state_out_of_order: HvError,
    /// `hv_vcpu_create` on a thread that has a vCPU.
    pub second_vcpu_of_thread: HvError,
    /// `hv_vcpu_create` when a vCPU has run.
    pub vcpu_after_run: HvError,
    /// `hv_vcpu_create` with as many vCPUs as the host supports.
    pub too_many_vcpus: HvError,
    /// A call of the owner's, on another thread.
    pub foreign_thread: HvError,
    /// `hv_vcpu_run` of a vCPU without an `MPIDR_EL1` when there is a GIC.
    pub no_mpidr: HvError,
    /// `hv_vcpu_set_pending_interrupt` when there is a GIC.
    pub pending_with_gic: HvError,
}

/// A [`Config`] that the mock cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// [`Config::vcpus`].
    #[error("{0} vCPUs: the mock has 1 to 8")]
    Vcpus(u32),
    /// [`Config::spis`].
    #[error("{0} SPIs: the mock has a multiple of 32 up to 960, or 988")]
    Spis(u32),
    /// [`Config::alignment`].
    #[error("an alignment of {0:#x}: the mock needs a power of two from 0x1000 on")]
    Alignment(u64),
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Self {
            vcpus,
            spis,
            distributor_size: _,
            redistributor_size: _,
            msi_region_size: _,
            alignment,
            vtimer_exits_with_gic: _,
            codes: _,
        } = *self;
        if !(1..=Model::MAX_CPUS).contains(&vcpus) {
            return Err(ConfigError::Vcpus(vcpus));
        }
        if !Model::accepts_spis(spis) {
            return Err(ConfigError::Spis(spis));
        }
        if !alignment.is_power_of_two() || alignment < 0x1000 {
            return Err(ConfigError::Alignment(alignment));
        }
        Ok(())
    }
}

impl Default for Config {
    /// A host as many are, with as much as the model behind the mock has.
    fn default() -> Self {
        Self {
            vcpus: Model::MAX_CPUS,
            spis: 988,
            distributor_size: 0x1_0000,
            redistributor_size: 0x2_0000,
            msi_region_size: 0x1_0000,
            alignment: 0x1_0000,
            vtimer_exits_with_gic: false,
            codes: Codes::default(),
        }
    }
}

impl Default for Codes {
    fn default() -> Self {
        Self {
            second_vm: HvError::Busy,
            no_vm: HvError::NoDevice,
            vm_in_use: HvError::Busy,
            second_gic: HvError::Busy,
            gic_after_vcpu: HvError::BadArgument,
            no_gic: HvError::NoDevice,
            state_out_of_order: HvError::Denied,
            second_vcpu_of_thread: HvError::Busy,
            vcpu_after_run: HvError::Denied,
            too_many_vcpus: HvError::NoResources,
            foreign_thread: HvError::BadArgument,
            no_mpidr: HvError::IllegalGuestState,
            pending_with_gic: HvError::Unsupported,
        }
    }
}
