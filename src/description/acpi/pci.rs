//! A PCI host bridge in the DSDT, with where its wires end and what the operating system may take over; and the MCFG (*PCI
//! Firmware Specification 3.3*, sections 4.1 and 4.5).

use acpi_tables::{
    Aml,
    aml::{
        And, Arg, CreateDWordField, Else, Equal, If, Method, Name, NotEqual, Or, Package, PackageBuilder, Path, Return,
        Store, Uuid, ZERO,
    },
    sdt::Sdt,
};

use super::{
    Board,
    aml::{Kind, PRODUCER, Raw, address},
};
use crate::description::{BoardError, Part, PciHost, Region, Space};

const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];

/// Bytes of the configuration space of a bus.
const BUS: u64 = 1 << 20;

impl Board<'_> {
    pub(super) fn mcfg(&self) -> Option<Sdt> {
        let (_, host) = self.pci?;
        let mut mcfg = self.oem.table(b"MCFG", 1);
        let mut body = vec![0; 8];
        // Counted as if the first bus were 0.
        let base = host.ecam?.wrapping_sub(u64::from(*host.buses.start()) * BUS);
        body.extend(base.to_le_bytes());
        body.extend([0, 0, *host.buses.start(), *host.buses.end(), 0, 0, 0, 0]);
        mcfg.append_slice(&body);
        Some(mcfg)
    }
}

pub(super) fn host(scope: &mut Raw, part: &Part, host: &PciHost) -> Result<(), BoardError> {
    let before = u64::from(*host.buses.start()) * BUS;
    if host.buses.is_empty() || host.ecam.is_some_and(|ecam| ecam < before) {
        return Err(BoardError::Unfit {
            part: part.to_string(),
            what: format!(
                "buses {:?} with configuration space at {:#x?}: there is at least one, and room for those before the first",
                host.buses, host.ecam
            ),
        });
    }
    // A wire of PCI is by default active low, and a GIC's is not: a link says what it is.
    for (number, (link, wire)) in (0_u8..).zip(LINKS.iter().zip(&host.wires)) {
        let mut device = Raw::default();
        device.id("_HID", "PNP0C0F");
        device.name("_UID", &number);
        let mut resources = Raw::default();
        resources.wire(wire);
        device.resources("_PRS", &resources);
        device.resources("_CRS", &resources);
        device.push(&Method::new("_SRS".into(), 1, false, vec![]));
        scope.device(link, &device);
    }

    let mut bridge = Raw::default();
    bridge.id("_HID", "PNP0A08");
    bridge.id("_CID", "PNP0A03");
    bridge.name("_SEG", &ZERO);
    bridge.name("_BBN", host.buses.start());
    bridge.name("_UID", &ZERO);
    bridge.name("_CCA", &1_u8);
    bridge.resources("_CRS", &windows(part, host)?);
    bridge.push(&routing(host));
    bridge.push(&control());
    if let Some(base) = host.ecam {
        // The place of the MCFG is to be reserved by the motherboard (PCI Firmware Specification, 4.1.2).
        let mut board = Raw::default();
        board.id("_HID", "PNP0C02");
        board.name("_UID", &ZERO);
        let len = BUS * host.buses.clone().count() as u64;
        let mut resources = Raw::default();
        let space = Space::Memory;
        resources.region(part, &Region { space, base, len })?;
        board.resources("_CRS", &resources);
        bridge.device("RES0", &board);
    }
    scope.device("PCI0", &bridge);
    Ok(())
}

/// `_CRS`: what lies behind the bridge, and its own ports.
fn windows(part: &Part, host: &PciHost) -> Result<Raw, BoardError> {
    let mut windows = Raw::default();
    let (first, last) = (*host.buses.start(), *host.buses.end());
    windows
        .0
        .extend(address(Kind::Buses, 2, PRODUCER, first.into(), last.into(), 0));
    if host.config_ports {
        windows.region(
            part,
            &Region {
                space: Space::Ports,
                base: 0xcf8,
                len: 8,
            },
        )?;
    }
    for window in &host.ports {
        let base = u64::from(window.base);
        let region = Region {
            space: Space::Ports,
            base,
            len: window.len.into(),
        };
        let last = region.end(part)?;
        windows.0.extend(match window.memory {
            // The length has to fit, too.
            None if window.len < 0x1_0000 => address(Kind::Ports, 2, PRODUCER, base, last, 0),
            None => address(Kind::Ports, 4, PRODUCER, base, last, 0),
            Some(memory) => address(Kind::Ports, 8, PRODUCER, base, last, memory.wrapping_sub(base)),
        });
    }
    for &(base, len) in &host.memory {
        let space = Space::Memory;
        let last = Region { space, base, len }.end(part)?;
        // So has the length here, and it does unless it is all of them.
        let width = if last < u32::MAX.into() { 4 } else { 8 };
        windows.0.extend(address(Kind::Memory, width, PRODUCER, base, last, 0));
    }
    Ok(windows)
}

/// `_PRT`: of each device, each pin.
fn routing(host: &PciHost) -> Name {
    let mut table = PackageBuilder::new();
    for device in 0_u32..32 {
        for pin in 0_u8..4 {
            let link = LINKS[(device as usize + usize::from(pin)) % host.wires.len()];
            let link = Path::new(&format!("\\_SB_.{link}"));
            table.add_element(&Package::new(vec![&(device << 16 | 0xffff), &pin, &link, &ZERO]));
        }
    }
    Name::new("_PRT".into(), &table)
}

/// `_OSC`: what there is of PCI Express belongs to the operating system, as there is no firmware that would use it.
fn control() -> Raw {
    // Hotplug, SHPC hotplug, power management events, error reporting, the capability structure.
    const ALL: u8 = 0x1f;
    const UNRECOGNIZED_UUID: u8 = 1 << 2;
    const UNRECOGNIZED_REVISION: u8 = 1 << 3;
    const MASKED: u8 = 1 << 4;
    let (status, wanted) = (Path::new("CDW1"), Path::new("CDW3"));
    let (buffer, four) = (Arg(3), 8_u8);
    let given = And::new(&acpi_tables::aml::Local(0), &wanted, &ALL);
    let set = |bit: &'static u8| Or::new(&status, &status, bit);

    let differs = NotEqual::new(&acpi_tables::aml::Local(0), &wanted);
    let revision = NotEqual::new(&Arg(1), &1_u8);
    let uuid = Uuid::new("33db4d5b-1ff7-401c-9657-7441c03dd766");
    let is_pci = Equal::new(&Arg(0), &uuid);
    let masked = set(&MASKED);
    let if_masked = If::new(&differs, vec![&masked]);
    let unknown_revision = set(&UNRECOGNIZED_REVISION);
    let if_revision = If::new(&revision, vec![&unknown_revision]);
    let third = CreateDWordField::new(&wanted, &buffer, &four);
    let store = Store::new(&wanted, &acpi_tables::aml::Local(0));
    let unknown = set(&UNRECOGNIZED_UUID);
    let first = CreateDWordField::new(&status, &buffer, &ZERO);
    let answer = Return::new(&buffer);

    let mut raw = Raw::default();
    let body: Vec<&dyn Aml> = vec![&third, &given, &if_masked, &if_revision, &store];
    let then = If::new(&is_pci, body);
    let otherwise = Else::new(vec![&unknown]);
    // Fields are created, which two threads cannot do at once.
    raw.push(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![&first, &then, &otherwise, &answer],
    ));
    raw
}
