//! Packed rings alone: their sizes, their suppression, their states, and drivers that break their rules.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use devisor::{
    memory::{Memory, Segment},
    virtio::{
        Queue, QueueError, QueueIndex, features,
        queue::{ChainState, Ended, OwnedChain, QueueLayout, QueueState, QueueStateError, Rest, Silent},
    },
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::{
    packed::setup::{ALL, NO_EVENT_IDX, SIZE, Setup, setup},
    packed_ring::{AVAIL, DESC, DISABLE, ENABLE, PackedRing, Place, USED},
    ring::{INDIRECT, NEXT, WRITE, memory, readable, writable},
};

/// A queue of another size.
fn sized(size: u16) -> (PackedRing, Queue) {
    let memory = memory();
    let ring = PackedRing::new(&memory, 0x1000, size);
    let space = Memory::new(memory);
    let features = ALL | features::RING_PACKED;
    let queue = Queue::new(QueueIndex(0), size, ring.layout, features, &space, Arc::new(Silent));
    (ring, queue.expect("a valid layout"))
}

#[test]
fn a_ring_may_have_any_size_and_goes_round_and_round() {
    for size in [1u16, 2, 3, 5, 7, 100, 255, 1000] {
        let (mut ring, mut queue) = sized(size);
        let mut late: Vec<OwnedChain> = Vec::new();
        for turn in 0..40u32 {
            let mut expected = Vec::new();
            let mut offered = 0;
            loop {
                // Chains of one to four, across the end too, and tables.
                let len = (turn + offered) % 4 + 1;
                if len > ring.free().into() {
                    break;
                }
                let mut buffers = vec![readable(0x8000 + u64::from(turn), 3 + offered)];
                buffers.extend((1..len).map(|n| writable(0x9000 + u64::from(n), n)));
                let id = match (turn + offered) % 5 {
                    0 => ring.add_indirect(0x80000 + 0x100 * u64::from(offered % 8), &buffers),
                    _ => ring.add(&buffers),
                };
                ring.offer(id);
                offered += 1;
                expected.push(u32::from(id));
            }
            let mut found: Vec<u32> = Vec::new();
            let mut round = queue.round().unwrap();
            while let Some(chain) = round.next().unwrap() {
                found.push(chain.head().into());
                let sum = chain.writable().iter().map(|segment| segment.len).sum::<u32>();
                assert_eq!(chain.writable_len(), sum);
                match turn % 3 {
                    0 => chain.complete(sum).unwrap(),
                    1 => chain.put(sum).unwrap(),
                    _ => late.push(chain.take()),
                }
            }
            let _ = round.end().unwrap();
            assert_eq!(found, expected, "size {size}, turn {turn}");
            // The last first.
            while let Some(chain) = late.pop() {
                let len = chain.writable_len();
                chain.complete(len);
            }
            let used = ring.used();
            assert_eq!(used.len(), expected.len(), "size {size}, turn {turn}");
            assert_eq!(ring.free(), size);
        }
    }
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let memory = memory();
    let good = PackedRing::new(&memory, 0x1000, 7).layout;
    let refused = |layout: QueueLayout, max| {
        let space = Memory::new(memory.clone());
        Queue::new(
            QueueIndex(0),
            max,
            layout,
            ALL | features::RING_PACKED,
            &space,
            Arc::new(Silent),
        )
        .map(|_| ())
    };
    assert_eq!(refused(good, 7), Ok(()));
    for size in [0, 8, 0x8001, 0xffff] {
        let error = QueueError::Size {
            size,
            max: 7,
            packed: true,
        };
        assert_eq!(refused(QueueLayout { size, ..good }, 7), Err(error));
    }
    let size = 0x8001;
    let error = QueueError::Size {
        size,
        max: 0xffff,
        packed: true,
    };
    assert_eq!(refused(QueueLayout { size, ..good }, 0xffff), Err(error));
    let (descriptor_area, driver_area, device_area) = (0x1008, good.driver_area + 2, good.device_area + 2);
    for layout in [
        QueueLayout {
            descriptor_area,
            ..good
        },
        QueueLayout { driver_area, ..good },
        QueueLayout { device_area, ..good },
    ] {
        assert!(
            matches!(refused(layout, 7), Err(QueueError::Alignment { .. })),
            "{layout:x?}"
        );
    }
    let end = 1 << 20;
    for layout in [
        QueueLayout {
            descriptor_area: end - 96,
            ..good
        },
        QueueLayout {
            driver_area: end,
            ..good
        },
        QueueLayout {
            device_area: u64::MAX - 3,
            ..good
        },
    ] {
        assert!(matches!(refused(layout, 7), Err(QueueError::Outside(_))), "{layout:x?}");
    }
}

