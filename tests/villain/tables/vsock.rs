//! V: the socket device (virtio 1.2, section 5.10).

use devisor::virtio::{
    QueueIndex,
    vsock::{SocketKind, VsockOptions},
};

use crate::{
    both::{ANSWER, REQUEST as AT},
    driver::{
        Row,
        Seen::{Holds, Kept, Refused, Served},
        differs, elsewhere, plays,
    },
    ring::{readable, writable},
    rings::*,
    vsock::*,
    world::World,
};

use super::HOTPLUG;

/// A packet that costs the connection it belongs to.
fn ends(w: &mut World, packet: &Packet) -> crate::driver::Seen {
    answered_when_connected(w, packet, &[RST])
}

/// A type that there is not, in a packet that asks for a connection.
/// Datagrams are a proposal: no feature, and a type like any other that does not exist.
fn datagrams(w: &mut World) -> crate::driver::Seen {
    assert_eq!(w.guest.offered() & 1 << 3, 0);
    unknown_type(w, 3)
}

fn unknown_type(w: &mut World, kind: u16) -> crate::driver::Seen {
    answered(w, &packet(REQUEST).with(|p| p.kind = kind), &[RST])
}

/// A packet that says that it comes from there.
fn foreign(w: &mut World, cid: u64) -> crate::driver::Seen {
    w.connect(1000);
    let seen = w.send(&data(b"x").with(|p| p.src_cid = cid));
    assert_eq!((w.ops(), w.host_reads()), (vec![], vec![]));
    seen
}

/// Data in a chain whose first piece is there, and the second wherever.
fn pieces(w: &mut World, len: u32, second: (u64, u32), third: (u64, u32)) -> crate::driver::Seen {
    w.connect(1000);
    w.guest.put(AT, &data(&[]).with(|p| p.len = len).bytes());
    let seen = w.offer(
        TX,
        &[
            readable(AT, 44),
            readable(second.0, second.1),
            readable(third.0, third.1),
        ],
    );
    assert_eq!((w.ops(), w.host_reads()), (vec![], vec![]));
    seen
}

/// Connects, sends and says that it ends so.
fn shut_down(w: &mut World, flags: u32, ops: &[u16]) -> crate::driver::Seen {
    w.connect(1000);
    assert_eq!(w.ask(&data(b"bye")), [0; 0]);
    let seen = answered(w, &packet(SHUTDOWN).with(|p| p.flags = flags), ops);
    assert_eq!(w.host_reads(), b"bye");
    seen
}

