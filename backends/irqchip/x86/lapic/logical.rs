//! Which local APICs a logical destination of 8 bits may be for: an index, so that a sender need not look at all. Longer
//! ones are of x2APIC mode, and name IDs.
//!
//! Each bit of a logical ID has a list of CPUs, and so have those to which the guest has given another ID. A CPU enters its lists before it publishes the logical ID that says so,
//! and stays in those of earlier ones, for a sender that finds it there looks at what it has published. It leaves them
//! when it has published that no logical destination is it. So whoever sends to an ID that the CPU had before and has
//! after finds it, in whichever order the lists are read.

use crate::sync::{AtomicU64, Ordering};

/// A bit for each list: those of the flat model, then 4 for each cluster, then one of those with another ID.
pub(super) type Places = u128;

const MOVED_PLACE: usize = 8 + 16 * 4;
const PLACES: usize = MOVED_PLACE + 1;
/// The list of those with another ID.
pub(super) const MOVED: Places = 1 << MOVED_PLACE;

/// In the flat model, each bit of a logical ID is a place.
pub(super) fn flat(id: u8) -> Places {
    id.into()
}

/// In the cluster model, each bit of the low half is one in the cluster of the high half.
pub(super) fn cluster(id: u8) -> Places {
    let [cluster, members] = [id >> 4, id & 0xf];
    Places::from(members) << (8 + 4 * cluster)
}

pub(super) struct Index {
    /// Words of a list: a CPU is a bit.
    words: usize,
    lists: Box<[AtomicU64]>,
}

impl Index {
    /// All lists are empty.
    pub fn new(cpus: usize) -> Self {
        let words = cpus.div_ceil(64);
        let lists = (0..PLACES * words).map(|_| AtomicU64::new(0)).collect();
        Self { words, lists }
    }

    /// What the owner of `cpu` does to publish that it belongs to the lists of `now`. `places` are those that it is in.
    pub fn publish(&self, cpu: usize, places: &mut Places, now: Places, publish: impl FnOnce()) {
        let (word, bit) = (cpu / 64, 1 << (cpu % 64));
        for place in self::places(now & !*places) {
            self.lists[place * self.words + word].fetch_or(bit, Ordering::AcqRel);
        }
        *places |= now;
        publish();
        if now == 0 {
            for place in self::places(std::mem::take(places)) {
                self.lists[place * self.words + word].fetch_and(!bit, Ordering::AcqRel);
            }
        }
    }

    /// The CPUs that `destination` may be for, each once and in order.
    pub fn candidates(&self, destination: u32) -> impl Iterator<Item = usize> {
        let (id, words) = match u8::try_from(destination) {
            Ok(id) => (id, self.words),
            Err(_) => (0, 0),
        };
        (0..words).flat_map(move |word| ones(self.members(word, id)).map(move |bit| 64 * word + bit))
    }

    /// Whether any CPU may have another ID than its own, as hardly any guest wants.
    pub fn has_moved(&self) -> bool {
        let mut list = self.lists[MOVED_PLACE * self.words..].iter();
        list.any(|members| members.load(Ordering::Acquire) != 0)
    }

    /// The CPUs that may have another ID than their own.
    pub fn moved(&self) -> impl Iterator<Item = usize> {
        let list = &self.lists[MOVED_PLACE * self.words..];
        (0..)
            .zip(list)
            .flat_map(|(word, members)| ones(members.load(Ordering::Acquire)).map(move |bit| 64 * word + bit))
    }

    /// Those of a word, as bits: places that `flat` and `cluster` give, without the detour over 128 bits.
    fn members(&self, word: usize, id: u8) -> u64 {
        let list = |place: usize| self.lists[place * self.words + word].load(Ordering::Acquire);
        let cluster = 8 + 4 * usize::from(id >> 4);
        let flat = ones(id.into()).fold(0, |members, bit| members | list(bit));
        ones((id & 0xf).into()).fold(flat, |members, bit| members | list(cluster + bit))
    }
}

fn places(bits: Places) -> impl Iterator<Item = usize> {
    ones(bits as u64).chain(ones((bits >> 64) as u64).map(|bit| bit + 64))
}

/// Which bits are set.
pub(super) fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(bit)
    })
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{sync::Arc, thread};

    use super::*;
    use crate::backends::irqchip::lapic::{
        presence::{Mode, Presence, Published},
        registers::{DFR_CLUSTER, DFR_FLAT},
    };

    fn presence(ldr: u8, dfr: u8) -> Presence {
        Presence {
            mode: Mode::XApic,
            enabled: true,
            moved: None,
            ldr: ldr.into(),
            dfr,
            class: 0,
        }
    }

    /// Two CPUs of one word.
    struct Machine {
        index: Index,
        published: [Published; 2],
    }

    impl Machine {
        fn new() -> Arc<Self> {
            let none = presence(0, DFR_FLAT);
            let published = [none, none].map(Published::new);
            let index = Index::new(2);
            Arc::new(Self { index, published })
        }

        /// The guest of `cpu` writes LDR, or DFR.
        fn write(&self, cpu: usize, places: &mut Places, presence: Presence) {
            let publish = || self.published[cpu].set(presence);
            self.index.publish(cpu, places, presence.places(), publish);
        }

        fn addressed(&self, destination: u32) -> Vec<usize> {
            let matches = |cpu: &usize| self.published[*cpu].get().matches_logical(destination);
            self.index.candidates(destination).filter(matches).collect()
        }
    }

    #[test]
    fn loom_a_logical_destination_that_is_a_cpu_before_and_after_it_changes_its_id_finds_it() {
        // To another bit, back and forth; and from the flat model to the cluster model.
        let changes = [
            [presence(2, DFR_FLAT), presence(1, DFR_FLAT)],
            [presence(2, DFR_FLAT), presence(3, DFR_CLUSTER)],
        ];
        for change in changes {
            loom::model(move || {
                let machine = Machine::new();
                let mut places = 0;
                machine.write(0, &mut places, presence(1, DFR_FLAT));
                let owner = machine.clone();
                let owner = thread::spawn(move || {
                    change
                        .into_iter()
                        .for_each(|presence| owner.write(0, &mut places, presence));
                });
                assert_eq!(machine.addressed(3), [0]);
                owner.join().unwrap();
                assert_eq!(machine.addressed(3), [0]);
            });
        }
    }

    #[test]
    fn loom_two_cpus_that_change_their_logical_ids_do_not_lose_each_others_entries() {
        loom::model(|| {
            let machine = Machine::new();
            let other = machine.clone();
            let other = thread::spawn(move || {
                let places = &mut 0;
                other.write(1, places, presence(1, DFR_FLAT));
                // As INIT does.
                other.write(1, places, presence(0, DFR_FLAT));
                other.write(1, places, presence(1, DFR_FLAT));
            });
            machine.write(0, &mut 0, presence(1, DFR_FLAT));
            assert!(machine.addressed(1).contains(&0), "in the order of the program");
            other.join().unwrap();
            assert_eq!(machine.addressed(1), [0, 1]);
        });
    }
}
