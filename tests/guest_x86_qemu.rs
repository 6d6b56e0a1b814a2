//! The guest of `tests/guest/x86` on QEMU's machine: whether its checks are right, before they judge ours.
//!
//! With TCG, so that all of the machine is QEMU's own model. All of it was seen with QEMU 7.2.

#![cfg(target_os = "linux")]

#[path = "support/skip.rs"]
mod skip;
#[path = "support/x86_guest.rs"]
mod x86_guest;

use std::{collections::BTreeSet, process::Command};
use x86_guest::Report;

/// What QEMU 7.2's machine does not have, all of which our controllers do.
const ABSENT: [&str; 19] = [
    "ioapic-low-active",
    "ioapic-suppressed-eoi-broadcast",
    "lapic-illegal-vector",
    "lapic-lint0-fixed",
    "lapic-software-disable",
    "pit-gate",
    "timer-deadline",
    "timer-deadline-disarmed",
    "timer-deadline-passed",
    "x2apic-command",
    "x2apic-enter",
    "x2apic-faults",
    "x2apic-identity",
    "x2apic-leave",
    "x2apic-message",
    "x2apic-reserved-bits",
    "x2apic-self-ipi",
    "x2apic-task-priority",
    "x2apic-timer",
];

/// The same, with a second CPU.
const ABSENT_OF_TWO: [&str; 1] = ["x2apic-other"];

fn run(cpus: u32) {
    let kernel = match x86_guest::kernel() {
        Ok(kernel) => kernel,
        Err(why) => return skip::skipped(why),
    };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-machine",
        "pc",
        "-accel",
        "tcg",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]);
    qemu.args(["-serial", "stdio", "-m", "32", "-smp", &cpus.to_string()]);
    qemu.args([
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=4",
        "-device",
        "pc-testdev",
    ]);
    qemu.arg("-kernel").arg(kernel);
    let report = match Report::of(&mut qemu) {
        Ok(report) => report,
        Err(why) => return skip::skipped(why),
    };
    report.expect_good(cpus);
    assert!(report.skipped.is_empty(), "{}", report.text);
    let absent: BTreeSet<_> = report.absent.keys().map(String::as_str).collect();
    // A later QEMU may have more, not less.
    let mut known = BTreeSet::from(ABSENT);
    known.extend(ABSENT_OF_TWO);
    assert!(absent.is_subset(&known), "{}", report.text);
    // Three out of four checks find something to check.
    assert!(report.ok.len() > 3 * absent.len(), "{}", report.text);
}

#[test]
fn qemus_machine_passes_with_one_cpu() {
    run(1);
}

#[test]
fn qemus_machine_passes_with_two_cpus() {
    run(2);
}
