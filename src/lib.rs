//! Virtual devices for any hypervisor.
//!
//! A device needs one thing from the outside world that is not memory: a way to interrupt the guest. So every device
//! here names one trait, [`interrupt::Interrupt`], and nothing else of the hypervisor it runs under. What carries the
//! interrupt is a *backend*, a module behind a feature, or a closure of yours.
//!
//! | module | what |
//! |---|---|
//! | [`interrupt`] | the trait, level lines, shared lines, MSI: what devices and backends meet at |
//! | [`bus`] | address decoding |
//! | [`time`] | the injected clock |
//! | [`virtio`] | queues, transports, and one folder a device |
//! | [`pci`] | configuration space, INTx, MSI-X, a root bus |
//! | [`platform`] | devices that are not virtio: UARTs, real-time clock |
//! | [`backends`] | what carries an interrupt to the guest |
//!
//! # Backends
//!
//! | feature | module | maps an interrupt to |
//! |---|---|---|
//! | `recorder` | `backends::recorder` | a log, for tests; also in front of another backend |
//! | `irqchip` | `backends::irqchip` | an interrupt controller in this process: GICv2, GICv3 with ITS; IOAPIC, 8259 and local APIC |
//! | `kvm` | `backends::kvm` | irqfd with or without resample, `KVM_IRQ_LINE`, GSI routes, `KVM_SIGNAL_MSI` |
//! | `hvf` | `backends::hvf` | Hypervisor.framework's calls, as a trait; with a mock and without bindings |
//!
//! All are on by default, to try; a VMM names its own: `default-features = false, features = ["kvm"]`. Without a feature
//! nothing of a hypervisor is in the dependency tree, and only `kvm` brings it.
//!
//! # Example
//!
//! An entropy device whose line is a closure, with a driver that does no more than to look at it:
//!
//! ```
//! use devisor::{
//!     bus::Bus,
//!     interrupt::from_fn,
//!     virtio::{VirtioMmio, entropy::Entropy, transport::mmio::Line},
//! };
//! use std::sync::Arc;
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! let line = from_fn(|| {
//!     println!("the guest is interrupted");
//!     Ok(())
//! });
//! let entropy = VirtioMmio::new(Entropy::from_os(), memory, Line::Edge(Arc::new(line)))?;
//!
//! let mut bus = Bus::new();
//! bus.insert(0x0a00_0000, 0x200, Arc::new(entropy))?;
//!
//! // The guest's exits end here.
//! let mut device_id = [0; 4];
//! bus.read(0x0a00_0008, &mut device_id)?;
//! assert_eq!(device_id, [4, 0, 0, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Hostile guests
//!
//! Nothing that a guest does panics, loops without bound, grows memory or floods a log: a driver that breaks the rules of
//! its queue finds DEVICE_NEEDS_RESET, and everything else runs on. An embedder's mistake is an error that says what was
//! refused and what would be accepted.

pub mod bus;
pub mod interrupt;
pub mod pci;
pub mod platform;
pub mod time;
pub mod virtio;

#[path = "../backends/mod.rs"]
pub mod backends;

pub(crate) mod sync;

/// The README's examples, compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
