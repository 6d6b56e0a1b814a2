//! Hosts with larger pages than the balloon's: no more is given back than the guest has given.

use std::collections::BTreeSet;

use devisor::virtio::{balloon::BalloonOptions, reclaim::Recorded};
use proptest::prelude::*;

use crate::{
    DEFLATE, INFLATE, MEMORY, MUST_TELL_HOST, World,
    both::{BOTH, COMMON, Transport},
};

const HOST_PAGE: u64 = 0x4000;

fn world(kind: Transport, options: BalloonOptions) -> World {
    World::with(kind, options, Recorded::new([MEMORY]).with_granularity(HOST_PAGE))
}

/// What is in ranges that were asked for and are whole pages of the host.
fn gone(w: &World) -> Vec<u64> {
    let whole = |range: std::ops::Range<u64>| {
        let first = range.start.next_multiple_of(HOST_PAGE);
        (first..)
            .step_by(HOST_PAGE as usize)
            .take_while(move |page| page + HOST_PAGE <= range.end)
    };
    w.discarded().into_iter().flat_map(whole).collect()
}

#[test]
fn a_host_page_that_one_request_names_whole_goes_at_once() {
    for kind in BOTH {
        for must_tell_host in [true, false] {
            let mut w = world(
                kind,
                BalloonOptions {
                    must_tell_host,
                    ..BalloonOptions::default()
                },
            );
            w.pages(INFLATE, &[0x47, 0x44, 0x46, 0x45, 0x43, 0x48]);
            assert_eq!(gone(&w), [0x4_4000]);
            assert_eq!(w.guest.with(|balloon| balloon.counters().given_back), HOST_PAGE);
        }
    }
}

#[test]
fn a_host_page_that_comes_in_parts_goes_with_the_last_one() {
    for kind in BOTH {
        let mut w = world(kind, BalloonOptions::default());
        w.pages(INFLATE, &[0x44, 0x46]);
        w.pages(INFLATE, &[0x46, 0x45]);
        assert!(gone(&w).is_empty());
        w.pages(INFLATE, &[0x47, 0x48]);
        assert_eq!(gone(&w), [0x4_4000]);
        // What was counted of the next one is not forgotten.
        w.pages(INFLATE, &[0x49, 0x4a, 0x4b]);
        assert_eq!(gone(&w), [0x4_8000]);
    }
}

#[test]
fn a_part_that_was_taken_back_is_missing_again() {
    for kind in BOTH {
        let mut w = world(kind, BalloonOptions::default());
        w.pages(INFLATE, &[0x44, 0x45, 0x46]);
        w.pages(DEFLATE, &[0x45]);
        w.pages(INFLATE, &[0x47]);
        assert!(gone(&w).is_empty(), "the guest uses 0x45");
        w.pages(INFLATE, &[0x45]);
        assert_eq!(gone(&w), [0x4_4000]);
    }
}

#[test]
fn a_driver_that_does_not_tell_first_has_parts_kept() {
    for kind in BOTH {
        let mut w = world(kind, BalloonOptions::default());
        w.guest.reset();
        w.guest.drive(COMMON & !MUST_TELL_HOST, &[INFLATE, DEFLATE]);
        for page in [0x44, 0x45, 0x46, 0x47] {
            w.pages(INFLATE, &[page]);
        }
        assert!(gone(&w).is_empty());
    }
}

#[test]
fn no_more_parts_are_remembered_than_the_options_say() {
    for kind in BOTH {
        let mut w = world(
            kind,
            BalloonOptions {
                max_partial: 2,
                ..BalloonOptions::default()
            },
        );
        w.pages(INFLATE, &[0x40, 0x44, 0x48]);
        w.pages(INFLATE, &[0x49, 0x4a, 0x4b]);
        assert!(gone(&w).is_empty(), "the third was not remembered");
        w.pages(INFLATE, &[0x41, 0x42, 0x43, 0x45, 0x46, 0x47]);
        assert_eq!(gone(&w), [0x4_0000, 0x4_4000]);
    }
}

#[test]
fn a_reset_forgets_the_parts() {
    for kind in BOTH {
        let mut w = world(kind, BalloonOptions::default());
        w.pages(INFLATE, &[0x44, 0x45, 0x46]);
        w.guest.reset();
        w.guest.drive(COMMON | MUST_TELL_HOST, &[INFLATE, DEFLATE]);
        w.pages(INFLATE, &[0x47]);
        assert!(gone(&w).is_empty());
    }
}

#[test]
fn a_request_to_deflate_that_is_refused_has_all_parts_forgotten() {
    for kind in BOTH {
        let options = BalloonOptions {
            max_pages: 4,
            ..BalloonOptions::default()
        };
        let mut w = world(kind, options);
        w.pages(INFLATE, &[0x44, 0x45, 0x46]);
        // The driver does not see that it was too long, and uses the page.
        w.pages(DEFLATE, &[0x45, 0x50, 0x51, 0x52, 0x53]);
        assert_eq!(w.guest.counters(DEFLATE).malformed, 1);
        w.pages(INFLATE, &[0x47]);
        assert!(gone(&w).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_goes_is_in_the_balloon(
        steps in prop::collection::vec((any::<bool>(), prop::collection::vec(0x40..0x60_u32, 1..12)), 1..24),
        max_partial in 0..4_u32,
    ) {
        let mut w = world(Transport::Mmio, BalloonOptions { max_partial, ..BalloonOptions::default() });
        let mut balloon = BTreeSet::new();
        for (inflate, numbers) in steps {
            if inflate {
                balloon.extend(numbers.iter().copied());
                w.pages(INFLATE, &numbers);
            } else {
                numbers.iter().for_each(|number| _ = balloon.remove(number));
                w.pages(DEFLATE, &numbers);
            }
            for page in gone(&w) {
                let first = (page >> 12) as u32;
                prop_assert!((first..first + 4).all(|number| balloon.contains(&number)), "{page:#x}: {balloon:x?}");
            }
        }
    }
}
