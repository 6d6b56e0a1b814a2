//! What every virtio transport shares: the status machine, feature negotiation, queue set-up.
//!
//! [`mmio`] and [`pci`] decode registers and carry the interrupt; everything that they have in common is `Core`, which
//! knows no register layout and no line. To an embedder they are all a [`VirtioTransport`].
//!
//! | file | what is in it |
//! |---|---|
//! | `face`, `options`, `doorbell`, `saved` | what an embedder sees |
//! | `common`, `control` | `Core`, and its lock of the device |
//! | `status_machine`, `registers`, `own_face` | what the driver sets up, and what the device says |
//! | `queues`, `kicks`, `rest`, `reset` | its queues |
//! | `notice` | telling of a changed configuration |
//! | `state` | save and restore |

mod common;
mod control;
mod doorbell;
mod face;
mod kicks;
pub mod mmio;
mod notice;
mod options;
mod own_face;
pub mod pci;
mod queues;
mod registers;
mod reset;
mod rest;
mod saved;
mod state;
pub mod status;
mod status_machine;
#[cfg(all(target_os = "linux", feature = "vhost-user"))]
pub mod vhost_user;

pub use common::TransportError;
pub use doorbell::Doorbell;
pub use face::VirtioTransport;
pub use options::TransportOptions;
pub use saved::{NotStill, QueueSetup, RestoreError, SavedDevice, SavedTransport, TransportState};

#[cfg(all(target_os = "linux", feature = "vhost-user"))]
use common::Core;
