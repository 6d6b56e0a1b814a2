//! Says loudly that a test could not run here.

use std::{
    fmt,
    io::{self, Write},
    thread,
};

/// Reports that the running test is skipped, and why: past the capture of the test harness, so that it is seen when all
/// passes.
pub fn skipped(why: impl fmt::Display) {
    let test = thread::current();
    let _ = writeln!(io::stderr(), "skipped: {}: {why}", test.name().unwrap_or("a test"));
}
