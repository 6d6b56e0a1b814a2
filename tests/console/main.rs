//! The console device (virtio 1.2, section 5.3), on both transports.

#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/ring.rs"]
mod ring;

mod support;

mod single_port;
