//! The process ends before each step that the table takes: nothing is lost, and nothing comes back twice.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
    rc::Rc,
    sync::Arc,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    super::{Part, Table, create, steps},
    *,
};
use crate::memory::Memory;
use crate::virtio::{
    QueueIndex, features,
    queue::{Queue, QueueLayout, QueueState, Silent},
    vhost_user,
};

const SIZE: u16 = 8;
const MEMORY: usize = 0x1_0000;
const LAYOUT: QueueLayout = QueueLayout {
    size: SIZE,
    descriptor_area: 0,
    driver_area: 0x1000,
    device_area: 0x2000,
};
const FEATURES: u64 = features::VERSION_1 | features::RING_PACKED | features::INDIRECT_DESC;
const TABLES: u64 = 0x8000;

fn found(space: &Memory) -> found::Found<'_> {
    found::Found {
        pin: space.pin(),
        find: &|address| Some((address, u64::MAX)),
    }
}

/// The driver: what it knows by itself.
#[derive(Clone, Default)]
struct Driver {
    next: u16,
    used: u16,
    /// Descriptors of each chain that is the device's.
    out: BTreeMap<u16, u16>,
}

impl Driver {
    fn new() -> Self {
        Self {
            next: WRAP,
            used: WRAP,
            ..Self::default()
        }
    }

    fn offer(&mut self, memory: &GuestMemoryMmap, count: u16, indirect: bool) -> bool {
        if self.out.values().sum::<u16>() + count > SIZE {
            return false;
        }
        let id = (0..SIZE).find(|id| !self.out.contains_key(id)).unwrap();
        let mut first = None;
        for number in 0..count {
            let slot = u64::from(self.next & !WRAP) * 16;
            let marks = if self.next & WRAP != 0 { AVAIL } else { USED };
            let more = if number + 1 < count { NEXT } else { 0 };
            let (mut address, mut len) = (0x4000 + 64 * u64::from(id), 8u32);
            let mut flags = more | marks | if number == 0 { 0 } else { WRITE };
            if indirect {
                let table = TABLES + 256 * u64::from(id);
                for (at, write) in [(0, 0), (1, WRITE)] {
                    let words = [address, 8 | u64::from(write) << 48];
                    memory.write_obj(words, GuestAddress(table + 16 * at)).unwrap();
                }
                (address, len, flags) = (table, 32, INDIRECT | marks);
            }
            let rest = u64::from(len) | u64::from(id) << 32;
            memory.write_obj(address, GuestAddress(slot)).unwrap();
            memory.write_obj(rest as u32, GuestAddress(slot + 8)).unwrap();
            memory.write_obj(id, GuestAddress(slot + 12)).unwrap();
            match first {
                None => first = Some((slot, flags)),
                Some(_) => memory.write_obj(flags, GuestAddress(slot + 14)).unwrap(),
            }
            self.next = after(self.next, 1, SIZE);
        }
        let (slot, flags) = first.unwrap();
        memory.write_obj(flags, GuestAddress(slot + 14)).unwrap();
        self.out.insert(id, count);
        true
    }

    /// Takes what has come back.
    fn collect(&mut self, memory: &GuestMemoryMmap) {
        loop {
            let slot = u64::from(self.used & !WRAP) * 16;
            let flags: u16 = memory.read_obj(GuestAddress(slot + 14)).unwrap();
            let marks = if self.used & WRAP != 0 { AVAIL | USED } else { 0 };
            if flags & (AVAIL | USED) != marks {
                return;
            }
            let id: u16 = memory.read_obj(GuestAddress(slot + 12)).unwrap();
            let count = self.out.remove(&id).expect("it is the device's, and comes back once");
            self.used = after(self.used, count, SIZE);
        }
    }
}

/// One life of a back end.
struct Life {
    memory: Arc<GuestMemoryMmap>,
    queue: Queue,
    kept: VecDeque<crate::virtio::queue::OwnedChain>,
}

