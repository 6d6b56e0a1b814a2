//! What hostile drivers do to a disk, as one table: 86 cases, over both transports, in split and packed rings. 68 of them have a head and
//! cost that request alone; 18 leave nothing that could be given back, and cost the device until its reset.

#[path = "support/both.rs"]
mod both;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/packed.rs"]
mod packed_ring;
#[path = "support/rest.rs"]
mod rest;
#[path = "support/ring.rs"]
mod ring;

use std::panic::{AssertUnwindSafe, catch_unwind};

use both::{BOTH, Transport};
use devisor::virtio::queue::{MAX_INDIRECT, Malformed, QueueLayout};
use disk::{
    Accepts, DATA, Disk, Format, HEADER, IN, IOERR, NOWHERE, OUT, Outcome, Raw, SECTORS, SIZE, STATUS, TABLE, TOP,
};
use ring::{INDIRECT, NEXT, WRITE};

/// Where registers of devices are, and no memory.
const REGISTERS: u64 = 0x4000_0000;

/// In which rings there is such a case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum In {
    Split,
    Packed,
    Both,
}

/// Which drivers do it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Any,
    /// One that has agreed on tables.
    Tables,
    /// One that has not.
    NoTables,
}

/// What it costs.
#[derive(Clone, Copy)]
enum Costs {
    /// The chain, which comes back with a used length of 0, and is counted as this.
    Chain(fn(&Malformed) -> u64),
    /// The request, which is answered with VIRTIO_BLK_S_IOERR.
    Request,
    /// The device, until its reset.
    Device,
}

struct Case {
    what: &'static str,
    rings: In,
    by: By,
    costs: Costs,
    play: fn(&mut Disk) -> Outcome,
}

const fn case(what: &'static str, rings: In, by: By, costs: Costs, play: fn(&mut Disk) -> Outcome) -> Case {
    Case {
        what,
        rings,
        by,
        costs,
        play,
    }
}

// How they are counted.

const NEXT_OUT: Costs = Costs::Chain(|m| m.descriptor_index);
const TOO_LONG: Costs = Costs::Chain(|m| m.too_long);
const TOO_LARGE: Costs = Costs::Chain(|m| m.too_large);
const TURNED: Costs = Costs::Chain(|m| m.readable_after_writable);
const BAD_TABLE: Costs = Costs::Chain(|m| m.indirect);
const OUTSIDE: Costs = Costs::Chain(|m| m.outside);
const SHORT: Costs = Costs::Chain(|m| m.short);

// What they do.

/// Writes a split chain whose descriptors are next to each other, but for the `next` of one of them: one of its own, or beyond the table.
fn leads(d: &mut Disk, which: u16, next: u16) -> Outcome {
    let good = d.good();
    d.watch(1, |ring| {
        let ring = ring.split();
        let head = ring.raw(&good);
        let (address, len, flags) = good[usize::from(which)];
        let next = if next < 3 { head + next } else { next };
        ring.descriptor(head + which, address, len, flags | NEXT, next);
        ring.offer(head);
    })
}

/// A good request in a table, which is at another place, of another length or under other flags than it is.
fn table(d: &mut Disk, change: impl FnOnce(&mut Raw)) -> Outcome {
    let good = d.good();
    d.put_table(TABLE, &good);
    let mut named = (TABLE, 48, INDIRECT);
    change(&mut named);
    d.offer(&[named])
}

/// A table with another entry than a good request has.
fn entry(d: &mut Disk, which: usize, change: impl FnOnce(&mut Raw)) -> Outcome {
    let mut good = d.good();
    change(&mut good[which]);
    d.put_table(TABLE, &good);
    d.offer(&[(TABLE, 48, INDIRECT)])
}

/// A table whose entry leads elsewhere.
fn entry_leads(d: &mut Disk, which: u64, next: u16) -> Outcome {
    let good = d.good();
    d.put_table(TABLE, &good);
    let at = TABLE + 16 * which;
    let flags = d.guest.get(at + 12, 1)[0] | NEXT as u8;
    d.guest.put(at + 12, &[flags]);
    d.guest.put(at + 14, &next.to_le_bytes());
    d.offer(&[(TABLE, 48, INDIRECT)])
}

