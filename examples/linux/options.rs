//! The command line.

use std::{path::PathBuf, time::Duration};

use crate::{
    completion::Completion,
    disk::{Runs, Source},
    more::DeviceSet,
    virtio::{Rings, Transport},
};

pub const USAGE: &str = "\
usage: cargo run --release --example linux -- [OPTION VALUE]...
  --arch NAME        arm64 or x86_64             [arm64]
  --kernel FILE      a boot Image of arm64, or a bzImage  [tests/guest/build/kernel, or build/x86_64/kernel]
  --initrd FILE      an initial RAM disk         [initrd.cpio beside it]
  --disk DISK        an ext4 file system: in FILE, of which the guest gets a copy, FILE.run; in qcow2:FILE, over which
                     it gets an overlay, FILE.run; or on an NBD server, nbd:URI, where it is written [root.ext4 beside it]
  --queues NUMBER    queues of the disk, 1 to 16, of which a guest uses as many as it has CPUs [1]
  --async NAME       how requests to a file run: in their round; by threads of ours; or, if it is no image, by the
                     kernel: sync, threads, io_uring  [sync]
  --transport NAME   mmio; pci, with messages; or pci-intx, with wires
                                                 [arm64: mmio; x86_64: pci, with the chips pic: pci-intx]
  --rings NAME       what the guest is offered: split; packed too; or packed-plain, without event indices [split]
  --completion NAME  when a disk that is run sync completes its requests: in their round; late; shuffled;
                     or by another thread: round, late, shuffled, thread [round]
  --devices NAME     few: the disk and the entropy device; or all that there are, with pci, for arm64 with mmio too [few]
  --gic NUMBER       arm64 alone: 2, with a frame for messages; or 3, with an ITS [2]
  --iommu yes        arm64 alone, with mmio or pci: all virtio devices are behind a virtio-iommu, for which the kernel of
                     tests/guest/fetch.sh backports has a driver [no]
  --firmware FILE    runs first, and gets the kernel from a device that it asks for it: U-Boot and EDK2 for arm64,
                     OVMF's code for x86_64
  --acpi yes         arm64 alone, with --firmware and pci: what there is, the guest gets told in ACPI tables, and not in
                     the device tree [no]
  --shell yes        with --firmware: there is no kernel, and the firmware is to come to its shell [no]
  --cpus NUMBER      x86_64 alone: 1 to 4        [1]
  --chips NAME       x86_64 alone: apic, local APICs and IOAPIC; or pic, 8259s and 8254 [apic]
  --measure yes      how much of the CPU the kernel takes from reset to power-off, beside the same kernel on rsemu's
                     own devices; and accesses by device. Three times both
  --engine NAME      rsemu's jit-host, jit or interp                  [jit-host]
  --timeout SECONDS  give the guest up after this much of our time    [600]
  --vcd FILE         write the interrupt lines as a waveform
  --help             this text";

/// Whose kernel it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Arm64,
    X86_64,
}

/// What interrupts a PC's cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chips {
    /// Local APICs and an IOAPIC.
    Apic,
    /// The 8259 pair and the 8254: the kernel is told to leave local APICs alone.
    Pic,
}

/// What interrupts an arm64 core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gic {
    /// Its messages are SPIs, by a GICv2m.
    V2,
    /// Its messages are LPIs, by an ITS.
    V3,
}

#[derive(Debug)]
pub struct Options {
    pub arch: Arch,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disk: Source,
    pub queues: u16,
    pub runs: Runs,
    pub transport: Transport,
    pub rings: Rings,
    pub completion: Completion,
    pub devices: DeviceSet,
    pub iommu: bool,
    pub firmware: Option<PathBuf>,
    pub acpi: bool,
    pub shell: bool,
    pub cpus: u32,
    pub chips: Chips,
    pub gic: Gic,
    pub measure: bool,
    pub engine: String,
    pub timeout: Duration,
    pub vcd: Option<PathBuf>,
}

