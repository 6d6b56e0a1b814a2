//! ACPI tables.

use std::collections::BTreeMap;

use devisor::{
    backends::irqchip::{
        Spi,
        gicv2::{CpuOutputs, GicV2, GicV2Config},
        gicv2m::{self, GicV2mFrame},
        ioapic::{self, IoApicConfig},
        pc::Gsi,
    },
    description::{
        Part, Wire,
        acpi::{Oem, Tables, build},
    },
    interrupt::NoInterrupt,
    platform::acpi_pm::{AcpiPm, AcpiPmConfig, AcpiPmPlace, TimerWidth},
    time::ManualClock,
};

use crate::{
    parts,
    skip::skipped,
    tools::{Scratch, run},
};

/// Where the RSDP of a PC may be.
const BASE: u64 = 0xe_0000;

fn tables(parts: &[Part]) -> Tables {
    build(parts, BASE, &Oem::default()).expect("a board")
}

/// Reads tables out of memory as an operating system does, from the RSDP on.
struct Reader<'a> {
    memory: &'a [u8],
}

impl<'a> Reader<'a> {
    fn at(&self, address: u64, len: usize) -> &'a [u8] {
        let at = usize::try_from(address - BASE).unwrap();
        &self.memory[at..at + len]
    }

    fn all(&self) -> BTreeMap<String, &'a [u8]> {
        let rsdp = self.at(BASE, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(sum(&rsdp[..20]), 0, "the first checksum is of 20 bytes");
        assert_eq!(sum(rsdp), 0);
        assert_eq!((rsdp[15], word(rsdp, 20)), (2, 36), "revision and length");
        let mut all = BTreeMap::new();
        let xsdt = self.table(double(rsdp, 24), &mut all);
        assert_eq!((&xsdt[..4], xsdt[8]), (&b"XSDT"[..], 1));
        for entry in xsdt[36..].chunks_exact(8) {
            self.table(u64::from_le_bytes(entry.try_into().unwrap()), &mut all);
        }
        let fadt = all["FACP"];
        let dsdt = double(fadt, 140);
        assert_eq!(dsdt, u64::from(word(fadt, 40)), "DSDT and X_DSDT");
        self.table(dsdt, &mut all);
        let facs = double(fadt, 132);
        if facs != 0 {
            assert!(facs.is_multiple_of(64));
            let facs = self.at(facs, 64);
            assert_eq!((&facs[..4], word(facs, 4)), (&b"FACS"[..], 64));
            all.insert("FACS".into(), facs);
        }
        all
    }

    fn table(&self, address: u64, all: &mut BTreeMap<String, &'a [u8]>) -> &'a [u8] {
        let len = word(self.at(address, 36), 4) as usize;
        let table = self.at(address, len);
        assert_eq!(sum(table), 0, "{:?}", std::str::from_utf8(&table[..4]));
        assert_eq!((&table[10..16], &table[16..24]), (&b"DEVISR"[..], &b"DEVISOR "[..]));
        let signature = String::from_utf8(table[..4].to_vec()).unwrap();
        assert!(all.insert(signature, table).is_none(), "twice");
        table
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The structures of a MADT.
fn structures(madt: &[u8]) -> Vec<&[u8]> {
    let mut left = &madt[44..];
    let mut all = Vec::new();
    while let [_, len, ..] = *left {
        let (structure, rest) = left.split_at(len.into());
        all.push(structure);
        left = rest;
    }
    assert!(left.is_empty());
    all
}

/// Disassembles each table and assembles it again, which nothing may be said of. Returns the source of each.
fn sources(tables: &Tables) -> Option<BTreeMap<String, String>> {
    // An RSDP has no header, and iasl takes it for itself alone.
    sources_of(tables, |signature| signature != b"RSDP")
}

/// The same for some of them.
fn sources_of(tables: &Tables, wanted: impl Fn(&[u8; 4]) -> bool) -> Option<BTreeMap<String, String>> {
    let scratch = Scratch::new();
    let mut sources = BTreeMap::new();
    for table in tables.tables().iter().filter(|table| wanted(&table.signature)) {
        let name = String::from_utf8(table.signature.to_vec()).unwrap().to_lowercase();
        scratch.file(&format!("{name}.dat"), &table.bytes);
        let (content, said) = run(&scratch, "iasl", "acpica-tools", &["-d", &format!("{name}.dat")])?;
        assert!(content, "{name}: {said}");
        let complains = |said: &str| {
            let lines = said.lines().map(str::to_lowercase);
            lines.filter(|line| !line.contains("0 errors, 0 warnings")).any(|line| {
                ["error", "warning", "invalid", "incorrect", "truncat"]
                    .iter()
                    .any(|word| line.contains(word))
            })
        };
        assert!(!complains(&said), "{name}: {said}");
        let source = std::fs::read_to_string(scratch.path().join(format!("{name}.dsl"))).expect("iasl wrote it");
        let arguments = ["-p", &format!("{name}-again"), &format!("{name}.dsl")];
        let (content, said) = run(&scratch, "iasl", "acpica-tools", &arguments)?;
        assert!(content && !complains(&said), "{name}: {said}\n{source}");
        let again = std::fs::read(scratch.path().join(format!("{name}-again.aml"))).expect("iasl wrote it");
        if source.contains("Unknown ACPI table signature") {
            println!("skipped: this iasl is older than the {name}, which it cannot assemble");
        } else if name != "dsdt" {
            // The compiler writes its own name and version, and with that another checksum.
            let mut ours = table.bytes.clone();
            if name != "facs" {
                ours[28..36].copy_from_slice(&again[28..36]);
                ours[9] = again[9];
            }
            assert_eq!(ours, again, "{name}: {source}");
        }
        sources.insert(name, source);
    }
    Some(sources)
}

#[test]
fn each_table_is_found_from_the_rsdp_with_its_length_checksum_and_revision() {
    let arm = [
        ("FACP", 6),
        ("APIC", 5),
        ("GTDT", 2),
        ("MCFG", 1),
        ("SPCR", 2),
        ("DSDT", 2),
        ("XSDT", 1),
    ];
    let with_its = [&arm[..], &[("IORT", 0)]].concat();
    let pc = [
        ("FACP", 6),
        ("APIC", 5),
        ("MCFG", 1),
        ("SPCR", 2),
        ("DSDT", 2),
        ("XSDT", 1),
        ("FACS", 0),
    ];
    let microvm = [("FACP", 6), ("APIC", 5), ("SPCR", 2), ("DSDT", 2), ("XSDT", 1)];
    for (parts, expected) in [
        (parts::pc(), &pc[..]),
        (parts::virt(), &with_its),
        (parts::virt_gicv2(), &arm),
        (parts::microvm(), &microvm),
    ] {
        let tables = tables(&parts);
        assert_eq!(tables.rsdp(), BASE);
        let memory = tables.bytes();
        let all = Reader { memory: &memory }.all();
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(name, revision)| ((*name).to_owned(), *revision))
            .collect();
        let revisions: BTreeMap<_, _> = all
            .iter()
            .map(|(name, table)| (name.clone(), if name == "FACS" { 0 } else { table[8] }))
            .collect();
        assert_eq!(revisions, expected);
        for table in tables.tables() {
            assert!(table.address.is_multiple_of(64));
        }
        assert_eq!(all["FACP"].len(), 276);
    }
}

#[test]
fn the_madt_of_a_pc_has_its_cpus_its_ioapic_and_what_differs_from_isa() {
    let tables = tables(&parts::pc());
    let madt = &tables.get(b"APIC").unwrap().bytes;
    assert_eq!(
        (word(madt, 36), word(madt, 40)),
        (0xfee0_0000, 1),
        "local APICs, and PCAT_COMPAT"
    );
    let expected: [&[u8]; 9] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 4, 1, 0, 0, 0],
        &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0], // APIC ID 0x100: as x2APIC
        &[4, 6, 0xff, 0, 0, 1],                             // LINT1 of all
        &[0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0], // SCI: level, high
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 5, 0], // IRQ 0 is GSI 2: edge, high
    ];
    assert_eq!(structures(madt), expected);
}

