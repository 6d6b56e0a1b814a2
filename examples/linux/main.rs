//! An unmodified Debian kernel, for arm64 or for x86_64, on devisor's devices.
//!
//! The cores and the RAM are rsemu's, an emulator in Rust; the interrupt controllers, the timers around the cores, the UART, the
//! clock, the PCI bus, the disk and the entropy device are devisor's. The guest mounts an ext4 file system on our disk as its
//! root, writes a file, lets an alarm go off, reads random numbers and powers off; then the host looks for the file in the
//! image, and compares the guest's own count of interrupts with what our lines and our interrupt controllers counted.
//!
//! ```text
//! tests/guest/fetch.sh
//! cargo run --release --example linux -- --transport pci --devices all
//! cargo run --release --example linux -- --arch x86_64 --cpus 2
//! cargo run --release --example linux -- --firmware /usr/lib/u-boot/qemu_arm64/u-boot.bin
//! ```
//!
//! The same for both architectures:
//!
//! | file | what an embedder does there |
//! |---|---|
//! | `main.rs` | say what is run, and look at what came of it |
//! | `run.rs` | run the loop |
//! | `virtio.rs` | plug the same devices in as virtio-mmio or as PCI functions |
//! | `devices.rs` | make the disk and the entropy device, and say who runs them |
//! | `more/` | more devices, each with what the guest does with it (`--devices all`) |
//! | `disk.rs` | have the disk in a file, in an image or on a server, and its requests run at once, by threads or by the kernel |
//! | `ram.rs`, `noted.rs` | give devices the guest's memory; put a storage of its own in front of any other |
//! | `../shared/completion.rs` | make of the disk one that completes late, out of order, or on another thread (`--completion`) |
//! | `firmware.rs` | give a firmware its flash, and the device by which it gets the kernel (`--firmware`) |
//! | `wing.rs` | what of a machine is not the same |
//! | `measure.rs`, `peer.rs`, `cost.rs`, `accesses.rs` | not needed: compare with rsemu's own devices (`--measure yes`) |
//! | `watch.rs`, `counts.rs`, `verdict.rs` | not needed to run a guest: look whether all this is true |
//!
//! A wing for each, `arm64/` with a GICv2 and `x86_64/` with the chips of a PC:
//!
//! | file | what an embedder does there |
//! |---|---|
//! | `mod.rs` | load the guest |
//! | `board.rs` | make the devices and wire them up |
//! | `parts.rs`, `devicetree.rs`, `acpi.rs` | tell the guest of the devices |
//! | `machine.rs`; `controller.rs`, `clock.rs` | adapt the hypervisor, which is rsemu |
//! | `gic.rs`, `vectors.rs` | not needed: see what the guest acknowledges |

mod accesses;
mod arm64;
#[path = "../shared/completion.rs"]
mod completion;
mod cost;
mod counts;
mod devices;
mod disk;
mod firmware;
mod measure;
mod more;
mod noted;
mod options;
mod peer;
mod ram;
mod run;
mod spent;
mod verdict;
mod virtio;
mod watch;
mod wing;
mod x86_64;

use std::{
    error::Error,
    fs,
    process::ExitCode,
    time::{Instant, SystemTime},
};

use firmware::Typist;
use options::{Options, USAGE};
use run::{Guest, Pace};

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
    if options.measure {
        return Ok(passes(measure::compare(options)?));
    }
    // A file that the guest wrote in an earlier run cannot have this in it.
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let word = format!("{:016x}", since_epoch.as_nanos() as u64);
    let disk = options.disk.for_a_run()?;

    let skipped = options.devices.skipped(run::room(options.arch));
    for why in &skipped {
        println!("skipped: {why}");
    }
    let guest = Guest::new(options, &disk)?;
    let (started, cpu_started) = (Instant::now(), spent::cpu_time());
    let typist = Typist::new(&word, options.shell);
    let end = run::until_off(&guest, Pace::CLOSE, typist, options.timeout, || ());
    let Guest { wing, watch, .. } = guest;
    let (host, cpu, guest) = (started.elapsed(), spent::cpu_time() - cpu_started, wing.time());
    println!("\n{host:.1?} of our time, {cpu:.1?} of our CPU's, {guest:.1?} of the guest's");
    if let Some(vcd) = &options.vcd {
        let mut file = std::io::BufWriter::new(fs::File::create(vcd)?);
        wing.recorder().write_vcd(&mut file)?;
    }
    end?;
    let seen = watch.seen();
    if options.shell {
        let answers = firmware::answers(&seen);
        println!();
        answers.iter().for_each(|(what, check)| verdict::print(what, check));
        return Ok(passes(answers.iter().all(|(_, check)| check.is_ok())));
    }
    let console = String::from_utf8_lossy(&seen.console).replace('\r', "");
    let (data, tool) = disk.after_a_run();
    let mut more = wing.devices().check(&console);
    let requests = wing.devices().disk_requests();
    more.push((
        "the guest uses all queues it can",
        verdict::queues(&console, options, requests),
    ));
    more.extend(verdict::fio(&console, &data).map(|check| ("the image has what fio wrote", check)));
    more.extend(verdict::verify(&console, &data).map(|check| ("the image has what was verified", check)));
    more.extend(tool.map(|check| ("the image is in order", check)));
    let verdict = verdict::check(verdict::Evidence {
        facts: &wing.facts(options),
        word: &word,
        disk: &data,
        seen,
        recorder: wing.recorder(),
        guest_time: guest,
        more,
        skipped,
    });
    if disk.file() != Some(&*data) {
        let _ = fs::remove_file(&data);
    }
    Ok(passes(verdict))
}

fn passes(verdict: bool) -> bool {
    if verdict {
        println!("PASS");
    }
    verdict
}
