//! Our rings beside `virtio-queue`'s: the same random memory is given to both, and the driver is to see the same.
//!
//! A bounded sample by default; `DEVISOR_RINGS=1000000` for as many rings as that, in release.
//!
//! Where they differ by intent, and what is compared then:
//!
//! | | `virtio-queue` | ours |
//! |---|---|---|
//! | a chain that breaks the rules | ends early, as a shorter chain | is never seen, comes back with length 0 |
//! | ... a `next` beyond the table, a loop, a chain of 4 GiB, a nested table, a table outside memory | cut there | broken |
//! | ... an empty table | a chain without descriptors | broken |
//! | ... INDIRECT with NEXT | NEXT is ignored | broken |
//! | ... INDIRECT not negotiated | is not known to it | broken |
//! | ... readable after writable | not looked at | broken |
//! | ... a buffer outside memory | found by its reader or writer | broken |
//! | ... more descriptors than the queue is long, in an indirect table | up to 65535 | up to [`MAX_INDIRECT`], or the queue's length |
//! | ... descriptors before an indirect table | not counted | counted |
//! | a head beyond the table | a chain without descriptors; using it is refused | the ring is broken |
//! | a head that is in flight | taken again | the ring is broken |
//! | `avail.idx` too far ahead | an error | the ring is broken |
//! | VRING_AVAIL_F_NO_INTERRUPT, without EVENT_IDX | not looked at | honoured |
//! | nothing was added, without EVENT_IDX | signals | does not |
//! | used elements | shown one by one | shown when they are published; the same then |
//!
//! So a reference walker of a few lines stands between the two: it says by the rules of section 2.7 whether a chain is whole. Both
//! must agree with it about whole chains to the last segment, and ours alone about the others.

#[path = "support/ring.rs"]
mod ring;

