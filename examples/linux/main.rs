//! An unmodified Debian kernel for arm64 on devisor's devices.
//!
//! The core and the RAM are rsemu's, an emulator in Rust; the interrupt controller, the UART, the clock, the disk and the
//! entropy device are devisor's. The guest mounts an ext4 file system on our disk as its root, writes a file, lets an
//! alarm go off, reads random numbers and powers off; then the host looks for the file in the image, and compares the
//! guest's own count of interrupts with what our lines and our interrupt controller counted.
//!
//! ```text
//! tests/guest/fetch.sh
//! cargo run --release --example linux -- --transport pci
//! ```
//!
//! | file | what an embedder does there |
//! |---|---|
//! | `main.rs` | load the guest, run the loop |
//! | `board.rs` | make the devices and wire them up |
//! | `virtio.rs` | plug the same devices in as virtio-mmio or as PCI functions |
//! | `../shared/completion.rs` | make of the disk one that completes late, out of order, or on another thread (`--completion`) |
//! | `devices/` | more devices, each with what the guest does with it (`--devices all`) |
//! | `disk.rs` | put something of its own in front of the disk image |
//! | `devicetree.rs` | tell the guest of the devices |
//! | `machine.rs` | adapt the hypervisor, which is rsemu |
//! | `watch.rs`, `counts.rs`, `verdict.rs` | not needed to run a guest: look whether all this is true |

mod board;
#[path = "../shared/completion.rs"]
mod completion;
mod counts;
mod devices;
mod devicetree;
mod disk;
mod machine;
mod verdict;
mod virtio;
mod watch;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use board::Board;
use completion::Completion;
use devices::Devices;
use devisor::{backends::recorder::Recorder, time::ManualClock};
use machine::{Machine, PowerRequest, Ram};
use virtio::Transport;
use vm_memory::{Bytes, GuestAddress};
use watch::Watch;

const USAGE: &str = "\
usage: cargo run --release --example linux -- [OPTION VALUE]...
  --kernel FILE      an arm64 boot Image        [tests/guest/build/kernel]
  --initrd FILE      an initial RAM disk        [tests/guest/build/initrd.cpio]
  --disk FILE        an ext4 image; the guest gets a copy, FILE.run   [tests/guest/build/root.ext4]
  --transport NAME   mmio; pci, with messages; or pci-intx, with wires          [mmio]
  --completion NAME  when the disk completes its requests: in their round; late; shuffled; or
                     by another thread: round, late, shuffled, thread [round]
  --devices NAME     few: the disk and the entropy device; or all that there are [few]
  --engine NAME      rsemu's jit-host, jit or interp                  [jit-host]
  --timeout SECONDS  give the guest up after this much of our time    [600]
  --vcd FILE         write the interrupt lines as a waveform
  --help             this text";

struct Options {
    kernel: PathBuf,
    initrd: PathBuf,
    disk: PathBuf,
    transport: Transport,
    completion: Completion,
    devices: Devices,
    engine: String,
    timeout: Duration,
    vcd: Option<PathBuf>,
}

impl Options {
    /// `None` is for help.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build");
        let mut options = Self {
            kernel: build.join("kernel"),
            initrd: build.join("initrd.cpio"),
            disk: build.join("root.ext4"),
            transport: Transport::Mmio,
            completion: Completion::Round,
            devices: Devices::Few,
            engine: "jit-host".into(),
            timeout: Duration::from_secs(600),
            vcd: None,
        };
        while let Some(option) = arguments.next() {
            if option == "--help" || option == "-h" {
                return Ok(None);
            }
            let value = arguments.next().ok_or(USAGE)?;
            match option.as_str() {
                "--kernel" => options.kernel = value.into(),
                "--initrd" => options.initrd = value.into(),
                "--disk" => options.disk = value.into(),
                "--transport" => {
                    let mut names = Transport::NAMES.into_iter();
                    options.transport = names.find(|(name, _)| *name == value).ok_or(USAGE)?.1;
                }
                "--completion" => {
                    let mut names = Completion::NAMES.into_iter();
                    options.completion = names.find(|(name, _)| *name == value).ok_or(USAGE)?.1;
                }
                "--devices" => {
                    let mut names = Devices::NAMES.into_iter();
                    options.devices = names.find(|(name, _)| *name == value).ok_or(USAGE)?.1;
                }
                "--engine" => options.engine = value,
                "--timeout" => options.timeout = Duration::from_secs(value.parse().map_err(|_| USAGE)?),
                "--vcd" => options.vcd = Some(value.into()),
                _ => return Err(USAGE.into()),
            }
        }
        for file in [&options.kernel, &options.initrd, &options.disk] {
            if !file.exists() {
                return Err(format!("{} is missing: run tests/guest/fetch.sh", file.display()));
            }
        }
        Ok(Some(options))
    }
}

