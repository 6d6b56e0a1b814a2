//! Requests under way in every kind of guest memory: marked where they may have written, across regions, and where no host address stays.

use std::sync::Arc;

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueHandler, QueueIndex, VirtioDevice,
        block::{Block, BlockOptions, Operation},
        features,
        queue::Silent,
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, bitmap::AtomicBitmap};

use crate::{
    late::Late,
    ring::{Buffer, Ring, readable, writable},
    support::*,
    translated::Translated,
};

type Tracked = GuestMemoryMmap<AtomicBitmap>;

/// The second region begins in the middle of a buffer at this address.
const SEAM: u64 = 0x8_0000;
const END: u64 = 0x20_0000;

struct Rig {
    ram: Arc<Tracked>,
    ring: Ring<AtomicBitmap>,
    late: Late,
    queue: Queue,
    handler: Box<dyn QueueHandler>,
}

impl Rig {
    fn new(translated: bool) -> Self {
        let regions = [
            (GuestAddress(0), SEAM as usize),
            (GuestAddress(SEAM), (END - SEAM) as usize),
        ];
        let ram: Arc<Tracked> = Arc::new(GuestMemoryMmap::from_ranges(&regions).expect("guest memory"));
        let space = match translated {
            false => Memory::new(Arc::clone(&ram)),
            true => Memory::new(Arc::new(Translated(Arc::clone(&ram)))),
        };
        let ring = Ring::new(&ram, 0x1000, 16);
        let late = Late::new(1024);
        let mut block = Block::with_async(late.clone(), BlockOptions::default()).expect("valid options");
        block.negotiated(block.features());
        let accepted = features::COMMON & !features::EVENT_IDX;
        let queue = Queue::new(QueueIndex(0), 16, ring.layout, accepted, &space, Arc::new(Silent));
        Self {
            handler: block.start(QueueIndex(0)),
            queue: queue.expect("a valid layout"),
            ram,
            ring,
            late,
        }
    }

    fn round(&mut self) {
        let mut round = self.queue.round().expect("a ring");
        self.handler.serve(&mut round).expect("a ring that keeps the rules");
        let _ = round.end().expect("a ring");
    }

    fn ask(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) {
        self.ram
            .write_slice(&header(kind, sector), GuestAddress(HEADER))
            .unwrap();
        let status = [writable(STATUS, 1)];
        let chain = [&[readable(HEADER, 16)], buffers, &status].concat();
        self.ring.request(&chain);
        self.round();
    }

    fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Pages that were marked since this was last asked.
    fn dirty(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        for region in self.ram.iter() {
            let mapping: &vm_memory::MmapRegion<AtomicBitmap> = region;
            for (word, bits) in mapping.bitmap().get_and_reset().into_iter().enumerate() {
                let set = (0..64).filter(|bit| bits >> bit & 1 != 0);
                pages.extend(set.map(|bit| region.start_addr().0 / 0x1000 + 64 * word as u64 + bit));
            }
        }
        pages
    }
}

#[test]
fn a_read_and_a_write_across_regions_arrive_whole() {
    for translated in [false, true] {
        let mut rig = Rig::new(translated);
        rig.ask(T_IN, 3, &[writable(SEAM - 700, 1024), writable(0x6_0000, 512)]);
        rig.late.end(0);
        rig.round();
        let expected = pattern(1024 * 512)[3 * 512..][..1536].to_vec();
        let found = [rig.get(SEAM - 700, 1024), rig.get(0x6_0000, 512)].concat();
        assert!(found == expected, "translated: {translated}");
        assert_eq!(rig.get(STATUS, 1), [OK]);

        rig.ram.write_slice(&[0xab; 1024], GuestAddress(SEAM - 1)).unwrap();
        rig.ask(T_OUT, 9, &[readable(SEAM - 1, 1024)]);
        rig.late.end(0);
        rig.round();
        assert_eq!(rig.late.contents()[9 * 512..][..1024], [0xab; 1024]);
        assert_eq!(rig.get(STATUS, 1), [OK]);
    }
}

#[test]
fn memory_without_addresses_that_stay_is_copied_piece_by_piece() {
    let mut rig = Rig::new(true);
    let len = 300 * 1024;
    rig.ask(T_IN, 1, &[writable(0x10_0000, len)]);
    let mut pieces = 0;
    while let [Operation::Read { .. }] = rig.late.under_way()[..] {
        // Some of them short.
        match pieces % 3 {
            0 => rig.late.end_short(0, 1000),
            _ => rig.late.end(0),
        }
        rig.round();
        pieces += 1;
    }
    assert!(pieces > 5, "what is copied at a time is bounded");
    assert_eq!(rig.get(STATUS, 1), [OK]);
    assert!(rig.get(0x10_0000, len as usize) == pattern(1024 * 512)[512..][..len as usize]);

    rig.ask(T_OUT, 300, &[readable(0x10_0000, len)]);
    while !rig.late.under_way().is_empty() {
        rig.late.end(0);
        rig.round();
    }
    assert_eq!(rig.get(STATUS, 1), [OK]);
    assert!(rig.late.contents()[300 * 512..][..len as usize] == rig.get(0x10_0000, len as usize));
}

#[test]
fn pages_are_marked_when_data_has_arrived_and_not_before() {
    let mut rig = Rig::new(false);
    rig.dirty();
    rig.ask(T_IN, 0, &[writable(0x10_0000, 4096), writable(0x18_0800, 4096)]);
    let early = rig.dirty();
    assert!(!early.iter().any(|page| *page >= 0x100), "{early:x?}");
    rig.late.end(0);
    rig.round();
    let marked = rig.dirty();
    for page in [0x100, 0x180, 0x181, STATUS / 0x1000] {
        assert!(marked.contains(&page), "{page:#x} of {marked:x?}");
    }
}

#[test]
fn a_read_that_failed_or_was_canceled_marks_all_that_it_may_have_written() {
    let mut rig = Rig::new(false);
    rig.ask(T_IN, 0, &[writable(0x10_0000, 8192)]);
    rig.dirty();
    rig.late.end_as(0, Err(std::io::Error::other("no")));
    rig.round();
    let marked = rig.dirty();
    assert!(marked.contains(&0x100) && marked.contains(&0x101), "{marked:x?}");

    rig.ask(T_IN, 0, &[writable(0x12_0000, 8192)]);
    rig.dirty();
    rig.late.obey(true);
    rig.handler.pause();
    let marked = rig.dirty();
    assert!(marked.contains(&0x120) && marked.contains(&0x121), "{marked:x?}");
}
