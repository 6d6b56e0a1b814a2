//! Hashes of received packets (virtio 1.2, section 5.1.6.4.3), and flows.

use super::registers::hash_type;

/// `rss_max_key_size`: "at least 40" (section 5.1.4.1), which is what IPv6 with ports needs.
pub const MAX_KEY: usize = 40;

/// `rss_max_indirection_table_length`: "at least 128".
pub const MAX_TABLE: usize = 128;

/// As many bytes of a frame as are looked at: all headers of what is usual, and more.
pub(super) const LOOK: usize = 256;

/// The Toeplitz hash of `input`: for each bit of it that is set, from the most significant one of the first byte on, 32 bits of the key
/// from the same place on. A key that is too short goes on with zeros.
pub fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let byte = |at: usize| key.get(at).copied().unwrap_or(0);
    let mut window = u32::from_be_bytes([byte(0), byte(1), byte(2), byte(3)]);
    let mut hash = 0;
    for (at, &bits) in input.iter().enumerate() {
        let next = byte(at + 4);
        for bit in (0..8).rev() {
            if bits & 1 << bit != 0 {
                hash ^= window;
            }
            window = window << 1 | u32::from(next >> bit & 1);
        }
    }
    hash
}

/// Toeplitz hashes with one key: what each byte at each place adds is in a table.
pub(super) struct Toeplitz(Box<[[u32; 256]; INPUT]>);

/// The longest input: two IPv6 addresses and two ports.
const INPUT: usize = 36;

impl Toeplitz {
    pub fn new(key: &[u8]) -> Self {
        let mut table = Box::new([[0; 256]; INPUT]);
        let mut input = [0; INPUT];
        for (at, row) in table.iter_mut().enumerate() {
            for byte in 1..256usize {
                let lowest = byte & byte.wrapping_neg();
                row[byte] = if byte == lowest {
                    input[at] = byte as u8;
                    toeplitz(key, &input[..=at])
                } else {
                    row[byte ^ lowest] ^ row[lowest]
                };
            }
            input[at] = 0;
        }
        Self(table)
    }

    fn of(&self, input: &[u8]) -> u32 {
        let entries = input.iter().zip(self.0.iter());
        entries.fold(0, |hash, (&byte, row)| hash ^ row[usize::from(byte)])
    }
}

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    /// Four bytes, or sixteen.
    source: &'a [u8],
    destination: &'a [u8],
    /// Four bytes, of a packet that has them.
    ports: Option<&'a [u8]>,
    is_tcp: bool,
    /// An IPv6 packet with extension headers, and the addresses that are in these.
    extended: Option<(&'a [u8], &'a [u8])>,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

impl<'a> Packet<'a> {
    /// What begins with `start`, if it is an IP packet whose headers are there.
    pub fn parse(start: &'a [u8]) -> Option<Self> {
        let mut at = 12;
        let mut kind = be16(start, at)?;
        // Tags of VLANs, two at most.
        for _ in 0..2 {
            if matches!(kind, 0x8100 | 0x88a8) {
                at += 4;
                kind = be16(start, at)?;
            }
        }
        let packet = start.get(at + 2..)?;
        match kind {
            0x0800 => Self::parse_ipv4(packet),
            0x86dd => Self::parse_ipv6(packet),
            _ => None,
        }
    }

    fn parse_ipv4(packet: &'a [u8]) -> Option<Self> {
        let first = *packet.first()?;
        let len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || len < 20 {
            return None;
        }
        let protocol = *packet.get(9)?;
        // Fragments have no ports but for the first, and all of them belong together.
        let is_fragment = be16(packet, 6)? & 0x3fff != 0;
        Some(Self {
            source: packet.get(12..16)?,
            destination: packet.get(16..20)?,
            ports: ports(packet, len, protocol).filter(|_| !is_fragment),
            is_tcp: protocol == TCP,
            extended: None,
        })
    }

