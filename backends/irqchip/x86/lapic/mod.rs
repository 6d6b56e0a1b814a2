//! The local APICs of a machine: *Intel 64 and IA-32 Architectures Software Developer's Manual* (SDM), volume 3,
//! chapter "Advanced Programmable Interrupt Controller", in xAPIC and x2APIC mode.
//!
//! [`LocalApics`] is the set. It routes messages: as an [`MsiSink`](crate::interrupt::MsiSink) those of PCI functions
//! and IOAPICs, and between its CPUs those of their Interrupt Command registers. [`LocalApic`] is one of the set, as
//! its vCPU uses it: the register page as a [`BusDevice`](crate::bus::BusDevice), MSRs and CR8 as methods, and the
//! questions what to inject next.
//!
//! # Threads
//! All methods can be called from any thread. Who sends a message takes no lock: it leaves a request with the target
//! and raises the target's wake line, which stays up until the vCPU has looked. A vCPU looks in every method of its
//! [`LocalApic`], and is woken by nothing else, so its loop is: serve the events, inject, run; and while halted, wait
//! for the line. What a look finds on its way the line tells no more: so the last one before the vCPU runs the guest or
//! waits is [`pending`](LocalApic::pending). Another thread's look, by any method but `id`, `deadline`, `expire` and
//! `wake_failures`, hides from a vCPU that runs what it found: stop the vCPU first, or wake it afterwards.
//!
//! What a message costs does not grow with the CPUs, but with those that it is for: those of a logical destination are
//! found by their IDs or in an index. Broadcasts look at all, and lowest priority at each of its destination.
//!
//! ```
//! use devisor::{
//!     backends::irqchip::{
//!         CpuId,
//!         lapic::{ApicId, LocalApicParts, LocalApics, LocalApicsConfig, Request, Vector},
//!     },
//!     bus::BusDevice,
//!     interrupt::{MsiMessage, MsiSink, NoInterrupt, RequesterId},
//!     time::ManualClock,
//! };
//! use std::sync::Arc;
//!
//! let clock = Arc::new(ManualClock::default());
//! // An embedder's `wake` kicks the vCPU's thread, and its `alarm` sets a timer that calls `LocalApic::expire`.
//! let parts = LocalApicParts { id: ApicId(0), wake: Box::new(NoInterrupt), alarm: Box::new(()) };
//! let apics = LocalApics::new(LocalApicsConfig::default(), clock, vec![parts])?;
//! let apic = apics.cpu(CpuId(0))?;
//!
//! // What the guest does: enable the APIC.
//! apic.write(0x0f0, &0x1ff_u32.to_le_bytes()); // SVR
//!
//! // What a PCI function does, and how the guest handles it.
//! apics.send(RequesterId(0), MsiMessage { address: 0xfee0_0000, data: 0x41 })?;
//! assert_eq!(apic.acknowledge(), Some(Request::Vector(Vector(0x41))));
//! assert_eq!(apic.acknowledge(), None);
//! apic.write(0x0b0, &[0; 4]); // EOI
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The loop of a vCPU
//! For a hypervisor that brings no more than a CPU (`backends::kvm::x86` is this for KVM):
//!
//! ```
//! use devisor::{
//!     backends::irqchip::{lapic::{CpuEvent, LocalApic, Request}, pc::Pc},
//!     bus::{Bus, BusDevice},
//! };
//! use std::io;
//!
//! enum Exit<'a> {
//!     Read(u64, &'a mut [u8]),
//!     Write(u64, &'a [u8]),
//!     ReadMsr(u32, &'a mut Result<u64, ()>),
//!     WriteMsr(u32, u64, &'a mut Result<(), ()>),
//!     /// CR8 may have changed, too.
//!     Cr8(u64),
//!     Halt,
//!     /// The guest takes interrupts now, or the wake line went up: look.
//!     Look,
//! }
//!
//! /// Yours.
//! trait Vcpu {
//!     fn init(&mut self);
//!     fn start_at(&mut self, segment: u16);
//!     fn inject_nmi(&mut self);
//!     /// IF is set, and no instruction holds interrupts off.
//!     fn takes_interrupts(&self) -> bool;
//!     fn inject(&mut self, vector: u8);
//!     /// Leave the guest as soon as it takes interrupts.
//!     fn request_window(&mut self, wanted: bool);
//!     fn run(&mut self) -> io::Result<Exit<'_>>;
//!     /// Until the wake line is up.
//!     fn sleep(&self);
//! }
//!
//! fn run(vcpu: &mut impl Vcpu, apic: &LocalApic, pc: &Pc, memory: &Bus) -> io::Result<()> {
//!     let mut halted = false;
//!     loop {
//!         while let Some(event) = apic.next_event() {
//!             halted = false;
//!             match event {
//!                 CpuEvent::Init => vcpu.init(),
//!                 CpuEvent::StartUp(vector) => vcpu.start_at(u16::from(vector.0) << 8),
//!                 CpuEvent::Nmi => vcpu.inject_nmi(),
//!                 CpuEvent::Smi => (),
//!             }
//!         }
//!         if vcpu.takes_interrupts() && let Some(request) = apic.acknowledge() {
//!             halted = false;
//!             vcpu.inject(match request {
//!                 Request::Vector(vector) => vector.0,
//!                 Request::External => pc.pic().acknowledge().0,
//!             });
//!         }
//!         let waits = halted || apic.waits_for_start_up();
//!         // The last look: what the others have found meanwhile, the wake line does not tell.
//!         let pending = apic.pending();
//!         if pending.event || waits && pending.request && vcpu.takes_interrupts() {
//!             continue;
//!         }
//!         if waits {
//!             vcpu.sleep();
//!             continue;
//!         }
//!         vcpu.request_window(pending.request);
//!         match vcpu.run()? {
//!             Exit::Read(address, data) => match apic.page_offset(address) {
//!                 Some(offset) => apic.read(offset, data),
//!                 None => memory.read(address, data).unwrap_or_else(|_| data.fill(0xff)),
//!             },
//!             Exit::Write(address, data) => match apic.page_offset(address) {
//!                 Some(offset) => apic.write(offset, data),
//!                 None => memory.write(address, data).unwrap_or(()),
//!             },
//!             // An error is #GP(0). Ask `has_msr` first if other MSRs are yours.
//!             Exit::ReadMsr(msr, answer) => *answer = apic.read_msr(msr).map_err(|_| ()),
//!             Exit::WriteMsr(msr, value, answer) => *answer = apic.write_msr(msr, value).map_err(|_| ()),
//!             Exit::Cr8(value) => _ = apic.set_cr8(value),
//!             Exit::Halt => halted = true,
//!             Exit::Look => (),
//!         }
//!     }
//! }
//! ```

mod access;
mod arrivals;
mod config;
mod cpu;
mod describe;
mod hooks;
mod inbox;
mod lines;
mod logical;
mod message;
mod model;
mod presence;
mod registers;
mod route;
mod set;
mod sink;
mod snapshot;
mod state;
mod timer;
mod vectors;

pub use self::{
    config::{
        ApicId, CpuEvent, GeneralProtection, Lint, LocalApicError, LocalApicParts, LocalApicsConfig, LocalSource,
        Request,
    },
    cpu::{LocalApic, Pending},
    describe::describe,
    lines::{LintLine, LocalApicHook, LocalLine},
    set::LocalApics,
    sink::NoSuchDoorbell,
    state::{LocalApicState, LocalApicStateError},
    vectors::Vector,
};