#[test]
fn the_madt_of_an_arm64_board_has_its_cpus_distributor_redistributors_and_its() {
    let tables = tables(&parts::virt());
    let madt = &tables.get(b"APIC").unwrap().bytes;
    let structures = structures(madt);
    let kinds: Vec<_> = structures
        .iter()
        .map(|structure| (structure[0], structure[1]))
        .collect();
    assert_eq!(
        kinds,
        [(0xb, 80), (0xb, 80), (0xb, 80), (0xc, 24), (0xe, 16), (0xf, 20)]
    );
    let gicc = structures[2];
    assert_eq!((word(gicc, 4), word(gicc, 8), word(gicc, 12)), (2, 2, 1));
    assert_eq!(double(gicc, 68), 0x100, "MPIDR, affinities alone");
    assert_eq!((double(structures[3], 8), structures[3][20]), (0x0800_0000, 3));
    assert_eq!(
        (double(structures[4], 4), word(structures[4], 12)),
        (0x080a_0000, 0x6_0000)
    );
    assert_eq!(double(structures[5], 8), 0x0808_0000);

    let tables = self::tables(&parts::virt_gicv2());
    let madt = &tables.get(b"APIC").unwrap().bytes;
    let structures = self::structures(madt);
    assert_eq!(double(structures[0], 32), 0x0801_0000, "GICC");
    let frame = structures.last().unwrap();
    assert_eq!((frame[0], double(frame, 8), word(frame, 16)), (0xd, 0x0802_0000, 1));
    assert_eq!(frame[20..], [32, 0, 80, 0], "32 SPIs from INTID 80 on");
}

