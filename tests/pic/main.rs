//! The 8259 pair by its data sheet (8259A, order number 231468): what a guest, a device and an embedder can see of it.

#![cfg(feature = "irqchip")]

mod guest;
mod initialization;
mod inputs;
mod modes;
mod priority;
mod state;
