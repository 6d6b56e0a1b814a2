//! What other threads ask of a local APIC, without its lock.
//!
//! A sender writes its request first and then a cause of the wake line, which names the word that it wrote to. The
//! owner takes the causes first and then the words. So a request is either in what the owner takes, or its cause is
//! still there and holds the line up: neither is lost, whoever comes first.

use std::io;

use super::vectors::{Vector, Vectors};
use crate::{
    interrupt::{LevelInterrupt, LevelOutput},
    sync::{AtomicU64, Ordering},
};

/// The causes of the wake line: one for each word of vectors, then these.
const SIGNALS: u64 = 1 << 4;
const TIMER: u64 = 1 << 5;

/// What is asked for and is no vector. The levels of the lines stay, all others are taken.
pub(super) mod signal {
    pub const INIT: u64 = 1 << 0;
    pub const START_UP: u64 = 1 << 1;
    pub const NMI: u64 = 1 << 2;
    pub const SMI: u64 = 1 << 3;
    pub const EXT_INT: u64 = 1 << 4;
    /// A message had a vector below 16.
    pub const ILLEGAL_VECTOR: u64 = 1 << 5;
    pub const THERMAL: u64 = 1 << 6;
    pub const PERFORMANCE: u64 = 1 << 7;
    /// The vector of a start-up message.
    pub const START_UP_SHIFT: u32 = 8;
    pub const START_UP_VECTOR: u64 = 0xff << START_UP_SHIFT;
    /// LINT0 and LINT1 have risen.
    pub const ROSE: [u64; 2] = [1 << 16, 1 << 17];
    /// LINT0 and LINT1 are up.
    pub const UP: [u64; 2] = [1 << 18, 1 << 19];
    pub const LEVELS: u64 = UP[0] | UP[1];
    /// A second NMI, and a second rise of each pin, which may be its NMI.
    pub const NMI_AGAIN: u64 = 1 << 20;
    pub const ROSE_AGAIN: [u64; 2] = [1 << 21, 1 << 22];

    /// One NMI more. A CPU takes one and latches one more.
    pub fn nmi(signals: u64) -> u64 {
        signals | if signals & NMI == 0 { NMI } else { NMI_AGAIN }
    }

    /// A pin is up now.
    pub fn rise(signals: u64, pin: usize) -> u64 {
        match (signals & UP[pin] != 0, signals & ROSE[pin] != 0) {
            (true, _) => signals,
            (false, false) => signals | UP[pin] | ROSE[pin],
            (false, true) => signals | UP[pin] | ROSE_AGAIN[pin],
        }
    }
}

pub(super) struct Inbox<L> {
    requested: [AtomicU64; 4],
    /// The trigger mode of what is requested: set for level.
    level: [AtomicU64; 4],
    signals: AtomicU64,
    wake: LevelOutput<L>,
}

/// What the owner finds.
pub(super) struct Mail {
    pub vectors: Vectors,
    /// Of `vectors`, those that are level-triggered. Other bits mean nothing.
    pub level: Vectors,
    /// `None` if there was no signal.
    pub signals: Option<u64>,
    /// The owner was asked to look at its timer.
    pub tick: bool,
}

impl<L: LevelInterrupt> Inbox<L> {
    pub fn new(wake: L) -> Self {
        let words = || [0; 4].map(AtomicU64::new);
        Self {
            requested: words(),
            level: words(),
            signals: AtomicU64::new(0),
            wake: LevelOutput::new(wake),
        }
    }

    /// Asks for a vector.
    pub fn request(&self, vector: Vector, level: bool) -> io::Result<()> {
        let (word, bit) = vector.place();
        // First, for who takes the vector looks at this.
        if level {
            self.level[word].fetch_or(bit, Ordering::SeqCst);
        } else if self.level[word].load(Ordering::SeqCst) & bit != 0 {
            self.level[word].fetch_and(!bit, Ordering::SeqCst);
        }
        self.requested[word].fetch_or(bit, Ordering::SeqCst);
        self.raise(1 << word)
    }

    /// Changes the signals. `change` may run more than once.
    pub fn signal(&self, change: impl Fn(u64) -> u64) -> io::Result<()> {
        self.change(change);
        self.raise(SIGNALS)
    }

    fn change(&self, change: impl Fn(u64) -> u64) {
        let mut signals = self.signals.load(Ordering::SeqCst);
        while let Err(now) =
            self.signals
                .compare_exchange_weak(signals, change(signals), Ordering::SeqCst, Ordering::SeqCst)
        {
            signals = now;
        }
    }

    /// Asks the owner to look at its timer.
    pub fn tick(&self) -> io::Result<()> {
        self.raise(TIMER)
    }

