//! Looks whether the guest did what it should have, and whether both sides tell the same story.

use std::{
    collections::HashSet,
    fs, io,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use devisor::backends::recorder::Recorder;

use crate::{counts::interrupts, more::xxh64, options::Options, watch::Seen, wing::Facts};

/// What a run leaves behind.
pub struct Evidence<'a> {
    pub facts: &'a Facts,
    pub word: &'a str,
    pub disk: &'a Path,
    pub seen: Seen,
    pub recorder: &'a Recorder,
    /// How long the guest ran, in its own time.
    pub guest_time: Duration,
    /// What came of the devices that are not on every board.
    pub more: Vec<(&'static str, Check)>,
    /// Which of these are left out, and why.
    pub skipped: Vec<String>,
}

/// Prints what is true and what is not. Returns whether all of it is.
pub fn check(evidence: Evidence<'_>) -> bool {
    let console = String::from_utf8_lossy(&evidence.seen.console).replace('\r', "");
    let mut checks = vec![
        ("the root file system is on our disk", root_is_ours(&console)),
        (
            "the disk is where we put it",
            disk_is_there(&console, &evidence.facts.disk_parent),
        ),
        (
            "random numbers come from our entropy device",
            random_numbers(&console, &evidence.seen.random),
        ),
        (
            "the clock is ours",
            clock(&console, evidence.facts, evidence.guest_time),
        ),
        ("the guest read back what it wrote", said(&console, "file reads back")),
        (
            "the image has what the guest wrote",
            file_in_image(evidence.disk, evidence.word),
        ),
        (
            "both sides count the same interrupts",
            interrupts(&console, &evidence.seen, evidence.recorder, &evidence.facts.sources),
        ),
    ];
    let mut skipped = evidence.skipped;
    match evidence.facts.clock.no_alarm {
        None => checks.push(("its alarm went off", said(&console, "alarm went off"))),
        Some(why) => skipped.push(why.into()),
    }
    checks.extend(evidence.more);
    println!();
    for (what, result) in &checks {
        print(what, result);
    }
    for why in &skipped {
        println!("skipped: {why}");
    }
    checks.iter().all(|(_, result)| result.is_ok())
}

/// Prints what came of looking whether `what` is so.
pub fn print(what: &str, check: &Check) {
    match check {
        Ok(how) => println!("ok    {what}: {how}"),
        Err(why) => println!("FAIL  {what}: {why}"),
    }
}

/// What was found, or what is wrong.
pub type Check = Result<String, String>;

/// The rest of the line that begins with `guest:` and `beginning`.
pub fn line<'a>(console: &'a str, beginning: &str) -> Result<&'a str, String> {
    console
        .lines()
        .find_map(|line| line.strip_prefix("guest: ")?.strip_prefix(beginning))
        .map(str::trim)
        .ok_or_else(|| format!("the guest did not print \"guest: {beginning}\""))
}

fn said(console: &str, what: &str) -> Check {
    line(console, what).map(|_| "it says so".into())
}

fn root_is_ours(console: &str) -> Check {
    let mount = line(console, "root is ")?;
    let expected = mount.starts_with("/dev/vda / ext4 ");
    expected.then(|| mount.into()).ok_or_else(|| format!("it is {mount}"))
}

fn disk_is_there(console: &str, parent: &str) -> Check {
    let path = line(console, "disk is ")?;
    let there = path.contains(parent);
    there
        .then(|| path.into())
        .ok_or_else(|| format!("it is {path}, not below {parent}"))
}

fn random_numbers(console: &str, handed_out: &[u8]) -> Check {
    let (generator, numbers) = (line(console, "rng is ")?, line(console, "rng says ")?);
    let hexadecimal: String = handed_out.iter().map(|byte| format!("{byte:02x}")).collect();
    if generator.starts_with("virtio_rng") && numbers.len() == 64 && hexadecimal.contains(numbers) {
        Ok(format!(
            "{generator} says {numbers}, which is what the device was given"
        ))
    } else {
        Err(format!(
            "{generator} says {numbers:?}, which are not 32 bytes that the device was given"
        ))
    }
}

