//! Packets of socket devices (virtio 1.2, section 5.10.6).

#[derive(Debug)]
pub struct Packet {
    pub source: u32,
    pub destination: u32,
    pub op: u16,
    pub data: Vec<u8>,
}

impl Packet {
    pub const HEADER: usize = 44;

    pub fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Self {
            source: word(16),
            destination: word(20),
            op: u16::from_le_bytes(bytes[30..32].try_into().unwrap()),
            data: bytes[Self::HEADER..Self::HEADER + word(24) as usize].to_vec(),
        }
    }
}

/// The header of a packet of a stream, from `ports.0` to `ports.1`, with as much room as will be needed.
pub fn header_of(from: u64, to: u64, ports: (u32, u32), op: u16, flags: u32, len: u32) -> Vec<u8> {
    const STREAM: u16 = 1;
    let mut header = [from, to].map(u64::to_le_bytes).concat();
    header.extend([ports.0, ports.1, len].map(u32::to_le_bytes).concat());
    header.extend([STREAM, op].map(u16::to_le_bytes).concat());
    header.extend([flags, 1 << 20, 0].map(u32::to_le_bytes).concat());
    assert_eq!(header.len(), Packet::HEADER);
    header
}