#[test]
fn the_fadt_says_what_fixed_hardware_there_is() {
    const RESET: u32 = 1 << 10;
    const REDUCED: u32 = 1 << 20;
    let tables = tables(&parts::pc());
    let fadt = &tables.get(b"FACP").unwrap().bytes;
    let flags = word(fadt, 112);
    assert_eq!(flags & (REDUCED | RESET), RESET);
    assert_eq!(flags & (1 << 4 | 1 << 5), 0, "power and sleep button are fixed");
    assert_eq!(flags & 1 << 8, 1 << 8, "TMR_VAL_EXT");
    assert_eq!(fadt[46], 9, "SCI_INT");
    assert_eq!([56, 64, 76, 80].map(|at| word(fadt, at)), [0x600, 0x604, 0x608, 0x620]);
    assert_eq!(
        fadt[88..=92],
        [4, 2, 0, 4, 4],
        "lengths: PM1_EVT, PM1_CNT, PM2, PM_TMR, GPE0"
    );
    assert_eq!(fadt[108], 0x32, "CENTURY");
    assert_eq!(fadt[109], 0b111, "legacy devices, an 8042, no VGA, and a clock");
    assert_eq!(
        (fadt[116], double(fadt, 120), fadt[128]),
        (1, 0xcf9, 6),
        "reset: a port, its value"
    );
    assert_eq!(double(fadt, 132) % 64, 0);

    let tables = self::tables(&parts::microvm());
    let fadt = &tables.get(b"FACP").unwrap().bytes;
    let flags = word(fadt, 112);
    assert_eq!(flags & (REDUCED | RESET), REDUCED | RESET);
    assert_eq!((fadt[116], double(fadt, 120), fadt[128]), (0, 0xfea0_0202, 0x42));
    assert_eq!(
        [248, 260].map(|at| double(fadt, at)),
        [0xfea0_0200, 0xfea0_0201],
        "sleep control and status"
    );
    assert_eq!(fadt[109], 0b10_0100, "no VGA and no CMOS clock");

    let tables = self::tables(&parts::virt());
    let fadt = &tables.get(b"FACP").unwrap().bytes;
    assert_eq!(word(fadt, 112) & (REDUCED | RESET), REDUCED);
    assert_eq!(fadt[129], 0b11, "PSCI, by HVC");
    let tables = self::tables(&parts::virt_gicv2());
    assert_eq!(tables.get(b"FACP").unwrap().bytes[129], 0b01, "PSCI, by SMC");
}

