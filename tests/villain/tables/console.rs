//! C: the console device (virtio 1.2, section 5.3).

use devisor::virtio::{QueueIndex, console::Size};

use crate::{
    both::{ANSWER, REQUEST},
    console::*,
    driver::{
        Row,
        Seen::{Holds, Kept, Refused, Served},
        differs, elsewhere, plays,
    },
    ring::{INDIRECT, NEXT, WRITE, readable, writable},
    rings::*,
    world::Kind::Multiport,
};

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("C0001", "a line of output arrives", plays(Served, |w| puts_out(w, 16))),
    Row("C0002", "output of no bytes", plays(Served, |w| hurt_first(w, TX, Len(0)))),
    Row("C0003", "output in a buffer that the device may write", plays(Refused, |w| hurt_first(w, TX, Turned))),
    Row("C0004", "output of nearly 4 GiB", plays(Refused, |w| hurt_first(w, TX, Len(u32::MAX)))),
    Row("C0005", "output that is its own continuation", plays(Refused, |w| hurt_first(w, TX, Loop))),
    Row("C0006", "output that goes on beyond the table", plays(Refused, |w| hurt_first(w, TX, NextOut))),
    Row("C0007", "output that lies nowhere", plays(Refused, |w| hurt_first(w, TX, NO_MEMORY))),
    Row("C0008", "room for input that cannot be written", plays(Refused, |w| hurt_first(w, RX, Turned))),
    Row("C0009", "room for input of no bytes", plays(Refused, |w| hurt_first(w, RX, Len(0)))),
    Row("C0010", "room for input of nearly 4 GiB", plays(Refused, |w| hurt_first(w, RX, Len(u32::MAX)))),
    Row("C0011", "room for input that lies nowhere", plays(Refused, |w| hurt_first(w, RX, NO_MEMORY))),
    Row("C0012", "room for input that is its own continuation", plays(Refused, |w| hurt_first(w, RX, Loop))),
    Row("C0013", "room for input that goes on beyond the table", plays(Refused, |w| hurt_first(w, RX, NextOut))),
    Row("C0014", "room for input in two buffers of one chain", plays(Holds, |w| {
        let kept = w.offer(RX, &[writable(ANSWER, 2), writable(ANSWER + 16, 6)]);
        assert_eq!(kept, Kept);
        w.peer().type_in(b"abcdefgh");
        w.guest.transport().run();
        assert_eq!(w.guest.used(RX), [8]);
        assert_eq!((w.guest.get(ANSWER, 2), w.guest.get(ANSWER + 16, 6)), (b"ab".to_vec(), b"cdefgh".to_vec()));
        Holds
    })),
    Row("C0015", "as much room for input as the ring has", plays(Holds, |w| takes_input(w, 64))),
    Row("C0016", "output in two buffers of one chain", plays(Served, |w| {
        w.guest.put(REQUEST, b"ab");
        w.guest.put(ANSWER, b"cde");
        let seen = w.offer(TX, &[readable(REQUEST, 2), readable(ANSWER, 3)]);
        assert_eq!(w.peer().output(), b"abcde");
        seen
    })),
    Row("C0017", "a table of output that was not agreed on", differs(Refused, Served, |w| tabled(w, TX, Whole))),
    Row("C0018", "an empty table of output", plays(Refused, |w| tabled(w, TX, Bytes(0)))),
    Row("C0019", "a table of output that ends within an entry", plays(Refused, |w| tabled(w, TX, Bytes(17)))),
    Row("C0020", "a table of output that names itself", plays(Refused, |w| tabled(w, TX, Itself))),
    Row("C0021", "output that is the ring's own table", plays(Served, |w| {
        in_own_ring(w, TX, 0, |ring| ring.layout.descriptor_area)
    })),
    Row("C0022", "output over all descriptors of the ring", plays(Served, |w| longest(w, TX))),
    Row("C0023", "output with all flags", plays(Refused, |w| hurt_first(w, TX, Flags(NEXT | WRITE | INDIRECT)))),
    Row("C0024", "a size that is read by who did not ask for it", plays(Holds, |w| {
        assert_eq!(w.guest.config(0, 4), 25 << 16 | 80);
        w.guest.set_config(0, 4, 0);
        assert_eq!(w.guest.config(0, 4), 25 << 16 | 80);
        Holds
    })),
    Row("C0025", "lines of output one after the other", plays(Served, |w| {
        for _ in 0..100 {
            assert_eq!(puts_out(w, 32), Served);
        }
        Served
    })),
    Row("C0026", "output of 4 GiB, again", elsewhere("tests/console/single_port.rs::gibibytes_of_output_in_one_chain_hold_nobody_up")),
    Row("C0027", "output in a long chain", plays(Served, |w| longest(w, TX))),
    Row("C0028", "a message by who did not ask for several ports", differs(Kept, Served, |w| w.say(0, PORT_READY, 1)).on(Multiport)),
    Row("C0029", "output of 64 KiB by who did not ask for several ports", plays(Served, |w| puts_out(w, 1 << 16))),
    Row("C0030", "a character of an emergency", plays(Holds, |w| {
        w.guest.set_config(8, 4, u64::from(b'!'));
        assert_eq!(w.peer().output(), b"!");
        Holds
    })),
    Row("C0031", "the same by who did not ask for it", elsewhere("tests/console/single_port.rs::without_the_feature_an_emergency_write_is_nothing")),
    Row("C0032", "a message of a kind that does not exist", differs(Kept, Refused, |w| says_nonsense(w, 0, 99, 1)).on(Multiport)),
    Row("C0033", "a message about a port that cannot be", differs(Kept, Refused, |w| says_nonsense(w, u32::MAX, PORT_OPEN, 1)).on(Multiport)),
    Row("C0034", "a message that is too short", differs(Kept, Refused, |w| w.say_bytes(&[0; 4])).on(Multiport)),
    Row("C0035", "output of no bytes between others", plays(Served, |w| {
        w.guest.put(REQUEST, b"ab");
        let seen = w.offer(TX, &[readable(REQUEST, 1), readable(REQUEST, 0), readable(REQUEST + 1, 1)]);
        assert_eq!(w.peer().output(), b"ab");
        seen
    })),
    Row("C0036", "room for input that may be read and then written", plays(Refused, |w| {
        w.offer(RX, &[readable(REQUEST, 8), writable(ANSWER, 8)])
    })),
    Row("C0037", "room for input that leaves memory at its end", plays(Refused, |w| hurt_first(w, RX, PastMemory))),
    Row("C0038", "a message about the first port that there is not", differs(Kept, Refused, |w| says_nonsense(w, 4, PORT_OPEN, 1)).on(Multiport)),
    Row("C0039", "a port that nobody has told of is ready", differs(Kept, Refused, |w| says_nonsense(w, 2, PORT_READY, 1)).on(Multiport)),
    Row("C0040", "a driver that names a port", differs(Kept, Refused, |w| says_nonsense(w, 0, PORT_NAME, 1)).on(Multiport)),
    Row("C0041", "a port that is neither open nor closed", differs(Kept, Refused, |w| says_nonsense(w, 0, PORT_OPEN, 7)).on(Multiport)),
    Row("C0042", "output that lies in the registers of a device", plays(Refused, |w| hurt_first(w, TX, IN_REGISTERS))),
    Row("C0043", "a driver that is ready hears of its ports", plays(Holds, |w| {
        assert!(!w.is_multiport() || greeting(w).contains(&(0, DEVICE_ADD, 0)));
        Holds
    }).on(Multiport)),
    Row("C0044", "a port that is ready hears what it is", plays(Holds, |w| {
        assert!(!w.is_multiport() || greeting(w).iter().any(|told| told.1 == CONSOLE_PORT));
        Holds
    }).on(Multiport)),
    Row("C0045", "a port is told of before anything else of it", plays(Holds, |w| {
        assert!(!w.is_multiport() || greeting(w)[0] == (0, DEVICE_ADD, 0));
        Holds
    }).on(Multiport)),
    Row("C0046", "a port that is a console is told to be one", plays(Holds, |w| {
        assert!(!w.is_multiport() || greeting(w).contains(&(0, CONSOLE_PORT, 1)));
        Holds
    }).on(Multiport)),
    Row("C0047", "a console with another size", plays(Holds, |w| {
        w.host.ports.as_ref().unwrap().resize(0, Size { cols: 132, rows: 43 }).unwrap();
        if w.is_multiport() {
            assert!(w.hear().contains(&(0, RESIZE, 0)));
        }
        Holds
    }).on(Multiport)),
    Row("C0048", "a port is closed and opened again", differs(Kept, Served, |w| {
        let closed = w.say(0, PORT_OPEN, 0);
        assert_eq!(w.say(0, PORT_OPEN, 1), closed);
        closed
    }).on(Multiport)),
    Row("C0049", "output after a reset", plays(Served, |w| {
        w.restart();
        puts_out(w, 8)
    })),
    Row("C0050", "output in two buffers of different lengths", plays(Served, |w| {
        w.guest.put(REQUEST, &[b'a'; 100]);
        let seen = w.offer(TX, &[readable(REQUEST, 1), readable(REQUEST + 1, 99)]);
        assert_eq!(w.peer().output(), [b'a'; 100]);
        seen
    })),
    Row("C0051", "output of one byte", plays(Served, |w| puts_out(w, 1))),
    Row("C0052", "output of 128 bytes", plays(Served, |w| puts_out(w, 128))),
    Row("C0053", "output of a page", plays(Served, |w| puts_out(w, 4096))),
    Row("C0054", "room for input that passes the last address", plays(Refused, |w| hurt_first(w, RX, Wraps))),
    Row("C0055", "output that passes the last address", plays(Refused, |w| hurt_first(w, TX, Wraps))),
    Row("C0056", "a table of output that goes on beyond its end", plays(Refused, |w| tabled(w, TX, Entry(NextOut)))),
    Row("C0057", "a table of output as long as the ring", differs(Refused, Served, |w| tabled(w, TX, Entries(SIZE)))),
    Row("C0200", "a pause while output is put out", plays(Holds, |w| {
        w.guest.transport().pause();
        let good = w.good(TX);
        assert_eq!(w.offer(TX, &good), Kept);
        assert_eq!(w.peer().output(), b"");
        w.guest.transport().resume();
        w.guest.transport().process(QueueIndex(TX));
        assert_eq!(w.guest.used(TX).len(), 1);
        assert_eq!(w.peer().output(), b"hello");
        Holds
    })),
];
