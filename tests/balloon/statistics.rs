//! Memory statistics (sections 5.5.6.1 and 5.5.6.2).

use std::{sync::Arc, time::Duration};

use devisor::{
    time::ManualClock,
    virtio::{
        Wait,
        balloon::{Balloon, BalloonError, BalloonOptions, Statistic},
    },
};

use crate::{
    INFLATE, STATS, STATS_VQ, World,
    both::{BOTH, COMMON, Guest, REQUEST, Transport},
    memory,
    ring::{readable, writable},
};

fn entries(entries: &[(u16, u64)]) -> Vec<u8> {
    let bytes = entries
        .iter()
        .map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat());
    bytes.collect::<Vec<_>>().concat()
}

/// Gives a buffer with these bytes. What came back of it, or of the one before.
fn tell(guest: &mut Guest<Balloon>, bytes: &[u8]) -> Vec<u32> {
    guest.put(REQUEST, bytes);
    guest.offer(STATS, &[readable(REQUEST, bytes.len() as u32)])
}

fn told(guest: &Guest<Balloon>, statistic: Statistic) -> Option<u64> {
    guest.with(|balloon| balloon.statistics().expect("some").get(statistic))
}

/// Asks, and has the queue looked at, as an embedder does without a doorbell.
fn ask(guest: &Guest<Balloon>) {
    guest.with(|balloon| balloon.request_statistics()).expect("negotiated");
    guest.transport().process(Balloon::STATISTICS_QUEUE);
}

#[test]
fn the_buffer_is_read_and_held_until_somebody_asks() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        assert_eq!(guest.with(|balloon| balloon.statistics()), None);
        assert!(
            tell(&mut guest, &entries(&[(4, 100), (5, 1000)])).is_empty(),
            "it is held"
        );
        assert_eq!(told(&guest, Statistic::MemoryFree), Some(100));
        assert_eq!(told(&guest, Statistic::MemoryTotal), Some(1000));
        assert_eq!(told(&guest, Statistic::SwapIn), None);
        guest.kick(STATS);
        assert!(guest.used(STATS).is_empty());

        ask(&guest);
        assert_eq!(guest.used(STATS), [0]);
        assert!(tell(&mut guest, &entries(&[(4, 50)])).is_empty());
        let now = guest.with(|balloon| balloon.statistics().unwrap());
        assert_eq!(
            (
                now.get(Statistic::MemoryFree),
                now.get(Statistic::MemoryTotal),
                now.count
            ),
            (Some(50), None, 2)
        );
        assert_eq!(guest.counters(STATS).malformed, 0);
    }
}

#[test]
fn all_tags_are_known_in_any_order_and_others_are_ignored() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        let mut all: Vec<_> = (0..16).rev().map(|tag| (tag, 0x1_0000_0000 + u64::from(tag))).collect();
        all.insert(3, (16, 9));
        all.insert(7, (u16::MAX, 9));
        all.push((0x100, 9));
        tell(&mut guest, &entries(&all));
        use Statistic::*;
        let known = [
            SwapIn,
            SwapOut,
            MajorFaults,
            MinorFaults,
            MemoryFree,
            MemoryTotal,
            Available,
            Caches,
            HugePageAllocations,
            HugePageFailures,
            OomKills,
            AllocationStalls,
            BackgroundScans,
            DirectScans,
            BackgroundReclaims,
            DirectReclaims,
        ];
        for (statistic, value) in known.into_iter().zip(0x1_0000_0000..) {
            assert_eq!(told(&guest, statistic), Some(value), "{statistic:?}");
        }
    }
}

#[test]
fn a_buffer_is_taken_as_far_as_it_goes() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        // Nothing, less than an entry, an entry and a half, the same one twice.
        assert!(tell(&mut guest, &[]).is_empty());
        assert_eq!(guest.with(|balloon| balloon.statistics().unwrap().count), 1);
        let cases: [(&[u8], Option<u64>); 3] = [
            (&entries(&[(4, 1)])[..9], None),
            (&entries(&[(4, 2), (4, 3)])[..15], Some(2)),
            (&entries(&[(4, 4), (4, 5)]), Some(5)),
        ];
        for (bytes, expected) in cases {
            ask(&guest);
            assert_eq!(guest.used(STATS), [0]);
            assert!(tell(&mut guest, bytes).is_empty());
            assert_eq!(told(&guest, Statistic::MemoryFree), expected);
        }
    }
}

#[test]
fn an_entry_may_be_split_between_buffers() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        guest.put(REQUEST, &entries(&[(4, 0x0102_0304_0506_0708), (5, 6)]));
        let pieces = [
            readable(REQUEST, 1),
            readable(REQUEST + 1, 4),
            readable(REQUEST + 5, 15),
        ];
        assert!(guest.offer(STATS, &pieces).is_empty());
        assert_eq!(told(&guest, Statistic::MemoryFree), Some(0x0102_0304_0506_0708));
        assert_eq!(told(&guest, Statistic::MemoryTotal), Some(6));
    }
}

#[test]
fn a_long_buffer_is_read_at_its_beginning_alone() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        let mut many = vec![(99, 0); 256];
        many[255] = (4, 1);
        many.extend([(5, 1); 100]);
        tell(&mut guest, &entries(&many));
        assert_eq!(told(&guest, Statistic::MemoryFree), Some(1));
        assert_eq!(told(&guest, Statistic::MemoryTotal), None);
    }
}

#[test]
fn a_buffer_that_the_device_could_write_comes_back_and_counts_for_nothing() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        for buffers in [
            &[writable(REQUEST, 10)][..],
            &[readable(REQUEST, 10), writable(REQUEST, 10)],
        ] {
            assert_eq!(guest.offer(STATS, buffers), [0]);
        }
        assert_eq!(guest.counters(STATS).malformed, 2);
        assert_eq!(guest.with(|balloon| balloon.statistics()), None);
    }
}

