//! Our packed rings beside a device that is written down from section 2.8 of virtio 1.2 with no care for speed: the same random memory is
//! given to both, hostile ones included, and the driver is to see the same, to the last byte.
//!
//! A bounded sample by default; `DEVISOR_RINGS=1000000` for as many rings as that, in release.

#[path = "support/random.rs"]
mod random;
#[path = "support/ring.rs"]
mod ring;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use devisor::{
    memory::{Memory, Segment},
    virtio::{
        Queue, QueueIndex, features,
        queue::{MAX_INDIRECT, OwnedChain, QueueLayout, QueueState, Rest, VirtioInterrupt},
    },
};
use random::Random;
use ring::{INDIRECT, NEXT, WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const MEMORY: usize = 1 << 16;
const RING: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const DISABLE: u16 = 1;
const DESC: u16 = 2;

#[derive(Default)]
struct Signals(AtomicU64);

impl VirtioInterrupt for Signals {
    fn used(&self, _queues: &[QueueIndex]) -> std::io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn config_changed(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn reset(&self) {}
}

type Chain = Vec<(u64, u32, bool)>;

/// What is next in the ring.
#[derive(Debug, PartialEq)]
enum Next {
    Nothing,
    Broken,
    /// ID, number of descriptors, and what it is if it keeps the rules.
    Chain(u16, u16, Option<Chain>),
}

/// A request that is not used.
struct Open {
    id: u16,
    count: u16,
    ended: Option<u32>,
}

/// The device of the specification.
struct Naive {
    ram: Arc<GuestMemoryMmap>,
    size: u16,
    features: u64,
    next: (u16, bool),
    used: (u16, bool),
    open: Vec<Open>,
    /// Descriptors and chains that the driver has not been told of.
    untold: (u32, u32),
    /// The first of these, which is written last: address and contents.
    hidden: Option<(u64, u64)>,
    suppressed: bool,
    signals: u64,
}

impl Naive {
    fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.ram.read_obj(GuestAddress(address)).expect("in memory")
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn on(&self, (slot, wrap): (u16, bool), count: u16) -> (u16, bool) {
        match slot + count {
            after if after >= self.size => (after - self.size, !wrap),
            after => (after, wrap),
        }
    }

    fn descriptor(&self, slot: u16) -> (u64, u32, u16, u16) {
        let at = RING + 16 * u64::from(slot);
        (self.get(at), self.get(at + 8), self.get(at + 12), self.get(at + 14))
    }

    fn inside(&self, address: u64, len: u32) -> bool {
        let fits = address.checked_add(len.into()).is_some();
        fits && GuestMemory::check_range(&*self.ram, GuestAddress(address), len as usize, Permissions::Read)
    }

    fn look(&mut self) -> Next {
        let (slot, wrap) = self.next;
        let marks = self.descriptor(slot).3 & (AVAIL | USED);
        if marks != if wrap { AVAIL } else { USED } {
            return Next::Nothing;
        }
        if !self.suppressed {
            self.ram
                .write_obj(DISABLE, GuestAddress(DEVICE + 2))
                .expect("in memory");
            self.suppressed = true;
        }
        let mut all = vec![self.descriptor(slot)];
        while all[all.len() - 1].3 & NEXT != 0 {
            if all.len() == usize::from(self.size) {
                return Next::Broken;
            }
            all.push(self.descriptor(self.on(self.next, all.len() as u16).0));
        }
        let (id, count) = (all[all.len() - 1].2, all.len() as u16);
        let open: u32 = self.open.iter().map(|open| u32::from(open.count)).sum();
        let twice = self.open.iter().any(|open| open.id == id);
        if id >= self.size || twice || open + u32::from(count) > self.size.into() {
            return Next::Broken;
        }
        Next::Chain(id, count, self.chain(&all))
    }

    fn chain(&self, all: &[(u64, u32, u16, u16)]) -> Option<Chain> {
        let mut chain = Chain::new();
        for &(address, len, _, flags) in all {
            if flags & INDIRECT == 0 {
                chain.push((address, len, flags & WRITE != 0));
                continue;
            }
            let possible = self.has(features::INDIRECT_DESC) && all.len() == 1 && len != 0 && len % 16 == 0;
            if !possible || !self.inside(address, len) || len / 16 > MAX_INDIRECT.max(self.size).into() {
                return None;
            }
            for at in (address..).step_by(16).take(len as usize / 16) {
                chain.push((self.get(at), self.get(at + 8), self.get::<u16>(at + 14) & WRITE != 0));
            }
        }
        let total: u64 = chain.iter().map(|piece| u64::from(piece.1)).sum();
        let inside = chain.iter().all(|&(address, len, _)| self.inside(address, len));
        (chain.is_sorted_by_key(|piece| piece.2) && total <= u32::MAX.into() && inside).then_some(chain)
    }

    /// The chain that was found is taken from the ring.
    fn take(&mut self, id: u16, count: u16) {
        self.next = self.on(self.next, count);
        let ended = None;
        self.open.push(Open { id, count, ended });
    }

    /// A chain has ended.
    fn end(&mut self, id: u16, len: u32) {
        let at = self.open.iter().position(|open| open.id == id).expect("taken before");
        self.open[at].ended = Some(len);
        match self.has(features::IN_ORDER) {
            true => {
                while self.open.first().is_some_and(|open| open.ended.is_some()) {
                    self.put(0);
                }
            }
            false => self.put(at),
        }
    }

    fn put(&mut self, at: usize) {
        let Open { id, count, ended } = self.open.remove(at);
        let len = ended.expect("ended");
        let (slot, wrap) = self.used;
        let flags = if wrap { AVAIL | USED } else { 0 } | if len != 0 { WRITE } else { 0 };
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        let at = RING + 16 * u64::from(slot) + 8;
        match self.untold.1 {
            0 => self.hidden = Some((at, rest)),
            _ => self.ram.write_obj(rest, GuestAddress(at)).expect("in memory"),
        }
        self.used = self.on(self.used, count);
        self.untold = (self.untold.0 + u32::from(count), self.untold.1 + 1);
    }

    /// Signals what was used, if the driver wants to hear of one of these descriptors.
    fn tell(&mut self) {
        let (descriptors, chains) = std::mem::take(&mut self.untold);
        if let Some((at, rest)) = self.hidden.take() {
            self.ram.write_obj(rest, GuestAddress(at)).expect("in memory");
        }
        if chains == 0 {
            return;
        }
        let (at, flags): (u16, u16) = (self.get(DRIVER), self.get(DRIVER + 2));
        let wanted = match flags & 3 {
            DISABLE => false,
            DESC if self.has(features::EVENT_IDX) => {
                // One by one, backwards.
                let mut place = self.used;
                (0..descriptors.min(self.size.into())).any(|_| {
                    place = match place {
                        (0, wrap) => (self.size - 1, !wrap),
                        (slot, wrap) => (slot - 1, wrap),
                    };
                    place.0 | u16::from(place.1) << 15 == at
                })
            }
            _ => true,
        };
        self.signals += u64::from(wanted);
    }

    /// Nothing is left: asks for kicks.
    fn rest(&mut self) {
        self.suppressed = false;
        let flags = if self.has(features::EVENT_IDX) { DESC } else { 0 };
        if flags == DESC {
            let at = self.next.0 | u16::from(self.next.1) << 15;
            self.ram.write_obj(at, GuestAddress(DEVICE)).expect("in memory");
        }
        self.ram.write_obj(flags, GuestAddress(DEVICE + 2)).expect("in memory");
    }
}

/// How often each thing was met, so that the comparison cannot be one of nothing.
#[derive(Debug, Default)]
struct Met {
    rings: u64,
    whole: u64,
    malformed: u64,
    broken: u64,
    signals: u64,
    late: u64,
    in_order: u64,
}

/// Descriptors that are mostly right, for `count` places.
fn fill(ram: [&GuestMemoryMmap; 2], random: &mut Random, size: u16, from: (u16, bool), count: u16, hostile: bool) {
    let (mut slot, mut wrap) = from;
    let mut writable = false;
    for number in 0..count {
        let odd = |random: &mut Random| hostile && random.below(12) == 0;
        let next = number + 1 < count && random.below(3) == 0;
        writable = writable || random.below(2) == 0;
        if odd(random) {
            writable = !writable;
        }
        let indirect = !next && random.below(5) == 0;
        let mut flags = if writable { WRITE } else { 0 } | if next { NEXT } else { 0 };
        let (mut address, mut len) = (0x8000 + u64::from(random.below(0x7000)), random.below(0x1000));
        if indirect {
            flags |= INDIRECT;
            (address, len) = (TABLES + 0x400 * u64::from(random.below(8)), 16 * (1 + random.below(8)));
        }
        if odd(random) {
            address = u64::from(random.next()) << random.below(33);
        }
        if odd(random) {
            len = random.next();
        }
        let mut id = slot;
        if odd(random) {
            id = random.below(u32::from(size) + 2) as u16;
        }
        flags |= if wrap { AVAIL } else { USED };
        if odd(random) {
            flags ^= 1 << random.below(16);
        }
        let at = RING + 16 * u64::from(slot);
        for ram in ram {
            let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
            ram.write_obj([address, rest], GuestAddress(at)).expect("in memory");
        }
        if !next {
            writable = false;
        }
        slot += 1;
        if slot == size {
            (slot, wrap) = (0, !wrap);
        }
    }
}

fn tables(ram: [&GuestMemoryMmap; 2], random: &mut Random, hostile: bool) {
    for table in 0..8u64 {
        let first_writable = random.below(10);
        for index in 0..10u32 {
            let wrong = hostile && random.below(20) == 0;
            let flags =
                if (index >= first_writable) != wrong { WRITE } else { 0 } | random.below(0x100) as u16 & !WRITE;
            let address = 0x8000 + u64::from(random.below(0x7000)) * if wrong { 0x100 } else { 1 };
            let words = [address, u64::from(random.below(0x1000)) | u64::from(flags) << 48];
            let at = TABLES + 0x400 * table + 16 * u64::from(index);
            ram.iter()
                .for_each(|ram| ram.write_obj(words, GuestAddress(at)).expect("in memory"));
        }
    }
}

fn compare(seed: u64, ram: [&Arc<GuestMemoryMmap>; 2], met: &mut Met) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let most = if random.below(2) == 0 { 6 } else { 40 };
    let size = 1 + random.below(most) as u16;
    let hostile = random.below(2) == 0;
    let mut features = features::VERSION_1 | features::RING_PACKED;
    for (feature, one_in) in [(features::EVENT_IDX, 2), (features::IN_ORDER, 4)] {
        if random.below(one_in) == 0 {
            features |= feature;
        }
    }
    if random.below(8) != 0 {
        features |= features::INDIRECT_DESC;
    }
    let start = (random.below(size.into()) as u16, random.below(2) == 0);
    let both = ram.map(|ram| &**ram);
    for ram in both {
        ram.write_slice(&[0; 0x3000], GuestAddress(RING)).expect("in memory");
        // What was used in the lap before, all of it.
        for slot in 0..size {
            let wrap = if slot < start.0 { start.1 } else { !start.1 };
            let flags = if wrap { AVAIL | USED } else { 0 };
            ram.write_obj(flags, GuestAddress(RING + 16 * u64::from(slot) + 14))
                .expect("in memory");
        }
    }
    tables(both, &mut random, hostile);
    let place = start.0 | u16::from(start.1) << 15;
    let state = QueueState {
        layout: QueueLayout {
            size,
            descriptor_area: RING,
            driver_area: DRIVER,
            device_area: DEVICE,
        },
        features,
        next_avail: place,
        next_used: place,
        in_flight: vec![],
        chains: vec![],
        ended: vec![],
        signal_owed: false,
    };
    let signals = Arc::new(Signals::default());
    let memory = Memory::new(ram[0].clone());
    let restore = |state: &QueueState| Queue::restore(QueueIndex(0), size, state, &memory, signals.clone());
    let mut queue = restore(&state).expect("a valid state");
    let mut naive = Naive {
        ram: ram[1].clone(),
        size,
        features,
        next: start,
        used: start,
        open: Vec::new(),
        untold: (0, 0),
        hidden: None,
        suppressed: false,
        signals: 0,
    };
    met.rings += 1;
    met.in_order += u64::from(features & features::IN_ORDER != 0);
    let mut made = start;
    let mut held: Vec<(OwnedChain, u32)> = Vec::new();
    let mut malformed = 0;
    for _ in 0..1 + random.below(5) {
        // The driver fills what is free; a hostile one what is not, too.
        let open: u16 = naive.open.iter().map(|open| open.count).sum();
        let ahead = (made.0 + size - naive.next.0) % size;
        let free = size - open - ahead.min(size - open);
        let count = match hostile && random.below(8) == 0 {
            true => random.below(u32::from(size) + 1) as u16,
            false if made == naive.next => random.below(u32::from(size - open) + 1) as u16,
            false => random.below(u32::from(free) + 1) as u16,
        };
        fill(both, &mut random, size, made, count, hostile);
        made = naive.on(made, count);
        let event = match random.below(3) {
            // A place that is none, less than a lap beyond the end, may be taken for one of the next lap: not drawn.
            0 => {
                let at = random.next() as u16;
                let odd = (size..2 * size).contains(&(at & 0x7fff));
                [if odd { 0x7fff } else { at }, random.below(4) as u16]
            }
            1 => [naive.used.0 | u16::from(naive.used.1) << 15, DESC],
            _ => [
                random.below(size.into()) as u16 | (random.next() as u16 & 1) << 15,
                DESC,
            ],
        };
        both.iter()
            .for_each(|ram| ram.write_obj(event, GuestAddress(DRIVER)).expect("in memory"));

        // What was held ends out of order.
        while !held.is_empty() && random.below(4) != 0 {
            let (chain, len) = held.swap_remove(random.below(held.len() as u32) as usize);
            naive.end(chain.head(), len);
            naive.tell();
            chain.complete(len);
        }
        let mut round = queue.round().expect("in memory");
        let broken = loop {
            let found = round.next().map(|chain| {
                chain.map(|chain| {
                    let pieces = |all: &[Segment], writable| {
                        all.iter()
                            .map(|piece| (piece.address, piece.len, writable))
                            .collect::<Chain>()
                    };
                    let all = [pieces(chain.readable(), false), pieces(chain.writable(), true)].concat();
                    let len = random
                        .next()
                        .checked_rem(chain.writable_len().saturating_add(1))
                        .unwrap_or(0);
                    let (id, how) = (chain.head(), random.below(4));
                    match how {
                        0 => held.push((chain.take(), len)),
                        1 => chain.put(len).expect("in memory"),
                        _ => chain.complete(len).expect("in memory"),
                    }
                    (id, all, len, how)
                })
            });
            // Those that break the rules are passed over by ours.
            let so_far = queue_malformed(&round);
            for _ in malformed..so_far {
                match naive.look() {
                    Next::Chain(id, count, None) => {
                        naive.take(id, count);
                        naive.end(id, 0);
                        naive.tell();
                    }
                    other => panic!("seed {seed}: ours is malformed, and {other:?}"),
                }
                met.malformed += 1;
            }
            malformed = so_far;
            match found {
                Err(error) => {
                    assert_eq!(naive.look(), Next::Broken, "seed {seed}: {error}");
                    break true;
                }
                Ok(None) => break false,
                Ok(Some((id, all, len, how))) => {
                    let Next::Chain(other, count, Some(chain)) = naive.look() else {
                        panic!("seed {seed}: ours alone finds {all:x?}");
                    };
                    assert_eq!((id, &all), (other, &chain), "seed {seed}");
                    naive.take(id, count);
                    met.whole += 1;
                    match how {
                        0 => met.late += 1,
                        1 => naive.end(id, len),
                        _ => {
                            naive.end(id, len);
                            naive.tell();
                        }
                    }
                }
            }
        };
        if broken {
            met.broken += 1;
            drop(round);
            break;
        }
        let rest = round.end().expect("in memory");
        naive.tell();
        match rest {
            Rest::Drained => {
                assert_eq!(naive.look(), Next::Nothing, "seed {seed}");
                naive.rest();
            }
            Rest::More => {}
            Rest::Left => panic!("seed {seed}: nothing was left"),
        }
        let seen = |ram: &GuestMemoryMmap| {
            let mut bytes = vec![0; 0x3000];
            ram.read_slice(&mut bytes, GuestAddress(RING)).expect("in memory");
            bytes
        };
        assert!(
            seen(both[0]) == seen(both[1]),
            "seed {seed}: the driver sees different rings"
        );
        assert_eq!(signals.0.load(Ordering::SeqCst), naive.signals, "seed {seed}");

        // Now and then it is saved with requests under way, and goes on elsewhere.
        if random.below(4) == 0 {
            let lens: Vec<_> = held.iter().map(|(chain, len)| (chain.head(), *len)).collect();
            held.clear();
            let state = queue.save();
            queue = restore(&state).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(queue.save(), state, "seed {seed}");
            malformed = 0;
            naive.suppressed = false;
            let mut round = queue.round().expect("in memory");
            for _ in 0..lens.len() {
                let Ok(Some(chain)) = round.next() else { break };
                let chain = chain.take();
                let len = lens.iter().find(|(head, _)| *head == chain.head()).map(|(_, len)| *len);
                held.push((chain, len.expect("it was taken before")));
            }
            drop(round);
            if held.len() < lens.len() {
                // A round ends early with large ones.
                break;
            }
        }
    }
    met.signals += naive.signals;
    for (chain, len) in held.drain(..) {
        chain.complete(len);
    }
}

fn queue_malformed(round: &devisor::virtio::Round<'_>) -> u64 {
    round.counters().malformed
}

#[test]
fn the_driver_sees_what_a_device_by_the_specification_would_show() {
    let rings = std::env::var("DEVISOR_RINGS").map_or(20_000, |rings| rings.parse().expect("a number of rings"));
    let ram = [(); 2].map(|()| Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()));
    let mut met = Met::default();
    for seed in 0..rings {
        compare(seed, [&ram[0], &ram[1]], &mut met);
    }
    println!("{met:?}");
    for (what, count) in [
        ("whole", met.whole),
        ("malformed", met.malformed),
        ("broken", met.broken),
        ("signals", met.signals),
        ("late", met.late),
        ("in order", met.in_order),
    ] {
        assert!(count > rings / 50, "{what}: {met:?}");
    }
}
