//! Arm's Generic Interrupt Controller.

mod gic;
pub mod gicv2;
pub mod gicv2m;
pub mod gicv3;
pub mod its;

pub use gic::{Group, IntId, InterruptState, Ppi, Spi, StateError, TriggerMode};
