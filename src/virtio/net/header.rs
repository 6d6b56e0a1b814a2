//! The header before each frame (virtio 1.2, section 5.1.6), and what it may ask for.

use super::registers::{feature, header as bits};

/// The longest frame: an Ethernet header with a VLAN tag, an IPv6 header and the longest payload of that (section 5.1.6.3).
pub const MAX_FRAME: usize = 14 + 4 + 40 + 65535;

/// Bytes in front of a frame that is kept, for its header however long.
pub(super) const HEADROOM: usize = bits::LEN_WITH_HASH;

/// The shortest frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// `struct virtio_net_hdr`: what is left to do for a frame. In memory it is 12 bytes, numbers in little-endian order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM (1): the checksum is partial. VIRTIO_NET_HDR_F_DATA_VALID (2): it was checked.
    pub flags: u8,
    /// VIRTIO_NET_HDR_GSO_NONE (0), TCPV4 (1), UDP (3), TCPV6 (4) or UDP_L4 (5); with ECN (0x80).
    pub gso_type: u8,
    /// Bytes of all headers: a hint.
    pub hdr_len: u16,
    /// The longest payload of a segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub csum_start: u16,
    /// Where it goes, after that.
    pub csum_offset: u16,
    /// Over how many buffers a received packet is spread.
    pub num_buffers: u16,
}

/// A header that its frame contradicts, or asks for what was not negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header of a frame is refused: {0}")]
pub struct BadHeader(pub &'static str);

impl Header {
    /// Of a frame that asks for nothing.
    pub(super) const PLAIN: Self = Self {
        flags: 0,
        gso_type: bits::GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        num_buffers: 0,
    };

    #[inline]
    /// From the bytes in front of a frame.
    pub fn from_bytes(bytes: &[u8; bits::LEN]) -> Self {
        let le16 = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: le16(2),
            gso_size: le16(4),
            csum_start: le16(6),
            csum_offset: le16(8),
            num_buffers: le16(10),
        }
    }

    /// The bytes in front of a frame.
    #[inline]
    pub fn to_bytes(self) -> [u8; bits::LEN] {
        let Self {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
            num_buffers,
        } = self;
        // Put together in registers: what is stored in parts and loaded as a whole at once waits for all stores before.
        let [flags, gso_type] = [flags, gso_type].map(u64::from);
        let [hdr_len, gso_size, csum_start] = [hdr_len, gso_size, csum_start].map(u64::from);
        let low = flags | gso_type << 8 | hdr_len << 16 | gso_size << 32 | csum_start << 48;
        let high = u32::from(csum_offset) | u32::from(num_buffers) << 16;
        let mut bytes = [0; bits::LEN];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }

    /// Whether the checksum is partial.
    pub fn needs_checksum(&self) -> bool {
        self.flags & bits::NEEDS_CSUM != 0
    }

    /// Whether it asks for nothing and tells nothing.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.flags == 0 && self.gso_type == bits::GSO_NONE
    }

    /// Whether the frame is one that is to be cut.
    pub fn is_large(&self) -> bool {
        self.gso_type != bits::GSO_NONE
    }

    /// What a driver says of a frame of `len` bytes: checked, and without what means nothing. Flags that the device does not know
    /// are ignored, and the place of a checksum that is not asked for is not looked at (section 5.1.6.2.2).
    #[inline]
    pub(super) fn checked(self, len: usize, takes: Offloads) -> Result<Self, BadHeader> {
        // As nearly all are.
        if self.flags & bits::NEEDS_CSUM == 0 && self.gso_type == bits::GSO_NONE {
            return Ok(Self::default());
        }
        self.checked_far(len, takes)
    }

    fn checked_far(self, len: usize, takes: Offloads) -> Result<Self, BadHeader> {
        let Self { flags, gso_type, .. } = self;
        let mut checked = Self {
            flags: flags & bits::NEEDS_CSUM,
            num_buffers: 0,
            ..self
        };
        if !checked.needs_checksum() {
            (checked.csum_start, checked.csum_offset) = (0, 0);
        } else if !takes.checksum {
            return Err(BadHeader("a partial checksum was not negotiated"));
        } else if usize::from(self.csum_start) + usize::from(self.csum_offset) + 2 > len {
            return Err(BadHeader("its checksum is beyond the frame"));
        }
        if gso_type == bits::GSO_NONE {
            // A hint about what is not cut.
            (checked.gso_size, checked.hdr_len) = (0, 0);
            return Ok(checked);
        }
        let ecn = gso_type & bits::GSO_ECN != 0;
        if usize::from(self.hdr_len) > len {
            // A hint, of which the host would make an error.
            checked.hdr_len = 0;
        }
        let known = match gso_type & !bits::GSO_ECN {
            bits::GSO_TCPV4 => takes.tso4,
            bits::GSO_TCPV6 => takes.tso6,
            bits::GSO_UDP => takes.ufo && !ecn,
            bits::GSO_UDP_L4 => (takes.uso4 || takes.uso6) && !ecn,
            _ => false,
        };
        match () {
            _ if !known => Err(BadHeader("its kind of segmentation was not negotiated")),
            _ if ecn && !takes.ecn => Err(BadHeader("ECN was not negotiated")),
            _ if !checked.needs_checksum() => Err(BadHeader("it is to be cut, and its checksum is not partial")),
            _ if self.gso_size == 0 => Err(BadHeader("it is to be cut into segments of no length")),
            _ => Ok(checked),
        }
    }
}

