//! RNG: the entropy device (virtio 1.2, section 5.4).

use devisor::virtio::{QueueIndex, features::RING_RESET};

use crate::{
    both::{ANSWER, REQUEST},
    driver::{
        Row,
        Seen::{self, Holds, Kept, Refused, Served},
        differs, plays,
    },
    ring::{INDIRECT, NEXT, WRITE, readable, writable},
    rings::*,
    setup::*,
    world::World,
};

/// So many bytes, and that they are not all the same.
fn bytes(w: &mut World, len: u32) -> Vec<u8> {
    w.guest.put(ANSWER, &vec![0; len as usize]);
    let (seen, used) = w.watch_lens(0, |ring| _ = ring.request(&[writable(ANSWER, len)]));
    assert_eq!((seen, used), (Served, vec![len]));
    w.guest.get(ANSWER, len as usize)
}

/// The same of a page or so, which nobody draws as zeros.
fn random(w: &mut World, len: u32) -> Seen {
    assert!(bytes(w, len).iter().any(|byte| *byte != 0));
    Holds
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("RNG0001", "random bytes", plays(Holds, |w| random(w, 64))),
    Row("RNG0002", "no bytes", plays(Refused, |w| hurt_first(w, 0, Len(0)))),
    Row("RNG0003", "room that cannot be written", plays(Refused, |w| hurt_first(w, 0, Turned))),
    Row("RNG0004", "room that leaves memory at its end", plays(Refused, |w| hurt_first(w, 0, PastMemory))),
    Row("RNG0005", "room that lies nowhere", plays(Refused, |w| hurt_first(w, 0, NO_MEMORY))),
    Row("RNG0006", "room that is its own continuation", plays(Refused, |w| hurt_first(w, 0, Loop))),
    Row("RNG0007", "room that goes on beyond the table", plays(Refused, |w| hurt_first(w, 0, NextOut))),
    Row("RNG0008", "room in several buffers of a chain", plays(Served, |w| w.offer(0, &[writable(ANSWER, 8), writable(ANSWER + 8, 8)]))),
    Row("RNG0009", "a table that was not agreed on", differs(Refused, Served, |w| tabled(w, 0, Whole))),
    Row("RNG0010", "an empty table", plays(Refused, |w| tabled(w, 0, Bytes(0)))),
    Row("RNG0011", "a table that ends within an entry", plays(Refused, |w| tabled(w, 0, Bytes(20)))),
    Row("RNG0012", "as many requests as the ring has room for", plays(Served, |w| full(w, 0))),
    Row("RNG0013", "room with all flags", plays(Refused, |w| hurt_first(w, 0, Flags(NEXT | WRITE | INDIRECT)))),
    Row("RNG0014", "room over all descriptors of the ring", plays(Served, |w| longest(w, 0))),
    Row("RNG0015", "two buffers that are one", plays(Served, |w| w.offer(0, &[writable(ANSWER, 16), writable(ANSWER, 16)]))),
    Row("RNG0016", "room and then what may be read", plays(Refused, |w| w.offer(0, &[writable(ANSWER, 16), readable(REQUEST, 16)]))),
    Row("RNG0017", "a request after its queue was reset", plays(Served, |w| {
        if w.has(RING_RESET) {
            w.set(QUEUE_SEL, 0);
            w.set(QUEUE_RESET, 1);
            w.guest.enable(0);
        }
        several(w, 0, 1)
    })),
    Row("RNG0018", "several requests at once", plays(Served, |w| several(w, 0, 8))),
    Row("RNG0019", "room across pages", plays(Served, |w| w.offer(0, &[writable(ANSWER + 0xff8, 16)]))),
    Row("RNG0020", "one byte", plays(Holds, |w| {
        bytes(w, 1);
        Holds
    })),
    Row("RNG0021", "three requests at once", plays(Served, |w| several(w, 0, 3))),
    Row("RNG0022", "room in the registers of a device", plays(Refused, |w| hurt_first(w, 0, IN_REGISTERS))),
    Row("RNG0023", "bytes that are not zero", plays(Holds, |w| random(w, 256))),
    Row("RNG0024", "two requests that get their own bytes", plays(Holds, |w| {
        assert_ne!(bytes(w, 32), bytes(w, 32));
        Holds
    })),
    Row("RNG0025", "a page of bytes", plays(Holds, |w| random(w, 4096))),
    Row("RNG0026", "bytes that are not those of before", plays(Holds, |w| {
        let [first, second, third] = [(); 3].map(|()| bytes(w, 16));
        assert!(first != second && second != third && first != third);
        Holds
    })),
    Row("RNG0027", "eight bytes", plays(Holds, |w| random(w, 8))),
    Row("RNG0028", "two requests with one kick", plays(Served, |w| several(w, 0, 2))),
    Row("RNG0029", "room beyond memory", plays(Refused, |w| hurt_first(w, 0, Address(crate::world::TOP)))),
    Row("RNG0030", "room that passes the last address", plays(Refused, |w| hurt_first(w, 0, Wraps))),
    Row("RNG0031", "a table whose entry is its own continuation", plays(Refused, |w| tabled(w, 0, Entry(Loop)))),
    Row("RNG0032", "a table that goes on beyond its end", plays(Refused, |w| tabled(w, 0, Entry(NextOut)))),
    Row("RNG0033", "a table as long as the ring", differs(Refused, Served, |w| tabled(w, 0, Entries(SIZE)))),
    Row("RNG0200", "a state is saved with a request waiting", plays(Holds, |w| {
        w.guest.transport().pause();
        let good = w.good(0);
        assert_eq!(w.offer(0, &good), Kept);
        w.moved();
        w.guest.transport().process(QueueIndex(0));
        assert_eq!(w.guest.used(0), [16]);
        Holds
    })),
];
