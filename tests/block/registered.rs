//! Guest memory that is registered with the rings: used, re-registered, let go of, and done without.

use std::{sync::Arc, thread, time::Duration};

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueHandler, QueueIndex, VirtioDevice,
        block::{Block, BlockOptions, FileStorage, UringOptions, UringStatus, UringStorage},
        features,
        queue::Silent,
    },
};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

use crate::{
    host_file::Temporary,
    ring::{Buffer, Ring, readable, writable},
    skip::skipped,
    support::*,
};

const HALF: u64 = 0x10_0000;
const HEADER_AT: u64 = 0x8000;
const STATUS_AT: u64 = 0x8100;
const SECTORS: usize = 128;

/// A queue over memory of two regions, the second of which may be exchanged, and the storage behind it.
struct Rig {
    space: GuestMemoryAtomic<GuestMemoryMmap>,
    memory: Memory,
    ring: Ring,
    queue: Queue,
    handler: Box<dyn QueueHandler>,
    storage: Arc<UringStorage>,
    _file: Temporary,
}

fn region(at: u64) -> Arc<GuestRegionMmap> {
    let mapped = MmapRegion::new(HALF as usize).expect("memory");
    Arc::new(GuestRegionMmap::new(mapped, GuestAddress(at)).expect("a region"))
}

impl Rig {
    fn new() -> Option<Self> {
        let file = Temporary::new(&pattern(SECTORS * 512));
        let options = UringOptions {
            register_memory: true,
            ..UringOptions::default()
        };
        let storage = match UringStorage::new(FileStorage::open(&file).expect("a storage"), options) {
            Ok(storage) => Arc::new(storage),
            Err(error) => {
                skipped(format_args!("no io_uring: {error}"));
                return None;
            }
        };
        // What the driver knows is the first region.
        let low = region(0);
        let drivers = Arc::new(GuestMemoryMmap::from_arc_regions(vec![Arc::clone(&low)]).expect("a map"));
        let all = GuestMemoryMmap::from_arc_regions(vec![low, region(HALF)]).expect("a map");
        let space = GuestMemoryAtomic::new(all);
        let ring = Ring::new(&drivers, 0x1000, 16);
        let mut block = Block::with_async(Arc::clone(&storage), BlockOptions::default()).expect("valid options");
        block.negotiated(block.features());
        let accepted = features::COMMON & !features::EVENT_IDX;
        let memory = Memory::new(space.clone());
        let queue = Queue::new(QueueIndex(0), 16, ring.layout, accepted, &memory, Arc::new(Silent));
        Some(Self {
            handler: block.start(QueueIndex(0)),
            queue: queue.expect("a valid layout"),
            space,
            memory,
            ring,
            storage,
            _file: file,
        })
    }

    fn round(&mut self) {
        let mut round = self.queue.round().expect("a ring");
        self.handler.serve(&mut round).expect("a ring that keeps the rules");
        let _ = round.end().expect("a ring");
    }

    /// Reads from `sector` on into these pieces of memory, and waits for it.
    fn read(&mut self, sector: u64, pieces: &[(u64, u32)]) {
        self.ring
            .memory
            .write_slice(&header(T_IN, sector), GuestAddress(HEADER_AT))
            .expect("in memory");
        self.ring.put(STATUS_AT, 0xee_u8);
        let data = pieces.iter().map(|&(address, len)| writable(address, len));
        let chain: Vec<Buffer> = [readable(HEADER_AT, 16)]
            .into_iter()
            .chain(data)
            .chain([writable(STATUS_AT, 1)])
            .collect();
        self.ring.request(&chain);
        for _ in 0..10_000 {
            self.round();
            if self.ring.get::<u8>(STATUS_AT) != 0xee {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.ring.get::<u8>(STATUS_AT), OK);
    }

    fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = self.space.memory();
        memory.read_slice(&mut bytes, GuestAddress(address)).expect("in memory");
        bytes
    }

    /// Takes the second region out of the guest's memory, and puts another one there.
    fn exchange(&self) {
        let without = self
            .space
            .memory()
            .remove_region(GuestAddress(HALF), HALF)
            .expect("it is there")
            .0;
        self.space.lock().expect("nobody else").replace(without);
        let with = self.space.memory().insert_region(region(HALF)).expect("there is room");
        self.space.lock().expect("nobody else").replace(with);
    }

