//! What is wired to local APICs: LINT pins, local interrupt sources, and who wants to hear EOIs.

use std::{
    fmt, io,
    sync::{Arc, Weak},
};

use super::{
    config::{Lint, LocalApicError, LocalSource},
    hooks::HookEvent,
    inbox::signal,
    set::{LocalApics, Shared},
    vectors::Vector,
};
use crate::{
    backends::irqchip::CpuId,
    interrupt::{Interrupt, LevelInterrupt},
};

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
        let number = self.shared.hooks.add(hook);
        LocalApicHook {
            apics: Arc::downgrade(&self.shared),
            number,
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
        if let Some(apics) = self.apics.upgrade() {
            apics.hooks.remove(self.number);
        }
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
