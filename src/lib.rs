//! Virtual devices for any hypervisor.
//!
//! A device needs one thing from the outside world that is not memory: a way to interrupt the guest.
//! So every device here names one trait, [`interrupt::Interrupt`], and nothing else of the hypervisor
//! it runs under. What carries the interrupt is a *backend*, a module behind a feature.

pub mod bus;
pub mod interrupt;
pub mod platform;
pub mod time;
pub mod virtio;

/// Backends: each a module behind its feature, and the only place that knows a hypervisor or an interrupt controller.
#[path = "../backends/mod.rs"]
pub mod backends;

pub(crate) mod sync;
