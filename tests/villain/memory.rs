//! A driver of a memory device.

use crate::{
    both::ANSWER,
    both::REQUEST,
    driver::Seen,
    ring::{readable, writable},
    world::{BASE, BLOCK, World},
};

pub const PLUG: u16 = 0;
pub const UNPLUG: u16 = 1;
pub const UNPLUG_ALL: u16 = 2;
pub const STATE: u16 = 3;

pub const ACK: u32 = 0;
pub const NACK: u32 = 1;
pub const ERROR: u32 = 3;

pub const PLUGGED: u16 = 0;
pub const UNPLUGGED: u16 = 1;
pub const MIXED: u16 = 2;

pub fn request(kind: u16, addr: u64, blocks: u16) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&addr.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// Where a block begins.
pub fn block(number: u64) -> u64 {
    BASE + number * BLOCK
}

impl World {
    /// The response of a request of these bytes.
    pub fn asks(&mut self, bytes: &[u8]) -> Seen {
        self.guest.put(REQUEST, bytes);
        self.guest.put(ANSWER, &[0xee; 10]);
        let seen = self.offer(0, &[readable(REQUEST, bytes.len() as u32), writable(ANSWER, 10)]);
        match seen {
            Seen::Served => Seen::Says(u32::from(self.half(ANSWER))),
            other => other,
        }
    }

    fn half(&self, at: u64) -> u16 {
        let bytes = self.guest.get(at, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// The response of a request for blocks.
    pub fn blocks(&mut self, kind: u16, first: u64, blocks: u16) -> Seen {
        self.asks(&request(kind, block(first), blocks))
    }

    /// The state of these blocks.
    pub fn state(&mut self, first: u64, blocks: u16) -> u16 {
        assert_eq!(self.blocks(STATE, first, blocks), Seen::Says(ACK));
        self.half(ANSWER + 8)
    }

    /// How many bytes are plugged in, as the driver reads it.
    pub fn plugged(&self) -> u64 {
        self.guest.config(40, 8)
    }
}
