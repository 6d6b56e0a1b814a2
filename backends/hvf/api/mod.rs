//! The framework's interrupt calls as traits. Every method is the call of its name, on an Apple silicon host with
//! macOS 15 or later (`hv_gic.h`), or 11 and later (`hv_vcpu.h`).

mod gic;
mod registers;
mod vcpu;

use crate::backends::irqchip::IntId;
pub use crate::backends::irqchip::gicv3::SysReg;

pub use gic::HvGic;
pub use registers::{DistributorReg, GeneralReg, RedistributorReg, Reg};
pub use vcpu::HvVcpus;

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

/// An interrupt with a meaning of its own (`hv_gic_intid_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GicInterrupt {
    /// `HV_GIC_INT_PERFORMANCE_MONITOR`, 23.
    PerformanceMonitor,
    /// `HV_GIC_INT_MAINTENANCE`, 25.
    Maintenance,
    /// `HV_GIC_INT_EL2_PHYSICAL_TIMER`, 26.
    El2PhysicalTimer,
    /// `HV_GIC_INT_EL1_VIRTUAL_TIMER`, 27.
    El1VirtualTimer,
    /// `HV_GIC_INT_EL1_PHYSICAL_TIMER`, 30.
    El1PhysicalTimer,
}

impl GicInterrupt {
    /// The value of `hv_gic_intid_t`, which is the INTID by the base system architecture.
    pub fn intid(self) -> IntId {
        IntId(match self {
            Self::PerformanceMonitor => 23,
            Self::Maintenance => 25,
            Self::El2PhysicalTimer => 26,
            Self::El1VirtualTimer => 27,
            Self::El1PhysicalTimer => 30,
        })
    }
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
