//! PCI: configuration space, INTx, MSI and MSI-X, and a root bus, as in *PCI Local Bus Specification 3.0*.
//!
//! | type | what it is |
//! |---|---|
//! | [`EndpointConfig`] | what a function is: identity, [BARs](Bar), capabilities, MSI-X, MSI |
//! | [`Endpoint`] | its configuration space and its interrupts, which a device is built around |
//! | [`Function`] | what a device implements: accesses to its BARs |
//! | [`MsiX`], [`Msi`], [`Intx`] | the ways to interrupt |
//! | [`RootBus`] | up to 256 functions, where their BARs decode, four wires |
//! | [`Ecam`], [`ConfigPorts`], [`Window`] | the faces of a root bus towards the guest |
//!
//! A backend is met as [`LevelInterrupt`](crate::interrupt::LevelInterrupt) and
//! [`MsiVectors`](crate::interrupt::MsiVectors) alone. Masks and pending bits live here, once for all of them: a vector
//! that is masked has no message at the backend, so nothing that was handed out of it can signal past the mask.

mod access;
mod bar;
mod config;
mod endpoint;
mod host_bridge;
mod intx;
mod messages;
mod msi;
mod msix;
mod registers;
mod root;
mod signal;
mod space;

pub use access::{CONFIG_PORTS, ConfigPorts, Ecam};
pub use bar::{Bar, BarIndex, BarKind};
pub use config::{ConfigError, EndpointConfig, Identity, Pin};
pub use endpoint::{Endpoint, EndpointState, Function, StateError};
pub use host_bridge::HostBridge;
pub use intx::Intx;
pub use msi::Msi;
pub use msix::{MsiX, MsiXEntry, MsiXState};
pub use root::{DeviceFunction, NoMessages, RootBus, RootBusError, Slot, Window};
pub use signal::Signalled;