    /// Asks the owner to look at everything, also at its timer if that is `due`.
    pub fn look(&self, due: bool) {
        let timer = if due { TIMER } else { 0 };
        self.wake.update(|causes| causes | 0xf | SIGNALS | timer);
    }

    fn raise(&self, cause: u64) -> io::Result<()> {
        self.wake.update(|causes| causes | cause);
        self.wake.settle()
    }

    /// Whether anybody has asked for anything.
    pub fn is_empty(&self) -> bool {
        self.wake.bits() == 0
    }

    /// Whether the owner was asked to look at its timer, and has not.
    pub fn has_tick(&self) -> bool {
        self.wake.bits() & TIMER != 0
    }

    /// Takes everything that was asked for, except that the timer stays if the owner does not know the time. For the
    /// owner, under its lock; to be followed by [`settle`](Self::settle) without it.
    pub fn take(&self, with_timer: bool) -> Mail {
        let stay = if with_timer { 0 } else { TIMER };
        let causes = self.wake.update(|causes| causes & stay);
        let mut mail = Mail {
            vectors: Vectors::default(),
            level: Vectors::default(),
            signals: None,
            tick: causes & TIMER & !stay != 0,
        };
        for word in (0..4).filter(|word| causes >> word & 1 != 0) {
            mail.vectors.0[word] = self.requested[word].swap(0, Ordering::SeqCst);
            mail.level.0[word] = self.level[word].load(Ordering::SeqCst);
        }
        if causes & SIGNALS != 0 {
            mail.signals = Some(self.signals.fetch_and(signal::LEVELS, Ordering::SeqCst));
        }
        mail
    }

    /// Tells the wake line its level.
    pub fn settle(&self) -> io::Result<()> {
        self.wake.settle()
    }

    pub fn failures(&self) -> u64 {
        self.wake.failures()
    }

