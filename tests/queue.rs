//! Virtqueues: what a well-behaved driver gets, and what becomes of one that is not.

#[path = "support/ring.rs"]
mod ring;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use devisor::virtio::{
    Queue, QueueError, QueueIndex, Round, features,
    queue::{QueueCounters, QueueLayout, QueueState, QueueStateError, VirtioInterrupt},
};
use proptest::prelude::*;
use ring::{Buffer, INDIRECT, NEXT, Ring, WRITE, memory, readable, writable};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, MmapRegion, Permissions,
    bitmap::AtomicBitmap, guest_memory::GuestMemorySliceIterator,
};

const SIZE: u16 = 8;
const ALL: u64 = features::COMMON;
const NO_EVENT_IDX: u64 = features::COMMON & !features::EVENT_IDX;

/// Counts signals, and refuses them on demand.
#[derive(Default)]
struct Signals {
    used: AtomicU32,
    refuse: AtomicBool,
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

/// Guest memory with a driver that offers a request just after each time the device has looked, and withdraws it again.
struct Flickering {
    memory: Arc<GuestMemoryMmap>,
    avail_idx: GuestAddress,
    looks: AtomicU32,
}

impl GuestMemory for Flickering {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(&*self.memory, address, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        if address == self.avail_idx {
            // It gives up at some time, so that a round which waits for it fails the test and does not hang it.
            let look = self.looks.fetch_add(1, Ordering::SeqCst);
            let idx = if look < 10_000 { look as u16 % 2 } else { 0 };
            self.memory.write_obj(idx, address)?;
        }
        GuestMemory::get_slices(&*self.memory, address, count, access)
    }
}

struct Setup {
    memory: Arc<GuestMemoryMmap>,
    ring: Ring,
    queue: Queue,
    signals: Arc<Signals>,
}

fn setup(features: u64) -> Setup {
    let memory = memory();
    let ring = Ring::new(&memory, 0x1000, SIZE);
    let signals = Arc::new(Signals::default());
    let queue = Queue::new(
        QueueIndex(3),
        SIZE,
        ring.layout,
        features,
        &*memory,
        signals.clone() as _,
    );
    Setup {
        memory,
        ring,
        queue: queue.expect("a valid layout"),
        signals,
    }
}

impl Setup {
    fn signals(&self) -> u32 {
        self.signals.used.load(Ordering::SeqCst)
    }

    /// Pops one chain and completes it with `written`.
    fn answer(&mut self, written: u32) {
        let chain = self.queue.pop(&*self.memory).expect("a valid ring").expect("a chain");
        self.queue
            .complete(&*self.memory, chain, written)
            .expect("a valid ring");
    }

    /// What popping the next chain says.
    fn refused(&mut self) -> QueueError {
        self.queue.pop(&*self.memory).expect_err("the ring breaks the rules")
    }
}

#[test]
fn a_chain_is_read_written_and_used() {
    let mut s = setup(ALL);
    s.memory.write_slice(b"hello ", GuestAddress(0x8000)).unwrap();
    s.memory.write_slice(b"world", GuestAddress(0x9000)).unwrap();
    let head = s.ring.request(&[
        readable(0x8000, 6),
        readable(0x9000, 5),
        writable(0xa000, 2),
        writable(0xb000, 9),
    ]);

    let chain = s.queue.pop(&*s.memory).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (11, 11));
    let mut text = [0; 11];
    chain.reader(&*s.memory).read(&mut text).unwrap();
    assert_eq!(&text, b"hello world");
    chain.writer(&*s.memory).write(&text).unwrap();
    s.queue.complete(&*s.memory, chain, 11).unwrap();

    let mut back = [0; 9];
    s.memory.read_slice(&mut back, GuestAddress(0xb000)).unwrap();
    assert_eq!(&back, b"llo world");
    assert_eq!(s.ring.used(), [(head.into(), 11)]);
    assert_eq!(s.signals(), 1);
    assert!(s.queue.pop(&*s.memory).unwrap().is_none());
}

#[test]
fn an_indirect_table_is_followed_and_may_be_as_long_as_the_queue() {
    let mut s = setup(ALL);
    let buffers: Vec<_> = (0..u64::from(SIZE)).map(|n| readable(0x10000 + n, 1)).collect();
    let head = s.ring.add_indirect(0x20000, &buffers);
    s.ring.offer(head);
    let chain = s.queue.pop(&*s.memory).unwrap().unwrap();
    assert_eq!(chain.readable().len(), usize::from(SIZE));
}

