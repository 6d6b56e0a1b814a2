//! The interrupt wiring of a PC: which pin is soldered to which.
//!
//! [`Pc`] has an IOAPIC, the 8259 pair and the 8254 with port B, and wires them as a PC does. Each IRQ of the ISA bus goes
//! to both controllers, to the pin of the same number, but for IRQ 0, the timer's, which is pin 2 of the IOAPIC (to the
//! other, the second 8259 is wired). Pins from 16 on are the IOAPIC's alone. The wires of PCI ([`Pc::pci_wires`]) are active
//! low, all others active high. A global system interrupt ([`Gsi`]) is a pin
//! of the IOAPIC with whatever else is soldered to it, as ACPI counts them.
//!
//! It knows no hypervisor. Its two outputs are the messages of the IOAPIC and INTR of the 8259 pair. Where the local APICs
//! are devisor's too, [`Pc::with_local_apics`] connects them: messages to all, INTR to LINT0 of every CPU, their EOIs
//! back to the IOAPIC. Where they are somebody else's (in the kernel, with KVM's split irqchip), [`Pc::new`] takes the
//! two outputs, and whoever hears of an EOI calls [`Pc::eoi`].
//!
//! ```
//! use devisor::{
//!     backends::irqchip::{
//!         CpuId,
//!         lapic::{ApicId, LocalApicParts, LocalApics, LocalApicsConfig, Request, Vector},
//!         pc::{Gsi, Pc, PcConfig},
//!         pic::Irq,
//!     },
//!     bus::Bus,
//!     interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
//!     time::ManualClock,
//! };
//! use std::sync::Arc;
//!
//! let clock = Arc::new(ManualClock::default());
//! let parts = LocalApicParts { id: ApicId(0), wake: Box::new(NoInterrupt), alarm: Box::new(()) };
//! let apics = LocalApics::new(LocalApicsConfig::default(), clock.clone(), vec![parts])?;
//! let pc = Pc::with_local_apics(PcConfig::default(), &apics, clock, ())?;
//! let (mut memory, mut ports) = (Bus::new(), Bus::new());
//! pc.plug(&mut memory, &mut ports)?;
//!
//! // What devices get: IRQ 4 as a UART has it, and the wires of PCI.
//! let uart = pc.level_line(Irq(4))?;
//! let _intx = pc.pci_wires(Gsi(16))?; // INTA to INTD, for `RootBus::new`
//!
//! // A guest with 8259s: vectors from 0x20 on, and LINT0 as after a reset lets INTR through.
//! for (port, word) in [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01)] {
//!     ports.write(port, &[word])?;
//! }
//! let apic = apics.cpu(CpuId(0))?;
//! apic.write_msr(0x1b, 0)?; // IA32_APIC_BASE: disabled, so that LINT0 is INTR
//! uart.trigger()?;
//! assert_eq!(apic.acknowledge(), Some(Request::External));
//! assert_eq!(pc.pic().acknowledge(), Vector(0x24));
//! uart.clear()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod describe;
mod lines;

use std::{fmt, sync::Arc};

use super::{
    Vector,
    ioapic::{IoApic, IoApicConfig, IoApicError, IoApicState, IoApicStateError, Pin},
    lapic::{Lint, LocalApicError, LocalApicHook, LocalApics},
    pic::{ChipPorts, ElcrPorts, Irq, Pic, PicError, PicState, PicStateError},
    pit::{CounterPorts, Pit, PitState, PitStateError, PortB},
};
use crate::{
    backends::irqchip::CpuId,
    bus::{Bus, BusDevice, BusError},
    interrupt::{LevelInterrupt, MsiSink},
    time::{Alarm, Clock},
};

pub use describe::describe;
pub use lines::{EdgeLine, LevelLine, LintOfAll};

/// A global system interrupt as ACPI counts them: a pin of the IOAPIC, and what else is soldered to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gsi(pub u32);

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

/// The IRQ of the timer, counter 0 of the 8254.
pub const TIMER_IRQ: Irq = Irq(0);

/// Where the timer's IRQ is at the IOAPIC, as the interrupt source override of each PC's ACPI tables says.
pub const TIMER_GSI: Gsi = Gsi(2);

/// The IRQs of the ISA bus.
const ISA_IRQS: u32 = 16;

impl Gsi {
    /// Where an IRQ of the ISA bus is at the IOAPIC.
    pub fn of_irq(irq: Irq) -> Self {
        match irq {
            TIMER_IRQ => TIMER_GSI,
            irq => Self(irq.0.into()),
        }
    }

    /// The IRQ of the ISA bus that is soldered to the same wire, if one is.
    pub fn irq(self) -> Option<Irq> {
        match self {
            TIMER_GSI => Some(TIMER_IRQ),
            Self(gsi) => (1..ISA_IRQS).contains(&gsi).then_some(Irq(gsi as u8)),
        }
    }
}

/// What a [`Pc`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcConfig {
    /// The IOAPIC. It has at least the 16 pins of the ISA bus.
    pub ioapic: IoApicConfig,
    /// Where [`Pc::plug`] puts the registers of the IOAPIC.
    pub ioapic_address: u64,
}

