//! Which pages are marked dirty, and when.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueIndex, features,
        queue::{QueueLayout, Rest, Silent, Slices},
    },
};
use vm_memory::{GuestMemoryBackend, MmapRegion, bitmap::AtomicBitmap};

use crate::{
    ALL, NO_EVENT_IDX, SIZE, Tracked, layout,
    packed::PackedRing,
    ring::{Ring, readable, writable},
    translated::Translated,
    whole,
};

pub fn space(ram: &Arc<Tracked>, translated: bool) -> Memory {
    match translated {
        false => Memory::new(ram.clone()),
        true => Memory::new(Arc::new(Translated(ram.clone()))),
    }
}

/// The pages of 4 KiB that were marked since this was last asked.
fn dirty(memory: &Tracked) -> Vec<usize> {
    let mut pages = Vec::new();
    for region in memory.iter() {
        let mapping: &MmapRegion<AtomicBitmap> = region;
        let first = region_start(region) / 0x1000;
        let words = mapping.bitmap().get_and_reset();
        let bits = words.iter().enumerate().flat_map(|(at, word)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 != 0)
                .map(move |bit| 64 * at + bit)
        });
        pages.extend(bits.map(|page| first + page));
    }
    pages
}

pub fn region_start(region: &vm_memory::GuestRegionMmap<AtomicBitmap>) -> usize {
    use vm_memory::GuestMemoryRegion;
    region.start_addr().0 as usize
}

#[test]
fn every_write_into_guest_memory_is_marked_dirty() {
    for features in [ALL, NO_EVENT_IDX] {
        for translated in [false, true] {
            let ram = Arc::new(Tracked::from_ranges(&whole()).unwrap());
            let mut ring = Ring::new(&ram, 0x1000, SIZE);
            let memory = space(&ram, translated);
            let mut queue = Queue::new(QueueIndex(0), SIZE, ring.layout, features, &memory, Arc::new(Silent)).unwrap();
            ring.request(&[
                readable(0x8000, 4),
                writable(0x9000, 4),
                writable(0xa000, 4),
                writable(0xb000, 4),
                writable(0xc000, 4),
            ]);
            let _ = dirty(&ram);
            let none = [0usize; 0];

            let mut round = queue.round().unwrap();
            let chain = round.next().unwrap().unwrap();
            let told = if features == ALL { vec![] } else { vec![3] };
            assert_eq!(dirty(&ram), told, "the flags of the used ring");
            chain.reader().read(&mut [0; 4]).unwrap();
            chain.reader().with_slices(&mut Slices::default(), |_| ()).unwrap();
            assert_eq!(dirty(&ram), none, "reading leaves no mark");

            let mut writer = chain.writer();
            writer.write(&[1; 4]).unwrap();
            assert_eq!(dirty(&ram), [9]);
            writer.fill(1, 4).unwrap();
            assert_eq!(dirty(&ram), [0xa]);
            writer.with_slices(&mut Slices::default(), |_| ()).unwrap();
            assert_eq!(dirty(&ram), [0xb, 0xc]);
            chain.complete(16).unwrap();
            assert!(round.next().unwrap().is_none());
            assert_eq!(round.end().unwrap(), Rest::Drained);
            assert_eq!(
                dirty(&ram),
                [3],
                "the used ring, when the round has ended, and avail_event or the flags"
            );

            // What a round has used is marked by its end alone, whatever ends it.
            ring.request(&[writable(0x9000, 4)]);
            let _ = dirty(&ram);
            let mut round = queue.round().unwrap();
            round.next().unwrap().unwrap().complete(0).unwrap();
            drop(round);
            assert_eq!(dirty(&ram), [3]);

            ring.request(&[writable(0x9000, 4)]);
            let mut round = queue.round().unwrap();
            let taken = round.next().unwrap().unwrap().take();
            assert!(round.next().unwrap().is_none());
            let _ = round.end().unwrap();
            let _ = dirty(&ram);
            taken.writer().write(&[2; 4]).unwrap();
            assert_eq!(dirty(&ram), [9]);
            taken.complete(4);
            assert_eq!(dirty(&ram), [3], "the used ring");
        }
    }
}

