//! The local APICs, from their guest's side: registers, messages, events, timers and state.
#![cfg(feature = "irqchip")]

mod delivery;
mod events;
mod guest;
mod ipi;
mod messages;
mod registers;
mod state;
mod timer;
