//! The GICv2 by its specification, ARM IHI 0048B: what a guest, a device and an embedder can see of it.

#![cfg(feature = "irqchip")]

mod cpu_interface;
mod distributor;
mod frame;
mod guest;
mod invariants;
mod lines;
mod reference;
mod state;
