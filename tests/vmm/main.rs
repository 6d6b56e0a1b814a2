//! The example `vmm`: each kind of kernel in each mode, what ends it, and what is wrong on its command line.
#![cfg(all(feature = "irqchip", feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

mod guests;
#[path = "../support/skip.rs"]
mod skip;
mod terminal;
#[path = "../support/x86_guest.rs"]
mod x86_guest;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use guests::status;
use kvm_ioctls::Kvm;
use skip::skipped;
use x86_guest::Report;

const MODES: [&str; 3] = ["kernel", "split", "software"];
/// The status for whatever is wrong.
const FAILED: i32 = 2;

/// A file that only this test has.
fn scratch(name: &str) -> PathBuf {
    let number = std::process::id();
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("vmm-{number}-{name}"))
}

/// The example, as this test was built.
fn vmm() -> Command {
    static VMM: OnceLock<PathBuf> = OnceLock::new();
    let path = VMM.get_or_init(|| {
        // A test run for this file alone does not build examples; for one that has, this is nothing to do.
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--all-features", "--example", "vmm"]);
        cargo.args((!cfg!(debug_assertions)).then_some("--release"));
        let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(built.success(), "the example does not build");
        // This test is one of the `deps` of the same profile.
        let test = env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/test");
        profile.join("examples/vmm")
    });
    let mut vmm = Command::new(path);
    vmm.stdin(Stdio::null());
    vmm
}

/// Whether there is a KVM. Says so if not.
fn has_kvm() -> bool {
    let kvm = Kvm::new();
    if let Err(error) = &kvm {
        skipped(format_args!("/dev/kvm cannot be opened: {error}"));
    }
    kvm.is_ok()
}

