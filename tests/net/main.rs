//! The network device by its chapter, virtio 1.2, section 5.1: what a driver, the network and an embedder can see of it.
//!
//! What the cases N0001 to N0100 of the suite virtio-villain try, and where that is tried here:
//!
//! | cases | where |
//! |---|---|
//! | transmitted headers, flags, checksums, segmentation (1 to 4, 7, 8, 10, 17, 18, 21, 27, 29, 30, 34, 35, 37, 40, 42, 45, 52, 55, 56, 59, 85, 86, 88, 96 to 100) | `transmit` |
//! | receive buffers (5, 6, 9, 23, 25, 31, 36, 39, 43, 48, 57, 69) | `receive`, `sockets` |
//! | commands that were not negotiated, do not exist, are too short or too long (11, 12, 15, 16, 19, 20, 22, 24, 28, 32, 33, 41, 46, 63, 79) | `control` |
//! | receive modes, addresses, VLANs (44, 50, 53, 54, 58, 73 to 76, 78, 80, 83, 87, 89) | `control`, `filtering` |
//! | queue pairs, RSS (14, 26, 38, 49, 51, 62, 64 to 68, 72, 77) | `multiqueue`, `configuration` |
//! | offloads, announcements, link, coalescing, several commands at once (47, 60, 61, 70, 71, 81, 82, 84, 90 to 95) | `control`, `configuration` |
//! | a queue that is not there (13) | `configuration`; and the transports' tests |

#[cfg(feature = "recorder")]
#[path = "../support/guest_cpu.rs"]
#[allow(dead_code, reason = "each test uses its own part of this")]
mod guest_cpu;
#[cfg(feature = "recorder")]
#[path = "../support/guest_drivers.rs"]
#[allow(dead_code, reason = "each test uses its own part of this")]
mod guest_drivers;
#[cfg(feature = "recorder")]
#[path = "../support/guest_pci.rs"]
#[allow(dead_code, reason = "each test uses its own part of this")]
mod guest_pci;
#[path = "../support/rest.rs"]
mod rest;
#[path = "../support/ring.rs"]
mod ring;
#[path = "../support/skip.rs"]
#[allow(dead_code, reason = "not where there is nothing to skip")]
mod skip;
#[cfg(feature = "recorder")]
#[path = "../support/worker.rs"]
#[allow(dead_code, reason = "each test uses its own part of this")]
mod worker;

mod coalescing;
mod configuration;
mod control;
#[cfg(feature = "recorder")]
mod drivers;
mod filtering;
mod guest;
mod limit;
mod multiqueue;
mod options;
mod pcap;
mod receive;
#[cfg(unix)]
mod sockets;
mod state;
mod switch;
#[cfg(target_os = "linux")]
mod tap;
mod transmit;
