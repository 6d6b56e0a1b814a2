//! T: split virtqueues (virtio 1.2, section 2.7), before a disk of two queues.

use devisor::virtio::{
    features::{EVENT_IDX, NOTIFICATION_DATA},
    transport::TransportOptions,
};

use crate::{
    block::{DATA, DISCARD, IN, IOERR, OK, OUT, header, segment},
    both::{ANSWER, REQUEST},
    disk::{Disk, Format},
    driver::{
        Row,
        Seen::{self, Holds, Kept, NeedsReset, Refused, Says, Served},
        differs, elsewhere, packs, plays, unread,
    },
    packed::in_order,
    ring::{INDIRECT, NEXT, WRITE, readable, writable},
    rings::*,
    setup::*,
    world::{NOWHERE, TOP, World},
};

/// A request whose data is elsewhere.
fn data(w: &mut World, damage: Damage) -> Seen {
    hurt(w, 0, 1, damage)
}

/// A good request, after the driver has done something to the ring.
fn after(w: &mut World, doing: impl FnOnce(&mut crate::ring::Ring)) -> Seen {
    let good = w.good(0);
    w.watch(0, |ring| {
        doing(ring);
        ring.request(&good);
    })
}

/// The head is one of a good request, and the driver's index is that of nobody.
fn index(w: &mut World, of: u16) -> Seen {
    let good = w.good(0);
    w.watch(0, |ring| {
        ring.request(&good);
        ring.set_avail_idx(of);
    })
}

/// Whatever was overwritten, the device serves it, refuses it or asks for a reset, and lives after that.
fn contained(w: &mut World, doing: impl FnOnce(&mut World) -> Seen) -> Seen {
    let seen = doing(w);
    assert!(matches!(seen, Served | Refused | NeedsReset | Kept), "{seen:?}");
    w.restart();
    Holds
}

/// A read into the other queue's ring, at this place of it.
fn into_other(w: &mut World, area: fn(&crate::ring::Ring) -> u64) -> Seen {
    contained(w, |w| {
        let address = area(w.guest.ring(1));
        data(w, Address(address))
    })
}

/// A kick of a value of 32 bits, where such were agreed on.
fn kick_with(w: &mut World, value: fn(u16) -> u64) -> Seen {
    let good = w.good(0);
    w.guest.ring(0).request(&good);
    if w.is_pci() && w.has(NOTIFICATION_DATA) {
        let next = w.guest.ring(0).avail_idx();
        w.guest.write(0, 0x3000, 4, value(next));
    } else {
        w.kick(0);
    }
    w.catches_up(0)
}

/// The read of a sector over a chain of a hand's making: used length and head.
fn used(w: &mut World) -> (u32, u32) {
    let good = w.good(0);
    lay(w.guest.ring(0), &good, usize::MAX, Loop);
    let head = first(w.guest.ring(0));
    w.guest.ring(0).offer(head);
    w.kick(0);
    w.guest.ring(0).used()[0]
}

