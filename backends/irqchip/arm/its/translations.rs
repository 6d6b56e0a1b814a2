//! What an ITS remembers of its tables, so that a message needs neither a lock nor guest memory; and how a message is
//! delivered while somebody moves its event.
//!
//! A change of any table forgets everything, by a generation that all that is remembered carries. It is a small part of a
//! guest's time: interrupts are mapped and moved rarely, and sent often. Senders only read, each a cache line of its own
//! event, and never wait for each other.
//!
//! There is one writer at a time: who holds the lock of the [`Model`](super::model::Model).

use super::super::gic::lpis::Lpis;
use crate::{
    backends::irqchip::CpuId,
    sync::{AtomicU64, Ordering},
};

/// How many sets there are: with three translations in each, some 6000 are remembered, in 128 KB.
const SETS: usize = 2048;
const WAYS: usize = 3;
/// No target has all bits set: there are no such LPIs.
const EMPTY: u64 = u64::MAX;

pub(super) struct Translations {
    /// Counts the changes of the tables.
    generation: AtomicU64,
    sets: Box<[Set]>,
}

/// An LPI at a redistributor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) cpu: CpuId,
    pub(super) lpi: u32,
}

/// A few translations, read together: one cache line.
#[repr(align(64))]
struct Set {
    /// Odd while the rest is being written: a reader that sees the same even number before and after has seen one state.
    version: AtomicU64,
    /// Of the tables from which the ways were taken: at any other they are void.
    generation: AtomicU64,
    ways: [Way; WAYS],
}

struct Way {
    /// DeviceID and EventID.
    event: AtomicU64,
    /// CPU and LPI, or `EMPTY`.
    target: AtomicU64,
}

impl Target {
    fn pack(self) -> u64 {
        u64::from(self.cpu.0) << 32 | u64::from(self.lpi)
    }

    fn unpack(word: u64) -> Option<Self> {
        (word != EMPTY).then_some(Self {
            cpu: CpuId((word >> 32) as u32),
            lpi: word as u32,
        })
    }
}

impl Set {
    fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            ways: std::array::from_fn(|_| Way {
                event: AtomicU64::new(0),
                target: AtomicU64::new(EMPTY),
            }),
        }
    }

    /// What is remembered of `event`, as of `generation`.
    fn get(&self, generation: u64, event: u64) -> Option<Target> {
        // Each load that follows an acquiring one stays behind it. A word of a later state brings with it that the version
        // had become odd, so the last load sees that.
        let version = self.version.load(Ordering::Acquire);
        if !version.is_multiple_of(2) || self.generation.load(Ordering::Acquire) != generation {
            return None;
        }
        let found = self.ways.iter().find_map(|way| {
            let is = way.event.load(Ordering::Acquire) == event;
            is.then(|| Target::unpack(way.target.load(Ordering::Acquire))).flatten()
        });
        found.filter(|_| self.version.load(Ordering::Relaxed) == version)
    }

    /// For the one writer.
    fn put(&self, generation: u64, event: u64, target: Target) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        if self.generation.load(Ordering::Relaxed) != generation {
            for way in &self.ways {
                way.target.store(EMPTY, Ordering::Release);
            }
            self.generation.store(generation, Ordering::Release);
        }
        let holds =
            |way: &&Way| way.target.load(Ordering::Relaxed) == EMPTY || way.event.load(Ordering::Relaxed) == event;
        // They are taken from the first on, and emptied together. If all are taken, one after the other goes.
        let next = &self.ways[(version / 2) as usize % WAYS];
        let way = self.ways.iter().find(holds).unwrap_or(next);
        way.event.store(event, Ordering::Release);
        way.target.store(target.pack(), Ordering::Release);
        self.version.store(version + 2, Ordering::Release);
    }
}

impl Translations {
    pub(super) fn new() -> Self {
        Self::with_sets(SETS)
    }

    fn with_sets(sets: usize) -> Self {
        Self {
            generation: AtomicU64::new(1),
            sets: (0..sets).map(|_| Set::new()).collect(),
        }
    }

    fn set(&self, event: u64) -> &Set {
        // Fibonacci hashing: devices differ in few bits, and so do their events.
        let hash = event.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.sets[((u128::from(hash) * self.sets.len() as u128) >> 64) as usize]
    }

    /// Nothing that was remembered counts any more. To be called before the tables change, by who changes them.
    pub(super) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Remembers a translation that was just read from the tables.
    pub(super) fn remember(&self, device: u32, event: u32, target: Target) {
        let event = key(device, event);
        let generation = self.generation.load(Ordering::Relaxed);
        self.set(event).put(generation, event, target);
    }