impl Life {
    fn new(memory: Arc<GuestMemoryMmap>, description: vhost_user::Inflight, file: &File) -> Self {
        let table = Table::new(description, OwnedFd::from(file.try_clone().unwrap()), true).unwrap();
        let Some(Part::Packed(part)) = table.queue(0, SIZE) else {
            panic!("a packed ring's part");
        };
        let space = Memory::new(Arc::clone(&memory));
        let found = part.recover(WRAP, SIZE, 0, &found(&space)).unwrap();
        let state = QueueState {
            layout: LAYOUT,
            features: FEATURES,
            next_avail: found.next_avail,
            next_used: found.next_used,
            in_flight: found.in_flight,
            chains: found.chains,
            ended: Vec::new(),
            signal_owed: true,
        };
        let queue = Queue::restore(QueueIndex(0), SIZE, &state, &space, Arc::new(Silent)).unwrap();
        Self {
            memory,
            queue: queue.track(part),
            kept: VecDeque::new(),
        }
    }

    /// A round, in which chains are kept, answered at once, or put to be shown together.
    fn round(&mut self, mut random: u64) {
        let mut round = self.queue.round().unwrap();
        while let Some(chain) = round.next().unwrap() {
            random = random.rotate_right(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            match random >> 62 {
                0 | 1 => self.kept.push_back(chain.take()),
                2 => chain.put(0).unwrap(),
                _ => chain.complete(0).unwrap(),
            }
        }
        round.end().map(drop).unwrap();
    }

    /// Ends what is kept, the first or the last.
    fn complete(&mut self, last: bool) {
        let chain = if last {
            self.kept.pop_back()
        } else {
            self.kept.pop_front()
        };
        chain.into_iter().for_each(|chain| chain.complete(0));
    }

    fn finish(&mut self, driver: &mut Driver, which: &str) {
        self.round(3 << 62);
        while !self.kept.is_empty() {
            self.complete(true);
        }
        while let Ok(mut round) = self.queue.round() {
            let mut any = false;
            while let Some(chain) = round.next().unwrap() {
                chain.complete(0).unwrap();
                any = true;
            }
            round.end().map(drop).unwrap();
            if !any {
                break;
            }
        }
        driver.collect(&self.memory);
        assert!(driver.out.is_empty(), "{which}: {:?} were lost", driver.out);
    }

    fn script(&mut self, driver: &RefCell<Driver>, seed: u64, steps: usize) {
        let mut random = seed;
        for _ in 0..steps {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            match random >> 61 {
                0..=2 => {
                    let count = 1 + (random >> 50 & 3) as u16 % 3;
                    let indirect = random >> 40 & 3 == 0;
                    driver
                        .borrow_mut()
                        .offer(&self.memory, if indirect { 1 } else { count }, indirect);
                }
                3 | 4 => self.round(random),
                5 | 6 => self.complete(random >> 30 & 1 != 0),
                _ => driver.borrow_mut().collect(&self.memory),
            }
        }
    }
}

fn bytes_of(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

fn memory_of(bytes: &[u8]) -> Arc<GuestMemoryMmap> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    memory.write_slice(bytes, GuestAddress(0)).unwrap();
    Arc::new(memory)
}

/// Memory, table and driver as they were when the process ended.
type Remains = (Vec<u8>, Vec<u8>, Driver);

#[test]
fn a_process_that_ends_before_any_step_has_lost_and_repeats_nothing() {
    let mut ends = 0;
    for seed in 1..=6u64 {
        for end in 0.. {
            let memory = memory_of(&[]);
            let (description, file) = create(1, SIZE, true).unwrap();
            let file = File::from(file);
            let driver = Rc::new(RefCell::new(Driver::new()));
            let remains: Rc<RefCell<Option<Remains>>> = Rc::default();
            let mut life = Life::new(Arc::clone(&memory), description, &file);
            let mut step = 0;
            let look = {
                let (memory, driver, remains) = (Arc::clone(&memory), Rc::clone(&driver), Rc::clone(&remains));
                let file = file.try_clone().unwrap();
                move || {
                    if step == end {
                        let mut table = vec![0; description.mmap_size as usize];
                        file.read_exact_at(&mut table, 0).unwrap();
                        *remains.borrow_mut() = Some((bytes_of(&memory), table, driver.borrow().clone()));
                    }
                    step += 1;
                }
            };
            steps::set(Some(Box::new(look)));
            life.script(&driver, seed, 120);
            steps::set(None);
            std::mem::forget(std::mem::take(&mut life.kept));
            let Some((memory, table, driver)) = remains.take() else {
                break;
            };
            ends += 1;
            file.write_all_at(&table, 0).unwrap();
            let driver = RefCell::new(driver);
            // The next goes on for a while, and so does one after it.
            for more in [40, 0] {
                let memory = memory_of(&memory);
                let _ = more;
                let mut next = Life::new(Arc::clone(&memory), description, &file);
                let mut driver = driver.borrow().clone();
                driver.collect(&memory);
                let driver = RefCell::new(driver);
                next.script(&driver, seed + 77, more);
                next.finish(
                    &mut driver.borrow_mut(),
                    &format!("script {seed}, step {end}, {more} more"),
                );
                file.write_all_at(&table, 0).unwrap();
            }
        }
    }
    assert!(ends > 1000, "{ends}");
}

#[test]
fn a_table_that_lies_leads_nowhere() {
    let mut random = 5u64;
    let space = Memory::new(memory_of(&[]));
    for _ in 0..2000 {
        let (description, file) = create(1, SIZE, true).unwrap();
        let file = File::from(file);
        let bytes: Vec<u8> = (0..description.mmap_size)
            .map(|_| {
                random = random
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                // Most are small, so that they lead somewhere.
                (random >> 56) as u8 % if random >> 40 & 7 == 0 { 255 } else { 9 }
            })
            .collect();
        file.write_all_at(&bytes, 0).unwrap();
        file.write_all_at(&[1, 0], region::VERSION as u64).unwrap();
        let table = Table::new(description, OwnedFd::from(file), true).unwrap();
        let Some(Part::Packed(part)) = table.queue(0, SIZE) else {
            panic!("a packed ring's part");
        };
        if let Ok(found) = part.recover(WRAP, SIZE, 0, &found(&space)) {
            assert!(found.in_flight.len() <= SIZE.into());
        }
        part.put(3, 1);
        part.published(5);
    }
}

#[test]
fn a_table_of_more_than_a_ring_holds_is_read_no_further_than_that() {
    const ENTRIES: u16 = 256;
    let (description, descriptor) = create(1, ENTRIES, true).unwrap();
    let table = Table::new(description, descriptor, true).unwrap();
    let Some(Part::Packed(part)) = table.queue(0, SIZE) else {
        panic!("a packed ring's part");
    };
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let memory = Memory::new(Arc::new(memory));
    let read = std::cell::Cell::new(0);
    let memory = found::Found {
        pin: memory.pin(),
        find: &|address| {
            read.set(read.get() + 1);
            Some((address, u64::MAX))
        },
    };
    part.recover(WRAP, SIZE, 0, &memory).unwrap();
    // All of them are in flight, each with a table of descriptors.
    part.set_header(region::OLD_FREE_HEAD, ENTRIES);
    for entry in 0..ENTRIES {
        part.set_in_flight(entry, true);
        part.set(entry, state::NUM, 1);
        part.set(entry, state::ID, entry);
        part.set(entry, state::FLAGS, INDIRECT);
        part.words.set(part.words.half(part.at(entry, state::LEN)), 16);
    }
    assert!(part.recover(WRAP, SIZE, 0, &memory).is_err());
    assert_eq!(read.get(), SIZE + 1, "tables");
}
