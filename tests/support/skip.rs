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
    let line = format!("skipped: {}: {why}\n", test.name().unwrap_or("a test"));
    // In one piece, so that it stays a line of its own among those of the harness.
    let _ = io::stderr().write_all(line.as_bytes());
}