fn at(d: &mut Disk, which: usize, address: u64) -> Outcome {
    d.hurt(which, |raw| raw.0 = address)
}

fn asks(d: &mut Disk, kind: u32, sector: u64, len: u32) -> Outcome {
    d.put_header(kind, sector);
    let direction = if kind == IN { WRITE } else { 0 };
    d.offer(&[(HEADER, 16, 0), (DATA, len, direction), (STATUS, 1, WRITE)])
}

/// A queue that is laid out so, and a driver that is ready.
fn laid_out(d: &mut Disk, change: fn(&mut QueueLayout)) -> Outcome {
    d.guest.reset();
    d.start_with(change);
    if d.needs_reset() {
        Outcome::NeedsReset
    } else {
        Outcome::Kept
    }
}

/// A first descriptor of a packed ring, as it is.
fn first(d: &mut Disk, descriptor: (u64, u32, u16, u16)) -> Outcome {
    d.watch(1, |ring| {
        let ring = ring.packed();
        let (address, len, id, flags) = descriptor;
        ring.descriptor(ring.next.slot, (address, len, id, flags | packed_ring::AVAIL));
    })
}

use By::{Any, NoTables, Tables};
use Costs::{Device, Request};
use In::{Both, Packed, Split};

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Chains that lead nowhere.
    case("the header leads beyond the table", Split, Any, NEXT_OUT, |d| leads(d, 0, 0xffff)),
    case("the data lead beyond the table", Split, Any, NEXT_OUT, |d| leads(d, 1, 0xffff)),
    case("the status leads beyond the table", Split, Any, NEXT_OUT, |d| leads(d, 2, 0xffff)),
    case("the data lead just beyond the table", Split, Any, NEXT_OUT, |d| leads(d, 1, SIZE)),
    case("a header that is its own next one", Split, Any, TOO_LONG, |d| leads(d, 0, 0)),
    case("data that are their own next ones", Split, Any, TOO_LONG, |d| leads(d, 1, 1)),
    case("a status that is its own next one", Split, Any, TOO_LONG, |d| leads(d, 2, 2)),
    case("a status that leads to the data", Split, Any, TOO_LONG, |d| leads(d, 2, 1)),
    case("a loop through all of the ring", Split, Any, TOO_LONG, |d| d.watch(1, |ring| {
        let ring = ring.split();
        (0..SIZE).for_each(|index| ring.descriptor(index, DATA, 1, NEXT, (index + 1) % SIZE));
        ring.offer(0);
    })),

    // Tables.
    case("a table that was not agreed on", Both, NoTables, BAD_TABLE, |d| table(d, |_| ())),
    case("a table that was not agreed on and is nowhere", Both, NoTables, BAD_TABLE, |d| table(d, |raw| raw.0 = NOWHERE)),
    case("a table of no bytes", Both, Tables, BAD_TABLE, |d| table(d, |raw| raw.1 = 0)),
    case("a table of half an entry", Both, Tables, BAD_TABLE, |d| table(d, |raw| raw.1 = 8)),
    case("a table that ends within an entry", Both, Tables, BAD_TABLE, |d| table(d, |raw| raw.1 = 47)),
    case("a table that ends a byte into an entry", Both, Tables, BAD_TABLE, |d| table(d, |raw| raw.1 = 49)),
    case("a table of nearly 4 GiB", Both, Tables, BAD_TABLE, |d| table(d, |raw| raw.1 = u32::MAX)),
    case("a table that lies nowhere", Both, Tables, OUTSIDE, |d| table(d, |raw| raw.0 = NOWHERE)),
    case("a table in the registers of a device", Both, Tables, OUTSIDE, |d| table(d, |raw| raw.0 = REGISTERS)),
    case("a table that leaves memory", Both, Tables, OUTSIDE, |d| table(d, |raw| raw.0 = TOP - 16)),
    case("a table that passes the last address", Both, Tables, OUTSIDE, |d| table(d, |raw| raw.0 = u64::MAX - 15)),
    case("a table with a next descriptor", Both, Tables, BAD_TABLE, |d| {
        let good = d.good();
        d.put_table(TABLE, &good);
        d.offer(&[(TABLE, 48, INDIRECT | NEXT), (DATA, 16, WRITE)])
    }),
    case("two tables that are linked", Both, Tables, BAD_TABLE, |d| {
        let good = d.good();
        d.put_table(TABLE, &good);
        d.offer(&[(TABLE, 16, INDIRECT), (TABLE + 16, 32, INDIRECT)])
    }),
    case("a table in a table, first", Split, Tables, BAD_TABLE, |d| entry(d, 0, |raw| *raw = (TABLE + 0x100, 16, INDIRECT))),
    case("a table in a table, last", Split, Tables, BAD_TABLE, |d| entry(d, 2, |raw| *raw = (TABLE + 0x100, 16, INDIRECT))),
    case("a table that names itself", Split, Tables, BAD_TABLE, |d| entry(d, 1, |raw| *raw = (TABLE, 48, INDIRECT))),
    case("an entry that leads beyond its table", Split, Tables, NEXT_OUT, |d| entry_leads(d, 1, 0xffff)),
    case("an entry that leads just beyond its table", Split, Tables, NEXT_OUT, |d| entry_leads(d, 2, 3)),
    case("an entry that is its own next one", Split, Tables, TOO_LONG, |d| entry_leads(d, 0, 0)),
    case("an entry that leads to one before it", Split, Tables, TOO_LONG, |d| entry_leads(d, 2, 1)),
    case("a table of too many entries", Both, Tables, TOO_LONG, |d| {
        let mut entries = vec![(DATA, 1, 0); usize::from(MAX_INDIRECT)];
        entries.push((STATUS, 1, WRITE));
        d.put_table(TABLE, &entries);
        d.offer(&[(TABLE, 16 * entries.len() as u32, INDIRECT)])
    }),
    case("an entry with a header nowhere", Both, Tables, OUTSIDE, |d| entry(d, 0, |raw| raw.0 = NOWHERE)),
    case("an entry with data nowhere", Both, Tables, OUTSIDE, |d| entry(d, 1, |raw| raw.0 = NOWHERE)),
    case("an entry with a status nowhere", Both, Tables, OUTSIDE, |d| entry(d, 2, |raw| raw.0 = NOWHERE)),
    case("an entry that passes the last address", Both, Tables, OUTSIDE, |d| entry(d, 1, |raw| raw.0 = u64::MAX - 0xff)),
    case("an entry that cannot be written after one that can", Both, Tables, TURNED, |d| entry(d, 2, |raw| raw.2 = 0)),

    // Lengths.
    case("data of nearly 4 GiB", Both, Any, OUTSIDE, |d| d.hurt(1, |raw| raw.1 = u32::MAX)),
    case("lengths that come to 4 GiB", Both, Any, TOO_LARGE, |d| {
        let good = d.good();
        // Each of them is in memory.
        let huge = [(0, TOP as u32, WRITE); 60];
        d.offer(&[&good[..1], &huge, &good[2..]].concat())
    }),

    // Addresses.
    case("a header nowhere", Both, Any, OUTSIDE, |d| at(d, 0, NOWHERE)),
    case("data nowhere", Both, Any, OUTSIDE, |d| at(d, 1, NOWHERE)),
    case("a status nowhere", Both, Any, OUTSIDE, |d| at(d, 2, NOWHERE)),
    case("a header in the registers of a device", Both, Any, OUTSIDE, |d| at(d, 0, REGISTERS)),
    case("data in the registers of a device", Both, Any, OUTSIDE, |d| at(d, 1, REGISTERS)),
    case("a status in the registers of a device", Both, Any, OUTSIDE, |d| at(d, 2, REGISTERS)),
    case("a header just behind memory", Both, Any, OUTSIDE, |d| at(d, 0, TOP)),
    case("a status just behind memory", Both, Any, OUTSIDE, |d| at(d, 2, TOP)),
    case("a header that leaves memory", Both, Any, OUTSIDE, |d| at(d, 0, TOP - 15)),
    case("data that leave memory", Both, Any, OUTSIDE, |d| at(d, 1, TOP - 511)),
    case("a header that passes the last address", Both, Any, OUTSIDE, |d| at(d, 0, u64::MAX - 14)),
    case("data that pass the last address", Both, Any, OUTSIDE, |d| at(d, 1, u64::MAX - 510)),
    case("a status at the last address", Both, Any, OUTSIDE, |d| at(d, 2, u64::MAX)),

    // Directions.
    case("a status that cannot be written", Both, Any, TURNED, |d| d.hurt(2, |raw| raw.2 = 0)),
    case("a header behind the data", Both, Any, TURNED, |d| {
        let [header, data, status] = d.good();
        d.offer(&[data, header, status])
    }),
    case("data to be written between what can be", Both, Any, TURNED, |d| {
        let [header, data, status] = d.good();
        d.offer(&[header, data, (DATA, 512, 0), status])
    }),
    case("a header that may be written", Both, Any, SHORT, |d| d.hurt(0, |raw| raw.2 = WRITE)),
    case("nothing that may be written", Both, Any, SHORT, |d| d.offer(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, 0)])),

    // What has no room.
    case("a header of no bytes", Both, Any, SHORT, |d| d.hurt(0, |raw| raw.1 = 0)),
    case("a header of eight bytes", Both, Any, SHORT, |d| d.hurt(0, |raw| raw.1 = 8)),
    case("a header of fifteen bytes", Both, Any, SHORT, |d| d.hurt(0, |raw| raw.1 = 15)),
    case("a header alone", Both, Any, SHORT, |d| d.offer(&[(HEADER, 16, 0)])),
    case("a status alone", Both, Any, SHORT, |d| d.offer(&[(STATUS, 1, WRITE)])),
    case("a chain of no bytes", Both, Any, SHORT, |d| d.offer(&[(DATA, 0, 0)])),
    case("a status of no bytes", Both, Any, SHORT, |d| d.offer(&[(HEADER, 16, 0), (STATUS, 0, WRITE)])),

    // Header and status are in order.
    case("a read beyond the disk", Both, Any, Request, |d| asks(d, IN, SECTORS, 512)),
    case("a read across the end of the disk", Both, Any, Request, |d| asks(d, IN, SECTORS - 1, 1024)),
    case("a read of the last sector that can be said", Both, Any, Request, |d| asks(d, IN, u64::MAX, 512)),
    case("a read of half a sector", Both, Any, Request, |d| asks(d, IN, 0, 256)),
    case("a write beyond the disk", Both, Any, Request, |d| asks(d, OUT, SECTORS, 512)),
    case("a write of a sector and a byte", Both, Any, Request, |d| asks(d, OUT, 0, 513)),

    // What is made available cannot be.
    case("an index that is ahead by one more than the ring is long", Split, Any, Device, |d| d.watch(1, |ring| ring.split().set_avail_idx(1 + SIZE + 1))),
    case("an index that is far ahead", Split, Any, Device, |d| d.watch(1, |ring| ring.split().set_avail_idx(0x8000))),
    case("an index that goes back", Split, Any, Device, |d| {
        d.answers();
        d.watch(1, |ring| ring.split().set_avail_idx(0))
    }),
    case("a head just beyond the table", Split, Any, Device, |d| d.watch(1, |ring| ring.split().offer(SIZE))),
    case("a head far beyond the table", Split, Any, Device, |d| d.watch(1, |ring| ring.split().offer(0xffff))),
    case("a chain without an end", Packed, Any, Device, |d| d.watch(1, |ring| {
        let ring = ring.packed();
        (0..SIZE).for_each(|slot| {
            let place = ring.next.after(slot, SIZE);
            ring.descriptor(place.slot, (DATA, 1, 0, NEXT | packed_ring::PackedRing::<()>::marks(place)));
        });
    })),
    case("a buffer ID just beyond the ring", Packed, Any, Device, |d| first(d, (DATA, 512, SIZE, WRITE))),
    case("a buffer ID far beyond the ring", Packed, Any, Device, |d| first(d, (DATA, 512, 0xffff, WRITE))),

    // The ring cannot be.
    case("a ring of no descriptors", Both, Any, Device, |d| laid_out(d, |layout| layout.size = 0)),
    case("a ring longer than it may be", Both, Any, Device, |d| laid_out(d, |layout| layout.size = 0x8000)),
    case("a ring of no power of two", Split, Any, Device, |d| laid_out(d, |layout| layout.size = 48)),
    case("descriptors that are not aligned", Both, Any, Device, |d| laid_out(d, |layout| layout.descriptor_area += 8)),
    case("a driver area that is not aligned", Both, Any, Device, |d| laid_out(d, |layout| layout.driver_area += 1)),
    case("a device area that is not aligned", Both, Any, Device, |d| laid_out(d, |layout| layout.device_area += 2)),
    case("descriptors nowhere", Both, Any, Device, |d| laid_out(d, |layout| layout.descriptor_area = NOWHERE)),
    case("a driver area that leaves memory", Both, Any, Device, |d| laid_out(d, |layout| layout.driver_area = TOP - 2)),
    case("a device area in the registers of a device", Both, Any, Device, |d| laid_out(d, |layout| layout.device_area = REGISTERS)),
    case("a device area at the last addresses", Both, Any, Device, |d| laid_out(d, |layout| layout.device_area = u64::MAX - 3)),
];

