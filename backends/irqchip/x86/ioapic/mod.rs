//! Intel's I/O APIC: the 82093AA (order number 290566) with the EOI register of later chip sets, version 0x20.
//!
//! An [`IoApic`] turns pins into messages and gives them to an [`MsiSink`]. That is its only output, so that the same
//! model stands before a software local APIC, `KVM_SIGNAL_MSI` or an interrupt remapper. Devices drive its pins
//! ([`IoApic::level_line`], [`IoApic::edge_line`]); its registers are its [`BusDevice`](crate::bus::BusDevice) face, at
//! any address. Whoever plays the local APICs calls [`IoApic::eoi`] when one of them broadcasts an EOI.
//!
//! ```
//! use devisor::{
//!     backends::irqchip::{Vector, ioapic::{IoApic, IoApicConfig, Pin}},
//!     bus::BusDevice,
//!     interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, RequesterId},
//! };
//! use std::{io, sync::{Arc, Mutex}};
//!
//! // What an embedder has: somebody who takes messages.
//! #[derive(Default)]
//! struct LocalApics(Mutex<Vec<MsiMessage>>);
//! impl MsiSink for LocalApics {
//!     fn send(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<()> {
//!         Ok(self.0.lock().unwrap().push(message))
//!     }
//! }
//! let apics = Arc::new(LocalApics::default());
//! let ioapic = IoApic::new(IoApicConfig::default(), Arc::clone(&apics))?;
//!
//! // What the guest does: pin 4 is level-sensitive, vector 0x31, for the CPU with APIC ID 2.
//! for (index, value) in [(0x10 + 2 * 4 + 1, 2_u32 << 24), (0x10 + 2 * 4, 1 << 15 | 0x31)] {
//!     ioapic.write(0x00, &[index]); // IOREGSEL
//!     ioapic.write(0x10, &value.to_le_bytes()); // IOWIN
//! }
//!
//! // What a device does: the line stays up, and the message comes again after the EOI.
//! let line = ioapic.level_line(Pin(4))?;
//! line.trigger()?;
//! let message = MsiMessage { address: 0xfee0_2000, data: 0xc031 };
//! assert_eq!(*apics.0.lock().unwrap(), [message]);
//! ioapic.eoi(Vector(0x31));
//! assert_eq!(*apics.0.lock().unwrap(), [message, message]);
//! line.clear()?;
//! ioapic.eoi(Vector(0x31));
//! assert_eq!(apics.0.lock().unwrap().len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod describe;
mod faces;
mod lines;
mod model;
mod registers;
mod snapshot;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use self::model::Model;
use super::Vector;
use crate::{
    backends::irqchip::finished::FinishedHooks,
    interrupt::{Acceptance, MsiMessage, MsiSink, RequesterId},
    sync::lock,
};

pub use crate::backends::irqchip::{
    finished::FinishedHook,
    lines::{EdgeLine, LevelLine},
};
pub use describe::describe;
pub use snapshot::{IoApicState, IoApicStateError, PinState};

/// A pin of an IOAPIC, counted from 0. Which global system interrupt it is, is the platform's matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin(pub u32);

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pin {}", self.0)
    }
}

/// What an [`IoApic`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoApicConfig {
    /// Pins: 1 to [`MAX_PINS`](Self::MAX_PINS). Eight bits of IOREGSEL reach the entries of 120; for more than those,
    /// IOREGSEL has a ninth bit.
    pub pins: u32,
    /// Who the sink is told sends the messages: an interrupt remapper knows an IOAPIC by it.
    pub requester: RequesterId,
}

impl IoApicConfig {
    /// The most pins there can be (82093AA, section 3.2.2).
    pub const MAX_PINS: u32 = 240;
}

impl Default for IoApicConfig {
    /// 24 pins, as the 82093AA has.
    fn default() -> Self {
        Self {
            pins: 24,
            requester: RequesterId::default(),
        }
    }
}

/// An [`IoApic`] cannot be made, or has no such pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoApicError {
    /// [`IoApicConfig::pins`].
    #[error("{0} pins: an IOAPIC has 1 to {max}", max = IoApicConfig::MAX_PINS)]
    Pins(u32),
    /// There is no such pin.
    #[error("{pin}: this IOAPIC has pins 0 to {}", pins - 1)]
    NoSuchPin {
        /// The pin that was asked for.
        pin: Pin,
        /// How many there are.
        pins: u32,
    },
}

/// An IOAPIC. Clones are handles to the same controller, which lives as long as any of them or of its lines.
///
/// # Messages
/// A message is in the format of the Intel SDM, volume 3, section 11.11. The address is 0xfee00000 with the destination
/// in bits 19 to 12, the redirection hint in bit 3 (set for lowest priority) and the destination mode in bit 2. The data
/// is the vector in bits 7 to 0 and the delivery mode in bits 10 to 8; of a level-sensitive pin also bits 15 (level) and
/// 14 (assert). Bits 55 to 48 of an entry go to bits 11 to 4 of the address, as the extended destination ID of later
/// chip sets does, so that entries in the remappable format of VT-d arrive at a remapper as they should. An entry with
/// a reserved delivery mode sends nothing.
///
/// A message is [offered](MsiSink::offer), and Remote IRR set if a local APIC has accepted it (82093AA, section 3.2.4). One that
/// nobody accepts is gone if it is an edge, as a message of PCI is. A level is still up: it is owed, as is any message that the
/// sink refuses, which the guest sees as Delivery Status. It is tried again, once each time,
/// with whatever happens next to this IOAPIC: a change of any line, a register write, an EOI, or a call of
/// [`retry`](Self::retry). It then goes where the entry says by then. If the pin is masked meanwhile, an edge waits for
/// the unmask; a level that has gone is owed no more. [`refusals`](Self::refusals) counts what was refused. Who knows that the
/// sink takes messages again, or that a local APIC accepts what it did not, calls `retry`, or else what is owed waits for the
/// next event. [`Pc`](super::pc::Pc) and the split irqchip of `backends::kvm` do so.
///
/// # Threads
/// All methods can be called from any thread. The sink is called on the thread that caused the message, with no lock
/// held, so it may call back. A sink that holds a handle makes a cycle that keeps both alive: hold a
/// [`Weak`](std::sync::Weak) of what owns the handle there.
#[derive(Clone)]
pub struct IoApic {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    config: IoApicConfig,
    sink: Box<dyn MsiSink>,
    model: Mutex<Model>,
    finished: Arc<FinishedHooks>,
    refusals: AtomicU64,
    restores: AtomicU64,
    /// Whether a message was owed when something last happened. Changes under the model's lock.
    owes: AtomicBool,
}

