//! The 8254 by its data sheet (order number 231164): what a guest and an embedder can see of it.

#![cfg(feature = "irqchip")]

mod counts;
mod line;
mod machine;
mod modes;
mod port_b;
mod state;
