//! What a well-behaved driver gets, and what becomes of one that is not, whatever the format of its ring.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering,
};

use devisor::virtio::{
    ChainError, features,
    queue::{MAX_INDIRECT, Malformed, QueueCounters, Rest, Slices},
};
use vm_memory::{Bytes, GuestAddress};

use super::{
    Ring,
    setup::{ALL, NO_EVENT_IDX, SIZE, setup},
};
use crate::ring::{INDIRECT, WRITE, readable, writable};

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

    let mut round = s.queue.round().unwrap();
    let chain = round.next().unwrap().unwrap();
    assert_eq!(
        (chain.head(), chain.readable_len(), chain.writable_len()),
        (head, 11, 11)
    );
    let mut text = [0; 11];
    chain.reader().read(&mut text).unwrap();
    assert_eq!(&text, b"hello world");
    chain.writer().write(&text).unwrap();
    chain.complete(11).unwrap();
    assert!(round.next().unwrap().is_none());
    assert_eq!(round.end().unwrap(), Rest::Drained);

    let mut back = [0; 9];
    s.memory.read_slice(&mut back, GuestAddress(0xb000)).unwrap();
    assert_eq!(&back, b"llo world");
    assert_eq!(s.ring.used(), [(head.into(), 11)]);
    assert_eq!(s.signals(), 1);
}

#[test]
fn an_indirect_table_is_followed_and_may_be_longer_than_the_queue_up_to_a_bound() {
    for (len, found) in [
        (1, true),
        (SIZE, true),
        (SIZE + 1, true),
        (MAX_INDIRECT, true),
        (MAX_INDIRECT + 1, false),
    ] {
        let mut s = setup(ALL);
        let buffers: Vec<_> = (0..u64::from(len)).map(|n| readable(0x10000 + n, 1)).collect();
        if found {
            let head = s.ring.add_indirect(0x20000, &buffers);
            s.ring.offer(head);
            assert_eq!(s.look(|chain| chain.readable().len()), usize::from(len));
            let taken = s.take();
            assert_eq!((taken.readable().len(), taken.readable_len()), (len.into(), len.into()));
            assert_eq!(
                taken.readable()[usize::from(len) - 1].address,
                0x10000 + u64::from(len) - 1
            );
        } else {
            Ring::new(&s.memory, 0x60000, SIZE).add_indirect(0x20000, &buffers);
            let tables = [(0x20000, 16 * u32::from(len), INDIRECT)];
            s.breaks_alone(&tables, |by| by.too_long, "one more than the bound");
        }
    }
}

#[test]
fn a_chain_after_a_long_one_is_its_own() {
    let mut s = setup(ALL);
    let long: Vec<_> = (0..20).map(|n| readable(0x10000 + n, 1)).collect();
    let head = s.ring.add_indirect(0x20000, &long);
    s.ring.offer(head);
    s.ring.request(&[readable(0x8000, 3), writable(0x9000, 2)]);
    let long = s.take();
    let lens = |segments: &[devisor::memory::Segment]| segments.iter().map(|s| (s.address, s.len)).collect::<Vec<_>>();
    let short = s.take();
    assert_eq!(
        (lens(short.readable()), lens(short.writable())),
        (vec![(0x8000, 3)], vec![(0x9000, 2)])
    );
    assert_eq!(long.readable().len(), 20);
    // The room of the long one is used again.
    long.complete(0);
    s.ring.request(&[writable(0xa000, 1)]);
    let again = s.take();
    assert_eq!(
        (lens(again.readable()), lens(again.writable())),
        (vec![], vec![(0xa000, 1)])
    );
}

#[test]
fn slices_of_a_chain_are_the_guests_memory() {
    let mut s = setup(ALL);
    s.ring
        .request(&[writable(0x8000, 3), writable(0x9000, 0), writable(0x9001, 4)]);
    let lengths = s.look(|chain| {
        let (_, tail) = chain.writer().split_at(2).unwrap();
        tail.with_slices(&mut Slices::default(), |slices| {
            slices.iter().for_each(|slice| slice.copy_from(&vec![7u8; slice.len()]));
            slices.iter().map(|slice| slice.len()).collect::<Vec<_>>()
        })
    });
    assert_eq!(lengths.unwrap(), [1, 4]);
    assert_eq!(s.ring.get::<[u8; 4]>(0x8000), [0, 0, 7, 0]);
    assert_eq!(s.ring.get::<[u8; 6]>(0x9000), [0, 7, 7, 7, 7, 0]);
}