    /// Makes the LPI of an event pending. `walk` looks it up in the tables. Whether there is one.
    ///
    /// No lock is held while the LPI is set, so a command may move the event meanwhile, and then move what is pending:
    /// too early for this LPI. So who finds afterwards that the tables have changed looks again, and moves it after. One that
    /// was discarded meanwhile stays pending where it was: perhaps it is somebody else's by now.
    pub(super) fn deliver(&self, lpis: &dyn Lpis, device: u32, event: u32, walk: impl Fn() -> Option<Target>) -> bool {
        let key = key(device, event);
        let look_up = |generation| self.set(key).get(generation, key).or_else(&walk);

        let mut generation = self.generation.load(Ordering::SeqCst);
        let Some(mut target) = look_up(generation) else {
            return false;
        };
        lpis.set_pending(target.cpu, target.lpi, true);
        loop {
            let now = self.generation.load(Ordering::SeqCst);
            if now == generation {
                return true;
            }
            generation = now;
            match look_up(generation) {
                Some(Target { cpu, lpi }) if lpi == target.lpi && cpu != target.cpu => {
                    lpis.move_pending(target.cpu, cpu, lpi);
                    target.cpu = cpu;
                }
                _ => return true,
            }
        }
    }
}

fn key(device: u32, event: u32) -> u64 {
    u64::from(device) << 32 | u64::from(event)
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;

    const LPI: u32 = 8192;
    const DEVICE: u32 = 8;
    const EVENT: u32 = 1;

    fn model(run: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound.get_or_insert(3);
        builder.check(run);
    }

    /// Two redistributors, and whether the LPI is pending at each.
    #[derive(Default)]
    struct Pending(Mutex<[bool; 2]>);

    impl Lpis for Pending {
        fn redistributor(&self, _: u32) -> Option<CpuId> {
            None
        }

        fn set_pending(&self, cpu: CpuId, _: u32, pending: bool) {
            self.0.lock().unwrap()[cpu.0 as usize] = pending;
        }

        fn invalidate(&self, _: CpuId, _: u32) {}

        fn invalidate_all(&self, _: CpuId) {}

        fn move_pending(&self, from: CpuId, to: CpuId, _: u32) {
            // Each has a lock of its own.
            if std::mem::take(&mut self.0.lock().unwrap()[from.0 as usize]) {
                self.0.lock().unwrap()[to.0 as usize] = true;
            }
        }

        fn move_all_pending(&self, from: CpuId, to: CpuId) {
            self.move_pending(from, to, LPI);
        }
    }

    /// An ITS whose one table has one event, with the lock of its model.
    struct Its {
        table: Mutex<Option<u32>>,
        translations: Translations,
        pending: Pending,
    }

    impl Its {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                table: Mutex::new(Some(0)),
                translations: Translations::with_sets(1),
                pending: Pending::default(),
            })
        }

        fn walk(&self) -> Option<Target> {
            let table = self.table.lock().unwrap();
            let target = table.map(|cpu| Target {
                cpu: CpuId(cpu),
                lpi: LPI,
            })?;
            self.translations.remember(DEVICE, EVENT, target);
            Some(target)
        }

        fn message(&self) -> bool {
            self.translations.deliver(&self.pending, DEVICE, EVENT, || self.walk())
        }

        /// A command, as far as the tables go.
        fn change(&self, to: Option<u32>) {
            let mut table = self.table.lock().unwrap();
            self.translations.forget();
            *table = to;
        }

        fn pending(&self) -> [bool; 2] {
            *self.pending.0.lock().unwrap()
        }
    }

    /// Remembered or not, whether MOVI or MAPC with MOVALL moves it.
    #[test]
    fn loom_a_message_while_its_event_moves_is_pending_where_it_moved_to() {
        for remembered in [false, true] {
            model(move || {
                let its = Its::new();
                if remembered {
                    its.walk();
                }
                let sender = {
                    let its = its.clone();
                    thread::spawn(move || assert!(its.message()))
                };
                its.change(Some(1));
                its.pending.move_pending(CpuId(0), CpuId(1), LPI);
                sender.join().unwrap();
                assert_eq!(its.pending(), [false, true]);
            });
        }
    }

    #[test]
    fn loom_a_message_while_its_event_moves_there_and_back_is_pending_once() {
        model(|| {
            let its = Its::new();
            its.walk();
            let sender = {
                let its = its.clone();
                thread::spawn(move || assert!(its.message()))
            };
            its.change(Some(1));
            its.pending.move_pending(CpuId(0), CpuId(1), LPI);
            its.change(Some(0));
            its.pending.move_pending(CpuId(1), CpuId(0), LPI);
            sender.join().unwrap();
            assert_eq!(its.pending(), [true, false]);
        });
    }

    #[test]
    fn loom_a_message_after_a_discard_is_dropped() {
        model(|| {
            let its = Its::new();
            its.walk();
            let sender = {
                let its = its.clone();
                thread::spawn(move || its.message())
            };
            its.change(None);
            assert!(!its.message());
            sender.join().unwrap();
        });
    }

    /// Two events in one set of which one way is in use, while the set is written again and again.
    #[test]
    fn loom_what_is_remembered_is_never_that_of_another_event_or_generation() {
        let target = |generation: u64, event: u64| Target {
            cpu: CpuId(generation as u32),
            lpi: event as u32,
        };
        for (generation, event) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            model(move || {
                let set = Arc::new(Set::new());
                set.put(1, 1, target(1, 1));
                let reader = {
                    let set = set.clone();
                    thread::spawn(move || set.get(generation, event))
                };
                set.put(2, 2, target(2, 2));
                set.put(2, 1, target(2, 1));
                let found = reader.join().unwrap();
                assert!(
                    found.is_none_or(|found| found == target(generation, event)),
                    "{found:?}"
                );
            });
        }
    }
}
