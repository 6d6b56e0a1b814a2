//! ACPI tables (*Advanced Configuration and Power Interface Specification 6.5*, chapter 5), one after the other in guest
//! memory.

mod aml;
mod dsdt;
mod fixed;
mod interrupts;
mod loader;
mod pci;
mod serial;
mod viot;

use acpi_tables::{Aml, facs::FACS, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};

use super::{Acpi, BoardError, Part, PciHost, check};

/// Who made the tables, as each says in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Oem {
    /// OEMID.
    pub id: [u8; 6],
    /// OEM Table ID.
    pub table_id: [u8; 8],
    /// OEM Revision.
    pub revision: u32,
}

impl Default for Oem {
    fn default() -> Self {
        Self {
            id: *b"DEVISR",
            table_id: *b"DEVISOR ",
            revision: 1,
        }
    }
}

impl Oem {
    /// A table of this revision, with a header and no more.
    fn table(&self, signature: &[u8; 4], revision: u8) -> Sdt {
        Sdt::new(*signature, 36, revision, self.id, self.table_id, self.revision)
    }
}

/// One of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its signature: `RSDP`, which is `RSD PTR ` in full, `XSDT`, `FACP` for the FADT, `APIC` for the MADT ...
    pub signature: [u8; 4],
    /// Where it is to be in guest memory.
    pub address: u64,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Tables with the addresses at which they find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    base: u64,
    tables: Vec<Table>,
}

impl Tables {
    /// Where the RSDP is, which comes first.
    pub fn rsdp(&self) -> u64 {
        self.base
    }

    /// Each of them, by address.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The table of this signature.
    pub fn get(&self, signature: &[u8; 4]) -> Option<&Table> {
        self.tables.iter().find(|table| table.signature == *signature)
    }

    /// All of them, as they are to lie in guest memory from [`rsdp`](Self::rsdp) on, with zeros in between.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for table in &self.tables {
            bytes.resize((table.address - self.base) as usize, 0);
            bytes.extend(&table.bytes);
        }
        bytes
    }

    fn next(&self) -> u64 {
        let last = self.tables.last();
        let end = last.map_or(self.base, |table| table.address + table.bytes.len() as u64);
        // The FACS wants that much, and it is a cache line for the others.
        end.next_multiple_of(64)
    }

    fn add(&mut self, signature: &[u8; 4], table: &dyn Aml) -> u64 {
        let address = self.next();
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let signature = *signature;
        self.tables.push(Table {
            signature,
            address,
            bytes,
        });
        address
    }
}

/// The tables of a board, for guest memory from `base` on: RSDP, DSDT, FADT, MADT, XSDT; FACS unless the board is
/// hardware-reduced; GTDT, IORT, MCFG, SPCR and VIOT where there is something to say in them.
///
/// A guest is told where the RSDP is: by the boot protocol (`acpi_rsdp_addr` of Linux), by UEFI, or as it lies in the ROM of
/// a PC, at a multiple of 16 between 0xe0000 and 0xfffff. A board without PM registers is hardware-reduced.
///
/// # Errors
/// [`BoardError`] if the parts do not fit together or into a table, or `base` is no multiple of 64.
pub fn build(parts: &[Part], base: u64, oem: &Oem) -> Result<Tables, BoardError> {
    let checked = check::checked(parts)?;
    if !base.is_multiple_of(64) || base > u64::MAX >> 1 {
        return Err(BoardError::Unfit {
            part: "the RSDP".into(),
            what: format!("tables at {base:#x}: it must be a multiple of 64, in the lower half of the address space"),
        });
    }
    let board = Board {
        parts,
        pci: check::one(parts, "the PCI host bridge", |part| {
            part.acpi.iter().find_map(|entry| match entry {
                Acpi::PciHost(host) => Some(host),
                _ => None,
            })
        })?,
        console: checked.console,
        oem,
    };
    let mut tables = Tables {
        base,
        tables: Vec::new(),
    };
    // What it points to is not known yet.
    tables.add(b"RSDP", &Rsdp::new(oem.id, 0));
    let dsdt = tables.add(b"DSDT", &board.dsdt()?);
    let reduced = board.power_management()?.is_none();
    let facs = (!reduced).then(|| tables.add(b"FACS", &FACS::new()));
    let mut listed = vec![tables.add(b"FACP", &board.fadt(dsdt, facs)?)];
    let optional = [
        (b"APIC", Some(board.madt()?)),
        (b"GTDT", board.gtdt()?),
        (b"MCFG", board.mcfg()),
        (b"IORT", board.iort()?),
        (b"SPCR", board.spcr()),
        (b"VIOT", board.viot()?),
    ];
    for (signature, table) in optional {
        if let Some(table) = table {
            listed.push(tables.add(signature, &table));
        }
    }
    let mut xsdt = XSDT::new(oem.id, oem.table_id, oem.revision);
    for address in listed {
        xsdt.add_entry(address);
    }
    let xsdt = tables.add(b"XSDT", &xsdt);
    let rsdp = &mut tables.tables[0].bytes;
    rsdp.clear();
    Rsdp::new(oem.id, xsdt).to_aml_bytes(rsdp);
    Ok(tables)
}

/// What the tables are made of.
struct Board<'a> {
    parts: &'a [Part],
    pci: Option<(&'a Part, &'a PciHost)>,
    console: Option<&'a Part>,
    oem: &'a Oem,
}

impl<'a> Board<'a> {
    /// All that is said, each with its part.
    fn entries(&self) -> impl Iterator<Item = (&'a Part, &'a Acpi)> + use<'a> {
        let parts = self.parts.iter();
        parts.flat_map(|part| part.acpi.iter().map(move |entry| (part, entry)))
    }

    /// The one thing of which `kind` knows something.
    fn only<T>(
        &self,
        what: &'static str,
        kind: impl Fn(&'a Acpi) -> Option<T>,
    ) -> Result<Option<(&'a Part, T)>, BoardError> {
        check::one(self.parts, what, |part| part.acpi.iter().find_map(&kind))
    }
}

/// `value` in fewer bits.
fn narrow<T: TryFrom<u64>>(part: &Part, what: &str, value: u64) -> Result<T, BoardError> {
    T::try_from(value).map_err(|_| BoardError::Unfit {
        part: part.to_string(),
        what: format!("{what} is {value:#x}: the table has {} bits for it", 8 * size_of::<T>()),
    })
}