#[test]
fn slices_of_a_chain_are_the_guests_memory() {
    let mut s = setup(ALL);
    s.ring
        .request(&[writable(0x8000, 3), writable(0x9000, 0), writable(0x9001, 4)]);
    let chain = s.queue.pop(&*s.memory).unwrap().unwrap();
    let (_, tail) = chain.writer(&*s.memory).split_at(2).unwrap();
    let lengths = tail.with_slices(|slices| {
        slices.iter().for_each(|slice| slice.copy_from(&vec![7u8; slice.len()]));
        slices.iter().map(|slice| slice.len()).collect::<Vec<_>>()
    });
    assert_eq!(lengths.unwrap(), [1, 4]);
    assert_eq!(s.ring.get::<[u8; 4]>(0x8000), [0, 0, 7, 0]);
    assert_eq!(s.ring.get::<[u8; 6]>(0x9000), [0, 7, 7, 7, 7, 0]);
}

#[test]
fn reading_or_writing_beyond_a_chain_is_refused_whole() {
    let mut s = setup(ALL);
    s.ring.request(&[readable(0x8000, 4), writable(0x9000, 4)]);
    let chain = s.queue.pop(&*s.memory).unwrap().unwrap();
    assert_eq!(chain.reader(&*s.memory).read(&mut [0; 6]), Err(QueueError::Short(2)));
    assert_eq!(chain.writer(&*s.memory).write(&[1; 5]), Err(QueueError::Short(1)));
    assert_eq!(chain.writer(&*s.memory).fill(1, 5), Err(QueueError::Short(1)));
    assert_eq!(s.ring.get::<u32>(0x9000), 0);
    assert!(chain.writer(&*s.memory).split_at(5).is_err());
}

// Signals and their suppression (sections 2.7.7 and 2.7.10).

#[test]
fn the_no_interrupt_flag_is_honoured_without_event_idx() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.set_no_interrupt(true);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    assert_eq!(s.signals(), 0);
    s.ring.set_no_interrupt(false);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    assert_eq!(s.signals(), 1);
    assert_eq!(
        s.queue.counters(),
        QueueCounters {
            completed: 2,
            signalled: 1,
            suppressed: 1,
            failed: 0
        }
    );
}

#[test]
fn nothing_is_signalled_when_nothing_was_added() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.queue.complete_all(&*s.memory, []).unwrap();
        assert_eq!(
            s.queue.serve(&*s.memory, |_, _| unreachable!()).unwrap(),
            Round::Drained
        );
        assert_eq!(s.signals(), 0);
    }
}

#[test]
fn with_event_idx_the_driver_hears_when_its_index_is_passed() {
    let mut s = setup(ALL);
    s.ring.set_used_event(2);
    for expected in [0, 0, 1, 1] {
        s.ring.request(&[writable(0x8000, 1)]);
        s.answer(1);
        assert_eq!(s.signals(), expected, "after {} buffers", s.ring.used_idx());
    }
}

#[test]
fn event_index_arithmetic_wraps() {
    let mut s = setup(ALL);
    s.ring.start_at(0xfffe);
    let state = QueueState {
        next_avail: 0xfffe,
        next_used: 0xfffe,
        ..s.queue.save()
    };
    s.queue = Queue::restore(QueueIndex(3), SIZE, &state, &*s.memory, s.signals.clone()).unwrap();
    s.ring.set_used_event(0xffff);
    for expected in [0, 1, 1] {
        s.ring.request(&[writable(0x8000, 1)]);
        s.answer(1);
        assert_eq!(s.signals(), expected);
    }
    assert_eq!(s.ring.used_idx(), 1);
    s.ring.set_used_event(1);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    assert_eq!(s.signals(), 2);
}

#[test]
fn several_completions_are_one_signal() {
    let mut s = setup(NO_EVENT_IDX);
    for _ in 0..3 {
        s.ring.request(&[writable(0x8000, 1)]);
    }
    let mut chains = Vec::new();
    while let Some(chain) = s.queue.pop(&*s.memory).unwrap() {
        chains.push((chain, 1));
    }
    chains.reverse();
    s.queue.complete_all(&*s.memory, chains).unwrap();
    assert_eq!(s.ring.used(), [(2, 1), (1, 1), (0, 1)]);
    assert_eq!(s.signals(), 1);
}

