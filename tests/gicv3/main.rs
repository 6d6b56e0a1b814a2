//! The GICv3 by its specification, ARM IHI 0069: what a guest, a device and an embedder can see of it.

#![cfg(feature = "irqchip")]

mod cpu_interface;
mod guest;
mod invariants;
mod lines;
mod lpis;
mod reference;
mod registers;
mod routing;
mod state;
mod steps;