/// What a run has printed, and how it ended.
#[derive(Debug)]
struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(arguments: &[&str], kernel: &Path) -> Ended {
    let output = vmm().args(arguments).arg(kernel).output().unwrap();
    Ended {
        status: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// In each mode: what `kernel` prints, and the status with which it ends.
fn expect(arguments: &[&str], kernel: &Path, stdout: &str, status: i32) {
    if !has_kvm() {
        return;
    }
    for mode in MODES {
        let ended = run(&[&["--irqchip", mode], arguments].concat(), kernel);
        assert_eq!(ended.stdout, stdout, "{mode}: {ended:?}");
        assert_eq!(ended.status, Some(status), "{mode}: {ended:?}");
        assert_eq!(ended.stderr, "", "{mode}");
    }
}

/// One line on stderr that has `what` in it, nothing on stdout, and the status of failure.
fn expect_refusal(arguments: &[&str], kernel: &Path, what: &str) {
    let ended = run(arguments, kernel);
    assert_eq!(ended.status, Some(FAILED), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains(what), "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
}

#[test]
fn the_guest_that_checks_interrupts_has_the_same_verdict_in_each_mode_with_one_and_two_cpus() {
    if !has_kvm() {
        return;
    }
    let kernel = match x86_guest::kernel() {
        Ok(kernel) => kernel,
        Err(why) => return skipped(why),
    };
    for cpus in [1, 2] {
        // Those of ours have all that there is to check.
        let all = report("software", cpus, kernel);
        all.expect_good(cpus);
        assert!(all.skipped.is_empty() && all.absent.is_empty(), "{}", all.text);
        for (mode, absent) in [
            ("split", &ABSENT_IN_KVM_LAPIC[..]),
            ("kernel", &[&ABSENT_IN_KVM_LAPIC[..], &ABSENT_IN_KVM_BOARD[..]].concat()),
        ] {
            let report = report(mode, cpus, kernel);
            report.expect_good(cpus);
            let stray = |names: &BTreeMap<String, String>, known: &[&str]| {
                let mut names = names.keys();
                names.find(|name| !known.contains(&name.as_str())).cloned()
            };
            assert_eq!(stray(&report.absent, absent), None, "{mode}: {}", report.text);
            assert_eq!(
                stray(&report.skipped, &UNSEEN_WHERE_DELIVERY_ENDS),
                None,
                "{mode}: {}",
                report.text
            );
            let answered = report
                .ok
                .iter()
                .chain(report.absent.keys())
                .chain(report.skipped.keys());
            assert_eq!(answered.collect::<BTreeSet<_>>(), all.ok.iter().collect(), "{mode}");
            if let Some(why) = report.skipped.values().next() {
                let names: Vec<_> = report.skipped.keys().map(String::as_str).collect();
                skipped(format_args!("{mode}, --cpus {cpus}: {}: {why}", names.join(" ")));
            }
        }
    }
}

/// What KVM's local APIC does not have.
const ABSENT_IN_KVM_LAPIC: [&str; 4] = [
    "lapic-illegal-register",
    "lapic-illegal-vector",
    "lapic-lint0-fixed",
    "x2apic-reserved-bits",
];

/// What KVM's other controllers do not have.
const ABSENT_IN_KVM_BOARD: [&str; 6] = [
    "ioapic-eoi-register",
    "ioapic-low-active",
    "ioapic-suppressed-eoi-broadcast",
    "pic-poll",
    "pic-special-mask-mode",
    "pit-gate",
];

/// What cannot be told where a vCPU of the kernel's ends interrupts as it takes them.
const UNSEEN_WHERE_DELIVERY_ENDS: [&str; 11] = [
    "ioapic-level-in-service",
    "ioapic-level-masked-by-handler",
    "ioapic-level-retrigger",
    "ioapic-masked-level",
    "ioapic-new-vector",
    "ioapic-other-cpu-level",
    "ioapic-other-cpu-level-at-once",
    "ioapic-suppressed-eoi-broadcast",
    "lapic-in-service",
    "lapic-nesting",
    "lapic-while-in-service",
];

fn report(mode: &str, cpus: u32, kernel: &Path) -> Report {
    let mut vmm = vmm();
    vmm.args(["--irqchip", mode, "--cpus", &cpus.to_string()]).arg(kernel);
    Report::of(&mut vmm).unwrap()
}

#[test]
fn a_boot_sector_runs_in_real_mode() {
    expect(&[], &guests::hello(), "real mode\n", status(3));
}

#[test]
fn a_kernel_finds_the_ioapic_by_its_acpi_tables() {
    expect(&[], &guests::tables(), "", status(7));
    expect(&["--cpus", "64", "--memory", "1"], &guests::tables(), "", status(7));
}

#[test]
fn a_kernel_powers_off_by_acpi() {
    expect(&[], &guests::power_off(), "", 0);
}

#[test]
fn a_multiboot_kernel_by_addresses_gets_its_command_line() {
    let kernel = guests::multiboot_by_addresses();
    let stdout = format!("{} one two", kernel.display());
    expect(&["--append", "one two"], &kernel, &stdout, status(4));
}

#[test]
fn a_multiboot_elf_kernel_begins_where_its_entry_is_in_physical_memory() {
    for kernel in [guests::elf_32(), guests::elf_64()] {
        let stdout = format!("{} words", kernel.display());
        expect(&["--append", "words"], &kernel, &stdout, status(4));
    }
}

#[test]
fn a_bzimage_gets_its_command_line_and_the_disk_is_on_it() {
    let disk = guests::disk();
    let arguments = ["--append", "quiet", "--disk", disk.to_str().unwrap()];
    let stdout = "quiet virtio_mmio.device=0x200@0xfeb00000:5";
    expect(&arguments, &guests::bzimage(), stdout, status(4));
}

#[test]
fn a_guest_reads_a_sector_of_the_disk_and_is_interrupted_for_it() {
    let (disk, text) = guests::text_disk();
    let arguments = ["--disk", disk.to_str().unwrap()];
    expect(&arguments, &guests::read_disk(), &text[..512], status(0));
}

#[test]
fn a_reset_by_the_keyboard_controller_ends_well() {
    expect(&[], &guests::reset(), "", 0);
}

#[test]
fn a_guest_that_resets_the_machine_in_any_way_begins_again_and_the_clock_keeps_its_memory() {
    expect(&["--reboot"], &guests::reboot(), "01234", status(7));
    expect(&["--reboot", "--cpus", "3"], &guests::reboot(), "01234", status(7));
}

#[test]
fn without_reboot_the_first_reset_is_the_end() {
    expect(&[], &guests::reboot(), "0", 0);
}

#[test]
fn features_of_the_cpu_are_hidden_and_those_alone() {
    if !has_kvm() {
        return;
    }
    for mode in MODES {
        let features = |hidden: &[&str]| {
            let ended = run(&[&["--irqchip", mode], hidden].concat(), &guests::features());
            assert_eq!(ended.status, Some(status(0)), "{mode}: {ended:?}");
            ended.stdout
        };
        let all = features(&[]);
        assert!(all.starts_with('X'), "{mode}: {all}");
        assert_eq!(features(&["--cpu", "-x2apic"]), all.replace('X', "x"), "{mode}");
        let three = features(&["--cpu", "-x2apic,-cx16,-xsave"]);
        assert!(three.starts_with("xc"), "{mode}: {three}");
        assert_eq!(three[3..], all[3..], "{mode}");
        if three[2..3] != *"s" {
            skipped(format_args!("{mode}: this KVM shows XSAVE whatever it is told"));
        }
    }
}

#[test]
fn firmware_finds_no_disk_that_it_could_boot_from() {
    for (mode, said, status) in under_firmware(&[]) {
        assert!(said.contains(NOTHING_TO_BOOT), "{mode}: {said:?} {status:?}");
    }
}

#[test]
fn firmware_finds_the_disk_on_the_pci_bus_and_starts_what_is_on_it() {
    let disk = guests::bootable_disk();
    for (mode, said, ended) in under_firmware(&["--disk", disk.to_str().unwrap()]) {
        assert_eq!(ended, Some(status(3)), "{mode}: {said:?}");
    }
}

#[test]
fn firmware_starts_grub_from_the_disk_and_grub_a_multiboot_kernel() {
    let disk = match guests::grub_disk("of the menu") {
        Ok(disk) => disk,
        Err(why) => return skipped(why),
    };
    for (mode, said, ended) in under_firmware(&["--disk", disk.to_str().unwrap()]) {
        assert!(said.contains(guests::GRUB_SAYS), "{mode}: {said:?}");
        assert!(said.ends_with("\rof the menu"), "{mode}: {said:?}");
        assert_eq!(ended, Some(status(4)), "{mode}: {said:?}");
    }
}

/// What SeaBIOS says at the end of its attempts.
const NOTHING_TO_BOOT: &str = "No bootable device";

/// In each mode, with Debian's SeaBIOS: what is on the serial console, until there is nothing to boot or the guest ends, and the status with
/// which it has ended by itself.
fn under_firmware(arguments: &[&str]) -> Vec<(&'static str, String, Option<i32>)> {
    const FIRMWARE: &str = "/usr/share/seabios/bios-256k.bin";
    /// KVM may have to emulate it instruction by instruction.
    const PATIENCE: Duration = Duration::from_secs(300);
    if !has_kvm() {
        return Vec::new();
    }
    if !Path::new(FIRMWARE).exists() {
        skipped(format_args!("{FIRMWARE} is missing: apt-get install seabios"));
        return Vec::new();
    }
    let run = |mode| {
        let mut vmm = vmm();
        vmm.args(["--irqchip", mode, "--firmware", FIRMWARE]).args(arguments);
        let mut child = vmm.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, printed) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(len @ 1..) = stdout.read(&mut buffer) {
                let _ = sender.send(buffer[..len].to_vec());
            }
        });
        let started = Instant::now();
        let mut said = Vec::new();
        let mut text = String::new();
        while !text.contains(NOTHING_TO_BOOT) {
            match printed.recv_timeout(PATIENCE.saturating_sub(started.elapsed())) {
                Ok(more) => said.extend(more),
                // It has ended.
                Err(mpsc::RecvTimeoutError::Disconnected) => return (mode, text, child.wait().unwrap().code()),
                Err(mpsc::RecvTimeoutError::Timeout) => break,
            }
            text = String::from_utf8_lossy(&said).into_owned();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        (mode, text, None)
    };
    MODES.into_iter().map(run).collect()
}

#[test]
fn a_triple_fault_is_one_line_and_a_failure() {
    if !has_kvm() {
        return;
    }
    for mode in MODES {
        expect_refusal(&["--irqchip", mode], &guests::triple_fault(), "triple fault");
    }
}

#[test]
fn accesses_of_any_width_to_any_port_crash_nothing() {
    if !has_kvm() {
        return;
    }
    let disk = guests::disk();
    for mode in MODES {
        let arguments = ["--irqchip", mode, "--cpus", "2", "--disk", disk.to_str().unwrap()];
        let ended = run(&arguments, &guests::ports());
        assert_eq!(ended.status, Some(status(5)), "{mode}: {:?}", ended.stderr);
        assert_eq!(ended.stderr, "", "{mode}");
    }
}

#[test]
fn accesses_of_any_width_to_any_register_in_memory_crash_nothing() {
    if !has_kvm() {
        return;
    }
    let disk = guests::disk();
    for mode in MODES {
        let arguments = ["--irqchip", mode, "--cpus", "2", "--disk", disk.to_str().unwrap()];
        let ended = run(&arguments, &guests::memory());
        // It may have made the IOAPIC send the CPU an NMI or an INIT, which is the guest's end and not the VMM's.
        assert!(
            [Some(status(6)), Some(FAILED)].contains(&ended.status),
            "{mode}: {ended:?}"
        );
        assert!(
            ended.stderr.lines().count() <= 1 && !ended.stderr.contains("panic"),
            "{mode}: {ended:?}"
        );
    }
}

#[test]
fn whatever_is_in_the_redirection_table_its_lines_are_silent_on_stderr() {
    expect(&["--cpus", "2"], &guests::lines(), "", status(5));
}

#[test]
fn what_is_typed_arrives_also_if_it_is_more_than_fits() {
    if !has_kvm() {
        return;
    }
    let typed = format!("{}q", "0123456789 abcdefghij ".repeat(40));
    for mode in MODES {
        let mut vmm = vmm();
        vmm.args(["--irqchip", mode]).arg(guests::echo());
        let mut child = vmm.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        // When its FIFO is on: switching that loses what has come before.
        let mut ready = [0];
        stdout.read_exact(&mut ready).unwrap();
        assert_eq!(ready, *b"r", "{mode}");
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        let mut echoed = String::new();
        stdout.read_to_string(&mut echoed).unwrap();
        assert_eq!(echoed, typed, "{mode}");
        assert_eq!(child.wait().unwrap().code(), Some(status(0)), "{mode}");
    }
}

#[test]
fn when_nobody_reads_stdout_any_more_that_is_a_failure() {
    if !has_kvm() {
        return;
    }
    let mut vmm = vmm();
    vmm.arg(guests::echo()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = vmm.stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(FAILED));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("stdout: "));
}

