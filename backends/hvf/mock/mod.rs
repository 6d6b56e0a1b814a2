//! The framework without macOS: it enforces the rules of the interrupt calls, and delivers interrupts with a controller
//! of our own.
//!
//! A [`Process`] answers every call of [`HvGic`](super::HvGic) and [`HvVcpus`](super::HvVcpus), and those that make a VM and its vCPUs,
//! which are methods of the same names. What it refuses, the framework refuses: calls out of order, on the wrong thread
//! or with arguments out of range. Where Apple does not say with which code, [`Codes`] lets you choose.
//!
//! It executes no instructions. A closure plays the guest: see [`Process::set_guest`].
//!
//! The framework's GIC is our GICv3 here, so a guest finds what that one has. A host without it, as macOS 14 is, is
//! [`Config::gic`]: then [`SoftwareVcpu`](super::SoftwareVcpu) puts our GICv3 in front of the vCPUs.

mod calls;
mod config;
mod gic;
mod guest;
mod model;
mod outside;
mod process;
mod registers;
mod vcpu;

pub use config::{Codes, Config, ConfigError};
pub use guest::{GuestCpu, GuestEvent, GuestStep};
pub use process::Process;