#[test]
fn chains_before_one_that_is_refused_are_signalled() {
    for features in [ALL, NO_EVENT_IDX] {
        let (mut s, mut there) = (setup(features), setup(features));
        there.ring.request(&[writable(0x8000, 1)]);
        let foreign = there.queue.pop(&*there.memory).unwrap().unwrap();
        s.ring.request(&[writable(0x8000, 1)]);
        let chain = s.queue.pop(&*s.memory).unwrap().unwrap();
        let completed = s.queue.complete_all(&*s.memory, [(chain, 1), (foreign, 1)]);
        assert!(matches!(completed, Err(QueueError::Request(_))));
        assert_eq!(s.ring.used(), [(0, 1)]);
        assert_eq!(
            s.signals(),
            1,
            "the driver is not left to wait for a buffer that was used"
        );
    }
}

#[test]
fn a_refused_signal_is_carried_by_the_next_call_even_if_that_one_is_suppressed() {
    let mut s = setup(ALL);
    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    assert_eq!(s.ring.used().len(), 1, "the buffer is used all the same");
    s.signals.refuse.store(false, Ordering::SeqCst);
    // used_event is still 0: this completion alone would not be signalled.
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    assert_eq!(s.signals(), 1);

    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.set_used_event(2);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    s.signals.refuse.store(false, Ordering::SeqCst);
    assert_eq!(
        s.queue.serve(&*s.memory, |_, _| unreachable!()).unwrap(),
        Round::Drained
    );
    assert_eq!(s.signals(), 2, "an idle round carries it too");
    assert_eq!(s.queue.counters().failed, 2);
}

// Kicks.

#[test]
fn kicks_are_suppressed_while_serving_and_expected_after() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.ring.request(&[writable(0x8000, 1)]);
        let ring = &s.ring;
        let no_notify = features & features::EVENT_IDX == 0;
        let round = s.queue.serve(&*s.memory, |_, _| {
            assert_eq!(ring.used_flags(), u16::from(no_notify));
            Ok(1)
        });
        assert_eq!(round.unwrap(), Round::Drained);
        assert_eq!(s.ring.used_flags(), 0);
        if !no_notify {
            assert_eq!(s.ring.avail_event(), 1);
        }
    }
}

#[test]
fn a_request_that_comes_before_kicks_are_expected_again_is_found() {
    let mut s = setup(ALL);
    assert_eq!(s.queue.expect_kicks(&*s.memory).unwrap(), Round::Drained);
    s.ring.request(&[writable(0x8000, 1)]);
    assert_eq!(s.queue.expect_kicks(&*s.memory).unwrap(), Round::More);
}

#[test]
fn a_round_is_bounded_though_the_driver_never_stops() {
    let mut s = setup(ALL);
    let (ring, mut served) = (&mut s.ring, 0);
    ring.request(&[writable(0x8000, 1)]);
    let round = s.queue.serve(&*s.memory, |chain, _| {
        served += 1;
        // The next one: the other half of the descriptors, so that the head is not in flight.
        let other = (chain.head() + 4) % SIZE;
        ring.descriptor(other, 0x8000, 1, WRITE, 0);
        ring.offer(other);
        Ok(1)
    });
    assert_eq!(round.unwrap(), Round::More);
    assert_eq!(served, SIZE);
}

#[test]
fn an_avail_index_that_comes_and_goes_does_not_hold_a_round() {
    let s = setup(ALL);
    let memory = Flickering {
        memory: Arc::clone(&s.memory),
        avail_idx: GuestAddress(s.ring.layout.driver_area + 2),
        looks: AtomicU32::new(0),
    };
    let mut queue = s.queue;
    // Every other look finds the request withdrawn, as if the driver's store raced with each of the device's loads.
    let round = queue.serve(&memory, |_, _| unreachable!("never there when it is asked for"));
    assert_eq!(round.unwrap(), Round::More);
    assert!(memory.looks.load(Ordering::SeqCst) <= 2 * u32::from(SIZE));
}

