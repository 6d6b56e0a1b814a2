//! KVM: interrupts through the kernel's interrupt controller (`virt/kvm/api.rst` in the kernel's documentation).
//!
//! The embedder creates the VM and its interrupt controller and gives [`KvmIrqs`] the range of [`Gsi`]s that devices
//! may have. A GSI is claimed first, any free one or a fixed one, and the claim becomes a line:
//!
//! | made by | is | how it signals | take it for |
//! |---|---|---|---|
//! | [`GsiClaim::irqfd`] | [`Interrupt`] | one `write(2)` | edges: the fastest line, and one that can be given to vhost |
//! | [`GsiClaim::irq_line`] | [`LevelInterrupt`] | an ioctl for each transition | level lines: the wire follows the device at once |
//! | [`GsiClaim::resample_irqfd`] | [`LevelInterrupt`] | one `write(2)`, again after an EOI | level lines behind a file descriptor (vfio, vhost) |
//! | [`GsiClaim::irq_pulse`] | [`Interrupt`] | two ioctls | edges where no file descriptor is wanted |
//! | [`KvmIrqs::messages`] | [`MsiVectors`] | one `write(2)` | MSI and MSI-X of PCI functions, vhost behind them |
//! | [`KvmIrqs::messages`] | [`MsiSink`] | one ioctl | messages of a controller of the embedder's |
//!
//! The other way round, [`KvmDoorbells`] are [`Doorbells`]: stores of the guest that signal an eventfd and do not exit.
//!
//! On x86_64, the module `x86` runs vCPUs with these controllers in the kernel, or with devisor's in their place.
//!
//! Dropping a line detaches it: its irqfd is deassigned, its level is lowered, its GSI is free again.
//!
//! ```
//! use devisor::{
//!     backends::kvm::{Gsi, KvmIrqs},
//!     interrupt::{Interrupt, LevelInterrupt},
//! };
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let Ok(kvm) = kvm_ioctls::Kvm::new() else {
//! #     eprintln!("skipped: no /dev/kvm");
//! #     return Ok(());
//! # };
//! # if cfg!(not(target_arch = "x86_64")) {
//! #     eprintln!("skipped: written for the interrupt controller of x86_64");
//! #     return Ok(());
//! # }
//! let vm = Arc::new(kvm.create_vm()?);
//! vm.create_irq_chip()?;
//!
//! let irqs = KvmIrqs::new(vm, 4..=15)?;
//! let uart = irqs.claim(Gsi(4), "uart")?.irq_line()?;
//! let disk = irqs.allocate("disk")?.irqfd()?;
//! assert_eq!(disk.gsi(), Gsi(5));
//!
//! disk.trigger()?;
//! uart.trigger()?;
//! uart.clear()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Threads
//! Every line can be signalled from any thread. Nothing here starts one: only [`ResampleIrqfd`] needs the embedder's help,
//! see [`Resampler`].
//!
//! # State
//! The lines keep none that a guest could tell from a new line: what the guest sees is in the kernel's interrupt controller
//! (`KVM_GET_IRQCHIP`), whether a level is up follows from the device, which says so again after its own restore.
//! An irqfd delivers from a work queue of the kernel's; dropping the line waits for it. A message is its function's to keep
//! and to program again; what waits in a vector's descriptor, its function saves as a pending bit.

mod arm;
mod gsi;
mod ioeventfd;
mod irq_line;
mod irqfd;
mod msi;
mod resampler;
mod routes;
#[cfg(target_arch = "x86_64")]
pub mod x86;

use std::{fmt, io, ops::RangeInclusive, sync::Arc};

use kvm_ioctls::{Cap, VmFd};

pub use self::{
    arm::{ArmIrq, ArmIrqError, CpuPin},
    gsi::{Gsi, GsiClaim},
    ioeventfd::KvmDoorbells,
    irq_line::{IrqLine, IrqPulse},
    irqfd::{Irqfd, ResampleIrqfd},
    msi::KvmMsi,
    resampler::Resampler,
};
use self::{gsi::GsiTable, routes::Routes};
use crate::interrupt::MsiMessage;
#[cfg(doc)]
use crate::{
    bus::Doorbells,
    interrupt::{Interrupt, LevelInterrupt, MsiSink, MsiVectors},
};

/// KVM's handles, as they stand in this module's signatures.
pub use kvm_ioctls;

/// The interrupts of one VM: hands out [`Gsi`]s, and lines on them. Cheap to clone; clones share the claims.
///
/// See the [module](self) for an example.
#[derive(Clone)]
pub struct KvmIrqs {
    shared: Arc<Shared>,
}

/// What every claim and every line needs of its VM.
struct Shared {
    vm: Arc<VmFd>,
    gsis: GsiTable,
    /// Those for messages.
    messages: GsiTable,
    routes: Routes,
}

impl KvmIrqs {
    /// Lines for `vm` on the GSIs of `range`.
    ///
    /// The VM may get its interrupt controller later, but before the first line is made. Two of these on one VM must have
    /// ranges that do not overlap, for neither knows the claims of the other, and only one may route messages: it owns
    /// the VM's routing table from the first of them on, and keeps there the kernel's default routes and its own.
    ///
    /// GSIs above `range` and above the wires of the architecture are for [messages](Self::messages).
    ///
    /// On x86_64 the kernel's default routes lead GSI 0 to 15 to both 8259 and IOAPIC and 16 to 23 to the IOAPIC; on aarch64
    /// GSI n is SPI n, with the INTID n + 32.
    ///
    /// # Errors
    /// [`KvmIrqError::BadRange`] if `range` is empty or goes beyond what this kernel can route.
    pub fn new(vm: Arc<VmFd>, range: RangeInclusive<u32>) -> Result<Self, KvmIrqError> {
        // KVM_CAP_IRQ_ROUTING tells the number of routes; an older kernel that does not has no less than 1024.
        let limit = match vm.check_extension_int(Cap::IrqRouting) {
            routes @ 2.. => routes.cast_unsigned(),
            _ => 1024,
        };
        if range.is_empty() || *range.end() >= limit {
            return Err(KvmIrqError::BadRange { range, limit });
        }
        let messages = GsiTable::new(routes::WIRES.max(range.end() + 1)..=limit - 1);
        Ok(Self {
            shared: Arc::new(Shared {
                vm,
                gsis: GsiTable::new(range),
                messages,
                routes: Routes::default(),
            }),
        })
    }

    /// The VM that the lines interrupt.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.shared.vm
    }

    /// The GSIs that may be claimed.
    pub fn range(&self) -> &RangeInclusive<u32> {
        self.shared.gsis.range()
    }

    /// Claims the lowest free GSI for `owner`, which errors and `Debug` name. Make fixed [claims](Self::claim) first.
    ///
    /// # Errors
    /// [`KvmIrqError::Exhausted`] if all are claimed.
    pub fn allocate(&self, owner: impl Into<String>) -> Result<GsiClaim, KvmIrqError> {
        let gsi = self.shared.gsis.allocate(owner.into())?;
        Ok(GsiClaim::new(gsi, Arc::clone(&self.shared)))
    }

    /// Message-signalled interrupts: vectors and a sink.
    pub fn messages(&self) -> KvmMsi {
        KvmMsi::new(self)
    }

    /// Tells the kernel what the pins of an IOAPIC outside it send, all `changes` at once: with the split irqchip of
    /// x86_64 the kernel exits on the EOIs of those that are level-triggered in the message's data, and of no others. A
    /// masked pin has no message.
    ///
    /// # Errors
    /// [`KvmIrqError::Wired`] if the kernel has the IOAPIC, [`KvmIrqError::OutOfRange`] for a pin above 23, [`KvmIrqError::NoDoorbell`] for a message that reaches no local
    /// APIC, or [`KvmIrqError::Refused`]. Nothing was changed.
    #[cfg(target_arch = "x86_64")]
    pub fn route_ioapic_pins(&self, changes: &[(u8, Option<MsiMessage>)]) -> Result<(), KvmIrqError> {
        msi::route_pins(&self.shared, changes)
    }

    /// Claims `gsi` for `owner`, which errors and `Debug` name.
    ///
    /// # Errors
    /// [`KvmIrqError::OutOfRange`], or [`KvmIrqError::Taken`] if it is claimed already. Devices that share a GSI
    /// share one line: see [`SharedLine`](crate::interrupt::SharedLine).
    pub fn claim(&self, gsi: Gsi, owner: impl Into<String>) -> Result<GsiClaim, KvmIrqError> {
        self.shared.gsis.claim(gsi, owner.into())?;
        Ok(GsiClaim::new(gsi, Arc::clone(&self.shared)))
    }
}