/// Plays a case, and looks at what it costs and that it costs nothing else.
fn play(case: &Case, kind: Transport, format: Format, accepts: Accepts) -> Result<(), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut disk = Disk::new(kind, format, accepts);
        disk.answers();
        let before = disk.counters();
        let seen = (case.play)(&mut disk);
        let after = disk.counters();
        let added = after.malformed.wrapping_sub(before.malformed);
        match case.costs {
            Costs::Chain(kind) => {
                assert_eq!(seen, Outcome::Refused);
                assert_eq!((added, after.requests - before.requests), (1, 1));
                let of_this = kind(&after.malformed_by) - kind(&before.malformed_by);
                assert_eq!(of_this, 1, "{:?}", after.malformed_by);
                disk.answers();
            }
            Costs::Request => {
                assert_eq!((seen, disk.status()), (Outcome::Served, IOERR));
                assert_eq!((added, after.requests - before.requests), (0, 1));
                disk.answers();
            }
            Costs::Device => {
                assert_eq!(seen, Outcome::NeedsReset);
                assert!(disk.guest.was_told(), "by a configuration interrupt");
                assert!(disk.guest.transport().fault().is_some());
            }
        }
        disk.restart();
        disk.answers();
        assert_eq!(disk.guest.transport().fault(), None);
    }));
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}

#[test]
fn of_86_hostile_cases_68_cost_a_request_and_18_the_device() {
    let [mut contained, mut device, mut played] = [0; 3];
    let mut wrong = Vec::new();
    for case in CASES {
        match case.costs {
            Costs::Chain(_) | Costs::Request => contained += 1,
            Costs::Device => device += 1,
        }
        for (format, elsewhere) in [(Format::Split, In::Packed), (Format::Packed, In::Split)] {
            for (accepts, others) in [(Accepts::Least, By::Tables), (Accepts::All, By::NoTables)] {
                if case.rings == elsewhere || case.by == others {
                    continue;
                }
                for kind in BOTH {
                    played += 1;
                    if let Err(why) = play(case, kind, format, accepts) {
                        wrong.push(format!("{}; {kind:?}, {format:?}, {accepts:?}: {why}", case.what));
                    }
                }
            }
        }
    }
    println!("{contained} contained, {device} cost the device; {played} times played");
    assert!(wrong.is_empty(), "\n{}\n{} in all", wrong.join("\n"), wrong.len());
    assert_eq!((contained, device), (68, 18));
}
