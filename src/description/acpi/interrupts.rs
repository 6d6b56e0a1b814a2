//! Interrupt controllers, timers and message routing: MADT (5.2.12), GTDT (5.2.25) and IORT (*IO Remapping Table*, DEN 0049).

use std::collections::BTreeSet;

use acpi_tables::sdt::Sdt;

use super::{Board, narrow};
use crate::description::{Acpi, BoardError, Gic, Input, Polarity, Processor, Trigger, Wire};

/// MPS INTI flags of a wire that is not as its bus has it by default (table 5.26).
fn inti_flags(wire: &Wire) -> u16 {
    let polarity = match wire.polarity {
        Polarity::High => 1,
        Polarity::Low => 3,
    };
    let trigger = match wire.trigger {
        Trigger::Edge => 1,
        Trigger::Level => 3,
    };
    trigger << 2 | polarity
}

/// An entry of the MADT: what follows type and length.
fn entry(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    let mut entry = vec![kind, body.len() as u8 + 2];
    entry.extend(body);
    entry
}

impl Board<'_> {
    pub(super) fn madt(&self) -> Result<Sdt, BoardError> {
        let gic = self.only("the GIC", |entry| match entry {
            Acpi::Gic(gic) => Some(gic),
            _ => None,
        })?;
        let apics = self.only("the local APICs", |entry| match entry {
            Acpi::LocalApics(address) => Some(*address),
            _ => None,
        })?;
        let pics = self.entries().any(|(_, entry)| *entry == Acpi::Pics);

        let mut body = Vec::new();
        body.extend(apics.map_or(0, |(_, address)| address).to_le_bytes());
        body.extend(u32::from(pics).to_le_bytes()); // PCAT_COMPAT
        let processors = self.entries().filter_map(|(part, entry)| match entry {
            Acpi::Processor(processor) => Some((part, *processor)),
            _ => None,
        });
        let mut x2apic = false;
        for (uid, (part, processor)) in (0_u32..).zip(processors) {
            body.extend(match (processor, gic) {
                (Processor::Apic(id), _) => {
                    let entry = local_apic(uid, id);
                    x2apic |= entry[0] == X2APIC;
                    entry
                }
                (Processor::Arm(mpidr), Some((_, gic))) => gicc(uid, mpidr, gic),
                (Processor::Arm(_), None) => {
                    return Err(BoardError::NoController { part: part.to_string() });
                }
            });
        }
        if apics.is_some() {
            // LINT1 of all local APICs is NMI: of those told of by 8 bits, and of those by 32.
            body.extend(entry(4, &[&[0xff, 0, 0, 1]]));
            if x2apic {
                body.extend(entry(0xa, &[&[0; 2], &[0xff; 4], &[1, 0, 0, 0]]));
            }
        }
        let mut ids = 0_u8..;
        let mut overridden = BTreeSet::new();
        for (part, it) in self.entries() {
            match it {
                Acpi::IoApic { address, first } => {
                    let id = ids.next().unwrap_or(u8::MAX);
                    let address: u32 = narrow(part, "the address of the IOAPIC", *address)?;
                    body.extend(entry(1, &[&[id, 0], &address.to_le_bytes(), &first.to_le_bytes()]));
                }
                Acpi::IsaIrq { irq, wire } => body.extend(source_override(*irq, wire)),
                Acpi::Gic(gic) => {
                    let version = [gic.version, 0, 0, 0];
                    let base = gic.distributor.to_le_bytes();
                    body.extend(entry(0xc, &[&[0; 6], &base, &[0; 4], &version]));
                    for (base, len) in &gic.redistributors {
                        body.extend(entry(0xe, &[&[0; 2], &base.to_le_bytes(), &len.to_le_bytes()]));
                    }
                }
                Acpi::MessageFrame { base, first, count } => {
                    // "SPI count and base are these": a flag.
                    let spis = [count.to_le_bytes(), first.to_le_bytes()].concat();
                    body.extend(entry(0xd, &[&[0; 6], &base.to_le_bytes(), &1_u32.to_le_bytes(), &spis]));
                }
                Acpi::Its(base) => body.extend(entry(0xf, &[&[0; 6], &base.to_le_bytes(), &[0; 4]])),
                _ => {}
            }
            // What ends at a GSI of the ISA bus and is not as that has it: edge-triggered, active high.
            if apics.is_some() && !matches!(it, Acpi::IsaIrq { .. }) {
                for wire in isa_wires(it) {
                    let irq = wire.input.gsi() as u8;
                    if overridden.insert(irq) {
                        body.extend(source_override(irq, &wire));
                    }
                }
            }
        }
        let mut madt = self.oem.table(b"APIC", 5);
        madt.append_slice(&body);
        Ok(madt)
    }

    pub(super) fn gtdt(&self) -> Result<Option<Sdt>, BoardError> {
        let timers = self.only("the generic timer", |entry| match entry {
            Acpi::Timers(wires) => Some(wires),
            _ => None,
        })?;
        let Some((_, wires)) = timers else {
            return Ok(None);
        };
        let mut body = Vec::new();
        body.extend(u64::MAX.to_le_bytes()); // No counter in memory.
        body.extend([0; 4]);
        for wire in wires {
            let edge = u32::from(wire.trigger == Trigger::Edge);
            let low = u32::from(wire.polarity == Polarity::Low);
            const ALWAYS_ON: u32 = 1 << 2;
            body.extend(wire.input.gsi().to_le_bytes());
            body.extend((edge | low << 1 | ALWAYS_ON).to_le_bytes());
        }
        body.extend(u64::MAX.to_le_bytes()); // No counter to read in memory.
        body.extend([0; 8]); // No timers of the platform.
        let mut gtdt = self.oem.table(b"GTDT", 2);
        gtdt.append_slice(&body);
        Ok(Some(gtdt))
    }

    pub(super) fn iort(&self) -> Result<Option<Sdt>, BoardError> {
        let its = self.only("the ITS", |entry| match entry {
            Acpi::Its(base) => Some(*base),
            _ => None,
        })?;
        if its.is_none() {
            return Ok(None);
        }
        const ITS_GROUP: u32 = 48;
        let mut body = Vec::new();
        body.extend((1 + u32::from(self.pci.is_some())).to_le_bytes());
        body.extend(ITS_GROUP.to_le_bytes());
        body.extend([0; 4]);
        // The group of one ITS, of ID 0.
        body.extend(iort_node(0, 24, 0, 0, 0));
        body.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        if self.pci.is_some() {
            body.extend(iort_node(2, 56, 1, 1, 36));
            body.extend(1_u32.to_le_bytes()); // It is coherent,
            body.extend([0, 0, 0, 0b11]); // and so are its attributes (CPM, DACS).
            body.extend([0; 8]); // No ATS; segment 0.
            body.extend([64, 0, 0, 0]); // Bits of address.
            for field in [0, 0xffff, 0, ITS_GROUP, 0] {
                // Requester IDs from 0 on, so many more, to device IDs from 0 on, of this group; flags.
                body.extend(u32::to_le_bytes(field));
            }
        }
        let mut iort = self.oem.table(b"IORT", 0);
        iort.append_slice(&body);
        Ok(Some(iort))
    }
}

