//! F: the file system device (virtio 1.2, section 5.11), which ours leaves to a daemon.

use crate::driver::{Row, elsewhere, not_here};

use super::RINGS;

const NONE: &str =
    "requests of a file system are answered by a daemon behind vhost-user, and no device of ours looks into them";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("F0001", "a session begins", not_here(NONE)),
    Row("F0002", "a request of no bytes", not_here(NONE)),
    Row("F0003", "an answer that cannot be written", not_here(NONE)),
    Row("F0004", "room for an answer of nearly 4 GiB", elsewhere(RINGS)),
    Row("F0005", "a request where no memory is", elsewhere(RINGS)),
    Row("F0006", "a chain that leads to itself", elsewhere(RINGS)),
    Row("F0007", "a chain that leads out of its table", elsewhere(RINGS)),
    Row("F0008", "a table that was not agreed on", elsewhere(RINGS)),
    Row("F0009", "a request is interrupted", not_here(NONE)),
    Row("F0010", "a ring that is full", not_here(NONE)),
    Row("F0011", "an operation that there is not", not_here(NONE)),
    Row("F0012", "a header that is cut short", not_here(NONE)),
    Row("F0013", "a session of a version that there is not", not_here(NONE)),
    Row("F0014", "several requests of high priority", not_here(NONE)),
    Row("F0015", "a header that says more than there is", not_here(NONE)),
    Row("F0016", "room for an answer that leaves memory", elsewhere(RINGS)),
    Row("F0017", "a name in a directory that there is not", not_here(NONE)),
    Row("F0018", "a node that nobody knows is forgotten", not_here(NONE)),
    Row("F0019", "a request under way is interrupted", not_here(NONE)),
    Row("F0020", "a directory into hardly any room", not_here(NONE)),
    Row("F0021", "nothing is forgotten at once", not_here(NONE)),
    Row("F0022", "a session of another version that there is not", not_here(NONE)),
    Row("F0023", "a header that says less than there is", not_here(NONE)),
    Row("F0024", "buffers in the wrong order", elsewhere(RINGS)),
    Row("F0025", "a session begins with high priority", not_here(NONE)),
    Row("F0026", "a reply that nobody asked for", not_here(NONE)),
    Row("F0027", "attributes without room", not_here(NONE)),
    Row("F0028", "an operation that is not known", not_here(NONE)),
    Row("F0029", "requests at once", not_here(NONE)),
    Row("F0030", "a name of no bytes", not_here(NONE)),
    Row("F0031", "attributes before a session", not_here(NONE)),
    Row("F0032", "a file is opened with all flags", not_here(NONE)),
    Row("F0033", "nothing is read", not_here(NONE)),
    Row("F0034", "a write that says to be huge", not_here(NONE)),
    Row("F0035", "room for an answer in the registers of a device", elsewhere(RINGS)),
    Row("F0036", "what a kick is to say", not_here(NONE)),
    Row("F0037", "the window of shared memory", not_here(NONE)),
    Row("F0038", "the length of the tag", not_here(NONE)),
    Row("F0039", "more queues for requests than there can be", not_here(NONE)),
    Row("F0040", "a suspension", not_here(NONE)),
    Row("F0041", "the generation of the configuration", not_here(NONE)),
    Row("F0042", "the tag is read", not_here(NONE)),
    Row("F0043", "room for an answer that passes the last address", elsewhere(RINGS)),
    Row("F0044", "the state of the file system", not_here(NONE)),
];
