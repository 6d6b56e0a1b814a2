//! Tells the guest what there is, where, and with which interrupts: ACPI tables (*Advanced Configuration and Power Interface
//! Specification 6.5*).

use acpi_tables::{
    Aml,
    aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path,
        ResourceTemplate, Scope, ZERO,
    },
    facs::FACS,
    mcfg::MCFG,
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use devisor::{backends::irqchip::pc::TIMER_GSI, backends::irqchip::pic::Irq, platform::mc146818};

use super::board;
use crate::{
    options::{Chips, Options},
    virtio::Window,
};

const OEM: [u8; 6] = *b"DEVISR";
const OEM_TABLE: [u8; 8] = *b"EXAMPLE ";
const HEADER: u32 = 36;

/// The tables as they are to be at `base`, which is a multiple of 64: first of all what the guest looks for (section 5.2.5).
pub fn build(base: u64, options: &Options) -> Vec<u8> {
    let mut tables = Tables {
        base,
        bytes: vec![0; Rsdp::len()],
    };
    let facs = tables.add(&FACS::new());
    let dsdt = tables.add(&dsdt(options));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(tables.add(&fadt(facs, dsdt)));
    xsdt.add_entry(tables.add(&madt(options.cpus)));
    if options.transport.is_pci() {
        let mut mcfg = MCFG::new(OEM, OEM_TABLE, 1);
        mcfg.add_ecam(board::PCI_CONFIG.base, 0, 0, 0);
        xsdt.add_entry(tables.add(&mcfg));
    }
    let xsdt = tables.add(&xsdt);
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    tables.bytes
}

struct Tables {
    base: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Where it is.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        // The FACS asks for as much.
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Section 5.2.9.
fn fadt(facs: u64, dsdt: u64) -> Sdt {
    const LEN: u32 = 276;
    // IAPC_BOOT_ARCH: there is what ISA has and an 8042, but no VGA.
    const BOOT: u16 = 1 << 0 | 1 << 1 | 1 << 2;
    // WBINVD, PROC_C1, no sleep button, the clock's alarm is no event of these registers, TMR_VAL_EXT, RESET_REG_SUP.
    const FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10;
    // RESET_REG: a port of one byte; and what makes of it a hard reset.
    const SYSTEM_IO: u8 = 1;
    const RESET_PORT: u64 = board::PCI_PORTS + 1;
    const HARD: u8 = 6;

    let mut fadt = Sdt::new(*b"FACP", LEN, 6, OEM, OEM_TABLE, 1);
    fadt.write_u32(36, facs as u32);
    fadt.write_u32(40, dsdt as u32);
    fadt.write_u16(46, board::SCI.0.into());
    for (at, port) in [
        (56, board::PM_EVENTS),
        (64, board::PM_CONTROL),
        (76, board::PM_TIMER),
        (80, board::GPES),
    ] {
        fadt.write_u32(at, port as u32);
    }
    // PM1_EVT_LEN, PM1_CNT_LEN, PM_TMR_LEN, GPE0_BLK_LEN.
    for (at, len) in [(88, 4), (89, 2), (91, 4), (92, 4)] {
        fadt.write_u8(at, len);
    }
    // P_LVL2_LAT, P_LVL3_LAT: there is neither.
    fadt.write_u16(96, 0xffff);
    fadt.write_u16(98, 0xffff);
    fadt.write_u8(108, CENTURY);
    fadt.write_u16(109, BOOT);
    fadt.write_u32(112, FLAGS);
    fadt.write_bytes(116, &[SYSTEM_IO, 8, 0, 1]);
    fadt.write_u64(120, RESET_PORT);
    fadt.write_u8(128, HARD);
    fadt
}

/// The clock's register for it.
const CENTURY: u8 = 0x32;

/// Section 5.2.12: whichever controllers the guest uses, both are there.
fn madt(cpus: u32) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    const ACTIVE_HIGH: u16 = 1;
    const LEVEL: u16 = 3 << 2;

