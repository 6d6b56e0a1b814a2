//! The 8254 interval timer of a PC (Intel, order number 231164), with system control port B (port 0x61), which gates its
//! counter 2 for the speaker.
//!
//! OUT of counter 0 is a line: IRQ 0 of the [`pic`](super::pic), and usually pin 2 of the [`ioapic`](super::ioapic). Time
//! is an injected [`Clock`]; an [`Alarm`] hears when [`Pit::expire`] is to be called.
//!
//! ```
//! use devisor::{
//!     backends::irqchip::{Vector, pic::{Irq, Pic}, pit::Pit},
//!     bus::BusDevice,
//!     interrupt::NoInterrupt,
//!     time::{Clock, ManualClock},
//! };
//! use std::{sync::Arc, time::Duration};
//!
//! let pic = Pic::new(NoInterrupt);
//! for (port, word) in [(0, 0x13), (1, 0x20), (1, 0x01)] {
//!     pic.master().write(port, &[word]);
//! }
//! let clock = Arc::new(ManualClock::default());
//! let pit = Pit::new(pic.level_line(Irq(0))?, Arc::clone(&clock), ());
//!
//! // What the guest does: counter 0, both bytes, mode 2, every 11932 ticks, which is 100 times a second.
//! let ports = pit.counters();
//! ports.write(3, &[0x34]);
//! ports.write(0, &[0x9c]);
//! ports.write(0, &[0x2e]);
//! assert_eq!(pic.acknowledge(), Vector(0x20), "OUT is high from the control word on");
//! pic.master().write(0, &[0x20]);
//!
//! // What an embedder does.
//! let deadline = pit.deadline().expect("it is running");
//! assert_eq!(deadline.as_millis(), 10);
//! clock.advance_to(deadline);
//! pit.expire();
//! assert!(pic.intr());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod counter;
mod describe;
mod faces;
mod model;
mod registers;
mod snapshot;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use self::model::{Model, host_ticks};
use crate::{
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
    time::{Alarm, AlarmOutput, Clock},
};

pub use counter::CounterState;
pub use describe::describe;
pub use faces::{CounterPorts, PortB};
pub use snapshot::{PitState, PitStateError};

/// An 8254 and port B. Clones are handles to the same timer, which lives as long as any of them or of its ports.
///
/// Counters count at 105/88 MHz (1.193182 MHz) of the clock, without drift: every period is counted from the first, and
/// not from when the embedder came round. If it comes late, OUT of counter 0 falls and rises once, however many periods
/// went by. Between them the line may stay up where OUT is low for one tick alone (modes 2, 4 and 5): it falls when it
/// is to rise again. So that a guest cannot keep the host busy, the alarm of a periodic counter is not set more often than
/// every 200 microseconds: shorter periods are coalesced, as by a CPU that does not get around to them.
///
/// Counters 0 and 1 have GATE high. Before its first control word a counter is in mode 0, without a count.
///
/// # Threads
/// Every method may be called from any thread, also from within the line, the clock and the alarm: none of them is called
/// while the registers are locked. The alarm is told one deadline at a time, in order.
#[derive(Clone)]
pub struct Pit {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    // What is plugged in.
    out0: LevelOutput<Box<dyn LevelInterrupt>>,
    clock: Box<dyn Clock>,
    alarm: AlarmOutput<Box<dyn Alarm>>,

    model: Mutex<Model>,
}

impl Pit {
    /// A timer that counts nothing yet. `out0` is the line of counter 0, and down; `alarm` is not set.
    pub fn new(out0: impl LevelInterrupt + 'static, clock: impl Clock + 'static, alarm: impl Alarm + 'static) -> Self {
        let now = host_ticks(clock.now());
        Self {
            shared: Arc::new(Shared {
                out0: LevelOutput::new(Box::new(out0)),
                clock: Box::new(clock),
                alarm: AlarmOutput::new(Box::new(alarm)),
                model: Mutex::new(Model::new(now)),
            }),
        }
    }

    /// Looks at the clock and moves the line if OUT of counter 0 has moved. Call it when the deadline that the alarm was told
    /// has passed; at any other time it does no harm.
    pub fn expire(&self) {
        self.shared.alarm.expired();
        self.shared.change(|_| ());
    }

    /// When [`expire`](Self::expire) needs to be called next, on the clock's scale: what the alarm was told.
    pub fn deadline(&self) -> Option<Duration> {
        lock(&self.shared.model).deadline()
    }

    /// The level of the speaker now: OUT of counter 2, if port B lets it through.
    pub fn speaker(&self) -> bool {
        self.shared.change(|model| model.speaker())
    }

    /// How often the line refused to be told its level: see [`LevelOutput::failures`]. What it refused is told again with
    /// the next access or expiry.
    pub fn output_failures(&self) -> u64 {
        self.shared.out0.failures()
    }

    /// A reset of the system: counters stop, and port B is zero.
    pub fn reset(&self) {
        self.shared.change(Model::reset);
    }
}

impl fmt::Debug for Pit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pit")
            .field("out0", &self.shared.out0)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Every access: lets the time pass, makes the change, derives the outputs, then tells them with nothing locked.
    fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let now = host_ticks(self.clock.now());
        let value = {
            let mut model = lock(&self.model);
            model.advance(now);
            let was = model.out0();
            let value = change(&mut model);
            model.rose |= !was && model.out0();
            value
        };
        // A rise that has gone by is a fall, a rise, and the level after it: three at most.
        for _ in 0..3 {
            let (up, settled) = {
                let mut model = lock(&self.model);
                let up = model.next_level(self.out0.is_up());
                self.out0.set(up);
                (up, !model.rose && up == model.out0())
            };
            if self.out0.settle().is_err() {
                // Told again after the next change, though OUT may be low by then: as a fall, if it was one that was
                // refused, and a rise.
                let mut model = lock(&self.model);
                model.rose |= up;
                self.out0.set(true);
                break;
            }
            if settled {
                break;
            }
        }
        self.alarm.settle(|| lock(&self.model).deadline());
        value
    }
}