/// A panic's status, 101, is one that a guest can end with.
#[test]
fn when_nobody_reads_what_it_says_itself_that_is_a_failure_and_no_status_of_a_guest() {
    let closed = || io::pipe().unwrap().1;
    let usage = vmm().arg("--help").stdout(closed()).output().unwrap();
    assert_eq!(usage.status.code(), Some(FAILED), "{usage:?}");
    assert_eq!(String::from_utf8_lossy(&usage.stderr).lines().count(), 1, "{usage:?}");
    let refused = vmm().arg("--turbo").stderr(closed()).status().unwrap();
    assert_eq!(refused.code(), Some(FAILED));
}

#[test]
fn a_command_line_that_is_wrong_is_one_line_and_a_failure() {
    let kernel = guests::hello();
    for (arguments, what) in [
        (&["--irqchip", "apic"][..], "kernel, split or software"),
        (&["--cpus", "0"], "1 to 64"),
        (&["--cpus", "65"], "1 to 64"),
        (&["--cpus", "many"], "1 to 64"),
        (&["--memory", "0"], "1 to 3072"),
        (&["--memory", "4096"], "1 to 3072"),
        (&["--memory", "99999999999999999999"], "1 to 3072"),
        (&["--turbo"], "--turbo"),
        (&["another-kernel"], "already"),
        (&["--cpu", "-x2apic,-warp"], "--cpu -warp"),
        (&["--cpu", "x2apic"], "--cpu x2apic"),
        (&["--firmware", "/nonexistent"], "it is one of them"),
    ] {
        expect_refusal(arguments, &kernel, what);
    }
    let ended = vmm().output().unwrap();
    assert_eq!(ended.status.code(), Some(FAILED));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("no kernel is given"));
    let ended = vmm().arg("--cpus").output().unwrap();
    assert!(String::from_utf8_lossy(&ended.stderr).contains("--cpus needs a value"));
    let ended = vmm().arg("--help").output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&ended.stdout).starts_with("usage: vmm"));
}