#[test]
fn a_round_of_large_requests_ends_early() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 32 << 20)]).expect("32 MiB");
    let memory = Arc::new(memory);
    let mut ring = Ring::new(&memory, 0x1000, SIZE);
    let queue = Queue::new(
        QueueIndex(3),
        SIZE,
        ring.layout,
        ALL,
        &*memory,
        Arc::new(Signals::default()),
    );
    let mut queue = queue.expect("a valid layout");
    for _ in 0..4 {
        ring.request(&[writable(1 << 20, 9 << 20)]);
    }
    let mut served = 0;
    let mut serve = || {
        let round = queue.serve(&*memory, |_, _| {
            served += 1;
            Ok(0)
        });
        (round.unwrap(), served)
    };
    assert_eq!(serve(), (Round::More, 2), "18 MiB are enough for one round");
    assert_eq!(serve(), (Round::More, 4));
    assert_eq!(serve(), (Round::Drained, 4));
}

// Hostile rings.

#[test]
fn an_avail_index_too_far_ahead_is_an_error() {
    let mut s = setup(ALL);
    s.ring.request(&[readable(0x8000, 1)]);
    s.ring.set_avail_idx(SIZE + 1);
    assert_eq!(
        s.refused(),
        QueueError::AvailIndex {
            ahead: SIZE + 1,
            size: SIZE
        }
    );
    s.ring.set_avail_idx(0xffff);
    assert_eq!(
        s.refused(),
        QueueError::AvailIndex {
            ahead: 0xffff,
            size: SIZE
        }
    );
}

#[test]
fn a_head_out_of_range_is_an_error() {
    let mut s = setup(ALL);
    s.ring.offer(SIZE);
    assert_eq!(s.refused(), QueueError::DescriptorIndex { index: SIZE, len: SIZE });
}

#[test]
fn a_next_out_of_range_is_an_error_and_no_shorter_chain() {
    let mut s = setup(ALL);
    s.ring.descriptor(0, 0x8000, 1, NEXT, SIZE);
    s.ring.offer(0);
    assert_eq!(s.refused(), QueueError::DescriptorIndex { index: SIZE, len: SIZE });
    let mut s = setup(ALL);
    s.ring
        .add_indirect(0x20000, &[readable(0x8000, 1), readable(0x9000, 1)]);
    // The last one goes on, to where the table has ended.
    let last = ring::Descriptor {
        address: 0x9000,
        len: 1,
        flags: NEXT,
        next: 2,
    };
    s.ring.write_descriptor(0x20000, 1, last);
    s.ring.offer(0);
    assert_eq!(s.refused(), QueueError::DescriptorIndex { index: 2, len: 2 });
}

#[test]
fn a_loop_is_a_chain_that_is_too_long() {
    let mut s = setup(ALL);
    s.ring.descriptor(0, 0x8000, 1, NEXT, 1);
    s.ring.descriptor(1, 0x8000, 1, NEXT, 0);
    s.ring.offer(0);
    assert_eq!(s.refused(), QueueError::ChainTooLong(SIZE));
}

#[test]
fn an_indirect_chain_longer_than_the_queue_is_an_error() {
    let mut s = setup(ALL);
    let buffers = vec![readable(0x8000, 1); usize::from(SIZE) + 1];
    let head = s.ring.add_indirect(0x20000, &buffers);
    s.ring.offer(head);
    assert_eq!(s.refused(), QueueError::ChainTooLong(SIZE));
}

#[test]
fn indirect_tables_are_refused_where_there_must_be_none() {
    for (what, features, len, flags, nested) in [
        ("not negotiated", ALL & !features::INDIRECT_DESC, 16, INDIRECT, 0),
        ("nested", ALL, 16, INDIRECT, INDIRECT),
        ("no multiple of 16", ALL, 17, INDIRECT, 0),
        ("empty", ALL, 0, INDIRECT, 0),
        ("with a next", ALL, 16, INDIRECT | NEXT, 0),
        ("endless", ALL, 0xffff_fff0, INDIRECT, 0),
    ] {
        let mut s = setup(features);
        s.ring.descriptor(0, 0x20000, len, flags, 1);
        s.ring.write_descriptor(
            0x20000,
            0,
            ring::Descriptor {
                address: 0x8000,
                len: 16,
                flags: nested,
                next: 0,
            },
        );
        s.ring.offer(0);
        let refused = s.refused();
        assert!(matches!(refused, QueueError::Indirect(_)), "{what}: {refused}");
    }
}

