//! Interrupt controllers in this process, for hypervisors that bring none.
//!
//! | module | models |
//! |---|---|
//! | [`gicv2`] | Arm's Generic Interrupt Controller, version 2: distributor and CPU interfaces |
//! | [`gicv2m`] | the frame that turns message-signalled interrupts into SPIs of a GICv2 |
//! | [`lapic`] | the local APICs of an x86 machine, which route messages between its CPUs |
//!
//! A controller hands out lines that devices drive, gives the registers that the guest sees as
//! [`BusDevice`](crate::bus::BusDevice)s, and drives the interrupt inputs of each CPU as
//! [`LevelInterrupt`](crate::interrupt::LevelInterrupt)s. It has no thread, no clock of its own, and can be used from
//! many threads at once.

mod arbiter;
pub mod gicv2;
pub mod gicv2m;
mod ids;
pub mod lapic;
mod preemption;
mod state;

pub use ids::{CpuId, IntId, Ppi, Spi};
pub use state::{Group, InterruptState, TriggerMode};
