//! The DSDT: devices, CPUs, events, and the way to power off.

use std::collections::BTreeMap;

use acpi_tables::{
    Aml,
    aml::{
        And, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method, Notify, ONE,
        OpRegion, OpRegionSpace, Package, Path, Scope, Store, ZERO,
    },
    sdt::Sdt,
};

use super::{Board, aml::Raw};
use crate::description::{Acpi, BoardError, EventBits, Object, Part, Wire};

/// `_STA`: present, enabled and functioning, but not shown.
const HIDDEN: u8 = 0b1011;

/// What a button is told: it was pressed (5.6.6, table 5.167 on).
const PRESSED: u8 = 0x80;

impl Board<'_> {
    pub(super) fn dsdt(&self) -> Result<Sdt, BoardError> {
        let mut scope = Raw::default();
        let mut counts = BTreeMap::new();
        let mut cpus = 0_u32;
        for (part, entry) in self.entries() {
            match entry {
                Acpi::Processor(_) => {
                    let mut cpu = Raw::default();
                    cpu.id("_HID", "ACPI0007");
                    cpu.name("_UID", &cpus);
                    scope.device(&numbered(part, "C", 3, cpus)?, &cpu);
                    cpus += 1;
                }
                Acpi::Device(object) => {
                    let count = counts.entry(object.prefix).or_insert(0);
                    let device = device(part, object, *count)?;
                    scope.device(&numbered(part, object.prefix, 2, *count)?, &device);
                    *count += 1;
                }
                Acpi::Events {
                    selector, wire, bits, ..
                } => events(&mut scope, *selector, wire, *bits),
                _ => {}
            }
        }
        if let Some((part, host)) = self.pci {
            super::pci::host(&mut scope, part, host)?;
        }

        let mut dsdt = self.oem.table(b"DSDT", 2);
        let mut body = Raw::default();
        body.push(&Scope::new(Path::new("\\_SB_"), vec![&scope]));
        if let Some(s5) = self.s5()? {
            // SLP_TYP for PM1a and PM1b, of which there is none.
            body.name("\\_S5_", &Package::new(vec![&s5, &s5, &ZERO, &ZERO]));
        }
        dsdt.append_slice(&body.0);
        Ok(dsdt)
    }
}

/// A name of four characters: letters, and a number in as many hexadecimal digits.
fn numbered(part: &Part, prefix: &str, digits: usize, number: u32) -> Result<String, BoardError> {
    let letters = !prefix.is_empty() && prefix.bytes().all(|letter| letter.is_ascii_uppercase());
    if !letters || prefix.len() + digits != 4 || number >> (4 * digits) != 0 {
        return Err(BoardError::Unfit {
            part: part.to_string(),
            what: format!(
                "ACPI device {number} with a name from {prefix:?}: a name has {} letters A to Z, and there are {} of each",
                4 - digits,
                1 << (4 * digits)
            ),
        });
    }
    Ok(format!("{prefix}{number:0digits$X}"))
}

fn device(part: &Part, object: &Object, number: u32) -> Result<Raw, BoardError> {
    let mut device = Raw::default();
    let is_id =
        |id: &str| (7..=8).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
    if !is_id(object.hid) {
        return Err(BoardError::Unfit {
            part: part.to_string(),
            what: format!(
                "the ACPI ID {:?}: one has 7 or 8 characters, A to Z and 0 to 9",
                object.hid
            ),
        });
    }
    device.id("_HID", object.hid);
    device.name("_UID", &number);
    if object.hidden {
        device.name("_STA", &HIDDEN);
    }
    if object.coherent {
        device.name("_CCA", &ONE);
    }
    let mut resources = Raw::default();
    for region in &object.regions {
        resources.region(part, region)?;
    }
    for wire in &object.wires {
        resources.wire(wire);
    }
    if !resources.0.is_empty() {
        device.resources("_CRS", &resources);
    }
    Ok(device)
}

/// The generic event device (5.6.9), and its buttons.
fn events(scope: &mut Raw, selector: u64, wire: &Wire, bits: EventBits) {
    let mut ged = Raw::default();
    ged.id("_HID", "ACPI0013");
    ged.name("_UID", &ZERO);
    let mut resources = Raw::default();
    resources.wire(wire);
    ged.resources("_CRS", &resources);
    ged.push(&OpRegion::new(
        "EREG".into(),
        OpRegionSpace::SystemMemory,
        &selector,
        &4_u8,
    ));
    ged.push(&Field::new(
        "EREG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"ESEL", 32)],
    ));
    let buttons = [
        ("PWRB", "PNP0C0C", Some(bits.power_button)),
        ("SLPB", "PNP0C0E", bits.sleep_button),
    ];
    let buttons = buttons
        .into_iter()
        .filter_map(|(name, hid, bit)| Some((name, hid, bit?)));

    let mut told = Raw::default();
    // The read clears it.
    told.push(&Store::new(&Local(0), &Path::new("ESEL")));
    for (name, _, bit) in buttons.clone() {
        let path = Path::new(&format!("\\_SB_.{name}"));
        let set = And::new(&ZERO, &Local(0), &bit);
        told.push(&If::new(&Equal::new(&set, &bit), vec![&Notify::new(&path, &PRESSED)]));
    }
    ged.push(&Method::new("_EVT".into(), 1, true, vec![&told as &dyn Aml]));
    scope.device("GED_", &ged);
    for (name, hid, _) in buttons {
        let mut button = Raw::default();
        button.id("_HID", hid);
        button.name("_UID", &ZERO);
        scope.device(name, &button);
    }
}
