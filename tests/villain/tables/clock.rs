//! RTC: the clock device (virtio 1.4, section 5.23).

use crate::driver::{Row, elsewhere, not_here};

use super::RINGS;

const NONE: &str = "there is no clock device here: it is of a text after virtio 1.2 (1.4, section 5.23)";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("RTC0001", "how many clocks there are", not_here(NONE)),
    Row("RTC0002", "what a clock can do", not_here(NONE)),
    Row("RTC0003", "a clock is read", not_here(NONE)),
    Row("RTC0004", "a clock is read with a counter", not_here(NONE)),
    Row("RTC0005", "which counters a clock goes with", not_here(NONE)),
    Row("RTC0006", "a message that there is not", not_here(NONE)),
    Row("RTC0007", "a clock that there is not", not_here(NONE)),
    Row("RTC0008", "a counter that there is not", not_here(NONE)),
    Row("RTC0009", "an answer into too little room", not_here(NONE)),
    Row("RTC0010", "a request that is too short", not_here(NONE)),
    Row("RTC0011", "reserved bytes that are not zero", not_here(NONE)),
    Row("RTC0012", "no room for an answer", not_here(NONE)),
    Row("RTC0013", "room for an answer of nearly 4 GiB", elsewhere(RINGS)),
    Row("RTC0014", "a chain that leads to itself", elsewhere(RINGS)),
    Row("RTC0015", "a table that was not agreed on", elsewhere(RINGS)),
    Row("RTC0016", "the queue of alarms", not_here(NONE)),
    Row("RTC0017", "time goes on", not_here(NONE)),
    Row("RTC0018", "an alarm goes off", not_here(NONE)),
    Row("RTC0019", "a clock is read with reserved flags", not_here(NONE)),
    Row("RTC0020", "an alarm at the beginning of time", not_here(NONE)),
    Row("RTC0021", "two times in their order", not_here(NONE)),
    Row("RTC0022", "another clock that there is not", not_here(NONE)),
    Row("RTC0023", "room for an answer that leaves memory", elsewhere(RINGS)),
    Row("RTC0024", "a clock is read by a packed ring", not_here(NONE)),
    Row("RTC0025", "reads at once", not_here(NONE)),
    Row("RTC0026", "a request that is cut short", not_here(NONE)),
    Row("RTC0027", "room of no bytes", not_here(NONE)),
    Row("RTC0028", "a type of message that there is not", not_here(NONE)),
    Row("RTC0029", "a clock is read with and without a counter", not_here(NONE)),
    Row("RTC0030", "room for an answer in the registers of a device", elsewhere(RINGS)),
    Row("RTC0031", "what a clock can do, into room in pieces", not_here(NONE)),
    Row("RTC0032", "what each clock can do", not_here(NONE)),
    Row("RTC0033", "how leap seconds are smeared", not_here(NONE)),
    Row("RTC0034", "an alarm is switched off", not_here(NONE)),
    Row("RTC0035", "room for an answer that passes the last address", elsewhere(RINGS)),
    Row("RTC0036", "an alarm in the far future", not_here(NONE)),
    Row("RTC0037", "an alarm is set anew", not_here(NONE)),
    Row("RTC0038", "an alarm is read", not_here(NONE)),
    Row("RTC0039", "an alarm that was not set is switched on", not_here(NONE)),
    Row("RTC0040", "an alarm of a clock that there is not", not_here(NONE)),
    Row("RTC0041", "how many clocks the configuration says", not_here(NONE)),
    Row("RTC0200", "a state is saved", not_here(NONE)),
];
