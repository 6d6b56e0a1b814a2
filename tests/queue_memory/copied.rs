//! Pages that are copied by their marks while a device works.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use devisor::virtio::{
    Queue, QueueIndex,
    queue::{OwnedChain, Silent, Slices},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, bitmap::AtomicBitmap};

use crate::{
    NO_EVENT_IDX, Tracked,
    dirty::{region_start, space},
    driver::Driver,
    layout,
    packed::PackedRing,
    parted,
    ring::{Ring, writable},
    whole,
};

/// Ends a loop on another thread, also when a test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A migration copies pages while the device works, in its rounds and on another thread: with the pages that are marked last,
/// the copy is what the memory is. A page that was marked before its bytes were written would be missing in it.
#[test]
fn a_copy_by_dirty_pages_misses_nothing_under_random_io() {
    copy_by_dirty_pages::<Ring<AtomicBitmap>>();
}

#[test]
fn a_copy_by_dirty_pages_misses_nothing_of_a_packed_ring() {
    copy_by_dirty_pages::<PackedRing<AtomicBitmap>>();
}

fn copy_by_dirty_pages<R: Driver<AtomicBitmap>>() {
    for (seed, translated) in [(1u64, false), (2, true), (3, false)] {
        let ranges = if seed == 3 { parted() } else { whole() };
        let ram = Arc::new(Tracked::from_ranges(&ranges).unwrap());
        let memory = space(&ram, translated);
        let (layout, features) = (layout(16), NO_EVENT_IDX | R::FORMAT);
        let mut ring = R::new(&ram, layout);
        let mut queue = Queue::new(QueueIndex(0), 16, layout, features, &memory, Arc::new(Silent)).unwrap();
        let copy = Arc::new(Mutex::new(vec![0; 0x10000]));
        let pass = {
            let (ram, copy) = (ram.clone(), copy.clone());
            // Regions that begin within a page have pages of their own.
            move || {
                let mut copy = copy.lock().unwrap();
                for region in ram.iter() {
                    let start = region_start(region);
                    let len = region.size();
                    let bits = region.bitmap().get_and_reset();
                    for page in (0..len.div_ceil(0x1000)).filter(|page| bits[page / 64] >> (page % 64) & 1 != 0) {
                        let (from, to) = (start + page * 0x1000, (start + len).min(start + (page + 1) * 0x1000));
                        ram.read_slice(&mut copy[from..to], GuestAddress(from as u64)).unwrap();
                    }
                }
            }
        };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let ended = Ended(&done);
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    pass();
                }
            });
            let (give, taken) = mpsc::channel::<(OwnedChain, u8)>();
            let other = scope.spawn(move || {
                for (chain, byte) in taken {
                    let len = chain.writable_len();
                    let mut room = chain.writer();
                    room.fill(byte, len / 2).unwrap();
                    let lent = room.with_slices(&mut Slices::default(), |slices| {
                        slices
                            .iter()
                            .for_each(|slice| slice.copy_from(&vec![byte; slice.len()]));
                    });
                    lent.unwrap();
                    chain.complete(len);
                }
            });
            let mut random = seed;
            let mut next = move || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            let mut out = 0;
            for _ in 0..1000 {
                if out == 0 {
                    // As many as there are descriptors for.
                    for _ in 0..8 {
                        let buffers = [(); 2].map(|()| writable(0x5000 + next() % 0xa000, (next() % 0x800) as u32));
                        let head = ring.add(&buffers);
                        ring.offer(head);
                    }
                    out = 8;
                }
                let mut round = queue.round().unwrap();
                while let Some(chain) = round.next().unwrap() {
                    let byte = next() as u8;
                    if next() % 2 == 0 {
                        give.send((chain.take(), byte)).unwrap();
                    } else {
                        let len = chain.writable_len();
                        chain.writer().fill(byte, len).unwrap();
                        chain.complete(len).unwrap();
                    }
                }
                let _ = round.end().unwrap();
                out -= ring.used().len();
            }
            drop(give);
            other.join().unwrap();
            drop(ended);
        });
        pass();
        let mut bytes = vec![0; 0x10000];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let copy = copy.lock().unwrap();
        let missed = (0..0x10000).filter(|&at| copy[at] != bytes[at]).count();
        assert_eq!(missed, 0, "seed {seed}, translated {translated}");
    }
}
