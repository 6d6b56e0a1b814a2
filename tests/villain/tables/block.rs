//! B: the block device (virtio 1.2, section 5.2). A disk of 64 sectors and two queues; a discard may have 32 segments, a write of
//! zeros one, and an erasure, of the disk that can, 32.

use devisor::virtio::QueueIndex;

use crate::{
    block::*,
    both::REQUEST,
    driver::{
        Row,
        Seen::{self, Holds, Kept, Refused, Says, Served},
        differs, elsewhere, plays, unread,
    },
    ring::{INDIRECT, WRITE, readable, writable},
    rings::*,
    setup::{STATUS as DEVICE_STATUS, before_the_driver_is_ready, not_offered, with_layout},
    world::{
        Kind::{BlockReadOnly, BlockWorn},
        SECTORS, World,
    },
    worn::WORN,
};

use super::HOTPLUG;

/// What a driver without the feature is told.
const NO: Seen = Says(UNSUPP);
const YES: Seen = Says(OK);
const BAD: Seen = Says(IOERR);

fn identity(w: &mut World, queue: u16, room: u32) -> Seen {
    w.disk_asks(queue, GET_ID, 0, &[writable(DATA, room)])
}

fn discard(w: &mut World, sector: u64, sectors: u32) -> Seen {
    w.ranges(DISCARD, &[segment(sector, sectors, 0)])
}

fn zeroes(w: &mut World, sector: u64, sectors: u32, flags: u32) -> Seen {
    w.ranges(WRITE_ZEROES, &[segment(sector, sectors, flags)])
}

/// The fields of how long the disk will live, of a disk that can tell.
fn lifetime(w: &mut World, room: u32) -> Seen {
    w.guest.put(DATA, &[0xee; 16]);
    let seen = w.disk_asks(0, GET_LIFETIME, 0, &[writable(DATA, room)]);
    if seen == YES {
        assert_eq!(w.guest.get(DATA, 6), WORN.map(u16::to_le_bytes).concat());
        assert_eq!(w.guest.get(DATA + 6, room as usize - 6), vec![0; room as usize - 6]);
    }
    seen
}

/// What is erased is gone, and nothing else is.
fn erased(w: &mut World) -> Seen {
    assert_eq!(w.writes(0, &[9; 1024]), YES);
    let seen = w.ranges(SECURE_ERASE, &[segment(0, 1, 0)]);
    let left = if seen == YES { 0 } else { 9 };
    assert_eq!(w.disk().contents()[..1024], [[left; 512], [9; 512]].concat());
    seen
}

/// A request whose list of segments has so many bytes.
fn cut(w: &mut World, kind: u32, len: u32) -> Seen {
    w.guest.put(DATA, &segment(0, 1, 0).repeat(2));
    w.disk_asks(0, kind, 0, &[readable(DATA, len)])
}

/// The header's priority, which means nothing, is this.
fn with_priority(w: &mut World, kind: u32, priority: u32) -> Seen {
    let mut bytes = header(kind, 0);
    bytes[4..8].copy_from_slice(&priority.to_le_bytes());
    w.guest.put(REQUEST, &bytes);
    let data: &[_] = if kind == OUT { &[readable(DATA, 512)] } else { &[] };
    w.disk_says(0, &[&[readable(REQUEST, 16)], data, &[writable(STATUS, 1)]].concat())
}

/// On both queues, and with one kick each.
fn on_both(w: &mut World) -> Seen {
    let good = w.good(0);
    for queue in [0, 1] {
        assert_eq!(w.offer(queue, &good), Served);
    }
    Served
}

/// Bytes that differ from each other.
fn text(len: usize, first: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_add(first)).collect()
}

/// Written by one framing, and read by another.
fn framed(w: &mut World, pieces: &[u32]) -> Seen {
    let len: u32 = pieces.iter().sum();
    let bytes = text(len as usize, 3);
    w.guest.put(DATA, &bytes);
    let mut at = DATA;
    let cut: Vec<_> = pieces
        .iter()
        .map(|piece| {
            at += u64::from(*piece);
            (at - u64::from(*piece), *piece)
        })
        .collect();
    let from: Vec<_> = cut.iter().map(|(at, len)| readable(*at, *len)).collect();
    assert_eq!(w.disk_asks(0, OUT, 2, &from), YES);
    w.guest.put(DATA, &vec![0; len as usize]);
    let to: Vec<_> = cut.iter().map(|(at, len)| writable(*at, *len)).collect();
    assert_eq!(w.disk_asks(0, IN, 2, &to), YES);
    assert_eq!(w.guest.get(DATA, len as usize), bytes);
    YES
}

/// The status lies in the last byte of the data then, and there is a part of a sector.
fn without_status(w: &mut World, kind: u32, room: u32) -> Seen {
    w.guest.put(REQUEST, &header(kind, 0));
    let seen = w.offer(0, &[readable(REQUEST, 16), writable(DATA, room), writable(STATUS, 0)]);
    assert_eq!(w.guest.get(DATA + u64::from(room) - 1, 1), [IOERR as u8]);
    seen
}

