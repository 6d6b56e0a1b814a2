//! Virtio 1.2: virtqueues, transports, and one folder a device.
//!
//! ```text
//! device  --->  queue (suppression decides)  --->  transport (status bit, then the line)  --->  Interrupt
//! ```
//!
//! A device implements [`VirtioDevice`]; it sees its queues and its configuration space, and no vector, status register
//! or line. A [`transport`] owns the device, decodes registers and carries the status machine. Publishing a used buffer,
//! deciding whether the driver wants to hear of it and signalling it are one call, [`queue::Chain::complete`].

pub mod block;
pub mod device;
pub mod entropy;
pub mod features;
pub mod guide;
pub mod queue;
mod run;
mod state;
pub mod transport;

pub use device::{DeviceId, Handle, QueueHandler, SharedMemoryRegion, VirtioDevice};
pub use queue::{ChainError, Fault, Queue, QueueError, QueueIndex, Round};
pub use state::{DeviceState, DeviceStateError};
pub use transport::{VirtioTransport, mmio::VirtioMmio, pci::VirtioPci};
