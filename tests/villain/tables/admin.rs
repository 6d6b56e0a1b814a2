//! A: administration virtqueues (of the text after virtio 1.2), which ours has not.

use crate::driver::{Row, not_here};

use super::NO_ADMIN;

/// What one of them tries.
const fn later(id: &'static str, what: &'static str) -> Row {
    Row(id, what, not_here(NO_ADMIN))
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    later("A0001", "a command before it was said which are used"),
    later("A0002", "a group that is named before the list is used"),
    later("A0003", "a status that is reserved"),
    later("A0004", "a command that is cut short"),
    later("A0005", "a list for a group that there is not"),
    later("A0006", "a status of hardly any bytes"),
    later("A0007", "the last opcode that can be said"),
    later("A0008", "a member that there is not"),
    later("A0009", "two commands at once"),
    later("A0010", "a command without data"),
    later("A0011", "a list of no commands"),
    later("A0012", "a command after a reset"),
    later("A0013", "a response longer than its room"),
    later("A0014", "a list for the last group that can be said"),
    later("A0015", "a type of group of wrong bytes"),
    later("A0016", "reserved bytes that are not zero"),
    later("A0017", "a command of no length"),
    later("A0018", "more data than a command takes"),
    later("A0019", "a list and a command at once"),
    later("A0020", "a question, a use and a question"),
    later("A0021", "more data than can be"),
    later("A0022", "two kicks without an answer"),
    later("A0023", "an older driver's fields are read"),
    later("A0024", "an older driver's fields are written"),
    later("A0025", "an older driver's fields of a member that there is not"),
    later("A0026", "an older driver's device configuration is read"),
    later("A0027", "an older driver's fields of another group"),
    later("A0028", "as much data as can be"),
    later("A0029", "three lists at once"),
    later("A0030", "a chain over the whole queue"),
    later("A0031", "the last member that can be said"),
    later("A0032", "a header in pieces"),
    later("A0033", "data in the registers of a device"),
    later("A0034", "a status before the data"),
    later("A0035", "room for a response that passes the last address"),
    later("A0200", "a state is saved with a command under way"),
];
