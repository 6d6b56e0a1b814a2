//! Hypervisor.framework (macOS on Apple silicon): its interrupt calls as traits, devisor's lines and messages on top of
//! them, and a [`mock`] that runs anywhere. No bindings.
//!
//! | you have | you get |
//! |---|---|
//! | [`HvGic`], the framework's own GIC (macOS 15) | [`Gic`]: a [`LevelLine`] or [`EdgeLine`] for each SPI, an [`MsiFrame`] |
//! | [`HvVcpus`] and our GICv3 | [`SoftwareVcpu`]: a vCPU that serves the GIC and the virtual timer by itself |
//! | [`HvVcpus`] and another controller of [`irqchip`](crate::backends::irqchip) | [`VcpuInputs`]: IRQ and FIQ of a vCPU |
//! | neither: another system | [`mock::Process`], which is both |
//!
#![doc = include_str!("macos.md")]

mod api;
mod error;
mod gic;
mod icc;
pub mod mock;
mod software;
mod trap;
mod vcpu;

pub use api::{
    DistributorReg, GeneralReg, GicConfig, GicInterrupt, HvGic, HvVcpus, IntIdRange, InterruptType, MsiConfig,
    RedistributorReg, Reg, SysReg, VcpuExit, VcpuHandle,
};
pub use error::{HvError, HvReturn};
pub use gic::{EdgeLine, Gic, GicError, LevelLine, MsiFrame};
pub use icc::IccState;
pub use software::{SoftwareVcpu, SoftwareVcpuParts};
pub use trap::{MmioAccess, Trap};
pub use vcpu::{VcpuInput, VcpuInputs};
