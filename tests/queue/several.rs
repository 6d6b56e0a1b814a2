//! Several chains that are lent at once: whatever the format of the ring.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
};

use devisor::virtio::{
    QueueError, features,
    queue::{Rest, Round, Several, SeveralRoom},
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

macro_rules! several {
    ($format:ident) => {
        mod $format {
            use super::*;
            use crate::{
                ring::{INDIRECT, NEXT, WRITE, readable, writable},
                $format::setup::{ALL, NO_EVENT_IDX, SIZE, Setup, setup},
            };

            /// `n` buffers of four bytes, 0x100 apart.
            fn buffers(s: &mut Setup, n: u16) -> Vec<u32> {
                let request = |n| s.ring.request(&[writable(0x8000 + 0x100 * u64::from(n), 4)]);
                (0..n).map(request).map(u32::from).collect()
            }

            #[test]
            fn one_call_fills_them_and_each_comes_back_with_its_own_length() {
                for features in [ALL, NO_EVENT_IDX, ALL | features::IN_ORDER] {
                    let mut s = setup(features);
                    let mut room = SeveralRoom::default();
                    for turn in 0..3 * SIZE {
                        s.ring.want_signal();
                        let heads = buffers(&mut s, 4);
                        let signals = s.signals();
                        let mut round = s.queue.round().unwrap();
                        let mut several = all(&mut round, &mut room);
                        assert_eq!((several.len(), several.bytes()), (4, 16));
                        let lens = several.fill(13, |slices| {
                            slices
                                .iter()
                                .for_each(|slice| slice.copy_from(&vec![turn as u8; slice.len()]));
                            slices.iter().map(|slice| slice.len()).collect::<Vec<_>>()
                        });
                        assert_eq!(lens.unwrap(), [4, 4, 4, 1]);
                        for len in [4, 4, 4, 1] {
                            several.put(len).unwrap();
                        }
                        assert!(several.is_empty());
                        drop(several);
                        assert_eq!(s.ring.used_idx(), 4 * turn, "not yet");
                        round.publish().unwrap();
                        assert_eq!(
                            s.ring.used(),
                            [(heads[0], 4), (heads[1], 4), (heads[2], 4), (heads[3], 1)]
                        );
                        assert!(round.next().unwrap().is_none());
                        assert_eq!(round.end().unwrap(), Rest::Drained);
                        assert_eq!(s.signals(), signals + 1, "one for all");
                        assert_eq!(
                            s.ring.get::<[u8; 4]>(0x8300),
                            [turn as u8, 0, 0, 0],
                            "no more than that"
                        );
                        s.ring.put(0x8300, 0_u32);
                    }
                    assert_eq!(s.queue.counters().requests, 12 * u64::from(SIZE));
                    assert_eq!(s.queue.counters().bytes, 48 * u64::from(SIZE));
                }
            }

            #[test]
            fn those_that_are_not_used_stay_where_they_are_in_order() {
                for features in [ALL, ALL | features::IN_ORDER] {
                    let mut s = setup(features);
                    let mut room = SeveralRoom::default();
                    for _ in 0..3 * SIZE {
                        let heads = buffers(&mut s, 5);
                        let mut round = s.queue.round().unwrap();
                        let mut several = all(&mut round, &mut room);
                        several.put(1).unwrap();
                        several.put(2).unwrap();
                        drop(several);
                        // The next of the same round.
                        let chain = round.next().unwrap().unwrap();
                        assert_eq!(u32::from(chain.head()), heads[2]);
                        chain.put(3).unwrap();
                        // And again, of which none is used.
                        let several = all(&mut round, &mut room);
                        assert_eq!(several.len(), 2);
                        drop(several);
                        assert_eq!(round.end().unwrap(), Rest::Left);
                        assert_eq!(s.ring.used(), [(heads[0], 1), (heads[1], 2), (heads[2], 3)]);
                        assert!(s.queue.save().in_flight.is_empty());
                        // The next round.
                        assert_eq!(
                            s.heads().into_iter().map(u32::from).collect::<Vec<_>>(),
                            heads[3..]
                        );
                        s.ring.used();
                    }
                    assert_eq!(s.queue.counters().requests, 15 * u64::from(SIZE));
                    assert_eq!(s.queue.counters().bytes, 60 * u64::from(SIZE));
                }
            }

            #[test]
            fn what_is_not_used_does_not_count_for_its_round() {
                let mut s = setup(ALL);
                let mut room = SeveralRoom::default();
                let heads = buffers(&mut s, SIZE);
                let mut round = s.queue.round().unwrap();
                for _ in 0..3 * SIZE {
                    assert_eq!(all(&mut round, &mut room).len(), usize::from(SIZE));
                }
                assert_eq!(
                    round.end().unwrap(),
                    Rest::Left,
                    "who waits is not looked at for ever"
                );
                assert_eq!(s.heads().len(), heads.len());
            }

            #[test]
            fn a_panic_loses_none_and_shows_what_was_put() {
                let mut s = setup(ALL);
                let heads = buffers(&mut s, 3);
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    let mut room = SeveralRoom::default();
                    let mut round = s.queue.round().unwrap();
                    let mut several = all(&mut round, &mut room);
                    several.put(4).unwrap();
                    panic!("a host");
                }));
                assert!(panicked.is_err());
                assert_eq!(s.ring.used(), [(heads[0], 4)]);
                assert_eq!(
                    s.heads().into_iter().map(u32::from).collect::<Vec<_>>(),
                    heads[1..]
                );
            }

            #[test]
            fn one_in_the_middle_that_breaks_the_rules_costs_itself_after_those_before_it() {
                let bad: [&[(u64, u32, u16)]; 4] = [
                    &[(0x10_0000, 4, WRITE)],
                    &[(0x9000, 4, WRITE | NEXT), (0x9000, 4, 0)],
                    &[(0x9000, 15, INDIRECT)],
                    &[(0x9000, 1 << 20, WRITE)],
                ];
                for bad in bad {
                    for (used, again) in [(2, 0), (1, 1), (0, 2)] {
                        let mut s = setup(ALL);
                        let mut room = SeveralRoom::default();
                        let mut heads = buffers(&mut s, 2);
                        let head = s.ring.raw(bad);
                        s.ring.offer(head);
                        heads.push(head.into());
                        heads.extend(buffers(&mut s, 1));
                        let mut round = s.queue.round().unwrap();
                        let mut several = all(&mut round, &mut room);
                        assert_eq!(several.len(), 2, "{bad:?}");
                        (0..used).for_each(|_| several.put(4).unwrap());
                        drop(several);
                        let _ = round.end().unwrap();
                        assert_eq!(s.ring.used().len(), used);
                        assert_eq!(s.queue.counters().malformed, 0);
                        // They are found again, then it comes back, then what is after it.
                        assert_eq!(s.heads().len(), again + 1);
                        let rest: Vec<_> = heads[used..].iter().map(|&head| (head, 0)).collect();
                        assert_eq!(s.ring.used(), rest);
                        assert_eq!(s.queue.counters().malformed, 1);
                    }
                }
            }

            #[test]
            fn what_is_no_request_is_refused_as_one() {
                let mut s = setup(ALL);
                let mut room = SeveralRoom::default();
                let heads = buffers(&mut s, 2);
                let mut round = s.queue.round().unwrap();
                let mut several = all(&mut round, &mut room);
                several.refuse().unwrap();
                drop(several);
                let _ = round.end().unwrap();
                assert_eq!(s.ring.used(), [(heads[0], 0)]);
                assert_eq!(s.queue.counters().malformed_by.request, 1);
            }

            #[test]
            fn those_that_were_given_back_untouched_come_first_and_may_be_again() {
                let mut s = setup(ALL);
                let mut room = SeveralRoom::default();
                let [first, second] = s.take_new();
                let heads = [u32::from(first.head()), u32::from(second.head())];
                second.give_back();
                first.give_back();
                let third = u32::from(s.ring.request(&[writable(0x8000, 4)]));
                for used in [0, 1, 2] {
                    let mut round = s.queue.round().unwrap();
                    let mut several = all(&mut round, &mut room);
                    assert_eq!(several.len(), [3, 3, 2][used]);
                    (0..used.min(1)).for_each(|_| several.put(1).unwrap());
                    drop(several);
                    let _ = round.end().unwrap();
                    assert_eq!(s.queue.save().in_flight.len(), [2, 1, 0][used]);
                }
                assert_eq!(s.ring.used(), [(heads[0], 1), (heads[1], 1)]);
                assert_eq!(s.heads().into_iter().map(u32::from).collect::<Vec<_>>(), [third]);
            }

            #[test]
            fn one_that_comes_back_while_a_later_one_is_lent_is_not_taken_for_that_and_comes_next() {
                for features in [ALL, ALL | features::IN_ORDER] {
                    let mut s = setup(features);
                    let mut room = SeveralRoom::default();
                    let [first, second] = s.take_new();
                    let [a, b] = [u32::from(first.head()), u32::from(second.head())];
                    second.give_back();
                    let c = u32::from(s.ring.request(&[writable(0x8000, 4)]));
                    let mut round = s.queue.round().unwrap();
                    let mut several = round.several(&mut room);
                    several.next().unwrap().unwrap();
                    several.push(0, 1);
                    // As another thread may at any time.
                    first.give_back();
                    while several.next().unwrap().is_some() {
                        several.push(0, 1);
                    }
                    assert_eq!(
                        several.len(),
                        1,
                        "what was taken before it comes before what was not taken"
                    );
                    several.put(1).unwrap();
                    drop(several);
                    assert_eq!(round.end().unwrap(), Rest::More);
                    assert_eq!(s.heads().into_iter().map(u32::from).collect::<Vec<_>>(), [a, c]);
                    match features & features::IN_ORDER {
                        0 => assert_eq!(s.ring.used(), [(b, 1), (a, 0), (c, 0)]),
                        _ => assert_eq!(s.ring.used(), [(a, 0), (b, 1), (c, 0)]),
                    }
                }
            }

            #[test]
            fn a_chain_that_is_out_keeps_its_place() {
                for features in [ALL, ALL | features::IN_ORDER] {
                    let mut s = setup(features);
                    let mut room = SeveralRoom::default();
                    let [out] = s.take_new();
                    let first = u32::from(out.head());
                    let heads = buffers(&mut s, 3);
                    let mut round = s.queue.round().unwrap();
                    let mut several = all(&mut round, &mut room);
                    several.put(2).unwrap();
                    several.put(3).unwrap();
                    drop(several);
                    let _ = round.end().unwrap();
                    let in_order = features & features::IN_ORDER != 0;
                    let used = s.ring.used();
                    match in_order {
                        true => assert_eq!(used, []),
                        false => assert_eq!(used, [(heads[0], 2), (heads[1], 3)]),
                    }
                    out.complete(1);
                    let mut used = used;
                    used.extend(s.ring.used());
                    used.sort_unstable();
                    let mut all = vec![(first, 1), (heads[0], 2), (heads[1], 3)];
                    all.sort_unstable();
                    assert_eq!(used, all);
                    assert_eq!(
                        s.heads().into_iter().map(u32::from).collect::<Vec<_>>(),
                        heads[2..]
                    );
                }
            }

            #[test]
            fn chains_of_many_pieces_are_one_sequence_without_empty_ones() {
                let mut s = setup(ALL);
                let mut room = SeveralRoom::default();
                s.memory
                    .write_slice(b"0123456789abcdef", GuestAddress(0x8000))
                    .unwrap();
                s.ring
                    .request(&[readable(0x8000, 3), readable(0x8003, 0), readable(0x8003, 2)]);
                let pieces: Vec<_> = (0..20)
                    .map(|n| readable(0x8005 + n / 2, (n % 2) as u32))
                    .collect();
                let head = s.ring.add_indirect(0x9000, &pieces);
                s.ring.offer(head);
                let mut round = s.queue.round().unwrap();
                let mut several = round.several(&mut room);
                for from in [2, 1] {
                    let len = several.next().unwrap().unwrap().readable_len();
                    several.push(from, len - from);
                }
                let mut text = Vec::new();
                let mut read = |several: &mut Several<'_, '_>, limit| {
                    text.clear();
                    several
                        .read(limit, |slices| {
                            for slice in slices {
                                assert!(!slice.is_empty());
                                let mut piece = vec![0; slice.len()];
                                slice.copy_to(&mut piece[..]);
                                text.extend(piece);
                            }
                        })
                        .unwrap();
                    String::from_utf8(text.clone()).unwrap()
                };
                assert_eq!(read(&mut several, 100), "2346789abcde");
                assert_eq!(read(&mut several, 4), "2346");
                assert_eq!(several.moved(4), 1);
                assert_eq!((several.bytes(), several.first_len()), (8, Some(0)));
                several.put(0).unwrap();
                assert_eq!(
                    (several.first_from(), read(&mut several, 100)),
                    (2, "789abcde".into())
                );
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(200))]
                /// Whatever is lent, put, left, taken, completed and given back, in whatever order: each chain comes back once.
                #[test]
                fn no_chain_is_lost_or_used_twice(
                    features in prop::sample::select(vec![ALL, NO_EVENT_IDX, ALL | features::IN_ORDER]),
                    steps in prop::collection::vec(
                        (0..4_u16, 0..9_usize, 0..9_usize, 0..3_usize, any::<bool>(), any::<bool>(), 0..9_usize),
                        1..40,
                    ),
                ) {
                    let mut s = setup(features);
                    let mut room = SeveralRoom::default();
                    let mut out = VecDeque::new();
                    let (mut offered, mut owed) = (0_u16, Vec::new());
                    for (offers, pushes, puts, takes, complete, last, within) in steps {
                        for _ in 0..offers {
                            // A driver names a descriptor again once it has it back.
                            if owed.len() < usize::from(SIZE) && !owed.contains(&u32::from(offered % SIZE)) {
                                owed.push(u32::from(s.ring.request(&[writable(0x8000, 4)])));
                                offered += 1;
                            }
                        }
                        let mut round = s.queue.round().unwrap();
                        let mut several = round.several(&mut room);
                        for push in 0..pushes {
                            let Some(_) = several.next().unwrap() else { break };
                            several.push(0, 4);
                            if push == within {
                                drop(if last { out.pop_front() } else { out.pop_back() });
                            }
                        }
                        for _ in 0..puts {
                            several.put(4).unwrap();
                        }
                        drop(several);
                        for _ in 0..takes {
                            let Some(chain) = round.next().unwrap() else { break };
                            out.push_back(chain.take());
                        }
                        drop(round);
                        if let Some(chain) = if last { out.pop_back() } else { out.pop_front() } {
                            match complete {
                                true => chain.complete(4),
                                false => chain.give_back(),
                            }
                        }
                        for (head, len) in s.ring.used() {
                            let at = owed.iter().position(|&other| other == head);
                            prop_assert!(at.is_some() && len == 4, "{} is not owed", head);
                            at.map(|at| owed.remove(at));
                        }
                    }
                    out.drain(..).for_each(|chain| chain.complete(4));
                    while s.serve(|_| Ok(4)) == Rest::More {}
                    let mut used: Vec<_> = s.ring.used().into_iter().map(|(head, _)| head).collect();
                    used.sort_unstable();
                    owed.sort_unstable();
                    prop_assert_eq!(used, owed);
                    prop_assert_eq!(s.queue.counters().requests, u64::from(offered));
                    prop_assert_eq!(s.queue.counters().malformed, 0);
                }
            }

            #[test]
            fn bytes_that_a_chain_does_not_have_are_not_lent() {
                let mut s = setup(ALL);
                let mut room = SeveralRoom::default();
                buffers(&mut s, 2);
                let mut round = s.queue.round().unwrap();
                let mut several = round.several(&mut room);
                several.next().unwrap();
                several.push(2, 100);
                // Twice is once.
                several.push(0, 4);
                several.next().unwrap();
                several.push(0, u32::MAX);
                assert_eq!((several.len(), several.bytes()), (2, u32::MAX));
                let lens = several.fill(u32::MAX, |slices| {
                    slices.iter().map(|slice| slice.len()).collect::<Vec<_>>()
                });
                assert_eq!(lens.unwrap(), [2, 4]);
            }
        }
    };
}

