//! The seam to crate `virtio-queue`: its queue states in and out, and devices that are written for its [`QueueT`](virtio_queue::QueueT) behind our transports.
//!
//! Behind the default feature `virtio-queue`, which alone brings that crate; on unix alone, for the crate is.
//!
//! A device written for `QueueT` has loops like these: pop a chain, work, `add_used`, ask `needs_notification`, signal. That stays as it is,
//! in a [`QueueTHandler`]; [`Foreign`] makes a [`QueueHandler`](super::QueueHandler) of it, which a [`VirtioDevice`](super::VirtioDevice) returns from
//! [`start`](super::VirtioDevice::start). Registers, status, features, interrupts, kicks, pause, reset, save and restore are the transport's.
//! The ring is the device's alone: the queue is [handed away](super::Round::hand_away) to it.
//!
//! ```
//! use devisor::{
//!     interrupt::NoInterrupt,
//!     virtio::{
//!         DeviceId, Fault, QueueHandler, QueueIndex, VirtioDevice, VirtioMmio,
//!         queue::Rest,
//!         seam::{Foreign, QueueTHandler, Signal},
//!         transport::mmio::Line,
//!     },
//! };
//! use std::sync::Arc;
//! use virtio_queue::{QueueOwnedT, QueueT};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! /// Writes a byte into each buffer.
//! struct Loops;
//!
//! impl QueueTHandler<Arc<GuestMemoryMmap>> for Loops {
//!     fn serve(
//!         &mut self,
//!         queue: &mut virtio_queue::Queue,
//!         memory: &Arc<GuestMemoryMmap>,
//!         signal: &Signal<'_>,
//!     ) -> Result<Rest, Fault> {
//!         loop {
//!             queue.disable_notification(&**memory)?;
//!             while let Some(chain) = queue.iter(&**memory)?.next() {
//!                 let head = chain.head_index();
//!                 let room = chain.writable().next();
//!                 let written = room.is_some_and(|room| memory.write_obj(7_u8, room.addr()).is_ok());
//!                 queue.add_used(&**memory, head, written.into())?;
//!             }
//!             if queue.needs_notification(&**memory)? {
//!                 signal.signal();
//!             }
//!             if !queue.enable_notification(&**memory)? {
//!                 return Ok(Rest::Drained);
//!             }
//!         }
//!     }
//! }
//!
//! struct Device(Arc<GuestMemoryMmap>);
//!
//! impl VirtioDevice for Device {
//!     fn device_id(&self) -> DeviceId {
//!         DeviceId::ENTROPY
//!     }
//!
//!     fn queue_sizes(&self) -> &[u16] {
//!         &[64]
//!     }
//!
//!     fn accepts(&self, features: u64) -> bool {
//!         devisor::virtio::seam::accepts(features)
//!     }
//!
//!     fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
//!         Box::new(Foreign::new(Loops, Arc::clone(&self.0), 64))
//!     }
//! }
//!
//! let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! VirtioMmio::new(Device(Arc::clone(&memory)), memory, Line::Edge(Arc::new(NoInterrupt)))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod handler;
mod state;

pub use handler::{Foreign, QueueTHandler, Signal, accepts};
pub use state::{SeamError, from_virtio_queue, to_virtio_queue};
pub use virtio_queue;

use super::Fault;

impl From<virtio_queue::Error> for Fault {
    /// A device at the seam is told that its ring is broken, or not in guest memory.
    fn from(error: virtio_queue::Error) -> Self {
        Self::Elsewhere(error.to_string())
    }
}
