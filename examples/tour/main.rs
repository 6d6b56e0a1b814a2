//! A tour of the backends: the same five devices, driven by guest drivers that we did not write and woken by interrupts alone,
//! on every backend that this machine has.
//!
//! ```text
//! cargo run --release --example tour
//! ```

mod board;
#[path = "../shared/completion.rs"]
mod completion;
mod devices;
mod guest;
#[path = "../../tests/support/guest_cpu.rs"]
mod guest_cpu;
#[allow(dead_code, reason = "shared with tests, which need other parts of it")]
#[path = "../../tests/support/guest_drivers.rs"]
mod guest_drivers;
#[allow(dead_code, reason = "shared with tests, which need other parts of it")]
#[path = "../../tests/support/guest_pci.rs"]
mod guest_pci;
#[cfg(test)]
#[path = "../../tests/support/host_file.rs"]
mod host_file;
mod hvf;
mod hvf_own_gic;
mod irqchip;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kvm;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "shared with tests, which need other parts of it")]
#[path = "../../tests/support/kvm_guest.rs"]
mod kvm_guest;
mod lapic;
mod machine;
mod recorder;
mod row;
#[cfg(test)]
#[path = "../../tests/support/skip.rs"]
mod skip;
mod table;
mod worker;

use std::{
    error::Error,
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use devisor::{backends::recorder::Recorder, time::HostClock};

use board::{PlugError, Wiring};
use devices::DEVICES;
use row::{RunsOn, Setting};

const HELP: &str = "\
Drives a disk, a source of entropy, a network, a console and sockets through every backend, with guest drivers that sleep until
they are interrupted.

Usage: cargo run --release --example tour [-- OPTIONS]

  --backend NAME   this backend alone, and fail if it cannot run; may be repeated (recorder, irqchip, kvm, hvf)
  --vcd FILE       write the waveform of all lines, for a viewer such as GTKWave or Surfer
  --pcap FILE      write the frames of the first row that has some, for tcpdump or Wireshark
  --help           this text

The columns: the device's thread, or when else than in their round a worker completes the requests, requests that the guest made,
bytes that it compared, how often the line was raised, completions that the guest did not want to hear of, interrupts that the guest
took, and the median of the time from raise to taken. A guest takes a level again that is not lowered when it ends the interrupt. A guest on whose thread the device
runs is interrupted while it kicks, and takes the interrupt when it has put in its other requests. A row of the network has two
guests, each with a board of its own: numbers of both together, and the longer of their times.

The exit status is 0 if every row is good; a backend that this machine does not have is not a failure.
";

/// The ways to interrupt, backend by backend.
fn wirings() -> Vec<Wiring> {
    [
        recorder::WIRINGS,
        irqchip::WIRINGS,
        lapic::WIRINGS,
        kvm::WIRINGS,
        hvf::WIRINGS,
        hvf_own_gic::WIRINGS,
    ]
    .concat()
}

/// KVM's guest program is for another processor than this one.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod kvm {
    use super::board::{PlugError, Wiring};

    pub const WIRINGS: &[Wiring] = &[Wiring {
        backend: "kvm",
        line: "",
        plug: |_| {
            Err(PlugError::Unavailable(
                "the guest program is for x86_64 under Linux".into(),
            ))
        },
    }];
}

/// What the command line asks for.
#[derive(Default)]
struct Arguments {
    help: bool,
    backends: Vec<String>,
    vcd: Option<PathBuf>,
    pcap: Option<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>, known: &[&str]) -> Result<Self, String> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--help" | "-h" => arguments.help = true,
                "--backend" => {
                    let name = words.next().ok_or("--backend needs a name")?;
                    if !known.contains(&name.as_str()) {
                        return Err(format!("no backend `{name}`: there are {}", known.join(", ")));
                    }
                    arguments.backends.push(name);
                }
                "--vcd" => arguments.vcd = Some(words.next().ok_or("--vcd needs a file")?.into()),
                "--pcap" => arguments.pcap = Some(words.next().ok_or("--pcap needs a file")?.into()),
                _ => return Err(format!("unknown argument `{word}`: try --help")),
            }
        }
        Ok(arguments)
    }

    fn named(&self, backend: &str) -> bool {
        self.backends.iter().any(|name| name == backend)
    }
}

