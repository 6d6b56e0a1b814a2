//! The command line.

use std::{ffi::OsString, path::PathBuf};

use crate::irqchip::Mode;

pub const USAGE: &str = "\
usage: vmm [OPTION]... KERNEL
       vmm [OPTION]... --firmware FILE
  --irqchip MODE   which interrupt controllers are the kernel's: all, the local APICs, or none   [kernel]
  --cpus N         virtual CPUs, 1 to 64                                                         [1]
  --memory MIB     RAM in MiB, 1 to 3072                                                         [128]
  --append STRING  the command line of the kernel
  --disk IMAGE     a file that the guest sees as a virtio disk
  --cpu FEATURES   hides features of the CPU, such as -x2apic,-cx16,-xsave
  --reboot         a guest that resets the machine begins again, and the process does not end
  --firmware FILE  begins with a PC's firmware, such as SeaBIOS; the disk is on a PCI bus then
  --debugcon FILE  appends what firmware logs to port 0x402
  KERNEL           an ELF file with a multiboot header, a bzImage, or a boot sector";

/// APIC IDs of 8 bits are enough for so many, and the kernel does not ask for more than a page of them.
pub const MAX_CPUS: u32 = 64;
/// Below the devices, which are from 0xfeb00000 on.
pub const MAX_MEMORY_MIB: u64 = 3072;

/// What is wrong, in one line.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug)]
pub struct Options {
    pub mode: Mode,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    pub append: String,
    pub disk: Option<PathBuf>,
    /// Of the CPU's features.
    pub hidden: Vec<Feature>,
    pub reboot: bool,
    pub debugcon: Option<PathBuf>,
    /// One of the two is there.
    pub kernel: Option<PathBuf>,
    pub firmware: Option<PathBuf>,
}

impl Options {
    /// `None` if the usage was asked for.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, Error> {
        let mut arguments = arguments.into_iter();
        let mut options = Self {
            mode: Mode::Kernel,
            cpus: 1,
            memory: 128 << 20,
            append: String::new(),
            disk: None,
            hidden: Vec::new(),
            reboot: false,
            debugcon: None,
            kernel: None,
            firmware: None,
        };
        while let Some(argument) = arguments.next() {
            let name = argument.to_string_lossy().into_owned();
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{name} needs a value (--help tells)"))
            };
            match name.as_str() {
                "--help" | "-h" => return Ok(None),
                "--irqchip" => {
                    let mode = value()?;
                    options.mode = Mode::named(&mode.to_string_lossy()).ok_or_else(|| {
                        format!("--irqchip {}: it is kernel, split or software", mode.to_string_lossy())
                    })?;
                }
                "--cpus" => options.cpus = number(&name, value()?, 1..=MAX_CPUS.into())? as u32,
                "--memory" => options.memory = number(&name, value()?, 1..=MAX_MEMORY_MIB)? << 20,
                "--append" => {
                    let append = value()?;
                    options.append = append.into_string().map_err(|_| "--append: it is no UTF-8")?;
                }
                "--disk" => options.disk = Some(value()?.into()),
                "--cpu" => options.hidden = features(&value()?.to_string_lossy())?,
                "--reboot" => options.reboot = true,
                "--firmware" => options.firmware = Some(value()?.into()),
                "--debugcon" => options.debugcon = Some(value()?.into()),
                _ if name.starts_with('-') => return Err(format!("{name} is no option (--help tells)").into()),
                _ if options.kernel.is_some() => return Err(format!("{name}: there is a kernel already").into()),
                _ => options.kernel = Some(argument.into()),
            }
        }
        match (&options.kernel, &options.firmware) {
            (None, None) => Err("no kernel is given (--help tells)".into()),
            (Some(_), Some(_)) => Err("there are a kernel and --firmware: it is one of them".into()),
            _ => Ok(Some(options)),
        }
    }

    /// Whether the guest is offered the local APIC's other mode.
    pub fn x2apic(&self) -> bool {
        !self.hidden.contains(&Feature::X2APIC)
    }
}

/// A bit of CPUID (Intel SDM volume 2, CPUID).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: Register,
    pub bit: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    Ebx,
    Ecx,
    Edx,
}

impl Feature {
    pub const X2APIC: Self = Self::new(1, Register::Ecx, 21);
    pub const XSAVE: Self = Self::new(1, Register::Ecx, 26);

    /// By the names that others have for them.
    const NAMES: [(&str, Self); 16] = [
        ("sse3", Self::new(1, Register::Ecx, 0)),
        ("ssse3", Self::new(1, Register::Ecx, 9)),
        ("cx16", Self::new(1, Register::Ecx, 13)),
        ("pcid", Self::new(1, Register::Ecx, 17)),
        ("sse4.1", Self::new(1, Register::Ecx, 19)),
        ("sse4.2", Self::new(1, Register::Ecx, 20)),
        ("x2apic", Self::X2APIC),
        ("movbe", Self::new(1, Register::Ecx, 22)),
        ("popcnt", Self::new(1, Register::Ecx, 23)),
        ("tsc-deadline", Self::new(1, Register::Ecx, 24)),
        ("xsave", Self::XSAVE),
        ("avx", Self::new(1, Register::Ecx, 28)),
        ("rdrand", Self::new(1, Register::Ecx, 30)),
        ("fsgsbase", Self::new(7, Register::Ebx, 0)),
        ("avx2", Self::new(7, Register::Ebx, 5)),
        ("nx", Self::new(0x8000_0001, Register::Edx, 20)),
    ];

    const fn new(leaf: u32, register: Register, bit: u32) -> Self {
        Self {
            leaf,
            subleaf: 0,
            register,
            bit,
        }
    }
}

fn features(hidden: &str) -> Result<Vec<Feature>, Error> {
    let feature = |name: &str| {
        let known = |name| Feature::NAMES.iter().find(|(known, _)| *known == name);
        let feature = name.strip_prefix('-').and_then(known);
        feature.map(|(_, feature)| *feature).ok_or_else(|| {
            let names: Vec<_> = Feature::NAMES.iter().map(|(name, _)| format!("-{name}")).collect();
            format!("--cpu {name}: it is some of {}", names.join(",")).into()
        })
    };
    hidden.split(',').map(feature).collect()
}

fn number(name: &str, value: OsString, allowed: std::ops::RangeInclusive<u64>) -> Result<u64, Error> {
    let value = value.to_string_lossy();
    let number = value.parse().ok().filter(|number| allowed.contains(number));
    let (least, most) = allowed.into_inner();
    number.ok_or_else(|| format!("{name} {value}: it is a number from {least} to {most}").into())
}