several!(split);
several!(packed);

/// All that there are.
fn all<'r, 'q>(round: &'r mut Round<'q>, room: &'r mut SeveralRoom) -> Several<'r, 'q> {
    let mut several = round.several(room);
    while let Some(chain) = several.next().unwrap() {
        let len = chain.writable_len();
        several.push(0, len);
    }
    several
}

mod hostile {
    use super::*;
    use crate::ring::{WRITE, writable};

    #[test]
    fn a_head_twice_among_them_is_not_lent_twice() {
        use crate::split::setup::{ALL, setup};
        let mut s = setup(ALL);
        let mut room = SeveralRoom::default();
        s.ring.descriptor(3, 0x8000, 4, WRITE, 0);
        s.ring.offer(3);
        s.ring.offer(3);
        let mut round = s.queue.round().unwrap();
        assert_eq!(all(&mut round, &mut room).len(), 1);
        let mut several = all(&mut round, &mut room);
        several.put(4).unwrap();
        drop(several);
        round.publish().unwrap();
        // It is a new one once the first is used.
        assert_eq!(round.next().unwrap().unwrap().head(), 3);
    }

    #[test]
    fn an_id_twice_among_them_is_not_lent_twice() {
        use crate::packed::setup::{ALL, setup};
        let mut s = setup(ALL);
        let mut room = SeveralRoom::default();
        let first = s.ring.request(&[writable(0x8000, 4)]);
        s.ring.request(&[writable(0x8000, 4)]);
        // The second as the first.
        let layout = s.ring.layout;
        s.ring.put(layout.descriptor_area + 16 + 12, first);
        let mut round = s.queue.round().unwrap();
        assert_eq!(all(&mut round, &mut room).len(), 1);
    }

    #[test]
    fn a_broken_ring_is_found_after_those_before_it() {
        use crate::split::setup::{ALL, SIZE, setup};
        let mut s = setup(ALL);
        let mut room = SeveralRoom::default();
        s.ring.request(&[writable(0x8000, 4)]);
        s.ring.offer(SIZE);
        let mut round = s.queue.round().unwrap();
        let mut several = all(&mut round, &mut room);
        assert_eq!(several.len(), 1);
        several.put(4).unwrap();
        drop(several);
        let broken = round.next().map(|chain| chain.is_some());
        assert!(matches!(broken, Err(QueueError::Head { .. })), "{broken:?}");
        drop(round);
        assert_eq!(s.ring.used(), [(0, 4)]);
    }
}