fn main() -> ExitCode {
    let wirings = wirings();
    let mut backends: Vec<_> = wirings.iter().map(|wiring| wiring.backend).collect();
    backends.dedup();
    let arguments = match Arguments::parse(std::env::args().skip(1), &backends) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("tour: {error}");
            return ExitCode::from(2);
        }
    };
    if arguments.help {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match tour(&wirings, &arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tour: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs and prints every row that was asked for. Returns whether all are good.
fn tour(wirings: &[Wiring], arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    // The only clock in the process, and the embedder's.
    let clock = Arc::new(HostClock::starting_at(Duration::ZERO));
    let recorder = Recorder::builder().clock(clock.clone()).capacity(1 << 20).build();
    // Made at once: that it cannot be written is known before the tour and not after it.
    let create = |path: &PathBuf| match File::create(path) {
        Ok(file) => Ok((path.clone(), file)),
        Err(error) => Err(format!("{} cannot be written: {error}", path.display())),
    };
    let vcd = arguments.vcd.as_ref().map(create).transpose()?;
    let waveform = vcd.is_some().then_some(&recorder);
    let pcap = arguments.pcap.as_ref().map(create).transpose()?;
    let (pcap, capture) = pcap.unzip();
    let capture = Mutex::new(capture);
    let mut bad = 0;
    let mut good = 0;
    let mut absent: Option<&str> = None;
    table::print_header();
    for (number, wiring) in wirings.iter().enumerate() {
        if !arguments.backends.is_empty() && !arguments.named(wiring.backend) {
            continue;
        }
        for (turn, device) in DEVICES.iter().enumerate() {
            // It runs on either thread, in turns; and then once more, as one that completes later.
            let at_once = device.at_once[(number + turn) % device.at_once.len()];
            let later = device.later.iter().cycle().nth(number).copied().map(RunsOn::Worker);
            for runs_on in [Some(at_once), later].into_iter().flatten() {
                if absent == Some(wiring.backend) {
                    continue;
                }
                let setting = Setting {
                    wiring,
                    runs_on,
                    clock: clock.clone(),
                    waveform,
                    capture: &capture,
                };
                match (device.run)(&setting) {
                    Ok(row) => {
                        good += 1;
                        table::print_row(wiring, device, runs_on, &row);
                    }
                    Err(row::RowError::Plug(PlugError::Unavailable(why))) => {
                        absent = Some(wiring.backend);
                        bad += u32::from(arguments.named(wiring.backend));
                        table::print_absent(wiring, &why);
                    }
                    Err(error) => {
                        bad += 1;
                        table::print_failure(wiring, device, runs_on, &error);
                    }
                }
            }
        }
    }
    if let Some((path, file)) = vcd {
        let mut writer = BufWriter::new(file);
        recorder.write_vcd(&mut writer)?;
        writer.flush()?;
        println!("\nThe waveform is in {}.", path.display());
    }
    if let Some(path) = pcap {
        println!("\nThe frames are in {}.", path.display());
    }
    println!("\n{good} rows are good, {bad} are not.");
    Ok(bad == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::Device;
    use devisor::interrupt::{Interrupt, from_fn};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn parse(words: &[&str]) -> Result<Arguments, String> {
        let words = words.iter().map(|word| word.to_string());
        Arguments::parse(words, &["recorder", "kvm"])
    }

    #[test]
    fn arguments_are_taken_as_the_help_says() {
        let words = "--backend kvm --vcd lines.vcd --pcap frames.pcap --backend recorder";
        let arguments = parse(&words.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!(arguments.backends, ["kvm", "recorder"]);
        assert_eq!(arguments.vcd, Some("lines.vcd".into()));
        assert_eq!(arguments.pcap, Some("frames.pcap".into()));
        assert!(!arguments.help);
        assert!(parse(&["--help"]).unwrap().help);
    }

    #[test]
    fn arguments_that_do_not_exist_are_refused_with_those_that_do() {
        let refused = |words: &[&str]| parse(words).err().unwrap();
        assert_eq!(refused(&["--backends"]), "unknown argument `--backends`: try --help");
        assert_eq!(
            refused(&["--backend", "xen"]),
            "no backend `xen`: there are recorder, kvm"
        );
        assert_eq!(refused(&["--backend"]), "--backend needs a name");
        assert_eq!(refused(&["--vcd"]), "--vcd needs a file");
        assert_eq!(refused(&["--pcap"]), "--pcap needs a file");
    }

    fn run(wiring: &Wiring, device: &Device, runs_on: RunsOn) -> Result<row::Row, row::RowError> {
        run_captured(wiring, device, runs_on, None)
    }

    fn run_captured(
        wiring: &Wiring,
        device: &Device,
        runs_on: RunsOn,
        capture: Option<File>,
    ) -> Result<row::Row, row::RowError> {
        (device.run)(&Setting {
            wiring,
            runs_on,
            clock: Arc::new(HostClock::starting_at(Duration::ZERO)),
            waveform: None,
            capture: &Mutex::new(capture),
        })
    }

    /// A GIC behind a line that swallows every interrupt from the fifth on, and says that it was delivered. One alone
    /// could be one that the guest did not need: it looks at the ring again after it has asked to be told.
    const SWALLOWING: Wiring = Wiring {
        backend: "irqchip",
        line: "swallowing",
        plug: |bench| {
            irqchip::plug_edge(bench, |line| {
                let count = AtomicU32::new(0);
                from_fn(move || match count.fetch_add(1, Ordering::SeqCst) {
                    0..4 => line.trigger(),
                    _ => Ok(()),
                })
            })
        },
    };

    #[test]
    fn a_row_that_loses_an_interrupt_fails_and_shows_the_lines() {
        let lose = |device, runs_on| {
            let error = run(&SWALLOWING, device, runs_on).err().unwrap().to_string();
            assert!(
                error.starts_with("lost interrupt: the CPU's IRQ input did not rise"),
                "{error}"
            );
            // Of two guests, one may have waited for what the other did not send.
            let mut guests = error.split("lost interrupt").skip(1);
            assert!(
                guests.any(|lines| lines.trim_end().ends_with("line")),
                "{}: the last event is the raise that nobody took: {error}",
                device.name
            );
        };
        // Each waits for an interrupt in vain: all at once.
        std::thread::scope(|scope| {
            for device in &DEVICES {
                for runs_on in device.at_once {
                    scope.spawn(move || lose(device, *runs_on));
                }
            }
        });
    }

    #[test]
    fn each_kind_of_line_makes_a_good_row() {
        for wiring in wirings() {
            for device in &DEVICES {
                let later = device.later.iter().copied().map(RunsOn::Worker);
                for runs_on in device.at_once.iter().copied().chain(later) {
                    let row = format!("{} {} {} {runs_on:?}", wiring.backend, wiring.line, device.name);
                    match run(&wiring, device, runs_on) {
                        Ok(_) => {}
                        Err(row::RowError::Plug(PlugError::Unavailable(why))) => skip::skipped(format!("{row}: {why}")),
                        Err(error) => panic!("{row}: {error}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_capture_has_the_frames_of_both_guests() {
        let file = host_file::Temporary::new(&[]);
        let capture = File::create(&file).unwrap();
        let net = DEVICES.iter().find(|device| device.name == "net").unwrap();
        let row = run_captured(&recorder::WIRINGS[0], net, net.at_once[0], Some(capture));
        let row = row.unwrap_or_else(|error| panic!("{error}"));
        // Each frame was sent and received, and has a header of its own besides that of the file.
        let expected = 24 + 16 * row.requests / 2 + row.bytes;
        assert_eq!(file.contents().len() as u64, expected);
    }
}
