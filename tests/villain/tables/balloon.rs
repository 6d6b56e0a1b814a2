//! L: the traditional memory balloon (virtio 1.2, section 5.5).

use crate::{
    both::{ANSWER, REQUEST},
    driver::{
        Row,
        Seen::{self, Holds, Kept, Refused, Served},
        differs, elsewhere, plays,
    },
    ring::{readable, writable},
    rings::*,
    world::World,
};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATS: u16 = 2;
const HINTS: u16 = 3;
const REPORTING: u16 = 4;

/// Gives these pages, or takes them back.
fn pages(w: &mut World, queue: u16, numbers: &[u32]) -> Seen {
    let bytes: Vec<_> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    w.guest.put(REQUEST, &bytes);
    w.offer(queue, &[readable(REQUEST, bytes.len() as u32)])
}

/// Entries of statistics: tags and values.
fn tells(w: &mut World, entries: &[(u16, u64)]) -> Seen {
    let mut bytes = Vec::new();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    w.guest.put(REQUEST, &bytes);
    w.offer(STATS, &[readable(REQUEST, bytes.len() as u32)])
}

/// A page at this number.
fn page(number: u64) -> std::ops::Range<u64> {
    number * 4096..(number + 1) * 4096
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("L0001", "a page goes into the balloon", plays(Served, |w| {
        let seen = pages(w, INFLATE, &[0xc0]);
        assert_eq!(w.discarded(), [page(0xc0)]);
        seen
    })),
    Row("L0002", "a page comes out of it", plays(Served, |w| pages(w, DEFLATE, &[0xc0]))),
    Row("L0003", "no page goes into it", plays(Refused, |w| hurt_first(w, INFLATE, Len(0)))),
    Row("L0004", "a page that is no memory", plays(Served, |w| {
        let seen = pages(w, INFLATE, &[0x100]);
        assert!(w.discarded().is_empty());
        seen
    })),
    Row("L0005", "half a page number", plays(Refused, |w| hurt_first(w, INFLATE, Len(6)))),
    Row("L0006", "a page goes in and comes out", plays(Served, |w| {
        assert_eq!(pages(w, INFLATE, &[0xc0]), Served);
        pages(w, DEFLATE, &[0xc0])
    })),
    Row("L0007", "page 0", plays(Served, |w| {
        let seen = pages(w, INFLATE, &[0]);
        assert_eq!(w.discarded(), [page(0)]);
        seen
    })),
    Row("L0008", "the last page number that can be said", plays(Served, |w| {
        let seen = pages(w, INFLATE, &[u32::MAX]);
        assert!(w.discarded().is_empty());
        seen
    })),
    Row("L0009", "a page that is named twice", plays(Served, |w| {
        let seen = pages(w, INFLATE, &[0xc0, 0xc0]);
        assert_eq!(w.discarded(), [page(0xc0)]);
        seen
    })),
    Row("L0010", "page numbers of nearly 4 GiB", plays(Refused, |w| hurt_first(w, INFLATE, Len(0xffff_fffc)))),
    Row("L0011", "page numbers that lie nowhere", plays(Refused, |w| hurt_first(w, INFLATE, NO_MEMORY))),
    Row("L0012", "page numbers in a buffer that the device may write", plays(Refused, |w| hurt_first(w, INFLATE, Turned))),
    Row("L0013", "a request of one byte", plays(Refused, |w| hurt_first(w, INFLATE, Len(1)))),
    Row("L0014", "as many requests as the ring has room for", plays(Served, |w| full(w, INFLATE))),
    Row("L0015", "page numbers in several buffers", plays(Served, |w| {
        w.guest.put(REQUEST, &[0xc0, 0, 0, 0, 0xc1, 0, 0, 0]);
        let seen = w.offer(INFLATE, &[readable(REQUEST, 3), readable(REQUEST + 3, 5)]);
        assert_eq!(w.discarded(), [page(0xc0).start..page(0xc1).end]);
        seen
    })),
    Row("L0016", "a page goes in that is in", plays(Served, |w| {
        assert_eq!(pages(w, INFLATE, &[0xc0]), Served);
        pages(w, INFLATE, &[0xc0])
    })),
    Row("L0017", "a page comes out that was never in", plays(Served, |w| pages(w, DEFLATE, &[0xff]))),
    Row("L0018", "no page comes out", plays(Refused, |w| hurt_first(w, DEFLATE, Len(0)))),
    Row("L0019", "statistics are held until somebody asks", differs(Refused, Kept, |w| tells(w, &[(4, 1 << 20)]))),
    Row("L0020", "statistics that end within an entry", elsewhere("tests/balloon/statistics.rs::a_buffer_is_taken_as_far_as_it_goes")),
    Row("L0021", "the ring goes into the balloon", elsewhere("tests/balloon/inflate.rs::the_ring_itself_in_the_balloon_is_contained")),
    Row("L0022", "a report by who did not ask to make any", differs(Refused, Served, |w| w.offer(REPORTING, &[writable(0xc_0000, 4096)]))),
    Row("L0023", "a page is reported free, in the direction of the specification and in the other", differs(Refused, Served, |w| {
        assert_eq!(w.offer(REPORTING, &[readable(0xc_0000, 4096)]), Refused);
        assert!(w.discarded().is_empty());
        let seen = w.offer(REPORTING, &[writable(0xc_0000, 4096)]);
        assert_eq!(w.discarded().len(), usize::from(w.is_full()));
        seen
    })),
    Row("L0024", "nothing is reported free", plays(Refused, |w| w.offer(REPORTING, &[writable(0xc_0000, 0)]))),
    Row("L0025", "all of memory is reported free, and more", plays(Refused, |w| w.offer(REPORTING, &[writable(0, u32::MAX)]))),
    Row("L0026", "a page is reported free and given", differs(Refused, Served, |w| {
        assert_eq!(pages(w, INFLATE, &[0xc0]), Served);
        w.offer(REPORTING, &[writable(0xc_0000, 4096)])
    })),
    Row("L0027", "the configuration is read through the capability of PCI", elsewhere("tests/virtio_pci/window.rs::the_window_reaches_every_register_that_the_bars_reach_doorbells_included")),
    Row("L0028", "page numbers that leave memory at its end", plays(Refused, |w| hurt_first(w, INFLATE, PastMemory))),
    Row("L0029", "a report of parts of pages", elsewhere("tests/balloon/reporting.rs::a_report_of_parts_of_pages_gives_whole_ones")),
    Row("L0030", "statistics in several buffers", elsewhere("tests/balloon/statistics.rs::an_entry_may_be_split_between_buffers")),
    Row("L0031", "page numbers that lie across a page boundary", plays(Served, |w| {
        w.guest.put(0xc_0ffe, &[0xc5, 0, 0, 0]);
        let seen = w.offer(INFLATE, &[readable(0xc_0ffe, 4)]);
        assert_eq!(w.discarded(), [page(0xc5)]);
        seen
    })),
    Row("L0032", "statistics of a kind that nobody knows", elsewhere("tests/balloon/statistics.rs::all_tags_are_known_in_any_order_and_others_are_ignored")),
    Row("L0033", "a page that is the registers of a device", plays(Served, |w| {
        let seen = pages(w, INFLATE, &[(crate::world::REGISTERS >> 12) as u32]);
        assert!(w.discarded().is_empty());
        seen
    })),
    Row("L0034", "a page comes out because memory ran out", plays(Served, |w| pages(w, DEFLATE, &[0xc0]))),
    Row("L0035", "a page is hinted that nobody asked for", differs(Refused, Served, |w| {
        w.guest.put(REQUEST, &2_u32.to_le_bytes());
        let seen = w.offer(HINTS, &[readable(REQUEST, 4), writable(0xc_0000, 4096)]);
        assert!(w.host.hints.lock().unwrap().is_empty());
        seen
    })),
    Row("L0036", "what free pages are to hold", elsewhere("tests/balloon/inflate.rs::poison_val_is_there_once_it_is_negotiated")),
    Row("L0037", "how many pages the host wants", plays(Holds, |w| {
        assert_eq!(w.guest.config(0, 4), 0);
        Holds
    })),
    Row("L0038", "how many pages the driver says there are", plays(Holds, |w| {
        assert_eq!(pages(w, INFLATE, &[0xc0]), Served);
        w.guest.set_config(4, 4, 1);
        assert_eq!(w.guest.config(4, 4), 1);
        Holds
    })),
    Row("L0039", "a page comes out that is in", plays(Served, |w| {
        assert_eq!(pages(w, INFLATE, &[0xc1]), Served);
        pages(w, DEFLATE, &[0xc1])
    })),
    Row("L0040", "two pages go in", plays(Served, |w| {
        let seen = pages(w, INFLATE, &[0xc1, 0xc0]);
        assert_eq!(w.discarded(), [page(0xc0).start..page(0xc1).end]);
        seen
    })),
    Row("L0041", "how much memory is free", differs(Refused, Kept, |w| tells(w, &[(4, 1 << 20)]))),
    Row("L0042", "statistics in another order", differs(Refused, Kept, |w| tells(w, &[(5, 3), (0, 1), (4, 2)]))),
    Row("L0043", "statistics of every kind", differs(Refused, Kept, |w| tells(w, &[(0, 1), (1, 2), (2, 3), (3, 4), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9)]))),
    Row("L0044", "hints that the host does not want any more", elsewhere("tests/balloon/hints.rs::the_end_is_told_once_and_of_a_round_that_there_was")),
    Row("L0045", "a report of pages that are to hold something", elsewhere("tests/balloon/reporting.rs::pages_that_are_to_keep_another_value_than_zero_are_kept")),
    Row("L0046", "a report that is no multiple of a page", differs(Refused, Served, |w| {
        let seen = w.offer(REPORTING, &[writable(0xc_0000, 0x1800)]);
        assert_eq!(w.discarded().len(), usize::from(w.is_full()));
        seen
    })),
    Row("L0200", "the host wants another size", elsewhere("tests/balloon/inflate.rs::a_new_target_is_told_and_the_generation_moves")),
    Row("L0201", "a state is saved while pages go in", plays(Holds, |w| {
        w.guest.transport().pause();
        let good = w.good(INFLATE);
        assert_eq!(w.offer(INFLATE, &good), Kept);
        assert!(w.discarded().is_empty());
        w.moved();
        w.guest.transport().run();
        assert_eq!(w.guest.used(INFLATE).len(), 1);
        assert_eq!(w.discarded(), [page(0x90)]);
        w.guest.put(ANSWER, &[0]);
        Holds
    })),
];
