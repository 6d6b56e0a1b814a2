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
//! | [`description`] | what parts say of themselves, and device trees and ACPI tables from a list of them; [`boards`] has three lists |
//! | [`time`] | the injected clock |
//! | [`rate`] | a token bucket, for devices that let through so much and no more |
//! | [`memory`] | guest memory as devices use it: found once, pinned, marked when it is written |
//! | [`virtio`] | queues, who runs them, transports, and one folder a device; [`virtio::guide`] tells how to write one |
//! | [`pci`] | configuration space, INTx, MSI-X, a root bus |
//! | [`platform`] | devices that are not virtio: UARTs, clocks, keyboard and mouse, pins, flash, firmware configuration, power |
//! | [`backends`] | what carries an interrupt to the guest |
//! | `event_loop` | a ready-made event loop on threads of yours, behind the feature `event-loop`; nothing needs it |
//!
//! # Backends
//!
//! | feature | module | maps an interrupt to |
//! |---|---|---|
//! | `recorder` | `backends::recorder` | a log, for tests; also in front of another backend |
//! | `irqchip` | `backends::irqchip` | an interrupt controller in this process: GICv2 with GICv2m, GICv3 with ITS; IOAPIC, 8259, 8254, local APICs, and the wiring of a PC |
//! | `kvm` | `backends::kvm` | irqfd with or without resample, `KVM_IRQ_LINE`, GSI routes, `KVM_SIGNAL_MSI` |
//! | `hvf` | `backends::hvf` | Hypervisor.framework's calls, as a trait; with a mock and without bindings |
//!
//! More features are no backends: `fdt` and `acpi` render a device tree and ACPI tables from [`description`]s of parts; `event-loop` is
//! above. What a disk may be besides files and memory (`io-uring`, `nbd`, `nbd-tls`, `images`) is not on by default.
//!
//! All others are, to try; a VMM names its own: `default-features = false, features = ["kvm"]`. Without a feature
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
//! # Where to start
//!
//! | you have | look at |
//! |---|---|
//! | x86, and a hypervisor that brings no more than a CPU | `backends::irqchip::pc`, and the loop in `backends::irqchip::lapic` |
//! | x86 on KVM, with the controllers in the kernel, half of them, or none | `backends::kvm::x86` |
//! | arm64, and accesses to the GIC that come to you | `backends::irqchip::gicv3` and `its`, or `gicv2` and `gicv2m` |
//! | arm64 on macOS | `backends::hvf` |
//! | a controller in KVM, and devices that are to interrupt through it | `backends::kvm` |
//! | a platform with lines and messages of its own | [`interrupt`], [`interrupt::level_from_fn`], [`interrupt::MsiSink`] |
//! | a device of your own | [`virtio::guide`], and [`virtio::VirtioTransport`] for what an embedder does with all of them |
//! | a device that was written for crate `virtio-queue` | `virtio::seam`, behind the default feature of that crate's name |
//! | devices, and a guest to tell of them | [`boards`] |
//! | a disk | [`virtio::block`] behind [`virtio::VirtioMmio`] or [`virtio::VirtioPci`], this on a [`pci::RootBus`] |
//! | a network interface | [`virtio::net`], and what stands behind it: a TAP interface, a socket, a switch in memory |
//! | memory that goes back to the host, or that comes later | [`virtio::balloon`] and [`virtio::mem`], over [`virtio::reclaim`] |
//! | a file as memory of the guest's | [`virtio::pmem`] |
//! | timers | [`time::Clock`] and [`time::Alarm`] |
//!
//! # Saving a machine
//!
//! Each part gives its state as plain data (`save`) and takes back what it accepts (`restore`), all or nothing, and then derives its
//! outputs anew. A part does not save what is plugged into it, so the order is the embedder's:
//!
//! - To save: [pause](virtio::VirtioTransport::pause) the virtio devices, stop the vCPUs, and
//!   [wait](virtio::VirtioTransport::wait_until_still) until the devices are still: what is under way has ended then, or is kept for later,
//!   and no byte of guest memory changes any more. Save the devices, each with its transport; then what sends messages (the PC's board
//!   or the ITS), the local APICs or the GIC, and guest memory last: GICv3 and ITS write tables into it.
//! - To restore, into parts that were just made: the other way around, beginning with guest memory. A virtio device is paused after
//!   that; resume all of them, and run the vCPUs.
//!
//! All virtio devices are an [`Arc<dyn VirtioTransport>`](virtio::VirtioTransport) for this, whatever they and their transports are; a device
//! that is not still is not saved, and says which of its queues wait for how many requests.
//!
//! A controller knows from its state what its inputs were, and the devices drive them again. An x86 controller counts them as up until
//! then, so that no edge is made up; a GIC counts them as down, and takes the edge that it had latched from its state.
//!
//! # Hostile guests
//!
//! Nothing that a guest does panics, loops without bound, grows memory or floods a log. What it breaks costs the smallest thing that
//! is broken: a request comes back empty; a ring that leads nowhere has its driver find DEVICE_NEEDS_RESET; and everything else runs
//! on. An embedder's mistake is an error that says what was
//! refused and what would be accepted. [`flaws`] walks through what went wrong elsewhere, and names the test that shows that it does
//! not here.

pub mod bus;
pub mod description;
#[cfg(all(feature = "event-loop", not(loom)))]
pub mod event_loop;
pub mod interrupt;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod rate;
pub mod time;
pub mod virtio;

#[path = "../backends/mod.rs"]
pub mod backends;

/// What went wrong in other VMMs. A page of the documentation, without code.
#[cfg(doc)]
pub mod flaws {
    #![doc = include_str!("flaws.md")]
}

/// Which parts make a PC, an arm64 board and a microvm. A page of the documentation, without code.
#[cfg(any(doc, doctest))]
pub mod boards {
    #![doc = include_str!("../backends/boards.md")]
}

/// Guest memory, as it stands in this crate's signatures.
pub use vm_memory;

pub(crate) mod sync;

/// The README's examples, compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
