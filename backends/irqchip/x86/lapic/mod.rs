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
mod config;
mod cpu;
mod describe;
mod inbox;
mod lines;
mod logical;
mod model;
mod presence;
mod registers;
mod route;
mod snapshot;
mod timer;
mod vectors;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use self::{
    inbox::Inbox,
    lines::HookEvent,
    model::{Model, News},
    presence::{Presence, Published},
    registers::Lvt,
    timer::Timer,
};
use crate::{
    backends::irqchip::CpuId,
    interrupt::LevelInterrupt,
    sync::lock,
    time::{Alarm, AlarmOutput, Clock},
};

pub use super::Vector;
pub use config::{ApicId, CpuEvent, GeneralProtection, LocalApicError, LocalApicParts, LocalApicsConfig, Request};
pub use cpu::{LocalApic, Pending};
pub use describe::describe;
pub use lines::{Lint, LintLine, LocalApicHook, LocalLine, LocalSource};
pub use route::NoSuchDoorbell;
pub use snapshot::{LocalApicState, LocalApicStateError};

type WakeLine = Box<dyn LevelInterrupt>;

/// The local APICs of a machine. Clones are handles to the same set, which lives as long as any of them, of its CPUs or
/// its lines. See the [module](self) for threads and an example.
#[derive(Clone)]
pub struct LocalApics {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    config: LocalApicsConfig,
    clock: Arc<dyn Clock>,
    cpus: Vec<Cpu>,
    /// IDs and the CPUs that have them, sorted, for those that are not their CPU's number.
    by_id: Vec<(ApicId, usize)>,
    /// Those whose ID has more bits than a logical ID of x2APIC mode is made of.
    aliased: Vec<usize>,
    /// Those that have a logical ID of xAPIC mode.
    logical: logical::Index,
    hooks: Mutex<lines::Hooks>,
}

struct Cpu {
    id: ApicId,
    inbox: Inbox<WakeLine>,
    published: Published,
    own: Mutex<Own>,
    alarm: AlarmOutput<Box<dyn Alarm>>,
}

/// What only the vCPU uses, with what it last made known.
struct Own {
    model: Model,
    presence: Presence,
    /// The timer and its entry that `deadline` was derived from: dividing is too much for every EOI.
    armed: (Timer, u32),
    deadline: Option<Duration>,
    /// Where the index has it.
    places: logical::Places,
}

impl Own {
    /// Derives everything that others see, and publishes it. Whether the alarm is to be told.
    fn update(&mut self, apics: &Shared, cpu: usize) -> bool {
        let presence = self.model.update();
        if presence != self.presence {
            let before = std::mem::replace(&mut self.presence, presence);
            let publish = || apics.cpus[cpu].published.set(presence);
            // Each acknowledge and each EOI changes the class, and nothing else does so as often.
            if presence.takes_the_same_as(before) {
                publish();
            } else {
                self.model.news.accepts_more |= presence.accepts_vectors();
                apics.logical.publish(cpu, &mut self.places, presence.places(), publish);
            }
        }
        let armed = (self.model.timer, self.model.lvt(Lvt::Timer));
        if armed == self.armed {
            return false;
        }
        self.armed = armed;
        let deadline = self.model.deadline();
        std::mem::replace(&mut self.deadline, deadline) != deadline
    }
}

impl LocalApics {
    /// Local APICs after power-up: in xAPIC mode, disabled by software. The first CPU is the bootstrap processor; the
    /// others wait for a start-up message. Time-stamp counters are at zero when `clock` is.
    ///
    /// All entries of the local vector table are masked then. What lets a guest with 8259s work that does not know of its local
    /// APIC is set up by a PC's firmware: an embedder without one writes 0x1ff to SVR, 0x700 (ExtINT) to LINT0 and 0x400
    /// (NMI) to LINT1 of the bootstrap processor.
    ///
    /// # Errors
    /// [`LocalApicError`] if there is no CPU, an ID is taken, or `config` has what a local APIC cannot have.
    pub fn new(
        config: LocalApicsConfig,
        clock: Arc<dyn Clock>,
        cpus: Vec<LocalApicParts>,
    ) -> Result<Self, LocalApicError> {
        config.check()?;
        if cpus.is_empty() {
            return Err(LocalApicError::NoCpu);
        }
        let mut by_id: Vec<_> = cpus.iter().enumerate().map(|(cpu, parts)| (parts.id, cpu)).collect();
        by_id.sort_unstable();
        let reserved = by_id.iter().find(|(id, _)| [0xff, u32::MAX].contains(&id.0));
        let twice = by_id
            .windows(2)
            .find(|pair| pair[0].0 == pair[1].0)
            .map(|pair| &pair[0]);
        if let Some((id, _)) = reserved.or(twice) {
            return Err(LocalApicError::Id(*id));
        }
        let aliased = by_id.iter().filter(|(id, _)| id.0 >> 20 != 0).map(|(_, cpu)| *cpu);
        let aliased = aliased.collect();
        let logical = logical::Index::new(cpus.len());
        let cpus = cpus
            .into_iter()
            .enumerate()
            .map(|(cpu, parts)| Cpu::new(config, cpu == 0, parts))
            .collect();
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                clock,
                cpus,
                by_id,
                aliased,
                logical,
                hooks: Mutex::default(),
            }),
        })
    }

    /// What this set was made with.
    pub fn config(&self) -> LocalApicsConfig {
        self.shared.config
    }

    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.shared.cpus.len()
    }

    /// The local APIC of `cpu`, in the order in which they were given.
    ///
    /// # Errors
    /// [`LocalApicError::NoSuchCpu`].
    pub fn cpu(&self, cpu: CpuId) -> Result<LocalApic, LocalApicError> {
        Ok(LocalApic::new(&self.shared, self.shared.index(cpu)?))
    }
}

