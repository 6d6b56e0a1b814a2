//! `--measure yes`: what a boot costs on our devices and on the emulator's own, in turns; and how often our devices are accessed.
//!
//! On both, the same kernel runs with the same command line on the same cores, whose clocks tick alike, and powers off with its first
//! process; on a PC what comes before that process is compared. On neither is there a disk to be used; what the guest prints is taken at once. Ours has more in it: a keyboard and a mouse
//! on a PC, and on each board what records interrupts. Theirs lets a core of arm64 that sleeps count its ticks one by one.

use std::{error::Error, sync::Arc, time::Duration};

use crate::{
    firmware::Typist,
    options::{Arch, Options},
    peer, run, spent,
    watch::{Watch, Wire},
    wing::Plan,
};

const ROUNDS: usize = 3;

/// Whether ours costs no more. The cheapest of the rounds is the one that nobody else's work got into.
pub fn compare(options: &Options) -> Result<bool, Box<dyn Error>> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut accesses = Vec::new();
    for _ in 0..ROUNDS {
        let cost;
        (cost, accesses) = on_ours(options)?;
        ours.push(cost);
        theirs.push(peer::cpu_time(options)?);
    }
    println!("\naccesses by device:");
    for (name, count) in accesses {
        println!("{name:<20}{count:>12}");
    }
    let end = match options.arch {
        Arch::Arm64 => "power-off",
        Arch::X86_64 => "the first process",
    };
    println!("CPU time from reset to {end}: on our devices {ours:.2?}, on rsemu's own {theirs:.2?}");
    let least = |of: &[Duration]| of.iter().min().map_or(0.0, Duration::as_secs_f64);
    let ratio = least(&ours) / least(&theirs);
    println!("least of each: {ratio:.3} of it, where at most 1 is wanted");
    Ok(ratio <= 1.0)
}

/// What the CPU has spent, and how often each device was accessed.
#[expect(clippy::type_complexity, reason = "two things that one run brings")]
fn on_ours(options: &Options) -> Result<(Duration, Vec<(&'static str, u64)>), Box<dyn Error>> {
    let disk = options.disk.for_a_run()?;
    let (watch, wire) = (Arc::new(Watch::default()), Arc::new(Wire::default()));
    let plan = Plan {
        options,
        disk: &disk,
        watch: &watch,
        wire: &wire,
    };
    let wing = run::machine(&plan)?;
    let before = spent::cpu_time();
    run::until_off(
        &*wing,
        &watch,
        &wire,
        usize::MAX,
        Typist::new("", false),
        options.timeout,
    )?;
    let end = match options.arch {
        Arch::Arm64 => spent::cpu_time(),
        Arch::X86_64 => watch.begun().ok_or("the guest has no first process")?,
    };
    Ok((end - before, wing.accesses()))
}
