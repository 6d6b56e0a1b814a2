//! Inflating and deflating (section 5.5.6), and the configuration space (section 5.5.4).

use devisor::virtio::{
    DeviceId, VirtioDevice,
    balloon::{Balloon, BalloonCounters, BalloonError, BalloonOptions},
    reclaim::{ReclaimCall, Recorded},
};

use crate::{
    ACTUAL, CMD_ID, DEFLATE, INFLATE, MEMORY, NUM_PAGES, POISON, World,
    both::{BOTH, COMMON, Guest, REQUEST},
    memory,
    ring::{Buffer, readable, writable},
};

#[test]
fn pages_that_are_given_go_back_to_the_host() {
    for kind in BOTH {
        let mut w = World::new(kind);
        assert_eq!(w.pages(INFLATE, &[0x40]), 0);
        assert_eq!(w.discarded(), [0x4_0000..0x4_1000]);
        let counters = w.guest.with(|balloon| balloon.counters());
        let expected = BalloonCounters {
            inflated: 0x1000,
            given_back: 0x1000,
            ..BalloonCounters::default()
        };
        assert_eq!(counters, expected);
        assert_eq!(w.guest.counters(INFLATE).malformed, 0);
    }
}

#[test]
fn pages_that_follow_each_other_go_in_one_piece_whatever_their_order() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.pages(INFLATE, &[0x43, 0x41, 0x50, 0x42, 0x51]);
        assert_eq!(w.discarded(), [0x4_1000..0x4_4000, 0x5_0000..0x5_2000]);
    }
}

#[test]
fn a_page_that_is_named_twice_is_one_page() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.pages(INFLATE, &[0x40, 0x40, 0x41, 0x40]);
        assert_eq!(w.discarded(), [0x4_0000..0x4_2000]);
        // In another request it is given again, and so it goes again.
        w.pages(INFLATE, &[0x40]);
        assert_eq!(w.discarded(), [0x4_0000..0x4_1000]);
    }
}

#[test]
fn pages_that_are_taken_back_are_populated_also_if_they_were_never_given() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.pages(INFLATE, &[0x40]);
        w.pages.take_calls();
        assert_eq!(w.pages(DEFLATE, &[0x40, 0x60]), 0);
        assert_eq!(
            w.pages.take_calls(),
            [
                ReclaimCall::Populate(0x4_0000..0x4_1000),
                ReclaimCall::Populate(0x6_0000..0x6_1000)
            ]
        );
        assert_eq!(w.guest.with(|balloon| balloon.counters().deflated), 0x2000);
    }
}

