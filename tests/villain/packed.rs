//! Cases of packed rings, before a disk of two queues whose driver makes such rings.

use devisor::virtio::features::VERSION_1;

use crate::{
    disk::{AnyRing, Disk, Outcome, Raw, SIZE},
    driver::Seen,
    packed_ring::{AVAIL, PackedRing, USED},
    ring::INDIRECT,
};

impl From<Outcome> for Seen {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Served => Self::Served,
            Outcome::Refused => Self::Refused,
            Outcome::Kept => Self::Kept,
            Outcome::NeedsReset => Self::NeedsReset,
            Outcome::Other(what) => Self::Other(what),
        }
    }
}

/// Address, length, ID and flags at a slot of the ring, whatever its driver thinks. The marks are those of what is available.
pub fn at_slot(d: &mut Disk, slot: u16, (address, len, flags): Raw) {
    let ring = d.rings[0].packed();
    let marks = PackedRing::<()>::marks(ring.next.after(slot, SIZE));
    ring.descriptor(slot, (address, len, 0, flags | marks));
}

/// A chain that came back, as the marks of its first descriptor say.
pub fn is_used(d: &mut Disk, slot: u16) -> bool {
    let at = d.rings[0].layout().descriptor_area + 16 * u64::from(slot);
    let flags = u16::from_le_bytes(d.guest.get(at + 14, 2).try_into().expect("two bytes"));
    flags & (AVAIL | USED) == AVAIL | USED
}

/// A first descriptor that is both available and used, which is neither: the device leaves it as it is.
pub fn left_alone(d: &mut Disk, descriptor: (u64, u32, u16, u16)) -> Seen {
    let at = d.rings[0].layout().descriptor_area;
    d.rings[0].packed().descriptor(0, descriptor);
    let before = d.guest.get(at, 16 * usize::from(SIZE));
    d.guest.kick(0);
    assert_eq!(d.guest.get(at, 16 * usize::from(SIZE)), before);
    assert_eq!(d.counters().requests, 0);
    d.restart();
    Seen::Kept
}

/// A read of the first sector, with these data.
pub fn data(d: &mut Disk, address: u64, len: u32) -> Seen {
    d.hurt(1, |raw| (raw.0, raw.1) = (address, len)).into()
}

/// The same in a table, with the last entry changed.
pub fn in_table(d: &mut Disk, table: u64, change: impl FnOnce(&mut Raw)) -> Seen {
    let mut good = d.good();
    change(&mut good[1]);
    d.put_table(table, &good);
    d.offer(&[(table, 48, INDIRECT)]).into()
}

/// So many good requests with one kick.
pub fn several(d: &mut Disk, requests: usize) -> Seen {
    let good = d.good();
    let offer = |ring: &mut AnyRing| (0..requests).for_each(|_| _ = ring.chain(&good));
    d.watch(requests, offer).into()
}

/// The driver has negotiated VERSION_1 and these features, if the device lets it.
pub fn negotiates(d: &mut Disk, features: u64) -> bool {
    d.guest.reset();
    let taken = d.guest.negotiate(VERSION_1 | features);
    d.restart();
    taken
}

/// The device uses requests in the order in which they were made available.
pub fn in_order(d: &mut Disk) -> Seen {
    let good = d.good();
    let ring = &mut d.rings[0];
    let made: Vec<u32> = (0..8).map(|_| ring.chain(&good).into()).collect();
    d.guest.kick(0);
    let used: Vec<u32> = d.rings[0].used().into_iter().map(|(id, _)| id).collect();
    assert_eq!(used, made);
    Seen::Holds
}

/// A table where the other queue has its ring.
pub fn table_in_other(d: &mut Disk) -> Seen {
    let table = d.rings[1].layout().descriptor_area;
    let seen = in_table(d, table, |_| ());
    d.restart();
    seen
}

/// A chain in the ring, but for flags of which only some may be looked at.
pub fn linked(d: &mut Disk, first: Raw) -> Seen {
    // What follows is nothing that the driver has made available.
    let ring = d.rings[0].packed();
    (0..SIZE).for_each(|slot| ring.descriptor(slot, (0, 0, 0, 0)));
    at_slot(d, 0, first);
    d.guest.kick(0);
    let seen = match d.needs_reset() {
        true => Seen::NeedsReset,
        false if is_used(d, 0) => Seen::Holds,
        false => Seen::Kept,
    };
    if seen != Seen::NeedsReset {
        d.restart();
    }
    seen
}