#[test]
fn reading_or_writing_beyond_a_chain_is_refused_whole() {
    let mut s = setup(ALL);
    s.ring.request(&[readable(0x8000, 4), writable(0x9000, 4)]);
    s.look(|chain| {
        assert_eq!(chain.reader().read(&mut [0; 6]), Err(ChainError::Short(2)));
        assert_eq!(chain.writer().write(&[1; 5]), Err(ChainError::Short(1)));
        assert_eq!(chain.writer().fill(1, 5), Err(ChainError::Short(1)));
        assert!(chain.writer().split_at(5).is_err());
        assert!(chain.reader().split_at(5).is_err());
    });
    assert_eq!(s.ring.get::<u32>(0x9000), 0);
}

#[test]
fn a_chain_that_was_looked_at_and_left_is_found_again() {
    let mut s = setup(ALL);
    let heads = [
        s.ring.request(&[writable(0x8000, 1)]),
        s.ring.request(&[writable(0x9000, 1)]),
    ];
    let mut round = s.queue.round().unwrap();
    for _ in 0..3 {
        assert_eq!(round.next().unwrap().unwrap().head(), heads[0]);
    }
    assert_eq!(round.end().unwrap(), Rest::Left);
    assert_eq!((s.ring.used_idx(), s.signals()), (0, 0));
    // The first is answered and the second left.
    let mut round = s.queue.round().unwrap();
    round.next().unwrap().unwrap().complete(1).unwrap();
    assert_eq!(round.next().unwrap().unwrap().head(), heads[1]);
    assert_eq!(round.end().unwrap(), Rest::Left);
    assert_eq!(
        s.queue.save().in_flight,
        [0u16; 0],
        "it is in the ring, and not in flight"
    );
    assert_eq!(s.heads(), [heads[1]]);
}

#[test]
fn a_round_that_stops_early_says_that_there_may_be_more() {
    let mut s = setup(ALL);
    s.ring.request(&[writable(0x8000, 1)]);
    let mut round = s.queue.round().unwrap();
    round.next().unwrap().unwrap().complete(1).unwrap();
    assert_eq!(
        round.end().unwrap(),
        Rest::More,
        "nobody has looked whether there is another"
    );
    let round = s.queue.round().unwrap();
    assert_eq!(round.end().unwrap(), Rest::Left, "nobody has looked at all");
    assert_eq!(s.serve_nothing(), Rest::Drained);
}

#[test]
fn chains_that_are_put_are_seen_at_once_and_signalled_once() {
    for publish in [true, false] {
        let mut s = setup(NO_EVENT_IDX);
        for _ in 0..3 {
            s.ring.request(&[writable(0x8000, 1)]);
        }
        let mut round = s.queue.round().unwrap();
        while let Some(chain) = round.next().unwrap() {
            chain.put(1).unwrap();
        }
        assert_eq!((s.ring.used_idx(), s.signals.used.load(Ordering::SeqCst)), (0, 0));
        if publish {
            round.publish().unwrap();
            assert_eq!((s.ring.used_idx(), s.signals.used.load(Ordering::SeqCst)), (3, 1));
        }
        assert_eq!(round.end().unwrap(), Rest::Drained);
        assert_eq!(s.ring.used(), [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(s.signals(), 1);
        assert_eq!(s.queue.counters().requests, 3);
    }
}

#[test]
fn chains_that_are_put_are_seen_with_one_that_is_completed() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.request(&[writable(0x8000, 1)]);
    s.ring.request(&[writable(0x8000, 1)]);
    let mut round = s.queue.round().unwrap();
    round.next().unwrap().unwrap().put(1).unwrap();
    round.next().unwrap().unwrap().complete(1).unwrap();
    assert_eq!((s.ring.used_idx(), s.signals.used.load(Ordering::SeqCst)), (2, 1));
    let _ = round.end().unwrap();
    assert_eq!(s.signals(), 1);
}

#[test]
fn what_was_put_in_a_round_that_never_ended_is_seen_and_signalled_with_the_next() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.request(&[writable(0x8000, 1)]);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut round = s.queue.round().unwrap();
        round.next().unwrap().unwrap().put(1).unwrap();
        panic!("a handler's");
    }));
    assert!(panicked.is_err());
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.ring.used(), [(0, 1)]);
    assert_eq!(s.signals(), 1);
}

#[test]
fn what_was_put_in_a_round_that_never_ended_is_seen_after_a_restore() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.request(&[writable(0x8000, 1)]);
    let mut round = s.queue.round().unwrap();
    round.next().unwrap().unwrap().put(1).unwrap();
    drop(round);
    let state = s.queue.save();
    s.queue = s.restore(&state).unwrap();
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.ring.used(), [(0, 1)]);
    assert_eq!(s.signals(), 1);
}