fn iort_node(kind: u8, len: u16, revision: u8, mappings: u32, mappings_at: u32) -> Vec<u8> {
    let mut node = vec![kind];
    node.extend(len.to_le_bytes());
    node.push(revision);
    node.extend([0; 4]);
    node.extend(mappings.to_le_bytes());
    node.extend(mappings_at.to_le_bytes());
    node
}

/// The type of a processor that has x2APIC alone to be told of.
const X2APIC: u8 = 9;

fn local_apic(uid: u32, id: u32) -> Vec<u8> {
    const ENABLED: u32 = 1;
    let flags = ENABLED.to_le_bytes();
    match (u8::try_from(uid), u8::try_from(id)) {
        (Ok(uid @ 0..=0xfe), Ok(id @ 0..=0xfe)) => entry(0, &[&[uid, id], &flags]),
        _ => entry(X2APIC, &[&[0; 2], &id.to_le_bytes(), &flags, &uid.to_le_bytes()]),
    }
}

/// GICC, of revision 6.3: without TRBE.
fn gicc(uid: u32, mpidr: u64, gic: &Gic) -> Vec<u8> {
    let (uid, enabled) = (uid.to_le_bytes(), 1_u32.to_le_bytes());
    let cpu_interface = gic.cpu_interface.unwrap_or(0).to_le_bytes();
    entry(
        0xb,
        &[
            &[0; 2],
            &uid, // CPU interface number
            &uid,
            &enabled,
            &[0; 8], // Parking protocol, performance interrupt
            &[0; 8], // Parked address
            &cpu_interface,
            &[0; 20], // GICV, GICH, VGIC maintenance interrupt
            &[0; 8],  // GICR base: it is in the GICRs
            &mpidr.to_le_bytes(),
            &[0; 4], // Efficiency class, reserved, SPE interrupt
        ],
    )
}

/// Interrupt source override, of bus 0, which is ISA.
fn source_override(irq: u8, wire: &Wire) -> Vec<u8> {
    let gsi = wire.input.gsi().to_le_bytes();
    entry(2, &[&[0, irq], &gsi, &inti_flags(wire).to_le_bytes()])
}

/// The wires that `it` says end at GSIs 0 to 15 and are no default of ISA.
fn isa_wires(it: &Acpi) -> Vec<Wire> {
    let wires = match it {
        Acpi::Device(object) => object.wires.clone(),
        Acpi::Events { wire, .. } => vec![*wire],
        Acpi::PowerManagement(pm) => vec![pm.sci],
        Acpi::PciHost(host) => host.wires.to_vec(),
        _ => Vec::new(),
    };
    let is_isa = |wire: &Wire| matches!(wire.input, Input::Gsi(0..16));
    let is_default = |wire: &Wire| wire.trigger == Trigger::Edge && wire.polarity == Polarity::High;
    wires
        .into_iter()
        .filter(|wire| is_isa(wire) && !is_default(wire))
        .collect()
}
