//! The console device (virtio 1.2, section 5.3), on both transports.

include!("../support/device.rs");

mod support;

#[cfg(feature = "recorder")]
mod drivers;
mod multiport;
#[cfg(unix)]
mod peers;
mod single_port;
mod state;
