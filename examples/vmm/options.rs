//! The command line.

use std::{ffi::OsString, path::PathBuf};

use crate::irqchip::Mode;

pub const USAGE: &str = "\
usage: vmm [--irqchip kernel|split|software] [--cpus N] [--memory MIB] [--append STRING] [--disk IMAGE] KERNEL
  --irqchip MODE   which interrupt controllers are the kernel's: all, the local APICs, or none   [kernel]
  --cpus N         virtual CPUs, 1 to 64                                                         [1]
  --memory MIB     RAM in MiB, 1 to 3072                                                         [128]
  --append STRING  the command line of the kernel
  --disk IMAGE     a file that the guest sees as a virtio disk
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
    pub kernel: PathBuf,
}

impl Options {
    /// `None` if the usage was asked for.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, Error> {
        let mut arguments = arguments.into_iter();
        let mut kernel = None;
        let mut options = Self {
            mode: Mode::Kernel,
            cpus: 1,
            memory: 128 << 20,
            append: String::new(),
            disk: None,
            kernel: PathBuf::new(),
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
                _ if name.starts_with('-') => return Err(format!("{name} is no option (--help tells)").into()),
                _ if kernel.is_some() => return Err(format!("{name}: there is a kernel already").into()),
                _ => kernel = Some(argument.into()),
            }
        }
        options.kernel = kernel.ok_or("no kernel is given (--help tells)")?;
        Ok(Some(options))
    }
}

fn number(name: &str, value: OsString, allowed: std::ops::RangeInclusive<u64>) -> Result<u64, Error> {
    let value = value.to_string_lossy();
    let number = value.parse().ok().filter(|number| allowed.contains(number));
    let (least, most) = allowed.into_inner();
    number.ok_or_else(|| format!("{name} {value}: it is a number from {least} to {most}").into())
}