#[test]
fn page_numbers_outside_of_memory_cost_a_counter() {
    for kind in BOTH {
        let mut w = World::new(kind);
        // Beyond the end, in a BAR, the last that can be named; and page zero, which is memory.
        assert_eq!(w.pages(INFLATE, &[0x100, 0x4_0000, u32::MAX, 0]), 0);
        let counters = w.guest.with(|balloon| balloon.counters());
        assert_eq!((counters.outside, counters.given_back), (0x3000, 0x1000));
        assert_eq!(
            w.discarded(),
            [
                0..0x1000,
                0x10_0000..0x10_1000,
                0x4000_0000..0x4000_1000,
                0x0fff_ffff_f000..0x1000_0000_0000
            ]
        );
        assert_eq!(w.pages(DEFLATE, &[u32::MAX, 0x100]), 0);
        assert_eq!(w.guest.with(|balloon| balloon.host_failures().count), 0);
        // A run over the end of memory is given as far as there is some.
        w.pages(INFLATE, &[0xfe, 0xff, 0x100, 0x101]);
        let counters = w.guest.with(|balloon| balloon.counters());
        assert_eq!((counters.outside, counters.given_back), (0x5000, 0x3000));
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    for kind in BOTH {
        let mut w = World::new(kind);
        let numbers: Vec<u8> = [0x40_u32, 0x42, 0x44].iter().flat_map(|n| n.to_le_bytes()).collect();
        w.guest.put(REQUEST, &numbers);
        let cut = [
            readable(REQUEST, 3),
            readable(REQUEST + 3, 0),
            readable(REQUEST + 3, 6),
            readable(REQUEST + 9, 3),
        ];
        assert_eq!(w.guest.run(INFLATE, &cut), 0);
        assert_eq!(
            w.discarded(),
            [0x4_0000..0x4_1000, 0x4_2000..0x4_3000, 0x4_4000..0x4_5000]
        );
        let ring = w.guest.ring(INFLATE);
        let head = ring.add_indirect(0xa_0000, &[readable(REQUEST, 4), readable(REQUEST + 8, 4)]);
        ring.offer(head);
        w.guest.kick(INFLATE);
        assert_eq!(w.guest.used(INFLATE), [0]);
        assert_eq!(w.discarded(), [0x4_0000..0x4_1000, 0x4_4000..0x4_5000]);
    }
}

#[test]
fn a_request_that_is_no_array_of_page_numbers_costs_that_request_alone() {
    for kind in BOTH {
        for queue in [INFLATE, DEFLATE] {
            let mut w = World::new(kind);
            w.guest.put(REQUEST, &[0x40, 0, 0, 0, 0x41, 0, 0, 0]);
            let wrong: [&[Buffer]; 8] = [
                &[readable(REQUEST, 0)],
                &[readable(REQUEST, 1)],
                &[readable(REQUEST, 3)],
                &[readable(REQUEST, 7)],
                &[writable(REQUEST, 4)],
                &[readable(REQUEST, 4), writable(REQUEST + 4, 4)],
                // A descriptor outside of memory, and one that leaves it.
                &[readable(0x20_0000, 4)],
                &[readable(0xf_fffc, 8)],
            ];
            for (number, buffers) in (1..).zip(wrong) {
                assert_eq!(w.guest.run(queue, buffers), 0, "{buffers:?}");
                assert_eq!(w.guest.counters(queue).malformed, number, "{buffers:?}");
            }
            assert!(w.pages.take_calls().is_empty());
            assert_eq!(w.guest.run(queue, &[readable(REQUEST, 8)]), 0);
            assert_eq!(w.pages.take_calls().len(), 1, "it goes on");
        }
    }
}

#[test]
fn a_request_with_more_pages_than_allowed_does_nothing() {
    for kind in BOTH {
        let options = BalloonOptions {
            max_pages: 8,
            ..BalloonOptions::default()
        };
        let mut w = World::with(kind, options, Recorded::new([MEMORY]));
        w.pages(INFLATE, &[0x40; 9]);
        assert!(w.discarded().is_empty());
        assert_eq!(w.guest.counters(INFLATE).malformed, 1);
        w.pages(INFLATE, &[0x40; 8]);
        assert_eq!(w.discarded(), [0x4_0000..0x4_1000]);
        // All of memory, many times over: nearly 4 GiB of page numbers.
        let all: Vec<_> = (0..60).map(|_| readable(0, 0x10_0000)).collect();
        assert_eq!(w.guest.run(INFLATE, &all), 0);
        assert_eq!(w.guest.counters(INFLATE).malformed, 2);
    }
}

#[test]
fn a_full_ring_is_served_to_its_end() {
    for kind in BOTH {
        let mut w = World::new(kind);
        for page in 0..64_u32 {
            w.guest
                .put(REQUEST + 4 * u64::from(page), &(0xb0 + page % 16).to_le_bytes());
            w.guest
                .ring(INFLATE)
                .request(&[readable(REQUEST + 4 * u64::from(page), 4)]);
        }
        w.guest.kick(INFLATE);
        assert_eq!(w.guest.used(INFLATE), vec![0; 64]);
        assert_eq!(w.discarded().len(), 64);
    }
}

#[test]
fn what_the_host_refuses_is_counted_and_the_guest_goes_on() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.pages.fail(true);
        assert_eq!(w.pages(INFLATE, &[0x40, 0x50]), 0);
        assert_eq!(w.pages(DEFLATE, &[0x40]), 0);
        let failures = w.guest.with(|balloon| balloon.host_failures());
        assert_eq!(failures.count, 3);
        assert_eq!(failures.last.unwrap().to_string(), "told to fail");
        assert_eq!(w.guest.with(|balloon| balloon.counters().given_back), 0);
    }
}

// The configuration space.

#[test]
fn a_new_target_is_told_and_the_generation_moves() {
    for kind in BOTH {
        let w = World::new(kind);
        let generation = w.guest.generation();
        assert_eq!(w.guest.config(NUM_PAGES, 4), 0);
        w.guest.was_told();
        w.guest.change_config(|balloon| balloon.set_target(0x1234_5678));
        assert!(w.guest.was_told());
        assert_ne!(w.guest.generation(), generation);
        assert_eq!(w.guest.config(NUM_PAGES, 4), 0x1234_5678);
        assert_eq!(w.guest.config(NUM_PAGES + 1, 1), 0x56);
        assert_eq!(w.guest.with(|balloon| balloon.target()), 0x1234_5678);
    }
}

#[test]
fn actual_is_what_the_driver_writes_in_any_width() {
    for kind in BOTH {
        let w = World::new(kind);
        let actual = || w.guest.with(|balloon| balloon.actual());
        w.guest.set_config(ACTUAL, 4, 0x0102_0304);
        assert_eq!((actual(), w.guest.config(ACTUAL, 4)), (0x0102_0304, 0x0102_0304));
        w.guest.set_config(ACTUAL + 1, 1, 0xff);
        w.guest.set_config(ACTUAL + 2, 2, 0xaabb);
        assert_eq!(actual(), 0xaabb_ff04);
        // A lie is the guest's.
        w.guest.set_config(ACTUAL, 4, u32::MAX.into());
        assert_eq!(actual(), u32::MAX);
    }
}

