//! Interrupt controllers in this process, for hypervisors that bring none.
//!
//! | module | models |
//! |---|---|
//! | [`gicv2`] | Arm's Generic Interrupt Controller, version 2: distributor and CPU interfaces |
//! | [`gicv3`] | version 3 of it: distributor, redistributors with LPIs, and CPU interfaces as system registers |
//! | [`gicv2m`] | the frame that turns message-signalled interrupts into SPIs of a GICv2 |
//! | [`its`] | Arm's Interrupt Translation Service, which turns messages into LPIs of a GICv3 |
//! | [`ioapic`] | Intel's I/O APIC, which turns pins into message-signalled interrupts |
//! | [`lapic`] | the local APICs of an x86 machine, which route messages between its CPUs |
//! | [`pc`] | the wiring of a PC around IOAPIC, 8259 pair, 8254 and local APICs |
//! | [`pic`] | the pair of 8259As of a PC |
//! | [`pit`] | the 8254 interval timer of a PC |
//!
//! A controller hands out lines that devices drive, gives the registers that the guest sees as
//! [`BusDevice`](crate::bus::BusDevice)s, and drives the interrupt inputs of each CPU as
//! [`LevelInterrupt`](crate::interrupt::LevelInterrupt)s. An IOAPIC sends messages instead, and the PIT is not a
//! controller but its oldest source. None has a thread or reads the host's clock, and each can be used from many threads
//! at once.

mod arm;
mod cpu_id;
mod finished;
mod lines;
mod x86;

pub use arm::{Group, IntId, InterruptState, Ppi, Spi, StateError, TriggerMode, gicv2, gicv2m, gicv3, its};
pub use cpu_id::CpuId;
pub use x86::{Vector, ioapic, lapic, pc, pic, pit};
