//! InterruptStatus, InterruptACK and the line behind them (virtio 1.2, section 4.2.2).

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::registers::{CONFIGURATION_CHANGE, USED_BUFFER};
use crate::{
    interrupt::{Interrupt, LevelInterrupt, LevelOutput, NoInterrupt},
    virtio::{
        QueueIndex,
        queue::VirtioInterrupt,
        transport::saved::{MmioInterruptState, RestoreError},
    },
};

/// The line of a virtio-mmio device: as the platform has declared it to the guest.
#[derive(Clone)]
pub enum Line {
    /// Edge-triggered: raised for each event, and again if the driver acknowledges and an event is left.
    Edge(Arc<dyn Interrupt>),
    /// Level-triggered: up as long as InterruptStatus is not zero.
    Level(Arc<dyn LevelInterrupt>),
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Edge(_) => "Edge",
            Self::Level(_) => "Level",
        })
    }
}

/// The two bits of InterruptStatus: the causes of the line.
const EVENTS: u64 = (USED_BUFFER | CONFIGURATION_CHANGE) as u64;
/// Where the notes start that are kept with the causes.
const NOTES: u32 = LevelOutput::<NoInterrupt>::NOTES.trailing_zeros();
/// For each event, that the driver has read its bit as set and not acknowledged it yet...
const SEEN: u32 = NOTES;
/// ...and that the event has happened again since the last read: an acknowledgement is not for that one.
const AGAIN: u32 = NOTES + 2;
/// An edge that was to follow an acknowledgement was refused.
const OWED: u64 = 1 << (NOTES + 5);
/// The driver is ready: events are for it.
const READY: u64 = 1 << (NOTES + 4);

/// InterruptStatus, in one word with what the driver knows of it, and the line that follows it.
///
/// A driver that handles, then acknowledges, would lose an event that comes between its read of InterruptStatus and its
/// InterruptACK: the bit that it acknowledges is set for an event that it has not seen. Such a bit stays, as the
/// specification asks ("each event from the moment it takes place until the driver acknowledges"), and interrupts again.
pub(super) struct MmioInterrupt {
    status: LevelOutput<Arc<dyn LevelInterrupt>>,
    /// In place of the level, which leads nowhere then.
    edge: Option<Arc<dyn Interrupt>>,
    edge_failures: AtomicU64,
}

impl MmioInterruptState {
    /// `ready`: the driver has set DRIVER_OK. Before that, nothing can be pending.
    pub(super) fn check(&self, ready: bool) -> Result<(), RestoreError> {
        let &Self {
            status,
            seen,
            again,
            owed,
        } = self;
        let subset = |register, value: u32, of: u32| match value & !of {
            0 => Ok(()),
            _ => Err(RestoreError::Register {
                register,
                value: value.into(),
                possible: of.into(),
            }),
        };
        subset("InterruptStatus", status, if ready { EVENTS as u32 } else { 0 })?;
        subset("seen bits of InterruptStatus", seen, status)?;
        subset("repeated bits of InterruptStatus", again, seen)?;
        subset("an edge owed", owed.into(), (status != 0).into())
    }
}

impl MmioInterrupt {
    pub(super) fn new(line: Line) -> Self {
        let (level, edge) = match line {
            Line::Level(level) => (level, None),
            Line::Edge(edge) => (Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>, Some(edge)),
        };
        Self {
            status: LevelOutput::new(level),
            edge,
            edge_failures: AtomicU64::new(0),
        }
    }

    /// The driver reads InterruptStatus.
    pub(super) fn read_status(&self) -> u32 {
        let bits = self
            .status
            .update(|bits| (bits | (bits & EVENTS) << SEEN) & !(EVENTS << AGAIN));
        (bits & EVENTS) as u32
    }

    /// The driver writes InterruptACK.
    pub(super) fn acknowledge(&self, value: u32) {
        let written = u64::from(value) & EVENTS;
        self.status.update(|bits| {
            let kept = written & (bits >> AGAIN);
            bits & !(written & !kept) & !(written << SEEN) & !(written << AGAIN) & !OWED
        });
        // Of an event, the queue would know that it was not told. This edge is ours alone to remember.
        if self.status.is_up() && self.signal().is_err() {
            self.status.update(|bits| bits | OWED);
        }
        let _ = self.status.settle();
    }

    pub(super) fn failures(&self) -> u64 {
        self.status.failures() + self.edge_failures.load(Ordering::Relaxed)
    }

    pub(super) fn save(&self) -> MmioInterruptState {
        let bits = self.status.bits();
        let field = |shift| (bits >> shift & EVENTS) as u32;
        MmioInterruptState {
            status: field(0),
            seen: field(SEEN),
            again: field(AGAIN),
            owed: self.owes(bits),
        }
    }

    /// A level follows the status; an edge is in the interrupt controller's state, not in ours.
    pub(super) fn restore(&self, state: &MmioInterruptState) {
        let &MmioInterruptState {
            status,
            seen,
            again,
            owed,
        } = state;
        let events = u64::from(status) | u64::from(seen) << SEEN | u64::from(again) << AGAIN;
        let owed = if owed { OWED } else { 0 };
        self.status.update(|bits| bits & READY | events | owed);
        let _ = self.status.settle();
    }

