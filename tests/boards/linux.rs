//! Linux reads what it is told, on QEMU's machines: tables or tree are ours instead of QEMU's own. It finds its devices by
//! them, hears of the power button where that is the event device's, and powers off.
//!
//! The kernels are those of `tests/guest/fetch.sh`, and the first process one of ours, in an archive behind that of the
//! guest, whose busybox and modules it has. QEMU interprets the processor, which takes half a minute.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use devisor::{
    backends::irqchip::{
        lapic::{self, ApicId},
        pc::{self, Gsi, PcConfig},
    },
    description::{
        Part, PciHost, PortWindow, Wire,
        acpi::{Oem, build},
        arm,
        fdt::{self, Boot},
        memory,
    },
    pci,
    platform::{
        acpi_pm::{self, AcpiPmConfig, AcpiPmPlace},
        fw_cfg, i8042, mc146818, pvpanic, reset_control, uart16550,
    },
};

use crate::{
    parts::{self, isa},
    skip::skipped,
    tools::Scratch,
};

/// Where the guests' `kernel` and `initrd.cpio` are.
const X86_64: &str = "tests/guest/build/x86_64";
const ARM64: &str = "tests/guest/build";

/// Where the tables are, in memory that Linux is told to leave alone.
const TABLES: u64 = 0x800_0000;
const PATIENCE: Duration = Duration::from_secs(300);

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do
    busybox insmod "/modules/$module"
