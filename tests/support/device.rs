// What tests of a device on both transports begin with, to be included by their `main.rs`.

#[cfg(target_os = "linux")]
#[path = "descriptors.rs"]
mod descriptors;
#[allow(dead_code, reason = "shared with tests that sleep")]
#[cfg(feature = "recorder")]
#[path = "guest_cpu.rs"]
mod guest_cpu;
#[allow(dead_code, reason = "shared with tests of the transports")]
#[cfg(feature = "recorder")]
#[path = "guest_drivers.rs"]
mod guest_drivers;
#[allow(dead_code, reason = "shared with tests of the transports")]
#[cfg(feature = "recorder")]
#[path = "guest_pci.rs"]
mod guest_pci;
#[path = "machine.rs"]
mod machine;
#[cfg(feature = "recorder")]
#[path = "plugged.rs"]
mod plugged;
#[cfg(unix)]
#[path = "poll.rs"]
mod poll;
#[path = "ring.rs"]
mod ring;
#[cfg(feature = "recorder")]
#[path = "worker.rs"]
mod worker;