#[test]
fn every_write_into_a_packed_ring_is_marked_dirty() {
    for features in [ALL, NO_EVENT_IDX] {
        for translated in [false, true] {
            let ram = Arc::new(Tracked::from_ranges(&whole()).unwrap());
            let mut ring = PackedRing::at(&ram, layout(SIZE));
            let memory = space(&ram, translated);
            let features = features | features::RING_PACKED;
            let mut queue = Queue::new(QueueIndex(0), SIZE, ring.layout, features, &memory, Arc::new(Silent)).unwrap();
            let _ = dirty(&ram);
            for short in [false, true] {
                // The second round of a queue finds its chains the short way.
                ring.request(&[readable(0x8000, 4), writable(0x9000, 4)]);
                let _ = dirty(&ram);
                let mut round = queue.round().unwrap();
                let chain = round.next().unwrap().unwrap();
                assert_eq!(dirty(&ram), [3], "no kicks while there is something to take: {short}");
                chain.writer().write(&[1; 4]).unwrap();
                assert_eq!(dirty(&ram), [9]);
                chain.complete(4).unwrap();
                assert!(round.next().unwrap().is_none());
                assert_eq!(round.end().unwrap(), Rest::Drained);
                assert_eq!(
                    dirty(&ram),
                    [1, 3],
                    "the used descriptor, and what the driver is to kick for: {short}"
                );
                assert_eq!(ring.used().len(), 1);
            }

            // Whatever ends the round.
            ring.request(&[writable(0x9000, 4)]);
            let mut round = queue.round().unwrap();
            let chain = round.next().unwrap().unwrap();
            let _ = dirty(&ram);
            chain.complete(0).unwrap();
            drop(round);
            assert_eq!(dirty(&ram), [1]);

            // The last descriptors and the first.
            ring.request(&[writable(0x9000, 4)]);
            ring.request(&[writable(0x9000, 4), writable(0xa000, 4)]);
            let mut round = queue.round().unwrap();
            let taken = [(); 2].map(|()| round.next().unwrap().unwrap().take());
            assert!(round.next().unwrap().is_none());
            let _ = round.end().unwrap();
            let _ = dirty(&ram);
            for chain in taken {
                chain.complete(4);
                assert_eq!(dirty(&ram), [1], "by who completes elsewhere");
            }
        }
    }
}

#[test]
fn what_a_round_has_hidden_in_a_packed_ring_is_marked_when_another_shows_it() {
    let ram = Arc::new(Tracked::from_ranges(&whole()).unwrap());
    // Its first half is in one page, and the other in the next.
    let layout = QueueLayout {
        descriptor_area: 0x1000 - 16 * u64::from(SIZE) / 2,
        ..layout(SIZE)
    };
    let mut ring = PackedRing::at(&ram, layout);
    let memory = space(&ram, false);
    let features = ALL | features::RING_PACKED;
    let mut queue = Queue::new(QueueIndex(0), SIZE, layout, features, &memory, Arc::new(Silent)).unwrap();
    let request = [writable(0x9000, 4)];
    for _ in 0..SIZE / 2 - 1 {
        ring.request(&request);
        let mut round = queue.round().unwrap();
        round.next().unwrap().unwrap().complete(4).unwrap();
        let _ = round.end().unwrap();
    }
    // The last of one page, and the first of the other.
    (0..2).for_each(|_| _ = ring.request(&request));
    let mut round = queue.round().unwrap();
    let [first, second] = [(); 2].map(|()| round.next().unwrap().unwrap().take());
    let _ = round.end().unwrap();
    let mut round = queue.round().unwrap();
    round.put(first, 4).unwrap();
    let _ = dirty(&ram);
    second.complete(4);
    assert_eq!(dirty(&ram), [0, 1]);
    let _ = round.end().unwrap();
    assert_eq!(ring.used().len(), usize::from(SIZE / 2) + 1);
}

#[test]
fn what_a_panic_leaves_half_written_is_marked() {
    for translated in [false, true] {
        let ram = Arc::new(Tracked::from_ranges(&whole()).unwrap());
        let mut ring = Ring::new(&ram, 0x1000, SIZE);
        let memory = space(&ram, translated);
        let mut queue = Queue::new(QueueIndex(0), SIZE, ring.layout, ALL, &memory, Arc::new(Silent)).unwrap();
        ring.request(&[writable(0x9000, 4)]);
        let _ = dirty(&ram);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut round = queue.round().unwrap();
            let chain = round.next().unwrap().unwrap();
            let lent = chain.writer().with_slices(&mut Slices::default(), |slices| {
                slices[0].copy_from(&[7u8; 2]);
                panic!("a backend's");
            });
            lent.unwrap();
        }));
        assert!(panicked.is_err());
        assert!(dirty(&ram).contains(&9), "translated {translated}");
    }
}
