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
//! ```
//!
//! The same for both architectures:
//!
//! | file | what an embedder does there |
//! |---|---|
//! | `main.rs` | run the loop |
//! | `virtio.rs` | plug the same devices in as virtio-mmio or as PCI functions |
//! | `devices.rs` | make the disk and the entropy device, and say who runs them |
//! | `more/` | more devices, each with what the guest does with it (`--devices all`) |
//! | `disk.rs` | have the disk in a file, in an image or on a server, and its requests run at once, by threads or by the kernel |
//! | `ram.rs`, `noted.rs` | give devices the guest's memory; put a storage of its own in front of any other |
//! | `../shared/completion.rs` | make of the disk one that completes late, out of order, or on another thread (`--completion`) |
//! | `wing.rs` | what of a machine is not the same |
//! | `watch.rs`, `counts.rs`, `verdict.rs` | not needed to run a guest: look whether all this is true |
//!
//! A wing for each, `arm64/` with a GICv2 and `x86_64/` with the chips of a PC:
//!
//! | file | what an embedder does there |
//! |---|---|
//! | `mod.rs` | load the guest |
//! | `board.rs` | make the devices and wire them up |
//! | `devicetree.rs`, `acpi.rs` | tell the guest of the devices |
//! | `machine.rs`; `controller.rs`, `clock.rs` | adapt the hypervisor, which is rsemu |
//! | `peer.rs` | not needed: run the same kernel on rsemu's own devices (`--measure yes`) |
//! | `gic.rs`, `vectors.rs` | not needed: see what the guest acknowledges |

mod arm64;
#[path = "../shared/completion.rs"]
mod completion;
mod counts;
mod devices;
mod disk;
mod more;
mod noted;
mod options;
mod ram;
mod verdict;
mod virtio;
mod watch;
mod wing;
mod x86_64;

use std::{
    error::Error,
    fs,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use options::{Arch, Options, USAGE};
use watch::{Watch, Wire};
use wing::{Plan, PowerRequest, Stuck, Wing};

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
    let disk = options.disk.for_a_run()?;

    for why in options.devices.skipped() {
        println!("skipped: {why}");
    }
    let watch = Arc::new(Watch::default());
    let wire = Arc::new(Wire::default());
    let plan = Plan {
        options,
        disk: &disk,
        watch: &watch,
        wire: &wire,
    };
    let wing: Box<dyn Wing> = match options.arch {
        Arch::Arm64 => Box::new(arm64::Arm64::new(&plan)?),
        Arch::X86_64 => Box::new(x86_64::X86_64::new(&plan)?),
    };

    let (started, cpu_started) = (Instant::now(), cpu_time());
    let end = run_until_off(&*wing, &watch, &wire, &word, options.timeout);
    let (host, cpu, guest) = (started.elapsed(), cpu_time() - cpu_started, wing.time());
    println!("\n{host:.1?} of our time, {cpu:.1?} of our CPU's, {guest:.1?} of the guest's");
    if let Some(vcd) = &options.vcd {
        let mut file = std::io::BufWriter::new(fs::File::create(vcd)?);
        wing.recorder().write_vcd(&mut file)?;
    }
    end?;
    if let (true, Some(ours)) = (options.measure, watch.begun()) {
        let ours = ours - cpu_started;
        println!("\naccesses by device:");
        for (name, count) in wing.accesses() {
            println!("{name:<20}{count:>12}");
        }
        let theirs = x86_64::cpu_time_on_others(options)?;
        println!(
            "to its first process: {ours:.2?} of our CPU's, {theirs:.2?} on rsemu's own devices: {:.2} of it",
            ours.as_secs_f64() / theirs.as_secs_f64()
        );
    }
    let seen = watch.seen();
    let console = String::from_utf8_lossy(&seen.console).replace('\r', "");
    let (data, tool) = disk.after_a_run();
    let mut more = wing.devices().check(&console);
    let requests = wing.devices().disk_requests();
    more.push((
        "the guest uses all queues it can",
        verdict::queues(&console, options, requests),
    ));
    more.extend(verdict::fio(&console, &data).map(|check| ("the image has what fio wrote", check)));
    more.extend(tool.map(|check| ("the image is in order", check)));
    let verdict = verdict::check(verdict::Evidence {
        facts: &wing.facts(options),
        word: &word,
        disk: &data,
        seen,
        recorder: wing.recorder(),
        guest_time: guest,
        more,
        skipped: options.devices.skipped(),
    });
    if disk.file() != Some(&*data) {
        let _ = fs::remove_file(&data);
    }
    if verdict {
        println!("PASS");
    }
    Ok(verdict)
}

/// What the wire behind the UART takes each time that the cores have run a little.
const CHARACTERS_AT_A_TIME: usize = 16;

/// The loop of every VMM: run the guest, then see to what it has caused.
fn run_until_off(
    wing: &dyn Wing,
    watch: &Watch,
    wire: &Wire,
    word: &str,
    timeout: Duration,
) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut typed = format!("{word}\n").into_bytes();
    let mut heard = 0;
    let devices = wing.devices();
    loop {
        devices.with_cores(|| wing.forget_translations(), || wing.run());
        match wing.power_request() {
            Some(PowerRequest::Off) => return Ok(()),
            Some(PowerRequest::Reset) => {
                return Err("the guest wants a reset, which it does when it has panicked".into());
            }
            None => {}
        }
        devices.run()?;
        for line in watch.lines(&mut heard) {
            devices.hear(&line)?;
        }
        if watch.is_asked() {
            let taken = wing.uart().type_in(&typed);
            typed.drain(..taken);
        }
        wire.make_room(CHARACTERS_AT_A_TIME);
        let sending = wing.uart().send()?;
        wing.let_time_pass();
        if !sending && wing.sleeps() {
            sleep(wing)?;
            wing.let_time_pass();
        }
        if started.elapsed() > timeout {
            return Err(format!("the guest has not powered off within {timeout:?}").into());
        }
    }
}

/// The guest sleeps: its time passes at once until one of its timers is due. But while something of the host's is awaited, which takes
/// the host's time, the guest's passes no faster, or its timers would give up what is on its way.
fn sleep(wing: &dyn Wing) -> Result<(), Box<dyn Error>> {
    let (now, deadline) = (wing.time(), wing.deadline());
    let until = match wing.devices().awaits_host() {
        false => deadline.ok_or(Stuck)?,
        true => {
            let since = Instant::now();
            let most = deadline.map_or(PATIENCE, |deadline| deadline.saturating_sub(now).min(PATIENCE));
            wing.devices().wait(most)?;
            now + since.elapsed().min(most)
        }
    };
    wing.sleep_until(until);
    Ok(())
}

/// How long the host is waited for before the run is looked at again.
const PATIENCE: Duration = Duration::from_millis(10);

/// What this process has used of the CPU, all its threads together.
fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: there is room for what is written, and zeros are a valid value of it too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |of: libc::timeval| Duration::new(of.tv_sec as u64, of.tv_usec as u32 * 1_000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
