//! What a mocked host has, and what nobody knows of the framework.

use super::model::Model;
use crate::backends::hvf::HvError;

/// What the host of a [`Process`](super::Process) has, and how it answers where Apple does not say how the framework does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether the system has a GIC: macOS 15 has, 14 has not. Without it every call of [`HvGic`](super::super::HvGic)
    /// answers [`HvError::Unsupported`].
    pub gic: bool,
    /// vCPUs that the host supports: 1 to 512.
    pub vcpus: u32,
    /// CPUs to a value of Aff1, 1 to 256: CPU n of the GIC is at Aff1 = n / this, Aff0 = n % this. A vCPU whose `MPIDR_EL1`
    /// names no such place is refused. Unverified: the framework takes what a vCPU has.
    pub cpus_per_cluster: u32,
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
#[non_exhaustive]
pub enum ConfigError {
    /// [`Config::vcpus`].
    #[error("{0} vCPUs: the mock has 1 to 512")]
    Vcpus(u32),
    /// [`Config::cpus_per_cluster`].
    #[error("{0} CPUs to a cluster: the mock has 1 to 256")]
    Cluster(u32),
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
            gic: _,
            vcpus,
            cpus_per_cluster,
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
        // Below 256 values of Aff1 there is room for all: 512 CPUs in clusters of one are too many.
        if !(1..=256).contains(&cpus_per_cluster) || vcpus.div_ceil(cpus_per_cluster) > 256 {
            return Err(ConfigError::Cluster(cpus_per_cluster));
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
            gic: true,
            vcpus: 8,
            cpus_per_cluster: 16,
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
