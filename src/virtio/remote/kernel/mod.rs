//! vhost in the kernel: `/dev/vhost-net`, `/dev/vhost-vsock` and `/dev/vhost-vdpa-N`, by ioctls.
//!
//! Each of [`VhostNet`], [`VhostVsock`] and [`VhostVdpa`] [reaches](super::Connect) one, and is what a [`Remote`](super::Remote) is made
//! with in the place of a socket. All else is as with a vhost-user back end, but for this: the memory need not be mapped from files, and
//! nothing waits for an answer.
//!
//! ```no_run
//! use devisor::virtio::{DeviceId, remote::{Remote, RemoteOptions, kernel::VhostVsock}};
//! # fn memory() -> std::sync::Arc<vm_memory::GuestMemoryMmap<()>> { unimplemented!() }
//!
//! // The guest is known by address 3 to programs that use AF_VSOCK on this host.
//! let vsock = Remote::new(VhostVsock::new(3), memory(), RemoteOptions::new(DeviceId::SOCKET))?;
//! # drop(vsock);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod calls;
mod device;
mod net;
mod numbers;
mod vdpa;
mod vsock;

pub use device::{OpenVhost, VhostDevice};
pub use net::VhostNet;
pub use vdpa::VhostVdpa;
pub use vsock::VhostVsock;