/// Where whatever a driver can ask is asked.
const ANYTHING: &str = "tests/villain/sweep.rs::whatever_a_ring_says_it_costs_a_request_or_a_reset";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("T0001", "a chain that comes back to itself", plays(Refused, |w| data(w, Loop))),
    Row("T0002", "a chain longer than the ring", plays(Refused, |w| {
        w.watch(0, |ring| {
            (0..SIZE).for_each(|index| ring.descriptor(index, REQUEST, 1, NEXT, (index + 1) % SIZE));
            ring.offer(0);
        })
    })),
    Row("T0003", "a next descriptor beyond the table", plays(Refused, |w| data(w, NextOut))),
    Row("T0004", "data at address 0, where memory is", plays(Served, |w| data(w, Address(0)))),
    Row("T0005", "data beyond memory", plays(Refused, |w| data(w, Address(TOP)))),
    Row("T0006", "data of no bytes", plays(Served, |w| data(w, Len(0)))),
    Row("T0007", "data of nearly 4 GiB", plays(Refused, |w| data(w, Len(u32::MAX)))),
    Row("T0008", "data that passes the last address", plays(Refused, |w| data(w, Wraps))),
    Row("T0009", "data of a read that are not for the device to write, as T0011", plays(Served, |w| {
        w.guest.put(DATA, &[0xaa; 512]);
        w.guest.put(REQUEST, &header(IN, 0));
        let seen = w.offer(0, &[readable(REQUEST, 16), readable(DATA, 512), writable(ANSWER, 1)]);
        assert_eq!(w.guest.get(DATA, 512), [0xaa; 512]);
        seen
    })),
    Row("T0010", "data to be written that may be written to", plays(Says(OK), |w| {
        // There is nothing to write then.
        let seen = w.disk_asks(0, OUT, 0, &[writable(DATA, 512)]);
        assert_eq!(w.disk().contents()[..512], [0; 512]);
        seen
    })),
    Row("T0011", "data to be read that may not be written to", plays(Served, |w| data(w, Turned))),
    Row("T0012", "a status that cannot be written", plays(Refused, |w| {
        w.guest.put(REQUEST, &header(IN, 0));
        w.offer(0, &[readable(REQUEST, 16), readable(ANSWER, 1)])
    })),
    Row("T0013", "no status", plays(Says(IOERR), |w| {
        // The last byte that can be written is the status, of a read that is no whole number of sectors then.
        w.guest.put(REQUEST, &header(IN, 0));
        assert_eq!(w.offer(0, &[readable(REQUEST, 16), writable(DATA, 512)]), Served);
        Says(w.guest.get(DATA + 511, 1)[0].into())
    })),
    Row("T0014", "a header alone", plays(Refused, |w| w.offer(0, &[readable(REQUEST, 16)]))),
    Row("T0015", "a table that was not agreed on", differs(Refused, Served, |w| tabled(w, 0, Whole))),
    Row("T0016", "a table in a table", plays(Refused, |w| tabled(w, 0, Nested))),
    Row("T0017", "a table with a next descriptor", plays(Refused, |w| tabled(w, 0, Named(INDIRECT | NEXT)))),
    Row("T0018", "a table that ends within an entry", plays(Refused, |w| tabled(w, 0, Bytes(47)))),
    Row("T0019", "a table of no bytes", plays(Refused, |w| tabled(w, 0, Bytes(0)))),
    Row("T0020", "a table that lies nowhere", plays(Refused, |w| tabled(w, 0, At(NOWHERE)))),
    Row("T0021", "a table whose chain comes back to its first entry", plays(Refused, |w| tabled(w, 0, Entry(Back)))),
    Row("T0022", "a chain that is offered twice and ends in between", plays(Served, |w| {
        let good = w.good(0);
        w.watch(0, |ring| {
            let head = ring.request(&good);
            ring.offer(head);
        })
    })),
    Row("T0023", "an index that jumps ahead", plays(NeedsReset, |w| index(w, 1000))),
    Row("T0024", "an index that goes back", plays(NeedsReset, |w| {
        assert_eq!(several(w, 0, 5), Served);
        w.watch(0, |ring| ring.set_avail_idx(2))
    })),
    Row("T0025", "a head beyond the table", plays(NeedsReset, |w| w.watch(0, |ring| ring.offer(SIZE)))),
    Row("T0026", "flags of the ring that mean nothing", plays(Served, |w| after(w, |ring| ring.put(ring.layout.driver_area, 0xfffe_u16)))),
    Row("T0027", "an event index of nowhere", plays(Served, |w| after(w, |ring| ring.set_used_event(0xdead)))),
    Row("T0028", "a used ring that the driver writes", plays(Served, |w| after(w, |ring| ring.put(ring.layout.device_area + 4, [0xff_u8; 32])))),
    Row("T0029", "flags of the used ring that the driver writes", plays(Served, |w| after(w, |ring| ring.put(ring.layout.device_area, 0xffff_u16)))),
    Row("T0030", "a kick before the driver is ready", plays(Served, before_the_driver_is_ready)),
    Row("T0031", "a kick after a reset", plays(Holds, |w| {
        let good = w.good(0);
        w.guest.ring(0).request(&good);
        w.guest.set_status(0);
        w.guest.kick(0);
        assert_eq!((w.guest.status(), w.catches_up(0)), (0, Kept));
        Holds
    })),
    Row("T0032", "kicks at every step of the beginning", plays(Holds, |w| {
        w.guest.reset();
        w.guest.kick(0);
        w.begin();
        w.guest.kick(0);
        w.prepare();
        w.guest.kick(0);
        w.go();
        assert!(!w.needs_reset());
        Holds
    })),
    Row("T0033", "a driver that is ready twice", plays(Served, |w| {
        w.go();
        several(w, 0, 1)
    })),
    Row("T0034", "bits of the status that are taken back", plays(Served, |w| {
        assert_eq!(status_after(w, ACKNOWLEDGE), WORKING);
        several(w, 0, 1)
    })),
    Row("T0035", "a driver that has failed and kicks", plays(Served, |w| {
        assert_eq!(status_after(w, WORKING | FAILED), WORKING | FAILED);
        several(w, 0, 1)
    })),
    Row("T0036", "a driver that begins again without a reset", plays(Served, |w| {
        w.begin();
        assert_eq!(w.guest.status(), WORKING);
        several(w, 0, 1)
    })),
    Row("T0037", "a feature that was not offered", plays(Holds, |w| {
        w.guest.reset();
        assert!(!w.guest.negotiate(w.wanted() | 1 << 49));
        Holds
    })),
    Row("T0038", "a discard that was not agreed on", differs(Says(2), Says(OK), |w| w.ranges(DISCARD, &[segment(0, 1, 0)]))),
    Row("T0039", "a driver that is ready before features are", plays(Holds, |w| {
        w.guest.reset();
        w.begin();
        assert_eq!(status_after(w, ACKNOWLEDGE | DRIVER | DRIVER_OK), ACKNOWLEDGE | DRIVER);
        Holds
    })),
    Row("T0040", "features that change after they were agreed on", plays(Served, |w| {
        w.accept(0, 0);
        w.accept(1, 0);
        // A table is what it was.
        assert_eq!(tabled(w, 0, Whole), if w.is_full() { Served } else { Refused });
        several(w, 0, 1)
    })),
    Row("T0041", "a queue of 48 descriptors", plays(NeedsReset, |w| with_layout(w, |layout| layout.size = 48))),
    Row("T0042", "a queue of no descriptors", plays(NeedsReset, |w| with_layout(w, |layout| layout.size = 0))),
    Row("T0043", "a queue of more descriptors than the device takes", plays(NeedsReset, |w| with_layout(w, |layout| layout.size = 0x8000))),
    Row("T0044", "descriptors at an odd address", plays(NeedsReset, |w| with_layout(w, |layout| layout.descriptor_area += 1))),
    Row("T0045", "a driver area at an odd address", plays(NeedsReset, |w| with_layout(w, |layout| layout.driver_area += 1))),
    Row("T0046", "a device area at an odd address", plays(NeedsReset, |w| with_layout(w, |layout| layout.device_area += 2))),
    Row("T0047", "three areas that are one", plays(Holds, |w| with_layout(w, |layout| {
        (layout.driver_area, layout.device_area) = (layout.descriptor_area, layout.descriptor_area);
    }))),
    Row("T0048", "areas outside of memory", plays(NeedsReset, |w| with_layout(w, |layout| layout.descriptor_area = NOWHERE))),
    Row("T0049", "a queue without addresses", plays(Holds, |w| with_layout(w, |layout| (layout.descriptor_area, layout.driver_area, layout.device_area) = (0, 0, 0)))),
    Row("T0050", "nothing is used before the driver is ready", plays(Served, before_the_driver_is_ready)),
    Row("T0051", "a descriptor that changes while it is in flight", elsewhere("tests/queue/alone.rs::a_chain_that_breaks_when_it_comes_again_costs_itself")),
    Row("T0052", "buffers and descriptors that the driver takes back at once", plays(Served, |w| {
        let seen = several(w, 0, 1);
        (0..3).for_each(|index| w.guest.ring(0).descriptor(index, 0, 0, 0, 0));
        w.guest.put(REQUEST, &[0; 16]);
        w.guest.put(ANSWER, &[0; 513]);
        seen
    })),
    Row("T0053", "readable and writable descriptors in turns", plays(Refused, |w| w.offer(0, &[readable(REQUEST, 16), writable(DATA, 512), readable(REQUEST, 1), writable(ANSWER, 1)]))),
    Row("T0054", "a chain of one more than the ring", plays(Refused, |w| {
        w.watch(0, |ring| {
            (0..SIZE).for_each(|index| ring.descriptor(index, ANSWER, 1, NEXT | WRITE, (index + 1) % SIZE));
            ring.offer(0);
        })
    })),
    Row("T0055", "an event index just before the end of its numbers", plays(Served, |w| after(w, |ring| ring.set_used_event(0xfffe)))),
    Row("T0056", "a descriptor that changes after it was offered", plays(Served, |w| {
        let seen = several(w, 0, 1);
        w.guest.ring(0).descriptor(0, u64::MAX, u32::MAX, u16::MAX, u16::MAX);
        seen
    })),
    Row("T0057", "an index that goes back by one", plays(NeedsReset, |w| {
        assert_eq!(several(w, 0, 2), Served);
        w.watch(0, |ring| ring.set_avail_idx(1))
    })),
    Row("T0058", "a table that leaves memory at its end", plays(Refused, |w| tabled(w, 0, At(TOP - 16)))),
    Row("T0059", "a table that goes on to another one", plays(Refused, |w| tabled(w, 0, Named(INDIRECT | NEXT)))),
    Row("T0060", "an index that moves before the driver is ready", plays(Served, before_the_driver_is_ready)),
    Row("T0061", "data of no bytes at address 0", plays(Served, |w| data(w, Range(0, 0)))),
    Row("T0062", "an index just before the end of its numbers", plays(NeedsReset, |w| index(w, 0xfffe))),
    Row("T0063", "data in the registers of a device", plays(Refused, |w| data(w, IN_REGISTERS))),
    Row("T0064", "a table longer than the ring, which Linux makes", differs(Refused, Served, |w| tabled(w, 0, Entries(SIZE + 8)))),
    Row("T0065", "as many requests as the ring has room for", plays(Served, |w| full(w, 0))),
    Row("T0066", "an event index of the largest number", plays(Served, |w| after(w, |ring| ring.set_used_event(0xffff)))),
    Row("T0067", "a table that may be written, which means nothing", differs(Refused, Served, |w| tabled(w, 0, Named(INDIRECT | WRITE)))),
    Row("T0068", "a kick for nothing", plays(Kept, |w| w.watch(0, |_| ()))),
    Row("T0069", "a kick twice for one request", plays(Kept, |w| {
        assert_eq!(several(w, 0, 1), Served);
        w.watch(0, |_| ())
    })),
    Row("T0070", "data that is the ring's own table", plays(Holds, |w| contained(w, |w| in_own_ring(w, 0, 1, |ring| ring.layout.descriptor_area)))),
    Row("T0071", "a kick where all is used", plays(Kept, |w| {
        assert_eq!(several(w, 0, 3), Served);
        w.watch(0, |_| ())
    })),
    Row("T0072", "a table of no entries", plays(Refused, |w| tabled(w, 0, Bytes(0)))),
    Row("T0073", "data that leaves memory at its end", plays(Refused, |w| data(w, PastMemory))),
    Row("T0074", "one head in all places of the ring", plays(Served, |w| {
        let good = w.good(0);
        w.watch(0, |ring| {
            let head = ring.request(&good);
            (1..SIZE).for_each(|_| ring.offer(head));
        })
    })),
    Row("T0075", "memory that goes while a request is offered", elsewhere("tests/queue_memory/replaced.rs::a_ring_that_is_unplugged_is_broken_and_a_buffer_that_is_costs_its_chain")),
    Row("T0076", "a table across pages", differs(Refused, Served, |w| {
        let good = w.good(0);
        w.watch(0, |ring| {
            let head = ring.add_indirect(TABLE + 0x1000 - 24, &good);
            ring.offer(head);
        })
    })),
    Row("T0077", "lengths that come to more than 4 GiB", elsewhere("tests/queue/alone.rs::lengths_that_overflow_cost_their_chain")),
    Row("T0078", "the used length is not more than the room", plays(Holds, |w| {
        assert!(used(w).1 <= 513);
        Holds
    })),
    Row("T0079", "an IOMMU that there is not", plays(Holds, |w| {
        w.guest.reset();
        assert!(!w.guest.negotiate(w.wanted() | 1 << 33));
        Holds
    })),
    Row("T0080", "event indices that pass the end of their numbers", elsewhere("tests/queue/alone.rs::event_index_arithmetic_wraps")),
    Row("T0081", "kicks of two queues", plays(Served, |w| {
        let good = w.good(0);
        w.guest.ring(1).request(&good);
        assert_eq!(w.offer(0, &good), Served);
        w.watch(1, |_| ());
        w.guest.used(1);
        several(w, 1, 1)
    })),
    Row("T0082", "a descriptor of the largest numbers", plays(Refused, |w| {
        w.watch(0, |ring| {
            ring.descriptor(5, u64::MAX, u32::MAX, u16::MAX, u16::MAX);
            ring.offer(5);
        })
    })),
    Row("T0083", "a kick after each of several requests", plays(Served, |w| {
        assert_eq!(several(w, 0, 1), Served);
        assert_eq!(several(w, 0, 2), Served);
        several(w, 0, 1)
    })),
    Row("T0084", "heads of which none is in the table", plays(NeedsReset, |w| w.watch(0, |ring| (0..SIZE).for_each(|_| ring.offer(u16::MAX))))),
    Row("T0085", "requests that are used in order", packs(Holds, |d| {
        let options = TransportOptions { in_order: true, ..d.guest.kind.options() };
        *d = Disk::with_options(d.guest.kind, Format::Split, d.accepts, options);
        in_order(d)
    })),
    Row("T0086", "descriptors at an address that is no multiple of 16", plays(NeedsReset, |w| with_layout(w, |layout| layout.descriptor_area += 8))),
    Row("T0087", "the used length is what was written", plays(Holds, |w| {
        assert_eq!(used(w).1, 513);
        Holds
    })),
    Row("T0088", "an event index that is just reached", elsewhere("tests/queue/shared.rs::with_event_idx_the_driver_hears_when_its_index_is_passed")),
    Row("T0089", "an entry of a table that is one and may be written", plays(Refused, |w| tabled(w, 0, Entry(Flags(WRITE | INDIRECT))))),
    Row("T0090", "data across a hole in memory", plays(Refused, |w| data(w, Range(TOP - 16, 64)))),
    Row("T0091", "an interrupt is shown after a request", plays(Holds, |w| {
        assert_eq!(several(w, 0, 1), Served);
        assert_eq!(w.get(INTERRUPT) & 1, 1);
        Holds
    })),
    Row("T0092", "an interrupt that was seen is shown no more", plays(Holds, |w| {
        assert_eq!(several(w, 0, 1), Served);
        w.guest.was_told();
        assert_eq!(w.get(INTERRUPT), 0);
        Holds
    })),
    Row("T0093", "a driver that wants no interrupt", plays(Holds, |w| {
        w.guest.was_told();
        assert_eq!(after(w, |ring| {
            ring.set_no_interrupt(true);
            ring.set_used_event(0x7000);
        }), Served);
        assert_eq!(w.get(INTERRUPT), 0);
        Holds
    })),
    Row("T0094", "a device that wants kicks says so", plays(Holds, |w| {
        assert_eq!(several(w, 0, 1), Served);
        assert_eq!(w.guest.ring(0).used_flags(), 0);
        Holds
    })),
    Row("T0095", "a queue that is stopped and begun again", elsewhere("tests/virtio_pci/common.rs::a_queue_is_reset_by_itself_and_set_up_again; tests/virtio_mmio/queues.rs::a_queue_can_be_reset_by_itself_and_set_up_elsewhere")),
    Row("T0096", "two batches", plays(Served, |w| {
        assert_eq!(several(w, 0, 4), Served);
        several(w, 0, 4)
    })),
    Row("T0097", "a driver that wants interrupts again", plays(Holds, |w| {
        w.guest.was_told();
        assert_eq!(after(w, |ring| {
            ring.set_no_interrupt(true);
            ring.set_used_event(0x7000);
        }), Served);
        assert_eq!(w.get(INTERRUPT), 0);
        assert_eq!(after(w, |ring| {
            ring.set_no_interrupt(false);
            ring.set_used_event(1);
        }), Served);
        assert_eq!(w.get(INTERRUPT) & 1, 1);
        Holds
    })),
    Row("T0098", "a kick that says how far the driver is", plays(Served, |w| kick_with(w, |next| u64::from(next) << 16))),
    Row("T0099", "a table of nearly 4 GiB", plays(Refused, |w| tabled(w, 0, Bytes(0xffff_fff0)))),
    Row("T0100", "two tables that are linked", plays(Refused, |w| tabled(w, 0, Named(INDIRECT | NEXT)))),
    Row("T0101", "a kick that names another queue than it is for", plays(Served, |w| kick_with(w, |next| 1 | u64::from(next) << 16))),
    Row("T0102", "a kick that says where the driver was", plays(Served, |w| kick_with(w, |_| 0))),
    Row("T0103", "a kick of a queue that is not enabled", plays(Holds, |w| {
        w.agree();
        w.guest.enable(0);
        w.go();
        w.guest.write(0x50, 0x3004, if w.has(NOTIFICATION_DATA) { 4 } else { w.guest.width(2) }, 1);
        assert!(!w.needs_reset());
        w.restart();
        Holds
    })),
    Row("T0104", "a flag of a descriptor that means nothing", plays(Served, |w| data(w, Flags(NEXT | WRITE | 0x40)))),
    Row("T0105", "an address and a length that pass 2^64", plays(Refused, |w| data(w, Range(u64::MAX, 2)))),
    Row("T0106", "data in another queue's driver area", plays(Holds, |w| into_other(w, |ring| ring.layout.driver_area))),
    Row("T0107", "data in another queue's device area", plays(Holds, |w| into_other(w, |ring| ring.layout.device_area))),
    Row("T0108", "a table where another queue has its descriptors", differs(Refused, Served, |w| {
        let good = w.good(0);
        let table = w.guest.ring(1).layout.descriptor_area;
        w.watch(0, |ring| {
            let head = ring.add_indirect(table, &good);
            ring.offer(head);
        })
    })),
    Row("T0109", "a kick with its data as it should be", plays(Served, |w| kick_with(w, |next| u64::from(next) << 16))),
    Row("T0110", "a kick by the number that the device gave", elsewhere("tests/virtio_pci/common.rs::notification_data_is_there_as_negotiated")),
    Row("T0111", "the used length of a read", plays(Holds, |w| {
        assert_eq!(used(w).1, 513);
        Holds
    })),
    Row("T0112", "a request without an interrupt is used all the same", plays(Served, |w| after(w, |ring| ring.set_no_interrupt(true)))),
    Row("T0113", "the used entry names the head", plays(Holds, |w| {
        let head = first(w.guest.ring(0));
        assert_eq!(used(w).0, u32::from(head));
        Holds
    })),
    Row("T0114", "a chain of three writes its status", plays(Says(OK), |w| w.reads(0, 512))),
    Row("T0115", "two chains with one kick", plays(Served, |w| several(w, 0, 2))),
    Row("T0116", "the used index counts", plays(Holds, |w| {
        for count in 1..=100 {
            assert_eq!(several(w, 0, 1), Served);
            assert_eq!(w.guest.ring(0).used_idx(), count);
        }
        Holds
    })),
    Row("T0117", "an event index and a request", plays(Served, |w| {
        assert!(!w.is_full() || w.has(EVENT_IDX));
        after(w, |ring| ring.set_used_event(0))
    })),
    Row("T0118", "a table whose entries are chained", differs(Refused, Served, |w| tabled(w, 0, Whole))),
    Row("T0119", "barriers of the platform", plays(Holds, |w| not_offered(w, 36))),
    Row("T0120", "not known to us", unread(ANYTHING)),
    Row("T0121", "data to be read from the registers of a device", plays(Refused, |w| hurt_first(w, 0, IN_REGISTERS))),
    Row("T0122", "data in the registers of an interrupt controller", plays(Refused, |w| data(w, Address(0xfee0_0000)))),
    Row("T0123", "a reset with a request under way", elsewhere("tests/virtio_mmio/flight.rs::a_reset_returns_when_requests_have_ended_and_nothing_is_used_after_it; tests/virtio_pci/flight.rs::a_reset_that_takes_longer_than_its_patience_reads_as_not_reset_until_requests_have_ended")),
    Row("T0124", "data over the ring's own device area", plays(Holds, |w| contained(w, |w| in_own_ring(w, 0, 1, |ring| ring.layout.device_area)))),
    Row("T0125", "data in the configuration of another device", plays(Refused, |w| data(w, Address(0x4000_2000)))),
    Row("T0126", "two pieces of data of which the first passes 2^64", plays(Refused, |w| w.disk_asks(0, IN, 0, &[writable(u64::MAX - 0xfff, 0x2000), writable(DATA, 512)]))),
    Row("T0127", "a second piece where the first would come around", plays(Refused, |w| w.disk_asks(0, IN, 0, &[writable(u64::MAX - 0xff, 512), writable(0x100, 512)]))),
    Row("T0128", "data to be written that passes 2^64", plays(Refused, |w| w.disk_asks(0, OUT, 0, &[readable(u64::MAX - 0xff, 512)]))),
    Row("T0129", "an entry of a table that passes 2^64", plays(Refused, |w| tabled(w, 0, Entry(Wraps)))),
    Row("T0130", "a table in the format of packed rings", plays(Refused, |w| {
        w.watch(0, |ring| {
            // Identifiers are where flags are, and flags where the next descriptor is.
            for (entry, (address, len, flags)) in [(REQUEST, 16, NEXT), (DATA, 512, NEXT | WRITE), (ANSWER, 1, WRITE)].into_iter().enumerate() {
                let at = TABLE + 16 * entry as u64;
                ring.put(at, address);
                ring.put(at + 8, len as u32);
                ring.put(at + 12, 0_u16);
                ring.put(at + 14, flags);
            }
            ring.descriptor(3, TABLE, 48, INDIRECT, 0);
            ring.offer(3);
        })
    })),
];
