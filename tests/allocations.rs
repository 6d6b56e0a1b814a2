//! What a request costs in allocations: none, once its queue is warm.

#[path = "support/ring.rs"]
mod ring;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
    task::Waker,
};

use devisor::{
    memory::Memory,
    virtio::{
        QueueIndex,
        block::{AsyncStorage, Buffers, MemoryStorage, Operation, Outcome, Pool, Tag},
        features,
        queue::{OwnedChain, Queue, Rest, Silent, Slices},
    },
};
use ring::{Ring, memory, readable, writable};

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system's allocator's; the count is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls `work` until it is warm, then counts. A queue makes room for its first sixteen chains that are taken, one at a time.
fn allocations(mut work: impl FnMut()) -> u64 {
    (0..32).for_each(|_| work());
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| work());
    ALLOCATIONS.get() - before
}

fn queue() -> (Ring, Queue) {
    let memory = memory();
    let ring = Ring::new(&memory, 0x1000, 64);
    let memory = Memory::new(memory);
    let queue = Queue::new(
        QueueIndex(0),
        64,
        ring.layout,
        features::COMMON,
        &memory,
        Arc::new(Silent),
    );
    (ring, queue.unwrap())
}

/// So many segments of one request.
fn offer(ring: &mut Ring, segments: u64) {
    let mut buffers = vec![readable(0x8000, 16)];
    buffers.extend((1..segments).map(|n| writable(0x10000 + 64 * n, 64)));
    ring.request(&buffers);
}

#[test]
fn a_request_that_is_answered_in_its_round_allocates_nothing() {
    for segments in [1, 3, 40] {
        let (mut ring, mut queue) = queue();
        let mut room = Slices::default();
        let count = allocations(|| {
            // What the driver allocates is not the device's.
            let before = ALLOCATIONS.get();
            offer(&mut ring, segments);
            ALLOCATIONS.set(before);
            let mut round = queue.round().unwrap();
            while let Some(chain) = round.next().unwrap() {
                chain.reader().read(&mut [0; 16]).unwrap();
                chain.writer().with_slices(&mut room, |slices| slices.len()).unwrap();
                chain.writer().fill(1, chain.writable_len()).unwrap();
                chain.complete(0).unwrap();
            }
            assert_eq!(round.end().unwrap(), Rest::Drained);
        });
        assert_eq!(count, 0, "a chain of {segments}");
    }
}

#[test]
fn a_request_that_is_taken_and_completed_later_allocates_nothing() {
    for segments in [1, 3, 40] {
        let (mut ring, mut queue) = queue();
        let mut taken: Vec<OwnedChain> = Vec::with_capacity(1);
        let count = allocations(|| {
            // What the driver allocates is not the device's.
            let before = ALLOCATIONS.get();
            offer(&mut ring, segments);
            ALLOCATIONS.set(before);
            let mut round = queue.round().unwrap();
            while let Some(chain) = round.next().unwrap() {
                taken.push(chain.take());
            }
            assert_eq!(round.end().unwrap(), Rest::Drained);
            taken.drain(..).for_each(|chain| chain.complete(0));
        });
        assert_eq!(count, 0, "a chain of {segments}");
    }
}

#[test]
fn a_request_that_a_pool_makes_allocates_nothing() {
    let pool = Pool::new();
    let storage = pool.storage(MemoryStorage::new(1 << 20));
    let mut channel = storage.open(QueueIndex(0), Waker::noop().clone()).unwrap();
    let mut spare = vec![Buffers::zeroed(4096, 4096)];
    let count = allocations(|| {
        let buffers = spare.pop().unwrap();
        channel.submit(Tag(0), Operation::Read { offset: 0 }, buffers);
        channel.commit();
        assert!(pool.run_one());
        channel.reap(&mut |ended| {
            assert!(matches!(ended.outcome, Outcome::Done(Ok(4096))));
            spare.push(ended.buffers);
        });
    });
    assert_eq!(count, 0);
}
