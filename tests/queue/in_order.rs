//! VIRTIO_F_IN_ORDER (virtio 1.2, sections 2.7.9 and 2.8.8), in both formats.

use devisor::virtio::{
    features,
    queue::{Ended, QueueStateError},
};

use crate::ring::writable;

macro_rules! in_order {
    ($format:ident) => {
        mod $format {
            use super::*;
            use crate::$format::setup::{NO_EVENT_IDX, SIZE, Setup, setup};

            fn ordered() -> Setup {
                setup(NO_EVENT_IDX | features::IN_ORDER)
            }

            #[test]
            fn a_request_that_ends_before_an_earlier_one_is_used_after_it_with_its_length() {
                let mut s = ordered();
                for turn in 0..2 * SIZE {
                    let heads = [1, 2, 3, 4].map(|len| u32::from(s.ring.request(&[writable(0x8000, len)])));
                    let [first, second, third] = [(); 3].map(|()| s.take());
                    third.complete(3);
                    // One that is answered in its round waits as well.
                    s.answer(4);
                    assert_eq!(s.ring.used(), []);
                    let signals = s.signals();
                    second.complete(1);
                    assert_eq!((s.ring.used(), s.signals()), (vec![], signals), "turn {turn}");
                    first.complete(1);
                    let used = [(heads[0], 1), (heads[1], 1), (heads[2], 3), (heads[3], 4)];
                    assert_eq!(s.ring.used(), used, "turn {turn}");
                    assert_eq!(s.signals(), signals + 1);
                    // Nothing is in the way of the next.
                    let next = s.ring.request(&[writable(0x8000, 1)]);
                    s.answer(1);
                    assert_eq!(s.ring.used(), [(next.into(), 1)]);
                }
                assert_eq!(s.queue.counters().requests, 2 * u64::from(SIZE) * 5);
            }

            #[test]
            fn one_that_waits_is_still_in_flight_and_is_put_with_the_first() {
                let mut s = ordered();
                let [first, second] = s.take_new();
                second.complete(1);
                let mut round = s.queue.round().unwrap();
                round.put(first, 1).unwrap();
                assert_eq!(s.ring.used_idx(), 0);
                round.publish().unwrap();
                assert_eq!(s.ring.used(), [(0, 1), (1, 1)]);
            }

            #[test]
            fn one_that_breaks_the_rules_waits_too() {
                let mut s = ordered();
                let [first] = s.take_new();
                let bad = s.ring.raw(&[(u64::MAX, 1, 0)]);
                s.ring.offer(bad);
                s.serve_nothing_but_wait();
                assert_eq!(s.ring.used(), []);
                first.complete(1);
                assert_eq!(s.ring.used(), [(0, 1), (bad.into(), 0)]);
            }

            #[test]
            fn those_that_wait_are_saved_with_their_length_and_not_handed_out_again() {
                let mut s = ordered();
                let [first, second, third] = s.take_new();
                second.complete(1);
                third.give_back();
                first.give_back();
                let state = s.queue.save();
                assert_eq!(state.in_flight, [0, 1, 2]);
                assert_eq!(state.ended, [Ended { head: 1, written: 1 }]);
                s.queue = s.restore(&state).unwrap();
                assert_eq!(s.queue.save(), state);
                let first = s.take();
                let third = s.take();
                assert_eq!((first.head(), third.head()), (0, 2));
                third.complete(1);
                assert_eq!(s.ring.used(), []);
                first.complete(0);
                assert_eq!(s.ring.used(), [(0, 0), (1, 1), (2, 1)]);
                let next = s.ring.request(&[writable(0x8000, 1)]);
                s.answer(1);
                assert_eq!(s.ring.used(), [(next.into(), 1)]);
                let state = s.queue.save();
                assert_eq!((state.in_flight.len(), state.ended.len(), state.chains.len()), (0, 0, 0));
            }

            #[test]
            fn a_state_whose_order_contradicts_itself_is_refused() {
                let mut s = ordered();
                let [first, second] = s.take_new();
                second.complete(1);
                first.give_back();
                let good = s.queue.save();
                for head in [0, 5] {
                    let mut bad = good.clone();
                    bad.ended = vec![Ended { head, written: 1 }];
                    if let Some(chain) = bad.chains.first_mut().filter(|_| head == 0) {
                        chain.readable.clear();
                        chain.writable.clear();
                    }
                    assert!(matches!(s.restore(&bad), Err(QueueStateError::Ended(other)) if other == head));
                }
                let mut twice = good.clone();
                twice.ended.push(good.ended[0]);
                assert!(matches!(s.restore(&twice), Err(QueueStateError::Ended(1))));
                let mut without = good.clone();
                without.features &= !features::IN_ORDER;
                assert!(matches!(s.restore(&without), Err(QueueStateError::Ended(1))));
            }
        }
    };
}

in_order!(split);
in_order!(packed);