#[test]
fn files_that_are_wrong_are_one_line_and_a_failure() {
    if !has_kvm() {
        return;
    }
    let hello = guests::hello();
    expect_refusal(&[], Path::new("/nonexistent"), "/nonexistent cannot be read");
    expect_refusal(&[], Path::new("/"), "cannot be read");
    expect_refusal(&["--disk", "/nonexistent"], &hello, "the disk /nonexistent");
    expect_refusal(&[], &guests::no_kernel(), "neither a multiboot header");
    expect_refusal(&[], &guests::elf_of_another_machine(), "no ELF file of x86");
    expect_refusal(&[], &guests::elf_that_is_cut_off(), "beyond the file");
    expect_refusal(&[], &guests::large(), "not fit");
    expect_refusal(&["--memory", "1"], &guests::elf_32(), "not fit");
    expect_refusal(&[], &guests::in_the_way(), "boot information");
    let firmware = |file: &Path, what: &str| {
        let ended = vmm().arg("--firmware").arg(file).output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(FAILED), "{stderr}");
        assert!(stderr.contains(what) && stderr.lines().count() == 1, "{stderr}");
    };
    firmware(Path::new("/nonexistent"), "cannot be read");
    firmware(&guests::reset(), "512 bytes");
}

#[test]
fn without_dev_kvm_one_line_says_so() {
    // In a name space of its own, whose /dev is empty.
    let hidden = "mount -t tmpfs none /dev && exec \"$@\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "sh", "-c"]);
    let probe = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", hidden, "sh", "true"])
        .output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        return skipped("no file can be hidden here: `unshare --map-root-user --mount` is refused");
    }
    let ended = unshare
        .args([hidden, "sh"])
        .arg(vmm().get_program())
        .arg(guests::hello())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(FAILED), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("/dev/kvm cannot be opened"), "{stderr}");
}