#[test]
fn memory_that_is_not_the_guests_is_not_touched() {
    let top = 1 << 20;
    for (address, len) in [
        (top, 1),
        (top - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (1 << 40, 0x1000),
    ] {
        for flags in [0, WRITE, INDIRECT] {
            let mut s = setup(ALL);
            let len = if flags == INDIRECT { 16 } else { len };
            let address = if flags == INDIRECT {
                address.max(top - 15)
            } else {
                address
            };
            s.ring.descriptor(0, address, len, flags, 0);
            s.ring.offer(0);
            let refused = s.refused();
            assert!(
                matches!(refused, QueueError::Outside { .. }),
                "{len} at {address:#x}: {refused}"
            );
        }
    }
}

#[test]
fn lengths_that_overflow_are_an_error() {
    let mut s = setup(ALL);
    // No single buffer is out of memory if it is never looked at: the sum must be.
    let big = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 31)]);
    let big = big.expect("address space for 2 GiB");
    s.ring
        .request(&[readable(1 << 32, 1 << 31), readable(1 << 32, 1 << 31)]);
    let mut ring = vec![0; 0x4000];
    s.memory.read_slice(&mut ring, GuestAddress(0x1000)).unwrap();
    big.write_slice(&ring, GuestAddress(0x1000)).unwrap();
    assert_eq!(s.queue.pop(&big).expect_err("4 GiB"), QueueError::ChainTooLarge);
}

#[test]
fn readable_after_writable_is_an_error() {
    let mut s = setup(ALL);
    s.ring.request(&[writable(0x8000, 1), readable(0x9000, 1)]);
    assert_eq!(s.refused(), QueueError::ReadableAfterWritable);
}

#[test]
fn a_head_in_flight_is_not_accepted_again_but_one_that_was_used_is() {
    let mut s = setup(ALL);
    let head = s.ring.request(&[readable(0x8000, 1)]);
    let chain = s.queue.pop(&*s.memory).unwrap().unwrap();
    s.ring.offer(head);
    assert_eq!(s.refused(), QueueError::InFlight(head));
    s.queue.complete(&*s.memory, chain, 0).unwrap();
    assert!(s.queue.pop(&*s.memory).unwrap().is_some());
}

#[test]
fn used_length_is_never_more_than_there_is_room_for() {
    let mut s = setup(ALL);
    s.ring.request(&[readable(0x8000, 9), writable(0x9000, 5)]);
    s.answer(u32::MAX);
    assert_eq!(s.ring.used(), [(0, 5)]);
}

#[test]
fn a_chain_of_another_queue_is_refused() {
    let (mut here, mut there) = (setup(ALL), setup(ALL));
    there.ring.request(&[readable(0x8000, 1)]);
    let foreign = there.queue.pop(&*there.memory).unwrap().unwrap();
    assert!(matches!(
        here.queue.complete(&*here.memory, foreign, 0),
        Err(QueueError::Request(_))
    ));
    assert_eq!(here.ring.used_idx(), 0);
}

#[test]
fn a_chain_of_another_queue_is_refused_also_where_its_head_is_in_flight() {
    let (mut here, mut there) = (setup(ALL), setup(ALL));
    for side in [&mut here, &mut there] {
        side.ring.request(&[writable(0x8000, 1)]);
    }
    let own = here.queue.pop(&*here.memory).unwrap().unwrap();
    let foreign = there.queue.pop(&*there.memory).unwrap().unwrap();
    assert_eq!(own.head(), foreign.head());
    assert!(matches!(
        here.queue.complete(&*here.memory, foreign, 1),
        Err(QueueError::Request(_))
    ));
    assert_eq!(here.ring.used_idx(), 0);
    here.queue.complete(&*here.memory, own, 1).unwrap();
    assert_eq!(here.ring.used(), [(0, 1)]);
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let memory = memory();
    let good = Ring::new(&memory, 0x1000, SIZE).layout;
    let refused = |layout: QueueLayout| {
        let signals = Arc::new(Signals::default());
        Queue::new(QueueIndex(3), SIZE, layout, ALL, &*memory, signals).expect_err("it cannot be")
    };
    for size in [0, 3, 2 * SIZE, 0xffff] {
        assert_eq!(
            refused(QueueLayout { size, ..good }),
            QueueError::Size { size, max: SIZE }
        );
    }
    for layout in [
        QueueLayout {
            descriptor_area: 0x1008,
            ..good
        },
        QueueLayout {
            driver_area: 0x2001,
            ..good
        },
        QueueLayout {
            device_area: 0x3002,
            ..good
        },
    ] {
        assert!(matches!(refused(layout), QueueError::Alignment { .. }));
    }
    for address in [1 << 20, (1 << 20) - 16, u64::MAX - 15, u64::MAX - 0xfff] {
        for layout in [
            QueueLayout {
                descriptor_area: address,
                ..good
            },
            QueueLayout {
                driver_area: address,
                ..good
            },
            QueueLayout {
                device_area: address,
                ..good
            },
        ] {
            assert!(matches!(refused(layout), QueueError::Outside { .. }), "{layout:x?}");
        }
    }
}

