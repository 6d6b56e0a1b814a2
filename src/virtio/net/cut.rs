//! Cutting large packets, for those who do not take them (virtio 1.2, section 5.1.6.2).

use super::{
    Header, MIN_FRAME,
    checksum::{self, sum},
    registers::header as bits,
};

/// A large packet, and how it is cut: an iterator over the frames that it comes to, with all checksums complete.
pub(super) struct Cut<'a> {
    /// Of the whole packet: what each frame begins with.
    headers: &'a [u8],
    payload: Payload<'a>,
    /// Where the IP header is.
    ip: usize,
    /// Where the one after it is.
    transport: usize,
    kind: Kind,
    /// Bytes of payload in each frame but the last.
    size: usize,
    /// Of the payload, what was cut.
    done: usize,
    index: u16,
}

/// Bytes, some of which were made anew.
enum Payload<'a> {
    Given(&'a [u8]),
    Made(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Segments of TCP.
    Tcp { v6: bool },
    /// Datagrams of UDP.
    Udp { v6: bool },
    /// Fragments of one datagram, over IPv4.
    Fragments,
    /// The same over IPv6, with an identification.
    Fragments6(u32),
}

/// A frame that a packet comes to.
pub(super) struct Piece<'a> {
    headers: &'a [u8],
    data: &'a [u8],
    ip: usize,
    transport: usize,
    kind: Kind,
    offset: usize,
    index: u16,
    last: bool,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
/// Bytes of an IPv6 fragment header.
const FRAGMENT_LEN: usize = 8;

const FIN_AND_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Where the IP header of a frame is, behind up to two VLAN tags, and whether it is of version 6.
fn find_ip(frame: &[u8]) -> Option<(usize, bool)> {
    let mut at = MIN_FRAME;
    for _ in 0..3 {
        match frame.get(at - 2..at)? {
            [0x08, 0x00] => return Some((at, false)),
            [0x86, 0xdd] => return Some((at, true)),
            [0x81, 0x00] | [0x88, 0xa8] => at += 4,
            _ => return None,
        }
    }
    None
}

/// Where the header after that of IP is, and of which protocol.
fn find_transport(frame: &[u8], ip: usize, v6: bool) -> Option<(usize, u8)> {
    let header = frame.get(ip..)?;
    if !v6 {
        let len = usize::from(header.first()? & 15) * 4;
        // Nothing that is a fragment already.
        let whole = be16(header.get(..20)?, 6) & 0x3fff == 0;
        return (header[0] >> 4 == 4 && len >= 20 && header.len() >= len && whole).then(|| (ip + len, header[9]));
    }
    let mut next = header.get(..40)?[6];
    let mut at = 40;
    // Hop-by-hop options, routing, destination options.
    for _ in 0..8 {
        if !matches!(next, 0 | 43 | 60) {
            return (header[0] >> 4 == 6).then_some((ip + at, next));
        }
        let option = header.get(at..at + 2)?;
        next = option[0];
        at += (usize::from(option[1]) + 1) * 8;
    }
    None
}

impl<'a> Cut<'a> {
    /// How `frame` is cut, of which `header` says that it is large: `None` if it is not of the kind that it says.
    pub fn new(header: &Header, frame: &'a [u8]) -> Option<Self> {
        let (ip, v6) = find_ip(frame)?;
        let (transport, protocol) = find_transport(frame, ip, v6)?;
        let mut size = usize::from(header.gso_size);
        let (kind, wanted, len) = match header.gso_type & !bits::GSO_ECN {
            bits::GSO_TCPV4 | bits::GSO_TCPV6 => {
                let len = usize::from(frame.get(transport + 12)? >> 4) * 4;
                let v6_wanted = header.gso_type & !bits::GSO_ECN == bits::GSO_TCPV6;
                (
                    Kind::Tcp { v6 },
                    TCP,
                    len.checked_sub(20).filter(|_| v6 == v6_wanted)? + 20,
                )
            }
            bits::GSO_UDP_L4 => (Kind::Udp { v6 }, UDP, 8),
            bits::GSO_UDP => {
                size &= !7;
                match v6 {
                    // Between the headers that are of all fragments and those that are not.
                    true if transport != ip + 40 => return None,
                    true => (Kind::Fragments6(identification(frame)), UDP, 0),
                    false => (Kind::Fragments, UDP, 0),
                }
            }
            _ => return None,
        };
        let place = if protocol == TCP { 16 } else { 6 };
        let is_it = header.needs_checksum()
            && usize::from(header.csum_start) == transport
            && usize::from(header.csum_offset) == place;
        if protocol != wanted || !is_it || size == 0 || frame.len() < transport + len.max(8) {
            return None;
        }
        let (headers, payload) = frame.split_at(transport + len);
        let payload = match kind {
            Kind::Fragments | Kind::Fragments6(_) => {
                // The checksum is of all of it.
                let mut whole = Header {
                    csum_start: 0,
                    csum_offset: 6,
                    ..*header
                };
                let mut made = payload.to_vec();
                checksum::complete(&mut whole, &mut made);
                Payload::Made(made)
            }
            _ => Payload::Given(payload),
        };
        Some(Self {
            headers,
            payload,
            ip,
            transport,
            kind,
            size,
            done: 0,
            index: 0,
        })
    }

    /// The next frame, if there is one.
    pub fn next(&mut self) -> Option<Piece<'_>> {
        let payload = match &self.payload {
            Payload::Given(bytes) => bytes,
            Payload::Made(bytes) => &bytes[..],
        };
        let rest = payload.len() - self.done;
        // A packet without a payload is one frame.
        if rest == 0 && self.index != 0 {
            return None;
        }
        let len = rest.min(self.size);
        let piece = Piece {
            headers: self.headers,
            data: &payload[self.done..self.done + len],
            ip: self.ip,
            transport: self.transport,
            kind: self.kind,
            offset: self.done,
            index: self.index,
            last: len == rest,
        };
        self.done += len;
        // An identification, which wraps; but it is not that of the first again.
        self.index = self.index.checked_add(1).unwrap_or(1);
        Some(piece)
    }
}