impl Cpu {
    fn new(config: LocalApicsConfig, bootstrap: bool, parts: LocalApicParts) -> Self {
        let LocalApicParts { id, wake, alarm } = parts;
        let mut model = Model::new(config, id, bootstrap);
        let presence = model.update();
        let armed = (model.timer, model.lvt(Lvt::Timer));
        Self {
            id,
            inbox: Inbox::new(wake),
            published: Published::new(presence),
            own: Mutex::new(Own {
                model,
                presence,
                armed,
                deadline: None,
                places: 0,
            }),
            alarm: AlarmOutput::new(alarm),
        }
    }

    /// None while the vCPU is asked to look: until it has, there is nothing to call it for.
    fn deadline(&self) -> Option<Duration> {
        // A tick is taken with the lock held.
        let own = lock(&self.own);
        own.deadline.filter(|_| !self.inbox.has_tick())
    }

    /// The alarm has gone off.
    fn expire(&self) {
        self.alarm.expired();
        // A refusal is counted, and told again by the next message.
        let _ = self.inbox.tick();
        self.settle_alarm();
    }

    /// Tells the alarm the deadline, with nothing locked.
    fn settle_alarm(&self) {
        self.alarm.settle(|| self.deadline());
    }
}

impl Shared {
    fn index(&self, cpu: CpuId) -> Result<usize, LocalApicError> {
        let cpus = self.cpus.len();
        let index = usize::try_from(cpu.0).ok().filter(|index| *index < cpus);
        index.ok_or(LocalApicError::NoSuchCpu { cpu, cpus })
    }

    fn cpu_of(&self, id: ApicId) -> Option<usize> {
        let same = usize::try_from(id.0).ok();
        if let Some(cpu) = same.filter(|cpu| self.cpus.get(*cpu).is_some_and(|cpu| cpu.id == id)) {
            return Some(cpu);
        }
        let at = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.by_id[at].1)
    }

    /// Takes what others have asked of `cpu`, makes the change under its lock, derives what others see of it, then
    /// tells them with nothing locked. `timed` says that the change needs the time.
    fn with<T>(&self, cpu: usize, timed: bool, change: impl FnOnce(&mut Model) -> T) -> T {
        let Cpu { inbox, own, .. } = &self.cpus[cpu];
        let now = (timed || inbox.has_tick()).then(|| self.clock.now());
        let mut own = lock(own);
        let model = &mut own.model;
        let mail = (!inbox.is_empty()).then(|| inbox.take(now.is_some()));
        model.absorb(mail.as_ref(), now);
        let value = change(model);
        let ticked = mail.as_ref().is_some_and(|mail| mail.tick);
        let alarmed = own.update(self, cpu) || ticked;
        let News {
            message,
            eoi,
            accepts_more,
        } = std::mem::take(&mut own.model.news);
        drop(own);

        // What a wake line refuses is counted there, and told again with the next message.
        if mail.is_some() {
            let _ = inbox.settle();
        }
        if let Some(message) = message {
            let _ = self.deliver(Some(cpu), &message);
        }
        if let Some(vector) = eoi {
            self.call_hooks(HookEvent::Eoi(vector));
        }
        if accepts_more {
            self.call_hooks(HookEvent::AcceptsMore);
        }
        if alarmed {
            self.cpus[cpu].settle_alarm();
        }
        value
    }
}

impl fmt::Debug for LocalApics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalApics")
            .field("config", &self.shared.config)
            .field("cpus", &self.shared.cpus.len())
            .finish_non_exhaustive()
    }
}
