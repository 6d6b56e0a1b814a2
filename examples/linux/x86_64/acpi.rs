//! Tells the guest what there is, where, and with which interrupts: each part says it of itself, and of all of them there are
//! ACPI tables.

use devisor::{
    backends::irqchip::{
        lapic::{self, ApicId},
        pc::{self, Gsi, PcConfig},
        pic::Irq,
    },
    description::{
        BoardError, Part, PciHost, PortWindow, Wire,
        acpi::{self, Oem, Tables},
        memory,
    },
    pci,
    platform::{
        acpi_pm::{self, AcpiPmConfig, AcpiPmPlace},
        fw_cfg, i8042, mc146818, reset_control, uart16550,
    },
    virtio::transport::mmio,
};

use super::board;
use crate::options::{Chips, Options};

/// The same tables for firmware that places them itself.
pub fn files(options: &Options) -> Result<[(&'static str, Vec<u8>); 3], BoardError> {
    Ok(build(board::TABLES.base, options)?.files())
}

/// The tables as they are to be at `base`: first of all what the guest looks for (ACPI Specification 6.5, section 5.2.5).
pub fn build(base: u64, options: &Options) -> Result<Tables, BoardError> {
    acpi::build(&parts(options), base, &Oem::default())
}

fn parts(options: &Options) -> Vec<Part> {
    // As ISA has them.
    let isa = |irq: Irq| Wire::edge(Gsi::of_irq(irq));
    let cpus: Vec<_> = (0..options.cpus).map(ApicId).collect();
    let place = AcpiPmPlace {
        event: board::PM_EVENTS as u16,
        control: board::PM_CONTROL as u16,
        timer: board::PM_TIMER as u16,
        gpe: board::GPES as u16,
        s5: board::POWER_OFF,
        ..AcpiPmPlace::from_base(board::PM_EVENTS as u16)
    };
    let sci = Wire::level(Gsi::of_irq(board::SCI));
    let mut parts = vec![
        memory(board::RAM.base, board::CONVENTIONAL),
        memory(board::HIGH, board::RAM.len - board::HIGH),
        lapic::describe(&cpus),
        uart16550::describe(board::COM1 as u16, isa(board::COM1_IRQ)),
        mc146818::describe(board::RTC as u16, isa(board::RTC_IRQ)),
        i8042::describe(isa(board::KEYBOARD_IRQ), isa(board::MOUSE_IRQ)),
        acpi_pm::describe(&AcpiPmConfig::default(), place, sci),
        reset_control::describe(),
    ];
    if options.firmware.is_some() {
        parts.push(fw_cfg::describe(board::FW_CFG as u16));
    }
    parts.extend(pc::describe(&PcConfig::default()));
    if options.transport.is_pci() {
        parts.push(pci::describe(bus(options)));
    } else {
        parts.extend(board::places(options).iter().map(|place| {
            let line = Wire::level(board::mmio_gsi(place, options.chips));
            mmio::describe(place.mmio.base, line)
        }));
    }
    parts
}

/// The one bus there is.
fn bus(options: &Options) -> PciHost {
    let chips = options.chips;
    let wire = |wire| {
        let wire = Wire::level(board::wire_gsi(wire, chips));
        match chips {
            Chips::Apic => wire.active_low(),
            Chips::Pic => wire.shared(),
        }
    };
    let ports = |base: u16, end: u32| PortWindow {
        base,
        len: end - u32::from(base),
        memory: None,
    };
    let own = board::PCI_PORTS as u16;
    PciHost {
        ecam: Some(board::PCI_CONFIG.base),
        config_ports: true,
        buses: 0..=0,
        memory: board::pci_memory(options)
            .iter()
            .map(|window| (window.base, window.len))
            .collect(),
        ports: vec![ports(0, own.into()), ports(own + 8, 0x1_0000)],
        wires: [wire(0), wire(1), wire(2), wire(3)],
    }
}