#[test]
fn chains_that_were_taken_are_completed_in_any_order() {
    let mut s = setup(NO_EVENT_IDX);
    let [first, second, third] = s.take_new();
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.queue.save().in_flight, [0, 1, 2]);
    third.complete(1);
    first.complete(0);
    second.complete(1);
    assert_eq!(s.ring.used(), [(2, 1), (0, 0), (1, 1)]);
    assert_eq!((s.signals(), s.queue.save().in_flight.len()), (3, 0));
}

#[test]
fn chains_that_are_given_back_untouched_are_found_first_in_the_order_in_which_they_were_taken() {
    let mut s = setup(ALL);
    let [first, second, third] = s.take_new();
    let fresh = s.ring.request(&[writable(0x8000, 1)]);
    third.give_back();
    drop(first);
    assert_eq!((s.ring.used_idx(), s.signals()), (0, 0));
    assert_eq!(s.queue.save().in_flight, [0, 1, 2], "in a saved state too");
    assert_eq!(s.look(|chain| chain.head()), 0, "one of them may be left");
    assert_eq!(s.heads(), [0, 2, fresh]);
    second.give_back();
    assert_eq!(s.heads(), [1]);
    assert_eq!(s.queue.save().in_flight, [0u16; 0]);
    // They keep their place when they are taken again.
    let [first, second] = s.take_new();
    let heads = [first.head(), second.head()];
    first.give_back();
    let first = s.take();
    assert_eq!(first.head(), heads[0]);
    second.give_back();
    first.give_back();
    assert_eq!(s.heads(), heads);
}

#[test]
fn chains_that_were_taken_and_are_put_are_shown_together() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.ring.request(&[writable(0x8000, 4)]);
        s.ring.request(&[writable(0x9000, 4)]);
        let [first, second] = [(); 2].map(|()| s.take());
        let mut round = s.queue.round().unwrap();
        round.put(second, 2).unwrap();
        round.put(first, 9).unwrap();
        assert_eq!(s.ring.used(), [], "the driver sees neither of them");
        round.publish().unwrap();
        assert_eq!(s.ring.used(), [(1, 2), (0, 4)]);
        assert_eq!(round.end(), Ok(Rest::Left), "nothing was looked for");
        assert_eq!((s.queue.counters().requests, s.signals()), (2, 1));
    }
}

#[test]
fn the_no_interrupt_flag_is_honoured_without_event_idx() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.set_no_interrupt(true);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    assert_eq!(s.signals(), 0);
    s.ring.set_no_interrupt(false);
    let [taken] = s.take_new();
    taken.complete(1);
    assert_eq!(s.signals(), 1);
    assert_eq!(
        s.queue.counters(),
        QueueCounters {
            requests: 2,
            bytes: 2,
            malformed: 0,
            malformed_by: Malformed::default(),
            wanted: 1,
            suppressed: 1,
            delivered: 1,
            failed: 0
        }
    );
}

#[test]
fn nothing_is_signalled_when_nothing_was_added() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.queue.round().unwrap().publish().unwrap();
        assert_eq!(s.serve_nothing(), Rest::Drained);
        let [taken] = s.take_new();
        taken.give_back();
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
    s.ring.set_used_event(5);
    for expected in [1, 2, 2] {
        let [taken] = s.take_new();
        taken.complete(1);
        assert_eq!(s.signals(), expected, "after {} buffers", s.ring.used_idx());
    }
}

#[test]
fn a_batch_that_passes_the_event_index_is_signalled() {
    for (event, expected) in [(0, 1), (2, 1), (3, 0), (0xffff, 0)] {
        let mut s = setup(ALL);
        s.ring.set_used_event(event);
        for _ in 0..3 {
            s.ring.request(&[writable(0x8000, 1)]);
        }
        let mut round = s.queue.round().unwrap();
        while let Some(chain) = round.next().unwrap() {
            chain.put(1).unwrap();
        }
        let _ = round.end().unwrap();
        assert_eq!(s.signals(), expected, "used_event {event}");
    }
}

#[test]
fn a_refused_signal_is_carried_by_the_next_call_even_if_that_one_is_suppressed() {
    let mut s = setup(ALL);
    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.request(&[writable(0x8000, 1)]);
    s.look(|chain| chain.complete(1).unwrap());
    assert_eq!(s.ring.used().len(), 1, "the buffer is used all the same");
    let [taken] = s.take_new();
    s.signals.refuse.store(false, Ordering::SeqCst);
    // used_event is still 0: this completion alone would not be signalled.
    taken.complete(1);
    assert_eq!(s.signals(), 1);

    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.set_used_event(2);
    let [taken] = s.take_new();
    taken.complete(1);
    s.signals.refuse.store(false, Ordering::SeqCst);
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.signals(), 2, "an idle round carries it too");
    assert!(s.queue.counters().failed >= 2);
}

