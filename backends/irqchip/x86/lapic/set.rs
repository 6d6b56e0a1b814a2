//! The set: what is behind its handles, how a CPU's change is made, and what is told then.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    config::{ApicId, LocalApicError, LocalApicParts, LocalApicsConfig},
    hooks::{HookEvent, Hooks},
    inbox::Inbox,
    logical,
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

type WakeLine = Box<dyn LevelInterrupt>;

/// The local APICs of a machine. Clones are handles to the same set, which lives as long as any of them, of its CPUs or
/// its lines. See the [module](super) for threads and an example.
#[derive(Clone)]
pub struct LocalApics {
    pub(super) shared: Arc<Shared>,
}

/// What is behind the handles.
pub(super) struct Shared {
    pub config: LocalApicsConfig,
    pub clock: Arc<dyn Clock>,
    pub cpus: Vec<Cpu>,
    /// IDs and the CPUs that have them, sorted, for those that are not their CPU's number.
    pub by_id: Vec<(ApicId, usize)>,
    /// Those whose ID has more bits than a logical ID of x2APIC mode is made of.
    pub aliased: Vec<usize>,
    /// Those that have a logical ID of xAPIC mode.
    pub logical: logical::Index,
    pub hooks: Hooks,
}

pub(super) struct Cpu {
    pub id: ApicId,
    pub inbox: Inbox<WakeLine>,
    pub published: Published,
    pub own: Mutex<Own>,
    pub alarm: AlarmOutput<Box<dyn Alarm>>,
}

/// What only the vCPU uses, with what it last made known.
pub(super) struct Own {
    pub model: Model,
    pub presence: Presence,
    /// The timer and its entry that `deadline` was derived from: dividing is too much for every EOI.
    pub armed: (Timer, u32),
    pub deadline: Option<Duration>,
    /// Where the index has it.
    pub places: logical::Places,
}

impl Own {
    /// Derives everything that others see, and publishes it. Whether the alarm is to be told.
    pub fn update(&mut self, apics: &Shared, cpu: usize) -> bool {
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
                hooks: Hooks::default(),
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
    pub fn deadline(&self) -> Option<Duration> {
        // A tick is taken with the lock held.
        let own = lock(&self.own);
        own.deadline.filter(|_| !self.inbox.has_tick())
    }

    /// The alarm has gone off.
    pub fn expire(&self) {
        self.alarm.expired();
        // A refusal is counted, and told again by the next message.
        let _ = self.inbox.tick();
        self.settle_alarm();
    }

    /// Tells the alarm the deadline, with nothing locked.
    pub fn settle_alarm(&self) {
        self.alarm.settle(|| self.deadline());
    }
}

impl Shared {
    pub fn index(&self, cpu: CpuId) -> Result<usize, LocalApicError> {
        let cpus = self.cpus.len();
        let index = usize::try_from(cpu.0).ok().filter(|index| *index < cpus);
        index.ok_or(LocalApicError::NoSuchCpu { cpu, cpus })
    }

    pub fn cpu_of(&self, id: ApicId) -> Option<usize> {
        let same = usize::try_from(id.0).ok();
        if let Some(cpu) = same.filter(|cpu| self.cpus.get(*cpu).is_some_and(|cpu| cpu.id == id)) {
            return Some(cpu);
        }
        let at = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.by_id[at].1)
    }

    /// Takes what others have asked of `cpu`, makes the change under its lock, derives what others see of it, then
    /// tells them with nothing locked. `timed` says that the change needs the time.
    pub fn with<T>(&self, cpu: usize, timed: bool, change: impl FnOnce(&mut Model) -> T) -> T {
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
            self.hooks.call(HookEvent::Eoi(vector));
        }
        if accepts_more {
            self.hooks.call(HookEvent::AcceptsMore);
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
