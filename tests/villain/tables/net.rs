//! N: the network device (virtio 1.2, section 5.1). Three pairs of queues, an MTU of 1500, and everything else that ours offers.

use devisor::virtio::net::Header;

use crate::{
    both::{ANSWER, REQUEST},
    driver::{
        Row,
        Seen::{self, Holds, Kept, Refused, Served},
        differs, elsewhere, plays, unread,
    },
    net::*,
    ring::{INDIRECT, NEXT, WRITE, readable, writable},
    rings::*,
    setup::{not_offered, not_offered_beyond},
    world::{MAC, OTHER, World},
};

use super::HOTPLUG;

/// An address and bits of a table of addresses.
fn table(entries: u32, addresses: &[[u8; 6]]) -> Vec<u8> {
    [&entries.to_le_bytes()[..], &addresses.concat(), &[0; 4]].concat()
}

/// A frame whose header asks for this. It is refused by who did not agree to any of it.
fn sends(w: &mut World, change: impl FnOnce(&mut Header), len: usize) -> Seen {
    let mut header = Header::default();
    change(&mut header);
    w.sends(header, len)
}

/// The same with segments.
fn large(w: &mut World, kind: u8, change: impl FnOnce(&mut Header)) -> Seen {
    let mut header = segments(kind);
    change(&mut header);
    w.sends(header, 1400)
}

/// The field is as it should be, whoever reads it.
fn config(w: &World, offset: u64, len: usize, value: u64) -> Seen {
    assert_eq!(w.net_config(offset, len), value);
    Holds
}

/// A feature is offered with that which it needs.
fn needs(w: &World, feature: u64, needed: u64) -> Seen {
    let offered = w.guest.offered();
    assert!(offered & 1 << feature == 0 || offered & needed != 0);
    Holds
}

