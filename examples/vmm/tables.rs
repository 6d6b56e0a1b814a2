//! The ACPI tables that a kernel finds its CPUs, its IOAPIC and what is on ISA by. Firmware makes its own.

use devisor::{
    backends::irqchip::{
        lapic::{self, ApicId},
        pc::{self, Gsi, PcConfig},
        pic::Irq,
    },
    description::{
        Part, Wire,
        acpi::{self, Oem, Tables},
        memory,
    },
    platform::{
        acpi_pm::{self, AcpiPmConfig, AcpiPmPlace},
        i8042, mc146818, reset_control, uart16550,
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    board::{KEYBOARD_IRQ, MOUSE_IRQ, PM_BASE, RTC_IRQ, SCI, UART_IRQ, UART_PORT},
    options::{Error, Options},
};

/// Where kernels look for them: where a PC has its firmware.
const TABLES: u64 = 0xe_0000;
const END: u64 = 0x10_0000;

/// Puts them there.
pub fn write(options: &Options, memory: &GuestMemoryMmap) -> Result<(), Error> {
    let tables = build(options)?.bytes();
    if TABLES + tables.len() as u64 > END {
        return Err(format!("{} bytes of ACPI tables do not fit below 1 MiB", tables.len()).into());
    }
    Ok(memory.write_slice(&tables, GuestAddress(TABLES))?)
}

fn build(options: &Options) -> Result<Tables, Error> {
    let isa = |irq: Irq| Wire::edge(Gsi::of_irq(irq));
    let cpus: Vec<_> = (0..options.cpus).map(ApicId).collect();
    let mut parts: Vec<Part> = vec![
        memory(0, options.memory),
        lapic::describe(&cpus),
        uart16550::describe(UART_PORT as u16, isa(UART_IRQ)),
        mc146818::describe(0x70, isa(RTC_IRQ)),
        i8042::describe(isa(KEYBOARD_IRQ), isa(MOUSE_IRQ)),
        acpi_pm::describe(
            &AcpiPmConfig::default(),
            AcpiPmPlace::from_base(PM_BASE),
            Wire::level(Gsi::of_irq(SCI)),
        ),
        reset_control::describe(),
    ];
    parts.extend(pc::describe(&PcConfig::default()));
    Ok(acpi::build(&parts, TABLES, &Oem::default())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iasl_takes_them_without_a_warning_with_as_many_cpus_as_there_can_be() {
        const MAX_CPUS: u32 = 64;
        let directory = std::env::temp_dir().join(format!("devisor-vmm-tables-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let arguments = ["--cpus", &MAX_CPUS.to_string(), "kernel"].map(std::ffi::OsString::from);
        let options = Options::parse(arguments).unwrap().unwrap();
        for table in build(&options).unwrap().tables() {
            // The first two are no tables for it.
            if [*b"RSDP", *b"FACS"].contains(&table.signature) {
                continue;
            }
            let file = directory.join(String::from_utf8_lossy(&table.signature).into_owned());
            std::fs::write(&file, &table.bytes).unwrap();
            let iasl = std::process::Command::new("iasl").arg("-d").arg(&file).output();
            let Ok(output) = iasl else {
                println!("skipped: iasl is not installed (package acpica-tools)");
                break;
            };
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).to_lowercase();
            assert!(output.status.success(), "{said}");
            let wrong = |line: &&str| line.contains("warning") || line.contains("error");
            assert_eq!(said.lines().filter(wrong).collect::<Vec<_>>(), [""; 0], "{said}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
