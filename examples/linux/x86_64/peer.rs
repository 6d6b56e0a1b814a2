//! The same kernel on a machine whose devices are rsemu's, to compare what ours cost with what others do.

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use rsemu::{
    core::device::ResetKind,
    host::chardev::ports,
    machine::{build, catalog},
};

use super::{board, command_line};
use crate::{cpu_time, options::Options, watch::Watch};

/// What the CPU has spent until the kernel says that its first process begins: after that the two differ in more than their chips, for
/// the disks are of different kinds.
pub fn cpu_time_to_init(options: &Options) -> Result<Duration, Box<dyn Error>> {
    const CLOCK: &str = "osc cpu   = 100000000 Hz";
    const OURS: &str = "osc cpu   = 1000000000 Hz";
    let mut build_options = catalog::build_options()?
        .with_param("cmdline", command_line(options).as_str())
        .with_param("engine", options.engine.as_str())
        .with_param("extmem", format!("{}", board::RAM.len - board::HIGH).as_str());
    let media = &mut build_options.realize.media;
    media.insert("kernel", fs::read(&options.kernel)?);
    media.insert("initrd", fs::read(&options.initrd)?);
    media.insert("nvme0", vec![0; 16 << 20]);
    let entry = catalog::machine("q35-linux").ok_or("rsemu has no machine q35-linux")?;
    // A core as fast as ours has as many ticks of its timers to do for an instruction.
    if !entry.source.contains(CLOCK) {
        return Err("rsemu's machine has another clock than expected".into());
    }
    let text = entry.source.replace(CLOCK, OURS);
    let (started, before) = (Instant::now(), cpu_time());
    let mut machine = build(entry.name, &text, &catalog::registry()?, &build_options)?;
    machine.reset(ResetKind::Cold);
    machine.sweep();
    let console = ports::open(&build_options.realize.hosts, "console")?;
    let mut said = Vec::new();
    while started.elapsed() < options.timeout {
        machine.run_quantum()?;
        if console.pending_output() == 0 {
            continue;
        }
        console.drain_into(&mut said);
        let begun = said
            .windows(Watch::INIT.len())
            .any(|window| window == Watch::INIT.as_bytes());
        if begun {
            return Ok(cpu_time() - before);
        }
        if said.ends_with(b"\n") {
            said.clear();
        }
    }
    Err(format!(
        "on rsemu's devices it has not come to its first process within {:?}",
        options.timeout
    )
    .into())
}
