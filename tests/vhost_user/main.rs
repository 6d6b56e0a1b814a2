//! Devices behind a vhost-user socket: what a front end gets, and what a hostile one cannot get.
#![cfg(all(target_os = "linux", feature = "vhost-user"))]

mod connection;
mod daemon;
mod devices;
mod dpdk;
mod front;
mod guests;
mod hostile;
mod inflight;
mod iotlb;
mod memory;
mod migration;
mod objects;
#[path = "../support/packed.rs"]
mod packed;
mod qemu;
#[path = "../support/ring.rs"]
mod ring;
mod rings;
mod shrunk;
#[path = "../support/skip.rs"]
mod skip;
mod transfer;
