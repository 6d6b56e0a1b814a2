//! PCI: configuration space, interrupts and the root bus, as a guest sees them.

#[path = "../support/skip.rs"]
mod skip;

mod any_sequence;
mod bars;
mod bus;
mod config;
mod drivers;
#[cfg(unix)]
mod export;
mod intx;
mod lspci;
mod msi;
mod msix;
mod state;
mod world;
