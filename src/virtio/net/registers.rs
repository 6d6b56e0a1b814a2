//! Numbers of the network device (virtio 1.2, section 5.1).

use virtio_bindings::virtio_net as net;

/// Feature bits (section 5.1.3), as masks.
pub mod feature {
    use super::net;

    /// `VIRTIO_NET_F_CSUM`: the device takes packets with a partial checksum.
    pub const CSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
    /// `VIRTIO_NET_F_GUEST_CSUM`: the driver does.
    pub const GUEST_CSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
    /// `VIRTIO_NET_F_CTRL_GUEST_OFFLOADS`: what the driver takes can be changed at run time.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
    /// `VIRTIO_NET_F_MTU`: the maximum MTU is in `mtu`.
    pub const MTU: u64 = 1 << net::VIRTIO_NET_F_MTU;
    /// `VIRTIO_NET_F_MAC`: the address is in `mac`.
    pub const MAC: u64 = 1 << net::VIRTIO_NET_F_MAC;
    /// `VIRTIO_NET_F_GUEST_TSO4`: the driver takes TCP over IPv4 in large packets.
    pub const GUEST_TSO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO4;
    /// `VIRTIO_NET_F_GUEST_TSO6`: over IPv6.
    pub const GUEST_TSO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO6;
    /// `VIRTIO_NET_F_GUEST_ECN`: with ECN.
    pub const GUEST_ECN: u64 = 1 << net::VIRTIO_NET_F_GUEST_ECN;
    /// `VIRTIO_NET_F_GUEST_UFO`: the driver takes UDP to be fragmented.
    pub const GUEST_UFO: u64 = 1 << net::VIRTIO_NET_F_GUEST_UFO;
    /// `VIRTIO_NET_F_HOST_TSO4`: the device takes TCP over IPv4 in large packets.
    pub const HOST_TSO4: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO4;
    /// `VIRTIO_NET_F_HOST_TSO6`: over IPv6.
    pub const HOST_TSO6: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO6;
    /// `VIRTIO_NET_F_HOST_ECN`: with ECN.
    pub const HOST_ECN: u64 = 1 << net::VIRTIO_NET_F_HOST_ECN;
    /// `VIRTIO_NET_F_HOST_UFO`: the device takes UDP to be fragmented.
    pub const HOST_UFO: u64 = 1 << net::VIRTIO_NET_F_HOST_UFO;
    /// `VIRTIO_NET_F_MRG_RXBUF`: a packet may be spread over several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
    /// `VIRTIO_NET_F_STATUS`: the state of the link is in `status`.
    pub const STATUS: u64 = 1 << net::VIRTIO_NET_F_STATUS;
    /// `VIRTIO_NET_F_CTRL_VQ`: there is a control queue.
    pub const CTRL_VQ: u64 = 1 << net::VIRTIO_NET_F_CTRL_VQ;
    /// `VIRTIO_NET_F_CTRL_RX`: receive modes and the address table.
    pub const CTRL_RX: u64 = 1 << net::VIRTIO_NET_F_CTRL_RX;
    /// `VIRTIO_NET_F_CTRL_VLAN`: the VLAN filter.
    pub const CTRL_VLAN: u64 = 1 << net::VIRTIO_NET_F_CTRL_VLAN;
    /// `VIRTIO_NET_F_CTRL_RX_EXTRA`: more receive modes.
    pub const CTRL_RX_EXTRA: u64 = 1 << net::VIRTIO_NET_F_CTRL_RX_EXTRA;
    /// `VIRTIO_NET_F_GUEST_ANNOUNCE`: the device can ask the driver to tell the network where it is.
    pub const GUEST_ANNOUNCE: u64 = 1 << net::VIRTIO_NET_F_GUEST_ANNOUNCE;
    /// `VIRTIO_NET_F_MQ`: several queue pairs, steered by flow.
    pub const MQ: u64 = 1 << net::VIRTIO_NET_F_MQ;
    /// `VIRTIO_NET_F_CTRL_MAC_ADDR`: the driver can set the address.
    pub const CTRL_MAC_ADDR: u64 = 1 << net::VIRTIO_NET_F_CTRL_MAC_ADDR;
    /// `VIRTIO_NET_F_VQ_NOTF_COAL`: coalescing of a queue by itself (virtio 1.3).
    pub const VQ_NOTF_COAL: u64 = 1 << net::VIRTIO_NET_F_VQ_NOTF_COAL;
    /// `VIRTIO_NET_F_NOTF_COAL`: coalescing of notifications.
    pub const NOTF_COAL: u64 = 1 << net::VIRTIO_NET_F_NOTF_COAL;
    /// `VIRTIO_NET_F_GUEST_USO4`: the driver takes UDP over IPv4 to be segmented (virtio 1.3).
    pub const GUEST_USO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO4;
    /// `VIRTIO_NET_F_GUEST_USO6`: over IPv6.
    pub const GUEST_USO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO6;
    /// `VIRTIO_NET_F_HOST_USO`: the device takes UDP to be segmented.
    pub const HOST_USO: u64 = 1 << net::VIRTIO_NET_F_HOST_USO;
    /// `VIRTIO_NET_F_HASH_REPORT`: the hash of a received packet is in its header.
    pub const HASH_REPORT: u64 = 1 << net::VIRTIO_NET_F_HASH_REPORT;
    /// `VIRTIO_NET_F_RSS`: receive-side scaling.
    pub const RSS: u64 = 1 << net::VIRTIO_NET_F_RSS;
    /// `VIRTIO_NET_F_SPEED_DUPLEX`: speed and duplex are in the configuration space.
    pub const SPEED_DUPLEX: u64 = 1 << net::VIRTIO_NET_F_SPEED_DUPLEX;