impl IoApic {
    /// An IOAPIC as it is after a reset: all lines down, all entries masked.
    ///
    /// # Errors
    /// [`IoApicError::Pins`].
    pub fn new(config: IoApicConfig, sink: impl MsiSink + 'static) -> Result<Self, IoApicError> {
        if !(1..=IoApicConfig::MAX_PINS).contains(&config.pins) {
            return Err(IoApicError::Pins(config.pins));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                sink: Box::new(sink),
                model: Mutex::new(Model::new(config)),
                finished: Arc::default(),
                refusals: AtomicU64::new(0),
                restores: AtomicU64::new(0),
                owes: AtomicBool::new(false),
            }),
        })
    }

    /// What this IOAPIC was made with.
    pub fn config(&self) -> IoApicConfig {
        self.shared.config
    }

    /// A local APIC has broadcast an EOI: level-sensitive pins with this vector are out of service, and those whose line
    /// is still up send their message again. EOIs of other vectors do nothing, so all may be passed on.
    pub fn eoi(&self, vector: Vector) {
        self.shared.eoi(vector);
    }

    /// The message that `pin` would send as its entry is now, masked or not, or `None` if it has a reserved delivery mode.
    /// For a sink that keeps routes in step with the redirection table; it may ask from within a message.
    ///
    /// # Errors
    /// [`IoApicError::NoSuchPin`].
    pub fn message(&self, pin: Pin) -> Result<Option<MsiMessage>, IoApicError> {
        let pin = self.shared.pin(pin)?;
        Ok(lock(&self.shared.model).message(pin))
    }

    /// Tries the messages again that the sink has refused or that nobody has accepted: each once, and those too that are under
    /// way now. Not from within the sink, which would be asked for ever.
    pub fn retry(&self) {
        self.shared.with(|model| model.retries = model.retries.wrapping_add(1));
    }

    /// Whether a message is owed, so that [`retry`](Self::retry) would try one. Costs no lock.
    pub fn owes(&self) -> bool {
        self.shared.owes.load(Ordering::Relaxed)
    }

    /// How often the sink has refused a message.
    pub fn refusals(&self) -> u64 {
        self.shared.refusals.load(Ordering::Relaxed)
    }

    /// How often a state was put back: pins can be in service since then whose message was sent by another IOAPIC, in another
    /// process. Whoever keeps something for each message that was sent looks at all pins again.
    pub fn restores(&self) -> u64 {
        self.shared.restores.load(Ordering::Acquire)
    }

    /// A reset of the system: registers go to their reset values. Lines stay as their devices hold them.
    pub fn reset(&self) {
        self.shared.with(Model::reset);
    }
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoApic")
            .field("config", &self.shared.config)
            .field("refusals", &self.refusals())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Runs `change` under the lock, then sends what came of it, each message once. One that does not arrive is owed.
    fn with(&self, change: impl FnOnce(&mut Model)) {
        let mut model = lock(&self.model);
        change(&mut model);
        let mut candidates = model.due;
        while let Some((ticket, message)) = model.next_message(&mut candidates) {
            drop(model);
            let sent = self.sink.offer(self.config.requester, message);
            let arrived = matches!(sent, Ok(Acceptance::Accepted));
            if arrived && candidates.is_empty() && !self.owes.load(Ordering::Relaxed) {
                return;
            }
            model = lock(&self.model);
            match sent {
                Ok(Acceptance::Accepted) => (),
                Ok(Acceptance::Dropped) => model.dropped(ticket, &mut candidates),
                Err(_) => {
                    self.refusals.fetch_add(1, Ordering::Relaxed);
                    model.refused(ticket, &mut candidates);
                }
            }
        }
        self.owes.store(!model.due.is_empty(), Ordering::Relaxed);
    }

    /// Ends the interrupts of a vector, tells who wants to hear of it, then sends again what is still up.
    fn eoi(&self, vector: Vector) {
        if self.finished.is_empty() {
            return self.with(|model| model.eoi(vector.0));
        }
        let mut ended = {
            let mut model = lock(&self.model);
            model.eoi(vector.0);
            model.levels_with(vector.0)
        };
        while let Some(pin) = ended.pop() {
            self.finished.call(pin);
        }
        self.with(|_| ());
    }

    fn pin(&self, pin: Pin) -> Result<u32, IoApicError> {
        let pins = self.config.pins;
        if pin.0 < pins {
            Ok(pin.0)
        } else {
            Err(IoApicError::NoSuchPin { pin, pins })
        }
    }
}