impl fmt::Debug for KvmIrqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmIrqs")
            .field("gsis", &self.shared.gsis)
            .finish_non_exhaustive()
    }
}

/// A GSI was not given, or KVM does not make a line of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmIrqError {
    /// The range for the devices is empty, or exceeds what KVM can route.
    #[error(
        "GSIs {} to {} for devices: at least one is needed, and this kernel knows those below {limit}",
        range.start(), range.end()
    )]
    BadRange {
        /// The refused range.
        range: RangeInclusive<u32>,
        /// The first GSI that the kernel does not know.
        limit: u32,
    },
    /// The GSI is not one of those that the embedder gave to devices.
    #[error("{gsi} is not for devices: those are {} to {}", range.start(), range.end())]
    OutOfRange {
        /// The refused GSI.
        gsi: Gsi,
        /// Those that may be claimed.
        range: RangeInclusive<u32>,
    },
    /// The GSI is claimed already.
    #[error("{gsi} is claimed by `{owner}` (devices have {} to {})", range.start(), range.end())]
    Taken {
        /// The refused GSI.
        gsi: Gsi,
        /// Who claimed it.
        owner: String,
        /// Those that may be claimed.
        range: RangeInclusive<u32>,
    },
    /// All GSIs are claimed.
    #[error("no GSI is free: all of {} to {} are claimed", range.start(), range.end())]
    Exhausted {
        /// Those that may be claimed.
        range: RangeInclusive<u32>,
    },
    /// The VM has no interrupt controller in the kernel that could take the line.
    #[error(
        "the VM has no interrupt controller in the kernel that takes {irq}: create it before the first line \
         (x86_64: KVM_CREATE_IRQCHIP, not the split one for wires; aarch64: a VGIC device, initialized)"
    )]
    NoIrqchip {
        /// The interrupt that was asked for.
        irq: IrqName,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Nothing would hear the line: the VM's routing table (`KVM_SET_GSI_ROUTING`) leads the GSI to no controller pin.
    #[error(
        "{gsi} leads to no pin of a controller in the kernel: route it first, or take one that is routed \
         (with the split irqchip of x86_64, none can be)"
    )]
    NoRoute {
        /// The GSI that was asked for.
        gsi: Gsi,
    },
    /// The GSI is a wire of a controller in the kernel, and stays one.
    #[error(
        "{gsi} is a wire to a controller in the kernel: only with the split irqchip of x86_64 can it lead elsewhere"
    )]
    Wired {
        /// The GSI that was to be routed.
        gsi: Gsi,
    },
    /// The guest's message goes to no local APIC.
    #[error(
        "a message to {:#x} reaches no local APIC: those are at 0xfee00000 to 0xfeefffff of the low 32 bits",
        message.address
    )]
    NoDoorbell {
        /// The refused message.
        message: MsiMessage,
    },
    /// Not a GSI that a wire can have on this architecture.
    #[error("{gsi} is no wire of this architecture")]
    NotAWire {
        /// The GSI that was asked for.
        gsi: Gsi,
        /// What it would have to be.
        source: ArmIrqError,
    },
    /// KVM refused the line for another reason.
    #[error("KVM refused {operation} for {irq}")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// The interrupt that was asked for.
        irq: IrqName,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The interrupt that an error is about, in the terms in which it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqName {
    /// A GSI.
    Gsi(Gsi),
    /// An interrupt of the Arm `KVM_IRQ_LINE`.
    Arm(ArmIrq),
}

impl fmt::Display for IrqName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gsi(gsi) => gsi.fmt(f),
            Self::Arm(irq) => irq.fmt(f),
        }
    }
}
