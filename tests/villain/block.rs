//! A driver of a disk.

use crate::{
    both::{ANSWER, REQUEST},
    driver::Seen,
    ring::{Buffer, readable, writable},
    world::World,
};

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const GET_LIFETIME: u32 = 10;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;
pub const SECURE_ERASE: u32 = 14;

pub const OK: u32 = 0;
pub const IOERR: u32 = 1;
pub const UNSUPP: u32 = 2;

/// Where the data of a request is, and its status.
pub const DATA: u64 = 0xb_0000;
pub const STATUS: u64 = ANSWER;

pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A segment of a discard or write zeroes request.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

impl World {
    /// What a request with these buffers between header and status is answered with.
    pub fn disk_asks(&mut self, queue: u16, kind: u32, sector: u64, data: &[Buffer]) -> Seen {
        self.guest.put(REQUEST, &header(kind, sector));
        let buffers = [&[readable(REQUEST, 16)], data, &[writable(STATUS, 1)]].concat();
        self.disk_says(queue, &buffers)
    }

    /// The same, of all its buffers.
    pub fn disk_says(&mut self, queue: u16, buffers: &[Buffer]) -> Seen {
        self.guest.put(STATUS, &[0xee; 16]);
        match self.offer(queue, buffers) {
            Seen::Served => Seen::Says(self.guest.get(STATUS, 1)[0].into()),
            other => other,
        }
    }

    pub fn reads(&mut self, sector: u64, len: u32) -> Seen {
        self.disk_asks(0, IN, sector, &[writable(DATA, len)])
    }

    pub fn writes(&mut self, sector: u64, bytes: &[u8]) -> Seen {
        self.guest.put(DATA, bytes);
        self.disk_asks(0, OUT, sector, &[readable(DATA, bytes.len() as u32)])
    }

    /// Asks with these segments.
    pub fn ranges(&mut self, kind: u32, segments: &[[u8; 16]]) -> Seen {
        let bytes = segments.concat();
        self.guest.put(DATA, &bytes);
        self.disk_asks(0, kind, 0, &[readable(DATA, bytes.len() as u32)])
    }

    /// What is written there is read there.
    pub fn is_kept(&mut self, sector: u64, bytes: &[u8]) -> Seen {
        assert_eq!(self.writes(sector, bytes), Seen::Says(OK));
        self.guest.put(DATA, &vec![0; bytes.len()]);
        assert_eq!(self.reads(sector, bytes.len() as u32), Seen::Says(OK));
        assert_eq!(self.guest.get(DATA, bytes.len()), bytes);
        Seen::Says(OK)
    }

    pub fn flushes(&mut self) -> Seen {
        self.disk_asks(0, FLUSH, 0, &[])
    }
}
