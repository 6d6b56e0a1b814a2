//! Numbers of the NBD protocol (`doc/proto.md` of its reference implementation), and what goes over the wire once it is set up.

use std::io;

/// What a server begins with.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub const FLAG_NO_ZEROES: u16 = 2;

pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
}

pub mod answer {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    /// Set in all that are errors.
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
}

pub mod info {
    pub const EXPORT: u16 = 0;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod flag {
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Request types.
pub mod kind {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
}

/// Command flags.
pub mod command_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 2;
}

const REQUEST: u32 = 0x2560_9513;
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Bytes of the header of a request.
pub const REQUEST_LEN: usize = 28;
pub const SIMPLE_LEN: usize = 16;
pub const STRUCTURED_LEN: usize = 20;

/// Chunks of a structured reply.
pub mod chunk {
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    /// Set in all that are errors.
    pub const ERROR: u16 = 1 << 15;
}

pub const ESHUTDOWN: u32 = 108;

/// What the server is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    pub kind: u16,
    pub flags: u16,
    pub offset: u64,
    pub len: u32,
}

impl Command {
    pub fn header(&self, cookie: u64) -> [u8; REQUEST_LEN] {
        let mut header = [0; REQUEST_LEN];
        header[..4].copy_from_slice(&REQUEST.to_be_bytes());
        header[4..6].copy_from_slice(&self.flags.to_be_bytes());
        header[6..8].copy_from_slice(&self.kind.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&self.offset.to_be_bytes());
        header[24..].copy_from_slice(&self.len.to_be_bytes());
        header
    }

    /// Whether data changes by it.
    pub fn modifies(&self) -> bool {
        matches!(self.kind, kind::WRITE | kind::TRIM | kind::WRITE_ZEROES)
    }

    /// Bytes that follow the header.
    pub fn payload(&self) -> usize {
        match self.kind {
            kind::WRITE => self.len as usize,
            _ => 0,
        }
    }

    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// The error of a reply, as one of ours. `message` is the server's, bounded by whoever has read it.
pub fn error(code: u32, message: &str) -> io::Error {
    let (kind, name) = match code {
        1 => (io::ErrorKind::PermissionDenied, "EPERM"),
        5 => (io::ErrorKind::Other, "EIO"),
        12 => (io::ErrorKind::OutOfMemory, "ENOMEM"),
        22 => (io::ErrorKind::InvalidInput, "EINVAL"),
        28 => (io::ErrorKind::StorageFull, "ENOSPC"),
        75 => (io::ErrorKind::InvalidInput, "EOVERFLOW"),
        95 => (io::ErrorKind::Unsupported, "ENOTSUP"),
        _ => (io::ErrorKind::Other, "an error without a name"),
    };
    match message {
        "" => io::Error::new(kind, format!("the NBD server has failed at a request: {name} ({code})")),
        _ => io::Error::new(
            kind,
            format!("the NBD server has failed at a request: {name} ({code}), {message:?}"),
        ),
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// Zeros beyond the end: callers have looked at the length.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    if let Some(bytes) = bytes.get(at..at + N) {
        array.copy_from_slice(bytes);
    }
    array
}

/// Text of the server's, cut and without control characters.
pub fn text(bytes: &[u8], most: usize) -> String {
    let cut = &bytes[..bytes.len().min(most)];
    let text = String::from_utf8_lossy(cut);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