done </modules/order
for device in /sys/bus/acpi/devices/*; do
    echo "guest: acpi $(busybox basename "$device") $(busybox cat "$device/hid") $(busybox basename "$(busybox readlink "$device/physical_node")")"
done
echo "guest: rng is $(busybox cat /sys/class/misc/hw_random/rng_current)"
# The first kilobyte has come by interrupts of the device.
busybox dd if=/dev/hwrng bs=64 count=16 of=/dev/null 2>/dev/null && echo "guest: rng works"
echo "guest: ready"
# Who has an event device hears of the button by its interrupt.
tries=0
while busybox grep -q ACPI:Ged /proc/interrupts && [ "$tries" -lt 300 ]; do
    busybox grep ACPI:Ged /proc/interrupts | busybox grep -qE ': +[0 ]*[1-9]' && break
    busybox usleep 100000
    tries=$((tries + 1))
done
busybox sed 's/^/guest: irq /' /proc/interrupts
busybox poweroff -f
"#;

/// An archive in the format that the kernel takes (`newc`), with one executable file.
fn archive(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, contents) in [(name, 0o100_755, contents), ("TRAILER!!!", 0, &[][..])] {
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(b"070701");
        // Inode, mode, owner, group, links, time, length, two devices, name's length, no checksum.
        let fields = [1, mode, 0, 0, 1, 0, contents.len(), 0, 0, 0, 0, name.len() + 1, 0];
        for field in fields {
            archive.extend(format!("{field:08X}").bytes());
        }
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(contents);
    }
    archive
}

/// Ends with the test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What Linux of x86_64 says on this machine with the tables of these parts.
fn boot_pc(parts: &[Part], machine: &[&str], more: &str) -> Option<String> {
    let scratch = Scratch::new();
    let tables = build(parts, TABLES, &Oem::default()).expect("a board").bytes();
    let tables = scratch.file("tables", &tables);
    let loader = format!("loader,file={},addr={TABLES:#x},force-raw=on", tables.display());
    // QEMU's time-stamp counter counts nanoseconds, and there may be no timer to find that out with.
    let command_line =
        format!("console=ttyS0 panic=-1 tsc_early_khz=1000000 acpi_rsdp={TABLES:#x} memmap=64K${TABLES:#x} {more}");
    let machine = [machine, &["-cpu", "max", "-smp", "2", "-device", &loader]].concat();
    boot(&scratch, X86_64, "qemu-system-x86_64", &machine, &command_line)
}

/// What Linux says on this machine until it has powered off. `None` if that cannot be tried here.
fn boot(scratch: &Scratch, guest: &str, program: &str, machine: &[&str], command_line: &str) -> Option<String> {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join(guest);
    let kernel = guest.join("kernel");
    let (Ok(_), Ok(mut initrd)) = (fs::metadata(&kernel), fs::read(guest.join("initrd.cpio"))) else {
        skipped(format_args!(
            "no {} with its initrd.cpio: tests/guest/fetch.sh gets them",
            kernel.display()
        ));
        return None;
    };
    initrd.resize(initrd.len().next_multiple_of(512), 0);
    initrd.extend(archive("init", INIT.as_bytes()));
    let initrd = scratch.file("initrd", &initrd);
    let monitor = scratch.path().join("monitor");
    let child = Command::new(program)
        .args(machine)
        .args([
            "-accel",
            "tcg",
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ])
        .args(["-no-reboot", "-serial", "stdio", "-append", command_line])
        .arg("-kernel")
        .arg(&kernel)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut machine = match child {
        Ok(child) => Machine(child),
        Err(_) => {
            skipped(format_args!("{program} is not installed"));
            return None;
        }
    };
    let mut said = String::new();
    let mut button = None;
    let mut output = BufReader::new(machine.0.stdout.take().expect("it is piped"));
    let started = Instant::now();
    loop {
        let mut line = Vec::new();
        let length = output.read_until(b'\n', &mut line).expect("QEMU says something");
        if length == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&line);
        said.push_str(&line);
        if line.contains("guest: ready") && button.is_none() {
            let mut monitor = UnixStream::connect(&monitor).expect("QEMU listens");
            for command in ["qmp_capabilities", "system_powerdown"] {
                writeln!(monitor, "{{\"execute\": \"{command}\"}}").expect("QEMU takes commands");
            }
            // Answers are not waited for, but have somewhere to go.
            button = Some(monitor);
        }
        assert!(started.elapsed() < PATIENCE, "Linux takes too long:\n{said}");
    }
    let ended = machine.0.wait().expect("it ends");
    assert!(
        ended.success() && said.contains("reboot: Power down"),
        "it did not power off:\n{said}"
    );
    Some(said)
}

fn assert_said(said: &str, expected: &[&str]) {
    for expected in expected {
        assert!(said.contains(expected), "Linux did not say {expected:?}:\n{said}");
    }
    // What it says of tables that it does not like.
    for unwanted in [
        "ACPI BIOS Error",
        "ACPI BIOS Warning",
        "ACPI Error",
        "ACPI Warning",
        "[Firmware Bug]",
    ] {
        assert!(!said.contains(unwanted), "Linux said {unwanted:?}:\n{said}");
    }
}

#[test]
fn linux_boots_on_the_tables_of_a_microvm() {
    let machine = [
        "-M",
        "microvm,acpi=on,rtc=off,ioapic2=off,auto-kernel-cmdline=off,x-option-roms=off",
        "-device",
        "virtio-rng-device",
    ];
    let Some(said) = boot_pc(&parts::microvm(), &machine, "") else {
        return;
    };
    assert_said(
        &said,
        &[
            "RSDP 0x0000000008000000 000024 (v02 DEVISR)",
            "ACPI: SPCR: console: uart,io,0x3f8,115200",
            "ACPI: 1 ACPI AML tables successfully acquired and loaded",
            "(supports S0 S5)",
            "guest: acpi LNRO0005:07 LNRO0005 LNRO0005:07",
            "guest: acpi PNP0501:00 PNP0501 00:00",
            "guest: acpi PNP0C0C:00 PNP0C0C",
            "guest: acpi ACPI0013:00 ACPI0013 ACPI0013:00",
            "guest: rng is virtio_rng.0",
            "guest: rng works",
        ],
    );
    let ged = said
        .lines()
        .find(|line| line.contains("ACPI:Ged"))
        .expect("its interrupt");
    let counts: u32 = ged
        .split_whitespace()
        .filter_map(|word| word.parse::<u32>().ok())
        .take(3)
        .sum();
    assert!(ged.contains("IO-APIC") && counts > 0, "{ged}");
}

/// As QEMU's `q35` is wired: its PCI ends at GSIs 20 to 23, active high.
fn q35() -> Vec<Part> {
    let mut parts = vec![
        memory(0, 0xa_0000),
        lapic::describe(&[ApicId(0), ApicId(1)]),
        uart16550::describe(0x3f8, isa(4)).console(),
        mc146818::describe(0x70, isa(8)),
        i8042::describe(isa(1), isa(12)),
        fw_cfg::describe(0x510),
        pvpanic::describe(0x505),
        acpi_pm::describe(
            &AcpiPmConfig::default(),
            AcpiPmPlace::from_base(0x600),
            Wire::level(Gsi(9)),
        ),
        reset_control::describe(),
        pci::describe(PciHost {
            ecam: Some(0xb000_0000),
            config_ports: true,
            buses: 0..=0,
            memory: vec![(0xc000_0000, 0x3c00_0000)],
            ports: vec![PortWindow {
                base: 0x0d00,
                len: 0xf300,
                memory: None,
            }],
            wires: [20, 21, 22, 23].map(|gsi| Wire::level(Gsi(gsi))),
        }),
    ];
    parts.extend(pc::describe(&PcConfig::default()));
    parts
}

#[test]
fn linux_boots_on_the_tables_of_a_pc() {
    let machine = [
        "-M",
        "q35,hpet=off",
        "-device",
        "virtio-rng-pci,addr=3",
        "-device",
        "pvpanic",
    ];
    // Its wires, and no messages.
    let Some(said) = boot_pc(&q35(), &machine, "pci=nomsi") else {
        return;
    };
    assert_said(
        &said,
        &[
            "RSDP 0x0000000008000000 000024 (v02 DEVISR)",
            "ACPI: 1 ACPI AML tables successfully acquired and loaded",
            "ACPI: INT_SRC_OVR (bus 0 bus_irq 0 global_irq 2 high edge)",
            "ACPI: INT_SRC_OVR (bus 0 bus_irq 9 global_irq 9 high level)",
            "PCI: MMCONFIG at [mem 0xb0000000-0xb00fffff] reserved",
            "ACPI: PCI Root Bridge [PCI0] (domain 0000 [bus 00])",
            "pci_bus 0000:00: root bus resource [mem 0xc0000000-0xfbffffff window]",
            "ACPI: PCI: Interrupt link LNKD configured for IRQ 23",
            // Buttons of the fixed hardware, and what is behind the PS/2 ports.
            "guest: acpi LNXPWRBN:00 LNXPWRBN",
            "guest: acpi LNXSLPBN:00 LNXSLPBN",
            "i8042: PNP: PS/2 Controller [PNP0303:PS00,PNP0f13:PS01] at 0x60,0x64 irq 1,12",
            "rtc_cmos 00:01: setting system clock",
            "clocksource: acpi_pm",
            "(supports S0 S5)",
            "guest: acpi PNP0303:00 PNP0303",
            "guest: acpi PNP0B00:00 PNP0B00",
            "guest: acpi QEMU0002:00 QEMU0002",
            "guest: acpi QEMU0001:00 QEMU0001",
            "guest: rng is virtio_rng.0",
            "guest: rng works",
        ],
    );
    // INTA of device 3 is where INTD of device 0 is.
    let rng = said
        .lines()
        .find(|line| line.contains("guest: irq") && line.contains("virtio0"));
    assert!(rng.is_some_and(|line| line.contains("23-fasteoi")), "{rng:?}\n{said}");
}

#[test]
fn linux_boots_on_the_device_tree_of_an_arm64_board() {
    let scratch = Scratch::new();
    // QEMU adds RAM, command line and initial RAM disk to a tree that it is given.
    let boot = Boot {
        compatible: vec!["linux,dummy-virt".into()],
        model: "devisor".into(),
        ..Boot::default()
    };
    let mut parts = parts::virt_with_ecam(0x40_1000_0000);
    // As far as QEMU's board is not like ours.
    parts.retain(|part| !["cpus", "serial@9100000"].contains(&&*part.to_string()));
    parts.push(arm::cpus("arm,cortex-a53", &[0, 1, 2]));
    let tree = fdt::build(&parts, &boot).expect("a board");
    let tree = scratch.file("board.dtb", &tree).display().to_string();
    let machine = [
        "-M",
        "virt,gic-version=3,its=on",
        "-cpu",
        "cortex-a53",
        "-smp",
        "3",
        "-dtb",
        &tree,
        "-device",
        "virtio-rng-pci,addr=3",
        "-global",
        "virtio-mmio.force-legacy=false",
        "-device",
        "virtio-rng-device,bus=virtio-mmio-bus.1",
    ];
    let command_line = "console=ttyAMA0 panic=-1 cryptomgr.notests";
    let Some(said) = self::boot(&scratch, ARM64, "qemu-system-aarch64", &machine, command_line) else {
        return;
    };
    assert_said(
        &said,
        &[
            "Machine model: devisor",
            "psci: PSCIv1.1 detected in firmware.",
            "GICv3: CPU2: found redistributor 2 region 0:0x00000000080e0000",
            "ITS [mem 0x08080000-0x0809ffff]",
            "smp: Brought up 1 node, 3 CPUs",
            "pci-host-generic 4010000000.pcie: ECAM at [mem 0x4010000000-0x40100fffff] for [bus 00]",
            "9000000.serial: ttyAMA0 at MMIO 0x9000000",
            "rtc-pl031 9010000.rtc: registered as rtc0",
            "guest: rng works",
        ],
    );
    for (what, kind) in [("virtio0", "GICv3"), ("virtio1", "ITS-MSI")] {
        let line = said
            .lines()
            .find(|line| line.contains("guest: irq") && line.contains(what));
        assert!(line.is_some_and(|line| line.contains(kind)), "{line:?}\n{said}");
    }
}
