//! The same kernels on machines whose devices are rsemu's, to compare what ours cost with what others do.

use std::{error::Error, fs, time::Instant};

use rsemu::{
    core::device::ResetKind,
    host::chardev::ports,
    machine::{build, catalog},
};

use crate::{
    arm64,
    cost::{Cost, last, said_at},
    options::{Arch, Options},
    spent::{self, Turn},
    x86_64,
};

/// What it costs from the reset until the kernel says what is [`last`]. `turn` is over after each quantum.
pub fn cost(options: &Options, turn: &Turn<'_>) -> Result<Cost, Box<dyn Error>> {
    let arch = options.arch;
    let (name, command_line, disk) = match arch {
        Arch::Arm64 => ("arm64-virt", arm64::command_line(options), "disk"),
        Arch::X86_64 => ("q35-linux", x86_64::command_line(options), "nvme0"),
    };
    let mut build_options = catalog::build_options()?
        .with_param("cmdline", command_line.as_str())
        .with_param("engine", options.engine.as_str());
    let media = &mut build_options.realize.media;
    media.insert("kernel", fs::read(&options.kernel)?);
    media.insert("initrd", fs::read(&options.initrd)?);
    media.insert(disk, vec![0; 16 << 20]);
    let entry = catalog::machine(name).ok_or("rsemu has no such machine")?;
    let mut text = entry.source.to_string();
    build_options = match arch {
        Arch::Arm64 => build_options
            .with_param("ram", arm64::board::RAM.len.to_string().as_str())
            .with_param("cpu-hz", arm64::TICKS_PER_SECOND.to_string().as_str()),
        Arch::X86_64 => {
            // A core as fast as ours has as many ticks of its timers to do for an instruction.
            text = replaced(&text, "osc cpu   = 100000000 Hz", "osc cpu   = 1000000000 Hz")?;
            build_options.with_param("extmem", (x86_64::RAM - x86_64::HIGH).to_string().as_str())
        }
    };
    let mut machine = build(entry.name, &text, &catalog::registry()?, &build_options)?;
    machine.reset(ResetKind::Cold);
    machine.sweep();
    let console = ports::open(&build_options.realize.hosts, "console")?;
    let mut said = Vec::new();
    let (started, before) = (Instant::now(), spent::cpu_time());
    while started.elapsed() < options.timeout {
        turn.next();
        machine.run_quantum()?;
        if console.pending_output() == 0 {
            continue;
        }
        console.drain_into(&mut said);
        if let Some(guest) = said_at(&String::from_utf8_lossy(&said), last(arch)) {
            let cpu = spent::cpu_time() - before;
            return Ok(Cost { cpu, guest });
        }
        if said.ends_with(b"\n") {
            said.clear();
        }
    }
    let limit = options.timeout;
    Err(format!("on rsemu's devices it has not come to its end within {limit:?}").into())
}

fn replaced(text: &str, from: &str, to: &str) -> Result<String, Box<dyn Error>> {
    match text.contains(from) {
        true => Ok(text.replace(from, to)),
        false => Err(format!("rsemu's machine has no {from:?}").into()),
    }
}