#[test]
fn a_request_that_comes_before_kicks_are_expected_again_is_found() {
    for features in [ALL, NO_EVENT_IDX] {
        let mut s = setup(features);
        s.ring.request(&[writable(0x8000, 1)]);
        let mut round = s.queue.round().unwrap();
        round.next().unwrap().unwrap().complete(1).unwrap();
        assert!(round.next().unwrap().is_none());
        s.ring.request(&[writable(0x8000, 1)]);
        assert_eq!(round.end().unwrap(), Rest::More);
        assert_eq!(s.serve(|_| Ok(1)), Rest::Drained);
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
            let (address, len) = match flags {
                INDIRECT => (address.max(top - 15), 16),
                _ => (address, len),
            };
            let what = format!("{len} at {address:#x}, flags {flags}");
            s.breaks_alone(&[(address, len, flags)], |by| by.outside, &what);
            s.breaks_alone(&[(0x8000, 1, 0), (address, len, flags & WRITE)], |by| by.outside, &what);
        }
    }
}

#[test]
fn indirect_tables_cost_their_chain_where_there_must_be_none() {
    for (what, features, len) in [
        ("not negotiated", ALL & !features::INDIRECT_DESC, 16),
        ("no multiple of 16", ALL, 17),
        ("empty", ALL, 0),
        ("endless", ALL, 0xffff_fff0),
    ] {
        let mut s = setup(features);
        s.breaks_alone(&[(0x20000, len, INDIRECT)], |by| by.indirect, what);
    }
    let mut s = setup(ALL);
    let both = [(0x20000, 16, INDIRECT), (0x8000, 1, WRITE)];
    s.breaks_alone(&both, |by| by.indirect, "with a next");
}

#[test]
fn readable_after_writable_costs_its_chain() {
    let mut s = setup(ALL);
    let wrong = [(0x8000, 1, WRITE), (0x9000, 1, 0)];
    s.breaks_alone(&wrong, |by| by.readable_after_writable, "the wrong way around");
}

#[test]
fn a_request_that_is_refused_comes_back_empty_and_is_counted() {
    let mut s = setup(NO_EVENT_IDX);
    s.ring.request(&[writable(0x8000, 1)]);
    s.ring.request(&[writable(0x8000, 1)]);
    s.look(|chain| chain.refuse().unwrap());
    assert_eq!(
        s.serve(|chain| Err(chain.writer().write(&[0; 2]).unwrap_err())),
        Rest::Drained
    );
    assert_eq!(s.ring.used(), [(0, 0), (1, 0)]);
    let counters = s.queue.counters();
    assert_eq!((counters.requests, counters.malformed, s.signals()), (2, 2, 2));
}

#[test]
fn used_length_is_never_more_than_there_is_room_for() {
    let mut s = setup(ALL);
    s.ring.request(&[readable(0x8000, 9), writable(0x9000, 5)]);
    s.answer(u32::MAX);
    s.ring.request(&[readable(0x8000, 9), writable(0x9000, 5)]);
    s.take().complete(u32::MAX);
    assert_eq!(s.ring.used(), [(0, 5), (2, 5)]);
}

#[test]
fn requests_in_flight_are_handed_out_again_after_a_restore() {
    let mut s = setup(ALL);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    let [in_flight] = s.take_new();
    s.ring.request(&[writable(0x8000, 1)]);
    in_flight.give_back();
    let state = s.queue.save();
    assert_eq!(state.in_flight, [1]);
    s.queue = s.restore(&state).unwrap();
    assert_eq!(s.queue.save(), state);
    assert_eq!(s.heads(), [1, 2]);
    assert_eq!(s.ring.used_idx(), 3);
}

#[test]
fn a_request_that_is_taken_after_a_restore_comes_after_those_that_were_in_flight() {
    let mut s = setup(ALL);
    let [first, second] = s.take_new();
    drop((first, second));
    let state = s.queue.save();
    s.queue = s.restore(&state).unwrap();
    let again = [s.take(), s.take()];
    let [fresh] = s.take_new();
    assert_eq!(s.queue.save().in_flight, [0, 1, 2]);
    drop(fresh);
    drop(again);
    assert_eq!(s.heads(), [0, 1, 2]);
}

#[test]
fn a_signal_that_was_refused_before_the_save_comes_after_the_restore() {
    let mut s = setup(ALL);
    s.signals.refuse.store(true, Ordering::SeqCst);
    s.ring.request(&[writable(0x8000, 1)]);
    s.answer(1);
    s.signals.refuse.store(false, Ordering::SeqCst);
    let state = s.queue.save();
    s.queue = s.restore(&state).unwrap();
    assert_eq!(s.signals(), 0, "nothing is raised by the restore itself");
    assert_eq!(s.serve_nothing(), Rest::Drained);
    assert_eq!(s.signals(), 1);
}