#[test]
fn a_driver_with_several_buffers_has_one_held_at_a_time() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        guest.put(REQUEST, &entries(&[(4, 1), (4, 2), (4, 3)]));
        for entry in 0..3 {
            assert!(guest.offer(STATS, &[readable(REQUEST + 10 * entry, 10)]).is_empty());
        }
        for value in 1..=3 {
            assert_eq!(told(&guest, Statistic::MemoryFree), Some(value));
            ask(&guest);
            assert_eq!(guest.used(STATS), [0]);
        }
    }
}

#[test]
fn a_question_before_there_is_a_buffer_is_answered_by_the_first() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        ask(&guest);
        ask(&guest);
        assert!(tell(&mut guest, &entries(&[(4, 1)])).is_empty());
        assert_eq!(told(&guest, Statistic::MemoryFree), Some(1));
        guest.kick(STATS);
        assert!(guest.used(STATS).is_empty(), "it was answered");
    }
}

#[test]
fn statistics_that_were_not_negotiated_cannot_be_asked_for() {
    for kind in BOTH {
        let balloon = Balloon::new((), BalloonOptions::default()).unwrap();
        let guest = Guest::start(kind, balloon, &memory(), COMMON, &[INFLATE]);
        let error = guest.with(|balloon| balloon.request_statistics()).unwrap_err();
        assert_eq!(error, BalloonError::NotNegotiated("VIRTIO_BALLOON_F_STATS_VQ"));
    }
}

// At an interval.

fn polled(kind: Transport) -> (Guest<Balloon>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(Duration::from_secs(100)));
    let balloon = Balloon::new((), BalloonOptions::default()).unwrap();
    let balloon = balloon.polling(Arc::clone(&clock), Duration::from_secs(10)).unwrap();
    let guest = Guest::start(kind, balloon, &memory(), COMMON | STATS_VQ, &[0, 1, STATS]);
    (guest, clock)
}

#[test]
fn statistics_come_again_when_the_interval_has_passed() {
    for kind in BOTH {
        let (mut guest, clock) = polled(kind);
        let look = |guest: &Guest<_>| guest.transport().process(Balloon::STATISTICS_QUEUE);
        assert!(
            guest.transport().waits(Balloon::STATISTICS_QUEUE).is_empty(),
            "for a buffer of the driver's"
        );
        tell(&mut guest, &entries(&[(4, 1)]));
        assert_eq!(
            guest.with(|balloon| balloon.statistics().unwrap().at),
            Some(Duration::from_secs(100))
        );
        let waits = |guest: &Guest<Balloon>| guest.transport().waits(Balloon::STATISTICS_QUEUE);
        assert_eq!(waits(&guest), [Wait::Until(Duration::from_secs(110))]);
        clock.advance(Duration::from_millis(9_999));
        look(&guest);
        assert!(guest.used(STATS).is_empty());
        clock.advance(Duration::from_millis(1));
        look(&guest);
        assert_eq!(guest.used(STATS), [0]);
        assert!(waits(&guest).is_empty());

        // Late is merely late, and the next is an interval after that.
        clock.advance(Duration::from_secs(3));
        tell(&mut guest, &entries(&[(4, 2)]));
        assert_eq!(waits(&guest), [Wait::Until(Duration::from_secs(123))]);
        // Another interval, and none.
        guest
            .with(|balloon| balloon.set_polling(Some(Duration::from_secs(1))))
            .unwrap();
        look(&guest);
        assert_eq!(waits(&guest), [Wait::Until(Duration::from_secs(114))]);
        guest.with(|balloon| balloon.set_polling(None)).unwrap();
        look(&guest);
        assert!(waits(&guest).is_empty());
        clock.advance(Duration::from_secs(1000));
        look(&guest);
        assert!(guest.used(STATS).is_empty());
    }
}

#[test]
fn the_interval_outlives_a_reset() {
    for kind in BOTH {
        let (mut guest, clock) = polled(kind);
        guest.reset();
        guest.drive(COMMON | STATS_VQ, &[0, 1, STATS]);
        tell(&mut guest, &entries(&[(4, 1)]));
        clock.advance(Duration::from_secs(10));
        guest.kick(STATS);
        assert_eq!(guest.used(STATS), [0]);
    }
}

#[test]
fn intervals_that_cannot_be_are_refused() {
    let balloon = || Balloon::new((), BalloonOptions::default()).unwrap();
    assert_eq!(
        balloon().set_polling(Some(Duration::from_secs(1))),
        Err(BalloonError::NoClock)
    );
    let short = Duration::from_micros(999);
    let error = balloon()
        .polling(ManualClock::default(), short)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error, BalloonError::Interval(short));
    assert!(
        balloon()
            .polling(ManualClock::default(), Duration::from_millis(1))
            .is_ok()
    );
}

// At rest.

#[test]
fn a_buffer_that_is_held_stays_so_through_a_pause_and_in_a_saved_state() {
    for kind in BOTH {
        let mut guest = World::new(kind).guest;
        tell(&mut guest, &entries(&[(4, 1)]));
        guest.saved();
        guest.transport().process(Balloon::STATISTICS_QUEUE);
        assert!(guest.used(STATS).is_empty());

        let mut moved = guest.moved(Balloon::new((), BalloonOptions::default()).unwrap());
        // It is read again there.
        assert_eq!(told(&moved, Statistic::MemoryFree), Some(1));
        assert!(moved.used(STATS).is_empty());
        ask(&moved);
        assert_eq!(moved.used(STATS), [0]);
    }
}
