//! What carries an interrupt to the guest.
//!
//! Each backend implements what [`crate::interrupt`] asks for, behind a feature of its own, and none of them knows a
//! device.

#[cfg(feature = "hvf")]
pub mod hvf;
#[cfg(feature = "irqchip")]
pub mod irqchip;
#[cfg(all(
    feature = "kvm",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
pub mod kvm;
#[cfg(feature = "recorder")]
pub mod recorder;