    let mut madt = Sdt::new(*b"APIC", HEADER, 5, OEM, OEM_TABLE, 1);
    madt.append(board::LOCAL_APIC.base as u32);
    madt.append(PCAT_COMPAT);
    for cpu in 0..cpus as u8 {
        madt.append_slice(&[0, 8, cpu, cpu]);
        madt.append(ENABLED);
    }
    madt.append_slice(&[1, 12, board::IOAPIC_ID, 0]);
    madt.append(board::IOAPIC.base as u32);
    madt.append(0_u32);
    // Interrupt source overrides: the timer is elsewhere, and ACPI's own is level-triggered.
    for (irq, gsi, flags) in [
        (0, TIMER_GSI.0, 0),
        (board::SCI.0, board::SCI.0.into(), LEVEL | ACTIVE_HIGH),
    ] {
        madt.append_slice(&[2, 10, 0, irq]);
        madt.append(gsi);
        madt.append(flags);
    }
    // LINT1 of all CPUs is NMI.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

/// Section 5.2.11.1.
fn dsdt(options: &Options) -> Sdt {
    let mut aml = Vec::new();
    let off = board::POWER_OFF;
    let s5 = Name::new("_S5_".into(), &Package::new(vec![&off, &off, &ZERO, &ZERO]));
    s5.to_aml_bytes(&mut aml);
    for (name, hid, ports, irq) in [
        ("COM1", "PNP0501", &[(board::COM1, 8)][..], board::COM1_IRQ),
        ("RTC_", "PNP0B00", &[(board::RTC, mc146818::PORTS)], board::RTC_IRQ),
        (
            "KBD_",
            "PNP0303",
            &[(board::KEYBOARD_DATA, 1), (board::KEYBOARD_COMMAND, 1)],
            board::KEYBOARD_IRQ,
        ),
        ("MOU_", "PNP0F13", &[], board::MOUSE_IRQ),
    ] {
        isa_device(name, hid, ports, irq)
            .iter()
            .for_each(|byte| aml.push(*byte));
    }
    match options.transport.is_pci() {
        true => pci(options.chips, &mut aml),
        false => virtio_mmio(options, &mut aml),
    }
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&aml);
    dsdt
}

fn in_system_bus(device: &dyn Aml) -> Vec<u8> {
    bytes(&Scope::new("_SB_".into(), vec![device]))
}

/// Its interrupt is that of an edge, as ISA has them.
fn isa_device(name: &str, hid: &str, ports: &[(u64, u64)], irq: Irq) -> Vec<u8> {
    let ports: Vec<_> = ports
        .iter()
        .map(|(port, len)| IO::new(*port as u16, *port as u16, 1, *len as u8))
        .collect();
    let interrupt = Interrupt::new(true, true, false, false, irq.0.into());
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|port| port as _).collect();
    resources.push(&interrupt);
    in_system_bus(&Device::new(
        Path::new(name),
        vec![
            &Name::new("_HID".into(), &EISAName::new(hid)),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    ))
}

/// The ID is the one that Linux's driver knows (`drivers/virtio/virtio_mmio.c`).
fn virtio_mmio(options: &Options, aml: &mut Vec<u8>) {
    for (number, place) in (0_u8..).zip(&board::places(options)) {
        let registers = Memory32Fixed::new(true, place.mmio.base as u32, place.mmio.len as u32);
        let interrupt = Interrupt::new(true, false, false, false, board::mmio_gsi(place, options.chips).0);
        aml.extend(in_system_bus(&Device::new(
            Path::new(&format!("VIO{number}")),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &number),
                &Name::new("_CCA".into(), &acpi_tables::aml::ONE),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt])),
            ],
        )));
    }
}

/// The host bridge, and what keeps its configuration space from being used for something else.
fn pci(chips: Chips, aml: &mut Vec<u8>) {
    const DEVICES: usize = 32;
    const PINS: usize = 4;
    let routes: Vec<_> = (0..DEVICES * PINS)
        .map(|n| {
            let (device, pin) = (n / PINS, n % PINS);
            let address = (device as u32) << 16 | 0xffff;
            (address, pin as u8, board::wire_gsi((device + pin) % PINS, chips).0)
        })
        .collect();
    let routes: Vec<_> = routes
        .iter()
        .map(|(address, pin, gsi)| Package::new(vec![address, pin, &ZERO, gsi]))
        .collect();
    let Window { base, len } = board::PCI_MEMORY;
    let (ports, end) = (board::PCI_PORTS as u16, board::PCI_PORTS as u16 + 8);
    aml.extend(in_system_bus(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0_u16, 0_u16),
                    &IO::new(ports, ports, 1, 8),
                    &AddressSpace::new_io(0_u16, ports - 1, None),
                    &AddressSpace::new_io(end, 0xffff_u16, None),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        base as u32,
                        (base + len - 1) as u32,
                        None,
                    ),
                ]),
            ),
            &Name::new(
                "_PRT".into(),
                &Package::new(routes.iter().map(|route| route as _).collect()),
            ),
        ],
    )));
    let Window { base, len } = board::PCI_CONFIG;
    let reserved = Memory32Fixed::new(true, base as u32, len as u32);
    aml.extend(in_system_bus(&Device::new(
        "MB__".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&reserved])),
        ],
    )));
}
