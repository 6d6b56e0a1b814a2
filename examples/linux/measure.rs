//! `--measure yes`: what a boot costs on our devices and on the emulator's own, in turns of a millisecond of the guest's; and how often our
//! devices are accessed.
//!
//! On both, the same kernel runs with the same command line on the same cores, whose clocks tick alike, and powers off with its first
//! process; on a PC what comes before that process is compared. On neither is there a disk to be used; what the guest prints is taken at once. Ours has more in it: a keyboard and a mouse
//! on a PC, and on each board what records interrupts. Theirs lets a core of arm64 that sleeps count its ticks one by one.

use std::{error::Error, thread, time::Duration};

use crate::{
    cost::{Cost, last, said_at},
    firmware::Typist,
    options::{Arch, Options},
    peer,
    run::{self, Guest, Pace},
    spent::{self, Turn, Turns},
};

const ROUNDS: usize = 3;

/// As long as rsemu's own machines let their cores run, and a wire that is as fast as theirs.
const PACE: Pace = Pace {
    quantum: Duration::from_millis(1),
    characters: usize::MAX,
};

/// Whether ours costs no more.
pub fn compare(options: &Options) -> Result<bool, Box<dyn Error>> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut accesses = Vec::new();
    for _ in 0..ROUNDS {
        let turns = Turns::new();
        let (on_ours, on_theirs) = thread::scope(|scope| {
            let on_ours = scope.spawn(|| on_ours(options, &turns.begin(0)).map_err(|error| error.to_string()));
            let on_theirs = scope.spawn(|| peer::cost(options, &turns.begin(1)).map_err(|error| error.to_string()));
            (on_ours.join(), on_theirs.join())
        });
        let cost;
        (cost, accesses) = on_ours.expect("it has not panicked")?;
        ours.push(cost);
        theirs.push(on_theirs.expect("it has not panicked")?);
    }
    println!("\naccesses by device:");
    for (name, count) in accesses {
        println!("{name:<20}{count:>12}");
    }
    let end = match options.arch {
        Arch::Arm64 => "power-off",
        Arch::X86_64 => "the first process",
    };
    println!("CPU time from reset to {end}, and the guest's:");
    for (whose, costs) in [("on our devices", &ours), ("on rsemu's own", &theirs)] {
        let costs = costs
            .iter()
            .map(|Cost { cpu, guest }| format!("{cpu:.2?} for {guest:.2} s"));
        println!("  {whose}: {}", costs.collect::<Vec<_>>().join(", "));
    }
    let total = |of: &[Cost]| of.iter().map(|cost| cost.cpu).sum::<Duration>().as_secs_f64();
    let ratio = total(&ours) / total(&theirs);
    println!("all together: {ratio:.3} of it, where at most 1 is wanted");
    Ok(ratio <= 1.0)
}

/// What the CPU has spent, and how often each device was accessed.
#[expect(clippy::type_complexity, reason = "two things that one run brings")]
fn on_ours(options: &Options, turn: &Turn<'_>) -> Result<(Cost, Vec<(&'static str, u64)>), Box<dyn Error>> {
    let disk = options.disk.for_a_run()?;
    let guest = Guest::new(options, &disk)?;
    let before = spent::cpu_time();
    run::until_off(&guest, PACE, Typist::new("", false), options.timeout, || turn.next())?;
    let end = match options.arch {
        Arch::Arm64 => spent::cpu_time(),
        Arch::X86_64 => guest.watch.begun().ok_or("the guest has no first process")?,
    };
    let console = guest.watch.seen().console;
    let said = said_at(&String::from_utf8_lossy(&console), last(options.arch));
    let cost = Cost {
        cpu: end - before,
        guest: said.ok_or("the guest does not say when it ended")?,
    };
    Ok((cost, guest.wing.accesses()))
}