    fn raise(&self, event: u32) -> io::Result<()> {
        let event = u64::from(event);
        let before = self.status.update(|bits| match bits & READY {
            0 => bits,
            _ => bits | event | (event & (bits >> SEEN)) << AGAIN,
        });
        match before & READY {
            0 => Ok(()),
            _ => self.signal(),
        }
    }

    /// Whether an edge is owed for an event that is still pending.
    fn owes(&self, bits: u64) -> bool {
        self.edge.is_some() && bits & OWED != 0 && bits & EVENTS != 0
    }

    fn signal(&self) -> io::Result<()> {
        let Some(edge) = &self.edge else {
            return self.status.settle();
        };
        let result = edge.trigger();
        if result.is_err() {
            self.edge_failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

impl VirtioInterrupt for MmioInterrupt {
    fn used(&self, _queues: &[QueueIndex]) -> io::Result<()> {
        self.raise(USED_BUFFER)
    }

    fn config_changed(&self) -> io::Result<()> {
        self.raise(CONFIGURATION_CHANGE)
    }

    fn ready(&self) {
        self.status.update(|bits| bits | READY);
    }

    fn reset(&self) {
        self.status.update(|_| 0);
    }

    fn settle(&self) {
        // A refusal is counted, and told again by the next call.
        let _ = self.status.settle();
        if self.owes(self.status.bits()) && self.owes(self.status.update(|bits| bits & !OWED)) && self.signal().is_err()
        {
            self.status.update(|bits| bits | OWED);
        }
    }
}

impl fmt::Debug for MmioInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = if self.edge.is_some() { "edge" } else { "level" };
        f.debug_struct("MmioInterrupt")
            .field("line", &line)
            .field("state", &self.save())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::interrupt::level_from_fn;

    #[test]
    fn an_event_that_comes_after_the_reset_is_dropped() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        let line = level_from_fn(move |up| {
            log.lock().unwrap().push(up);
            Ok(())
        });
        let interrupt = MmioInterrupt::new(Line::Level(Arc::new(line)));
        interrupt.ready();
        interrupt.used(&[QueueIndex(0)]).unwrap();
        interrupt.reset();
        interrupt.settle();
        // Decided on while the driver was there, by a thread that has come no further until now.
        interrupt.config_changed().unwrap();
        assert_eq!(interrupt.read_status(), 0);
        assert_eq!(
            *heard.lock().unwrap(),
            [true, false],
            "nobody would ever acknowledge it"
        );
        interrupt.ready();
        interrupt.config_changed().unwrap();
        assert_eq!(interrupt.read_status(), CONFIGURATION_CHANGE);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! A driver that handles before it acknowledges misses nothing, on either kind of line.
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{
        sync::{Arc, atomic::AtomicU64},
        thread,
    };
    use std::sync::{Arc as StdArc, atomic::Ordering::SeqCst};

    use super::*;
    use crate::interrupt::{from_fn, level_from_fn};

    /// What the interrupt controller knows: for an edge, that one is latched; for a level, that it is up.
    type Pin = Arc<AtomicU64>;

    struct Guest {
        pin: Pin,
        edge: bool,
        interrupt: StdArc<MmioInterrupt>,
        used_idx: Arc<AtomicU64>,
        seen: u64,
    }

    impl Guest {
        /// Takes at most `rounds` interrupts. Whether none is left.
        fn take(&mut self, rounds: u32) -> bool {
            for _ in 0..rounds {
                let pending = match self.edge {
                    true => self.pin.swap(0, SeqCst),
                    false => self.pin.load(SeqCst),
                };
                if pending == 0 {
                    return true;
                }
                let status = self.interrupt.read_status();
                if status & USED_BUFFER != 0 {
                    self.seen = self.used_idx.load(SeqCst);
                }
                self.interrupt.acknowledge(status);
            }
            false
        }
    }

    fn handled_then_acknowledged(edge: bool) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let pin: Pin = Arc::new(AtomicU64::new(0));
            let wire = pin.clone();
            // Swapped, not stored: in loom, a swap may overtake a store that it should have read.
            let set = move |up: u64| {
                wire.swap(up, SeqCst);
                Ok(())
            };
            let line = match edge {
                true => Line::Edge(StdArc::new(from_fn(move || set(1)))),
                false => Line::Level(StdArc::new(level_from_fn(move |up| set(up.into())))),
            };
            let interrupt = StdArc::new(MmioInterrupt::new(line));
            interrupt.ready();
            let used_idx = Arc::new(AtomicU64::new(0));

            let device = {
                let (interrupt, used_idx) = (interrupt.clone(), used_idx.clone());
                thread::spawn(move || {
                    for index in 1..=2 {
                        used_idx.store(index, SeqCst);
                        interrupt.used(&[QueueIndex(0)]).unwrap();
                    }
                })
            };
            let mut guest = Guest {
                pin,
                edge,
                interrupt,
                used_idx,
                seen: 0,
            };
            guest.take(2);
            device.join().unwrap();
            assert!(guest.take(4), "an interrupt storm");
            assert_eq!(guest.seen, 2, "a used buffer was not handled");
            assert_eq!(guest.interrupt.read_status(), 0);
        });
    }

    #[test]
    fn loom_an_edge_strands_no_event_between_read_and_acknowledge() {
        handled_then_acknowledged(true);
    }

    #[test]
    fn loom_a_level_strands_no_event_between_read_and_acknowledge() {
        handled_then_acknowledged(false);
    }
}
