//! Devices that a vhost-user back end serves: what a driver gets, what becomes of it when the back end goes, and what a hostile one cannot do.
#![cfg(all(target_os = "linux", feature = "vhost-user"))]

mod back;
mod construction;
mod daemon;
mod dpdk;
mod entropy_daemon;
mod evdev;
mod files;
mod front;
mod fuse;
mod hostile;
mod input_daemon;
mod kernel;
mod kvm_kicks;
mod life;
mod middle;
mod moved;
mod objects;
mod packed_rings;
mod packet;
mod plugged;
mod shared_memory;
mod stand_in;
mod storage_daemon;
mod vectors;
mod vsock_daemon;
mod wire;

#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
#[allow(dead_code, reason = "shared with tests, which need other parts of it")]
#[path = "../support/kvm_guest.rs"]
mod kvm_guest;
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