/// Where whatever a driver can ask is asked.
const ANYTHING: &str = "tests/villain/sweep.rs::whatever_a_network_is_sent_asked_or_lent_it_lives_on";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("N0001", "a frame longer than any", plays(Refused, |w| sends(w, |_| (), 65_594))),
    Row("N0002", "a frame without a header", plays(Refused, |w| w.transmit(&[0; 8]))),
    Row("N0003", "segments of a kind that does not exist", plays(Refused, |w| large(w, 0x7f, |_| ()))),
    Row("N0004", "a checksum that belongs behind the frame", plays(Refused, |w| sends(w, |h| (h.flags, h.csum_start, h.csum_offset) = (NEEDS_CSUM, 14, 1000), 60))),
    Row("N0005", "room for a frame waits for one", plays(Holds, |w| {
        w.receives(2048);
        Holds
    })),
    Row("N0006", "a frame says how many buffers it has", plays(Holds, |w| {
        assert_eq!(w.receives(2048)[10..12], [1, 0]);
        Holds
    })),
    Row("N0007", "segments without a checksum", plays(Refused, |w| large(w, TCPV4, |h| h.flags = 0))),
    Row("N0008", "the place of a checksum that is not asked for", plays(Served, |w| sends(w, |h| (h.csum_start, h.csum_offset) = (14, 2), 60))),
    Row("N0009", "room for a frame that cannot be written", plays(Refused, |w| hurt_first(w, RX, Turned))),
    Row("N0010", "a frame that the device may write", plays(Refused, |w| hurt_first(w, TX, Turned))),
    Row("N0011", "a mode that was not agreed on", differs(Refused, OK, |w| w.command(MODES, PROMISC, &[1]))),
    Row("N0012", "an address that was not agreed on", differs(Refused, OK, |w| w.command(MACS, ADDR_SET, &OTHER))),
    Row("N0013", "a kick of a queue that there is not", plays(Holds, |w| {
        w.guest.kick(400);
        Holds
    })),
    Row("N0014", "more pairs than there are", differs(Refused, ERR, |w| w.command(STEERING, PAIRS_SET, &[0xff, 0xff]))),
    Row("N0015", "RSS that was not agreed on", differs(Refused, OK, |w| w.command(STEERING, RSS_CONFIG, &rss(2, 0, 1, 40)))),
    Row("N0016", "offloads that were not agreed on", differs(Refused, OK, |w| w.command(OFFLOADS, 0, &[0; 8]))),
    Row("N0017", "a frame beyond the MTU", plays(Served, |w| sends(w, |_| (), 1600))),
    Row("N0018", "a frame that says that its checksum was verified", plays(Served, |w| sends(w, |h| h.flags = 2, 60))),
    Row("N0019", "hashes of what is in a tunnel, which nobody offers", differs(Refused, ERR, |w| w.command(STEERING, HASH_CONFIG, &hashes(1 << 9, 40)))),
    Row("N0020", "coalescing that was not agreed on", differs(Refused, OK, |w| w.command(COALESCING, TX_SET, &[1, 0, 0, 0, 1, 0, 0, 0]))),
    Row("N0021", "a frame that says how many buffers it has", plays(Served, |w| sends(w, |h| h.num_buffers = 7, 60))),
    Row("N0022", "a class of commands that does not exist", differs(Refused, ERR, |w| w.command(99, 0, &[0]))),
    Row("N0023", "room for a frame of no bytes", plays(Refused, |w| hurt_first(w, RX, Len(0)))),
    Row("N0024", "a VLAN that was not agreed on", differs(Refused, OK, |w| w.command(VLAN, ADD, &[1, 0]))),
    Row("N0025", "room for less than a header", plays(Refused, |w| hurt_first(w, RX, Len(8)))),
    Row("N0026", "no pairs", differs(Refused, ERR, |w| w.command(STEERING, PAIRS_SET, &[0, 0]))),
    Row("N0027", "segments of a kind between those that exist", plays(Refused, |w| large(w, 2, |_| ()))),
    Row("N0028", "a command without data", differs(Refused, ERR, |w| w.command(MODES, PROMISC, &[]))),
    Row("N0029", "a checksum that begins behind the frame", plays(Refused, |w| sends(w, |h| (h.flags, h.csum_start) = (NEEDS_CSUM, 0xffff), 60))),
    Row("N0030", "a frame that says that it has no headers", plays(Served, |w| sends(w, |h| h.hdr_len = 0, 60))),
    Row("N0031", "room for one byte", plays(Refused, |w| hurt_first(w, RX, Len(1)))),
    Row("N0032", "a mode that does not exist", differs(Refused, ERR, |w| w.command(MODES, 99, &[1]))),
    Row("N0033", "a command whose answer has a place that cannot be written", plays(Refused, |w| {
        let control = w.control();
        hurt_last(w, control, Turned)
    })),
    Row("N0034", "a frame in writable buffers alone", plays(Refused, |w| w.offer(TX, &[writable(ANSWER, 12), writable(ANSWER + 12, 60)]))),
    Row("N0035", "as many frames as the ring has room for", plays(Served, |w| full(w, TX))),
    Row("N0036", "a kick with room for frames that do not come", plays(Kept, |w| several(w, RX, 4))),
    Row("N0037", "a header with a number of buffers by who did not ask for them", plays(Served, |w| sends(w, |h| h.num_buffers = 3, 60))),
    Row("N0038", "as many pairs as there can be anywhere", differs(Refused, ERR, |w| w.command(STEERING, PAIRS_SET, &[0, 0x80]))),
    Row("N0039", "room for a frame after what may be read", plays(Refused, |w| w.offer(RX, &[readable(REQUEST, 12), writable(ANSWER, 2048)]))),
    Row("N0040", "a frame of exactly the MTU", plays(Served, |w| sends(w, |_| (), 1514))),
    Row("N0041", "a command with more data than it has", differs(Refused, ERR, |w| w.command(MODES, PROMISC, &[1; 4096]))),
    Row("N0042", "segments that say that they have hardly any headers", differs(Refused, Served, |w| large(w, TCPV4, |h| h.hdr_len = 1))),
    Row("N0043", "room for a frame on the queue that sends", plays(Refused, |w| w.offer(TX, &[writable(ANSWER, 2048)]))),
    Row("N0044", "the first VLAN that there is not", differs(Refused, ERR, |w| w.command(VLAN, ADD, &4096_u16.to_le_bytes()))),
    Row("N0045", "a frame whose buffers are one", plays(Served, |w| {
        let packet = w.packet(&[], 60);
        w.guest.put(REQUEST, &packet);
        let len = packet.len() as u32;
        w.offer(TX, &[readable(REQUEST, len), readable(REQUEST, len)])
    })),
    Row("N0046", "an announcement that was not agreed on", differs(Refused, OK, |w| w.command(ANNOUNCE, 0, &[]))),
    Row("N0047", "speed and duplex are read by who did not ask for them", plays(Holds, |w| config(w, 12, 4, 1000))),
    Row("N0048", "little room, and a frame that needs more", plays(Holds, |w| {
        assert_eq!(w.offer(RX, &[writable(ANSWER, 64)]), Kept);
        w.comes(514);
        assert_eq!(w.guest.used(RX), [0_u32; 0], "it waits for more, or is dropped");
        assert_eq!(sends(w, |_| (), 514), Served);
        Holds
    })),
    Row("N0049", "frames on the second pair, as soon as it is there and once it is in use", differs(Refused, Served, |w| {
        let packet = w.packet(&[], 60);
        let before = w.transmit_on(3, &packet);
        w.command(STEERING, PAIRS_SET, &[2, 0]);
        assert_eq!(w.transmit_on(3, &packet), before);
        before
    })),
    Row("N0050", "a mode while frames are sent", differs(Refused, OK, |w| {
        assert_eq!(several(w, TX, 8), Served);
        w.command(MODES, PROMISC, &[1])
    })),
    Row("N0051", "RSS by hashes that nobody offers", differs(Refused, ERR, |w| w.command(STEERING, RSS_CONFIG, &rss(u32::MAX, 0, 1, 40)))),
    Row("N0052", "a frame of one byte", plays(Refused, |w| sends(w, |_| (), 1))),
    Row("N0053", "a table of more addresses than follow", differs(Refused, ERR, |w| w.command(MACS, TABLE_SET, &table(1000, &[OTHER])))),
    Row("N0054", "all groups", differs(Refused, OK, |w| w.command(MODES, ALLMULTI, &[1]))),
    Row("N0055", "segments with ECN", differs(Refused, Served, |w| large(w, TCPV4 | ECN, |_| ()))),
    Row("N0056", "segments of datagrams", differs(Refused, Served, |w| large(w, UDP_L4, |_| ()))),
    Row("N0057", "room for a frame in a table of its own", differs(Refused, Kept, |w| tabled(w, RX, Whole))),
    Row("N0058", "an address of zeros", differs(Refused, ERR, |w| w.command(MACS, ADDR_SET, &[0; 6]))),
    Row("N0059", "a frame to everybody", plays(Served, |w| {
        let mut packet = w.packet(&[], 60);
        let header = w.header_len();
        packet[header..header + 6].fill(0xff);
        w.transmit(&packet)
    })),
    Row("N0060", "offloads are taken back", differs(Refused, OK, |w| w.command(OFFLOADS, 0, &[0; 8]))),
    Row("N0061", "an announcement that nobody asked for", differs(Refused, OK, |w| w.command(ANNOUNCE, 0, &[]))),
    Row("N0062", "two pairs", differs(Refused, OK, |w| w.command(STEERING, PAIRS_SET, &[2, 0]))),
    Row("N0063", "a configuration of RSS by who did not ask for it", differs(Refused, OK, |w| w.command(STEERING, RSS_CONFIG, &rss(6, 1, 2, 40)))),
    Row("N0064", "a table of three entries", differs(Refused, ERR, |w| w.command(STEERING, RSS_CONFIG, &rss(2, 2, 3, 40)))),
    Row("N0065", "RSS by a hash that does not exist", differs(Refused, ERR, |w| w.command(STEERING, RSS_CONFIG, &rss(1 << 31, 0, 1, 40)))),
    Row("N0066", "no pairs, again", differs(Refused, ERR, |w| w.command(STEERING, PAIRS_SET, &[0, 0]))),
    Row("N0067", "a frame on a pair beyond those in use", differs(Refused, Served, |w| {
        let packet = w.packet(&[], 60);
        w.transmit_on(5, &packet)
    })),
    Row("N0068", "a frame on a pair that no command has enabled", differs(Refused, Served, |w| {
        let packet = w.packet(&[], 60);
        w.transmit_on(3, &packet)
    })),
    Row("N0069", "room for a frame in several buffers of one chain", plays(Holds, |w| {
        assert_eq!(w.offer(RX, &[writable(ANSWER, 20), writable(ANSWER + 20, 5), writable(ANSWER + 25, 1000)]), Kept);
        w.comes(60);
        assert_eq!(w.guest.used(RX), [60 + w.header_len() as u32]);
        Holds
    })),
    Row("N0070", "a command while frames come and go", elsewhere("tests/net/control.rs::commands_are_answered_in_order_while_frames_come_and_go")),
    Row("N0071", "the link is up, and frames go", plays(Served, |w| {
        config(w, 6, 2, 1);
        sends(w, |_| (), 60)
    })),
    Row("N0072", "RSS whose table says to be longer than it is", differs(Refused, ERR, |w| w.command(STEERING, RSS_CONFIG, &rss(1, 0xffff, 1, 40)))),
    Row("N0073", "frames to everybody's address", differs(Refused, OK, |w| w.command(MODES, PROMISC, &[1]))),
    Row("N0074", "frames to all groups", differs(Refused, OK, |w| w.command(MODES, ALLMULTI, &[1]))),
    Row("N0075", "a table of addresses", differs(Refused, OK, |w| w.command(MACS, TABLE_SET, &table(1, &[OTHER])))),
    Row("N0076", "a VLAN", differs(Refused, OK, |w| w.command(VLAN, ADD, &[100, 0]))),
    Row("N0077", "one pair", differs(Refused, OK, |w| w.command(STEERING, PAIRS_SET, &[1, 0]))),
    Row("N0078", "another address", differs(Refused, OK, |w| w.command(MACS, ADDR_SET, &OTHER))),
    Row("N0079", "the last class of commands that can be said", differs(Refused, ERR, |w| w.command(255, 0, &[0]))),
    Row("N0080", "no frames to everybody", differs(Refused, OK, |w| w.command(MODES, NOBCAST, &[1]))),
    Row("N0081", "the link is as it was", plays(Holds, |w| {
        config(w, 6, 2, 1);
        config(w, 6, 2, 1)
    })),
    Row("N0082", "an announcement is heard", elsewhere("tests/net/control.rs::the_driver_is_asked_to_announce_itself_until_it_has_heard")),
    Row("N0083", "an address that is set is read", plays(Holds, |w| {
        let mac = u64::from_le_bytes([OTHER[0], OTHER[1], OTHER[2], OTHER[3], OTHER[4], OTHER[5], 0, 0]);
        if w.command(MACS, ADDR_SET, &OTHER) == OK {
            assert_eq!(w.net_config(0, 4) | w.net_config(4, 2) << 32, mac);
        }
        Holds
    })),
    Row("N0084", "three commands with one kick", differs(Refused, Served, |w| {
        let control = w.control();
        several(w, control, 3)
    })),
    Row("N0085", "a frame of nearly 4 GiB", plays(Refused, |w| hurt_first(w, TX, Len(u32::MAX)))),
    Row("N0086", "fragments of datagrams with a checksum behind the frame", plays(Refused, |w| large(w, UDP, |h| h.csum_offset = 0xff00))),
    Row("N0087", "a table of no addresses", differs(Refused, OK, |w| w.command(MACS, TABLE_SET, &[0; 8]))),
    Row("N0088", "segments of datagrams over IPv4", differs(Refused, Served, |w| large(w, UDP_L4, |_| ()))),
    Row("N0089", "a frame to everybody from who wants none", plays(Served, |w| {
        w.command(MODES, NOBCAST, &[1]);
        let mut packet = w.packet(&[], 60);
        let header = w.header_len();
        packet[header..header + 6].fill(0xff);
        let seen = w.transmit(&packet);
        assert_eq!(w.taken().len(), 1);
        seen
    })),
    Row("N0090", "coalescing of what is sent", differs(Refused, OK, |w| w.command(COALESCING, TX_SET, &[8, 0, 0, 0, 50, 0, 0, 0]))),
    Row("N0091", "coalescing of what is received", differs(Refused, OK, |w| w.command(COALESCING, RX_SET, &[8, 0, 0, 0, 50, 0, 0, 0]))),
    Row("N0092", "coalescing of one queue", differs(Refused, OK, |w| w.command(COALESCING, VQ_SET, &of_queue(1, 8, 50)))),
    Row("N0093", "coalescing of a queue that there is not", differs(Refused, ERR, |w| w.command(COALESCING, VQ_SET, &of_queue(999, 8, 50)))),
    Row("N0094", "coalescing of nothing", differs(Refused, OK, |w| w.command(COALESCING, TX_SET, &[0; 8]))),
    Row("N0095", "coalescing is read", elsewhere("tests/net/control.rs::coalescing_is_kept_for_each_queue")),
    Row("N0096", "segments of datagrams over IPv6", differs(Refused, Served, |w| large(w, UDP_L4, |h| (h.hdr_len, h.csum_start) = (62, 54)))),
    Row("N0097", "segments of datagrams with a checksum behind the frame", plays(Refused, |w| large(w, UDP_L4, |h| h.csum_start = 0xffff))),
    Row("N0098", "segments of datagrams of no bytes", plays(Refused, |w| large(w, UDP_L4, |h| h.gso_size = 0))),
    Row("N0099", "segments of datagrams with more headers than frame", differs(Refused, Served, |w| large(w, UDP_L4, |h| h.hdr_len = 0xffff))),
    Row("N0100", "segments of datagrams that are right", differs(Refused, Served, |w| large(w, UDP_L4, |_| ()))),
    Row("N0101", "hashes of inner headers", differs(Refused, ERR, |w| w.command(STEERING, HASH_CONFIG, &hashes(0x200 | 1, 40)))),
    Row("N0102", "hashes by a key of no bytes", differs(Refused, OK, |w| w.command(STEERING, HASH_CONFIG, &hashes(1, 0)))),
    Row("N0103", "not known to us", unread(ANYTHING)),
    Row("N0104", "room for a frame with its hash", plays(Holds, |w| {
        let header = w.receives(2048);
        assert!(header[12.min(header.len())..].iter().all(|byte| *byte == 0));
        Holds
    })),
    Row("N0105", "no frames to everybody, by the further modes", differs(Refused, OK, |w| w.command(MODES, NOBCAST, &[1]))),
    Row("N0106", "no frames to groups, by the further modes", differs(Refused, OK, |w| w.command(MODES, NOMULTI, &[1]))),
    Row("N0107", "RSS towards a queue that is being reset", elsewhere("tests/net/multiqueue.rs::rss_drops_what_is_for_a_queue_that_is_being_reset")),
    Row("N0108", "pairs while a queue is reset", elsewhere("tests/net/multiqueue.rs::a_receive_queue_that_is_reset_is_passed_over_by_automatic_steering")),
    Row("N0109", "a table that says to be as long as can be", differs(Refused, ERR, |w| w.command(MACS, TABLE_SET, &table(u32::MAX, &[OTHER])))),
    Row("N0110", "the VLAN that is reserved", differs(Refused, OK, |w| w.command(VLAN, ADD, &4095_u16.to_le_bytes()))),
    Row("N0111", "an announcement by who cannot be asked for one", differs(Refused, OK, |w| w.command(ANNOUNCE, 0, &[]))),
    Row("N0112", "room for frames that leaves memory at its end", plays(Refused, |w| hurt_first(w, RX, PastMemory))),
    Row("N0113", "a header before no bytes of frame", plays(Refused, |w| {
        let header = w.header_len() as u32;
        w.guest.put(REQUEST, &[0; 20]);
        w.offer(TX, &[readable(REQUEST, header), readable(REQUEST, 0)])
    })),
    Row("N0114", "half a header", plays(Refused, |w| w.transmit(&[0; 5]))),
    Row("N0115", "room for a frame of nearly 4 GiB", plays(Refused, |w| hurt_first(w, RX, Len(u32::MAX)))),
    Row("N0116", "a mode that is neither on nor off", differs(Refused, ERR, |w| w.command(MODES, PROMISC, &[2]))),
    Row("N0117", "a checksum that begins behind the payload", plays(Refused, |w| sends(w, |h| (h.flags, h.csum_start) = (NEEDS_CSUM, 61), 60))),
    Row("N0118", "everybody's address as one's own", differs(Refused, ERR, |w| w.command(MACS, ADDR_SET, &[0xff; 6]))),
    Row("N0119", "segments of no bytes", plays(Refused, |w| large(w, TCPV4, |h| h.gso_size = 0))),
    Row("N0120", "a header that is the ring's own table", plays(Holds, |w| {
        // Whatever its bytes say, it is one frame or none.
        let seen = in_own_ring(w, TX, 0, |ring| ring.layout.descriptor_area);
        assert!(matches!(seen, Served | Refused) && w.taken().len() <= 1);
        Holds
    })),
    Row("N0121", "room for frames in the registers of a device", plays(Refused, |w| hurt_first(w, RX, IN_REGISTERS))),
    Row("N0122", "segments over IPv6 are offered with those over IPv4", plays(Holds, |w| needs(w, 12, 1 << 11))),
    Row("N0123", "ECN is offered with segments", plays(Holds, |w| needs(w, 13, 3 << 11))),
    Row("N0124", "fragments of datagrams are offered with checksums", plays(Holds, |w| needs(w, 14, 1))),
    Row("N0125", "statistics, which nobody offers", differs(Refused, ERR, |w| w.command(STATISTICS, 1, &[0; 8]))),
    Row("N0126", "lengths of headers are offered with a place to read them", plays(Holds, |w| {
        assert_eq!(w.guest.offered() & 1 << 59, 0);
        Holds
    })),
    Row("N0127", "a configuration of RSS by a driver of hashes", differs(Refused, OK, |w| w.command(STEERING, RSS_CONFIG, &rss(2, 0, 1, 40)))),
    Row("N0128", "a VLAN that was never added is taken away", differs(Refused, OK, |w| w.command(VLAN, DEL, &[9, 0]))),
    Row("N0129", "segments of datagrams are offered with checksums", plays(Holds, |w| needs(w, 56, 1))),
    Row("N0130", "a frame across what an IOMMU maps and does not", elsewhere("tests/iommu/faults.rs::a_fault_is_told_by_its_reason_direction_endpoint_and_address")),
    Row("N0131", "an answer of no bytes", plays(Refused, |w| {
        let control = w.control();
        hurt_last(w, control, Len(0))
    })),
    Row("N0132", "a header with everything in it", plays(Refused, |w| sends(w, |h| (h.flags, h.gso_type, h.gso_size) = (0xff, 0xff, 0xffff), 60))),
    Row("N0133", "the address is read", plays(Holds, |w| {
        assert_eq!((0..6).map(|at| w.net_config(at, 1) as u8).collect::<Vec<_>>(), MAC);
        Holds
    })),
    Row("N0134", "the status is read", plays(Holds, |w| config(w, 6, 2, 1))),
    Row("N0135", "no offloads", differs(Refused, OK, |w| w.command(OFFLOADS, 0, &[0; 8]))),
    Row("N0136", "the MTU is read", plays(Holds, |w| config(w, 10, 2, 1500))),
    Row("N0137", "a frame", plays(Served, |w| sends(w, |_| (), 60))),
    Row("N0138", "how many pairs there are", plays(Holds, |w| config(w, 8, 2, 3))),
    Row("N0139", "a mode is turned on", differs(Refused, OK, |w| w.command(MODES, PROMISC, &[1]))),
    Row("N0140", "two frames with one kick", plays(Served, |w| several(w, TX, 2))),
    Row("N0141", "a VLAN is added", differs(Refused, OK, |w| w.command(VLAN, ADD, &[7, 0]))),
    Row("N0142", "a checksum is left to the device", differs(Refused, Served, |w| sends(w, |h| (h.flags, h.csum_start, h.csum_offset) = (NEEDS_CSUM, 34, 6), 60))),
    Row("N0143", "an announcement was made", differs(Refused, OK, |w| w.command(ANNOUNCE, 0, &[]))),
    Row("N0144", "segments over IPv4", differs(Refused, Served, |w| large(w, TCPV4, |_| ()))),
    Row("N0145", "an address of a station", differs(Refused, OK, |w| w.command(MACS, ADDR_SET, &[2, 0, 0, 0, 0, 9]))),
    Row("N0146", "segments over IPv6", differs(Refused, Served, |w| large(w, TCPV6, |_| ()))),
    Row("N0147", "the one pair that there is", differs(Refused, OK, |w| w.command(STEERING, PAIRS_SET, &[1, 0]))),
    Row("N0148", "not known to us", unread(ANYTHING)),
    Row("N0149", "not known to us", unread(ANYTHING)),
    Row("N0150", "three frames with one kick", plays(Served, |w| several(w, TX, 3))),
    Row("N0151", "a header alone", plays(Refused, |w| sends(w, |_| (), 0))),
    Row("N0152", "a frame of 1500 bytes", plays(Served, |w| sends(w, |_| (), 1500))),
    Row("N0153", "not known to us", unread(ANYTHING)),
    Row("N0154", "not known to us", unread(ANYTHING)),
    Row("N0155", "a frame in two buffers", plays(Served, |w| {
        let packet = w.packet(&[], 60);
        w.guest.put(REQUEST, &packet);
        let seen = w.offer(TX, &[readable(REQUEST, 30), readable(REQUEST + 30, packet.len() as u32 - 30)]);
        assert_eq!(w.taken()[0].data, frame(60));
        seen
    })),
    Row("N0156", "not known to us", unread(ANYTHING)),
    Row("N0157", "not known to us", unread(ANYTHING)),
    Row("N0158", "not known to us", unread(ANYTHING)),
    Row("N0159", "speed and duplex are what they may be", plays(Holds, |w| {
        config(w, 12, 4, 1000);
        config(w, 16, 1, 1)
    })),
    Row("N0160", "coalescing of one queue is read", elsewhere("tests/net/control.rs::coalescing_is_kept_for_each_queue")),
    Row("N0161", "frames that were put together", plays(Holds, |w| not_offered(w, 61))),
    Row("N0162", "a device that stands by for another", plays(Holds, |w| not_offered(w, 62))),
    Row("N0163", "datagrams to be cut, from the network", plays(Holds, |w| needs(w, 54, 1 << 1))),
    Row("N0164", "not known to us", unread(ANYTHING)),
    Row("N0165", "statistics that were not agreed on", differs(Refused, ERR, |w| w.command(STATISTICS, 0, &[]))),
    Row("N0166", "coalescing of one queue that was not agreed on", differs(Refused, OK, |w| w.command(COALESCING, VQ_SET, &of_queue(0, 1, 1)))),
    Row("N0167", "several configurations of RSS", plays(Holds, |w| not_offered_beyond(w, 64))),
    Row("N0168", "an outer header", plays(Holds, |w| not_offered_beyond(w, 69))),
    Row("N0169", "IPsec", plays(Holds, |w| not_offered_beyond(w, 70))),
    Row("N0170", "not known to us", unread(ANYTHING)),
    Row("N0171", "segments in tunnels, to the network", plays(Holds, |w| not_offered_beyond(w, 67))),
    Row("N0172", "segments in tunnels, from the network", plays(Holds, |w| not_offered_beyond(w, 65))),
    Row("N0173", "not known to us", unread(ANYTHING)),
    Row("N0174", "datagrams over IPv6 to be cut, from the network", plays(Holds, |w| needs(w, 55, 1 << 1))),
    Row("N0175", "what statistics there are", plays(Holds, |w| not_offered(w, 50))),
    Row("N0176", "not known to us", unread(ANYTHING)),
    Row("N0177", "no frame says to be in a tunnel", plays(Holds, |w| {
        assert_eq!(w.receives(2048)[0] & !3, 0);
        Holds
    })),
    Row("N0178", "no frame says to be of IPsec", plays(Holds, |w| {
        assert_eq!(w.receives(2048)[..2], [0, 0]);
        Holds
    })),
    Row("N0179", "not known to us", unread(ANYTHING)),
    Row("N0180", "a frame that passes the last address", plays(Refused, |w| hurt_first(w, TX, Wraps))),
    Row("N0181", "a table of a frame that was not agreed on", differs(Refused, Served, |w| tabled(w, TX, Whole))),
    Row("N0182", "a frame that is its own continuation", plays(Refused, |w| hurt_first(w, TX, Loop))),
    Row("N0183", "a frame that goes on beyond the table", plays(Refused, |w| hurt_first(w, TX, NextOut))),
    Row("N0184", "a frame that lies nowhere", plays(Refused, |w| hurt_first(w, TX, NO_MEMORY))),
    Row("N0185", "a frame that is the ring's own table", plays(Holds, |w| {
        let seen = in_own_ring(w, TX, 0, |ring| ring.layout.descriptor_area + 16);
        assert!(matches!(seen, Served | Refused) && w.taken().len() <= 1);
        Holds
    })),
    Row("N0186", "a frame with flags that contradict each other", plays(Refused, |w| hurt_first(w, TX, Flags(NEXT | WRITE | INDIRECT)))),
    Row("N0187", "a chain with an empty buffer in it", plays(Served, |w| {
        let packet = w.packet(&[], 60);
        w.guest.put(REQUEST, &packet);
        let header = w.header_len() as u32;
        w.offer(TX, &[readable(REQUEST, header), readable(REQUEST, 0), readable(REQUEST + u64::from(header), 60)])
    })),
    Row("N0188", "a frame over all descriptors of the ring", plays(Served, |w| longest(w, TX))),
    Row("N0189", "a table of room that was not agreed on", differs(Refused, Kept, |w| tabled(w, RX, Whole))),
    Row("N0190", "room that is its own continuation", plays(Refused, |w| hurt_first(w, RX, Loop))),
    Row("N0191", "room that goes on beyond the table", plays(Refused, |w| hurt_first(w, RX, NextOut))),
    Row("N0192", "room that lies nowhere", plays(Refused, |w| hurt_first(w, RX, NO_MEMORY))),
    Row("N0193", "room with flags that contradict each other", plays(Refused, |w| hurt_first(w, RX, Flags(NEXT | WRITE | INDIRECT)))),
    Row("N0194", "room over all descriptors of the ring", plays(Kept, |w| longest(w, RX))),
    Row("N0195", "an empty table of a frame", plays(Refused, |w| tabled(w, TX, Bytes(0)))),
    Row("N0196", "a table of a frame that is its own continuation", plays(Refused, |w| tabled(w, TX, Entry(Loop)))),
    Row("N0197", "a table of a frame that ends within an entry", plays(Refused, |w| tabled(w, TX, Bytes(24)))),
    Row("N0198", "a table of a frame that goes on beyond its end", plays(Refused, |w| tabled(w, TX, Entry(NextOut)))),
    Row("N0199", "a table of a frame as long as the ring", differs(Refused, Served, |w| tabled(w, TX, Entries(SIZE)))),
    Row("N0200", "a device that is plugged in while the machine runs", elsewhere(HOTPLUG)),
    Row("N0201", "a frame with two tags of VLANs", plays(Served, |w| {
        let mut packet = w.packet(&[], 68);
        let at = w.header_len() + 12;
        packet[at..at + 8].copy_from_slice(&[0x88, 0xa8, 0, 100, 0x81, 0, 0, 200]);
        let seen = w.transmit(&packet);
        assert_eq!(w.taken()[0].data.len(), 68);
        seen
    })),
];