    /// What the driver may take, each of which it can turn off (section 5.1.6.5.6).
    pub const GUEST_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;

    /// Which feature needs one of which others (section 5.1.3.1; of HASH_REPORT and CTRL_RX_EXTRA section 5.1.4.1 says so, and of
    /// CTRL_GUEST_OFFLOADS it follows from what it is).
    pub const NEEDS: [(u64, u64); 22] = [
        (GUEST_TSO4, GUEST_CSUM),
        (GUEST_TSO6, GUEST_CSUM),
        (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
        (GUEST_UFO, GUEST_CSUM),
        (GUEST_USO4, GUEST_CSUM),
        (GUEST_USO6, GUEST_CSUM),
        (HOST_TSO4, CSUM),
        (HOST_TSO6, CSUM),
        (HOST_ECN, HOST_TSO4 | HOST_TSO6),
        (HOST_UFO, CSUM),
        (HOST_USO, CSUM),
        (CTRL_RX, CTRL_VQ),
        (CTRL_RX_EXTRA, CTRL_VQ),
        (CTRL_VLAN, CTRL_VQ),
        (GUEST_ANNOUNCE, CTRL_VQ),
        (MQ, CTRL_VQ),
        (CTRL_MAC_ADDR, CTRL_VQ),
        (CTRL_GUEST_OFFLOADS, CTRL_VQ),
        (NOTF_COAL, CTRL_VQ),
        (VQ_NOTF_COAL, CTRL_VQ),
        (HASH_REPORT, CTRL_VQ),
        (RSS, CTRL_VQ),
    ];
}

/// Offsets in the configuration space (section 5.1.4).
pub mod config {
    pub const MAC: usize = 0;
    pub const STATUS: usize = 6;
    pub const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub const MTU: usize = 10;
    pub const SPEED: usize = 12;
    pub const DUPLEX: usize = 16;
    pub const RSS_MAX_KEY_SIZE: usize = 17;
    pub const RSS_MAX_INDIRECTION_TABLE_LENGTH: usize = 18;
    pub const SUPPORTED_HASH_TYPES: usize = 20;
    pub const LEN: usize = 24;
}

/// Bits of `status`.
pub mod status {
    pub const LINK_UP: u16 = super::net::VIRTIO_NET_S_LINK_UP as u16;
    pub const ANNOUNCE: u16 = super::net::VIRTIO_NET_S_ANNOUNCE as u16;
}

/// Commands of the control queue by class and command (section 5.1.6.5).
pub mod control {
    use super::net;

    pub const OK: u8 = net::VIRTIO_NET_OK as u8;
    pub const ERR: u8 = net::VIRTIO_NET_ERR as u8;