// What leaves nothing to give back.

/// Fills the ring with what never ends.
fn endless(s: &Setup) {
    for slot in 0..SIZE {
        let place = Place { slot, wrap: true };
        s.ring
            .descriptor(slot, (0x8000, 1, 0, NEXT | PackedRing::<()>::marks(place)));
    }
}

#[test]
fn a_chain_without_an_end_breaks_the_ring() {
    let mut s = setup(ALL);
    endless(&s);
    assert_eq!(s.broken(), QueueError::Endless(SIZE));
    for size in [1, 3] {
        let (mut ring, mut queue) = sized(size);
        // Found the short way, after another.
        ring.request(&[writable(0x8000, 1)]);
        let mut round = queue.round().unwrap();
        round.next().unwrap().unwrap().complete(1).unwrap();
        if size == 1 {
            // That is all that a round of it finds.
            let _ = round.end().unwrap();
            round = queue.round().unwrap();
        }
        for number in 1..=size {
            let place = Place { slot: 0, wrap: true }.after(number, size);
            ring.descriptor(place.slot, (0x8000, 1, 0, NEXT | PackedRing::<()>::marks(place)));
        }
        assert_eq!(round.next().map(|_| ()), Err(QueueError::Endless(size)));
    }
}

#[test]
fn a_buffer_id_at_or_above_the_size_breaks_the_ring() {
    for (id, before) in [(SIZE, false), (0xffff, false), (SIZE, true)] {
        let mut s = setup(ALL);
        if before {
            s.ring.request(&[writable(0x8000, 1)]);
            s.answer(1);
        }
        let slot = u16::from(before);
        s.ring.descriptor(slot, (0x8000, 1, id, AVAIL | WRITE));
        assert_eq!(s.broken(), QueueError::Head { head: id, size: SIZE });
    }
}

#[test]
fn a_buffer_id_in_flight_breaks_the_ring_and_one_that_was_used_does_not() {
    for given_back in [false, true] {
        let mut s = setup(ALL);
        let [chain] = s.take_new();
        let mut kept = Some(chain).filter(|_| !given_back);
        s.ring.descriptor(1, (0x8000, 1, 0, AVAIL | WRITE));
        let mut round = s.queue.round().unwrap();
        if given_back {
            kept = Some(round.next().unwrap().unwrap().take());
        }
        assert_eq!(round.next().map(|_| ()), Err(QueueError::InFlight(0)));
        // Broken as it may be, too.
        drop(round);
        s.ring.descriptor(1, (u64::MAX, 1, 0, AVAIL | WRITE));
        assert_eq!(s.broken(), QueueError::InFlight(0));
        kept.take().unwrap().complete(1);
        s.ring.descriptor(1, (0x8000, 1, 0, AVAIL | WRITE));
        assert_eq!(s.take().head(), 0);
    }
}

#[test]
fn more_descriptors_than_there_are_break_the_ring() {
    let mut s = setup(ALL);
    let buffers = [(); 6].map(|()| writable(0x8000, 1));
    s.ring.request(&buffers);
    let taken = s.take();
    // Two are left; the third is the first of the chain that is in flight.
    for (slot, flags) in [(6, AVAIL | NEXT), (7, AVAIL | NEXT), (0, USED)] {
        s.ring.descriptor(slot, (0x8000, 1, 5, flags | WRITE));
    }
    assert_eq!(s.broken(), QueueError::Overrun { made: 9, size: SIZE });
    taken.complete(1);
}

// What costs its chain alone is in the tests of both formats; what is special here.

#[test]
fn wrap_counters_that_lie_make_nothing_available() {
    for flags in [0, USED, AVAIL | USED] {
        let mut s = setup(ALL);
        s.ring.descriptor(0, (0x8000, 1, 0, flags | WRITE));
        assert_eq!(s.serve_nothing(), Rest::Drained, "{flags:#x}");
    }
}