#[test]
fn a_pm_that_is_not_in_acpi_mode_tells_of_its_smi_port() {
    let config = AcpiPmConfig {
        timer: TimerWidth::Bits24,
        gpes: 0,
        acpi_mode: false,
    };
    let pm = AcpiPm::new(config, NoInterrupt, |_| (), ManualClock::default(), ()).unwrap();
    let place = AcpiPmPlace {
        s5: 5,
        ..AcpiPmPlace::from_base(0x600)
    };
    let ioapic = ioapic::describe(&IoApicConfig::default(), 0xfec0_0000, 0);
    let part = pm.describe(place, Wire::level(Gsi(20)));
    assert_eq!(part.regions().len(), 4, "three blocks, and the port");
    let tables = tables(&[ioapic, part]);
    let fadt = &tables.get(b"FACP").unwrap().bytes;
    assert_eq!(
        (word(fadt, 48), fadt[52], fadt[53]),
        (0xb2, 2, 3),
        "SMI_CMD, ACPI_ENABLE, ACPI_DISABLE"
    );
    assert_eq!((word(fadt, 80), fadt[92]), (0, 0), "no GPE0");
    assert_eq!(word(fadt, 112) & 1 << 8, 0, "24 bits of timer");
    let madt = &tables.get(b"APIC").unwrap().bytes;
    assert_eq!(structures(madt).len(), 1, "GSI 20 is none of ISA's");
    let dsdt = &tables.get(b"DSDT").unwrap().bytes;
    let s5 = [b"_S5_".as_slice(), &[0x12, 8, 4, 0x0a, 5, 0x0a, 5, 0, 0]].concat();
    assert!(dsdt.windows(s5.len()).any(|bytes| bytes == s5));
}

#[test]
fn a_frame_describes_itself_with_its_own_spis() {
    let output = || CpuOutputs {
        irq: Box::new(NoInterrupt),
        fiq: Box::new(NoInterrupt),
    };
    let gic = GicV2::new(GicV2Config::default(), vec![output()]).unwrap();
    let frame = GicV2mFrame::new(&gic, 0x0802_0000, Spi(48), 32).unwrap();
    assert_eq!(frame.describe(), gicv2m::describe(0x0802_0000, Spi(48), 32));
}

#[test]
fn the_tables_of_a_pc_are_disassembled_and_assembled_again() {
    let Some(sources) = sources(&tables(&parts::pc())) else {
        return;
    };
    let dsdt = &sources["dsdt"];
    for expected in [
        "Device (PCI0)",
        "EisaId (\"PNP0A08\")",
        "Package (0x04)",
        "0x000000BFFFFFFFFF", // The last address of the upper window
        "EisaId (\"PNP0501\")",
        "EisaId (\"PNP0B00\")",
        "EisaId (\"PNP0303\")",
        "EisaId (\"PNP0F13\")",
        "\"QEMU0002\"",
        "\"QEMU0001\"",
        "Interrupt (ResourceConsumer, Level, ActiveLow, Shared, ,, )",
        "Name (\\_S5",
        "Method (_OSC, 4, Serialized)",
        "EisaId (\"PNP0C02\")",
        "\"ACPI0007\"",
    ] {
        assert!(dsdt.contains(expected), "no {expected} in\n{dsdt}");
    }
    let routes = dsdt.lines().filter(|line| line.trim_start().starts_with("\\_SB.LNK"));
    assert_eq!(routes.count(), 128, "32 devices, 4 pins");
}