// State.

#[test]
fn requests_in_flight_are_handed_out_again_after_a_restore() {
    let mut s = setup(ALL);
    for _ in 0..3 {
        s.ring.request(&[writable(0x8000, 1)]);
    }
    s.answer(1);
    let _in_flight = s.queue.pop(&*s.memory).unwrap().unwrap();
    let state = s.queue.save();
    assert_eq!(state.in_flight, [1]);
    let mut restored = Queue::restore(QueueIndex(3), SIZE, &state, &*s.memory, s.signals.clone()).unwrap();
    assert_eq!(restored.save(), state);
    let mut heads = Vec::new();
    let round = restored.serve(&*s.memory, |chain, _| {
        heads.push(chain.head());
        Ok(1)
    });
    assert_eq!(round.unwrap(), Round::Drained);
    assert_eq!(heads, [1, 2]);
    assert_eq!(s.ring.used_idx(), 3);
}

#[test]
fn requests_in_flight_are_handed_out_again_in_the_order_in_which_they_were_taken() {
    let mut s = setup(ALL);
    let heads = [5, 1, 7, 2];
    let mut chains = Vec::new();
    for head in heads {
        s.ring.descriptor(head, 0x8000, 1, WRITE, 0);
        s.ring.offer(head);
        chains.push(s.queue.pop(&*s.memory).unwrap().unwrap());
    }
    // The second is answered; its head comes again, now as the last one.
    s.queue.complete(&*s.memory, chains.remove(1), 1).unwrap();
    s.ring.offer(1);
    chains.push(s.queue.pop(&*s.memory).unwrap().unwrap());

    let state = s.queue.save();
    assert_eq!(state.in_flight, [5, 7, 2, 1]);
    let mut restored = Queue::restore(QueueIndex(3), SIZE, &state, &*s.memory, s.signals.clone()).unwrap();
    let again = restored.pop(&*s.memory).unwrap().unwrap();
    assert_eq!(again.head(), 5);
    assert_eq!(
        restored.save(),
        state,
        "one that was handed out again is still in flight"
    );
    let mut rest = Vec::new();
    while let Some(chain) = restored.pop(&*s.memory).unwrap() {
        rest.push(chain.head());
    }
    assert_eq!(rest, [7, 2, 1]);
}

#[test]
fn a_signal_that_was_refused_before_the_save_comes_after_the_restore() {
    let mut s = setup(ALL);
    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    s.signals.refuse.store(false, Ordering::SeqCst);
    let mut restored = Queue::restore(QueueIndex(3), SIZE, &s.queue.save(), &*s.memory, s.signals.clone()).unwrap();
    assert_eq!(s.signals(), 0, "nothing is raised by the restore itself");
    let _ = restored.serve(&*s.memory, |_, _| unreachable!()).unwrap();
    assert_eq!(s.signals(), 1);
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let s = setup(ALL);
    let good = s.queue.save();
    for bad in [
        QueueState {
            next_avail: 1,
            ..good.clone()
        },
        QueueState {
            in_flight: vec![1],
            ..good.clone()
        },
        QueueState {
            next_avail: 2,
            in_flight: vec![1, 1],
            ..good.clone()
        },
        QueueState {
            next_avail: 1,
            in_flight: vec![SIZE],
            ..good.clone()
        },
        QueueState {
            layout: QueueLayout { size: 7, ..good.layout },
            ..good.clone()
        },
    ] {
        let restored = Queue::restore(QueueIndex(3), SIZE, &bad, &*s.memory, s.signals.clone());
        let error = restored.expect_err("a contradiction");
        assert!(
            matches!(error, QueueStateError::InFlight { .. } | QueueStateError::Layout(_)),
            "{bad:?}: {error}"
        );
    }
}

// Guest memory.

