//! The wires of the board: into both controllers, and into the pins of local APICs.

use std::{fmt, io};

use super::{CpuId, Gsi, IoApic, Lint, LocalApics, PcError, Pic, Pin};
use crate::{
    backends::irqchip::{ioapic, lapic::LintLine, pic},
    interrupt::{Interrupt, LevelInterrupt, LevelOutput},
};

/// A device's level line into a [`Pc`](super::Pc). Dropping it lets go of the wire.
///
/// Both controllers take every change, so its calls are never an `Err`: what cannot be delivered is owed by them.
pub struct LevelLine {
    gsi: Gsi,
    /// Callers of several threads leave both controllers with the same level.
    wire: LevelOutput<Wire>,
}

impl LevelLine {
    pub(super) fn new(pic: &Pic, ioapic: &IoApic, gsi: Gsi) -> Result<Self, PcError> {
        let wire = LevelOutput::new(Wire {
            pic: gsi.irq().map(|irq| pic.level_line(irq)).transpose()?,
            ioapic: ioapic.level_line(Pin(gsi.0))?,
        });
        Ok(Self { gsi, wire })
    }

    /// The GSI that it is soldered to.
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }
}

impl Interrupt for LevelLine {
    fn trigger(&self) -> io::Result<()> {
        self.wire.set(true);
        self.wire.settle()
    }
}

impl LevelInterrupt for LevelLine {
    fn clear(&self) -> io::Result<()> {
        self.wire.set(false);
        self.wire.settle()
    }
}

struct Wire {
    pic: Option<pic::LevelLine>,
    ioapic: ioapic::LevelLine,
}

impl Interrupt for Wire {
    fn trigger(&self) -> io::Result<()> {
        let pic = self.pic.as_ref().map_or(Ok(()), Interrupt::trigger);
        self.ioapic.trigger().and(pic)
    }
}

impl LevelInterrupt for Wire {
    fn clear(&self) -> io::Result<()> {
        let pic = self.pic.as_ref().map_or(Ok(()), LevelInterrupt::clear);
        self.ioapic.clear().and(pic)
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

/// An `Err` says that INTR or the sink of the messages refused. The controllers owe the interrupt all the same, and a
/// further trigger makes it no second one.
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
}

/// An `Err` is of a CPU that refused to be woken. All pins have the level all the same.
impl Interrupt for LintOfAll {
    fn trigger(&self) -> io::Result<()> {
        self.0.iter().fold(Ok(()), |told, line| line.trigger().and(told))
    }
}

impl LevelInterrupt for LintOfAll {
    fn clear(&self) -> io::Result<()> {
        self.0.iter().fold(Ok(()), |told, line| line.clear().and(told))
    }
}

impl fmt::Debug for LevelLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelLine")
            .field("gsi", &self.gsi)
            .field("up", &self.wire.is_up())
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