#[test]
fn of_the_flags_in_a_table_write_alone_is_looked_at_and_that_not_beside_the_table() {
    for odd in [0, NEXT, INDIRECT, AVAIL, USED, !WRITE] {
        for count in [2u16, 20] {
            let mut s = setup(ALL);
            for index in 0..count {
                let flags = odd | if index + 1 == count { WRITE } else { 0 };
                let at = 0x20000 + 16 * u64::from(index);
                s.ring.put(at, [0x8000u64, 4 | u64::from(flags) << 48 | 0xffff << 32]);
            }
            for outer in [INDIRECT, INDIRECT | WRITE] {
                // The long way, and after another.
                let head = s.ring.raw(&[(0x20000, 16 * u32::from(count), outer)]);
                s.ring.offer(head);
                let found = s.look(|chain| {
                    let found = (chain.head(), chain.readable().len(), chain.writable().len());
                    chain.complete(4).unwrap();
                    found
                });
                assert_eq!(found, (head, usize::from(count) - 1, 1), "{odd:#x}");
                assert_eq!(s.ring.used(), [(head.into(), 4)]);
            }
        }
    }
}

#[test]
fn a_used_descriptor_says_whether_anything_was_written() {
    let mut s = setup(ALL);
    for written in [0, 3] {
        let id = s.ring.request(&[writable(0x8000, 4)]);
        s.answer(written);
        let flags: u16 = s.ring.get(s.ring.layout.descriptor_area + 16 * u64::from(id) + 14);
        assert_eq!(flags, AVAIL | USED | if written == 0 { 0 } else { WRITE });
        assert_eq!(s.ring.used(), [(id.into(), written)]);
    }
}

#[test]
fn a_driver_that_changes_its_descriptors_all_the_time_is_contained() {
    let (ring, first) = sized(4);
    let space = Memory::new(ring.memory.clone());
    let mut queue = first;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (ring, done) = (&ring, &done);
        scope.spawn(move || {
            let mut seed = 1u32;
            while !done.load(Ordering::SeqCst) {
                seed = seed.wrapping_mul(0x19660d).wrapping_add(0x3c6e_f35f);
                let slot = (seed >> 8) as u16 % 4;
                let address = if seed >> 28 == 0 { u64::MAX } else { 0x8000 };
                let flags = (seed >> 12) as u16 & (AVAIL | USED | WRITE | NEXT | INDIRECT);
                ring.descriptor(slot, (address, seed >> 26, (seed >> 10) as u16 % 5, flags));
            }
        });
        let mut found = 0;
        let begun = Instant::now();
        while found < 1000 && begun.elapsed() < Duration::from_secs(20) {
            let mut round = queue.round().unwrap();
            loop {
                match round.next() {
                    Ok(Some(chain)) => {
                        found += 1;
                        let (readable, writable) = (chain.readable_len(), chain.writable_len());
                        chain.reader().read(&mut vec![0; readable as usize]).unwrap();
                        chain.writer().fill(1, writable).unwrap();
                        chain.complete(writable).unwrap();
                    }
                    Ok(None) => break,
                    Err(_) => {
                        drop(round);
                        let features = ALL | features::RING_PACKED;
                        queue = Queue::new(QueueIndex(0), 4, ring.layout, features, &space, Arc::new(Silent)).unwrap();
                        break;
                    }
                }
            }
        }
        done.store(true, Ordering::SeqCst);
        assert!(found > 100, "{found}");
    });
}

// Suppression.

#[test]
fn kicks_are_suppressed_while_serving_and_expected_after() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        for _ in 0..3 * SIZE {
            s.ring.request(&[writable(0x8000, 1)]);
            let mut round = s.queue.round().unwrap();
            let chain = round.next().unwrap().unwrap();
            assert_eq!(s.ring.device_event().1, DISABLE);
            chain.complete(1).unwrap();
            assert!(round.next().unwrap().is_none());
            assert_eq!(round.end().unwrap(), Rest::Drained);
            match features == ALL {
                true => assert_eq!(s.ring.device_event(), (s.ring.next.raw(), DESC)),
                false => assert_eq!(s.ring.device_event().1, ENABLE),
            }
            s.ring.used();
            let next = s.ring.next;
            s.ring.request(&[readable(0x8000, 1), writable(0x8000, 1)]);
            assert!(s.ring.is_to_kick(2), "after {next:?}");
            s.answer(1);
            let _ = s.serve_nothing();
            s.ring.used();
        }
    }
}

