//! What is wired to local APICs: LINT pins, local interrupt sources, and who wants to hear EOIs.

use std::{
    fmt, io,
    sync::{Arc, Weak},
};

use super::{CpuId, LocalApics, Shared, Vector, config::LocalApicError, inbox::signal};
use crate::{
    interrupt::{Interrupt, LevelInterrupt},
    sync::lock,
};

/// A pin of a local APIC. On a PC the 8259's output is wired to LINT0 of every CPU, and NMI sources to LINT1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lint {
    /// LINT0: INTR while the APIC is disabled.
    Zero,
    /// LINT1: NMI while the APIC is disabled.
    One,
}

/// An interrupt source within a CPU that the embedder models. The timer and the error interrupt are devisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalSource {
    /// The thermal sensor.
    Thermal,
    /// Performance counter overflow. Its vector table entry masks itself when it is delivered.
    Performance,
}

impl LocalApics {
    /// The line into a pin. It is one wire: for several sources on it, put a
    /// [`SharedLine`](crate::interrupt::SharedLine) in front. Dropping it lets go.
    ///
    /// # Errors
    /// [`LocalApicError::NoSuchCpu`].
    pub fn lint_line(&self, cpu: CpuId, pin: Lint) -> Result<LintLine, LocalApicError> {
        let cpu = self.shared.index(cpu)?;
        let apics = Arc::clone(&self.shared);
        Ok(LintLine { apics, cpu, pin })
    }

    /// The line of a local source: each trigger is an interrupt, if the guest has not masked it.
    ///
    /// # Errors
    /// [`LocalApicError::NoSuchCpu`].
    pub fn local_line(&self, cpu: CpuId, source: LocalSource) -> Result<LocalLine, LocalApicError> {
        let cpu = self.shared.index(cpu)?;
        let apics = Arc::clone(&self.shared);
        Ok(LocalLine { apics, cpu, source })
    }

    /// Calls `hook` with the vector of each level-triggered interrupt that a CPU finishes, as long as the returned
    /// [`LocalApicHook`] lives: what IOAPICs listen to. Not called while the guest suppresses broadcasts.
    ///
    /// It is called on the thread of the CPU, with no lock held. It may be called once more while the [`LocalApicHook`] is
    /// dropped on another thread. A hook that holds a [`LocalApics`] keeps the set alive: hold a [`Weak`] of its owner.
    pub fn on_eoi(&self, hook: impl Fn(Vector) + Send + Sync + 'static) -> LocalApicHook {
        self.hook(move |event| {
            if let HookEvent::Eoi(vector) = event {
                hook(vector);
            }
        })
    }

    /// Calls `hook` when a CPU may accept messages that it did not accept before: it was enabled, has got another ID or logical
    /// ID, or was restored. Who [offers](crate::interrupt::MsiSink::offer) messages, as an IOAPIC, tries again then what
    /// [nobody has accepted](crate::interrupt::Acceptance::Dropped). Otherwise as [`on_eoi`](Self::on_eoi).
    pub fn on_accepting(&self, hook: impl Fn() + Send + Sync + 'static) -> LocalApicHook {
        self.hook(move |event| {
            if event == HookEvent::AcceptsMore {
                hook();
            }
        })
    }

    fn hook(&self, hook: impl Fn(HookEvent) + Send + Sync + 'static) -> LocalApicHook {
        let mut hooks = lock(&self.shared.hooks);
        let number = hooks.next;
        hooks.next += 1;
        let others = hooks.all.iter().cloned();
        hooks.all = others.chain([(number, Arc::new(hook) as Hook)]).collect();
        LocalApicHook {
            apics: Arc::downgrade(&self.shared),
            number,
        }
    }
}

/// What a hook hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookEvent {
    Eoi(Vector),
    AcceptsMore,
}

type Hook = Arc<dyn Fn(HookEvent) + Send + Sync>;

/// Who wants to hear events, each with a number. Replaced as a whole, so that calling them takes no copy.
#[derive(Default)]
pub(super) struct Hooks {
    all: Arc<[(u64, Hook)]>,
    next: u64,
}

impl Shared {
    pub(super) fn call_hooks(&self, event: HookEvent) {
        let hooks = Arc::clone(&lock(&self.hooks).all);
        for (_, hook) in hooks.iter() {
            hook(event);
        }
    }
}

/// Keeps a hook of [`LocalApics::on_eoi`] or [`LocalApics::on_accepting`]; dropping it ends the calls.
#[must_use = "dropping it ends the calls"]
pub struct LocalApicHook {
    apics: Weak<Shared>,
    number: u64,
}

impl Drop for LocalApicHook {
    fn drop(&mut self) {
        let Some(apics) = self.apics.upgrade() else { return };
        let mut hooks = lock(&apics.hooks);
        let others = hooks.all.iter().filter(|(number, _)| *number != self.number);
        let others = others.cloned().collect();
        // The hook may own what takes this lock when it is dropped.
        let dropped = std::mem::replace(&mut hooks.all, others);
        drop(hooks);
        drop(dropped);
    }
}

/// A line into a LINT pin: see [`LocalApics::lint_line`].
pub struct LintLine {
    apics: Arc<Shared>,
    cpu: usize,
    pin: Lint,
}

impl Interrupt for LintLine {
    fn trigger(&self) -> io::Result<()> {
        let inbox = &self.apics.cpus[self.cpu].inbox;
        inbox.signal(|signals| signal::rise(signals, self.pin as usize))
    }
}

impl LevelInterrupt for LintLine {
    fn clear(&self) -> io::Result<()> {
        let up = signal::UP[self.pin as usize];
        self.apics.cpus[self.cpu].inbox.signal(|signals| signals & !up)
    }
}

impl Drop for LintLine {
    fn drop(&mut self) {
        // A refusal is counted by the wake line, which the next message raises again.
        let _ = self.clear();
    }
}

/// The line of a local source: see [`LocalApics::local_line`].
pub struct LocalLine {
    apics: Arc<Shared>,
    cpu: usize,
    source: LocalSource,
}

impl Interrupt for LocalLine {
    fn trigger(&self) -> io::Result<()> {
        let bit = match self.source {
            LocalSource::Thermal => signal::THERMAL,
            LocalSource::Performance => signal::PERFORMANCE,
        };
        self.apics.cpus[self.cpu].inbox.signal(|signals| signals | bit)
    }
}

macro_rules! debug {
    ($($kind:ident: $field:ident),*) => {$(
        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($kind))
                    .field(stringify!($field), &self.$field)
                    .finish_non_exhaustive()
            }
        }
    )*};
}

debug!(LocalApicHook: number, LintLine: pin, LocalLine: source);
