//! P: packed virtqueues (virtio 1.2, section 2.8), before a disk of two queues; what is tried of a queue alone is not played once more.

use devisor::virtio::transport::TransportOptions;

use crate::{
    disk::{AnyRing, DATA, Disk, Format, HEADER, IN, IOERR, NOWHERE, OUT, SIZE, STATUS, TABLE, TOP},
    driver::{
        Row,
        Seen::{Holds, Kept, Refused, Served},
        elsewhere, packs, packs_and_differs,
    },
    packed::*,
    packed_ring::{AVAIL, DESC, ENABLE, Place, USED},
    ring::{INDIRECT, NEXT, WRITE},
    world::REGISTERS,
};

/// VIRTIO_F_ACCESS_PLATFORM (section 6).
const ACCESS_PLATFORM: u64 = 1 << 33;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("P0001", "descriptors that change after they were made available", elsewhere("tests/queue/hostile.rs::a_driver_that_changes_its_descriptors_all_the_time_is_contained")),
    Row("P0002", "a descriptor that is written before it was used", packs(Served, |d| {
        // Served with the first kick: what is written over it is nothing new.
        let seen = several(d, 1);
        let ring = d.rings[0].packed();
        ring.put(ring.layout.descriptor_area, [NOWHERE, 16]);
        assert_eq!(d.watch(0, |_| ()), crate::disk::Outcome::Kept);
        seen
    })),
    Row("P0003", "a chain longer than the ring", elsewhere("tests/queue/hostile.rs::a_chain_without_an_end_breaks_the_ring")),
    Row("P0004", "a first descriptor that is available before the others", packs(Holds, |d| linked(d, (HEADER, 16, NEXT)))),
    Row("P0005", "a table that was not agreed on", elsewhere("tests/queue/shared.rs::indirect_tables_cost_their_chain_where_there_must_be_none")),
    Row("P0006", "a table whose entries have flags that mean nothing", elsewhere("tests/queue/hostile.rs::of_the_flags_in_a_table_write_alone_is_looked_at_and_that_not_beside_the_table")),
    Row("P0007", "a table that is linked to descriptors", elsewhere("tests/queue/shared.rs::indirect_tables_cost_their_chain_where_there_must_be_none")),
    Row("P0008", "a chain longer than the device takes", packs(Served, |d| {
        let good = d.good();
        let data = [(DATA, 512, WRITE); 10];
        d.offer(&[&good[..1], &data, &good[2..]].concat()).into()
    })),
    Row("P0009", "rings at addresses that are not aligned", elsewhere("tests/queue/hostile.rs::layouts_that_cannot_be_are_refused")),
    Row("P0010", "writable before readable descriptors", elsewhere("tests/queue/shared.rs::readable_after_writable_costs_its_chain")),
    Row("P0011", "wrap counters that are mistaken", elsewhere("tests/queue/hostile.rs::wrap_counters_that_lie_make_nothing_available")),
    Row("P0012", "a buffer number that cannot be", elsewhere("tests/queue/hostile.rs::a_buffer_id_at_or_above_the_size_breaks_the_ring")),
    Row("P0013", "a buffer number that is in use", elsewhere("tests/queue/hostile.rs::a_buffer_id_in_flight_breaks_the_ring_and_one_that_was_used_does_not")),
    Row("P0014", "event flags that are reserved", elsewhere("tests/queue/hostile.rs::a_reserved_suppression_value_is_heard")),
    Row("P0015", "a wrap at the first descriptor", packs(Served, |d| {
        // All of the ring, by requests that are none.
        let all = |ring: &mut AnyRing| (0..SIZE).for_each(|_| _ = ring.chain(&[(HEADER, 16, 0)]));
        assert_eq!(d.watch(SIZE.into(), all), crate::disk::Outcome::Refused);
        assert_eq!(d.rings[0].packed().next, Place { slot: 0, wrap: false });
        several(d, 1)
    })),
    Row("P0016", "a ring of one descriptor", elsewhere("tests/queue/hostile.rs::a_ring_may_have_any_size_and_goes_round_and_round")),
    Row("P0017", "a kick with the wrap counter of before", packs(Served, |d| {
        let ring = d.rings[0].packed();
        ring.put(ring.layout.driver_area, [0_u16, DESC]);
        several(d, 1)
    })),
    Row("P0018", "a descriptor that says to be used", elsewhere("tests/queue/hostile.rs::wrap_counters_that_lie_make_nothing_available")),
    Row("P0019", "an event whose wrap counter is another", elsewhere("tests/queue/hostile.rs::an_interrupt_is_asked_for_by_place_and_wrap_counter")),
    Row("P0020", "a ring that is full", packs(Served, |d| several(d, usize::from(SIZE) / 3))),
    Row("P0021", "a flag that changes in the middle of a chain", packs(Served, |d| {
        let good = d.good();
        let offer = |ring: &mut AnyRing| {
            let ring = ring.packed();
            let id = ring.raw(&good);
            ring.descriptor(1, (DATA, 512, id, NEXT | WRITE | USED));
            ring.offer(id);
        };
        d.watch(1, offer).into()
    })),
    Row("P0022", "a table under a number that was used before", packs(Holds, |d| {
        let good = d.good();
        d.put_table(TABLE, &good);
        for slot in 0..2 {
            d.rings[0].packed().descriptor(slot, (TABLE, 48, 42, INDIRECT | AVAIL));
            d.guest.kick(0);
            assert!(is_used(d, slot));
            let id = d.rings[0].layout().descriptor_area + 16 * u64::from(slot) + 12;
            assert_eq!(d.guest.get(id, 2), [42, 0]);
        }
        d.restart();
        Holds
    })),
    Row("P0023", "events that name a descriptor", elsewhere("tests/queue/hostile.rs::an_interrupt_is_asked_for_by_place_and_wrap_counter")),
    Row("P0024", "a ring of one descriptor and a table", elsewhere("tests/queue/hostile.rs::a_ring_may_have_any_size_and_goes_round_and_round")),
    Row("P0025", "requests that are used in another order", elsewhere("tests/queue/shared.rs::chains_that_were_taken_are_completed_in_any_order")),
    Row("P0026", "all flags", packs(Kept, |d| {
        let good = d.good();
        d.put_table(TABLE, &good);
        left_alone(d, (TABLE, 48, 0, 0xffff))
    })),
    Row("P0027", "the used length is what was written", elsewhere("tests/queue/hostile.rs::a_used_descriptor_says_whether_anything_was_written")),
    Row("P0028", "several wraps", elsewhere("tests/queue/hostile.rs::a_ring_may_have_any_size_and_goes_round_and_round")),
    Row("P0029", "an event index at a descriptor", elsewhere("tests/queue/hostile.rs::an_interrupt_is_asked_for_by_place_and_wrap_counter")),
    Row("P0030", "requests that are used in order", packs(Holds, in_order)),
    Row("P0031", "event flags of the reserved value", elsewhere("tests/queue/hostile.rs::a_reserved_suppression_value_is_heard")),
    Row("P0032", "a table that ends within an entry", elsewhere("tests/queue/shared.rs::indirect_tables_cost_their_chain_where_there_must_be_none")),
    Row("P0033", "many buffers in a chain", packs(Served, |d| {
        let good = d.good();
        let pieces: Vec<_> = (0..8).map(|piece| (DATA + 64 * piece, 64, WRITE)).collect();
        d.offer(&[&good[..1], &pieces, &good[2..]].concat()).into()
    })),
    Row("P0034", "a table across pages", packs_and_differs(Refused, Served, |d| in_table(d, TABLE + 0xfe0, |_| ()))),
    Row("P0035", "neither available nor used", elsewhere("tests/queue/hostile.rs::wrap_counters_that_lie_make_nothing_available")),
    Row("P0036", "in order, if it is agreed on", packs(Holds, |d| {
        let options = TransportOptions { in_order: true, ..d.guest.kind.options() };
        *d = Disk::with_options(d.guest.kind, Format::Packed, d.accepts, options);
        in_order(d)
    })),
    Row("P0037", "events that are turned off and on", elsewhere("tests/queue/hostile.rs::kicks_are_suppressed_while_serving_and_expected_after")),
    Row("P0038", "many wraps", elsewhere("tests/queue/hostile.rs::a_ring_may_have_any_size_and_goes_round_and_round")),
    Row("P0039", "what the device says of its events", packs(Holds, |d| {
        let event = d.rings[0].packed().device_event();
        (0..100).for_each(|_| assert_eq!(d.rings[0].packed().device_event(), event));
        Holds
    })),
    Row("P0040", "a table whose entry is linked, which endless chains came from", elsewhere("tests/queue/hostile.rs::of_the_flags_in_a_table_write_alone_is_looked_at_and_that_not_beside_the_table")),
    Row("P0041", "an event at the ring's end", packs(Served, |d| {
        let ring = d.rings[0].packed();
        ring.put(ring.layout.driver_area, [SIZE, DESC]);
        several(d, 1)
    })),
    Row("P0042", "no kick for an empty ring", packs(Kept, |d| d.watch(1, |_| ()).into())),
    Row("P0043", "a buffer number as large as the ring", elsewhere("tests/queue/hostile.rs::a_buffer_id_at_or_above_the_size_breaks_the_ring")),
    Row("P0044", "available and used at once", elsewhere("tests/queue/hostile.rs::wrap_counters_that_lie_make_nothing_available")),
    Row("P0045", "no bytes", packs(Served, |d| data(d, DATA, 0))),
    Row("P0046", "nearly 4 GiB", packs(Refused, |d| data(d, DATA, u32::MAX))),
    Row("P0047", "address 0", packs(Served, |d| data(d, 0, 512))),
    Row("P0048", "the flag that means NEXT, in the last descriptor", packs(Holds, |d| linked(d, (DATA, 512, WRITE | NEXT)))),
    Row("P0049", "wrap flags in a table", elsewhere("tests/queue/hostile.rs::of_the_flags_in_a_table_write_alone_is_looked_at_and_that_not_beside_the_table")),
    Row("P0050", "a table in a table", elsewhere("tests/queue/hostile.rs::of_the_flags_in_a_table_write_alone_is_looked_at_and_that_not_beside_the_table")),
    Row("P0051", "the flag that says that the device may write", packs(Holds, |d| {
        d.answers();
        Holds
    })),
    Row("P0052", "one used descriptor for a batch", packs(Served, |d| several(d, 2))),
    Row("P0053", "descriptors that are right in all their fields", packs(Kept, |d| {
        d.rings[0].packed().descriptor(0, (DATA, 16, 0, WRITE));
        d.watch(1, |_| ()).into()
    })),
    Row("P0054", "event structures that are right in all their fields", packs(Holds, |d| {
        let ring = d.rings[0].packed();
        ring.put(ring.layout.driver_area + 2, ENABLE);
        assert!(ring.device_event().1 <= DESC);
        Holds
    })),
    Row("P0055", "descriptors that the device reads once", elsewhere("tests/queue/hostile.rs::a_driver_that_changes_its_descriptors_all_the_time_is_contained")),
    Row("P0056", "chains that are used in the order of their buffers", packs(Holds, |d| {
        d.answers();
        Holds
    })),
    Row("P0057", "a kick by the offset in the ring", elsewhere("tests/transport_options.rs::a_driver_chooses_a_packed_ring_of_any_size_and_kicks_with_what_it_has_made_available")),
    Row("P0058", "buffers that come back", packs(Served, |d| {
        let good = d.good();
        let id = d.rings[0].chain(&good);
        d.guest.kick(0);
        assert_eq!(d.rings[0].used(), [(id.into(), 513)]);
        Served
    })),
    Row("P0059", "what is written is read", elsewhere("tests/queue/shared.rs::a_chain_is_read_written_and_used")),
    Row("P0060", "data in the registers of a device", packs(Refused, |d| data(d, REGISTERS, 512))),
    Row("P0061", "an address and a length that pass 2^64", elsewhere("tests/queue/shared.rs::memory_that_is_not_the_guests_is_not_touched")),
    Row("P0062", "an entry of a table that passes 2^64", packs(Refused, |d| in_table(d, TABLE, |raw| (raw.0, raw.1) = (u64::MAX - 0xff, 0x1000)))),
    Row("P0063", "the used flag, set by the driver", elsewhere("tests/queue/hostile.rs::wrap_counters_that_lie_make_nothing_available")),
    Row("P0064", "data in another queue's ring", packs(Holds, |d| {
        let other = d.rings[1].layout().descriptor_area;
        assert_eq!(data(d, other, 512), Served);
        d.restart();
        Holds
    })),
    Row("P0065", "data beyond memory", elsewhere("tests/queue/shared.rs::memory_that_is_not_the_guests_is_not_touched")),
    Row("P0066", "data that leaves memory at its end", elsewhere("tests/queue/shared.rs::memory_that_is_not_the_guests_is_not_touched")),
    Row("P0067", "data that is the ring itself", packs(Holds, |d| {
        let own = d.rings[0].layout().descriptor_area;
        // What was served wrote over the ring, so that nobody can say any more what came back.
        let good = d.good();
        d.rings[0].chain(&[good[0], (own, 512, WRITE), good[2]]);
        d.guest.kick(0);
        assert!(d.needs_reset() || is_used(d, 0));
        d.restart();
        Holds
    })),
    Row("P0068", "data in another device's configuration", packs(Refused, |d| data(d, REGISTERS + 0x2000, 512))),
    Row("P0069", "a table of no bytes", elsewhere("tests/queue/shared.rs::indirect_tables_cost_their_chain_where_there_must_be_none")),
    Row("P0070", "data in the registers of an interrupt controller", packs(Refused, |d| data(d, 0xfee0_0000, 512))),
    Row("P0071", "lengths that come to more than 4 GiB", packs(Refused, |d| {
        let good = d.good();
        let huge = [(DATA, 0x8000_0000, WRITE); 2];
        d.offer(&[&good[..1], &huge, &good[2..]].concat()).into()
    })),
    Row("P0072", "address and length of zero", packs(Served, |d| data(d, 0, 0))),
    Row("P0073", "a table in the format of split rings", packs(Refused, |d| {
        let good = d.good();
        d.format = Format::Split;
        d.put_table(TABLE, &good);
        d.format = Format::Packed;
        d.offer(&[(TABLE, 48, INDIRECT)]).into()
    })),
    Row("P0074", "an IOMMU that there is not", packs(Holds, |d| {
        // It is not offered, and so not taken.
        assert!(!negotiates(d, ACCESS_PLATFORM));
        Holds
    })),
    Row("P0075", "data to be read from the registers of a device", packs(Refused, |d| {
        d.put_header(OUT, 0);
        d.offer(&[(HEADER, 16, 0), (REGISTERS, 512, 0), (STATUS, 1, WRITE)]).into()
    })),
    Row("P0076", "the largest numbers in every field", packs(Kept, |d| left_alone(d, (u64::MAX, u32::MAX, 0xffff, 0xffff)))),
    Row("P0077", "no status", packs(Served, |d| {
        // The last byte that can be written is the status, of a read that is no whole number of sectors then.
        d.put_header(IN, 0);
        let seen = d.offer(&[(HEADER, 16, 0), (DATA, 512, WRITE)]).into();
        assert_eq!(d.guest.get(DATA + 511, 1), [IOERR]);
        seen
    })),
    Row("P0078", "data across a hole in memory", packs(Refused, |d| data(d, TOP - 0x1000, 0x2000))),
    Row("P0079", "a status that cannot be written", packs(Refused, |d| d.hurt(2, |raw| raw.2 = 0).into())),
    Row("P0080", "a table that may be written", elsewhere("tests/queue/hostile.rs::of_the_flags_in_a_table_write_alone_is_looked_at_and_that_not_beside_the_table")),
    Row("P0081", "data of a write that may be written to", packs(Served, |d| {
        // There is nothing to write then.
        d.put_header(OUT, 0);
        let seen = d.offer(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]).into();
        assert_eq!(d.storage.contents()[..512], [0; 512]);
        seen
    })),
    Row("P0082", "a table that lies nowhere", elsewhere("tests/queue/shared.rs::memory_that_is_not_the_guests_is_not_touched")),
    Row("P0083", "a table that is no whole number of entries", elsewhere("tests/queue/shared.rs::indirect_tables_cost_their_chain_where_there_must_be_none")),
    Row("P0084", "a table where another queue has its descriptors", packs_and_differs(Refused, Served, table_in_other)),
    Row("P0085", "a table longer than the ring", elsewhere("tests/queue/shared.rs::an_indirect_table_is_followed_and_may_be_longer_than_the_queue_up_to_a_bound")),
    Row("P0086", "two tables that are linked", elsewhere("tests/queue/shared.rs::indirect_tables_cost_their_chain_where_there_must_be_none")),
];
