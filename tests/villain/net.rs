//! A driver of a network device.

use devisor::virtio::net::{Header, NetFrame};

use crate::{
    both::{ANSWER, REQUEST},
    driver::Seen,
    ring::{readable, writable},
    world::{MAC, OTHER, World},
};

pub const RX: u16 = 0;
pub const TX: u16 = 1;

pub const F_MQ: u64 = 1 << 22;
pub const F_HASH_REPORT: u64 = 1 << 57;
pub const F_RSS: u64 = 1 << 60;

pub const NEEDS_CSUM: u8 = 1;
pub const TCPV4: u8 = 1;
pub const UDP: u8 = 3;
pub const TCPV6: u8 = 4;
pub const UDP_L4: u8 = 5;
pub const ECN: u8 = 0x80;

pub const OK: Seen = Seen::Says(0);
pub const ERR: Seen = Seen::Says(1);

// Classes of commands, and some of their commands.
pub const MODES: u8 = 0;
pub const PROMISC: u8 = 0;
pub const ALLMULTI: u8 = 1;
pub const NOMULTI: u8 = 3;
pub const NOBCAST: u8 = 5;
pub const MACS: u8 = 1;
pub const TABLE_SET: u8 = 0;
pub const ADDR_SET: u8 = 1;
pub const VLAN: u8 = 2;
pub const ADD: u8 = 0;
pub const DEL: u8 = 1;
pub const ANNOUNCE: u8 = 3;
pub const STEERING: u8 = 4;
pub const PAIRS_SET: u8 = 0;
pub const RSS_CONFIG: u8 = 1;
pub const HASH_CONFIG: u8 = 2;
pub const OFFLOADS: u8 = 5;
pub const COALESCING: u8 = 6;
pub const TX_SET: u8 = 0;
pub const RX_SET: u8 = 1;
pub const VQ_SET: u8 = 2;
pub const STATISTICS: u8 = 8;

/// Longer data than a request's.
const LARGE: u64 = 0xb_0000;

/// A frame of so many bytes to somebody else.
pub fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
    for (place, byte) in frame.iter_mut().zip(OTHER.into_iter().chain(MAC).chain([0x88, 0xb5])) {
        *place = byte;
    }
    frame
}

/// What asks for segments of 1000 bytes.
pub fn segments(kind: u8) -> Header {
    Header {
        flags: NEEDS_CSUM,
        gso_type: kind,
        gso_size: 1000,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: if kind == UDP || kind == UDP_L4 { 6 } else { 16 },
        num_buffers: 0,
    }
}

/// A configuration of hashes.
pub fn hashes(types: u32, key: u8) -> Vec<u8> {
    let mut data = types.to_le_bytes().to_vec();
    data.extend([0; 8]);
    data.push(key);
    data.extend(vec![0x6d; key.into()]);
    data
}

/// A configuration of RSS, whose table says to have `mask` and one entries and has `entries`.
pub fn rss(types: u32, mask: u16, entries: u16, key: u8) -> Vec<u8> {
    let mut data = types.to_le_bytes().to_vec();
    data.extend(mask.to_le_bytes());
    data.extend([0; 2]);
    data.extend(vec![0; 2 * usize::from(entries)]);
    data.extend(1_u16.to_le_bytes());
    data.push(key);
    data.extend(vec![0x6d; key.into()]);
    data
}

/// Coalescing parameters of a queue.
pub fn of_queue(queue: u16, packets: u32, usecs: u32) -> Vec<u8> {
    let mut data = queue.to_le_bytes().to_vec();
    data.extend([0; 2]);
    data.extend(packets.to_le_bytes());
    data.extend(usecs.to_le_bytes());
    data
}

impl World {
    /// The control queue, or the one that would be it.
    pub fn control(&self) -> u16 {
        if self.has(F_MQ | F_RSS) { 6 } else { 2 }
    }

    pub fn header_len(&self) -> usize {
        if self.has(F_HASH_REPORT) { 20 } else { 12 }
    }

    /// A packet whose header begins with these bytes, before a frame of that length.
    pub fn packet(&self, header: &[u8], len: usize) -> Vec<u8> {
        let mut packet = header.to_vec();
        packet.resize(self.header_len(), 0);
        packet.extend(frame(len));
        packet
    }

    /// Sends these bytes.
    pub fn transmit(&mut self, packet: &[u8]) -> Seen {
        self.transmit_on(TX, packet)
    }

    pub fn transmit_on(&mut self, queue: u16, packet: &[u8]) -> Seen {
        let at = if packet.len() > 0x4000 { LARGE } else { REQUEST };
        self.guest.put(at, packet);
        self.offer(queue, &[readable(at, packet.len() as u32)])
    }

    /// Sends a frame with this header. Whether it goes out as it is, or not at all.
    pub fn sends(&mut self, header: Header, len: usize) -> Seen {
        let packet = self.packet(&header.to_bytes(), len);
        let seen = self.transmit(&packet);
        let taken = self.taken();
        match seen {
            Seen::Served => assert_eq!(taken.iter().map(|taken| &taken.data).collect::<Vec<_>>(), [&frame(len)]),
            _ => assert!(taken.is_empty(), "{taken:?}"),
        }
        seen
    }

    /// A frame comes for the guest.
    pub fn comes(&self, len: usize) {
        let mut data = frame(len);
        data[..6].copy_from_slice(&MAC);
        let header = Header::default();
        assert!(self.wire().put(NetFrame { header, data }));
        self.guest.transport().run();
    }

    /// Room for frames, and one of 60 bytes in it: its header.
    pub fn receives(&mut self, len: u32) -> Vec<u8> {
        self.guest.put(ANSWER, &[0xee; 2048]);
        assert_eq!(self.offer(RX, &[writable(ANSWER, len)]), Seen::Kept);
        self.comes(60);
        let header = self.header_len();
        assert_eq!(self.guest.used(RX), [60 + header as u32]);
        let got = self.guest.get(ANSWER, 60 + header);
        assert_eq!(got[header + 6..], frame(60)[6..]);
        got[..header].to_vec()
    }

    /// What a command is answered with.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> Seen {
        self.command_bytes(&[&[class, command], data].concat())
    }

    pub fn command_bytes(&mut self, bytes: &[u8]) -> Seen {
        self.guest.put(REQUEST, bytes);
        self.guest.put(ANSWER, &[0xee]);
        let queue = self.control();
        match self.offer(queue, &[readable(REQUEST, bytes.len() as u32), writable(ANSWER, 1)]) {
            Seen::Served => Seen::Says(self.guest.get(ANSWER, 1)[0].into()),
            other => other,
        }
    }

    pub fn net_config(&self, offset: u64, len: usize) -> u64 {
        self.guest.config(offset, len)
    }
}
