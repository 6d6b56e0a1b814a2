//! Devices that a vhost-user back end serves: what a driver gets, what becomes of it when the back end goes, and what a hostile one cannot do.
#![cfg(all(target_os = "linux", feature = "vhost-user"))]

mod back;
mod construction;
mod front;
mod hostile;
mod life;
mod packed_rings;
mod plugged;
mod wire;

#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/packed.rs"]
mod packed;
#[path = "../support/poll.rs"]
mod poll;
#[path = "../support/ring.rs"]
mod ring;
#[path = "../support/skip.rs"]
mod skip;
mod storage_daemon;