/// Room for packets in which one is to arrive, and cannot.
fn bad_room(w: &mut World, damage: Damage) -> crate::driver::Seen {
    assert_eq!(hurt_first(w, RX, damage), Kept, "nobody has looked at it");
    assert_eq!(w.send(&data(b"x")), Served);
    assert_eq!((w.guest.used(RX), w.malformed(RX)), (vec![0], 1));
    assert_eq!(w.ops(), [RST], "it is in the next one");
    Refused
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("V0001", "credit that is said to be more than anybody has", plays(Holds, |w| {
        w.connect(1000);
        answered(w, &packet(CREDIT_UPDATE).with(|p| (p.buf_alloc, p.fwd_cnt) = (u32::MAX, u32::MAX)), &[])
    })),
    Row("V0002", "an operation that does not exist", plays(Holds, |w| ends(w, &packet(99)))),
    Row("V0003", "a guest that connects to itself", plays(Holds, |w| answered(w, &packet(REQUEST).with(|p| p.dst_cid = CID), &[RST]))),
    Row("V0004", "a connection that is asked for twice", plays(Holds, |w| ends(w, &packet(REQUEST)))),
    Row("V0005", "more data than the host has said it has room for", plays(Holds, |w| {
        w.connect(1000);
        let mut ops = Vec::new();
        // 256 KiB are room in the device, and nobody reads.
        for _ in 0..6 {
            ops.extend(w.ask(&data(&[1; 0xf000])));
        }
        assert_eq!(ops.last(), Some(&RST));
        Holds
    })),
    Row("V0006", "data after it was said that there is no more", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&packet(SHUTDOWN).with(|p| p.flags = 2)), [0; 0]);
        answered(w, &data(b"after all"), &[RST])
    })),
    Row("V0007", "data from who has no room for any", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&data(b"x").with(|p| p.buf_alloc = 0)), [0; 0]);
        assert_eq!(w.host_reads(), b"x");
        Holds
    })),
    Row("V0008", "a packet from another guest", plays(Refused, |w| foreign(w, 4))),
    Row("V0009", "a packet from an address that is reserved", plays(Refused, |w| foreign(w, 1))),
    Row("V0010", "data of a connection that there is not", plays(Holds, |w| answered(w, &data(b"x"), &[RST]))),
    Row("V0011", "packets from who leaves no room for answers", elsewhere("tests/vsock/credit.rs::the_guests_packets_are_taken_while_it_gives_no_room_for_answers")),
    Row("V0012", "data of a connection that was reset", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&packet(RST)), [0; 0]);
        answered(w, &data(b"late"), &[RST])
    })),
    Row("V0013", "a type that does not exist", plays(Holds, |w| unknown_type(w, 99))),
    Row("V0014", "an end with hints that do not exist", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&packet(SHUTDOWN).with(|p| p.flags = 0xffff_fffc)), [0; 0]);
        // It is none.
        assert_eq!(w.ask(&data(b"x")), [0; 0]);
        assert_eq!(w.host_reads(), b"x");
        Holds
    })),
    Row("V0015", "a payload that is said to be longer than it is", elsewhere("tests/vsock/credit.rs::a_packet_as_long_as_a_number_can_say_loses_the_connection_and_no_memory")),
    Row("V0016", "a connection to port 0", plays(Holds, |w| answered(w, &packet(REQUEST).with(|p| p.dst_port = 0), &[RST]))),
    Row("V0017", "connections from many ports to one", plays(Holds, |w| {
        (0..20).for_each(|port| w.connect(port));
        Holds
    })),
    Row("V0018", "a connection from who has no room", plays(Holds, |w| answered(w, &packet(REQUEST).with(|p| p.buf_alloc = 0), &[RESPONSE, CREDIT_REQUEST]))),
    Row("V0019", "a reset of a connection that there is not", plays(Holds, |w| answered(w, &packet(RST), &[]))),
    Row("V0020", "data of no bytes", plays(Holds, |w| answered_when_connected(w, &packet(RW), &[]))),
    Row("V0021", "room that shrinks to nothing", plays(Holds, |w| answered_when_connected(w, &packet(CREDIT_UPDATE).with(|p| p.buf_alloc = 0), &[]))),
    Row("V0022", "a question for credit without a connection", plays(Holds, |w| answered(w, &packet(CREDIT_REQUEST), &[RST]))),
    Row("V0023", "an answer that nobody asked for", plays(Holds, |w| answered(w, &packet(RESPONSE), &[RST]))),
    Row("V0024", "more data than credit, packet by packet", elsewhere("tests/vsock/credit.rs::a_guest_that_sends_more_than_there_is_room_for_loses_the_connection")),
    Row("V0025", "a guest that says that it is the host", plays(Refused, |w| foreign(w, HOST))),
    Row("V0026", "a connection to the last port", plays(Holds, |w| answered(w, &packet(REQUEST).with(|p| p.dst_port = u32::MAX), &[RST]))),
    Row("V0027", "more bytes forwarded than were sent", elsewhere("tests/vsock/credit.rs::a_guest_that_has_forwarded_more_than_it_got_has_no_room")),
    Row("V0028", "a reset after an end", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&packet(SHUTDOWN).with(|p| p.flags = 2)), [0; 0]);
        answered(w, &packet(RST), &[])
    })),
    Row("V0029", "data with flags that mean nothing", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&data(b"x").with(|p| p.flags = u32::MAX)), [0; 0]);
        assert_eq!(w.host_reads(), b"x");
        Holds
    })),
    Row("V0030", "a flood of connections", elsewhere("tests/vsock/refusals.rs::a_flood_of_connections_leaves_nothing_behind")),
    Row("V0031", "a payload longer than its descriptor", plays(Holds, |w| {
        w.connect(1000);
        w.guest.put(AT, &data(&[]).with(|p| p.len = 100).bytes());
        assert_eq!(w.offer(TX, &[readable(AT, 44), readable(AT + 64, 8)]), Refused);
        assert_eq!(w.ops(), [RST]);
        Holds
    })),
    Row("V0032", "messages that were not agreed on", plays(Holds, |w| {
        let there = w.has(F_SEQPACKET);
        answered(w, &packet(REQUEST).with(|p| p.kind = SEQPACKET), &[if there { RESPONSE } else { RST }])
    })),
    Row("V0033", "credit for a connection that ends", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&packet(SHUTDOWN).with(|p| p.flags = 2)), [0; 0]);
        answered(w, &packet(CREDIT_UPDATE), &[])
    })),
    Row("V0034", "a packet from the address of anybody", plays(Refused, |w| foreign(w, 0xffff_ffff))),
    Row("V0035", "data in both directions", plays(Holds, |w| {
        w.connect(1000);
        let socket = w.sockets().accept(crate::world::LISTENER, SocketKind::Stream).unwrap();
        socket.write(b"down");
        assert_eq!(w.ask(&data(b"up")), [RW]);
        assert_eq!(socket.read(), b"up");
        Holds
    })),
    Row("V0036", "a message of no bytes", plays(Holds, |w| {
        if w.has(F_SEQPACKET) {
            assert_eq!(w.ask(&packet(REQUEST).with(|p| p.kind = SEQPACKET)), [RESPONSE]);
            assert_eq!(w.ask(&packet(RW).with(|p| (p.kind, p.flags) = (SEQPACKET, 1))), [0; 0]);
            return Holds;
        }
        answered(w, &packet(RW).with(|p| (p.kind, p.flags) = (SEQPACKET, 1)), &[RST])
    })),
    Row("V0037", "a buffer as large as a number can say", elsewhere("tests/vsock/credit.rs::counters_wrap_and_buffers_may_be_as_large_as_a_number_can_say")),
    Row("V0038", "connections that are reset and asked for again at once", plays(Holds, |w| {
        for _ in 0..50 {
            w.connect(1000);
            assert_eq!(w.ask(&packet(RST)), [0; 0]);
            w.host_reads();
        }
        Holds
    })),
    Row("V0039", "a count of bytes that passes its end", elsewhere("tests/vsock/credit.rs::counters_wrap_and_buffers_may_be_as_large_as_a_number_can_say")),
    Row("V0040", "a buffer for events waits for one", plays(Kept, |w| w.offer(EVENT, &[writable(ANSWER, 8)]))),
    Row("V0041", "a packet of zeros", plays(Refused, |w| {
        w.guest.put(AT, &[0; 44]);
        w.offer(TX, &[readable(AT, 44)])
    })),
    Row("V0042", "a header in a descriptor that is longer", plays(Served, |w| {
        w.guest.put(AT, &packet(RST).bytes());
        w.offer(TX, &[readable(AT, 4096)])
    })),
    Row("V0043", "a packet while a buffer for events waits", plays(Holds, |w| {
        assert_eq!(w.offer(EVENT, &[writable(ANSWER, 8)]), Kept);
        answered(w, &packet(REQUEST), &[RESPONSE])
    })),
    Row("V0044", "the last type that can be said", plays(Holds, |w| unknown_type(w, u16::MAX))),
    Row("V0045", "connections from more ports than there may be", elsewhere("tests/vsock/credit.rs::connections_have_a_bound_and_the_hosts_wait")),
    Row("V0046", "packets that wait for credit", elsewhere("tests/vsock/credit.rs::what_the_host_has_no_room_for_is_held_and_forwarded_when_it_has")),
    Row("V0047", "a datagram", plays(Holds, |w| unknown_type(w, 3))),
    Row("V0048", "as many buffers for events as the ring has", plays(Kept, |w| full(w, EVENT))),
    Row("V0049", "three packets with one kick", plays(Served, |w| several(w, TX, 3))),
    Row("V0050", "connections from ten ports", plays(Holds, |w| {
        (1..=10).for_each(|port| w.connect(port));
        Holds
    })),
    Row("V0051", "a connection, data and credit", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&data(b"x")), [0; 0]);
        answered(w, &packet(CREDIT_REQUEST), &[CREDIT_UPDATE])
    })),
    Row("V0052", "a request for a connection with a payload", plays(Holds, |w| {
        answered(w, &packet(REQUEST).with(|p| (p.len, p.data) = (4, b"junk".to_vec())), &[RESPONSE])
    })),
    Row("V0053", "a packet longer than the buffer of who sends it", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&data(b"hello").with(|p| p.buf_alloc = 4)), [0; 0]);
        assert_eq!(w.host_reads(), b"hello");
        Holds
    })),
    Row("V0054", "a buffer for events that is too short", plays(Holds, |w| {
        w.connect(1000);
        w.moved();
        // The event that tells of the move has no room in it.
        assert_eq!(w.offer(EVENT, &[writable(ANSWER, 3)]), Refused);
        assert_eq!(w.offer(EVENT, &[writable(ANSWER, 4)]), Served);
        assert_eq!(w.guest.get(ANSWER, 4), [0; 4]);
        Holds
    })),
    Row("V0055", "a connection of a type that nothing implies", plays(Holds, |w| unknown_type(w, 3))),
    Row("V0056", "a connection of type 0", plays(Holds, |w| unknown_type(w, 0))),
    Row("V0057", "a connection of a type that nobody knows", plays(Holds, |w| unknown_type(w, 0x55))),
    Row("V0058", "an end in both directions", plays(Holds, |w| shut_down(w, 3, &[RST]))),
    Row("V0059", "credit of no bytes", plays(Holds, |w| {
        w.connect(1000);
        let socket = w.sockets().accept(crate::world::LISTENER, SocketKind::Stream).unwrap();
        assert_eq!(w.ask(&packet(CREDIT_UPDATE).with(|p| p.buf_alloc = 0)), [0; 0]);
        socket.write(b"waits");
        assert_eq!(w.ops(), [CREDIT_REQUEST]);
        answered(w, &packet(CREDIT_UPDATE), &[RW])
    })),
    Row("V0060", "an answer out of nowhere", plays(Holds, |w| answered(w, &packet(RESPONSE).from(77), &[RST]))),
    Row("V0061", "room for packets that leaves memory at its end", plays(Refused, |w| bad_room(w, PastMemory))),
    Row("V0062", "data of a type that there is not", plays(Holds, |w| answered_when_connected(w, &data(b"x").with(|p| p.kind = 9), &[RST]))),
    Row("V0063", "a payload that is said to be shorter than it is", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&data(b"abcdef").with(|p| p.len = 3)), [0; 0]);
        assert_eq!(w.host_reads(), b"abc");
        Holds
    })),
    Row("V0064", "a reset out of nowhere", plays(Holds, |w| answered(w, &packet(RST).from(77), &[]))),
    Row("V0065", "an end of a connection that was not answered", plays(Holds, |w| answered(w, &packet(SHUTDOWN).with(|p| p.flags = 3), &[RST]))),
    Row("V0066", "a payload as long as a number can say", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.send(&data(b"x").with(|p| p.len = u32::MAX)), Refused);
        assert_eq!(w.ops(), [RST]);
        Holds
    })),
    Row("V0067", "data to the guest itself", plays(Holds, |w| answered(w, &data(b"x").with(|p| p.dst_cid = CID), &[RST]))),
    Row("V0068", "a count of bytes beyond all that was sent", plays(Holds, |w| answered_when_connected(w, &packet(CREDIT_UPDATE).with(|p| p.fwd_cnt = u32::MAX / 2), &[]))),
    Row("V0069", "a header that lies in the registers of a device", plays(Refused, |w| hurt_first(w, TX, IN_REGISTERS))),
    Row("V0070", "the guest's address is read", plays(Holds, |w| {
        assert_eq!(w.guest.config(0, 8), CID);
        Holds
    })),
    Row("V0071", "buffers for events of all lengths wait", plays(Kept, |w| {
        w.offer(EVENT, &[writable(ANSWER, 4)]);
        w.offer(EVENT, &[writable(ANSWER, 4096)])
    })),
    Row("V0072", "datagrams and the credit of others", plays(Holds, datagrams)),
    Row("V0073", "datagrams from their first to their last", plays(Holds, datagrams)),
    Row("V0074", "a header in many pieces", plays(Served, |w| {
        w.guest.put(AT, &packet(RST).bytes());
        let pieces: Vec<_> = (0..44).map(|at| readable(AT + at, 1)).collect();
        w.offer(TX, &pieces)
    })),
    Row("V0075", "messages and records with their ends", elsewhere("tests/vsock/seqpackets.rs::messages_and_records_of_the_guest_keep_their_boundaries")),
    Row("V0076", "data in a datagram", plays(Holds, |w| answered(w, &data(b"x").with(|p| p.kind = 3), &[RST]))),
    Row("V0077", "a message in several packets", elsewhere("tests/vsock/seqpackets.rs::messages_and_records_of_the_guest_keep_their_boundaries")),
    Row("V0078", "an address that is the guest's own", plays(Holds, |w| {
        let cid = u64::from(VsockOptions::default().guest_cid);
        assert_eq!(w.guest.config(0, 4) | w.guest.config(4, 4) << 32, cid);
        Holds
    })),
    Row("V0079", "credit that is right", plays(Holds, |w| answered_when_connected(w, &packet(CREDIT_UPDATE), &[]))),
    Row("V0080", "data that is right", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&data(b"data")), [0; 0]);
        assert_eq!(w.host_reads(), b"data");
        Holds
    })),
    Row("V0081", "a reset after an end in both directions", plays(Holds, |w| {
        shut_down(w, 3, &[RST]);
        answered(w, &packet(RST), &[])
    })),
    Row("V0082", "three connections at once", plays(Holds, |w| {
        [1, 2, 3].into_iter().for_each(|port| w.connect(port));
        for port in [1, 2, 3] {
            assert_eq!(w.ask(&data(b"x").from(port)), [0; 0]);
        }
        assert_eq!(w.host_reads(), b"xxx");
        Holds
    })),
    Row("V0083", "a question for credit", plays(Holds, |w| answered_when_connected(w, &packet(CREDIT_REQUEST), &[CREDIT_UPDATE]))),
    Row("V0084", "an end of receiving alone", plays(Holds, |w| shut_down(w, 1, &[]))),
    Row("V0085", "an end of sending alone", plays(Holds, |w| shut_down(w, 2, &[]))),
    Row("V0086", "a connection from its beginning to its end", plays(Holds, |w| shut_down(w, 3, &[RST]))),
    Row("V0087", "a connection that is reset at once", plays(Holds, |w| answered_when_connected(w, &packet(RST), &[]))),
    Row("V0088", "a large payload", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&data(&[7; 0xf000])), [0; 0]);
        assert_eq!(w.host_reads(), [7; 0xf000]);
        Holds
    })),
    Row("V0089", "two packets of data", plays(Holds, |w| {
        w.connect(1000);
        assert_eq!(w.ask(&data(b"one")), [0; 0]);
        assert_eq!(w.ask(&data(b"two")), [0; 0]);
        assert_eq!(w.host_reads(), b"onetwo");
        Holds
    })),
    Row("V0090", "data on two connections", plays(Holds, |w| {
        [1, 2].into_iter().for_each(|port| w.connect(port));
        assert_eq!(w.ask(&data(b"one").from(1)), [0; 0]);
        assert_eq!(w.ask(&data(b"two").from(2)), [0; 0]);
        assert_eq!(w.host_reads(), b"onetwo");
        Holds
    })),
    Row("V0091", "an end of a connection that there is not", plays(Holds, |w| answered(w, &packet(SHUTDOWN), &[RST]))),
    Row("V0092", "a payload that passes the last address", plays(Refused, |w| pieces(w, 0x1000, (u64::MAX - 0xff, 0x1000), (AT, 0)))),
    Row("V0093", "a payload whose first piece passes the last address", plays(Refused, |w| pieces(w, 0x2200, (u64::MAX - 0xfff, 0x2000), (AT + 64, 0x200)))),
    Row("V0094", "a second piece that begins where the first would have come around", plays(Refused, |w| pieces(w, 0x400, (u64::MAX - 0xff, 0x200), (0x100, 0x200)))),
    Row("V0095", "room for packets that passes the last address", plays(Refused, |w| bad_room(w, Wraps))),
    Row("V0200", "a device that is plugged in while the machine runs", elsewhere(HOTPLUG)),
    Row("V0201", "a pause while data is sent", differs(Holds, Holds, |w| {
        w.connect(1000);
        w.guest.transport().pause();
        assert_eq!(w.send(&data(b"x")), Kept);
        assert_eq!(w.host_reads(), b"");
        w.guest.transport().resume();
        w.guest.transport().process(QueueIndex(TX));
        assert_eq!(w.guest.used(TX).len(), 1);
        Holds
    })),
];
