//! The network device by its chapter, virtio 1.2, section 5.1: what a driver, the network and an embedder can see of it.

#[path = "../support/random.rs"]
mod random;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;
#[path = "../support/skip.rs"]
mod skip;

mod configuration;
mod control;
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
