//! R: the memory device (virtio 1.2, section 5.15). Half of its 32 blocks are requested, and 20 can be used.

use crate::{
    both::{ANSWER, REQUEST},
    driver::{
        Row,
        Seen::{Holds, Refused, Says, Served},
        differs, elsewhere, plays,
    },
    memory::*,
    ring::{readable, writable},
    rings::*,
    setup::not_offered,
    world::{BASE, BLOCK, BLOCKS, REQUESTED, USABLE},
};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("R0001", "the state of a block", plays(Holds, |w| {
        assert_eq!(w.state(0, 1), UNPLUGGED);
        Holds
    })),
    Row("R0002", "a block is plugged in", plays(Says(ACK), |w| w.blocks(PLUG, 0, 1))),
    Row("R0003", "a block is unplugged that was plugged in", plays(Says(ACK), |w| {
        assert_eq!(w.blocks(PLUG, 0, 1), Says(ACK));
        w.blocks(UNPLUG, 0, 1)
    })),
    Row("R0004", "all blocks are unplugged", plays(Says(ACK), |w| {
        assert_eq!(w.blocks(PLUG, 0, 4), Says(ACK));
        let seen = w.blocks(UNPLUG_ALL, 0, 0);
        assert_eq!(w.plugged(), 0);
        seen
    })),
    Row("R0005", "a type that does not exist", plays(Says(ERROR), |w| w.blocks(0xffff, 0, 1))),
    Row("R0006", "a block at address 0 is plugged in", plays(Says(ERROR), |w| w.asks(&request(PLUG, 0, 1)))),
    Row("R0007", "more blocks than there are", plays(Says(ERROR), |w| w.blocks(PLUG, 0, u16::MAX))),
    Row("R0008", "a block that begins between blocks", plays(Says(ERROR), |w| w.asks(&request(PLUG, BASE + 1, 1)))),
    Row("R0009", "no blocks", plays(Says(ERROR), |w| w.blocks(PLUG, 0, 0))),
    Row("R0010", "no room for a response", plays(Refused, |w| {
        w.guest.put(REQUEST, &request(PLUG, BASE, 1));
        let seen = w.offer(0, &[readable(REQUEST, 24)]);
        assert_eq!(w.plugged(), 0);
        seen
    })),
    Row("R0011", "a request that is too short", plays(Says(ERROR), |w| w.asks(&request(PLUG, BASE, 1)[..8]))),
    Row("R0012", "a block is plugged in and unplugged", plays(Holds, |w| {
        assert_eq!(w.blocks(PLUG, 3, 1), Says(ACK));
        assert_eq!((w.state(3, 1), w.plugged()), (PLUGGED, BLOCK));
        assert_eq!(w.blocks(UNPLUG, 3, 1), Says(ACK));
        assert_eq!((w.state(3, 1), w.plugged()), (UNPLUGGED, 0));
        Holds
    })),
    Row("R0013", "a block is unplugged that was not plugged in", plays(Says(ERROR), |w| w.blocks(UNPLUG, 0, 1))),
    Row("R0014", "the state of what is no block", plays(Says(ERROR), |w| w.asks(&request(STATE, u64::MAX - BLOCK + 1, 1)))),
    Row("R0015", "several requests with one kick", plays(Served, |w| several(w, 0, 8))),
    Row("R0016", "the state of the last byte", plays(Says(ERROR), |w| w.asks(&request(STATE, BASE + BLOCKS * BLOCK - 1, 1)))),
    Row("R0017", "a range that passes the last address", plays(Says(ERROR), |w| w.asks(&request(PLUG, u64::MAX - BLOCK + 1, u16::MAX)))),
    Row("R0018", "a range that is plugged in by half is unplugged", plays(Says(ERROR), |w| {
        assert_eq!(w.blocks(PLUG, 0, 2), Says(ACK));
        w.blocks(UNPLUG, 1, 2)
    })),
    Row("R0019", "a block after all were unplugged", plays(Says(ACK), |w| {
        assert_eq!(w.blocks(PLUG, 0, 2), Says(ACK));
        assert_eq!(w.blocks(UNPLUG_ALL, 0, 0), Says(ACK));
        w.blocks(PLUG, 0, 1)
    })),
    Row("R0020", "padding that is not zero", plays(Says(ACK), |w| {
        let mut bytes = request(PLUG, BASE, 1);
        bytes[2..8].fill(0xff);
        bytes[18..].fill(0xff);
        w.asks(&bytes)
    })),
    Row("R0021", "the state of a block that cannot be used yet", plays(Says(ERROR), |w| w.blocks(STATE, USABLE, 1))),
    Row("R0022", "all that is requested, to its last block", plays(Says(ACK), |w| w.blocks(PLUG, 0, REQUESTED as u16))),
    Row("R0023", "the size of a block", plays(Holds, |w| {
        let size = w.guest.config(0, 8);
        assert!(size.is_power_of_two() && size >= 4096);
        assert_eq!(w.guest.config(16, 8) % size, 0);
        assert_eq!(w.guest.config(24, 8) % size, 0);
        Holds
    })),
    Row("R0024", "room for a response that leaves memory at its end", plays(Refused, |w| hurt_last(w, 0, PastMemory))),
    Row("R0025", "no blocks at an address that is right", plays(Says(ERROR), |w| w.blocks(PLUG, 1, 0))),
    Row("R0026", "a block at address 0 is unplugged", plays(Says(ERROR), |w| w.asks(&request(UNPLUG, 0, 1)))),
    Row("R0027", "the state of more blocks than there are", plays(Says(ERROR), |w| w.blocks(STATE, 0, u16::MAX))),
    Row("R0028", "the first type that does not exist", plays(Says(ERROR), |w| w.blocks(4, 0, 1))),
    Row("R0029", "a block is plugged in and unplugged with one kick", plays(Served, |w| {
        w.guest.put(REQUEST, &request(PLUG, BASE, 1));
        w.guest.put(REQUEST + 64, &request(UNPLUG, BASE, 1));
        let seen = w.watch(0, |ring| {
            ring.request(&[readable(REQUEST, 24), writable(ANSWER, 10)]);
            ring.request(&[readable(REQUEST + 64, 24), writable(ANSWER + 64, 10)]);
        });
        assert_eq!((w.guest.get(ANSWER, 2), w.guest.get(ANSWER + 64, 2)), (vec![0; 2], vec![0; 2]));
        seen
    })),
    Row("R0030", "three questions with one kick", plays(Served, |w| several(w, 0, 3))),
    Row("R0031", "the same range again and again", plays(Holds, |w| {
        for _ in 0..4 {
            assert_eq!(w.blocks(PLUG, 2, 5), Says(ACK));
            assert_eq!(w.blocks(UNPLUG, 2, 5), Says(ACK));
        }
        Holds
    })),
    Row("R0032", "a block is unplugged that begins between blocks", plays(Says(ERROR), |w| {
        assert_eq!(w.blocks(PLUG, 0, 2), Says(ACK));
        w.asks(&request(UNPLUG, BASE + BLOCK / 2, 1))
    })),
    Row("R0033", "a range that passes the last address is unplugged", plays(Says(ERROR), |w| w.asks(&request(UNPLUG, u64::MAX - BLOCK + 1, 2)))),
    Row("R0034", "room for a response in the registers of a device", plays(Refused, |w| hurt_last(w, 0, IN_REGISTERS))),
    Row("R0035", "more blocks than are requested", plays(Says(NACK), |w| w.blocks(PLUG, 0, REQUESTED as u16 + 1))),
    Row("R0036", "a host that is busy", elsewhere("tests/mem.rs::while_the_embedder_is_busy_no_block_changes")),
    Row("R0037", "the state of a range that is plugged in by half", plays(Holds, |w| {
        assert_eq!(w.blocks(PLUG, 0, 4), Says(ACK));
        assert_eq!(w.blocks(UNPLUG, 1, 2), Says(ACK));
        assert_eq!((w.state(0, 4), w.state(0, 1), w.state(1, 2)), (MIXED, PLUGGED, UNPLUGGED));
        Holds
    })),
    Row("R0038", "the node that the memory is near to", plays(Holds, |w| {
        assert_eq!(w.guest.config(8, 2), 1);
        Holds
    })),
    Row("R0039", "a driver that may not look at what is unplugged", elsewhere("tests/mem.rs::a_driver_that_may_read_what_is_unplugged_gets_the_device_unless_that_is_refused")),
    Row("R0040", "memory that outlives a machine that is suspended", plays(Holds, |w| not_offered(w, 2))),
    Row("R0041", "the size of the region", plays(Holds, |w| {
        let [region, usable, requested] = [24, 32, 48].map(|field| w.guest.config(field, 8));
        assert_eq!((region, usable, requested), (BLOCKS * BLOCK, USABLE * BLOCK, REQUESTED * BLOCK));
        Holds
    })),
    Row("R0042", "the state of a block that was never plugged in", plays(Holds, |w| {
        assert_eq!(w.state(7, 1), UNPLUGGED);
        Holds
    })),
    Row("R0043", "room for a response that passes the last address", plays(Refused, |w| hurt_last(w, 0, Wraps))),
    Row("R0044", "a region of whole blocks", differs(Holds, Holds, |w| {
        assert_eq!(w.guest.config(16, 8) % w.guest.config(0, 8), 0);
        Holds
    })),
];
