//! What a boot costs, and where it ends.

use std::time::Duration;

use crate::{options::Arch, watch::Watch};

/// What a boot has cost.
#[derive(Clone, Copy)]
pub struct Cost {
    /// What the CPU has spent.
    pub cpu: Duration,
    /// The guest's own time at its end, in seconds: how much of it there was to emulate.
    pub guest: f64,
}

/// What a kernel says last, of what is measured: on a PC when its first process begins, for with that comes what the emulator's core does
/// wrong (`x86_64/faults.rs`), and the reference has nothing against it.
pub fn last(arch: Arch) -> &'static str {
    match arch {
        Arch::Arm64 => "reboot: Power down",
        Arch::X86_64 => Watch::INIT,
    }
}

/// When it has said that, in seconds, which stand before each line of a kernel's.
pub fn said_at(console: &str, last: &str) -> Option<f64> {
    let line = console.lines().find(|line| line.contains(last))?;
    line.split(['[', ']']).nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_when_it_ends() {
        let console = "[    0.000000] Booting\n[    4.136213] reboot: Power down\n";
        assert_eq!(said_at(console, last(Arch::Arm64)), Some(4.136213));
        assert_eq!(said_at(console, last(Arch::X86_64)), None);
    }
}
