//! The console device (virtio 1.2, section 5.3), on both transports.

#[cfg(target_os = "linux")]
#[path = "../support/descriptors.rs"]
mod descriptors;
#[cfg(feature = "recorder")]
mod drivers;
#[allow(dead_code, reason = "shared with tests that sleep")]
#[cfg(feature = "recorder")]
#[path = "../support/guest_cpu.rs"]
mod guest_cpu;
#[allow(dead_code, reason = "shared with tests of the transports")]
#[cfg(feature = "recorder")]
#[path = "../support/guest_drivers.rs"]
mod guest_drivers;
#[allow(dead_code, reason = "shared with tests of the transports")]
#[cfg(feature = "recorder")]
#[path = "../support/guest_pci.rs"]
mod guest_pci;
#[path = "../support/machine.rs"]
mod machine;
#[cfg(feature = "recorder")]
#[path = "../support/plugged.rs"]
mod plugged;
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
#[cfg(feature = "recorder")]
#[path = "../support/worker.rs"]
mod worker;
