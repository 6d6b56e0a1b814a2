//! Looks whether the guest did what it should have, and whether both sides tell the same story.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use devisor::backends::{irqchip::IntId, recorder::Recorder};

use crate::{
    board,
    watch::{Seen, Watch},
};

/// What a run leaves behind.
pub struct Evidence<'a> {
    pub word: &'a str,
    pub disk: &'a Path,
    pub seen: Seen,
    pub recorder: &'a Recorder,
    /// How long the guest ran, in its own time.
    pub guest_time: Duration,
}

/// Prints what is true and what is not. Returns whether all of it is.
pub fn check(evidence: &Evidence<'_>) -> bool {
    let console = String::from_utf8_lossy(&evidence.seen.console).replace('\r', "");
    let checks = [
        ("the root file system is on our disk", root_is_ours(&console)),
        (
            "random numbers come from our entropy device",
            random_numbers(&console, &evidence.seen.random),
        ),
        ("the clock is ours", clock(&console, evidence.guest_time)),
        ("its alarm went off", said(&console, "alarm went off")),
        ("the guest read back what it wrote", said(&console, "file reads back")),
        (
            "the image has what the guest wrote",
            file_in_image(evidence.disk, evidence.word),
        ),
        (
            "both sides count the same interrupts",
            interrupts(&console, &evidence.seen, evidence.recorder),
        ),
    ];
    println!();
    for (what, result) in &checks {
        match result {
            Ok(how) => println!("ok    {what}: {how}"),
            Err(why) => println!("FAIL  {what}: {why}"),
        }
    }
    checks.iter().all(|(_, result)| result.is_ok())
}

/// What was found, or what is wrong.
type Check = Result<String, String>;

/// The rest of the line that begins with `guest:` and `beginning`.
fn line<'a>(console: &'a str, beginning: &str) -> Result<&'a str, String> {
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

fn clock(console: &str, guest_time: Duration) -> Check {
    let clock = line(console, "clock is ")?;
    let seconds = clock.split(' ').find_map(|word| word.parse().ok()).unwrap_or(0);
    let ran = board::EPOCH.as_secs()..=(board::EPOCH + guest_time).as_secs();
    if clock.starts_with("rtc-pl031") && ran.contains(&seconds) {
        Ok(clock.into())
    } else {
        Err(format!("{clock}, expected rtc-pl031 and a time in {ran:?}"))
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

/// Runs a program that users other than root may not have in their PATH.
fn e2fsprogs(program: &str, arguments: &[&str], disk: &Path) -> io::Result<Output> {
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

/// Prints the guest's counts next to ours, and compares them.
///
/// What the guest has acknowledged is what it has counted, so its count is between ours from before it looked and ours
/// from the end. Our lines count how often they rose, which may differ: a line that stays up interrupts again, and one
/// that falls in time does not interrupt.
fn interrupts(console: &str, seen: &Seen, recorder: &Recorder) -> Check {
    let Seen {
        acknowledged,
        acknowledged_before,
        ..
    } = seen;
    let before = acknowledged_before.as_ref().ok_or("the guest did not come so far")?;
    let guest = proc_interrupts(console);
    let count = |counts: &BTreeMap<IntId, u64>, id| counts.get(&id).copied().unwrap_or(0);

    println!(
        "\n{:<16}{:>6}{:>10}{:>14}{:>18}",
        "line", "INTID", "rose", "acknowledged", "/proc/interrupts"
    );
    let mut wrong = Vec::new();
    let mut total = 0;
    for (name, id) in board::lines() {
        let line = recorder.line(name).ok_or("a line was not recorded")?.counts();
        let (first, last, guest) = (count(before, id), count(acknowledged, id), count(&guest, id));
        println!("{name:<16}{:>6}{:>10}{last:>14}{guest:>18}", id.0, line.raised);
        if line.raised == 0 || guest == 0 || line.failed != 0 || !(first..=last).contains(&guest) {
            wrong.push(format!(
                "{name} rose {} times and failed {} times, the guest acknowledged {first} to {last} and counted {guest}",
                line.raised, line.failed
            ));
        }
        total += guest;
    }
    if wrong.is_empty() {
        Ok(format!("{total} on {} lines", board::lines().len()))
    } else {
        Err(wrong.join("; "))
    }
}

/// The counts of the guest's `/proc/interrupts`, whose lines are such as
/// ` 14:         87     GICv2  48 Level     virtio0`.
fn proc_interrupts(console: &str) -> BTreeMap<IntId, u64> {
    console
        .lines()
        .skip_while(|line| *line != Watch::HEADING)
        .take_while(|line| *line != Watch::END)
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let count = words.next()?.parse().ok()?;
            let id = words.skip_while(|word| !word.starts_with("GIC")).nth(1)?.parse().ok()?;
            Some((IntId(id), count))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use devisor::interrupt::Interrupt;

    /// What a guest prints that has counted `count` interrupts of each line.
    fn table(count: u64) -> String {
        let mut console = format!("{}\n           CPU0\n", Watch::HEADING);
        for (name, id) in board::lines() {
            console += &format!(" 11: {count:>10} GIC-0 {:>3} Level     {name}\n", id.0);
        }
        console + "Err:          0\n" + Watch::END + "\n"
    }

    /// What the host has seen of a guest that has acknowledged `before` and then `last` interrupts of each line.
    fn seen(before: u64, last: u64) -> Seen {
        let counts = |count| board::lines().map(|(_, id)| (id, count)).into();
        Seen {
            acknowledged: counts(last),
            acknowledged_before: Some(counts(before)),
            ..Seen::default()
        }
    }

    /// A recorder whose lines rose once, but for one of them.
    fn recorder(silent: Option<&str>) -> Recorder {
        let recorder = Recorder::new();
        for (name, _) in board::lines() {
            let line = recorder.level(name);
            if silent != Some(name) {
                line.trigger().unwrap();
            }
        }
        recorder
    }

    #[test]
    fn counts_agree_when_the_guest_counted_between_our_two_looks() {
        for (guest, agree) in [(3, false), (4, true), (6, true), (7, false)] {
            let result = interrupts(&table(guest), &seen(4, 6), &recorder(None));
            assert_eq!(result.is_ok(), agree, "{guest}: {result:?}");
        }
    }

    #[test]
    fn a_line_that_never_rose_or_never_interrupted_fails_the_run() {
        for (name, _) in board::lines() {
            let error = interrupts(&table(1), &seen(1, 1), &recorder(Some(name))).unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
        assert!(interrupts(&table(0), &seen(0, 0), &recorder(None)).is_err());
    }

    #[test]
    fn a_guest_that_did_not_print_its_counts_fails_the_run() {
        assert!(interrupts("", &seen(1, 1), &recorder(None)).is_err());
        assert!(interrupts("", &Seen::default(), &recorder(None)).is_err());
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
        let ran = Duration::from_secs(10);
        assert!(clock(&console(1_893_456_007), ran).is_ok());
        assert!(clock(&console(1_893_456_011), ran).is_err());
        assert!(clock(&console(7), ran).is_err());
    }
}
