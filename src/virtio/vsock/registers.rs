//! Features, configuration space and packets (virtio 1.2, section 5.10).

/// Feature bits of the device type, as masks (section 5.10.3).
pub mod feature {
    /// `VIRTIO_VSOCK_F_STREAM`: stream sockets.
    pub const STREAM: u64 = 1 << 0;
    /// `VIRTIO_VSOCK_F_SEQPACKET`: sockets that keep message boundaries.
    pub const SEQPACKET: u64 = 1 << 1;
    /// `VIRTIO_VSOCK_F_NO_IMPLIED_STREAM` (virtio 1.3): a driver that accepts this and not `STREAM` has no stream sockets.
    pub const NO_IMPLIED_STREAM: u64 = 1 << 2;
}

/// Bytes of the configuration space: `guest_cid` (section 5.10.4).
pub const CONFIG_LEN: usize = 8;

/// The host's CID (section 5.10.4).
pub const HOST_CID: u64 = 2;

/// Whether a guest may have this CID (section 5.10.4).
pub fn is_guest_cid(cid: u64) -> bool {
    cid > HOST_CID && cid < 0xffff_ffff
}

/// Queues (section 5.10.2).
pub const RX: u16 = 0;
pub const TX: u16 = 1;
pub const EVENT: u16 = 2;

/// Bytes of `struct virtio_vsock_hdr` (section 5.10.6).
pub const HEADER: usize = 44;

/// Values of `op` (section 5.10.6).
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Values of `type` (section 5.10.6.2).
pub const TYPE_STREAM: u16 = 1;
pub const TYPE_SEQPACKET: u16 = 2;

/// `flags` of SHUTDOWN, as masks (section 5.10.6.5).
pub const SHUTDOWN_RECEIVE: u32 = 1 << 0;
pub const SHUTDOWN_SEND: u32 = 1 << 1;
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `flags` of RW of seqpacket sockets (section 5.10.6.6.1).
pub const SEQ_EOM: u32 = 1 << 0;
pub const SEQ_EOR: u32 = 1 << 1;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (section 5.10.6.7).
pub const EVENT_TRANSPORT_RESET: u32 = 0;

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub fn decode(bytes: &[u8; HEADER]) -> Self {
        fn part<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
            std::array::from_fn(|index| bytes[at + index])
        }
        Self {
            src_cid: u64::from_le_bytes(part(bytes, 0)),
            dst_cid: u64::from_le_bytes(part(bytes, 8)),
            src_port: u32::from_le_bytes(part(bytes, 16)),
            dst_port: u32::from_le_bytes(part(bytes, 20)),
            len: u32::from_le_bytes(part(bytes, 24)),
            kind: u16::from_le_bytes(part(bytes, 28)),
            op: u16::from_le_bytes(part(bytes, 30)),
            flags: u32::from_le_bytes(part(bytes, 32)),
            buf_alloc: u32::from_le_bytes(part(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(part(bytes, 40)),
        }
    }

    pub fn encode(&self) -> [u8; HEADER] {
        let Self {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        } = *self;
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &src_cid.to_le_bytes());
        put(8, &dst_cid.to_le_bytes());
        put(16, &src_port.to_le_bytes());
        put(20, &dst_port.to_le_bytes());
        put(24, &len.to_le_bytes());
        put(28, &kind.to_le_bytes());
        put(30, &op.to_le_bytes());
        put(32, &flags.to_le_bytes());
        put(36, &buf_alloc.to_le_bytes());
        put(40, &fwd_cnt.to_le_bytes());
        bytes
    }

    /// Writes another `len` and other `flags` into a header.
    pub fn put_len(bytes: &mut [u8; HEADER], len: u32, flags: u32) {
        bytes[24..28].copy_from_slice(&len.to_le_bytes());
        bytes[32..36].copy_from_slice(&flags.to_le_bytes());
    }

    /// The refusal of this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_little_endian_and_packed() {
        let bytes: [u8; HEADER] = std::array::from_fn(|index| index as u8);
        let header = Header::decode(&bytes);
        assert_eq!(header.encode(), bytes);
        assert_eq!((header.src_cid, header.dst_port), (0x0706_0504_0302_0100, 0x1716_1514));
        assert_eq!((header.kind, header.op, header.fwd_cnt), (0x1d1c, 0x1f1e, 0x2b2a_2928));
    }
}
