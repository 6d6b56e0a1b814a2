//! Chains that are right but for one thing, before any device and in any of its queues.

use crate::{
    driver::Seen,
    ring::{Buffer, Descriptor, INDIRECT, NEXT, Ring, WRITE, readable, writable},
    world::{NOWHERE, REGISTERS, TOP, World},
};

/// Where hand-made chains begin in the ring's table: behind those of the driver.
pub fn first(ring: &Ring) -> u16 {
    ring.layout.size - 24
}

/// An indirect table.
pub const TABLE: u64 = 0xa_0000;
/// How many descriptors a ring has.
pub const SIZE: u16 = 64;

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// A descriptor that is its own next one.
    Loop,
    /// The first of its table is its next one.
    Back,
    /// A next one beyond the table.
    NextOut,
    Address(u64),
    Len(u32),
    /// Address and length.
    Range(u64, u32),
    /// The buffer begins in guest memory and ends beyond it.
    PastMemory,
    /// Address and length pass 2^64.
    Wraps,
    /// The other direction.
    Turned,
    Flags(u16),
    /// NEXT, to a descriptor of zeros.
    Dangles,
}
pub use Damage::*;

/// What is wrong with a chain in a table of its own.
#[derive(Clone, Copy, Debug)]
pub enum Table {
    /// Nothing.
    Whole,
    /// How many bytes it says it has.
    Bytes(u32),
    At(u64),
    /// Flags of the descriptor that names it.
    Named(u16),
    /// One of its entries.
    Entry(Damage),
    /// Entries after the first that name a table themselves.
    Nested,
    /// An entry that names the table it is in.
    Itself,
    /// As many entries as the queue, or more: one byte each, behind each other.
    Entries(u16),
}
pub use Table::*;

fn damaged(buffer: Buffer, index: u16, last: bool, damage: Option<Damage>) -> Descriptor {
    let mut flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
    let mut next = if last { 0 } else { index + 1 };
    let (mut address, mut len) = (buffer.address, buffer.len);
    match damage {
        None => {}
        Some(Loop) => (flags, next) = (flags | NEXT, index),
        Some(Back) => (flags, next) = (flags | NEXT, 0),
        Some(NextOut) => (flags, next) = (flags | NEXT, u16::MAX),
        Some(Address(to)) => address = to,
        Some(Len(of)) => len = of,
        Some(Range(to, of)) => (address, len) = (to, of),
        Some(PastMemory) => (address, len) = (TOP - 0x100, 1 << 30),
        Some(Wraps) => (address, len) = (u64::MAX - 0xff, 0x1000),
        Some(Turned) => flags ^= WRITE,
        Some(Flags(of)) => flags = of,
        Some(Dangles) => (flags, next) = (flags | NEXT, 31),
    }
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}

/// Writes `buffers` behind each other into the ring's table, from [`first`] on, with that damage done to one of them.
pub fn lay(ring: &mut Ring, buffers: &[Buffer], which: usize, damage: Damage) {
    for (number, buffer) in buffers.iter().enumerate() {
        let index = first(ring) + number as u16;
        let damage = (number == which).then_some(damage);
        let descriptor = damaged(*buffer, index, number + 1 == buffers.len(), damage);
        ring.write_descriptor(ring.layout.descriptor_area, index, descriptor);
    }
}

/// A good request but for one of its buffers.
pub fn hurt(world: &mut World, queue: u16, which: usize, damage: Damage) -> Seen {
    let buffers = world.good(queue);
    assert!(which < buffers.len());
    world.watch(queue, |ring| {
        lay(ring, &buffers, which, damage);
        ring.offer(first(ring));
    })
}

/// The same of its first buffer.
pub fn hurt_first(world: &mut World, queue: u16, damage: Damage) -> Seen {
    hurt(world, queue, 0, damage)
}

/// The same of its last one.
pub fn hurt_last(world: &mut World, queue: u16, damage: Damage) -> Seen {
    let last = world.good(queue).len() - 1;
    hurt(world, queue, last, damage)
}

/// A good request in a table of its own, but for one thing.
pub fn tabled(world: &mut World, queue: u16, table: Table) -> Seen {
    let buffers = match table {
        Entries(count) => one_byte_each(world, queue, count),
        _ => world.good(queue),
    };
    let count = buffers.len();
    world.watch(queue, |ring| {
        for (number, buffer) in buffers.iter().enumerate() {
            let damage = match table {
                Entry(damage) if number + 1 == count => Some(damage),
                _ => None,
            };
            let mut entry = damaged(*buffer, number as u16, number + 1 == count, damage);
            match table {
                Nested if number != 0 => (entry.address, entry.len, entry.flags) = (TABLE + 0x1000, 16, INDIRECT),
                Itself => (entry.address, entry.len, entry.flags) = (TABLE, 16, INDIRECT),
                _ => {}
            }
            ring.write_descriptor(TABLE, number as u16, entry);
        }
        let bytes = 16 * count as u32;
        let (address, len, flags) = match table {
            Bytes(len) => (TABLE, len, INDIRECT),
            At(address) => (address, bytes, INDIRECT),
            Named(flags) => (TABLE, bytes, flags),
            _ => (TABLE, bytes, INDIRECT),
        };
        let head = first(ring);
        ring.descriptor(head, address, len, flags, head + 1);
        ring.offer(first(ring));
    })
}

/// A good request whose longest buffer is cut, so that the chain has `count` descriptors.
fn one_byte_each(world: &mut World, queue: u16, count: u16) -> Vec<Buffer> {
    let good = world.good(queue);
    let longest = (0..good.len())
        .max_by_key(|&number| good[number].len)
        .expect("a buffer");
    let pieces = u32::from(count) - (good.len() as u32 - 1);
    let mut buffers = Vec::new();
    for (number, buffer) in good.into_iter().enumerate() {
        if number != longest {
            buffers.push(buffer);
            continue;
        }
        let make = if buffer.writable { writable } else { readable };
        // What is short has empty pieces behind it.
        let ones = (pieces - 1).min(buffer.len.saturating_sub(1));
        for piece in 0..pieces {
            let len = match piece {
                piece if piece < ones => 1,
                piece if piece == ones => buffer.len - ones,
                _ => 0,
            };
            let at = buffer.address + u64::from(piece.min(ones));
            buffers.push(make(at, len));
        }
    }
    buffers
}

/// A good request over all descriptors of the ring.
pub fn longest(world: &mut World, queue: u16) -> Seen {
    let buffers = one_byte_each(world, queue, SIZE);
    assert_eq!(buffers.len(), usize::from(SIZE));
    world.offer(queue, &buffers)
}

/// As many requests as the ring has room for, with one kick.
pub fn full(world: &mut World, queue: u16) -> Seen {
    let good = world.good(queue);
    let requests = SIZE / good.len() as u16;
    several(world, queue, requests)
}

/// So many good requests with one kick.
pub fn several(world: &mut World, queue: u16, requests: u16) -> Seen {
    let good = world.good(queue);
    world.watch(queue, |ring| {
        for _ in 0..requests {
            ring.request(&good);
        }
    })
}

/// A buffer that lies where the ring itself does: `offset` from its descriptor table.
pub fn in_own_ring(world: &mut World, queue: u16, which: usize, area: fn(&Ring) -> u64) -> Seen {
    let address = area(world.guest.ring(queue));
    hurt(world, queue, which, Address(address))
}

pub const NO_MEMORY: Damage = Address(NOWHERE);
pub const IN_REGISTERS: Damage = Address(REGISTERS);