#[test]
fn the_tables_of_an_arm64_board_are_disassembled_and_assembled_again() {
    let Some(sources) = sources(&tables(&parts::virt())) else {
        return;
    };
    let dsdt = &sources["dsdt"];
    for expected in [
        "\"ARMH0011\"",
        "\"ARMH0061\"",
        "\"LNRO0005\"",
        "\"ACPI0013\"",
        "EisaId (\"PNP0C0C\")",
        "Notify (\\_SB.PWRB, 0x80)",
        "0x00000031,", // SPI 17 is INTID 49
    ] {
        assert!(dsdt.contains(expected), "no {expected} in\n{dsdt}");
    }
    assert!(sources["iort"].contains("ItsCount : 00000001"));
    assert!(sources.contains_key("gtdt") && sources.contains_key("spcr"));
    assert!(self::sources(&tables(&parts::virt_gicv2())).is_some());
}

#[test]
fn the_tables_of_a_microvm_are_disassembled_and_assembled_again() {
    let Some(sources) = sources(&tables(&parts::microvm())) else {
        return;
    };
    let dsdt = &sources["dsdt"];
    for expected in [
        "\"LNRO0005\"",
        "Method (_EVT, 1, Serialized)",
        "OperationRegion (EREG, SystemMemory, 0xFEA00000, 0x04)",
        "Name (\\_S5",
    ] {
        assert!(dsdt.contains(expected), "no {expected} in\n{dsdt}");
    }
}

