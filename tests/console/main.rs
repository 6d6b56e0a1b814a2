//! The console device (virtio 1.2, section 5.3), on both transports.

#[path = "../support/machine.rs"]
mod machine;
#[cfg(unix)]
#[path = "../support/poll.rs"]
mod poll;
#[path = "../support/ring.rs"]
mod ring;

mod support;

mod multiport;
#[cfg(unix)]
mod peers;
mod single_port;
mod state;