#[test]
fn an_interrupt_is_asked_for_by_place_and_wrap_counter() {
    let mut s = setup(ALL);
    let mut place = Place { slot: 0, wrap: true };
    for turn in 0..5 * u32::from(SIZE) {
        // Of a chain of two, either descriptor.
        let at = place.after((turn % 2) as u16, SIZE);
        s.ring.put(s.ring.layout.driver_area, [at.raw(), DESC]);
        let before = s.signals();
        s.ring.request(&[readable(0x8000, 1), writable(0x8000, 1)]);
        s.answer(1);
        assert_eq!(s.signals(), before + 1, "turn {turn}");
        s.ring.used();
        place = place.after(2, SIZE);
        // The same place, a lap later; and one that was passed.
        for event in [
            Place {
                wrap: !place.wrap,
                ..place
            },
            at,
        ] {
            s.ring.put(s.ring.layout.driver_area, [event.raw(), DESC]);
            let before = s.signals();
            s.ring.request(&[writable(0x8000, 1)]);
            s.answer(1);
            assert_eq!(s.signals(), before, "turn {turn}, {event:?}");
            s.ring.used();
            place = place.after(1, SIZE);
            let _ = s.serve_nothing();
        }
    }
}

#[test]
fn a_reserved_suppression_value_is_heard() {
    for (features, flags) in [(ALL, 3), (NO_EVENT_IDX, DESC), (NO_EVENT_IDX, 3)] {
        let mut s = setup(features);
        s.ring.put(s.ring.layout.driver_area, [0u16, flags]);
        s.ring.request(&[writable(0x8000, 1)]);
        s.answer(1);
        assert_eq!(s.signals(), 1);
    }
}

// State.

/// A queue with three requests of which the middle one is used, and whose descriptors were overwritten.
fn overwritten(s: &mut Setup) -> QueueState {
    let lens = [3, 2, 2];
    let mut taken = Vec::new();
    for len in lens {
        let mut buffers = vec![readable(0x8000 + u64::from(len), len)];
        buffers.extend((1..len).map(|n| writable(0x9000 + u64::from(n), n)));
        s.ring.request(&buffers);
        taken.push(s.take());
    }
    taken.remove(1).complete(1);
    assert_eq!(s.ring.used(), [(3, 1)], "written over the first one's descriptor");
    taken.into_iter().rev().for_each(OwnedChain::give_back);
    s.queue.save()
}

#[test]
fn what_is_in_flight_is_saved_with_its_segments() {
    let mut s = setup(ALL);
    let state = overwritten(&mut s);
    assert_eq!(state.in_flight, [0, 5]);
    let first = ChainState {
        descriptors: 3,
        readable: vec![Segment::new(0x8003, 3)],
        writable: vec![Segment::new(0x9001, 1), Segment::new(0x9002, 2)],
    };
    assert_eq!(state.chains[0], first);
    assert_eq!((state.next_used, state.next_avail), (0x8002, 0x8007));
    s.queue = s.restore(&state).unwrap();
    assert_eq!(s.queue.save(), state);
    // Both are found as they were, one of them twice.
    let again = s.take();
    assert_eq!(
        (again.head(), again.readable(), again.writable()),
        (0, &*first.readable, &*first.writable)
    );
    again.give_back();
    assert_eq!(s.heads(), [0, 5]);
    assert_eq!(s.ring.used(), [(0, 0), (5, 0)]);
    s.ring.request(&[writable(0x8000, 1)]);
    assert_eq!(s.heads().len(), 1);
}