use std::{cell::Cell, collections::HashSet, sync::Arc};

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueError, QueueIndex, features,
        queue::{MAX_INDIRECT, QueueLayout, Rest, VirtioInterrupt},
    },
};
use ring::{INDIRECT, NEXT, WRITE};
use virtio_queue::{Queue as Theirs, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const MEMORY: u64 = 1 << 16;
const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
/// Where indirect tables are, as a rule.
const TABLES: u64 = 0x4000;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Counts signals.
#[derive(Default)]
struct Signals(std::sync::atomic::AtomicU64);

impl VirtioInterrupt for Signals {
    fn used(&self, _queues: &[QueueIndex]) -> std::io::Result<()> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    fn config_changed(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn reset(&self) {}
}

type Segments = Vec<(u64, u32, bool)>;

struct World {
    ram: Arc<GuestMemoryMmap>,
    size: u16,
    indirect: bool,
    /// The used index when it was last asked whether to signal.
    signalled: Cell<u16>,
}

impl World {
    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(address)).expect("in memory");
    }

    fn get<T: vm_memory::ByteValued>(&self, address: u64) -> Option<T> {
        self.ram.read_obj(GuestAddress(address)).ok()
    }

    /// A table of descriptors, mostly right. `top`: it may name indirect ones.
    fn fill_table(&self, random: &mut Random, table: u64, len: u16, top: bool) {
        // What chains are made of runs forward, readable first, if nothing is broken here.
        let hostile = random.one_in(4);
        let mut writable = false;
        for index in 0..len {
            let indirect = top && random.one_in(4) || hostile && random.one_in(16);
            let odd = hostile && random.one_in(8);
            let next = !random.one_in(3);
            let (address, size, flags) = if indirect {
                let at = TABLES + 0x400 * random.below(8);
                let size = match random.below(16) {
                    0 if hostile => random.next() as u32,
                    1 if hostile => 16 * random.below(3) as u32 + random.below(16) as u32,
                    _ => 16 * (1 + random.below(12) as u32),
                };
                let also_next = hostile && random.one_in(4);
                (
                    at,
                    size,
                    INDIRECT | if also_next { NEXT } else { 0 } | if odd { WRITE } else { 0 },
                )
            } else {
                if !writable && random.one_in(3) || hostile && random.one_in(6) {
                    writable = !writable;
                }
                let flags = if writable { WRITE } else { 0 } | if next { NEXT } else { 0 };
                (0x8000 + random.below(0x7000), random.below(0x1000) as u32, flags)
            };
            if flags & NEXT == 0 {
                writable = false;
            }
            let address = if odd && random.one_in(2) {
                random.next() << 16 >> random.below(60)
            } else {
                address
            };
            let size = if odd && random.one_in(2) {
                random.next() as u32
            } else {
                size
            };
            let follows = if odd && random.one_in(2) {
                random.below(u64::from(len) + 4) as u16
            } else {
                index + 1
            };
            let low = u64::from(size) | u64::from(flags) << 32 | u64::from(follows) << 48;
            self.put(table + 16 * u64::from(index), [address, low]);
        }
        // The last one goes nowhere.
        if !hostile {
            let last = table + 16 * u64::from(len - 1) + 12;
            let flags: u16 = self.get(last).unwrap_or(0);
            self.put(last, flags & !NEXT);
        }
    }

    /// By the rules of section 2.7: the chain at `head`, or nothing if it breaks one.
    fn walk(&self, head: u16) -> Option<Segments> {
        let (mut table, mut len, mut index, mut limit) =
            (DESCRIPTORS, u32::from(self.size), u32::from(head), self.size);
        let (mut nested, mut total, mut segments) = (false, 0u64, Segments::new());
        loop {
            if index >= len {
                return None;
            }
            let [address, low]: [u64; 2] = self.get(table + 16 * u64::from(index))?;
            let (size, flags, next) = (low as u32, (low >> 32) as u16, (low >> 48) as u16);
            let inside = |len: u32| {
                let fits = address.checked_add(len.into()).is_some();
                fits && GuestMemory::check_range(&*self.ram, GuestAddress(address), len as usize, Permissions::Read)
            };
            if flags & INDIRECT != 0 {
                let count = size / 16;
                if nested
                    || !self.indirect
                    || flags & NEXT != 0
                    || size % 16 != 0
                    || !inside(size)
                    || count == 0
                    || count > 1 << 16
                {
                    return None;
                }
                (table, len, index, nested, limit) = (address, count, 0, true, limit.max(MAX_INDIRECT));
                continue;
            }
            let writable = flags & WRITE != 0;
            total += u64::from(size);
            let ordered = writable || segments.last().is_none_or(|last| !last.2);
            if segments.len() == usize::from(limit) || total > u32::MAX.into() || !inside(size) || !ordered {
                return None;
            }
            segments.push((address, size, writable));
            if flags & NEXT == 0 {
                return Some(segments);
            }
            index = next.into();
        }
    }

    /// Whether `queue` wants to signal what was added since this was last asked.
    fn signals(&self, queue: &mut Theirs, event_idx: bool) -> u64 {
        let added = queue.next_used() != self.signalled.replace(queue.next_used());
        let quiet = !event_idx && self.get(DRIVER) == Some(1u16);
        u64::from(queue.needs_notification(&*self.ram).expect("in memory") && added && !quiet)
    }

    fn used(&self, from: u16, to: u16) -> Vec<(u32, u32)> {
        let entry = |at: u16| DEVICE + 4 + 8 * u64::from(at % self.size);
        let entries = (0..to.wrapping_sub(from)).map(|n| entry(from.wrapping_add(n)));
        entries
            .map(|at| (self.get(at).unwrap(), self.get(at + 4).unwrap()))
            .collect()
    }
}

/// How often each thing was met, so that the comparison cannot be one of nothing.
#[derive(Debug, Default)]
struct Met {
    rings: u64,
    whole: u64,
    broken: u64,
    broken_rings: u64,
    signals: u64,
    held: u64,
}

