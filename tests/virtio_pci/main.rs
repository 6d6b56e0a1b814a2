//! Virtio over PCI (virtio 1.2, section 4.1).

mod any_sequence;
mod bus_master;
mod common;
mod doorbells;
mod driver;
mod flight;
mod identity;
mod interrupts;
#[path = "../support/late.rs"]
mod late;
#[allow(dead_code, reason = "shared with the tests of PCI")]
#[path = "../pci/world.rs"]
mod platform;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;
mod state;
mod window;

#[cfg(feature = "recorder")]
mod drivers;
#[cfg(feature = "recorder")]
#[path = "../../examples/tour/guest.rs"]
mod guest;
#[cfg(feature = "recorder")]
#[path = "../support/guest_cpu.rs"]
mod guest_cpu;
#[cfg(feature = "recorder")]
#[allow(dead_code, reason = "shared with tests of virtio-mmio")]
#[path = "../support/guest_drivers.rs"]
mod guest_drivers;
#[cfg(feature = "recorder")]
#[path = "../support/guest_pci.rs"]
mod guest_pci;
#[cfg(feature = "recorder")]
#[path = "../support/worker.rs"]
mod worker;