#[test]
fn the_viot_says_who_is_behind_which_iommu() {
    let viot = |parts: &[Part]| tables(parts).get(b"VIOT").map(|table| table.bytes.clone());
    assert_eq!(viot(&parts::virt()), None);
    let mmio = viot(&parts::virt_with_iommu()).expect("there is one");
    assert_eq!(sum(&mmio), 0);
    assert_eq!(mmio[36..48], [3, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // The IOMMU, then an endpoint, then all functions.
    assert_eq!(
        (mmio[48..52].to_vec(), double(&mmio, 56)),
        (vec![4, 0, 16, 0], 0x0a00_0200)
    );
    let endpoint = &mmio[64..88];
    assert_eq!(
        (endpoint[..4].to_vec(), word(endpoint, 4)),
        (vec![2, 0, 24, 0], 0x1_0007)
    );
    assert_eq!(
        (double(endpoint, 8), endpoint[16..18].to_vec()),
        (0x0a00_0000, vec![48, 0])
    );
    assert_eq!(
        mmio[88..108],
        [1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 48, 0, 0, 0]
    );
    assert_eq!(mmio.len(), 112);
    // One that is a function itself, and not behind itself.
    let pci = viot(&parts::pc_with_iommu()).expect("there is one");
    assert_eq!(pci[48..64], [3, 0, 16, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        pci[64..84],
        [1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0, 48, 0, 0, 0]
    );
    assert_eq!(
        pci[88..108],
        [1, 0, 24, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0xff, 0xff, 48, 0, 0, 0]
    );
}

/// As an iasl reads it that knows this table: those before 2021 have it assembled by nobody.
#[test]
fn the_viot_reads_as_it_was_described_and_is_assembled_again_to_the_byte() {
    let bus = |first: &str, last: &str, iommu: &str| {
        [
            ("Type", "01 [PCI Range]".to_owned()),
            ("Length", "0018".into()),
            ("Endpoint start", format!("0000{first}")),
            ("PCI Segment start", "0000".into()),
            ("PCI Segment end", "0000".into()),
            ("PCI BDF start", first.into()),
            ("PCI BDF end", last.into()),
            ("Output node", iommu.into()),
        ]
    };
    let mmio = [
        ("Type", "04 [VirtIO-MMIO IOMMU]"),
        ("Length", "0010"),
        ("Base address", "000000000A000200"),
        ("Type", "02 [MMIO Endpoint]"),
        ("Length", "0018"),
        ("Endpoint", "00010007"),
        ("Base address", "000000000A000000"),
        ("Output node", "0030"),
    ]
    .map(|(field, value)| (field, value.to_owned()));
    let function = [
        ("Type", "03 [VirtIO-PCI IOMMU]"),
        ("Length", "0010"),
        ("PCI Segment", "0000"),
        ("PCI BDF number", "0010"),
    ]
    .map(|(field, value)| (field, value.to_owned()));
    for (parts, count, nodes) in [
        (
            parts::virt_with_iommu(),
            "0003",
            [&mmio[..], &bus("0000", "FFFF", "0030")].concat(),
        ),
        (
            parts::pc_with_iommu(),
            "0003",
            [
                &function[..],
                &bus("0000", "000F", "0030"),
                &bus("0011", "FFFF", "0030"),
            ]
            .concat(),
        ),
    ] {
        let Some(sources) = sources_of(&tables(&parts), |signature| signature == b"VIOT") else {
            return;
        };
        let source = &sources["viot"];
        if !source.contains("Virtual I/O Translation Table") {
            skipped(format_args!(
                "this iasl does not know the VIOT: one of 2021 or later does"
            ));
            return;
        }
        // `[030h 0048 001h]   Type : 04 [..]`, of which the last two are looked at; not what has to be zero.
        let fields = source.lines().filter_map(|line| {
            let (field, value) = line.strip_prefix('[')?.split_once(']')?.1.split_once(" : ")?;
            Some((field.trim(), value.trim().to_owned()))
        });
        let fields: Vec<_> = fields.filter(|(field, _)| *field != "Reserved").collect();
        let header = fields.iter().position(|(field, _)| *field == "Node count");
        let (header, rest) = fields[header.expect("how many nodes")..].split_at(2);
        assert_eq!(
            header,
            [("Node count", count.to_owned()), ("Node offset", "0030".into())]
        );
        assert_eq!(rest, nodes, "{source}");
    }
}

/// Does what the script of a firmware configuration device says, as firmware does: `tables` and `rsdp` go to these addresses.
fn placed_by_firmware(files: &[(&str, Vec<u8>)], tables: u64, rsdp: u64) -> (Vec<u8>, Vec<u8>) {
    let mut contents: BTreeMap<_, _> = files.iter().cloned().collect();
    let script = contents.remove("etc/table-loader").unwrap();
    let addresses = BTreeMap::from([("etc/acpi/tables", tables), ("etc/acpi/rsdp", rsdp)]);
    let name = |field: &[u8]| {
        let text = std::str::from_utf8(field).unwrap().trim_end_matches('\0').to_owned();
        *addresses.keys().find(|known| **known == text).unwrap()
    };
    let mut allocated = Vec::new();
    for command in script.chunks(128) {
        let file = name(&command[4..60]);
        match word(command, 0) {
            1 => {
                assert_eq!(addresses[file] % u64::from(word(command, 60)), 0);
                allocated.push(file);
            }
            2 => {
                assert!(allocated.contains(&file));
                let (at, len) = (word(command, 116) as usize, usize::from(command[120]));
                let field = &mut contents.get_mut(file).unwrap()[at..at + len];
                let mut value = [0; 8];
                value[..len].copy_from_slice(field);
                let value = u64::from_le_bytes(value) + addresses[name(&command[60..116])];
                field.copy_from_slice(&value.to_le_bytes()[..len]);
            }
            3 => {
                let [at, start, len] = [60, 64, 68].map(|at| word(command, at) as usize);
                let bytes = contents.get_mut(file).unwrap();
                assert_eq!(bytes[at], 0, "who sums up may count it or not");
                bytes[at] = 0_u8.wrapping_sub(sum(&bytes[start..start + len]));
            }
            other => panic!("command {other}"),
        }
    }
    assert_eq!(allocated.len(), 2);
    let mut take = |name| contents.remove(name).unwrap();
    (take("etc/acpi/tables"), take("etc/acpi/rsdp"))
}

#[test]
fn firmware_that_places_tables_by_itself_comes_to_the_same() {
    for parts in [parts::pc(), parts::virt(), parts::virt_gicv2(), parts::microvm()] {
        let (rsdp, first) = (BASE, BASE + 64);
        let (tables, pointer) = placed_by_firmware(
            &build(&parts, 0x7000_0000, &Oem::default()).unwrap().files(),
            first,
            rsdp,
        );
        let mut memory = pointer;
        memory.resize(64, 0);
        memory.extend(tables);
        assert_eq!(memory, self::tables(&parts).bytes());
    }
}
