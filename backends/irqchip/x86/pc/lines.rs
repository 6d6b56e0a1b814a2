//! The wires of the board: into both controllers, and into the pins of local APICs.

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{CpuId, Gsi, IoApic, Lint, LocalApics, PcError, Pic, Pin};
use crate::{
    backends::irqchip::{ioapic, lapic::LintLine, pic},
    interrupt::{Interrupt, LevelInterrupt},
};

/// A device's level line into a [`Pc`](super::Pc). Dropping it lets go of the wire.
///
/// When a call returns, both controllers have the level that the last of all calls wanted. They take every change, so its
/// calls are never an `Err`: what cannot be delivered is owed by them.
pub struct LevelLine {
    gsi: Gsi,
    up: AtomicBool,
    pic: Option<pic::LevelLine>,
    ioapic: ioapic::LevelLine,
}

impl LevelLine {
    pub(super) fn new(pic: &Pic, ioapic: &IoApic, gsi: Gsi) -> Result<Self, PcError> {
        Ok(Self {
            gsi,
            up: AtomicBool::new(false),
            pic: gsi.irq().map(|irq| pic.level_line(irq)).transpose()?,
            ioapic: ioapic.level_line(Pin(gsi.0))?,
        })
    }

    /// The GSI that it is soldered to.
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }

    /// No lock, for whoever is called may call back, and nothing is left to another thread, for a guest that lowers a line
    /// on one CPU while it still rises on another one must not see it up. Each thread goes on until what it has told is
    /// what was last wanted: then whoever tells something older sees that after it, and tells the right thing.
    fn drive(&self, mut up: bool) -> io::Result<()> {
        self.up.store(up, Ordering::SeqCst);
        loop {
            let told = match (&self.pic, up) {
                (Some(pic), true) => pic.trigger().and(self.ioapic.trigger()),
                (Some(pic), false) => pic.clear().and(self.ioapic.clear()),
                (None, true) => self.ioapic.trigger(),
                (None, false) => self.ioapic.clear(),
            };
            let wanted = self.up.load(Ordering::SeqCst);
            if wanted == up {
                return told;
            }
            up = wanted;
        }
    }
}

impl Interrupt for LevelLine {
    fn trigger(&self) -> io::Result<()> {
        self.drive(true)
    }
}

impl LevelInterrupt for LevelLine {
    fn clear(&self) -> io::Result<()> {
        self.drive(false)
    }
}

/// An edge line into a [`Pc`](super::Pc).
pub struct EdgeLine {
    gsi: Gsi,
    pic: Option<pic::EdgeLine>,
    ioapic: ioapic::EdgeLine,
}

impl EdgeLine {
    pub(super) fn new(pic: &Pic, ioapic: &IoApic, gsi: Gsi) -> Result<Self, PcError> {
        Ok(Self {
            gsi,
            pic: gsi.irq().map(|irq| pic.edge_line(irq)).transpose()?,
            ioapic: ioapic.edge_line(Pin(gsi.0))?,
        })
    }

    /// The GSI that it is soldered to.
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }
}

/// As with the level line, the controllers take every pulse and owe what cannot be delivered, so it is never an `Err`.
impl Interrupt for EdgeLine {
    fn trigger(&self) -> io::Result<()> {
        let pic = self.pic.as_ref().map_or(Ok(()), Interrupt::trigger);
        self.ioapic.trigger().and(pic)
    }
}

/// One pin of every local APIC, as a wire: INTR on LINT0, or the NMI sources of a board on LINT1.
///
/// ```
/// # use devisor::{
/// #     backends::irqchip::lapic::{ApicId, LocalApicParts, LocalApics, LocalApicsConfig},
/// #     interrupt::NoInterrupt,
/// #     time::ManualClock,
/// # };
/// use devisor::{
///     backends::irqchip::{CpuId, lapic::{CpuEvent, Lint}, pc::LintOfAll},
///     interrupt::{Interrupt, LevelInterrupt},
/// };
/// # use std::sync::Arc;
/// # let parts = LocalApicParts { id: ApicId(0), wake: Box::new(NoInterrupt), alarm: Box::new(()) };
/// # let clock = Arc::new(ManualClock::default());
/// # let apics = LocalApics::new(LocalApicsConfig::default(), clock, vec![parts])?;
/// let apic = apics.cpu(CpuId(0))?;
/// apic.write_msr(0x1b, 0)?; // IA32_APIC_BASE: disabled, so that LINT1 is NMI
///
/// let nmi = LintOfAll::new(&apics, Lint::One)?;
/// nmi.trigger()?;
/// assert_eq!(apic.next_event(), Some(CpuEvent::Nmi));
/// nmi.clear()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LintOfAll(Vec<LintLine>);

impl LintOfAll {
    /// The wire to `pin` of each of `apics`. It is down.
    ///
    /// # Errors
    /// None, as long as the set has the CPUs that it says it has.
    pub fn new(apics: &LocalApics, pin: Lint) -> Result<Self, PcError> {
        let cpus = (0..).take(apics.cpus());
        let lines = cpus
            .map(|cpu| apics.lint_line(CpuId(cpu), pin))
            .collect::<Result<_, _>>()?;
        Ok(Self(lines))
    }

    /// Tells all of them, also after one that has refused.
    fn each(&self, tell: impl Fn(&LintLine) -> io::Result<()>) -> io::Result<()> {
        let mut told = Ok(());
        for line in &self.0 {
            told = tell(line).and(told);
        }
        told
    }
}

/// An `Err` is of a CPU that refused to be woken. All pins have the level all the same.
impl Interrupt for LintOfAll {
    fn trigger(&self) -> io::Result<()> {
        self.each(Interrupt::trigger)
    }
}

impl LevelInterrupt for LintOfAll {
    fn clear(&self) -> io::Result<()> {
        self.each(LevelInterrupt::clear)
    }
}

impl fmt::Debug for LevelLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelLine")
            .field("gsi", &self.gsi)
            .field("up", &self.up.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EdgeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLine")
            .field("gsi", &self.gsi)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LintOfAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LintOfAll").field(&self.0).finish()
    }
}
