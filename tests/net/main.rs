//! The network device by its chapter, virtio 1.2, section 5.1: what a driver, the network and an embedder can see of it.
//!
//! The cases of the suite virtio-villain are in `tests/villain/tables/net.rs`.

#[cfg(feature = "recorder")]
#[path = "../support/guest_cpu.rs"]
#[allow(dead_code, reason = "each test uses its own part of this")]
mod guest_cpu;
#[cfg(feature = "recorder")]
#[path = "../support/guest_drivers.rs"]
#[allow(dead_code, reason = "each test uses its own part of this")]
mod guest_drivers;
#[cfg(feature = "recorder")]
#[path = "../support/guest_pci.rs"]
#[allow(dead_code, reason = "each test uses its own part of this")]
mod guest_pci;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;
#[path = "../support/skip.rs"]
#[allow(dead_code, reason = "not where there is nothing to skip")]
mod skip;
#[cfg(feature = "recorder")]
#[path = "../support/worker.rs"]
#[allow(dead_code, reason = "each test uses its own part of this")]
mod worker;

mod coalescing;
mod configuration;
mod control;
#[cfg(feature = "recorder")]
mod drivers;
mod filtering;
mod guest;
mod limit;
mod multiqueue;
mod options;
mod pcap;
mod receive;
#[cfg(unix)]
mod sockets;
mod state;
mod switch;
#[cfg(target_os = "linux")]
mod tap;
mod transmit;