    fn status(&self) -> UringStatus {
        self.storage.status()
    }
}

fn data(sector: usize, len: usize) -> Vec<u8> {
    pattern(SECTORS * 512)[sector * 512..][..len].to_vec()
}

#[test]
fn guest_memory_is_registered_with_the_first_request_and_used_in_one_piece_or_several() {
    let Some(mut rig) = Rig::new() else { return };
    assert_eq!((rig.status().rings, rig.status().registered), (1, 0));
    rig.read(3, &[(HALF + 0x1000, 1024)]);
    assert_eq!(rig.status().refused, None);
    assert_eq!((rig.status().rings, rig.status().registered), (1, 1));
    assert_eq!(rig.get(HALF + 0x1000, 1024), data(3, 1024));
    rig.read(9, &[(HALF + 0x3200, 512), (HALF + 0x2007, 1024), (HALF + 0x8000, 512)]);
    assert_eq!(rig.get(HALF + 0x3200, 512), data(9, 512));
    assert_eq!(rig.get(HALF + 0x2007, 1024), data(10, 1024));
    assert_eq!(rig.get(HALF + 0x8000, 512), data(12, 512));
    // Of both regions: no registered buffer has all of it.
    rig.read(40, &[(0x9000, 512), (HALF, 512)]);
    assert_eq!(rig.get(0x9000, 512), data(40, 512));
    assert_eq!(rig.get(HALF, 512), data(41, 512));
}

#[test]
fn memory_that_has_taken_the_place_of_other_memory_gets_the_data() {
    let Some(mut rig) = Rig::new() else { return };
    for round in 0..8 {
        rig.read(round, &[(HALF + 0x1000, 4096)]);
        assert_eq!(rig.get(HALF + 0x1000, 4096), data(round as usize, 4096));
        // Most often it is mapped where the old one was.
        rig.exchange();
        assert_eq!(rig.get(HALF + 0x1000, 4096), [0; 4096]);
    }
    assert_eq!((rig.status().registered, rig.status().refused), (1, None));
}

#[test]
fn an_idle_queue_lets_go_of_memory_that_was_taken_out() {
    let Some(mut rig) = Rig::new() else { return };
    rig.read(0, &[(HALF, 512)]);
    rig.exchange();
    assert_eq!((rig.status().registered, rig.memory.old_maps_held()), (1, 1));
    // As `memory_changed` has each queue do.
    rig.round();
    assert_eq!((rig.status().registered, rig.memory.old_maps_held()), (0, 0));
}

#[test]
fn a_ring_that_is_gone_has_nothing_registered() {
    let Some(mut rig) = Rig::new() else { return };
    rig.read(0, &[(HALF, 512)]);
    let storage = Arc::clone(&rig.storage);
    drop(rig);
    assert_eq!(storage.status(), UringStatus::default());
}

#[test]
fn memory_that_may_not_be_locked_is_used_all_the_same() {
    // A thread without CAP_IPC_LOCK, and a limit below what the guest has.
    let header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: version 3 has two sets of three words.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    sets[0] &= !(1 << 14);
    // SAFETY: as above; it is about this thread, which ends with the test.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!((got, set), (0, 0));
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: fills the structure, and reads one.
    unsafe {
        libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut before);
        let limit = libc::rlimit {
            rlim_cur: 1 << 20,
            ..before
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
    }
    if let Some(mut rig) = Rig::new() {
        rig.read(5, &[(HALF, 4096)]);
        assert_eq!(rig.get(HALF, 4096), data(5, 4096));
        let UringStatus {
            rings,
            registered,
            refused,
            unpolled: _,
        } = rig.status();
        assert_eq!((rings, registered), (1, 0));
        let refused = refused.expect("why it was not");
        assert!(refused.contains("memory"), "{refused}");
        // It is tried once a map.
        rig.read(6, &[(HALF, 4096)]);
    }
    // SAFETY: reads the structure.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const before) };
}