/// Where whatever a driver can ask is asked.
const ANYTHING: &str = "tests/villain/sweep.rs::whatever_a_disk_is_asked_it_answers_and_changes_nothing_else";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("B0001", "a sector beyond the disk", plays(BAD, |w| w.reads(SECTORS + 100, 512))),
    Row("B0002", "a sector whose end passes 2^64", plays(BAD, |w| w.reads(u64::MAX, 1024))),
    Row("B0003", "a type that does not exist", plays(NO, |w| w.disk_asks(0, 99, 0, &[]))),
    Row("B0004", "a command of SCSI", plays(NO, |w| w.disk_asks(0, 2, 0, &[]))),
    Row("B0005", "a barrier of older drivers", plays(NO, |w| w.disk_asks(0, 0x8000_0000, 0, &[]))),
    Row("B0006", "a part of a sector", plays(BAD, |w| w.reads(0, 100))),
    Row("B0007", "a flush with data", differs(NO, YES, |w| w.disk_asks(0, FLUSH, 0, &[readable(DATA, 512)]))),
    Row("B0008", "a flush of a sector", differs(NO, YES, |w| w.disk_asks(0, FLUSH, 7, &[]))),
    Row("B0009", "too little room for the identity", plays(BAD, |w| identity(w, 0, 10))),
    Row("B0010", "a write", plays(YES, |w| w.is_kept(1, &text(512, 1)))),
    Row("B0011", "half a header", plays(Refused, |w| w.disk_says(0, &[readable(REQUEST, 8), writable(STATUS, 1)]))),
    Row("B0012", "a status of no bytes", plays(Served, |w| without_status(w, IN, 512))),
    Row("B0013", "a discard of too many segments", differs(NO, BAD, |w| w.ranges(DISCARD, &[segment(0, 1, 0); 33]))),
    Row("B0014", "a discard that is to unmap", plays(NO, |w| w.ranges(DISCARD, &[segment(0, 1, 1)]))),
    Row("B0015", "a discard of a segment and a half", differs(NO, BAD, |w| cut(w, DISCARD, 24))),
    Row("B0016", "zeros in too many segments", differs(NO, BAD, |w| w.ranges(WRITE_ZEROES, &[segment(0, 1, 0); 2]))),
    Row("B0017", "zeros with flags that do not exist", plays(NO, |w| zeroes(w, 0, 1, 0xfffe))),
    Row("B0018", "zeros whose end passes 2^64", differs(NO, BAD, |w| zeroes(w, u64::MAX, 2, 0))),
    Row("B0019", "zeros that were not agreed on", differs(NO, YES, |w| zeroes(w, 0, 1, 0))),
    Row("B0020", "a discard that was not agreed on", differs(NO, YES, |w| discard(w, 0, 1))),
    Row("B0021", "an erasure that nobody offers", plays(NO, |w| w.ranges(SECURE_ERASE, &[segment(0, 1, 0)]))),
    Row("B0022", "one request on two queues", plays(Served, on_both)),
    Row("B0023", "kicks of both queues", plays(Served, on_both)),
    Row("B0024", "room for the identity of another size", plays(BAD, |w| identity(w, 0, 19))),
    Row("B0025", "fields that were not agreed on", plays(Holds, |w| {
        assert_eq!(w.guest.config(0, 8), SECTORS);
        (0..64).for_each(|at| _ = w.guest.config(at, 1));
        Holds
    })),
    Row("B0026", "a write without a flush", plays(YES, |w| w.is_kept(3, &text(512, 9)))),
    Row("B0027", "a read of no bytes", plays(YES, |w| w.reads(0, 0))),
    Row("B0028", "a write that ends beyond the disk", plays(BAD, |w| w.writes(SECTORS - 1, &[1; 1024]))),
    Row("B0029", "a header in pieces", plays(YES, |w| {
        w.guest.put(REQUEST, &header(IN, 0));
        w.disk_says(0, &[readable(REQUEST, 4), readable(REQUEST + 4, 12), writable(DATA, 512), writable(STATUS, 1)])
    })),
    Row("B0030", "the identity without a status", plays(Served, |w| without_status(w, GET_ID, 20))),
    Row("B0031", "a status is written", plays(YES, |w| w.reads(0, 512))),
    Row("B0032", "requests on both queues", plays(Served, on_both)),
    Row("B0033", "the last sector is read", plays(YES, |w| w.reads(SECTORS - 1, 512))),
    Row("B0034", "a write of no bytes", plays(YES, |w| w.writes(0, &[]))),
    Row("B0035", "data to be written that can be written to", plays(YES, |w| w.disk_asks(0, OUT, 0, &[writable(DATA, 512)]))),
    Row("B0036", "two flushes at once", plays(Served, |w| {
        w.guest.put(REQUEST, &header(FLUSH, 0));
        w.watch(0, |ring| (0..2).for_each(|at| _ = ring.request(&[readable(REQUEST, 16), writable(STATUS + at, 1)])))
    })),
    Row("B0037", "a status with much room", plays(Served, |w| {
        w.guest.put(REQUEST, &header(IN, 0));
        // Its last byte is the status, and those before it are room for a part of a sector.
        let seen = w.offer(0, &[readable(REQUEST, 16), writable(DATA, 512), writable(STATUS, 512)]);
        assert_eq!(w.guest.get(STATUS + 511, 1), [IOERR as u8]);
        seen
    })),
    Row("B0038", "a discard of the whole disk", differs(NO, YES, |w| discard(w, 0, SECTORS as u32))),
    Row("B0039", "zeros from an odd sector on", differs(NO, YES, |w| zeroes(w, 7, 3, 0))),
    Row("B0040", "as many requests as the ring has room for", plays(Served, |w| full(w, 0))),
    Row("B0041", "a kick and a reset", plays(Holds, |w| {
        let good = w.good(0);
        w.guest.ring(0).request(&good);
        w.guest.kick(0);
        w.guest.set_status(0);
        assert_eq!(w.guest.status(), 0);
        Holds
    })),
    Row("B0042", "sector 0 is written", plays(YES, |w| w.is_kept(0, &text(512, 5)))),
    Row("B0043", "a discard of several segments", differs(NO, YES, |w| w.ranges(DISCARD, &[segment(0, 1, 0), segment(8, 2, 0), segment(4, 1, 0)]))),
    Row("B0044", "the identity on the second queue", plays(YES, |w| identity(w, 1, 20))),
    Row("B0045", "a read in a table of its own", differs(Refused, Served, |w| tabled(w, 0, Whole))),
    Row("B0046", "a read that ends beyond the disk", plays(BAD, |w| w.reads(SECTORS - 1, 1024))),
    Row("B0047", "zeros of no sectors", differs(NO, YES, |w| zeroes(w, 0, 0, 0))),
    Row("B0048", "a discard and a write of one place", plays(YES, |w| {
        discard(w, 2, 2);
        w.is_kept(2, &text(512, 7))
    })),
    Row("B0049", "the identity in pieces", plays(YES, |w| w.disk_asks(0, GET_ID, 0, &[writable(DATA, 3), writable(DATA + 3, 10), writable(DATA + 13, 7)]))),
    Row("B0050", "a flush after a reset", differs(NO, YES, |w| {
        w.restart();
        w.flushes()
    })),
    Row("B0051", "a read over all descriptors of the ring", plays(Served, |w| longest(w, 0))),
    Row("B0052", "an erasure, with or without its feature", differs(NO, YES, erased).on(BlockWorn)),
    Row("B0053", "a cache that is turned off and on", elsewhere("tests/block/stability.rs::the_driver_chooses_the_cache_mode_by_writeback")),
    Row("B0054", "two writes of one sector", plays(Served, |w| {
        w.guest.put(REQUEST, &header(OUT, 0));
        w.watch(0, |ring| (0..2).for_each(|_| _ = ring.request(&[readable(REQUEST, 16), readable(DATA, 512), writable(STATUS, 1)])))
    })),
    Row("B0055", "the first sector that there is not", plays(BAD, |w| w.reads(SECTORS, 512))),
    Row("B0056", "a discard of as many segments as may be", differs(NO, YES, |w| w.ranges(DISCARD, &[segment(0, 1, 0); 32]))),
    Row("B0057", "a write to a disk that cannot be written", plays(BAD, |w| w.writes(0, &[1; 512])).on(BlockReadOnly)),
    Row("B0058", "the topology is read", elsewhere("tests/block/configuration.rs::the_configuration_space_is_that_of_the_specification")),
    Row("B0059", "a discard and zeros of one place", differs(NO, YES, |w| {
        discard(w, 0, 4);
        zeroes(w, 2, 4, 0)
    })),
    Row("B0060", "queues of several sizes", elsewhere("tests/block/transport.rs::every_queue_of_a_multiqueue_disk_is_served")),
    Row("B0061", "an erasure and a discard of one place", differs(NO, YES, |w| {
        discard(w, 0, 4);
        w.ranges(SECURE_ERASE, &[segment(0, 4, 0)])
    }).on(BlockWorn)),
    Row("B0062", "how long the disk will live", differs(NO, YES, |w| lifetime(w, 8)).on(BlockWorn)),
    Row("B0063", "a discard of half a segment", differs(NO, BAD, |w| cut(w, DISCARD, 8))),
    Row("B0064", "zeros of half a segment", differs(NO, BAD, |w| cut(w, WRITE_ZEROES, 8))),
    Row("B0065", "an erasure of half a segment", differs(NO, BAD, |w| cut(w, SECURE_ERASE, 8)).on(BlockWorn)),
    Row("B0066", "a discard whose end passes 2^64", differs(NO, BAD, |w| discard(w, u64::MAX, 2))),
    Row("B0067", "zeros with all flags", plays(NO, |w| zeroes(w, 0, 1, u32::MAX))),
    Row("B0068", "a discard of nothing", differs(NO, BAD, |w| w.ranges(DISCARD, &[]))),
    Row("B0069", "zeros beyond the disk", differs(NO, BAD, |w| zeroes(w, SECTORS - 1, 2, 0))),
    Row("B0070", "a header that can be written", plays(Refused, |w| hurt_first(w, 0, Turned))),
    Row("B0071", "data of a write that can be written to", plays(YES, |w| w.disk_asks(0, OUT, 0, &[writable(DATA, 512)]))),
    Row("B0072", "a status that cannot be written", plays(Refused, |w| hurt_last(w, 0, Turned))),
    Row("B0073", "data of a read that cannot be written to", plays(YES, |w| w.disk_asks(0, IN, 0, &[readable(DATA, 512)]))),
    Row("B0074", "an erasure with flags that do not exist", plays(NO, |w| w.ranges(SECURE_ERASE, &[segment(0, 1, 0xff)])).on(BlockWorn)),
    Row("B0075", "a discard that is only to unmap", plays(NO, |w| w.ranges(DISCARD, &[segment(0, 1, 1)]))),
    Row("B0076", "a kick of a queue that there is not", plays(Holds, |w| {
        w.guest.kick(50);
        Holds
    })),
    Row("B0077", "a flush with a priority", differs(NO, YES, |w| with_priority(w, FLUSH, 1))),
    Row("B0078", "a read of one byte", plays(BAD, |w| w.reads(0, 1))),
    Row("B0079", "a write behind the disk", plays(BAD, |w| w.writes(SECTORS, &[1; 512]))),
    Row("B0080", "the identity on another queue", plays(YES, |w| identity(w, 1, 20))),
    Row("B0081", "a write of the last sector that can be said", plays(BAD, |w| w.writes(u64::MAX, &[1; 512]))),
    Row("B0082", "a read of the whole disk", plays(YES, |w| w.reads(0, 512 * SECTORS as u32))),
    Row("B0083", "a discard whose segments overlap", differs(NO, YES, |w| w.ranges(DISCARD, &[segment(0, 4, 0), segment(2, 4, 0)]))),
    Row("B0084", "zeros of no sectors, again", differs(NO, YES, |w| zeroes(w, 5, 0, 0))),
    Row("B0085", "the last sector", plays(YES, |w| w.is_kept(SECTORS - 1, &text(512, 4)))),
    Row("B0086", "two flushes", differs(NO, YES, |w| {
        w.flushes();
        w.flushes()
    })),
    Row("B0087", "a write longer than a segment may be", plays(YES, |w| {
        assert_eq!(w.guest.config(8, 4), 0, "as long as the driver likes");
        w.is_kept(0, &text(0x4000, 0))
    })),
    Row("B0088", "a discard behind the disk", differs(NO, BAD, |w| discard(w, SECTORS, 1))),
    Row("B0089", "a type with its highest bit", plays(NO, |w| w.disk_asks(0, 0x8000_0001, 0, &[]))),
    Row("B0090", "an erasure of many segments", differs(NO, BAD, |w| w.ranges(SECURE_ERASE, &[segment(0, 1, 0); 64])).on(BlockWorn)),
    Row("B0091", "a read of the last sector that can be said", plays(BAD, |w| w.reads(u64::MAX, 512))),
    Row("B0092", "a write with the highest priority", plays(YES, |w| with_priority(w, OUT, u32::MAX))),
    Row("B0093", "room for the identity that cannot be written", plays(BAD, |w| w.disk_asks(0, GET_ID, 0, &[readable(DATA, 20)]))),
    Row("B0094", "a flush with a buffer", differs(NO, YES, |w| w.disk_asks(0, FLUSH, 0, &[readable(DATA, 16)]))),
    Row("B0095", "zeros whose space may go", differs(NO, YES, |w| zeroes(w, 0, 1, 1))),
    Row("B0096", "a header with bytes behind it", plays(YES, |w| {
        w.guest.put(REQUEST, &header(IN, 0));
        w.disk_says(0, &[readable(REQUEST, 32), writable(DATA, 512), writable(STATUS, 1)])
    })),
    Row("B0097", "a status of no bytes, again", plays(Served, |w| without_status(w, IN, 1024))),
    Row("B0098", "a read in pieces", plays(YES, |w| framed(w, &[100, 12, 400]))),
    Row("B0099", "a write of a sector and a byte", plays(BAD, |w| w.writes(0, &[1; 513]))),
    Row("B0100", "not known to us", unread(ANYTHING)),
    Row("B0101", "not known to us", unread(ANYTHING)),
    Row("B0102", "not known to us", unread(ANYTHING)),
    Row("B0103", "two reads with one kick", plays(Served, |w| several(w, 0, 2))),
    Row("B0104", "a write and a read of one sector with one kick", plays(Served, |w| {
        w.guest.put(REQUEST, &header(OUT, 0));
        w.guest.put(REQUEST + 16, &header(IN, 0));
        w.guest.put(DATA, &text(512, 8));
        let seen = w.watch(0, |ring| {
            ring.request(&[readable(REQUEST, 16), readable(DATA, 512), writable(STATUS, 1)]);
            ring.request(&[readable(REQUEST + 16, 16), writable(DATA + 512, 512), writable(STATUS + 1, 1)]);
        });
        assert_eq!(w.guest.get(DATA + 512, 512), text(512, 8));
        seen
    })),
    Row("B0105", "not known to us", unread(ANYTHING)),
    Row("B0106", "two sectors of which one is there", plays(BAD, |w| w.reads(SECTORS - 1, 1024))),
    Row("B0107", "a header of zeros, which is a read", plays(YES, |w| w.reads(0, 512))),
    Row("B0108", "not known to us", unread(ANYTHING)),
    Row("B0109", "not known to us", unread(ANYTHING)),
    Row("B0110", "not known to us", unread(ANYTHING)),
    Row("B0111", "a read of what was discarded", plays(YES, |w| {
        discard(w, 0, 4);
        w.reads(0, 2048)
    })),
    Row("B0112", "a discard and a write with one kick", plays(YES, |w| {
        discard(w, 1, 1);
        w.is_kept(1, &text(512, 2))
    })),
    Row("B0113", "the capacity, and the sector before it", plays(YES, |w| {
        let capacity = w.guest.config(0, 8);
        w.reads(capacity - 1, 512)
    })),
    Row("B0114", "requests on all queues", plays(Served, on_both)),
    Row("B0115", "not known to us", unread(ANYTHING)),
    Row("B0116", "not known to us", unread(ANYTHING)),
    Row("B0117", "a flush", differs(NO, YES, |w| w.flushes())),
    Row("B0118", "not known to us", unread(ANYTHING)),
    Row("B0119", "not known to us", unread(ANYTHING)),
    Row("B0120", "not known to us", unread(ANYTHING)),
    Row("B0121", "a write and a flush", differs(NO, YES, |w| {
        assert_eq!(w.writes(0, &[3; 512]), YES);
        w.flushes()
    })),
    Row("B0122", "a discard that ends beyond the disk", differs(NO, BAD, |w| discard(w, SECTORS - 2, 4))),
    Row("B0123", "a kick for nothing", plays(Kept, |w| w.watch(0, |_| ()))),
    Row("B0124", "a read by a table", differs(Refused, Served, |w| tabled(w, 0, Whole))),
    Row("B0125", "not known to us but for what it does to others, which T0001 to T0003 do", unread(ANYTHING)),
    Row("B0126", "not known to us", unread(ANYTHING)),
    Row("B0127", "not known to us", unread(ANYTHING)),
    Row("B0128", "not known to us", unread(ANYTHING)),
    Row("B0129", "several questions for the identity", plays(YES, |w| {
        assert_eq!([(); 3].map(|()| identity(w, 0, 20)), [YES; 3]);
        YES
    })),
    Row("B0130", "not known to us", unread(ANYTHING)),
    Row("B0131", "writes of one sector by two queues", plays(YES, |w| {
        w.guest.put(DATA, &text(512, 6));
        assert_eq!(w.disk_asks(0, OUT, 0, &[readable(DATA, 512)]), YES);
        w.disk_asks(1, OUT, 0, &[readable(DATA, 512)])
    })),
    Row("B0132", "kicks of all queues for nothing", plays(Holds, |w| {
        assert_eq!([0, 1].map(|queue| w.watch(queue, |_| ())), [Kept; 2]);
        Holds
    })),
    Row("B0133", "a queue of one descriptor", plays(Holds, |w| with_layout(w, |layout| layout.size = 1))),
    Row("B0134", "how many queues there are, by who did not ask", plays(Holds, |w| {
        assert_eq!(w.guest.config(34, 2), 2);
        Holds
    })),
    Row("B0135", "a field that cannot be written", plays(Holds, |w| {
        w.guest.set_config(0, 8, u64::MAX);
        assert_eq!(w.guest.config(0, 8), SECTORS);
        Holds
    })),
    Row("B0136", "a configuration that changes while it is read", elsewhere("tests/virtio_pci/common.rs::a_torn_read_of_the_configuration_is_detectable; tests/virtio_mmio/registers.rs::a_torn_read_of_the_configuration_is_detectable")),
    Row("B0137", "not known to us", unread(ANYTHING)),
    Row("B0138", "zeros up to the last sector", differs(NO, YES, |w| zeroes(w, SECTORS - 2, 2, 0))),
    Row("B0139", "not known to us", unread(ANYTHING)),
    Row("B0140", "a request before the driver is ready", plays(Served, before_the_driver_is_ready)),
    Row("B0141", "a kick of a queue that was stopped", elsewhere("tests/virtio_mmio/queues.rs::a_queue_that_is_not_ready_is_not_touched")),
    Row("B0142", "a request with the reset of its device", plays(Holds, |w| {
        let good = w.good(0);
        w.guest.ring(0).request(&good);
        w.guest.set_status(0);
        w.guest.kick(0);
        assert_eq!(w.get(DEVICE_STATUS), 0);
        Holds
    })),
    Row("B0143", "a cache mode that is written moves the generation", elsewhere("tests/block/transport.rs::a_driver_that_writes_writeback_reads_another_generation")),
    Row("B0144", "the identity is one", plays(YES, |w| {
        let seen = identity(w, 0, 20);
        assert_eq!(w.guest.get(DATA, 7), b"devisor");
        seen
    })),
    Row("B0145", "the first sector and the last", plays(YES, |w| {
        assert_eq!(w.reads(0, 512), YES);
        w.reads(SECTORS - 1, 512)
    })),
    Row("B0146", "an empty buffer among the data", plays(YES, |w| w.disk_asks(0, IN, 0, &[writable(DATA, 256), writable(DATA, 0), writable(DATA + 256, 256)]))),
    Row("B0147", "not known to us", unread(ANYTHING)),
    Row("B0148", "the same head on two queues", plays(Served, on_both)),
    Row("B0149", "a kick reaches its own queue alone", plays(Holds, |w| {
        let good = w.good(0);
        w.guest.ring(0).request(&good);
        w.guest.kick(1);
        assert_eq!(w.guest.used(0), [0_u32; 0]);
        w.guest.kick(0);
        assert_eq!(w.guest.used(0).len(), 1);
        Holds
    })),
    Row("B0150", "a queue that is stopped and goes on", elsewhere("tests/virtio_mmio/queues.rs::a_queue_that_was_stopped_runs_again_once_it_is_enabled")),
    Row("B0151", "each queue has its vector", elsewhere("tests/virtio_pci/interrupts.rs::each_queue_has_its_vector_and_several_may_share_one")),
    Row("B0152", "queues of different sizes", elsewhere("tests/block/transport.rs::every_queue_of_a_multiqueue_disk_is_served")),
    Row("B0153", "what one queue writes is what the other reads", plays(YES, |w| {
        w.guest.put(DATA, &text(512, 0xc3));
        assert_eq!(w.disk_asks(0, OUT, 4, &[readable(DATA, 512)]), YES);
        w.guest.put(DATA, &[0; 512]);
        let seen = w.disk_asks(1, IN, 4, &[writable(DATA, 512)]);
        assert_eq!(w.guest.get(DATA, 512), text(512, 0xc3));
        seen
    })),
    Row("B0154", "each queue uses its own heads", plays(Served, |w| {
        assert_eq!(several(w, 0, 5), Served);
        several(w, 1, 5)
    })),
    Row("B0155", "the second queue alone", plays(Served, |w| {
        w.agree();
        w.guest.enable(1);
        w.go();
        let seen = several(w, 1, 2);
        w.restart();
        seen
    })),
    Row("B0156", "a flush with a priority, again", differs(NO, YES, |w| with_priority(w, FLUSH, 7))),
    Row("B0157", "zeros whose space may go, by who cannot discard", differs(NO, YES, |w| zeroes(w, 0, 1, 1))),
    Row("B0158", "a discard of which the last sector is not there", differs(NO, BAD, |w| discard(w, SECTORS - 1, 2))),
    Row("B0159", "not known to us", unread(ANYTHING)),
    Row("B0160", "zeros behind the disk", differs(NO, BAD, |w| zeroes(w, SECTORS + 5, 1, 0))),
    Row("B0161", "the identity into a buffer that can only be read", plays(BAD, |w| w.disk_asks(0, GET_ID, 0, &[readable(DATA, 20)]))),
    Row("B0162", "data that leaves memory at its end", plays(Refused, |w| hurt(w, 0, 1, PastMemory))),
    Row("B0163", "a discard and a read of one place", plays(YES, |w| {
        discard(w, 8, 8);
        w.reads(8, 4096)
    })),
    Row("B0164", "not known to us", unread(ANYTHING)),
    Row("B0165", "a flush of a high priority", differs(NO, YES, |w| with_priority(w, FLUSH, u32::MAX))),
    Row("B0166", "zeros of no sectors at all", differs(NO, YES, |w| zeroes(w, 1, 0, 0))),
    Row("B0167", "a write with two statuses, of which the last is it", plays(YES, |w| {
        w.guest.put(REQUEST, &header(OUT, 0));
        w.disk_says(0, &[readable(REQUEST, 16), readable(DATA, 512), writable(DATA + 512, 1), writable(STATUS, 1)])
    })),
    Row("B0168", "a table that names itself", plays(Refused, |w| tabled(w, 0, Itself))),
    Row("B0169", "a cache that is turned off with a flush under way", elsewhere("tests/block/stability.rs::writeback_takes_zero_and_one_from_who_negotiated_it_until_reset")),
    Row("B0170", "zeros are read as zeros", plays(Holds, |w| {
        assert_eq!(w.writes(0, &[9; 512]), YES);
        if zeroes(w, 0, 1, 0) == YES {
            assert_eq!(w.reads(0, 512), YES);
            assert_eq!(w.guest.get(DATA, 512), [0; 512]);
        }
        Holds
    })),
    Row("B0171", "what is written is read", plays(YES, |w| w.is_kept(5, &text(512, 1)))),
    Row("B0172", "how long the disk will live, field by field", differs(NO, YES, |w| lifetime(w, 6)).on(BlockWorn)),
    Row("B0173", "what one queue writes is read by the other, byte by byte", plays(YES, |w| {
        w.guest.put(DATA, &text(512, 0x11));
        assert_eq!(w.disk_asks(1, OUT, 6, &[readable(DATA, 512)]), YES);
        w.guest.put(DATA, &[0; 512]);
        let seen = w.reads(6, 512);
        assert_eq!(w.guest.get(DATA, 512), text(512, 0x11));
        seen
    })),
    Row("B0174", "writes before a flush and after it", plays(YES, |w| {
        assert_eq!(w.is_kept(0, &[0xaa; 512]), YES);
        w.flushes();
        w.is_kept(1, &[0xbb; 512])
    })),
    Row("B0175", "the size of a block", plays(Holds, |w| {
        let size = w.guest.config(20, 4);
        assert!(size == 0 || size >= 512 && size.is_power_of_two());
        Holds
    })),
    Row("B0176", "how many segments a request may have", plays(Holds, |w| {
        assert!(w.guest.offered() & 1 << 2 == 0 || w.guest.config(12, 4) > 0);
        Holds
    })),
    Row("B0177", "a page is written and read", plays(YES, |w| w.is_kept(8, &text(4096, 3)))),
    Row("B0178", "how many queues there are", plays(Holds, |w| {
        assert_eq!(w.guest.config(34, 2), u64::from(w.guest.queues()));
        Holds
    })),
    Row("B0179", "a write in two pieces", plays(YES, |w| framed(w, &[300, 212]))),
    Row("B0180", "the third sector is written and read", plays(YES, |w| w.is_kept(2, &text(512, 0x20)))),
    Row("B0181", "what was discarded can be read", plays(YES, |w| {
        discard(w, 3, 1);
        w.reads(3, 512)
    })),
    Row("B0182", "a write by a table", differs(Refused, Served, |w| {
        w.guest.put(REQUEST, &header(OUT, 0));
        w.guest.put(DATA, &text(512, 0x44));
        let buffers = [readable(REQUEST, 16), readable(DATA, 512), writable(STATUS, 1)];
        let seen = w.watch(0, |ring| {
            let head = ring.add_indirect(TABLE, &buffers);
            ring.offer(head);
        });
        assert_eq!(w.disk().contents()[..512] == text(512, 0x44), w.is_full());
        seen
    })),
    Row("B0183", "two reads of one sector", plays(Served, |w| several(w, 0, 2))),
    Row("B0184", "the capacity is not zero", plays(Holds, |w| {
        assert_ne!(w.guest.config(0, 8), 0);
        Holds
    })),
    Row("B0185", "a flush of a disk that nobody has written", differs(NO, YES, |w| w.flushes())),
    Row("B0186", "a sector is written over", plays(YES, |w| {
        assert_eq!(w.is_kept(0, &[0x11; 512]), YES);
        w.is_kept(0, &[0x99; 512])
    })),
    Row("B0187", "a read behind the disk says so", plays(BAD, |w| w.reads(SECTORS, 512))),
    Row("B0188", "not known to us", unread(ANYTHING)),
    Row("B0189", "a flush says that it is done", differs(NO, YES, |w| w.flushes())),
    Row("B0190", "not known to us", unread(ANYTHING)),
    Row("B0191", "a write says that it is done", plays(YES, |w| w.writes(0, &[1; 512]))),
    Row("B0192", "sectors are apart", plays(Holds, |w| {
        assert_eq!((w.writes(0, &[0xaa; 512]), w.writes(1, &[0xbb; 512])), (YES, YES));
        assert_eq!(w.reads(0, 1024), YES);
        assert_eq!(w.guest.get(DATA, 1024), [[0xaa; 512], [0xbb; 512]].concat());
        Holds
    })),
    Row("B0193", "the last sector is written and read", plays(YES, |w| w.is_kept(SECTORS - 1, &[0xee; 512]))),
    Row("B0194", "four sectors one after the other", plays(YES, |w| {
        (0..4).for_each(|sector| assert_eq!(w.is_kept(sector, &text(512, sector as u8)), YES));
        YES
    })),
    Row("B0195", "zeros say that they are done", differs(NO, YES, |w| zeroes(w, 0, 1, 0))),
    Row("B0196", "the identity ends with zeros", elsewhere("tests/block/requests.rs::get_id_is_twenty_bytes_padded_with_zeros")),
    Row("B0197", "a discard says that it is done", differs(NO, YES, |w| discard(w, 0, 8))),
    Row("B0198", "two reads of which both are done", plays(Served, |w| several(w, 0, 2))),
    Row("B0199", "a discard of one sector", differs(NO, YES, |w| discard(w, 9, 1))),
    Row("B0200", "a disk that is plugged in while the machine runs", elsewhere(HOTPLUG)),
    Row("B0201", "a disk that goes and comes again", elsewhere("tests/pci/bars.rs::a_function_that_is_removed_or_dropped_decodes_nothing")),
    Row("B0202", "a disk that grows", elsewhere("tests/block/transport.rs::a_disk_grows_while_the_guest_runs")),
    Row("B0203", "a state is saved with requests waiting", plays(Holds, |w| {
        w.guest.transport().pause();
        let good = w.good(0);
        assert_eq!(w.offer(0, &good), Kept);
        w.moved();
        w.guest.transport().process(QueueIndex(0));
        assert_eq!(w.guest.used(0), [513]);
        Holds
    })),
    Row("B0204", "a pause", plays(Holds, |w| {
        w.guest.transport().pause();
        let good = w.good(0);
        assert_eq!(w.offer(0, &good), Kept);
        w.guest.transport().resume();
        w.guest.transport().process(QueueIndex(0));
        assert_eq!(w.guest.used(0), [513]);
        Holds
    })),
    Row("B0205", "memory that changes while requests come", elsewhere("tests/queue_memory/replaced.rs::a_round_goes_by_the_memory_map_as_it_is_then_and_lets_the_old_one_go")),
    Row("B0210", "a header and data in one buffer", plays(YES, |w| {
        w.guest.put(REQUEST, &[&header(OUT, 1)[..], &text(512, 4)].concat());
        w.disk_says(0, &[readable(REQUEST, 528), writable(STATUS, 1)])
    })),
    Row("B0211", "data and status in one buffer", plays(Served, |w| {
        w.guest.put(REQUEST, &header(IN, 0));
        let seen = w.offer(0, &[readable(REQUEST, 16), writable(DATA, 513)]);
        assert_eq!(w.guest.get(DATA + 512, 1), [0]);
        seen
    })),
    Row("B0212", "a header alone", plays(Refused, |w| w.offer(0, &[readable(REQUEST, 16)]))),
    Row("B0213", "a status that says it is a table", plays(Refused, |w| hurt_last(w, 0, Flags(WRITE | INDIRECT)))),
    Row("B0214", "not known to us", unread(ANYTHING)),
    Row("B0215", "the identity says that it is done", plays(YES, |w| identity(w, 0, 20))),
    Row("B0216", "a kibibyte is written and read", plays(YES, |w| w.is_kept(0, &text(1024, 0)))),
    Row("B0217", "ones are written and read", plays(YES, |w| w.is_kept(0, &[0xff; 512]))),
    Row("B0218", "zeros are written and read", plays(YES, |w| w.is_kept(0, &[0; 512]))),
    Row("B0219", "every other bit is written and read", plays(YES, |w| w.is_kept(0, &[0x55, 0xaa].repeat(256)))),
    Row("B0220", "three writes with one kick", plays(Served, |w| {
        w.guest.put(REQUEST, &header(OUT, 0));
        w.watch(0, |ring| (0..3).for_each(|_| _ = ring.request(&[readable(REQUEST, 16), readable(DATA, 512), writable(STATUS, 1)])))
    })),
    Row("B0221", "writes among each other", plays(YES, |w| {
        assert_eq!(w.is_kept(0, &[0x11; 512]), YES);
        assert_eq!(w.is_kept(2, &[0x22; 512]), YES);
        assert_eq!(w.is_kept(1, &[0x33; 512]), YES);
        w.is_kept(0, &[0x44; 512])
    })),
    Row("B0222", "a write, a flush and a read", plays(YES, |w| {
        assert_eq!(w.writes(0, &text(512, 0x66)), YES);
        w.flushes();
        let seen = w.reads(0, 512);
        assert_eq!(w.guest.get(DATA, 512), text(512, 0x66));
        seen
    })),
    Row("B0223", "two pages are written and read", plays(YES, |w| w.is_kept(0, &text(8192, 1)))),
    Row("B0224", "four pages are written and read", plays(YES, |w| w.is_kept(0, &text(16_384, 2)))),
    Row("B0225", "a read into three buffers", plays(YES, |w| framed(w, &[512, 256, 256]))),
    Row("B0226", "a write from three buffers", plays(YES, |w| framed(w, &[100, 200, 212]))),
    Row("B0227", "a flush between writes", plays(YES, |w| {
        for sector in 0..3 {
            assert_eq!(w.is_kept(sector, &text(512, sector as u8)), YES);
            w.flushes();
        }
        YES
    })),
    Row("B0228", "zeros are read back", plays(Holds, |w| {
        assert_eq!(w.writes(4, &[7; 1024]), YES);
        if zeroes(w, 4, 2, 0) == YES {
            assert_eq!(w.reads(4, 1024), YES);
            assert_eq!(w.guest.get(DATA, 1024), [0; 1024]);
        }
        Holds
    })),
    Row("B0229", "not known to us", unread(ANYTHING)),
    Row("B0230", "a write that is stable before it is done, if it says so", plays(Holds, |w| {
        not_offered(w, 18);
        not_offered(w, 19)
    })),
    Row("B0231", "flags of a request, by who did not ask for any", plays(YES, |w| with_priority(w, OUT, 0x5a5a_5a5a))),
];