/// What is left to the other side: checksums, and cutting large packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums.
    pub checksum: bool,
    /// Cutting TCP over IPv4.
    pub tso4: bool,
    /// Cutting TCP over IPv6.
    pub tso6: bool,
    /// The same where ECN is in use.
    pub ecn: bool,
    /// Fragmenting UDP.
    pub ufo: bool,
    /// Cutting UDP over IPv4 into datagrams.
    pub uso4: bool,
    /// Cutting UDP over IPv6 into datagrams.
    pub uso6: bool,
}

impl Offloads {
    /// Nothing.
    pub const NONE: Self = Self::all_or_none(false);
    /// Everything.
    pub const ALL: Self = Self::all_or_none(true);
    /// Checksums alone.
    pub const CHECKSUM: Self = Self {
        checksum: true,
        ..Self::NONE
    };

    const fn all_or_none(all: bool) -> Self {
        Self {
            checksum: all,
            tso4: all,
            tso6: all,
            ecn: all,
            ufo: all,
            uso4: all,
            uso6: all,
        }
    }

    /// What both leave to the other side.
    pub fn and(self, other: Self) -> Self {
        Self::from_guest(self.guest() & other.guest())
    }

    /// Whether anything is to be cut.
    pub fn cuts(self) -> bool {
        self.guest() & !feature::GUEST_CSUM != 0
    }

    /// As features of what the driver takes.
    pub(super) fn guest(self) -> u64 {
        let Self {
            checksum,
            tso4,
            tso6,
            ecn,
            ufo,
            uso4,
            uso6,
        } = self;
        let bits = [
            (checksum, feature::GUEST_CSUM),
            (tso4, feature::GUEST_TSO4),
            (tso6, feature::GUEST_TSO6),
            (ecn, feature::GUEST_ECN),
            (ufo, feature::GUEST_UFO),
            (uso4, feature::GUEST_USO4),
            (uso6, feature::GUEST_USO6),
        ];
        bits.iter().fold(0, |all, &(on, bit)| if on { all | bit } else { all })
    }

    /// From features of what the driver takes.
    pub(super) fn from_guest(features: u64) -> Self {
        let has = |bit| features & bit != 0;
        Self {
            checksum: has(feature::GUEST_CSUM),
            tso4: has(feature::GUEST_TSO4),
            tso6: has(feature::GUEST_TSO6),
            ecn: has(feature::GUEST_ECN),
            ufo: has(feature::GUEST_UFO),
            uso4: has(feature::GUEST_USO4),
            uso6: has(feature::GUEST_USO6),
        }
    }

    /// As features of what the device takes.
    pub(super) fn host(self) -> u64 {
        let bits = [
            (self.checksum, feature::CSUM),
            (self.tso4, feature::HOST_TSO4),
            (self.tso6, feature::HOST_TSO6),
            (self.ecn, feature::HOST_ECN),
            (self.ufo, feature::HOST_UFO),
            (self.uso4 && self.uso6, feature::HOST_USO),
        ];
        bits.iter().fold(0, |all, &(on, bit)| if on { all | bit } else { all })
    }

    /// From features of what the device takes.
    pub(super) fn from_host(features: u64) -> Self {
        let has = |bit| features & bit != 0;
        Self {
            checksum: has(feature::CSUM),
            tso4: has(feature::HOST_TSO4),
            tso6: has(feature::HOST_TSO6),
            ecn: has(feature::HOST_ECN),
            ufo: has(feature::HOST_UFO),
            uso4: has(feature::HOST_USO),
            uso6: has(feature::HOST_USO),
        }
    }

    /// As far as the features that each needs are there too (section 5.1.3.1).
    pub(super) fn consistent(self) -> Self {
        let Self {
            checksum,
            tso4,
            tso6,
            ecn,
            ufo,
            uso4,
            uso6,
        } = self;
        Self {
            checksum,
            tso4: tso4 && checksum,
            tso6: tso6 && checksum,
            ecn: ecn && (tso4 || tso6) && checksum,
            ufo: ufo && checksum,
            uso4: uso4 && checksum,
            uso6: uso6 && checksum,
        }
    }
}