fn main() -> ExitCode {
    let result = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => run(&options),
        Ok(None) => {
            println!("{USAGE}");
            Ok(true)
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    // A file that the guest wrote in an earlier run cannot have this in it.
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let word = format!("{:016x}", since_epoch.as_nanos() as u64);
    let mut disk = options.disk.clone().into_os_string();
    disk.push(".run");
    let disk = PathBuf::from(disk);
    fs::copy(&options.disk, &disk)?;

    let persistent = match options.devices {
        Devices::Few => None,
        Devices::All => Some(devices::persistent_file(&options.disk)?),
    };
    let ram = Ram::new(options.devices.memory(), persistent.as_ref())?;
    load(options, &ram)?;
    let (machine, pins) = Machine::new(&options.engine, &ram, board::KERNEL, board::DEVICE_TREE)?;

    // The guest's time is all the time there is: the clock stands still while the guest does.
    let clock = Arc::new(ManualClock::new(board::EPOCH));
    let watch = Arc::new(Watch::default());
    let recorder = Recorder::builder().clock(clock.clone()).capacity(1 << 20).build();
    let memory = ram.memory().clone();
    let transport = options.transport;
    let board = Board::new(
        &machine,
        (transport, options.completion, options.devices),
        pins,
        memory,
        (&disk, persistent),
        clock,
        &watch,
        &recorder,
    )?;

    let started = Instant::now();
    let end = run_until_off(&machine, &board, &watch, &word, options.timeout);
    let (host, guest) = (started.elapsed(), machine.time());
    println!("\n{host:.1?} of our time, {guest:.1?} of the guest's");
    if let Some(vcd) = &options.vcd {
        recorder.write_vcd(&mut std::io::BufWriter::new(fs::File::create(vcd)?))?;
    }
    end?;
    let seen = watch.seen();
    let console = String::from_utf8_lossy(&seen.console).replace('\r', "");
    let places = match transport {
        // Its wires are shared.
        Transport::PciIntx => board::VIRTIO.to_vec(),
        _ => options.devices.places(),
    };
    Ok(verdict::check(verdict::Evidence {
        transport,
        word: &word,
        disk: &disk,
        seen,
        recorder: &recorder,
        guest_time: guest,
        places: &places,
        more: board.more(&console),
    }))
}

/// Puts kernel, initial RAM disk and device tree into RAM.
fn load(options: &Options, ram: &Ram) -> Result<(), Box<dyn Error>> {
    let kernel = fs::read(&options.kernel)?;
    if kernel.get(0x38..0x3c) != Some(b"ARM\x64") {
        return Err(format!("{} is not an arm64 boot Image", options.kernel.display()).into());
    }
    let initrd = fs::read(&options.initrd)?;
    // The kernel's self-tests of its ciphers take as long as all the rest of its boot, and test nothing of ours.
    let mut command_line = "console=ttyAMA0 panic=1 cryptomgr.notests".to_owned();
    if options.devices == Devices::All {
        // What is plugged is used at once, for what can be moved away again.
        command_line += " memhp_default_state=online_movable";
    }
    if options.transport == Transport::PciIntx {
        command_line += " pci=nomsi";
    }
    let initrd_range = board::INITRD..board::INITRD + initrd.len() as u64;
    let tree = devicetree::build(
        &command_line,
        initrd_range,
        options.transport,
        &options.devices.places(),
    )?;
    for (data, address, what) in [
        (&kernel, board::KERNEL, "kernel"),
        (&tree, board::DEVICE_TREE, "device tree"),
        (&initrd, board::INITRD, "initial RAM disk"),
    ] {
        ram.memory()
            .write_slice(data, GuestAddress(address))
            .map_err(|error| format!("the {what} does not fit into RAM: {error}"))?;
    }
    Ok(())
}

/// The loop of every VMM: run the guest, then see to what it has caused.
fn run_until_off(
    machine: &Machine,
    board: &Board,
    watch: &Watch,
    word: &str,
    timeout: Duration,
) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut typed = format!("{word}\n").into_bytes();
    let mut heard = 0;
    loop {
        board.with_core(|| machine.forget_translations(), || machine.run());
        match machine.power_request() {
            Some(PowerRequest::Off) => return Ok(()),
            Some(PowerRequest::Reset) => {
                return Err("the guest wants a reset, which it does when it has panicked".into());
            }
            None => {}
        }
        let under_way = board.run_virtio_devices()?;
        for line in watch.lines(&mut heard) {
            board.hear(&line)?;
        }
        if watch.is_asked() {
            let taken = board.type_in(&typed);
            typed.drain(..taken);
        }
        let sending = board.send_characters()?;
        let alarm = board.let_time_pass(machine.time());
        if under_way {
            // The guest waits for the disk, which is somebody else's time.
            thread::sleep(Duration::from_micros(50));
        } else if !sending {
            machine.skip_idle_time(alarm)?;
            board.let_time_pass(machine.time());
        }
        if started.elapsed() > timeout {
            return Err(format!("the guest has not powered off within {timeout:?}").into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_guest_one_line_says_what_to_run() {
        let arguments = ["--kernel", "/nonexistent"].map(String::from);
        let message = Options::parse(arguments.into_iter()).err().unwrap();
        assert_eq!(message, "/nonexistent is missing: run tests/guest/fetch.sh");
    }

    #[test]
    fn help_is_no_mistake_wherever_it_stands() {
        for arguments in [&["--help"][..], &["-h"], &["--engine", "jit", "--help"]] {
            let arguments = arguments.iter().map(|argument| argument.to_string());
            assert!(Options::parse(arguments).unwrap().is_none());
        }
    }

    #[test]
    fn an_option_without_a_value_or_without_a_meaning_is_refused() {
        for arguments in [
            &["--kernel"][..],
            &["--timeout", "soon"],
            &["--transport", "usb"],
            &["--completion", "never"],
            &["--devices", "some"],
        ] {
            let arguments = arguments.iter().map(|argument| argument.to_string());
            assert_eq!(Options::parse(arguments).err().as_deref(), Some(USAGE));
        }
    }
}