impl Default for PcConfig {
    /// 24 pins at 0xfec00000.
    fn default() -> Self {
        Self {
            ioapic: IoApicConfig::default(),
            ioapic_address: 0xfec0_0000,
        }
    }
}

/// A [`Pc`] cannot be made, or has no such part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PcError {
    /// The IOAPIC has not even pins for the ISA bus.
    #[error("an IOAPIC of {0} pins: a PC needs 16 at least")]
    TooFewPins(u32),
    /// What the IOAPIC says.
    #[error(transparent)]
    IoApic(#[from] IoApicError),
    /// What the 8259 pair says.
    #[error(transparent)]
    Pic(#[from] PicError),
    /// What the local APICs say.
    #[error(transparent)]
    LocalApic(#[from] LocalApicError),
}

/// IOAPIC, 8259 pair and 8254 with the wires between them: see the [module](self) for them, and for an example.
///
/// # Threads
/// All methods can be called from any thread.
pub struct Pc {
    config: PcConfig,
    pic: Pic,
    ioapic: IoApic,
    pit: Pit,
    /// What the IOAPIC hears of the local APICs. They hold a handle of it, whose sink may hold one of the local APICs: dropping
    /// them with this board opens the circle.
    _hooks: Option<[LocalApicHook; 2]>,
}

impl Pc {
    /// The board as it is after a reset. `messages` takes those of the IOAPIC, `intr` is INTR of the 8259 pair and down.
    /// Time is `clock`, and `alarm` hears when [`Pit::expire`] is to be called.
    ///
    /// # Errors
    /// [`PcError::TooFewPins`] or [`PcError::IoApic`].
    pub fn new(
        config: PcConfig,
        messages: impl MsiSink + 'static,
        intr: impl LevelInterrupt + 'static,
        clock: impl Clock + 'static,
        alarm: impl Alarm + 'static,
    ) -> Result<Self, PcError> {
        if config.ioapic.pins < ISA_IRQS {
            return Err(PcError::TooFewPins(config.ioapic.pins));
        }
        let ioapic = IoApic::new(config.ioapic, messages)?;
        let pic = Pic::new(intr);
        let timer = LevelLine::new(&pic, &ioapic, TIMER_GSI)?;
        let pit = Pit::new(timer, clock, alarm);
        Ok(Self {
            config,
            pic,
            ioapic,
            pit,
            _hooks: None,
        })
    }

    /// The board before local APICs of devisor's: they get the messages, LINT0 of every CPU is INTR, and their EOIs reach
    /// the IOAPIC as long as the board is there, as does that one of them accepts what it did not accept before. The embedder answers [`Request::External`](super::lapic::Request) with
    /// [`Pic::acknowledge`].
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_local_apics(
        config: PcConfig,
        apics: &LocalApics,
        clock: impl Clock + 'static,
        alarm: impl Alarm + 'static,
    ) -> Result<Self, PcError> {
        let intr = LintOfAll::new(apics, Lint::Zero)?;
        let mut pc = Self::new(config, apics.clone(), intr, clock, alarm)?;
        let [eoi, retry] = [(); 2].map(|()| pc.ioapic.clone());
        pc._hooks = Some([
            apics.on_eoi(move |vector| eoi.eoi(vector)),
            apics.on_accepting(move || retry.retry()),
        ]);
        Ok(pc)
    }

    /// What this board was made with.
    pub fn config(&self) -> PcConfig {
        self.config
    }

    /// The 8259 pair: whoever plays the CPU acknowledges its requests.
    pub fn pic(&self) -> &Pic {
        &self.pic
    }

    /// The IOAPIC.
    pub fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// The 8254: its alarm's expiry is to be called.
    pub fn pit(&self) -> &Pit {
        &self.pit
    }

    /// A local APIC has broadcast an EOI, see [`IoApic::eoi`]. Not needed after [`with_local_apics`](Self::with_local_apics).
    pub fn eoi(&self, vector: Vector) {
        self.ioapic.eoi(vector);
    }

    /// A level line into an IRQ of the ISA bus, at both controllers. Several handles of one IRQ are a wired-OR, and dropping
    /// one lets go.
    ///
    /// # Errors
    /// [`PcError::Pic`]: there is no such IRQ.
    pub fn level_line(&self, irq: Irq) -> Result<LevelLine, PcError> {
        LevelLine::new(&self.pic, &self.ioapic, self.gsi_of(irq)?)
    }

    /// An edge line into an IRQ of the ISA bus, at both controllers: each trigger is a pulse.
    ///
    /// # Errors
    /// [`PcError::Pic`]: there is no such IRQ.
    pub fn edge_line(&self, irq: Irq) -> Result<EdgeLine, PcError> {
        EdgeLine::new(&self.pic, &self.ioapic, self.gsi_of(irq)?)
    }

    /// A level line into a GSI: the pin of the IOAPIC, and the IRQ that is soldered to it.
    ///
    /// # Errors
    /// [`PcError::IoApic`]: there is no such pin.
    pub fn gsi_level_line(&self, gsi: Gsi) -> Result<LevelLine, PcError> {
        LevelLine::new(&self.pic, &self.ioapic, gsi)
    }

    /// An edge line into a GSI.
    ///
    /// # Errors
    /// [`PcError::IoApic`]: there is no such pin.
    pub fn gsi_edge_line(&self, gsi: Gsi) -> Result<EdgeLine, PcError> {
        EdgeLine::new(&self.pic, &self.ioapic, gsi)
    }

    /// Four wires for a PCI root bus, at the GSIs from `first` on: GSI 16, as a rule, or what the guest's tables say.
    ///
    /// They are active low, as on every PC: their pins of the IOAPIC [idle high](IoApic::pull_up), and to the 8259s they are as
    /// other lines. So tell the guest: in an MP table that they conform to the bus, or level and active low; in a `_PRT` the
    /// GSI itself, which means just that. Where tables are given that say active high, as those of a `_PRT` with link devices
    /// may, four [level lines](Self::gsi_level_line) are the wires instead.
    ///
    /// # Errors
    /// [`PcError::IoApic`]: there are not so many pins.
    pub fn pci_wires(&self, first: Gsi) -> Result<[Arc<dyn LevelInterrupt>; 4], PcError> {
        let wire = |pin| -> Result<Arc<dyn LevelInterrupt>, PcError> {
            // Past the last there is no pin either.
            Ok(Arc::new(self.gsi_level_line(Gsi(first.0.saturating_add(pin)))?))
        };
        let wires = [wire(0)?, wire(1)?, wire(2)?, wire(3)?];
        for pin in first.0..first.0 + 4 {
            self.ioapic.pull_up(Pin(pin))?;
        }
        Ok(wires)
    }

    /// IRQ 2 is no wire of the ISA bus, though GSI 2 is one.
    fn gsi_of(&self, irq: Irq) -> Result<Gsi, PcError> {
        match Gsi::of_irq(irq) {
            gsi if gsi.irq() == Some(irq) => Ok(gsi),
            _ => Err(PicError::NoSuchIrq(irq).into()),
        }
    }

    /// Places all registers where a PC has them: the IOAPIC in `memory`; the 8259s at ports 0x20, 0xa0 and 0x4d0, the 8254 at
    /// 0x40 and port B at 0x61. The pages of local APICs are not here: each CPU sees its own.
    ///
    /// # Errors
    /// Something is there already; what was placed before stays.
    pub fn plug(&self, memory: &mut Bus, ports: &mut Bus) -> Result<(), BusError> {
        memory.insert(self.config.ioapic_address, IoApic::SIZE, shared(self.ioapic.clone()))?;
        ports.insert(0x20, ChipPorts::SIZE, shared(self.pic.master()))?;
        ports.insert(0xa0, ChipPorts::SIZE, shared(self.pic.slave()))?;
        ports.insert(0x4d0, ElcrPorts::SIZE, shared(self.pic.elcr()))?;
        ports.insert(0x40, CounterPorts::SIZE, shared(self.pit.counters()))?;
        ports.insert(0x61, PortB::SIZE, shared(self.pit.port_b()))
    }

    /// A reset of the system: registers go to their reset values, lines stay as their devices hold them.
    pub fn reset(&self) {
        self.pit.reset();
        self.pic.reset();
        self.ioapic.reset();
    }

    /// The state of all three. Stop the vCPUs and the devices first, so that it is one moment's, and save the local APICs
    /// after it: if the timer's time has come, it interrupts them now.
    pub fn save(&self) -> PcState {
        // The timer first: it interrupts the controllers.
        let pit = self.pit.save();
        PcState {
            pic: self.pic.save(),
            ioapic: self.ioapic.save(),
            pit,
        }
    }

    /// Takes over a saved state, all or nothing. Restore the local APICs first, where the messages go.
    ///
    /// # Errors
    /// A part refuses its state. Nothing was changed.
    pub fn restore(&self, state: &PcState) -> Result<(), PcStateError> {
        let PcState { pic, ioapic, pit } = state;
        pic.check()?;
        self.ioapic.check(ioapic)?;
        pit.check()?;
        // The controllers before the timer that interrupts them.
        self.pic.restore(pic)?;
        self.ioapic.restore(ioapic)?;
        self.pit.restore(pit)?;
        Ok(())
    }
}

fn shared(device: impl BusDevice + 'static) -> Arc<dyn BusDevice> {
    Arc::new(device)
}

impl fmt::Debug for Pc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pc")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The state of a [`Pc`], as plain data. That of local APICs is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcState {
    /// The 8259 pair.
    pub pic: PicState,
    /// The IOAPIC.
    pub ioapic: IoApicState,
    /// The 8254 and port B.
    pub pit: PitState,
}

/// A [`PcState`] is not one that this board can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PcStateError {
    /// The 8259 pair's part.
    #[error(transparent)]
    Pic(#[from] PicStateError),
    /// The IOAPIC's part.
    #[error(transparent)]
    IoApic(#[from] IoApicStateError),
    /// The 8254's part.
    #[error(transparent)]
    Pit(#[from] PitStateError),
}
