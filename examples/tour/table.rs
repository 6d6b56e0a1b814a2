//! The table: one line a row, printed as soon as it is known.

use std::fmt::Display;

use crate::{
    board::Wiring,
    completion::Completion,
    devices::Device,
    row::{Row, RowError, RunsOn},
};

/// Prints the columns' names.
pub fn print_header() {
    print_cells(
        ["backend", "line", "device", "runs on"],
        ["requests", "bytes", "raised", "suppressed", "taken", "ns to taken"],
    );
}

/// Prints a row that is good.
pub fn print_row(wiring: &Wiring, device: &Device, runs_on: RunsOn, row: &Row) {
    let &Row {
        requests,
        bytes,
        raised,
        suppressed,
        taken,
        latency,
    } = row;
    let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
    print_cells(
        names(wiring, device, runs_on),
        [requests, bytes, raised, suppressed, taken, latency],
    );
}

/// Prints why a row is not good.
pub fn print_failure(wiring: &Wiring, device: &Device, runs_on: RunsOn, error: &RowError) {
    print_words(names(wiring, device, runs_on));
    println!("  FAILED: {error}");
}

/// Prints why a backend has no rows.
pub fn print_absent(wiring: &Wiring, why: &str) {
    print_words([wiring.backend, "", "", ""]);
    println!("  cannot run here: {why}");
}

fn names(wiring: &Wiring, device: &Device, runs_on: RunsOn) -> [&'static str; 4] {
    let runs_on = match runs_on {
        RunsOn::Kick => "guest",
        RunsOn::Worker(Completion::Round) => "worker",
        RunsOn::Worker(completion) => {
            let mut names = Completion::NAMES.into_iter();
            names
                .find(|(_, other)| *other == completion)
                .map_or("", |(name, _)| name)
        }
    };
    [wiring.backend, wiring.line, device.name, runs_on]
}

fn print_words([backend, line, device, runs_on]: [&str; 4]) {
    print!("{backend:<9} {line:<18} {device:<8} {runs_on:<8}");
}

fn print_cells<N: Display>(words: [&str; 4], numbers: [N; 6]) {
    print_words(words);
    for (number, width) in numbers.iter().zip([9, 9, 7, 11, 7, 12]) {
        print!(" {number:>width$}");
    }
    println!();
}