#[test]
fn every_write_into_guest_memory_is_marked_dirty() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.ring.request(&[
            readable(0x8000, 4),
            writable(0x9000, 4),
            writable(0xa000, 4),
            writable(0xb000, 4),
            writable(0xc000, 4),
        ]);
        let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut bytes = vec![0; 0x3000];
        s.memory.read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        memory.write_slice(&bytes, GuestAddress(0x1000)).unwrap();
        let mapping: &MmapRegion<AtomicBitmap> = memory.find_region(GuestAddress(0)).unwrap();
        let bitmap = mapping.bitmap();
        // The pages that were written since this was last asked.
        let dirty = || {
            let pages: Vec<_> = (0..0x100).filter(|page| bitmap.is_addr_set(page << 12)).collect();
            bitmap.reset();
            pages
        };
        let _ = dirty();

        s.queue.suppress_kicks(&memory).unwrap();
        let told = if features == ALL { vec![] } else { vec![3] };
        assert_eq!(dirty(), told, "the flags of the used ring");
        let chain = s.queue.pop(&memory).unwrap().unwrap();
        chain.reader(&memory).read(&mut [0; 4]).unwrap();
        chain.reader(&memory).with_slices(|_| ()).unwrap();
        assert_eq!(dirty(), [0usize; 0], "reading leaves no mark");

        let mut writer = chain.writer(&memory);
        writer.write(&[1; 4]).unwrap();
        assert_eq!(dirty(), [9]);
        writer.fill(1, 4).unwrap();
        assert_eq!(dirty(), [0xa]);
        writer.with_slices(|_| ()).unwrap();
        assert_eq!(dirty(), [0xb, 0xc]);
        s.queue.complete(&memory, chain, 16).unwrap();
        assert_eq!(dirty(), [3], "the used ring");
        assert_eq!(s.queue.expect_kicks(&memory).unwrap(), Round::Drained);
        assert_eq!(dirty(), [3], "avail_event or the flags");
    }
}

fn buffer() -> impl Strategy<Value = Buffer> {
    let address = prop_oneof![0u64..1 << 20, (1u64 << 20) - 64..(1 << 20) + 64, any::<u64>()];
    let len = prop_oneof![0u32..64, any::<u32>()];
    (address, len, any::<bool>()).prop_map(|(address, len, writable)| Buffer { address, len, writable })
}

proptest! {
    /// Whatever lies in the ring's memory: no panic, no endless loop, and a chain that comes out is a valid one.
    #[test]
    fn any_ring_is_contained(
        bytes in proptest::collection::vec(any::<u8>(), 16 * usize::from(SIZE)),
        avail in proptest::collection::vec(any::<u16>(), 3 + usize::from(SIZE)),
        features in prop_oneof![Just(ALL), Just(NO_EVENT_IDX)],
    ) {
        let mut s = setup(features);
        s.memory.write_slice(&bytes, GuestAddress(s.ring.layout.descriptor_area)).unwrap();
        for (at, entry) in (0u64..).zip(&avail) {
            s.ring.put(s.ring.layout.driver_area + 2 * at, entry % 12);
        }
        let round = s.queue.serve(&*s.memory, |chain, memory| {
            let mut all = vec![0; chain.readable_len() as usize];
            chain.reader(memory).read(&mut all).expect("it was checked");
            chain.writer(memory).fill(0x5a, chain.writable_len()).expect("it was checked");
            Ok(chain.writable_len())
        });
        prop_assert!(round.is_err() || s.queue.counters().completed <= u64::from(SIZE));
    }

    /// A chain is taken exactly if each of its buffers is in memory, in order and not too long in all.
    #[test]
    fn a_chain_is_taken_if_and_only_if_it_is_valid(
        buffers in proptest::collection::vec(buffer(), 1..=usize::from(SIZE)),
        indirect in any::<bool>(),
    ) {
        let mut s = setup(ALL);
        let head = if indirect { s.ring.add_indirect(0x80000, &buffers) } else { s.ring.add(&buffers) };
        s.ring.offer(head);
        let inside = |b: &Buffer| b.len == 0 && b.address.checked_add(0).is_some()
            || b.address.checked_add(b.len.into()).is_some_and(|end| end <= 1 << 20);
        let ordered = buffers.is_sorted_by_key(|buffer| buffer.writable);
        let total: u64 = buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
        let valid = ordered && total < 1 << 32 && buffers.iter().all(inside);
        let chain = s.queue.pop(&*s.memory);
        prop_assert_eq!(chain.is_ok(), valid, "{:?}", chain);
        if let Ok(Some(chain)) = chain {
            let expected = buffers.iter().filter(|buffer| !buffer.writable).count();
            prop_assert_eq!(chain.readable().len(), expected);
        }
    }
}
