//! A queue with its driver, for the tests: of the format of the module that this is a part of.
#![allow(dead_code, reason = "each format uses its own part of this")]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use devisor::{
    memory::Memory,
    virtio::{
        ChainError, Queue, QueueError, QueueIndex, features,
        queue::{Chain, Malformed, OwnedChain, QueueState, QueueStateError, Rest, VirtioInterrupt},
    },
};
use vm_memory::GuestMemoryMmap;

use super::{FORMAT, Ring};
use crate::ring::{memory, writable};

pub const SIZE: u16 = 8;
pub const ALL: u64 = features::COMMON;
pub const NO_EVENT_IDX: u64 = features::COMMON & !features::EVENT_IDX;

/// Counts signals, and refuses them on demand.
#[derive(Default)]
pub struct Signals {
    pub used: AtomicU32,
    pub refuse: AtomicBool,
}

impl VirtioInterrupt for Signals {
    fn used(&self, queues: &[QueueIndex]) -> io::Result<()> {
        assert_eq!(queues, [QueueIndex(3)]);
        if self.refuse.load(Ordering::SeqCst) {
            return Err(io::Error::other("refused"));
        }
        self.used.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        unreachable!("a queue changes no configuration")
    }

    fn reset(&self) {
        unreachable!("a queue resets nothing")
    }
}

pub struct Setup {
    pub memory: Arc<GuestMemoryMmap>,
    pub ring: Ring,
    pub queue: Queue,
    pub signals: Arc<Signals>,
}

pub fn setup(features: u64) -> Setup {
    let features = features | FORMAT;
    let memory = memory();
    let ring = Ring::new(&memory, 0x1000, SIZE);
    let signals = Arc::new(Signals::default());
    let space = Memory::new(memory.clone());
    let queue = Queue::new(QueueIndex(3), SIZE, ring.layout, features, &space, signals.clone());
    Setup {
        memory,
        ring,
        queue: queue.expect("a valid layout"),
        signals,
    }
}

impl Setup {
    pub fn signals(&self) -> u32 {
        self.signals.used.load(Ordering::SeqCst)
    }

    /// A round in which each chain is answered.
    pub fn serve(&mut self, answer: impl FnMut(&Chain<'_, '_>) -> Result<u32, ChainError>) -> Rest {
        let mut round = self.queue.round().expect("a valid ring");
        round.each(answer).expect("a valid ring");
        round.end().expect("a valid ring")
    }

    /// A round that is to find nothing.
    pub fn serve_nothing(&mut self) -> Rest {
        self.serve(|chain| unreachable!("{chain:?}"))
    }

    /// A round that hands out nothing, whatever it finds.
    pub fn serve_nothing_but_wait(&mut self) {
        let mut round = self.queue.round().expect("a valid ring");
        assert!(round.next().expect("a valid ring").is_none());
        let _ = round.end().expect("a valid ring");
    }

    /// Answers the next chain with `written`.
    pub fn answer(&mut self, written: u32) {
        self.look(|chain| chain.complete(written).expect("a valid ring"));
    }

    /// What `f` makes of the next chain, in a round of its own.
    pub fn look<R>(&mut self, f: impl FnOnce(Chain<'_, '_>) -> R) -> R {
        let mut round = self.queue.round().expect("a valid ring");
        let result = f(round.next().expect("a valid ring").expect("a chain"));
        let _ = round.end().expect("a valid ring");
        result
    }

    /// Takes the next chain away.
    pub fn take(&mut self) -> OwnedChain {
        self.look(|chain| chain.take())
    }

    /// Makes `count` chains of one byte available and takes them.
    pub fn take_new<const N: usize>(&mut self) -> [OwnedChain; N] {
        [(); N].map(|()| {
            self.ring.request(&[writable(0x8000, 1)]);
            self.take()
        })
    }

    /// Heads in the order in which they are found and answered.
    pub fn heads(&mut self) -> Vec<u16> {
        let mut heads = Vec::new();
        let _ = self.serve(|chain| {
            heads.push(chain.head());
            Ok(0)
        });
        heads
    }

    /// What the next look at a broken ring says.
    pub fn broken(&mut self) -> QueueError {
        let mut round = self.queue.round().expect("it was in memory");
        round
            .next()
            .map(|chain| chain.map(|chain| chain.head()))
            .expect_err("the ring breaks the rules")
    }

    /// Descriptors that break the rules: their chain comes back empty, is counted as what it is, and a good one after it is answered.
    /// The same once more the other way around: what follows another one in its round is found by a shorter way.
    pub fn breaks_alone(&mut self, bad: &[(u64, u32, u16)], kind: fn(&Malformed) -> u64, what: &str) {
        for again in [false, true] {
            let (before, signals) = (self.queue.counters(), self.signals());
            self.ring.want_signal();
            let offer_bad = |s: &mut Self| {
                let head = s.ring.raw(bad);
                s.ring.offer(head);
                (u32::from(head), 0)
            };
            let offer_good = |s: &mut Self| (u32::from(s.ring.request(&[writable(0xf000, 4)])), 4);
            let expected = match again {
                false => [offer_bad(self), offer_good(self)],
                true => [offer_good(self), offer_bad(self)],
            };
            let rest = self.serve(|chain| {
                assert_eq!(chain.writable_len(), 4, "{what}");
                Ok(4)
            });
            assert_eq!(rest, Rest::Drained, "{what}");
            assert_eq!(self.ring.used(), expected, "{what}");
            let after = self.queue.counters();
            assert_eq!(
                (after.requests, after.malformed),
                (before.requests + 2, before.malformed + 1),
                "{what}"
            );
            assert_eq!(kind(&after.malformed_by), kind(&before.malformed_by) + 1, "{what}");
            assert!(self.signals() > signals, "{what}: the driver waits for it");
        }
    }

    pub fn restore(&mut self, state: &QueueState) -> Result<Queue, QueueStateError> {
        let space = Memory::new(self.memory.clone());
        Queue::restore(QueueIndex(3), SIZE, state, &space, self.signals.clone())
    }
}

// Rounds: what a handler finds, leaves, takes, gives back.
