//! The seam to crate `virtio-queue`: its states in and out, and a device that is written for its queues behind our transports.

#![cfg(unix)]

#[path = "../support/both.rs"]
mod both;
#[path = "../support/guest_cpu.rs"]
#[allow(dead_code, reason = "shared with tests that sleep")]
mod guest_cpu;
#[path = "../support/guest_drivers.rs"]
#[allow(dead_code, reason = "shared with tests of the transports")]
mod guest_drivers;
#[path = "../support/guest_pci.rs"]
#[allow(dead_code, reason = "shared with tests of the transports")]
mod guest_pci;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/plugged.rs"]
mod plugged;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;
#[path = "../support/worker.rs"]
mod worker;

mod away;
mod device;
mod drivers;
mod guest;
mod states;
