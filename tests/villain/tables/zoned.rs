//! Z: disks of zones (virtio 1.2 has none; section 5.2.6 of the text after it). A disk of 64 sectors and four zones, all of which are
//! written in order; two may be open and three active, and an append has eight sectors at most. The suite's appends leave no room
//! for the sector that they have gone to, which the text has: they are played so, and as the text has it.

use devisor::virtio::block::ZoneState::{Empty, ExplicitlyOpen, Full, ImplicitlyOpen};

use crate::{
    block::*,
    both::REQUEST,
    driver::{
        Row,
        Seen::{self, Holds, Says, Served},
        plays, unread,
    },
    ring::{readable, writable},
    world::{Kind::Block, SECTORS, World, ZONE},
    zones::*,
};

const YES: Seen = Says(OK);
const BAD: Seen = Says(IOERR);
const NO: Seen = Says(UNSUPP);
const INVALID: Seen = Says(INVALID_CMD);

/// An append without room for where it has gone does nothing.
fn without_a_place(w: &mut World, sector: u64) -> Seen {
    let before = [0, 1, 2, 3].map(|zone| w.zone(zone));
    let seen = w.disk_asks(0, APPEND, sector, &[readable(DATA, 512)]);
    assert_eq!([0, 1, 2, 3].map(|zone| w.zone(zone)), before);
    seen
}

/// More zones are opened than may be open.
fn all_open(w: &mut World) -> Seen {
    let opens = [0, 1, 2, 3].map(|zone| (OPEN, ZONE * zone));
    assert_eq!(w.zones_ask(&opens), [OK, OK, OPEN_RESOURCE, OPEN_RESOURCE]);
    assert_eq!([1, 2].map(|zone| w.zone(zone).0), [ExplicitlyOpen, Empty]);
    Holds
}

