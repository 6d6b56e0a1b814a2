//! The socket device (virtio 1.2, section 5.10), on both transports.

include!("../support/device.rs");

#[path = "../support/packet.rs"]
mod packet;
mod support;

mod credit;
#[cfg(feature = "recorder")]
mod drivers;
mod refusals;
mod seqpackets;
mod shutdown;
mod state;
mod streams;
mod threads;
#[cfg(target_os = "linux")]
mod unix;
