//! The IOAPIC by its data sheet (82093AA, order number 290566): what a guest, a device and an embedder can see of it.

#![cfg(feature = "irqchip")]

mod dropped;
mod eoi;
mod guest;
mod inputs;
mod messages;
mod refusals;
mod registers;
mod state;