    fn parse_ipv6(packet: &'a [u8]) -> Option<Self> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION: u8 = 60;
        if packet.first()? >> 4 != 6 {
            return None;
        }
        let (source, destination) = (packet.get(8..24)?, packet.get(24..40)?);
        let (mut home, mut routed) = (source, destination);
        let (mut at, mut next) = (40, *packet.get(6)?);
        let (mut extended, mut is_fragment) = (false, false);
        // Each takes eight bytes at least, so this ends with the packet.
        while matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            extended = true;
            let Some(header) = packet.get(at..).filter(|header| header.len() >= 8) else {
                break;
            };
            let len = match next {
                FRAGMENT => 8,
                _ => (usize::from(header[1]) + 1) * 8,
            };
            match next {
                FRAGMENT => is_fragment = true,
                // Of type 2, with one address (RFC 6275, section 6.4).
                ROUTING if header[2] == 2 && len == 24 => routed = header.get(8..24).unwrap_or(routed),
                DESTINATION => home = home_address(header.get(2..len).unwrap_or(&[])).unwrap_or(home),
                _ => {}
            }
            next = header[0];
            at += len;
        }
        Some(Self {
            source,
            destination,
            ports: ports(packet, at, next).filter(|_| !is_fragment),
            is_tcp: next == TCP,
            extended: extended.then_some((home, routed)),
        })
    }

    /// The hash as `enabled` types have it, and which of them it is of.
    pub fn hash(&self, enabled: u32, key: &Toeplitz) -> Option<(u32, u32)> {
        use hash_type::*;
        let v6 = self.source.len() == 16;
        if let Some((home, routed)) = self.extended
            && let Some((kind, with_ports)) = self.choose(enabled, [TCP_EX, UDP_EX, IP_EX])
        {
            return Some((self.digest(home, routed, with_ports, key), kind));
        }
        let kinds = if v6 { [TCPV6, UDPV6, IPV6] } else { [TCPV4, UDPV4, IPV4] };
        let (kind, with_ports) = self.choose(enabled, kinds)?;
        Some((self.digest(self.source, self.destination, with_ports, key), kind))
    }

    fn choose(&self, enabled: u32, [tcp, udp, ip]: [u32; 3]) -> Option<(u32, bool)> {
        let transport = if self.is_tcp { tcp } else { udp };
        if self.ports.is_some() && enabled & transport != 0 {
            return Some((transport, true));
        }
        (enabled & ip != 0).then_some((ip, false))
    }

    fn digest(&self, source: &[u8], destination: &[u8], with_ports: bool, key: &Toeplitz) -> u32 {
        let mut input = [0; INPUT];
        let mut len = 0;
        let ports = self.ports.filter(|_| with_ports).unwrap_or(&[]);
        for part in [source, destination, ports] {
            input[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        key.of(&input[..len])
    }

    /// A number that is the same for both directions of a flow.
    pub fn flow(&self) -> u32 {
        let fold = |bytes: &[u8]| {
            let mix = |sum: u32, &byte: &u8| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            bytes.iter().fold(0x811c_9dc5, mix)
        };
        let ports = self.ports.unwrap_or(&[0; 4]);
        let ends = fold(self.source).wrapping_add(fold(&ports[..2]).rotate_left(7));
        let others = fold(self.destination).wrapping_add(fold(&ports[2..]).rotate_left(7));
        (ends ^ others).wrapping_mul(0x9e37_79b1)
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn ports(packet: &[u8], at: usize, protocol: u8) -> Option<&[u8]> {
    match protocol {
        TCP | UDP => packet.get(at..at + 4),
        _ => None,
    }
}

/// The home address among the options of a destination options header (RFC 6275, section 6.3).
fn home_address(mut options: &[u8]) -> Option<&[u8]> {
    const PAD1: u8 = 0;
    const HOME_ADDRESS: u8 = 201;
    loop {
        match options {
            [PAD1, rest @ ..] => options = rest,
            [HOME_ADDRESS, 16, rest @ ..] => return rest.get(..16),
            [_, len, rest @ ..] => options = rest.get(usize::from(*len)..)?,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the cases of "Verifying the RSS Hash Calculation" (Windows drivers, network).
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    fn frame(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        let ends: [std::net::IpAddr; 2] = [source, destination].map(|text| text.parse().unwrap());
        match ends {
            [std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)] => {
                frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            [std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)] => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, TCP, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => panic!("of one kind"),
        }
        frame.extend(source_port.to_be_bytes());
        frame.extend(destination_port.to_be_bytes());
        frame
    }

    fn check(frame: &[u8], enabled: u32, expected: u32) {
        let packet = Packet::parse(frame).expect("an IP packet");
        let (hash, kind) = packet.hash(enabled, &Toeplitz::new(&KEY)).expect("a hash");
        assert_eq!((hash, kind), (expected, enabled));
    }

    #[test]
    fn ipv4_hashes_are_those_that_were_published() {
        let cases = [
            ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323e_8fc2, 0x51cc_c178),
            ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xd718_262a, 0xc626_b0ea),
            ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xd2d0_a5de, 0x5c2b_394a),
            ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x8298_9176, 0xafc7_327f),
            ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5d18_09c5, 0x10e8_28a2),
        ];
        for (source, source_port, destination, destination_port, ip, tcp) in cases {
            let frame = frame(source, source_port, destination, destination_port);
            check(&frame, hash_type::IPV4, ip);
            check(&frame, hash_type::TCPV4, tcp);
        }
    }

    #[test]
    fn ipv6_hashes_are_those_that_were_published() {
        let cases = [
            (
                "3ffe:2501:200:1fff::7",
                2794,
                "3ffe:2501:200:3::1",
                1766,
                0x2cc1_8cd5,
                0x4020_7d3d,
            ),
            (
                "3ffe:501:8::260:97ff:fe40:efab",
                14230,
                "ff02::1",
                4739,
                0x0f0c_461c,
                0xdde5_1bbf,
            ),
            (
                "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
                44251,
                "fe80::200:f8ff:fe21:67cf",
                38024,
                0x4b61_e985,
                0x02d1_feef,
            ),
        ];
        for (source, source_port, destination, destination_port, ip, tcp) in cases {
            let frame = frame(source, source_port, destination, destination_port);
            check(&frame, hash_type::IPV6, ip);
            check(&frame, hash_type::TCPV6, tcp);
        }
    }

    #[test]
    fn extension_headers_name_other_addresses() {
        let plain = frame("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766);
        let (home, routed) = (&plain[22..38], &plain[38..54]);
        // The same packet, with its addresses in a home address option and in a routing header of type 2.
        let mut extended = plain[..54].to_vec();
        extended[22..54].fill(9);
        extended[20] = 60;
        extended.extend([43, 2, 1, 2, 0, 0, 201, 16]);
        extended.extend(home);
        extended.extend([TCP, 2, 2, 1, 0, 0, 0, 0]);
        extended.extend(routed);
        extended.extend(&plain[54..]);
        check(&extended, hash_type::TCP_EX, 0x4020_7d3d);
        check(&extended, hash_type::IP_EX, 0x2cc1_8cd5);
        let packet = Packet::parse(&extended).expect("an IP packet");
        let key = Toeplitz::new(&KEY);
        let (other, kind) = packet.hash(hash_type::TCPV6, &key).expect("skipped");
        assert_eq!(kind, hash_type::TCPV6);
        assert_ne!(other, 0x4020_7d3d);
    }

    #[test]
    fn fragments_have_no_ports() {
        let mut fragment = frame("66.9.149.187", 2794, "161.142.100.80", 1766);
        fragment[14 + 6] = 0x20;
        check(&fragment, hash_type::IPV4, 0x323e_8fc2);
        let packet = Packet::parse(&fragment).expect("an IP packet");
        assert_eq!(packet.hash(hash_type::TCPV4, &Toeplitz::new(&KEY)), None);
    }

    #[test]
    fn a_flow_is_the_same_both_ways() {
        let there = frame("66.9.149.187", 2794, "161.142.100.80", 1766);
        let back = frame("161.142.100.80", 1766, "66.9.149.187", 2794);
        let other = frame("161.142.100.80", 1767, "66.9.149.187", 2794);
        let flow = |frame: &[u8]| Packet::parse(frame).map(|packet| packet.flow());
        assert_eq!(flow(&there), flow(&back));
        assert_ne!(flow(&there), flow(&other));
    }

    #[test]
    fn any_beginning_of_a_frame_parses_or_does_not() {
        let whole = frame("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766);
        for kind in [0, 43, 44, 60] {
            let mut frame = whole.clone();
            frame[20] = kind;
            frame[55] = 255;
            for len in 0..frame.len() {
                let _ = Packet::parse(&frame[..len]);
            }
        }
    }
}
