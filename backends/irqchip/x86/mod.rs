//! The interrupt controllers of a PC.

pub mod ioapic;
pub mod lapic;
pub mod pc;
pub mod pic;
pub mod pit;
mod vector;

pub use vector::Vector;
