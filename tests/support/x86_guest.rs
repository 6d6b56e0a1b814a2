//! The guest of `tests/guest/x86`: it checks interrupts and timers of an x86 machine by itself, and reports on its serial port.
//!
//! It is a multiboot-1 kernel, built here with the C compiler at hand. Its command line can have `cpus=N`, where there is no
//! fw_cfg to say so, and `only=PREFIX,PREFIX`, the names of the checks to run. It says `ok NAME`, `FAIL NAME: WHAT`,
//! `skip NAME: WHY` for what cannot be judged on a machine, `absent NAME: WHY` for what the machine does not have, and
//! last a verdict. It ends with a write to port 0xf4: 0 if all is well.
//!
//! ```ignore
//! let kernel = x86_guest::kernel()?;
//! let report = Report::of(Command::new("a VMM").arg(kernel));
//! report.expect_good();
//! ```
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{self, Command, ExitStatus, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// How long a guest may take: only one that fails does.
const PATIENCE: Duration = Duration::from_secs(120);

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/x86");

/// What the compiler must be able to do: 32-bit x86, without a library.
const TARGET: [&str; 4] = ["-m32", "-march=i486", "-ffreestanding", "-nostdlib"];

/// No vector instructions and no x87, which a guest would have to switch on first, and nothing that wants a library or a
/// loader.
const FLAGS: [&str; 18] = [
    "-std=gnu11",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-mno-sse",
    "-mno-mmx",
    "-mno-80387",
    "-fno-pic",
    "-no-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-fno-tree-loop-distribute-patterns",
    "-Wl,-n",
    "-Wl,-z,max-page-size=4096",
    "-Wl,--no-warn-rwx-segments",
    "-Wl,--build-id=none",
];

/// The kernel's file, built once for this process.
///
/// # Errors
/// Why a test that needs it is skipped: no compiler for it.
///
/// # Panics
/// The compiler refuses the sources.
pub fn kernel() -> Result<&'static Path, String> {
    static KERNEL: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    KERNEL.get_or_init(build).as_deref().map_err(String::clone)
}

fn build() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // Of this process alone until it is complete: other tests build the same file.
    let object = folder.join(format!("x86-guest-{}", process::id()));
    compile(
        Command::new("gcc")
            .args(TARGET)
            .args(["-x", "c", "-c", "/dev/null", "-o"])
            .arg(&object),
    )?;

    let mut sources: Vec<_> = fs::read_dir(SOURCES)
        .expect("the guest's sources are there")
        .map(|entry| entry.expect("the guest's sources can be listed").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "c" || extension == "S")
        })
        .collect();
    sources.sort();
    let mut gcc = Command::new("gcc");
    gcc.args(TARGET).args(FLAGS);
    gcc.arg(format!("-Wl,-T,{SOURCES}/link.ld"))
        .arg("-o")
        .arg(&object)
        .args(sources);
    compile(&mut gcc).unwrap_or_else(|error| panic!("{error}"));
    let kernel = folder.join("x86-guest.elf");
    fs::rename(&object, &kernel).expect("a file can be renamed in the folder where it was made");
    Ok(kernel)
}

fn compile(gcc: &mut Command) -> Result<(), String> {
    let output = gcc.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "gcc is not installed".to_owned(),
        _ => format!("gcc does not start: {error}"),
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "gcc builds nothing for 32-bit x86: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// What the guest said.
#[derive(Debug)]
pub struct Report {
    /// All of it.
    pub text: String,
    /// How its machine ended.
    pub status: ExitStatus,
    /// Checks that were right.
    pub ok: BTreeSet<String>,
    /// What was wrong: whole lines.
    pub failed: Vec<String>,
    /// Checks that cannot be judged on this machine, and why.
    pub skipped: BTreeMap<String, String>,
    /// Checks of what the machine does not have, and what that is.
    pub absent: BTreeMap<String, String>,
    /// The last line.
    pub verdict: Option<String>,
}

impl Report {
    /// Runs a machine that has the guest's serial port as its standard output.
    ///
    /// # Errors
    /// Why it cannot be run.
    pub fn of(machine: &mut Command) -> Result<Self, String> {
        let mut child = machine
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => format!("{} is not installed", machine.get_program().display()),
                _ => format!("{} does not start: {error}", machine.get_program().display()),
            })?;
        let mut output = child.stdout.take().expect("it is piped");
        let reader = thread::spawn(move || {
            let mut bytes = vec![];
            let _ = output.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        };
        Ok(Self::parse(reader.join().expect("reading does not panic"), status))
    }

    fn parse(text: String, status: ExitStatus) -> Self {
        let mut report = Self {
            text: String::new(),
            status,
            ok: BTreeSet::new(),
            failed: vec![],
            skipped: BTreeMap::new(),
            absent: BTreeMap::new(),
            verdict: None,
        };
        for line in text.lines() {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
            match kind {
                "ok" => drop(report.ok.insert(name.to_owned())),
                "FAIL" => report.failed.push(line.to_owned()),
                "skip" => drop(report.skipped.insert(name.to_owned(), why.to_owned())),
                "absent" => drop(report.absent.insert(name.to_owned(), why.to_owned())),
                "PASS:" | "FAIL:" => report.verdict = Some(line.to_owned()),
                _ => (),
            }
        }
        report.text = text;
        report
    }

    /// Panics unless the guest came to its end, with `cpus` CPUs, and found nothing wrong. Checks may be skipped or absent:
    /// that is for the caller to judge.
    pub fn expect_good(&self, cpus: u32) {
        let verdict = format!(
            "PASS: {} ok, 0 failed, {} skipped, {} absent, {cpus} CPUs",
            self.ok.len(),
            self.skipped.len(),
            self.absent.len()
        );
        let good = self.verdict.as_deref() == Some(&verdict) && self.failed.is_empty();
        // The exit port's 0 becomes `0 << 1 | 1`.
        assert!(
            good && self.status.code() == Some(1),
            "{}\nwith {}",
            self.text,
            self.status
        );
    }
}