/// One that most likely is none of another datagram between the same stations.
fn identification(frame: &[u8]) -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(0x9e37_79b9, Relaxed) ^ sum(&frame[..frame.len().min(64)], 0)
}

impl Piece<'_> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        let extra = if let Kind::Fragments6(_) = self.kind {
            FRAGMENT_LEN
        } else {
            0
        };
        self.headers.len() + extra + self.data.len()
    }

    /// Writes it into `frame`, which is as long as it.
    pub fn write(&self, frame: &mut [u8]) {
        let (ip, transport) = (self.ip, self.transport);
        let data_at = frame.len() - self.data.len();
        frame[..self.headers.len()].copy_from_slice(self.headers);
        frame[data_at..].copy_from_slice(self.data);
        let len = frame.len();
        match self.kind {
            Kind::Tcp { v6 } => {
                let sequence = &mut frame[transport + 4..transport + 8];
                let first = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
                sequence.copy_from_slice(&first.wrapping_add(self.offset as u32).to_be_bytes());
                let flags = &mut frame[transport + 13];
                if !self.last {
                    *flags &= !FIN_AND_PSH;
                }
                if self.index != 0 {
                    *flags &= !CWR;
                }
                self.write_ip(frame, v6);
                complete(frame, ip, transport, v6, TCP, 16);
            }
            Kind::Udp { v6 } => {
                put16(frame, transport + 4, len - transport);
                self.write_ip(frame, v6);
                complete(frame, ip, transport, v6, UDP, 6);
            }
            Kind::Fragments => {
                let more = if self.last { 0 } else { 0x2000 };
                put16(frame, ip + 6, (self.offset / 8) | more);
                self.write_ip4(frame, false);
            }
            Kind::Fragments6(identification) => {
                let next = std::mem::replace(&mut frame[ip + 6], FRAGMENT);
                let more = usize::from(!self.last);
                frame[transport..transport + 2].copy_from_slice(&[next, 0]);
                put16(frame, transport + 2, self.offset | more);
                frame[transport + 4..transport + 8].copy_from_slice(&identification.to_be_bytes());
                put16(frame, ip + 4, len - ip - 40);
            }
        }
    }

    fn write_ip(&self, frame: &mut [u8], v6: bool) {
        match v6 {
            true => put16(frame, self.ip + 4, frame.len() - self.ip - 40),
            false => self.write_ip4(frame, true),
        }
    }

    fn write_ip4(&self, frame: &mut [u8], counts: bool) {
        let ip = self.ip;
        let len = frame.len() - ip;
        put16(frame, ip + 2, len);
        if counts {
            let first = be16(frame, ip + 4);
            put16(frame, ip + 4, first.wrapping_add(self.index).into());
        }
        put16(frame, ip + 10, 0);
        let checksum = !(sum(&frame[ip..self.transport], 0) as u16);
        put16(frame, ip + 10, checksum.into());
    }
}