/// The value that has that name.
fn named<T: Copy>(names: &[(&str, T)], name: &str) -> Result<T, &'static str> {
    let mut names = names.iter();
    Ok(names.find(|(of, _)| *of == name).ok_or(USAGE)?.1)
}

impl Options {
    /// What the kernel is told besides: where a boot is measured it powers off with its first process.
    pub fn of_measurement(&self) -> &'static str {
        if self.measure {
            " rdinit=/bin/busybox -- poweroff -f"
        } else {
            ""
        }
    }

    /// `None` is for help.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let (mut arch, mut chips, mut cpus) = (Arch::Arm64, Chips::Apic, 1);
        let (mut kernel, mut initrd, mut disk, mut vcd) = (None, None, None, None);
        let (mut transport, mut completion, mut rings) = (None, Completion::Round, Rings::Split);
        let (mut engine, mut timeout) = ("jit-host".to_owned(), Duration::from_secs(600));
        let (mut devices, mut measure, mut iommu) = (DeviceSet::Few, false, false);
        let (mut gic, mut of_arm, mut of_x86) = (Gic::V2, None, None);
        let (mut queues, mut runs) = (1, None);
        let (mut firmware, mut shell, mut acpi) = (None, false, false);
        while let Some(option) = arguments.next() {
            if option == "--help" || option == "-h" {
                return Ok(None);
            }
            let value = arguments.next().ok_or(USAGE)?;
            match option.as_str() {
                "--arch" => arch = named(&[("arm64", Arch::Arm64), ("x86_64", Arch::X86_64)], &value)?,
                "--kernel" => kernel = Some(PathBuf::from(value)),
                "--initrd" => initrd = Some(value.into()),
                "--disk" => disk = Some(Source::parse(&value)?),
                "--queues" => {
                    let number = value.parse().ok().filter(|queues| (1..=16).contains(queues));
                    queues = number.ok_or(format!("--queues {value}: 1 to 16 are accepted"))?;
                }
                "--async" => runs = Some(named(&Runs::NAMES, &value)?),
                "--transport" => transport = Some(named(&Transport::NAMES, &value)?),
                "--rings" => rings = named(&Rings::NAMES, &value)?,
                "--completion" => completion = named(&Completion::NAMES, &value)?,
                "--devices" => devices = named(&DeviceSet::NAMES, &value)?,
                "--iommu" => iommu = named(&[("yes", true), ("no", false)], &value)?,
                "--firmware" => firmware = Some(PathBuf::from(value)),
                "--acpi" => acpi = named(&[("yes", true), ("no", false)], &value)?,
                "--shell" => shell = named(&[("yes", true), ("no", false)], &value)?,
                "--cpus" => cpus = value.parse().ok().filter(|cpus| (1..=4).contains(cpus)).ok_or(USAGE)?,
                "--chips" => chips = named(&[("apic", Chips::Apic), ("pic", Chips::Pic)], &value)?,
                "--gic" => gic = named(&[("2", Gic::V2), ("3", Gic::V3)], &value)?,
                "--measure" => measure = named(&[("yes", true), ("no", false)], &value)?,
                "--engine" => engine = value,
                "--timeout" => timeout = Duration::from_secs(value.parse().map_err(|_| USAGE)?),
                "--vcd" => vcd = Some(value.into()),
                _ => return Err(USAGE.into()),
            }
            match option.as_str() {
                "--cpus" | "--chips" => of_x86 = Some(option),
                "--gic" | "--acpi" => of_arm = Some(option),
                _ => {}
            }
        }
        if let (Arch::Arm64, Some(option)) = (arch, of_x86) {
            return Err(format!(
                "{option} is for --arch x86_64: the other board has one core and a GIC"
            ));
        }
        if let (Arch::X86_64, Some(option)) = (arch, of_arm) {
            return Err(format!(
                "{option} is for --arch arm64: a PC has other chips, see --chips, and ACPI tables always"
            ));
        }
        let transport = transport.unwrap_or(match (arch, chips) {
            (Arch::Arm64, _) => Transport::Mmio,
            (Arch::X86_64, Chips::Apic) => Transport::Pci,
            (Arch::X86_64, Chips::Pic) => Transport::PciIntx,
        });
        if chips == Chips::Pic && (cpus != 1 || transport == Transport::Pci) {
            return Err(
                "--chips pic: 8259s interrupt one CPU and take no messages: --cpus 1, and --transport \
                        pci-intx or mmio"
                    .into(),
            );
        }
        let own_interrupts = match arch {
            Arch::Arm64 => transport != Transport::PciIntx,
            Arch::X86_64 => transport == Transport::Pci,
        };
        if devices == DeviceSet::All && !own_interrupts {
            return Err(
                "--devices all is for --transport pci, and mmio with --arch arm64: there each device has an interrupt of \
                 its own"
                    .into(),
            );
        }
        let of_nbd = matches!(disk, Some(Source::Nbd(_)));
        if completion != Completion::Round && (of_nbd || !matches!(runs, None | Some(Runs::Sync))) {
            return Err(
                "--completion is for --async sync: all other disks complete their requests by themselves".into(),
            );
        }
        if iommu && (arch == Arch::X86_64 || transport == Transport::PciIntx) {
            return Err("--iommu yes is for --arch arm64, with --transport mmio or pci".into());
        }
        if shell && firmware.is_none() {
            return Err("--shell yes is for --firmware".into());
        }
        if acpi && (firmware.is_none() || !transport.is_pci()) {
            return Err("--acpi yes is for --firmware, with --transport pci or pci-intx".into());
        }
        if firmware.is_some() && arch == Arch::X86_64 && !transport.is_pci() {
            return Err("--firmware finds a PC's disk by PCI: --transport pci or pci-intx".into());
        }
        let build = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/build"));
        let build = match arch {
            Arch::Arm64 => build,
            Arch::X86_64 => build.join("x86_64"),
        };
        let kernel = kernel.unwrap_or_else(|| build.join("kernel"));
        let beside = |name| kernel.with_file_name(name);
        let options = Self {
            arch,
            initrd: initrd.unwrap_or_else(|| beside("initrd.cpio")),
            disk: disk.unwrap_or_else(|| Source::File(beside("root.ext4"))),
            kernel,
            queues,
            runs: runs.unwrap_or(Runs::Sync),
            transport,
            rings,
            completion,
            devices,
            iommu,
            firmware,
            acpi,
            shell,
            cpus,
            chips,
            gic,
            measure,
            engine,
            timeout,
            vcd,
        };
        options.disk.runs(runs)?;
        let files = [options.kernel.as_path(), &options.initrd];
        for file in files
            .into_iter()
            .chain(options.disk.file())
            .chain(options.firmware.as_deref())
        {
            if !file.exists() {
                return Err(format!("{} is missing: run tests/guest/fetch.sh", file.display()));
            }
        }
        Ok(Some(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Option<Options>, String> {
        Options::parse(arguments.iter().map(|argument| argument.to_string()))
    }

    #[test]
    fn without_a_guest_one_line_says_what_to_run() {
        let message = parse(&["--kernel", "/nonexistent"]).unwrap_err();
        assert_eq!(message, "/nonexistent is missing: run tests/guest/fetch.sh");
    }

    #[test]
    fn what_is_not_named_is_beside_the_kernel() {
        let folder = std::env::temp_dir().join(format!("devisor-options-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let [kernel, initrd, disk] = ["kernel", "initrd.cpio", "root.ext4"].map(|name| folder.join(name));
        for file in [&kernel, &initrd, &disk] {
            std::fs::write(file, "").unwrap();
        }
        let options = parse(&["--kernel", kernel.to_str().unwrap()]);
        std::fs::remove_dir_all(&folder).unwrap();
        let options = options.unwrap().unwrap();
        assert_eq!((options.initrd, options.disk), (initrd, Source::File(disk)));
    }

    #[test]
    fn help_is_no_mistake_wherever_it_stands() {
        for arguments in [&["--help"][..], &["-h"], &["--engine", "jit", "--help"]] {
            assert!(parse(arguments).unwrap().is_none());
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
            &["--arch", "m68k"],
            &["--arch", "x86_64", "--cpus", "5"],
        ] {
            assert_eq!(parse(arguments).err().as_deref(), Some(USAGE));
        }
    }

    #[test]
    fn what_the_chips_cannot_do_is_refused() {
        let arguments = ["--arch", "x86_64", "--chips", "pic"];
        for more in [["--cpus", "2"], ["--transport", "pci"]] {
            let message = parse(&[&arguments[..], &more].concat()).unwrap_err();
            assert!(message.starts_with("--chips pic: "), "{message}");
        }
        for more in [
            &["--transport", "pci-intx"][..],
            &["--arch", "x86_64", "--transport", "mmio"],
            &["--arch", "x86_64", "--chips", "pic"],
        ] {
            let message = parse(&[&["--devices", "all"], more].concat()).unwrap_err();
            assert!(message.starts_with("--devices all is for --transport pci"), "{message}");
        }
        assert!(parse(&["--cpus", "2"]).unwrap_err().contains("--arch x86_64"));
        let message = parse(&["--arch", "x86_64", "--gic", "3"]).unwrap_err();
        assert!(message.contains("--arch arm64"), "{message}");
    }

    #[test]
    fn what_a_disk_cannot_be_or_do_is_refused_in_a_sentence() {
        for (arguments, why) in [
            (&["--queues", "0"][..], "--queues 0: 1 to 16 are accepted"),
            (&["--queues", "many"], "--queues many: 1 to 16 are accepted"),
            (
                &["--async", "threads", "--completion", "late"],
                "--completion is for --async sync",
            ),
            #[cfg(feature = "nbd")]
            (&["--disk", "nbd:disk"], "\"disk\" is no URI of an NBD export"),
            #[cfg(feature = "nbd")]
            (&["--disk", "nbd:///disk"], "it has no host"),
            #[cfg(feature = "nbd")]
            (
                &["--disk", "nbd://h/", "--completion", "late"],
                "--completion is for --async sync",
            ),
            #[cfg(feature = "nbd")]
            (
                &["--disk", "nbd://h/", "--async", "sync"],
                "--async is for disks in files",
            ),
            #[cfg(not(feature = "nbd"))]
            (&["--disk", "nbd://h/"], "--features nbd"),
            #[cfg(feature = "images")]
            (
                &["--disk", "qcow2:f", "--async", "io_uring"],
                "is for a disk that is a plain file",
            ),
            #[cfg(not(feature = "images"))]
            (&["--disk", "qcow2:f"], "--features images"),
        ] {
            let message = parse(arguments).expect_err("it is refused");
            assert!(
                message.contains(why) && !message.contains('\n'),
                "{arguments:?}: {message}"
            );
        }
    }

    #[test]
    fn a_disk_is_told_by_what_stands_before_it() {
        let file = |text: &str| Source::parse(text).unwrap();
        assert_eq!(file("/d/disk.img"), Source::File("/d/disk.img".into()));
        #[cfg(feature = "images")]
        assert_eq!(file("qcow2:/d/disk"), Source::Qcow2("/d/disk".into()));
        #[cfg(feature = "nbd")]
        for uri in ["nbd://host:1/export", "nbd+unix:///export?socket=/s", "nbds://host"] {
            assert_eq!(file(uri), Source::Nbd(uri.into()));
            assert_eq!(file(&format!("nbd:{uri}")), Source::Nbd(uri.into()));
        }
    }
}