    /// The levels of the LINT pins as a restored state has them. One that was up counts as up until its device drives it, and
    /// has not risen, also if the device has driven it before; one that was down and is up now has risen.
    pub fn restore_levels(&self, up: [bool; 2]) {
        self.change(|mut signals| {
            for (pin, was_up) in up.into_iter().enumerate() {
                let (level, rose) = (signal::UP[pin], signal::ROSE[pin]);
                signals = match was_up {
                    true => signals & !(rose | signal::ROSE_AGAIN[pin]) | level,
                    false if signals & level != 0 => signals | rose,
                    false => signals,
                };
            }
            signals
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{
        sync::{Arc, atomic::AtomicBool},
        thread,
    };
    use std::io;

    use super::*;
    use crate::{
        backends::irqchip::lapic::{ApicId, LocalApicsConfig, Request, model::Model, presence::Published},
        interrupt::Interrupt,
    };

    /// The embedder's wake-up: whether the vCPU has to look.
    #[derive(Clone)]
    struct Wake(Arc<AtomicBool>);

    impl Interrupt for Wake {
        fn trigger(&self) -> io::Result<()> {
            self.0.store(true, Ordering::SeqCst);
            Ok(())
        }
    }

    impl LevelInterrupt for Wake {
        fn clear(&self) -> io::Result<()> {
            self.0.store(false, Ordering::SeqCst);
            Ok(())
        }
    }

    fn model(run: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound.get_or_insert(3);
        builder.check(run);
    }

    fn inbox() -> (Arc<Inbox<Wake>>, Arc<AtomicBool>) {
        let up = Arc::new(AtomicBool::new(false));
        (Arc::new(Inbox::new(Wake(up.clone()))), up)
    }

    /// The owner looks once while they send, and once more only if the line says so.
    fn owner(inbox: &Inbox<Wake>) -> (Vectors, u64) {
        let mail = inbox.take(true);
        inbox.settle().unwrap();
        (mail.vectors, mail.signals.unwrap_or(0))
    }

    fn both(first: (Vectors, u64), second: (Vectors, u64)) -> (Vectors, u64) {
        let vectors = std::array::from_fn(|word| first.0.0[word] | second.0.0[word]);
        (Vectors(vectors), first.1 | second.1)
    }

    /// The vCPU looks, acknowledges what there is and finishes it.
    fn serve(inbox: &Inbox<Wake>, apic: &mut Model, taken: &mut Vec<Vector>) {
        apic.absorb(Some(&inbox.take(true)), None);
        inbox.settle().unwrap();
        while let Some(Request::Vector(vector)) = apic.acknowledge() {
            apic.eoi();
            assert_eq!(
                apic.news.eoi.take().is_some(),
                vector.0 & 1 != 0,
                "the level's broadcast"
            );
            taken.push(vector);
        }
    }

    /// Both in one word, or each in one of its own; the odd one is level-triggered.
    #[test]
    fn loom_two_senders_against_acknowledge_and_eoi_lose_no_vector_and_no_wake_up() {
        for other in [0x31, 0x91] {
            model(move || {
                let (inbox, up) = inbox();
                let senders = [0x30, other].map(|vector| {
                    let inbox = inbox.clone();
                    thread::spawn(move || inbox.request(Vector(vector), vector & 1 != 0).unwrap())
                });
                let mut apic = Model::new(LocalApicsConfig::default(), ApicId(0), true);
                apic.write_page(0x0f, 0x1ff);
                let mut taken = Vec::new();
                serve(&inbox, &mut apic, &mut taken);
                for sender in senders {
                    sender.join().unwrap();
                }
                if up.load(Ordering::SeqCst) {
                    serve(&inbox, &mut apic, &mut taken);
                }
                taken.sort_unstable();
                assert_eq!(taken, [Vector(0x30), Vector(other)], "each once, and none sleeps");
                assert!(!up.load(Ordering::SeqCst), "woken for nothing, for ever");
            });
        }
    }

    /// What a sender of a level has seen accepted is accepted, and nobody brings it again.
    #[test]
    fn loom_a_level_that_is_sent_while_its_cpu_is_being_disabled_is_accepted_or_the_sender_knows() {
        model(|| {
            let (inbox, _) = inbox();
            let mut apic = Model::new(LocalApicsConfig::default(), ApicId(0), true);
            apic.write_page(0x0f, 0x1ff);
            let published = Arc::new(Published::new(apic.update()));
            let sender = {
                let (inbox, published) = (inbox.clone(), published.clone());
                thread::spawn(move || {
                    let accepted = published.get().enabled;
                    if accepted {
                        inbox.request(Vector(0x31), true).unwrap();
                    }
                    accepted
                })
            };
            apic.absorb(Some(&inbox.take(true)), None);
            apic.write_page(0x0f, 0xff);
            published.set(apic.update());
            let accepted = sender.join().unwrap();
            apic.absorb(Some(&inbox.take(true)), None);
            assert_eq!(apic.holds(Vector(0x31)), accepted);
        });
    }

    #[test]
    fn loom_the_same_vector_again_after_the_owner_took_it_wakes_again() {
        model(|| {
            let (inbox, up) = inbox();
            let work = Arc::new(AtomicBool::new(false));
            inbox.request(Vector(0x30), false).unwrap();
            let sender = {
                let (inbox, work) = (inbox.clone(), work.clone());
                thread::spawn(move || {
                    work.store(true, Ordering::Relaxed);
                    inbox.request(Vector(0x30), false).unwrap();
                })
            };
            // Acknowledged and handled: the handler looks for work after the vector was taken.
            owner(&inbox);
            let seen = work.load(Ordering::Relaxed);
            sender.join().unwrap();
            assert!(
                seen || up.load(Ordering::SeqCst),
                "work that the guest neither saw nor hears of"
            );
        });
    }

    /// The owner reads the clock only if the timer has ticked, and before it takes what there is.
    #[test]
    fn loom_a_tick_that_comes_after_the_owner_has_looked_at_the_time_stays() {
        model(|| {
            let (inbox, up) = inbox();
            let ticker = inbox.clone();
            let ticker = thread::spawn(move || ticker.tick().unwrap());
            let look = || {
                let timed = inbox.has_tick();
                inbox.take(timed);
                inbox.settle().unwrap();
                timed
            };
            let seen = look();
            ticker.join().unwrap();
            let seen = seen || up.load(Ordering::SeqCst) && look();
            assert!(seen, "nobody looks at the timer");
            assert!(!up.load(Ordering::SeqCst), "woken for nothing, for ever");
        });
    }

    #[test]
    fn loom_an_nmi_and_a_line_that_rises_meanwhile_are_both_heard() {
        model(|| {
            let (inbox, up) = inbox();
            let nmi = inbox.clone();
            let nmi = thread::spawn(move || nmi.signal(signal::nmi).unwrap());
            let line = inbox.clone();
            let rises = signal::UP[0] | signal::ROSE[0];
            let line = thread::spawn(move || line.signal(|signals| signal::rise(signals, 0)).unwrap());
            let mut seen = owner(&inbox);
            nmi.join().unwrap();
            line.join().unwrap();
            if up.load(Ordering::SeqCst) {
                seen = both(seen, owner(&inbox));
            }
            assert_eq!(seen.1, signal::NMI | rises);
        });
    }
}