/// Where whatever a driver can ask is asked.
const ANYTHING: &str = "tests/villain/sweep.rs::whatever_a_disk_of_zones_is_asked_it_answers";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("Z0001", "a report by who did not ask for zones", plays(NO, |w| w.reports(0, 4096)).on(Block)),
    Row("Z0002", "not known to us", unread(ANYTHING)),
    Row("Z0003", "a reset at a sector that begins no zone", plays(INVALID, |w| w.zone_asks(RESET, 7))),
    Row("Z0004", "a report with room for no zone", plays(YES, |w| {
        assert_eq!([0, 63].map(|room| w.reports(0, room)), [BAD; 2]);
        let seen = w.reports(0, 64);
        assert_eq!(w.reported(), 0);
        seen
    })),
    Row("Z0005", "an append to a zone that is full", plays(INVALID, |w| {
        assert_eq!(without_a_place(w, 0), BAD);
        assert_eq!(w.zone_asks(FINISH, 0), YES);
        w.appends(0, 1)
    })),
    Row("Z0006", "a zone that is opened twice", plays(Holds, |w| {
        assert_eq!(w.zones_ask(&[(OPEN, 0), (OPEN, 0)]), [OK; 2]);
        assert_eq!(w.zone(0), (ExplicitlyOpen, 0));
        Holds
    })),
    Row("Z0007", "a zone that is finished and was never written", plays(YES, |w| {
        let seen = w.zone_asks(FINISH, 0);
        assert_eq!(w.zone(0), (Full, ZONE));
        seen
    })),
    Row("Z0008", "a reset of a zone while it is appended to", plays(Served, |w| {
        let seen = w.append_beside(1, RESET);
        // Whichever came last.
        assert!([(Empty, 0), (ImplicitlyOpen, 1)].contains(&w.zone(0)));
        seen
    })),
    Row("Z0009", "a report that begins behind the disk", plays(BAD, |w| w.reports(SECTORS + 1000, 128))),
    Row("Z0010", "an append at a sector that begins no zone", plays(INVALID, |w| {
        assert_eq!(without_a_place(w, 3), INVALID);
        w.appends(3, 1)
    })),
    Row("Z0011", "a report whose status is the last byte of its room", plays(Served, |w| {
        w.guest.put(REQUEST, &header(REPORT, 0));
        w.guest.put(DATA, &[0xee; 512]);
        let seen = w.offer(0, &[readable(REQUEST, 16), writable(DATA, 512)]);
        assert_eq!((w.reported(), w.guest.get(DATA + 511, 1)), (SECTORS / ZONE, vec![0]));
        seen
    })),
    Row("Z0012", "a reset of all zones at a sector, which means nothing", plays(YES, |w| {
        assert_eq!(w.appends(0, 1), YES);
        let seen = w.zone_asks(RESET_ALL, 0xdead);
        assert_eq!(w.zone(0), (Empty, 0));
        seen
    })),
    Row("Z0013", "an append to a zone that is not open, or not there", plays(BAD, |w| {
        assert_eq!(w.appends(2 * ZONE, 1), YES);
        assert_eq!(w.zone(2), (ImplicitlyOpen, 2 * ZONE + 1));
        w.appends(1 << 20, 1)
    })),
    Row("Z0014", "more open zones than there may be", plays(Holds, all_open)),
    Row("Z0015", "an append to what is not written in order", plays(NO, |w| w.appends(0, 1)).on(Block)),
    Row("Z0016", "a reset of all zones behind an append", plays(Served, |w| {
        let seen = w.append_beside(0, RESET_ALL);
        assert_eq!(w.zone(0), (Empty, 0));
        seen
    })),
    Row("Z0017", "not known to us", unread(ANYTHING)),
    Row("Z0018", "not known to us", unread(ANYTHING)),
    Row("Z0019", "an append whose data has the other direction", plays(INVALID, |w| {
        w.disk_asks(0, APPEND, 0, &[writable(DATA, 512)])
    })),
    Row("Z0020", "a report of more zones than there are", plays(YES, |w| {
        // Behind the header is a number that no field is.
        w.guest.put(REQUEST, &[&header(REPORT, 0)[..], &[0xff; 4]].concat());
        let seen = w.disk_says(0, &[readable(REQUEST, 20), writable(DATA, 4096), writable(STATUS, 1)]);
        assert_eq!(w.reported(), SECTORS / ZONE);
        assert_eq!(w.guest.get(DATA + 64 * 5, 64), [0; 64], "of no zone");
        seen
    })),
    Row("Z0021", "not known to us", unread(ANYTHING)),
    Row("Z0022", "a zone that is opened and closed at once", plays(Holds, |w| {
        assert_eq!(w.zones_ask(&[(OPEN, 0), (CLOSE, 0)]), [OK; 2]);
        assert_eq!(w.zone(0), (Empty, 0));
        Holds
    })),
    Row("Z0023", "fields of a disk of zones", plays(Holds, |w| {
        (0..96).for_each(|at| _ = w.guest.config(at, 1));
        let fields = [72, 76, 80, 84, 88].map(|at| w.guest.config(at, 4));
        assert_eq!((fields, w.guest.config(92, 1)), ([ZONE, 2, 3, 8, 512], 1));
        Holds
    })),
    Row("Z0024", "an append at the place to write", plays(YES, |w| {
        assert_eq!(without_a_place(w, 0), BAD);
        assert_eq!((w.appends(0, 2), w.place()), (YES, 0));
        assert_eq!((w.appends(0, 1), w.place()), (YES, 2));
        assert_eq!(w.zone(0), (ImplicitlyOpen, 3));
        let seen = w.reads(2, 512);
        assert_eq!(w.guest.get(DATA, 512), [0x5a; 512]);
        seen
    })),
    Row("Z0025", "an append behind the disk", plays(BAD, |w| w.appends(0xffff_ffff, 1))),
    Row("Z0026", "a zone that is opened where none begins", plays(INVALID, |w| w.zone_asks(OPEN, 1))),
    Row("Z0027", "a reset of all zones", plays(YES, |w| {
        assert_eq!([w.appends(0, 1), w.zone_asks(FINISH, ZONE), w.zone_asks(OPEN, 2 * ZONE)], [YES; 3]);
        let seen = w.zone_asks(RESET_ALL, 0);
        assert_eq!([0, 1, 2, 3].map(|zone| w.zone(zone).0), [Empty; 4]);
        seen
    })),
    Row("Z0028", "a status that says that too many are open", plays(Holds, all_open)),
    Row("Z0029", "a write away from the place to write", plays(Says(UNALIGNED_WP), |w| w.writes(1, &[0x3c; 512]))),
];