    pub const RX: u8 = net::VIRTIO_NET_CTRL_RX as u8;
    pub const RX_PROMISC: u8 = net::VIRTIO_NET_CTRL_RX_PROMISC as u8;
    pub const RX_ALLMULTI: u8 = net::VIRTIO_NET_CTRL_RX_ALLMULTI as u8;
    pub const RX_ALLUNI: u8 = net::VIRTIO_NET_CTRL_RX_ALLUNI as u8;
    pub const RX_NOMULTI: u8 = net::VIRTIO_NET_CTRL_RX_NOMULTI as u8;
    pub const RX_NOUNI: u8 = net::VIRTIO_NET_CTRL_RX_NOUNI as u8;
    pub const RX_NOBCAST: u8 = net::VIRTIO_NET_CTRL_RX_NOBCAST as u8;

    pub const MAC: u8 = net::VIRTIO_NET_CTRL_MAC as u8;
    pub const MAC_TABLE_SET: u8 = net::VIRTIO_NET_CTRL_MAC_TABLE_SET as u8;
    pub const MAC_ADDR_SET: u8 = net::VIRTIO_NET_CTRL_MAC_ADDR_SET as u8;

    pub const VLAN: u8 = net::VIRTIO_NET_CTRL_VLAN as u8;
    pub const VLAN_ADD: u8 = net::VIRTIO_NET_CTRL_VLAN_ADD as u8;
    pub const VLAN_DEL: u8 = net::VIRTIO_NET_CTRL_VLAN_DEL as u8;

    pub const ANNOUNCE: u8 = net::VIRTIO_NET_CTRL_ANNOUNCE as u8;
    pub const ANNOUNCE_ACK: u8 = net::VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8;

    pub const MQ: u8 = net::VIRTIO_NET_CTRL_MQ as u8;
    pub const MQ_VQ_PAIRS_SET: u8 = net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;
    pub const MQ_RSS_CONFIG: u8 = net::VIRTIO_NET_CTRL_MQ_RSS_CONFIG as u8;
    pub const MQ_HASH_CONFIG: u8 = net::VIRTIO_NET_CTRL_MQ_HASH_CONFIG as u8;

    pub const GUEST_OFFLOADS: u8 = net::VIRTIO_NET_CTRL_GUEST_OFFLOADS as u8;
    pub const GUEST_OFFLOADS_SET: u8 = net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET as u8;

    pub const NOTF_COAL: u8 = net::VIRTIO_NET_CTRL_NOTF_COAL as u8;
    pub const NOTF_COAL_TX_SET: u8 = net::VIRTIO_NET_CTRL_NOTF_COAL_TX_SET as u8;
    pub const NOTF_COAL_RX_SET: u8 = net::VIRTIO_NET_CTRL_NOTF_COAL_RX_SET as u8;
    pub const NOTF_COAL_VQ_SET: u8 = net::VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET as u8;
    pub const NOTF_COAL_VQ_GET: u8 = net::VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET as u8;
}

/// `flags` and `gso_type` of `struct virtio_net_hdr` (section 5.1.6).
pub mod header {
    use super::net;

    /// Bytes of the header.
    pub const LEN: usize = 12;
    /// With `hash_value`, `hash_report` and `padding_reserved`.
    pub const LEN_WITH_HASH: usize = 20;

    pub const NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    pub const DATA_VALID: u8 = net::VIRTIO_NET_HDR_F_DATA_VALID as u8;

    pub const GSO_NONE: u8 = net::VIRTIO_NET_HDR_GSO_NONE as u8;
    pub const GSO_TCPV4: u8 = net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
    pub const GSO_UDP: u8 = net::VIRTIO_NET_HDR_GSO_UDP as u8;
    pub const GSO_TCPV6: u8 = net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
    pub const GSO_UDP_L4: u8 = net::VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
    pub const GSO_ECN: u8 = net::VIRTIO_NET_HDR_GSO_ECN as u8;
}

/// Bits of `supported_hash_types` (section 5.1.6.4.3.1). A hash of the type `1 << n` is reported as `n + 1`.
pub mod hash_type {
    pub const IPV4: u32 = 1 << 0;
    pub const TCPV4: u32 = 1 << 1;
    pub const UDPV4: u32 = 1 << 2;
    pub const IPV6: u32 = 1 << 3;
    pub const TCPV6: u32 = 1 << 4;
    pub const UDPV6: u32 = 1 << 5;
    pub const IP_EX: u32 = 1 << 6;
    pub const TCP_EX: u32 = 1 << 7;
    pub const UDP_EX: u32 = 1 << 8;

    pub const ALL: u32 = 0x1ff;
}