/// One ring, looked at a few times while its driver goes on.
fn compare(seed: u64, worlds: &[World; 2], met: &mut Met) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let size = 1u16 << random.below(6);
    let event_idx = random.one_in(2);
    let indirect = !random.one_in(8);
    let start = if random.one_in(2) {
        0u16.wrapping_sub(random.below(20) as u16)
    } else {
        random.next() as u16
    };
    let [ours, theirs] = [0, 1].map(|which| World {
        ram: worlds[which].ram.clone(),
        size,
        indirect,
        signalled: Cell::new(start),
    });
    let layout = QueueLayout {
        size,
        descriptor_area: DESCRIPTORS,
        driver_area: DRIVER,
        device_area: DEVICE,
    };
    let features = features::VERSION_1
        | if event_idx { features::EVENT_IDX } else { 0 }
        | if indirect { features::INDIRECT_DESC } else { 0 };
    let memory = Memory::new(ours.ram.clone());
    let signals = Arc::new(Signals::default());
    let state = devisor::virtio::queue::QueueState {
        layout,
        features,
        next_avail: start,
        next_used: start,
        in_flight: vec![],
        chains: vec![],
        ended: vec![],
        signal_owed: false,
    };
    let mut queue = Queue::restore(QueueIndex(0), size, &state, &memory, signals.clone()).expect("a valid layout");

    let mut other = Theirs::new(size).expect("a valid size");
    other.set_size(size);
    other.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).unwrap();
    other.try_set_avail_ring_address(GuestAddress(DRIVER)).unwrap();
    other.try_set_used_ring_address(GuestAddress(DEVICE)).unwrap();
    other.set_event_idx(event_idx);
    other.set_next_avail(start);
    other.set_next_used(start);
    other.set_ready(true);
    assert!(other.is_valid(&*theirs.ram));

    // Both memories get the same: what is random is drawn once.
    for world in [&ours, &theirs] {
        let mut same = Random(random.0 ^ 0x5555);
        world.fill_table(&mut same, DESCRIPTORS, size, true);
        for table in 0..8 {
            world.fill_table(&mut same, TABLES + 0x400 * table, 12, false);
        }
        world.put(DEVICE, [0u8; 6]);
        world.put(DEVICE + 2, start);
        world.put(DRIVER, 0u16);
        world.put(DRIVER + 4 + 2 * u64::from(size), start);
    }
    let both = |address: u64, value: u16| [&ours, &theirs].iter().for_each(|world| world.put(address, value));

    let (mut avail, mut held, mut signalled) = (start, Vec::new(), 0);
    let mut in_flight = HashSet::new();
    for _ in 0..1 + random.below(4) {
        // The driver.
        let room = u64::from(size) - held.len() as u64;
        let offered = random.below(room + 1) as u16;
        let hostile = random.one_in(32);
        for n in 0..offered {
            let wild = hostile && random.one_in(4);
            let head = random.below(u64::from(size) + if wild { 8 } else { 0 }) as u16;
            both(DRIVER + 4 + 2 * u64::from(avail.wrapping_add(n) % size), head);
        }
        avail = match hostile && random.one_in(2) {
            true => random.next() as u16,
            false => avail.wrapping_add(offered),
        };
        both(DRIVER + 2, avail);
        both(DRIVER, random.below(2) as u16 & u16::from(!event_idx));
        let event = random.one_in(2).then(|| random.next() as u16);
        both(
            DRIVER + 4 + 2 * u64::from(size),
            event.unwrap_or(avail.wrapping_sub(random.below(4) as u16)),
        );

        // What was held comes back first, out of order, in both.
        let mut late: Vec<(devisor::virtio::queue::OwnedChain, u32)> = std::mem::take(&mut held);
        while !late.is_empty() {
            let (chain, len) = late.swap_remove(random.below(late.len() as u64) as usize);
            in_flight.remove(&chain.head());
            other.add_used(&*theirs.ram, chain.head(), len).expect("in memory");
            signalled += theirs.signals(&mut other, event_idx);
            chain.complete(len);
        }

        // Ours, and theirs for each chain of ours.
        let before = other.next_used();
        let mut round = queue.round().expect("in memory");
        let mut broken = None;
        let mut expected_used = Vec::new();
        loop {
            // Those that are broken are not seen: theirs are used with length 0 by us.
            let step = round.next().map(|chain| {
                chain.map(|chain| {
                    let segments = |readable: &[devisor::memory::Segment], writable| {
                        readable
                            .iter()
                            .map(|s| (s.address, s.len, writable))
                            .collect::<Segments>()
                    };
                    let all = [segments(chain.readable(), false), segments(chain.writable(), true)].concat();
                    let (head, room) = (chain.head(), chain.writable_len());
                    let how = random.below(4);
                    let len = (random.next() as u32).checked_rem(room).unwrap_or(0);
                    (
                        head,
                        all,
                        len,
                        how,
                        match how {
                            0 => Some(chain.take()),
                            1 => {
                                chain.put(len).expect("in memory");
                                None
                            }
                            _ => {
                                chain.complete(len).expect("in memory");
                                None
                            }
                        },
                    )
                })
            });
            let found = match step {
                Ok(None) => {
                    let rest = round.end().expect("in memory");
                    // Broken chains that ours has passed over since the last one.
                    while Some(other.next_used()) != ours.get(DEVICE + 2) {
                        let chain = other.pop_descriptor_chain(&*theirs.ram).expect("ours has found it");
                        let head = chain.head_index();
                        assert_eq!(theirs.walk(head), None, "seed {seed}: head {head} was not found");
                        met.broken += 1;
                        other.add_used(&*theirs.ram, head, 0).expect("in memory");
                        expected_used.push((u32::from(head), 0));
                        signalled += theirs.signals(&mut other, event_idx);
                    }
                    signalled += theirs.signals(&mut other, event_idx);
                    if rest == Rest::More {
                        round = queue.round().expect("in memory");
                        continue;
                    }
                    assert_eq!(rest, Rest::Drained, "seed {seed}");
                    break;
                }
                Ok(found) => found,
                Err(error) => {
                    broken = Some(error);
                    None
                }
            };
            // Theirs goes on until it has the chain that ours has found, or the reason why it has found none.
            loop {
                let theirs_idx = theirs.get::<u16>(DRIVER + 2).unwrap();
                if theirs_idx.wrapping_sub(other.next_avail()) > size {
                    assert!(other.iter(&*theirs.ram).is_err());
                    assert_eq!(
                        broken.take(),
                        Some(QueueError::AvailIndex {
                            ahead: theirs_idx.wrapping_sub(other.next_avail()),
                            size
                        }),
                        "seed {seed}"
                    );
                    met.broken_rings += 1;
                    return;
                }
                let chain = other.pop_descriptor_chain(&*theirs.ram);
                let chain = chain.unwrap_or_else(|| panic!("seed {seed}: {found:?} {broken:?}"));
                let head = chain.head_index();
                if head >= size || in_flight.contains(&head) {
                    let expected = if head >= size {
                        QueueError::Head { head, size }
                    } else {
                        QueueError::InFlight(head)
                    };
                    assert_eq!(broken, Some(expected), "seed {seed}");
                    met.broken_rings += 1;
                    return;
                }
                let descriptors: Segments = chain.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
                match theirs.walk(head) {
                    Some(whole) => {
                        met.whole += 1;
                        assert_eq!(descriptors, whole, "seed {seed}: virtio-queue and the rules");
                        let (ours, all, len, how, taken) = found
                            .as_ref()
                            .unwrap_or_else(|| panic!("seed {seed}: head {head} was not found"));
                        assert_eq!((ours, all), (&head, &whole), "seed {seed}");
                        if *how == 0 {
                            assert!(taken.is_some());
                            met.held += 1;
                        } else {
                            other.add_used(&*theirs.ram, head, *len).expect("in memory");
                            expected_used.push((u32::from(head), *len));
                            // Ours is told of by the next that is shown.
                            if *how != 1 {
                                signalled += theirs.signals(&mut other, event_idx);
                            }
                        }
                        break;
                    }
                    None => {
                        met.broken += 1;
                        other.add_used(&*theirs.ram, head, 0).expect("in memory");
                        expected_used.push((u32::from(head), 0));
                        signalled += theirs.signals(&mut other, event_idx);
                    }
                }
            }
            if let Some((head, _, len, 0, Some(taken))) = found {
                in_flight.insert(head);
                held.push((taken, len));
            }
        }
        let more = other.enable_notification(&*theirs.ram).expect("in memory");
        assert!(!more, "seed {seed}: ours has drained it");

        // The driver sees the same.
        let [idx, their_idx] = [&ours, &theirs].map(|world| world.get::<u16>(DEVICE + 2).unwrap());
        assert_eq!(idx, their_idx, "seed {seed}");
        assert_eq!(ours.used(before, idx), expected_used, "seed {seed}");
        let areas = [&ours, &theirs].map(|world| {
            let mut bytes = vec![0; 6 + 8 * usize::from(size)];
            world.ram.read_slice(&mut bytes, GuestAddress(DEVICE)).unwrap();
            bytes
        });
        assert_eq!(
            areas[0], areas[1],
            "seed {seed}: the used ring, its flags and avail_event"
        );
        assert_eq!(
            signals.0.load(std::sync::atomic::Ordering::SeqCst),
            signalled,
            "seed {seed}: signals"
        );
    }
    met.signals += signalled;
}

#[test]
fn the_driver_sees_the_same_as_with_virtio_queue() {
    let rings = std::env::var("DEVISOR_RINGS")
        .ok()
        .and_then(|rings| rings.parse().ok())
        .unwrap_or(20_000);
    let world = || World {
        ram: Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("64 KiB")),
        size: 0,
        indirect: true,
        signalled: Cell::new(0),
    };
    let worlds = [world(), world()];
    let mut met = Met::default();
    for seed in 0..rings {
        compare(seed, &worlds, &mut met);
        met.rings += 1;
    }
    println!("{met:?}");
    for (what, count) in [
        ("whole chains", met.whole),
        ("broken chains", met.broken),
        ("broken rings", met.broken_rings),
        ("signals", met.signals),
        ("held", met.held),
    ] {
        assert!(count * 100 > rings, "hardly any {what}: {met:?}");
    }
}
