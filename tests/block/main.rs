//! The block device: what a driver gets for each request, and what a hostile one cannot get.

#[cfg(feature = "event-loop")]
mod events;
mod guest;
mod late;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;
mod support;

#[cfg(target_os = "linux")]
#[path = "../support/host_file.rs"]
mod host_file;
#[cfg(target_os = "linux")]
#[path = "../support/residence.rs"]
mod residence;
#[cfg(target_os = "linux")]
#[path = "../support/skip.rs"]
mod skip;
#[path = "../support/translated.rs"]
mod translated;

mod at_once;
mod configuration;
mod crash;
#[cfg(target_os = "linux")]
mod host;
#[allow(clippy::duplicate_mod, reason = "the same has to be so")]
mod later;
#[cfg(target_os = "linux")]
mod mapped;
mod memory;
mod moved;
mod pool;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
mod registered;
mod stacked;
mod state;
mod transport;
mod under_way;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
mod uring;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
mod waiter;
mod zones;
