//! Free page reporting (section 5.5.6.5), and what page poison (section 5.5.6.4) means for it.

use devisor::virtio::{
    VirtioDevice,
    balloon::{Balloon, BalloonOptions},
    reclaim::Recorded,
};
use std::sync::Arc;

use crate::{
    INFLATE, MEMORY, PAGE_REPORTING, POISON, REPORTING, World,
    both::{BOTH, COMMON, Guest, REQUEST},
    discarded, memory,
    ring::{Buffer, readable, writable},
};

#[test]
fn pages_that_are_reported_free_go_back_to_the_host() {
    for kind in BOTH {
        let mut w = World::new(kind);
        let pages = [
            writable(0x4_0000, 0x1000),
            writable(0x6_0000, 0x1_0000),
            writable(0x5_0000, 0x2000),
        ];
        assert_eq!(w.guest.run(REPORTING, &pages), 0);
        assert_eq!(
            w.discarded(),
            [0x4_0000..0x4_1000, 0x6_0000..0x7_0000, 0x5_0000..0x5_2000]
        );
        let counters = w.guest.with(|balloon| balloon.counters());
        assert_eq!((counters.reported, counters.given_back), (0x1_3000, 0x1_3000));
    }
}

#[test]
fn a_report_of_parts_of_pages_gives_whole_ones() {
    for kind in BOTH {
        let mut w = World::new(kind);
        let pages = [
            writable(0x4_0800, 0x2000),
            writable(0x5_0000, 0xfff),
            writable(0x6_0001, 1),
        ];
        assert_eq!(w.guest.run(REPORTING, &pages), 0);
        let counters = w.guest.with(|balloon| balloon.counters());
        assert_eq!((counters.reported, counters.given_back), (0x3000, 0x1000));
    }
}

#[test]
fn a_report_that_is_none_costs_that_report_alone() {
    for kind in BOTH {
        let mut w = World::new(kind);
        let wrong: [&[Buffer]; 6] = [
            &[writable(0x4_0000, 0)],
            &[readable(0x4_0000, 0x1000)],
            &[readable(REQUEST, 4), writable(0x4_0000, 0x1000)],
            // Outside of memory, beyond its end, around the end of the address space.
            &[writable(0x4000_0000, 0x1000)],
            &[writable(0xf_f000, 0x2000)],
            &[writable(u64::MAX - 0xfff, 0x1001)],
        ];
        for (number, buffers) in (1..).zip(wrong) {
            assert_eq!(w.guest.run(REPORTING, buffers), 0, "{buffers:?}");
            assert_eq!(w.guest.counters(REPORTING).malformed, number, "{buffers:?}");
        }
        assert!(w.discarded().is_empty());
        // Empty pieces beside others are nothing.
        w.guest.run(
            REPORTING,
            &[writable(0x4_0000, 0), writable(0x5_0000, 0x1000), writable(0x4_0000, 0)],
        );
        assert_eq!(w.discarded(), [0x5_0000..0x5_1000]);
    }
}

#[test]
fn the_same_pages_may_be_reported_and_given() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.guest
            .run(REPORTING, &[writable(0x4_0000, 0x2000), writable(0x4_1000, 0x2000)]);
        w.pages(INFLATE, &[0x41]);
        assert_eq!(
            w.discarded(),
            [0x4_0000..0x4_2000, 0x4_1000..0x4_3000, 0x4_1000..0x4_2000]
        );
    }
}

#[test]
fn pages_that_are_to_keep_another_value_than_zero_are_kept() {
    for kind in BOTH {
        let mut w = World::new(kind);
        for (poison, gone) in [(0xaaaa_aaaa_u32, 0), (1 << 31, 0), (0, 1)] {
            w.guest.set_config(POISON, 4, poison.into());
            assert_eq!(w.guest.run(REPORTING, &[writable(0x4_0000, 0x1000)]), 0);
            assert_eq!(w.discarded().len(), gone, "{poison:#x}");
        }
        // In the balloon they need not keep it.
        w.guest.set_config(POISON, 4, 0xaaaa_aaaa);
        w.pages(INFLATE, &[0x40]);
        assert_eq!(w.discarded().len(), 1);
        assert_eq!(w.guest.counters(REPORTING).malformed, 0);
    }
}

#[test]
fn without_the_feature_a_poison_value_means_nothing() {
    for kind in BOTH {
        let pages = Arc::new(Recorded::new([MEMORY]));
        let mut balloon = Balloon::new(Arc::clone(&pages), BalloonOptions::default()).unwrap();
        balloon.write_config(POISON, &[0xaa; 4]);
        let mut guest = Guest::start(kind, balloon, &memory(), COMMON | PAGE_REPORTING, &[0, 1, REPORTING]);
        guest.set_config(POISON, 4, 0xaaaa_aaaa);
        guest.run(REPORTING, &[writable(0x4_0000, 0x1000)]);
        assert_eq!(discarded(&pages), [0x4_0000..0x4_1000]);
    }
}
