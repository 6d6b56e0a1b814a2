//! Recordings of a PC's interrupt controllers and its timer under Debian's kernel, asked of ours: every read, every message of
//! the IOAPIC and every interrupt taken is the same.
//!
//! Who recorded what is in `tests/recordings/README.md`. What differs by design is named where it is handled: search for
//! "QEMU:". All of it was seen with QEMU 7.2.
//!
//! `DEVISOR_RECORDING` names a file to replay in place of those in the tree. A failure prints the last events.

#![cfg(feature = "irqchip")]

mod counts;
mod machine;
mod time;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use flate2::read::GzDecoder;

use self::{counts::Counts, machine::Machine};

/// All parts move to other ones after every so many events.
const MIGRATION: usize = 23;

#[test]
fn linux_gets_the_answers_and_the_interrupts_that_qemu_gave_it() {
    let counts = replay("pc-apic-1-cpus", usize::MAX);
    assert!(
        counts.taken > 500 && counts.messages > 1_000 && counts.reads > 400,
        "{counts:?}"
    );
    assert!(counts.expired > 400 && counts.migrations == 0, "{counts:?}");
}

#[test]
fn linux_on_two_cpus_gets_the_answers_and_the_interrupts_that_qemu_gave_it() {
    let counts = replay("pc-apic-2-cpus", usize::MAX);
    assert!(
        counts.taken > 2_000 && counts.messages > 1_500 && counts.reads > 1_500,
        "{counts:?}"
    );
    assert!(counts.started == 5 && counts.expired > 1_000, "{counts:?}");
}

#[test]
fn linux_without_apics_gets_the_answers_and_the_interrupts_that_qemu_gave_it() {
    let counts = replay("pc-pic", usize::MAX);
    assert!(
        counts.external > 500 && counts.reads > 1_000 && counts.rises > 400,
        "{counts:?}"
    );
}

#[test]
fn nothing_is_lost_when_the_state_moves_to_other_chips_every_now_and_then() {
    for name in ["pc-apic-1-cpus", "pc-apic-2-cpus", "pc-pic"] {
        let counts = replay(name, MIGRATION);
        assert!(counts.migrations > 500, "{counts:?}");
    }
}

/// The lines of a recording.
fn recording(name: &str) -> Vec<String> {
    let path = match std::env::var_os("DEVISOR_RECORDING") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recordings/{name}.txt.gz")),
    };
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if path.extension().is_some_and(|extension| extension == "gz") {
        BufReader::new(GzDecoder::new(file))
            .lines()
            .map(Result::unwrap)
            .collect()
    } else {
        BufReader::new(file).lines().map(Result::unwrap).collect()
    }
}

/// Asks all that a recording asks. The state moves after every `migration` events.
fn replay(name: &str, migration: usize) -> Counts {
    let lines = recording(name);
    let cpus = lines[0].strip_prefix("cpus ").expect("a recording");
    let mut machine = Machine::new(cpus.parse().unwrap());
    let mut counts = Counts::default();
    for (number, line) in lines.iter().enumerate().skip(1) {
        counts.events += 1;
        if let Err(difference) = machine.event(line, &mut counts) {
            let before = lines[number.saturating_sub(40)..number].join("\n");
            panic!("{name}, line {}: {difference}\n{before}\n{line}   <- here", number + 1);
        }
        // A message follows what caused it.
        if number % migration == migration - 1 && machine.has_said_all() {
            machine = machine.migrated();
            counts.migrations += 1;
        }
    }
    machine.end();
    assert!(
        counts.prompt * 10 > (counts.expired + counts.rises) * 8,
        "timers of ours go off before QEMU's: {counts:?}"
    );
    println!("{name}: {counts:?}");
    counts
}
