//! The pair of 8259A interrupt controllers of a PC (Intel, order number 231468), with the ELCR of the PIIX4 (order number
//! 290562).
//!
//! Devices drive IRQs ([`Pic::level_line`], [`Pic::edge_line`]). The guest sees three pairs of ports ([`Pic::master`],
//! [`Pic::slave`], [`Pic::elcr`]). The output is INTR; whoever plays the CPU (or the local APIC, for LINT0 and ExtINT)
//! answers it with [`Pic::acknowledge`], which gives the vector.
//!
//! ```
//! use devisor::{
//!     backends::irqchip::{Vector, pic::{Irq, Pic}},
//!     bus::BusDevice,
//!     interrupt::{Interrupt, LevelInterrupt, level_from_fn},
//! };
//! use std::sync::{Arc, atomic::{AtomicBool, Ordering::SeqCst}};
//!
//! // What an embedder hooks to its vCPU.
//! let intr = Arc::new(AtomicBool::new(false));
//! let pin = Arc::clone(&intr);
//! let pic = Pic::new(level_from_fn(move |up| Ok(pin.store(up, SeqCst))));
//!
//! // What the guest does: vectors from 0x20 and 0x28 on.
//! for (ports, base) in [(pic.master(), 0x20), (pic.slave(), 0x28)] {
//!     ports.write(0, &[0x11]); // ICW1
//!     for word in [base, 0x04, 0x01] {
//!         ports.write(1, &[word]); // ICW2 to ICW4
//!     }
//! }
//!
//! // What a device does, and how the CPU takes it.
//! let line = pic.edge_line(Irq(14))?;
//! line.trigger()?;
//! assert!(intr.load(SeqCst));
//! assert_eq!(pic.acknowledge(), Vector(0x2e));
//! assert!(!intr.load(SeqCst));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chip;
mod describe;
mod faces;
mod lines;
mod model;
mod registers;
mod snapshot;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use self::{model::Model, registers::CASCADE};
use super::Vector;
use crate::{
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
};

pub use crate::backends::irqchip::lines::{EdgeLine, LevelLine};
pub use chip::InitStep;
pub use describe::describe;
pub use faces::{ChipPorts, ElcrPorts};
pub use snapshot::{ChipState, PicState, PicStateError};

/// An interrupt request of the ISA bus: 0 to 7 are inputs of the master, 8 to 15 of the slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Irq(pub u8);

impl Irq {
    fn check(self) -> Result<u8, PicError> {
        if self.0 < 16 && self.0 != CASCADE {
            Ok(self.0)
        } else {
            Err(PicError::NoSuchIrq(self))
        }
    }
}

impl fmt::Display for Irq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IRQ {}", self.0)
    }
}

/// A [`Pic`] has no such part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PicError {
    /// There is no such input.
    #[error("{0}: there are IRQs 0 to 15, without IRQ 2, to which the slave is wired")]
    NoSuchIrq(Irq),
}

/// A pair of 8259As. Clones are handles to the same pair, which lives as long as any of them, of its lines or its ports.
///
/// Both chips do what the data sheet says in 8086 mode: fully nested, automatic EOI, both kinds of rotation, special mask,
/// special fully nested, and polled. An edge stays latched until it is acknowledged, also if its line falls before that;
/// a level that has gone by the time of the acknowledge, or a request masked by then, is answered with the
/// vector of IRQ 7 or 15 and is not in service. ICW3 is not looked at, for the wiring is fixed; a master in single mode
/// answers for its input 2 itself. Before its initialization is complete, a chip signals nothing.
///
/// # Threads
/// All methods can be called from any thread. INTR hears transitions only, in order, from the thread whose line or access
/// caused it, and never while a lock is held: it may call back. If it refuses, it is told again with whatever happens next
/// to the pair: a line, an access of the guest, or an acknowledge. Until then the request is there, and
/// [`intr`](Pic::intr) says so; [`output_failures`](Pic::output_failures) counts.
#[derive(Clone)]
pub struct Pic {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    intr: LevelOutput<Box<dyn LevelInterrupt>>,
    model: Mutex<Model>,
}

impl Pic {
    /// A pair that was not initialized yet, with all lines down. `intr` is down.
    pub fn new(intr: impl LevelInterrupt + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                intr: LevelOutput::new(Box::new(intr)),
                model: Mutex::new(Model::new()),
            }),
        }
    }

    /// Whether there is a request for the CPU.
    pub fn intr(&self) -> bool {
        self.shared.intr.is_up()
    }

    /// How often INTR refused to be told its level: see [`LevelOutput::failures`].
    pub fn output_failures(&self) -> u64 {
        self.shared.intr.failures()
    }

    /// The CPU's interrupt acknowledge cycle: takes the most urgent request and gives its vector. If there is none any
    /// more, that is the spurious one.
    pub fn acknowledge(&self) -> Vector {
        Vector(self.shared.with(Model::acknowledge))
    }

    /// A reset of the system: the guest has to initialize the chips again. Lines stay as their devices hold them.
    pub fn reset(&self) {
        self.shared.with(Model::reset);
    }
}

impl fmt::Debug for Pic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pic")
            .field("intr", &self.shared.intr)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Runs `change` under the lock, then tells INTR what came of it. A refusal is counted there, and told again next time.
    fn with<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let value = {
            let mut model = lock(&self.model);
            let value = change(&mut model);
            self.intr.set(model.update());
            value
        };
        let _ = self.intr.settle();
        value
    }
}
