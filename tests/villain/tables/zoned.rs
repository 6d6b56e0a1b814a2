//! Z: disks of zones (virtio 1.2 has none; section 5.2.6 of the text after it).

use crate::driver::{Row, not_here};

/// Why none of them is played yet.
const NO_ZONES: &str = "of a text after virtio 1.2: our disk has no zones, and says so by not offering them";

/// What one of them tries.
const fn later(id: &'static str, what: &'static str) -> Row {
    Row(id, what, not_here(NO_ZONES))
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    later("Z0001", "a report by who did not ask for zones"),
    later("Z0002", "not known to us"),
    later("Z0003", "a reset at a sector that begins no zone"),
    later("Z0004", "a report into no room"),
    later("Z0005", "an append to a zone that is full or not there"),
    later("Z0006", "a zone that is opened twice"),
    later("Z0007", "a zone that is finished and was never written"),
    later("Z0008", "a reset of a zone while it is appended to"),
    later("Z0009", "a report that begins behind the disk"),
    later("Z0010", "an append at a sector that begins no zone"),
    later("Z0011", "a report without a status"),
    later("Z0012", "a reset of all zones at a sector"),
    later("Z0013", "an append to another kind of zone"),
    later("Z0014", "more open zones than there may be"),
    later("Z0015", "an append to a conventional zone"),
    later("Z0016", "a reset of all zones with requests under way"),
    later("Z0017", "not known to us"),
    later("Z0018", "not known to us"),
    later("Z0019", "an append whose data has the other direction"),
    later("Z0020", "a report of more zones than there are"),
    later("Z0021", "not known to us"),
    later("Z0022", "a zone that is opened and closed at once"),
    later("Z0023", "fields of a disk of zones"),
    later("Z0024", "an append at the place to write"),
    later("Z0025", "an append at a sector within a zone"),
    later("Z0026", "a zone that is opened where none begins"),
    later("Z0027", "a reset of all zones"),
    later("Z0028", "a status that says that too many are open"),
    later("Z0029", "a write away from the place to write"),
];