#[test]
fn a_request_in_flight_whose_memory_has_gone_costs_itself() {
    let mut s = setup(ALL);
    let mut state = overwritten(&mut s);
    state.chains[0].writable[1] = Segment::new(1 << 20, 2);
    s.queue = s.restore(&state).unwrap();
    assert_eq!(s.heads(), [5]);
    assert_eq!(s.ring.used(), [(0, 0), (5, 0)]);
    assert_eq!(s.queue.counters().malformed_by.outside, 1);
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let mut s = setup(ALL);
    let good = overwritten(&mut s);
    type Change = fn(&mut QueueState);
    type Expected = fn(&QueueStateError) -> bool;
    let changes: [(Change, Expected); 13] = [
        (
            |state| state.next_avail ^= 1,
            |e| matches!(e, QueueStateError::Chains { .. }),
        ),
        (
            |state| state.next_used ^= 0x8000,
            |e| matches!(e, QueueStateError::Chains { .. }),
        ),
        (
            |state| state.next_used = SIZE,
            |e| matches!(e, QueueStateError::Place { .. }),
        ),
        (
            |state| state.next_avail = 0x7fff,
            |e| matches!(e, QueueStateError::Place { .. }),
        ),
        (
            |state| state.in_flight[1] = 0,
            |e| matches!(e, QueueStateError::InFlight { .. }),
        ),
        (
            |state| state.in_flight[1] = SIZE,
            |e| matches!(e, QueueStateError::InFlight { .. }),
        ),
        (
            |state| _ = state.chains.pop(),
            |e| matches!(e, QueueStateError::Chains { .. }),
        ),
        (
            |state| state.chains[0].descriptors = 0,
            |e| matches!(e, QueueStateError::Chains { .. }),
        ),
        (
            |state| {
                state.chains[0].readable.clear();
                state.chains[0].writable.clear();
            },
            |e| matches!(e, QueueStateError::Chains { .. }),
        ),
        (
            |state| state.chains[0].writable = vec![Segment::new(0, u32::MAX), Segment::new(0, u32::MAX)],
            |e| matches!(e, QueueStateError::Chains { .. }),
        ),
        (
            |state| state.chains[0].writable = vec![Segment::new(0, 0); 1 << 17],
            |e| matches!(e, QueueStateError::Chains { .. }),
        ),
        (
            |state| state.ended = vec![Ended { head: 5, written: 1 }],
            |e| matches!(e, QueueStateError::Ended(5)),
        ),
        (
            |state| state.features &= !features::RING_PACKED,
            |e| matches!(e, QueueStateError::InFlight { .. }),
        ),
    ];
    for (number, (change, expected)) in changes.into_iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        let error = s.restore(&bad).map(|_| ()).expect_err("a contradiction");
        assert!(expected(&error), "change {number}: {error}");
    }
    // One that is still out is not in the state, which is no state of a queue at rest.
    s.queue = s.restore(&good).unwrap();
    let out = s.take();
    let state = s.queue.save();
    assert!(matches!(s.restore(&state), Err(QueueStateError::Chains { .. })));
    drop(out);
    assert_eq!(s.queue.save(), good);
}

proptest! {
    /// Whatever lies in the ring's memory: no panic, no endless loop, and a chain that comes out is a valid one.
    #[test]
    fn any_ring_is_contained(
        size in 1u16..12,
        words in proptest::collection::vec((0u64..1 << 21, 0u32..0x2000, 0u16..12, any::<u16>()), 12),
        table in proptest::collection::vec((0u64..1 << 17, 0u32..64, any::<u16>()), 16),
        event in any::<[u16; 2]>(),
        wrap in any::<bool>(),
        late in any::<u8>(),
    ) {
        let (ring, mut queue) = sized(size);
        for (slot, (address, len, id, flags)) in (0..size).zip(words) {
            let marks = if wrap { AVAIL } else { flags & (AVAIL | USED) };
            ring.descriptor(slot, (address, len, id % (size + 1), flags & (NEXT | WRITE | INDIRECT) | marks));
        }
        for (at, (address, len, flags)) in (0u64..).zip(table) {
            ring.put(16 * at, [address, u64::from(len) | u64::from(flags) << 48]);
        }
        ring.put(ring.layout.driver_area, event);
        let mut taken = Vec::new();
        let mut round = queue.round().expect("in memory");
        let broken = loop {
            let chain = match round.next() {
                Ok(Some(chain)) => chain,
                Ok(None) => break false,
                Err(_) => break true,
            };
            chain.reader().read(&mut vec![0; chain.readable_len() as usize]).expect("it was checked");
            // Not over the ring, which is read again.
            match late >> (chain.head() % 8) & 1 {
                0 => chain.complete(u32::MAX).expect("in memory"),
                _ => taken.push(chain.take()),
            }
        };
        drop(round);
        taken.into_iter().for_each(|chain| chain.complete(0));
        prop_assert!(broken || queue.counters().requests <= u64::from(size));
    }
}

#[test]
fn the_bytes_of_a_chain_across_the_end_are_in_order() {
    let mut s = setup(ALL);
    for _ in 0..SIZE - 1 {
        s.ring.request(&[writable(0x8000, 1)]);
        s.answer(1);
    }
    s.ring.used();
    s.memory.write_slice(b"hello ", GuestAddress(0x8000)).unwrap();
    s.memory.write_slice(b"world", GuestAddress(0x9000)).unwrap();
    s.ring
        .request(&[readable(0x8000, 6), readable(0x9000, 5), writable(0xa000, 11)]);
    s.look(|chain| {
        let mut text = [0; 11];
        chain.reader().read(&mut text).unwrap();
        assert_eq!(&text, b"hello world");
        chain.complete(0).unwrap();
    });
    assert_eq!(s.ring.used(), [(u32::from(SIZE) - 1, 0)]);
    assert_eq!(s.ring.used_place(), Place { slot: 2, wrap: false });
}
