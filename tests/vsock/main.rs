//! The socket device (virtio 1.2, section 5.10), on both transports.

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

mod credit;
mod refusals;
mod seqpackets;
mod shutdown;
mod state;
mod streams;
mod threads;
#[cfg(target_os = "linux")]
mod unix;
#[cfg(feature = "recorder")]
#[path = "../support/worker.rs"]
mod worker;
