//! The same requests by `fio`, with the file registered.

use std::{path::Path, process::Command};

use super::{FILE, Turn, Work};

/// For a second, or for so many requests of all queues.
pub fn command(work: &Work, path: &Path, requests: Option<u32>) -> Command {
    let mut command = Command::new("fio");
    let kind = match (work.sequential, work.writes) {
        (true, false) => "read",
        (true, true) => "write",
        (false, false) => "randread",
        (false, true) => "randwrite",
    };
    command
        .args([
            "--name=x",
            "--ioengine=io_uring",
            "--registerfiles=1",
            "--thread",
            "--group_reporting",
        ])
        .args([
            "--norandommap",
            "--randrepeat=0",
            "--output-format=terse",
            "--terse-version=3",
        ])
        .arg(format!("--filename={}", path.display()))
        .args([
            format!("--rw={kind}"),
            format!("--bs={}", work.len),
            format!("--iodepth={}", work.depth),
            format!("--numjobs={}", work.queues),
            format!("--direct={}", u8::from(work.direct)),
            format!("--size={FILE}"),
        ]);
    match requests {
        Some(requests) => command.arg(format!("--number_ios={}", requests / u32::from(work.queues))),
        None => command.args(["--time_based", "--runtime=1"]),
    };
    command
}

/// What each request has taken. `None` where there is no `fio`.
pub fn turn(work: &Work, path: &Path) -> Option<Turn> {
    let output = command(work, path, None).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let fields: Vec<_> = text.lines().find(|line| line.starts_with("3;"))?.split(';').collect();
    // Of version 3: requests a second of reads and of writes, then shares of a CPU, of one job on average.
    let number = |at: usize| fields.get(at)?.trim_end_matches('%').parse::<f64>().ok();
    let rate = number(if work.writes { 48 } else { 7 })?;
    let share = (number(87)? + number(88)?) / 100.0 * f64::from(work.queues);
    Some(Turn {
        time: 1e6 / rate,
        cpu: share * 1e6 / rate,
    })
}