/// Computes the checksum of a TCP or UDP header, whose place is so far into it.
fn complete(frame: &mut [u8], ip: usize, transport: usize, v6: bool, protocol: u8, place: usize) {
    let addresses = if v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
    let pseudo = sum(
        &frame[addresses],
        u32::from(protocol) + (frame.len() - transport) as u32,
    );
    put16(frame, transport + place, pseudo as usize);
    let mut header = Header {
        flags: bits::NEEDS_CSUM,
        csum_start: transport as u16,
        csum_offset: place as u16,
        ..Header::default()
    };
    checksum::complete(&mut header, frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, and are the same each time.
    fn numbers() -> impl FnMut() -> usize {
        let mut state = 0x853c_49e6_748f_ea9b_u64;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize
        }
    }

    #[test]
    fn whatever_a_packet_says_its_pieces_are_within_it() {
        let mut next = numbers();
        let mut cut_up = 0;
        for _ in 0..100_000 {
            let v6 = next().is_multiple_of(2);
            let tagged = if next().is_multiple_of(4) { 4 } else { 0 };
            let transport = 14 + tagged + if v6 { 40 } else { 20 };
            let mut frame = vec![0; transport + 20 + next() % 200];
            if tagged != 0 {
                frame[12..14].copy_from_slice(&[0x81, 0x00]);
            }
            let ip = 14 + tagged;
            frame[ip - 2..ip].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
            frame[ip] = if v6 { 0x60 } else { 0x45 };
            let tcp = next().is_multiple_of(2);
            frame[ip + if v6 { 6 } else { 9 }] = if tcp { TCP } else { UDP };
            frame[transport + 12] = 0x50;
            // Something that is wrong, most often.
            for _ in 0..next() % 3 {
                let at = next() % frame.len().min(80);
                frame[at] = next() as u8;
            }
            frame.truncate(
                frame
                    .len()
                    .saturating_sub(if next().is_multiple_of(4) { next() % 60 } else { 0 }),
            );
            let header = Header {
                flags: bits::NEEDS_CSUM,
                gso_type: [1, 3, 4, 5, 0x81, 0x84, 2][next() % 7],
                gso_size: (next() % 90) as u16,
                csum_start: transport as u16,
                csum_offset: if tcp { 16 } else { 6 },
                ..Header::default()
            };
            let Some(mut cut) = Cut::new(&header, &frame) else {
                continue;
            };
            let (mut pieces, mut bytes) = (0, 0);
            while let Some(piece) = cut.next() {
                let mut written = vec![0; piece.len()];
                piece.write(&mut written);
                bytes += piece.data.len();
                pieces += 1;
                assert!(piece.len() <= frame.len() + FRAGMENT_LEN && pieces <= frame.len());
            }
            assert_eq!(pieces, bytes.div_ceil(cut.size).max(1));
            cut_up += usize::from(pieces > 1);
        }
        assert!(cut_up > 1000, "{cut_up}");
    }
}