#[test]
fn other_fields_are_read_only_and_nothing_is_beyond_them() {
    for kind in BOTH {
        let w = World::new(kind);
        w.guest.change_config(|balloon| balloon.set_target(7));
        for offset in [NUM_PAGES, CMD_ID, 16, 20, 0x80] {
            let before = w.guest.config(offset, 4);
            w.guest.set_config(offset, 4, 0x5555_5555);
            assert_eq!(w.guest.config(offset, 4), before, "{offset}");
        }
        assert_eq!(w.guest.config(16, 4), 0);
        // Over all of it at once, which no transport lets a guest do.
        w.guest.with(|balloon| {
            balloon.write_config(0, &[0xff; 64]);
            balloon.write_config(u64::MAX, &[0xee; 64]);
            balloon.write_config(u64::MAX - 3, &[0xee; 8]);
            balloon.write_config(3, &[]);
        });
        let config: Vec<_> = (0..4).map(|field| w.guest.config(4 * field, 4)).collect();
        assert_eq!(config, [7, 0xffff_ffff, 0, 0xffff_ffff]);
    }
}

#[test]
fn poison_val_is_there_once_it_is_negotiated() {
    for kind in BOTH {
        let w = World::new(kind);
        w.guest.set_config(POISON, 4, 0xaaaa_aaaa);
        assert_eq!(w.guest.config(POISON, 4), 0xaaaa_aaaa);

        let balloon = Balloon::new((), BalloonOptions::default()).unwrap();
        let guest = Guest::start(kind, balloon, &memory(), COMMON, &[INFLATE]);
        guest.set_config(POISON, 4, 0xaaaa_aaaa);
        assert_eq!(guest.config(POISON, 4), 0);
    }
}

#[test]
fn a_reset_forgets_the_driver_and_keeps_the_target() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.guest.change_config(|balloon| balloon.set_target(9));
        w.guest.set_config(ACTUAL, 4, 5);
        w.guest.set_config(POISON, 4, 5);
        w.guest.reset();
        let config: Vec<_> = (0..4).map(|field| w.guest.config(4 * field, 4)).collect();
        assert_eq!(config, [9, 0, 0, 0]);
        // And works again.
        w.guest.drive(COMMON, &[INFLATE, DEFLATE]);
        w.pages(INFLATE, &[0x40]);
        assert_eq!(w.discarded(), [0x4_0000..0x4_1000]);
    }
}

// Options.

#[test]
fn what_is_offered_is_as_the_options_have_it() {
    let offered = |options| Balloon::new((), options).unwrap().features();
    assert_eq!(offered(BalloonOptions::default()), 0b11_0011);
    let none = BalloonOptions {
        must_tell_host: false,
        statistics: false,
        page_poison: false,
        page_reporting: false,
        ..BalloonOptions::default()
    };
    assert_eq!(offered(none.clone()), 0);
    assert_eq!(Balloon::new((), none.clone()).unwrap().queue_sizes(), [64, 64]);
    let oom = BalloonOptions {
        deflate_on_oom: true,
        ..none.clone()
    };
    assert_eq!(offered(oom), 1 << 2);
    let hints = Balloon::new((), none).unwrap().with_hints(|_, _, _| {});
    assert_eq!((hints.features(), hints.queue_sizes().len()), (1 << 3, 4));
    assert_eq!(hints.device_id(), DeviceId(5));
}

#[test]
fn options_out_of_range_are_refused_with_what_would_do() {
    let refused = |options| Balloon::new((), options).map(|_| ()).unwrap_err();
    let size = |queue_size| BalloonOptions {
        queue_size,
        ..BalloonOptions::default()
    };
    assert_eq!(refused(size(0)), BalloonError::QueueSize(0));
    assert_eq!(refused(size(48)), BalloonError::QueueSize(48));
    for max_pages in [0, BalloonOptions::MAX_PAGES + 1] {
        let options = BalloonOptions {
            max_pages,
            ..BalloonOptions::default()
        };
        let error = refused(options);
        assert_eq!(error, BalloonError::MaxPages(max_pages));
        assert!(error.to_string().ends_with("1 to 1048576 is accepted"));
    }
}

#[test]
fn the_ring_itself_in_the_balloon_is_contained() {
    #[cfg(target_os = "linux")]
    for kind in BOTH {
        use devisor::virtio::reclaim::Madvise;
        let memory = memory();
        let balloon = Balloon::new(Madvise::new(memory.clone()), BalloonOptions::default()).unwrap();
        let mut guest = Guest::start(kind, balloon, &memory, COMMON, &[INFLATE, DEFLATE]);
        let layout = guest.ring(INFLATE).layout;
        let areas = [layout.descriptor_area, layout.driver_area, layout.device_area];
        let numbers: Vec<u8> = areas
            .iter()
            .flat_map(|area| ((area >> 12) as u32).to_le_bytes())
            .collect();
        guest.put(REQUEST, &numbers);
        guest.offer(INFLATE, &[readable(REQUEST, numbers.len() as u32)]);
        assert_eq!(guest.with(|balloon| balloon.counters().given_back), 0x3000);
        // Whatever its ring has become to the device: a reset revives it.
        guest.reset();
        guest.drive(COMMON, &[INFLATE, DEFLATE]);
        guest.put(REQUEST, &0x40_u32.to_le_bytes());
        assert_eq!(guest.run(INFLATE, &[readable(REQUEST, 4)]), 0);
    }
}
