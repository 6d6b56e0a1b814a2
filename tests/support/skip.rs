//! Says loudly that a test could not run here.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::io::{self, Write};

/// Reports that a test is skipped, and why: past the capture of the test harness, so that it is seen when all passes.
pub fn skipped(test: &str, why: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "skipped: {test}: {why}");
}
