//! How to write a virtio device.
//!
//! A device is two things. Its **control face** ([`VirtioDevice`](super::VirtioDevice)) says what it is: identity, features,
//! configuration space. Each queue that the driver enables gets a **handler** ([`QueueHandler`](super::QueueHandler)), which is made when
//! the queue starts and dropped when it stops. The transport calls each of them with exclusive access, and all of them at the same time:
//! no lock is shared but those that the device itself makes.
//!
//! # What a handler does in a round
//!
//! [`Round::next`](super::Round::next) lends the next request, or says that there is none. For each one the handler does one of four
//! things:
//!
//! | with the [chain](super::queue::Chain) | when |
//! |---|---|
//! | [`complete`](super::queue::Chain::complete) (or [`put`](super::queue::Chain::put) several, then [`publish`](super::Round::publish)) | the request is answered |
//! | [`refuse`](super::queue::Chain::refuse) | it is not what the device type prescribes, and has no room for a status that says so |
//! | [`take`](super::queue::Chain::take) | it is answered later, elsewhere: the handler goes on with the next |
//! | drop it | it has to wait: it stays where it is, and is found again by the next round |
//!
//! A handler whose queue is served by something that has rings of its own (a device of another crate, a daemon, the kernel)
//! [hands it away](super::Round::hand_away) as a whole instead, passes kicks on, and has it come back when it is told to pause.
//!
//! When `next` finds nothing, or the handler has left a request, it returns. It counts nothing: a round ends by itself after a queue's
//! length of requests or 16 MiB. It asks the driver for no kick and suppresses none: the transport does, by how the round ended. **What
//! the handler left, it has to be called for again**: by a [`Wait`](super::Wait) that it says in the round, or by somebody who calls
//! [`Handle::look`](super::Handle::look). A request that was left and not waited for is served with the next kick.
//!
//! # Two kinds of errors
//!
//! What the *driver* gets wrong in a request costs that request, and is no `Err`: chains that break the rules are not even seen, and what
//! a [reader](super::queue::Reader) or [writer](super::queue::Writer) refuses ([`ChainError`](super::ChainError)) is answered with
//! the status of the device type, or with `refuse`. A broken *ring* ([`QueueError`](super::QueueError)) comes from `next` and `complete`;
//! pass it on with `?`, and the device needs a reset.
//!
//! What the *host* gets wrong is a failed request too, wherever the device type has a status for that; count it, and keep the last error
//! for the embedder. A device that cannot go on at all returns [`Fault::Host`](super::Fault::Host), or calls
//! [`Handle::fail`](super::Handle::fail). Either way the driver finds DEVICE_NEEDS_RESET, and the embedder the reason.
//!
//! # A transmitter
//!
//! It has something for the outside world, which may have no room: then the request is left, and waits for room.
//!
//! ```
//! use devisor::virtio::{Fault, QueueHandler, Round, Wait};
//! use std::{io, os::{fd::AsRawFd, unix::net::UnixDatagram}, sync::Arc};
//!
//! struct Transmitter {
//!     socket: Arc<UnixDatagram>,
//!     frame: Vec<u8>,
//! }
//!
//! impl QueueHandler for Transmitter {
//!     fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
//!         while let Some(chain) = round.next()? {
//!             // Bounded: a guest does not make the device hold more than this.
//!             let len = chain.readable_len() as usize;
//!             if len > 65_536 {
//!                 chain.refuse()?;
//!                 continue;
//!             }
//!             self.frame.resize(len, 0);
//!             if chain.reader().read(&mut self.frame).is_err() {
//!                 chain.refuse()?;
//!                 continue;
//!             }
//!             match self.socket.send(&self.frame) {
//!                 Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
//!                     round.wait(Wait::Writable(self.socket.as_raw_fd()));
//!                     return Ok(());
//!                 }
//!                 // A frame that the host loses is lost, as on a wire.
//!                 _ => chain.complete(0)?,
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//! ```
//!
//! # A receiver
//!
//! The driver gives it room in advance. It looks for a request first and for data then, so that neither is lost when the other is
//! missing.
//!
//! ```
//! use devisor::virtio::{Fault, QueueHandler, Round, Wait};
//! use std::{os::{fd::AsRawFd, unix::net::UnixDatagram}, sync::Arc};
//!
//! struct Receiver {
//!     socket: Arc<UnixDatagram>,
//!     frame: Box<[u8; 65_536]>,
//! }
//!
//! impl QueueHandler for Receiver {
//!     fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
//!         while let Some(chain) = round.next()? {
//!             let Ok(len) = self.socket.recv(&mut self.frame[..]) else {
//!                 // Nothing there: the room is kept, and no kick is asked for.
//!                 round.wait(Wait::Readable(self.socket.as_raw_fd()));
//!                 return Ok(());
//!             };
//!             match chain.writer().write(&self.frame[..len]) {
//!                 Ok(()) => chain.complete(len as u32)?,
//!                 Err(_) => chain.refuse()?,
//!             }
//!         }
//!         // No room: the driver kicks when there is some.
//!         Ok(())
//!     }
//! }
//! ```
//!
//! Where one call fills the buffers of many requests, [`several`](super::Round::several) lends them at once.
//!
//! # An asynchronous device
//!
//! It takes its requests and completes them on another thread, in any order. When the queue is stopped, what has had no effect yet is
//! given back, and the rest ends: until then the device is not still. A device like this needs a
//! [doorbell](super::transport::Doorbell), an event loop, or an embedder that runs it, if it ever has something to look at again.
//!
//! ```
//! use devisor::{
//!     interrupt::NoInterrupt,
//!     virtio::{
//!         DeviceId, Fault, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio, VirtioTransport,
//!         queue::OwnedChain, transport::mmio::Line,
//!     },
//! };
//! use std::{sync::{Arc, mpsc}, thread};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! /// Fills requests with sevens, on a thread of the embedder's.
//! struct Sevens(mpsc::Sender<OwnedChain>);
//!
//! impl VirtioDevice for Sevens {
//!     fn device_id(&self) -> DeviceId {
//!         DeviceId(42)
//!     }
//!
//!     fn queue_sizes(&self) -> &[u16] {
//!         &[64]
//!     }
//!
//!     fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
//!         Box::new(Sevens(self.0.clone()))
//!     }
//! }
//!
//! impl QueueHandler for Sevens {
//!     fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
//!         while let Some(chain) = round.next()? {
//!             // A worker that has gone gives it back untouched.
//!             let _ = self.0.send(chain.take());
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let (requests, worker) = mpsc::channel::<OwnedChain>();
//! let worker = thread::spawn(move || {
//!     for chain in worker {
//!         let filled = chain.writer().fill(7, chain.writable_len());
//!         let written = if filled.is_ok() { chain.writable_len() } else { 0 };
//!         chain.complete(written);
//!     }
//! });
//!
//! let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! let device = VirtioMmio::new(Sevens(requests), memory, Line::Edge(Arc::new(NoInterrupt)))?;
//! // The guest runs. To save the machine:
//! device.pause();
//! device.wait_until_still(None);
//! let state = device.save()?;
//! # drop((device, state));
//! # worker.join().unwrap();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What the parts share
//!
//! Settings that the driver or the embedder changes for the whole device (a capacity, receive modes) are in an `Arc`, in atomics or under
//! a lock of the device's own, and are looked at anew in each round. A change of the configuration space goes through
//! [`Handle::change_config`](super::Handle::change_config), or through the embedder's `change_config`: then no driver reads half of it
//! without noticing. A handler never waits for another one; it makes it [look](super::Handle::look).
//!
//! # Saving
//!
//! Of requests under way nothing is saved by the device: those that were given back untouched are in the queue's state, and the others
//! have ended. What else the guest could tell apart is the device's [`save`](super::VirtioDevice::save).
