//! Which queue is what (section 5.5.2): as the specification numbers them, and as Linux does.

use std::sync::{Arc, Mutex};

use devisor::virtio::{
    VirtioDevice,
    balloon::{Balloon, BalloonOptions},
    reclaim::Recorded,
};

use crate::{
    FREE_PAGE_HINT, INFLATE, MEMORY, PAGE_REPORTING, STATS_VQ, World,
    both::{BOTH, COMMON, Guest, REQUEST, Transport},
    discarded, memory,
    ring::{readable, writable},
};

/// A balloon with everything, and a driver that has accepted `features` and has these queues.
fn guest(kind: Transport, features: u64, queues: &[u16]) -> (Guest<Balloon>, Arc<Recorded>, Arc<Mutex<Vec<u64>>>) {
    let pages = Arc::new(Recorded::new([MEMORY]));
    let hinted = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&hinted);
    let balloon = Balloon::new(Arc::clone(&pages), BalloonOptions::default())
        .unwrap()
        .with_hints(move |_, address, _| log.lock().unwrap().push(address));
    assert_eq!(balloon.queue_sizes().len(), 5);
    let all = [&[0, 1], queues].concat();
    let guest = Guest::start(kind, balloon, &memory(), COMMON | features, &all);
    (guest, pages, hinted)
}

/// Whether `queue` does what the one for this feature does.
fn serves(kind: Transport, features: u64, queues: &[u16], queue: u16, feature: u64) -> bool {
    let (mut guest, pages, hinted) = guest(kind, features, queues);
    match feature {
        STATS_VQ => {
            guest.offer(queue, &[readable(REQUEST, 0)]);
            guest.with(|balloon| balloon.statistics().is_some())
        }
        FREE_PAGE_HINT => {
            let id = guest.change_config(|balloon| balloon.start_hinting().unwrap());
            guest.put(REQUEST, &id.to_le_bytes());
            guest.offer(queue, &[readable(REQUEST, 4)]);
            guest.offer(queue, &[writable(0x4_0000, 0x1000)]);
            *hinted.lock().unwrap() == [0x4_0000]
        }
        _ => {
            guest.offer(queue, &[writable(0x4_0000, 0x1000)]);
            discarded(&pages) == [0x4_0000..0x4_1000]
        }
    }
}

/// Every set of the features that have queues, with the features in the order of their queues.
fn sets() -> impl Iterator<Item = Vec<u64>> {
    (0..8).map(|set| {
        let features = [STATS_VQ, FREE_PAGE_HINT, PAGE_REPORTING].into_iter().zip(0..);
        features
            .filter(|(_, bit)| set >> bit & 1 != 0)
            .map(|(feature, _)| feature)
            .collect()
    })
}

#[test]
fn queues_with_the_numbers_of_the_specification_are_what_it_says() {
    for kind in BOTH {
        for set in sets() {
            let number = |feature: &u64| match *feature {
                STATS_VQ => 2,
                FREE_PAGE_HINT => 3,
                _ => 4,
            };
            let queues: Vec<_> = set.iter().map(number).collect();
            let accepted = set.iter().sum();
            for feature in &set {
                assert!(
                    serves(kind, accepted, &queues, number(feature), *feature),
                    "{set:?}: {feature}"
                );
            }
        }
    }
}

#[test]
fn queues_without_gaps_are_what_linux_makes_them() {
    for kind in BOTH {
        for set in sets() {
            let queues: Vec<_> = (2..).take(set.len()).collect();
            let accepted = set.iter().sum();
            for (&feature, &queue) in set.iter().zip(&queues) {
                assert!(
                    serves(kind, accepted, &queues, queue, feature),
                    "{set:?}: {feature} as {queue}"
                );
            }
        }
    }
}

#[test]
fn a_queue_that_no_feature_is_accepted_for_gives_everything_back() {
    for kind in BOTH {
        let (mut guest, pages, _) = guest(kind, STATS_VQ, &[2, 3, 4]);
        for queue in [3, 4] {
            assert_eq!(guest.run(queue, &[writable(0x4_0000, 0x1000)]), 0);
            assert_eq!(guest.counters(queue).malformed, 1);
        }
        assert!(discarded(&pages).is_empty());
        // The others are what they are.
        guest.offer(2, &[readable(REQUEST, 0)]);
        assert!(guest.with(|balloon| balloon.statistics().is_some()));
    }
}

#[test]
fn how_the_queues_are_numbered_is_saved_and_forgotten_by_a_reset() {
    for kind in BOTH {
        // Hints are queue 2 and reports queue 3, which would be hints with gaps.
        let (mut guest, _, _) = guest(kind, FREE_PAGE_HINT | PAGE_REPORTING, &[2, 3]);
        let pages = Arc::new(Recorded::new([MEMORY]));
        let balloon = Balloon::new(Arc::clone(&pages), BalloonOptions::default()).unwrap();
        let mut moved = guest.moved(balloon.with_hints(|_, _, _| {}));
        moved.run(3, &[writable(0x4_0000, 0x1000)]);
        assert_eq!(discarded(&pages), [0x4_0000..0x4_1000]);

        moved.reset();
        moved.drive(COMMON | FREE_PAGE_HINT | PAGE_REPORTING, &[0, 1, 3, 4]);
        moved.run(3, &[writable(0x4_0000, 0x1000)]);
        assert!(discarded(&pages).is_empty(), "a hint, of no command");
        moved.run(4, &[writable(0x4_0000, 0x1000)]);
        assert_eq!(discarded(&pages), [0x4_0000..0x4_1000]);
    }
}

#[test]
fn there_are_queues_for_what_is_offered_and_no_more() {
    for kind in BOTH {
        let none = BalloonOptions {
            statistics: false,
            page_reporting: false,
            ..BalloonOptions::default()
        };
        let with_statistics = BalloonOptions {
            statistics: true,
            ..none.clone()
        };
        let queues = |options| World::with(kind, options, Recorded::new([MEMORY])).guest.queues();
        assert_eq!(queues(none.clone()), 2);
        assert_eq!(queues(with_statistics), 3);
        assert_eq!(queues(BalloonOptions::default()), 5);
        // A kick of one that there is not.
        let w = World::with(kind, none, Recorded::new([MEMORY]));
        w.guest.kick(4);
        assert_eq!(w.guest.counters(INFLATE).requests, 0);
    }
}
