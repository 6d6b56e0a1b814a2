//! Virtio 1.2: virtqueues, transports, and one folder a device.
//!
//! ```text
//! device  --->  queue (suppression decides)  --->  transport (status bit, then the line)  --->  Interrupt
//! ```
//!
//! A device implements [`VirtioDevice`], and a [`QueueHandler`] for each of its queues; they see requests and a configuration space, and
//! no vector, status register or line. A [`transport`] owns the device, decodes registers and carries the status machine. Publishing a
//! used buffer, deciding whether the driver wants to hear of it and signalling it are one call, [`queue::Chain::complete`].
//! [`guide`] tells how to write a device.

pub mod balloon;
pub mod block;
mod burst;
mod bytes;
pub mod console;
pub mod device;
pub mod entropy;
mod failures;
pub mod features;
mod format;
pub mod guide;
#[cfg(unix)]
mod host_io;
pub mod iommu;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod reclaim;
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
pub mod remote;
mod run;
#[cfg(all(feature = "virtio-queue", unix))]
pub mod seam;
mod state;
pub mod transport;
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
pub mod vhost_user;
pub mod vsock;
mod wait;

pub use device::{DeviceId, Handle, QueueHandler, SharedMemoryRegion, VirtioDevice};
pub use failures::{FailureLog, HostFailures};
pub use format::StateBytesError;
pub use queue::{ChainError, Fault, Queue, QueueError, QueueIndex, Round};
pub use state::{DeviceState, DeviceStateError};
pub use transport::{VirtioTransport, mmio::VirtioMmio, pci::VirtioPci};
pub use wait::{Descriptor, Wait};
