//! A driver of a disk of zones (virtio 1.3, section 5.2.6).

use crate::{
    block::*,
    both::REQUEST,
    driver::Seen,
    ring::{Buffer, readable, writable},
    world::World,
};

pub const APPEND: u32 = 15;
pub const REPORT: u32 = 16;
pub const OPEN: u32 = 18;
pub const CLOSE: u32 = 20;
pub const FINISH: u32 = 22;
pub const RESET: u32 = 24;
pub const RESET_ALL: u32 = 26;

pub const INVALID_CMD: u32 = 3;
pub const UNALIGNED_WP: u32 = 4;
pub const OPEN_RESOURCE: u32 = 5;

/// Where an append is told where it has gone.
const PLACE: u64 = DATA + 0x8000;

impl World {
    /// What is asked of a zone, and has no data.
    pub fn zone_asks(&mut self, kind: u32, sector: u64) -> Seen {
        self.disk_asks(0, kind, sector, &[])
    }

    pub fn appends(&mut self, sector: u64, sectors: u32) -> Seen {
        self.guest.put(DATA, &vec![0x5a; 512 * sectors as usize]);
        self.guest.put(PLACE, &[0xee; 8]);
        self.disk_asks(0, APPEND, sector, &[readable(DATA, 512 * sectors), writable(PLACE, 8)])
    }

    /// Where the last append went, in sectors.
    pub fn place(&self) -> u64 {
        u64::from_le_bytes(self.guest.get(PLACE, 8).try_into().expect("eight bytes"))
    }

    pub fn reports(&mut self, sector: u64, room: u32) -> Seen {
        self.guest.put(DATA, &vec![0xee; room as usize]);
        self.disk_asks(0, REPORT, sector, &[writable(DATA, room)])
    }

    /// How many zones were told of.
    pub fn reported(&self) -> u64 {
        u64::from_le_bytes(self.guest.get(DATA, 8).try_into().expect("eight bytes"))
    }

    /// The statuses of requests about zones that are made available with one kick.
    pub fn zones_ask(&mut self, requests: &[(u32, u64)]) -> Vec<u32> {
        self.guest.put(STATUS, &vec![0xee; requests.len()]);
        for (at, (kind, sector)) in (0..).zip(requests) {
            self.guest.put(REQUEST + 16 * at, &header(*kind, *sector));
        }
        let seen = self.watch(0, |ring| {
            for at in 0..requests.len() as u64 {
                ring.request(&[readable(REQUEST + 16 * at, 16), writable(STATUS + at, 1)]);
            }
        });
        assert_eq!(seen, Seen::Served);
        let statuses = self.guest.get(STATUS, requests.len());
        statuses.into_iter().map(u32::from).collect()
    }

    /// An append of a sector to the first zone, and another request at the same time, of which neither waits for the other.
    pub fn append_beside(&mut self, queue: u16, kind: u32) -> Seen {
        self.guest.put(REQUEST, &header(APPEND, 0));
        self.guest.put(REQUEST + 16, &header(kind, 0));
        self.guest.put(STATUS, &[0xee; 2]);
        let append = [
            readable(REQUEST, 16),
            readable(DATA, 512),
            writable(PLACE, 8),
            writable(STATUS, 1),
        ];
        let other: &[Buffer] = &[readable(REQUEST + 16, 16), writable(STATUS + 1, 1)];
        if queue != 0 {
            self.guest.ring(queue).request(other);
        }
        let seen = self.watch(0, |ring| {
            ring.request(&append);
            if queue == 0 {
                ring.request(other);
            }
        });
        if queue != 0 {
            self.kick(queue);
            assert_eq!(self.guest.used(queue), [1]);
        }
        assert_eq!(self.guest.get(STATUS, 2), [0, 0]);
        seen
    }
}
