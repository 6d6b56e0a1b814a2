//! E: the PMEM device (virtio 1.2, section 5.19).

use devisor::virtio::QueueIndex;

use crate::{
    both::{ANSWER, REQUEST},
    driver::{
        Row,
        Seen::{self, Holds, Kept, Refused, Says, Served},
        differs, elsewhere, plays,
    },
    ring::{readable, writable},
    rings::*,
    setup::not_offered,
    world::{REGION, World},
};

use super::HOTPLUG;

const OK: u32 = 0;
const FAILED: u32 = u32::MAX;

/// What a request of this type is answered with.
fn asks(w: &mut World, kind: u32) -> Seen {
    w.guest.put(REQUEST, &kind.to_le_bytes());
    w.guest.put(ANSWER, &[0xee; 4]);
    match w.offer(0, &[readable(REQUEST, 4), writable(ANSWER, 4)]) {
        Served => Says(u32::from_le_bytes(w.guest.get(ANSWER, 4).try_into().unwrap())),
        other => other,
    }
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("E0001", "a flush", plays(Says(OK), |w| asks(w, 0))),
    Row("E0002", "a type that does not exist", plays(Says(FAILED), |w| asks(w, 99))),
    Row("E0003", "no room for a response", plays(Refused, |w| w.offer(0, &[readable(REQUEST, 4)]))),
    Row("E0004", "two flushes with one kick", plays(Served, |w| several(w, 0, 2))),
    Row("E0005", "several buffers and no room for a response", plays(Refused, |w| w.offer(0, &[readable(REQUEST, 2), readable(REQUEST + 2, 2)]))),
    Row("E0006", "a request that is too short", plays(Refused, |w| w.offer(0, &[readable(REQUEST, 1), writable(ANSWER, 4)]))),
    Row("E0007", "too little room for a response", plays(Refused, |w| w.offer(0, &[readable(REQUEST, 4), writable(ANSWER, 1)]))),
    Row("E0008", "nearly 4 GiB of room for a response", plays(Refused, |w| hurt_last(w, 0, Len(u32::MAX)))),
    Row("E0009", "a request that lies nowhere", plays(Refused, |w| hurt_first(w, 0, NO_MEMORY))),
    Row("E0010", "room for a response that cannot be written", plays(Refused, |w| hurt_last(w, 0, Turned))),
    Row("E0011", "a request that is its own continuation", plays(Refused, |w| hurt_first(w, 0, Loop))),
    Row("E0012", "a request that goes on beyond the table", plays(Refused, |w| hurt_first(w, 0, NextOut))),
    Row("E0013", "types that are reserved", plays(Says(FAILED), |w| {
        for kind in [1, 2, 0x8000_0000] {
            assert_eq!(asks(w, kind), Says(FAILED));
        }
        asks(w, u32::MAX)
    })),
    Row("E0014", "as many flushes as the ring has room for", plays(Served, |w| full(w, 0))),
    Row("E0015", "a request with bytes behind it", plays(Served, |w| {
        w.guest.put(REQUEST, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        w.offer(0, &[readable(REQUEST, 8), writable(ANSWER, 4)])
    })),
    Row("E0016", "request and response in one writable buffer", plays(Refused, |w| w.offer(0, &[writable(ANSWER, 8)]))),
    Row("E0017", "many flushes one after the other", plays(Says(OK), |w| {
        for _ in 0..200 {
            assert_eq!(asks(w, 0), Says(OK));
        }
        asks(w, 0)
    })),
    Row("E0018", "flushes whose descriptors lie among each other", plays(Served, |w| {
        w.guest.put(REQUEST, &[0; 4]);
        w.watch(0, |ring| {
            ring.descriptor(40, REQUEST, 4, 1, 42);
            ring.descriptor(41, REQUEST, 4, 1, 43);
            ring.descriptor(42, ANSWER, 4, 2, 0);
            ring.descriptor(43, ANSWER + 8, 4, 2, 0);
            ring.offer(40);
            ring.offer(41);
        })
    })),
    Row("E0019", "a type that does not exist after a flush", plays(Says(FAILED), |w| {
        assert_eq!(asks(w, 0), Says(OK));
        asks(w, 1)
    })),
    Row("E0020", "room for a response that goes on to an empty descriptor", plays(Refused, |w| hurt_last(w, 0, Dangles))),
    Row("E0021", "room for a response that leaves memory at its end", plays(Refused, |w| hurt_last(w, 0, PastMemory))),
    Row("E0022", "room for half a response", plays(Refused, |w| w.offer(0, &[readable(REQUEST, 4), writable(ANSWER, 2)]))),
    Row("E0023", "the response before the request", plays(Refused, |w| w.offer(0, &[writable(ANSWER, 4), readable(REQUEST, 4)]))),
    Row("E0024", "two requests and one response in a chain", plays(Served, |w| {
        w.guest.put(REQUEST, &[0; 8]);
        w.offer(0, &[readable(REQUEST, 4), readable(REQUEST + 4, 4), writable(ANSWER, 4)])
    })),
    Row("E0025", "a flush in a table of its own", differs(Refused, Served, |w| tabled(w, 0, Whole))),
    Row("E0026", "room for a response in the registers of a device", plays(Refused, |w| hurt_last(w, 0, IN_REGISTERS))),
    Row("E0027", "memory of which a part can be discarded", plays(Holds, |w| not_offered(w, 1))),
    Row("E0028", "the memory as a region of shared memory", elsewhere("tests/pmem.rs::the_region_is_in_the_registers_of_virtio_mmio_and_in_a_capability_of_virtio_pci")),
    Row("E0029", "a flush after a reset", plays(Says(OK), |w| {
        w.restart();
        asks(w, 0)
    })),
    Row("E0030", "a response that says success or failure and nothing else", plays(Holds, |w| {
        assert_eq!((asks(w, 0), asks(w, 7)), (Says(OK), Says(FAILED)));
        Holds
    })),
    Row("E0031", "a flush that succeeds says so", plays(Says(OK), |w| asks(w, 0))),
    Row("E0032", "where the memory is and how much", plays(Holds, |w| {
        // Who looks for it as shared memory finds it there, and zeros here.
        let here = if w.has(1) { (0, 0) } else { (REGION.start, REGION.end - REGION.start) };
        assert_eq!((w.guest.config(0, 8), w.guest.config(8, 8)), here);
        Holds
    })),
    Row("E0033", "room for a response that passes the last address", plays(Refused, |w| hurt_last(w, 0, Wraps))),
    Row("E0200", "a device that is plugged in while the machine runs", elsewhere(HOTPLUG)),
    Row("E0201", "a state is saved while a flush waits", plays(Holds, |w| {
        w.guest.transport().pause();
        let good = w.good(0);
        assert_eq!(w.offer(0, &good), Kept);
        w.moved();
        w.guest.transport().process(QueueIndex(0));
        assert_eq!(w.guest.used(0), [4]);
        Holds
    })),
];