fn clock(console: &str, facts: &Facts, guest_time: Duration) -> Check {
    let (name, epoch) = (facts.clock.name, facts.epoch);
    let clock = line(console, "clock is ")?;
    let seconds = clock
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .next()
        .unwrap_or(0);
    let ran = epoch.as_secs()..=(epoch + guest_time).as_secs();
    if clock.starts_with(name) && ran.contains(&seconds) {
        Ok(clock.into())
    } else {
        Err(format!("{clock}, expected {name} and a time in {ran:?}"))
    }
}

/// The file that the guest writes to `/pattern`: see tests/guest/root-init.
fn pattern(word: &str) -> Vec<u8> {
    (1..=5_000).flat_map(|n| format!("{word} {n}\n").into_bytes()).collect()
}

fn file_in_image(disk: &Path, word: &str) -> Check {
    let expected = pattern(word);
    let len = expected.len();
    match e2fsprogs("debugfs", &["-R", "cat /pattern"], disk) {
        Ok(output) if output.stdout == expected => {
            let check = e2fsprogs("e2fsck", &["-f", "-n"], disk).map_err(|error| error.to_string())?;
            if check.status.success() {
                Ok(format!("debugfs finds its {len} bytes, and e2fsck nothing to repair"))
            } else {
                Err(format!("e2fsck: {}", String::from_utf8_lossy(&check.stdout)))
            }
        }
        Ok(output) => Err(format!(
            "debugfs finds {} bytes where {len} others were written: {}",
            output.stdout.len(),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => blocks_in_image(disk, &expected),
        Err(error) => Err(format!("debugfs: {error}")),
    }
}

/// Whether the guest has found the queues of its disk, and used each of them. `requests` is how many each has had.
pub fn queues(console: &str, options: &Options, requests: &[u64]) -> Check {
    let queues = line(console, "disk has ")?;
    let expected = u32::from(options.queues).min(options.cpus);
    let used = requests.iter().filter(|requests| **requests != 0).count();
    match queues == format!("{expected} queues") && used == expected as usize {
        true => Ok(format!("{queues} had {requests:?} requests")),
        false => Err(format!(
            "it has {queues}, with {requests:?} requests, where {expected} were to be used"
        )),
    }
}

/// If there is a fio in the guest: whether it has verified what it wrote, and that is in the image.
pub fn fio(console: &str, disk: &Path) -> Option<Check> {
    line(console, "fio begins").ok()?;
    Some(line(console, "fio verified ").and_then(|verified| {
        let left = console.lines().filter_map(|line| line.strip_prefix("guest: fio left "));
        let mut files = 0;
        for file in left {
            let (name, sum) = file.split_once(' ').ok_or("a name without a sum")?;
            let found = e2fsprogs("debugfs", &["-R", &format!("cat {name}")], disk);
            let found = xxh64(&found.map_err(|error| format!("debugfs: {error}"))?.stdout);
            if found != sum {
                return Err(format!("{name} is {found} in the image, and {sum} for the guest"));
            }
            files += 1;
        }
        match files {
            0 => Err("it has left no file".into()),
            _ => Ok(format!("it verified {verified}, and debugfs finds its {files} files")),
        }
    }))
}

/// If there is our own `verify` in the guest: whether it has verified what it wrote, and that is in the image.
pub fn verify(console: &str, disk: &Path) -> Option<Check> {
    line(console, "verify begins").ok()?;
    Some(line(console, "verify verified ").and_then(|verified| {
        let left = console
            .lines()
            .filter_map(|line| line.strip_prefix("guest: verify left "));
        let mut files = 0;
        for (number, name) in (0..).zip(left) {
            let found = e2fsprogs("debugfs", &["-R", &format!("cat {name}")], disk);
            let found = found.map_err(|error| format!("debugfs: {error}"))?.stdout;
            let expected: Vec<_> = (0..VERIFIED / 8)
                .flat_map(|at| written(number, at).to_le_bytes())
                .collect();
            if found != expected {
                return Err(format!("{name} is not in the image as it was written"));
            }
            files += 1;
        }
        match files {
            0 => Err("it has left no file".into()),
            _ => Ok(format!("it verified {verified}, and debugfs finds them")),
        }
    }))
}

/// Bytes of each file that `tests/guest/verify.rs` writes.
const VERIFIED: u64 = 64 * 4096;

/// What it has as word `at` of a file, in its second and last generation.
fn written(file: u64, at: u64) -> u64 {
    let mut mixed = (file << 40 | at << 8 | 2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Runs a program that users other than root may not have in their PATH.
pub fn e2fsprogs(program: &str, arguments: &[&str], disk: &Path) -> io::Result<Output> {
    let run = |program: &str| Command::new(program).args(arguments).arg(disk).output();
    match run(program) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => run(&format!("/usr/sbin/{program}")),
        result => result,
    }
}

/// Without debugfs: whether each block of the file is somewhere in the image. No two of them are the same, nor were they
/// there before.
fn blocks_in_image(disk: &Path, expected: &[u8]) -> Check {
    // The smallest that ext4 has; larger ones consist of these.
    const BLOCK: usize = 1024;
    let image = fs::read(disk).map_err(|error| error.to_string())?;
    let there: HashSet<&[u8]> = image.chunks(BLOCK).collect();
    let mut padded = expected.to_vec();
    padded.resize(expected.len().next_multiple_of(BLOCK), 0);
    let blocks = padded.chunks(BLOCK);
    let (all, found) = (blocks.len(), blocks.filter(|block| there.contains(block)).count());
    let how = format!("{found} of its {all} blocks are in the raw image (there is no debugfs here)");
    if found == all { Ok(how) } else { Err(how) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wing::Clock;

    #[test]
    fn a_disk_elsewhere_fails_the_run() {
        let console = |path: &str| format!("guest: disk is /sys/devices/platform/{path}/virtio0/block/vda\n");
        let pci = console("3f000000.pcie/pci0000:00/0000:00:01.0");
        let mmio = console("a000000.virtio_mmio");
        let (on_bus, in_memory) = ("/pci0000:00/0000:00:01.0/", "/a000000.virtio_mmio/");
        assert!(disk_is_there(&pci, on_bus).is_ok());
        assert!(disk_is_there(&pci, in_memory).is_err());
        assert!(disk_is_there(&mmio, in_memory).is_ok());
        assert!(disk_is_there(&mmio, on_bus).is_err());
    }

    #[test]
    fn every_block_of_the_file_has_to_be_in_the_image() {
        let file = pattern("0123456789abcdef");
        let image = std::env::temp_dir().join(format!("devisor-verdict-{}", std::process::id()));
        let mut bytes = vec![0; 3 * 4096];
        bytes.extend(&file);
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        fs::write(&image, &bytes).unwrap();
        assert!(blocks_in_image(&image, &file).is_ok());
        bytes[8 * 4096 + 1024] ^= 1;
        fs::write(&image, &bytes).unwrap();
        assert!(blocks_in_image(&image, &file).is_err());
        fs::remove_file(&image).unwrap();
    }

    #[test]
    fn an_image_that_is_not_there_has_no_file() {
        assert!(file_in_image(Path::new("/nonexistent"), "0123456789abcdef").is_err());
    }

    #[test]
    fn random_numbers_that_the_device_was_not_given_fail_the_run() {
        let console = |numbers: &str| format!("guest: rng is virtio_rng.0\nguest: rng says {numbers}\n");
        let given: Vec<u8> = (0..64).collect();
        let says = |bytes: std::ops::Range<u8>| console(&bytes.map(|byte| format!("{byte:02x}")).collect::<String>());
        assert!(random_numbers(&says(16..48), &given).is_ok());
        assert!(random_numbers(&says(48..80), &given).is_err());
        assert!(random_numbers(&says(0..16), &given).is_err(), "too few");
        assert!(random_numbers(&console(""), &given).is_err());
    }

    #[test]
    fn a_time_outside_of_the_run_fails_it() {
        let console = |seconds: u64| format!("guest: clock is rtc-pl031 9010000.rtc {seconds} 2030-01-01 00:00:07\n");
        let facts = |clock| Facts {
            epoch: Duration::from_secs(1_893_456_000),
            clock: Clock::of_ours(clock),
            disk_parent: String::new(),
            sources: Vec::new(),
        };
        let ran = Duration::from_secs(10);
        let ours = facts("rtc-pl031");
        assert!(clock(&console(1_893_456_007), &ours, ran).is_ok());
        assert!(clock(&console(1_893_456_011), &ours, ran).is_err());
        assert!(clock(&console(7), &ours, ran).is_err());
        assert!(clock(&console(1_893_456_007), &facts("rtc_cmos"), ran).is_err());
    }
}
