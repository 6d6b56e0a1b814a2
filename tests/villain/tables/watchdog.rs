//! D: the watchdog (ID 35), which has a number and no chapter in any text.

use crate::driver::{Row, elsewhere, not_here};

use super::RINGS;

const NONE: &str =
    "there is no watchdog here: no text says what one does (virtio 1.2, section 5, has its number alone)";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("D0001", "a keep-alive", not_here(NONE)),
    Row("D0002", "several keep-alives", not_here(NONE)),
    Row("D0003", "a buffer that cannot be written", not_here(NONE)),
    Row("D0004", "a buffer of no bytes", not_here(NONE)),
    Row("D0005", "a buffer where no memory is", elsewhere(RINGS)),
    Row("D0006", "a buffer of nearly 4 GiB", elsewhere(RINGS)),
    Row("D0007", "a chain that leads to itself", elsewhere(RINGS)),
    Row("D0008", "a chain that leads out of its table", elsewhere(RINGS)),
    Row("D0009", "a table that was not agreed on", elsewhere(RINGS)),
    Row("D0010", "a ring that is full", not_here(NONE)),
    Row("D0011", "all flags of a descriptor", elsewhere(RINGS)),
    Row("D0012", "as long a chain as there can be", not_here(NONE)),
    Row("D0013", "a head that the ring has not", elsewhere(RINGS)),
    Row("D0014", "a chain of no bytes", not_here(NONE)),
    Row("D0015", "a table that leads out of itself", elsewhere(RINGS)),
    Row("D0016", "the time that is left is read", not_here(NONE)),
    Row("D0017", "a keep-alive after a reset", not_here(NONE)),
    Row("D0018", "a keep-alive in several buffers", not_here(NONE)),
    Row("D0019", "the configuration is written", not_here(NONE)),
    Row("D0020", "a buffer that leaves memory", elsewhere(RINGS)),
    Row("D0021", "a keep-alive in a packed ring", not_here(NONE)),
    Row("D0022", "keep-alives at once", not_here(NONE)),
    Row("D0023", "flags that do not go together", elsewhere(RINGS)),
    Row("D0024", "the greatest length", elsewhere(RINGS)),
    Row("D0025", "a keep-alive after the ring was made anew", not_here(NONE)),
    Row("D0026", "a table of no entries", elsewhere(RINGS)),
    Row("D0027", "a keep-alive of one byte", not_here(NONE)),
    Row("D0028", "a buffer in the registers of a device", elsewhere(RINGS)),
    Row("D0029", "the time runs out", not_here(NONE)),
    Row("D0030", "a keep-alive puts it off", not_here(NONE)),
    Row("D0031", "a state is saved while it runs", not_here(NONE)),
    Row("D0032", "the time as it was set", not_here(NONE)),
    Row("D0033", "the configuration before the driver is ready", not_here(NONE)),
    Row("D0034", "a burst of keep-alives", not_here(NONE)),
    Row("D0035", "a reset between two keep-alives", not_here(NONE)),
    Row("D0036", "a buffer that passes the last address", elsewhere(RINGS)),
    Row("D0037", "it is kept alive for long", not_here(NONE)),
    Row("D0200", "it stands still while the machine does", not_here(NONE)),
];
