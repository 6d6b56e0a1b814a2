//! Tables as firmware takes them from a hypervisor: files of the firmware configuration device, and a script that says where they
//! point to each other (QEMU's `bios-linker-loader`).

use super::{Table, Tables};

/// Of all tables but the RSDP.
const TABLES: &str = "etc/acpi/tables";
const RSDP: &str = "etc/acpi/rsdp";
const SCRIPT: &str = "etc/table-loader";

/// Bytes of a command, and of the name of a file in it.
const COMMAND: usize = 128;
const NAME: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

/// Anywhere below 4 GiB, and where a PC has its firmware.
const HIGH: u8 = 1;
const FSEG: u8 = 2;

/// Where a table has its checksum (5.2.6).
const CHECKSUM: usize = 9;
/// The RSDP has two: of the first 20 bytes, and of all (5.2.5.3).
const RSDP_CHECKSUMS: [(usize, usize); 2] = [(8, 20), (32, 36)];
const RSDP_XSDT: usize = 24;
/// FIRMWARE_CTRL, DSDT, X_FIRMWARE_CTRL and X_DSDT of a FADT, with their bytes (5.2.9).
const FADT_POINTERS: [(usize, usize); 4] = [(36, 4), (40, 4), (132, 8), (140, 8)];
/// The entries of an XSDT begin there (5.2.8).
const XSDT_ENTRIES: usize = 36;

impl Tables {
    /// The same tables for firmware that places them itself, as SeaBIOS and EDK2 do: files for the firmware configuration device,
    /// by their names.
    ///
    /// ```
    /// use devisor::description::acpi::Tables;
    /// use devisor::platform::fw_cfg::{FwCfg, FwCfgError};
    ///
    /// fn give(tables: &Tables, fw_cfg: &FwCfg) -> Result<(), FwCfgError> {
    ///     for (name, bytes) in tables.files() {
    ///         fw_cfg.add_file(name, bytes)?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn files(&self) -> [(&'static str, Vec<u8>); 3] {
        let (rsdp, tables) = self.tables.split_first().expect("the RSDP is always there");
        let base = tables.first().map_or(0, |table| table.address);
        let mut files = Files {
            base,
            tables: Vec::new(),
            script: Vec::new(),
        };
        files.command(ALLOCATE, &[TABLES], &[&64_u32.to_le_bytes(), &[HIGH]]);
        files.command(ALLOCATE, &[RSDP], &[&16_u32.to_le_bytes(), &[FSEG]]);
        for table in tables {
            files.add(table);
        }
        let mut rsdp = rsdp.bytes.clone();
        files.point(RSDP, &mut rsdp, 0, RSDP_XSDT, 8);
        for (at, len) in RSDP_CHECKSUMS {
            rsdp[at] = 0;
            files.checksum(RSDP, at, 0, len);
        }
        [(TABLES, files.tables), (RSDP, rsdp), (SCRIPT, files.script)]
    }
}

struct Files {
    /// Where the first table was to be.
    base: u64,
    tables: Vec<u8>,
    script: Vec<u8>,
}

impl Files {
    /// Adds a table, with its pointers told from the beginning of the file.
    fn add(&mut self, table: &Table) {
        let start = (table.address - self.base) as usize;
        self.tables.resize(start, 0);
        let mut bytes = table.bytes.clone();
        let pointers: Vec<_> = match &table.signature {
            b"FACP" => FADT_POINTERS.to_vec(),
            b"XSDT" => (XSDT_ENTRIES..bytes.len()).step_by(8).map(|at| (at, 8)).collect(),
            _ => Vec::new(),
        };
        let mut moved = false;
        for (at, len) in pointers {
            moved |= self.point(TABLES, &mut bytes, start, at, len);
        }
        if moved {
            bytes[CHECKSUM] = 0;
            self.checksum(TABLES, start + CHECKSUM, start, bytes.len());
        }
        self.tables.extend(bytes);
    }

    /// A pointer `at` those bytes, which begin at `start` of the file. Returns whether there is one: a null pointer is none.
    fn point(&mut self, file: &str, bytes: &mut [u8], start: usize, at: usize, len: usize) -> bool {
        let Some(field) = bytes.get_mut(at..at + len) else {
            return false;
        };
        let mut value = [0; 8];
        value[..len].copy_from_slice(field);
        let Some(offset) = u64::from_le_bytes(value).checked_sub(self.base) else {
            return false;
        };
        field.copy_from_slice(&offset.to_le_bytes()[..len]);
        let at = (start + at) as u32;
        self.command(ADD_POINTER, &[file, TABLES], &[&at.to_le_bytes(), &[len as u8]]);
        true
    }

    fn checksum(&mut self, file: &str, at: usize, start: usize, len: usize) {
        let numbers = [at, start, len].map(|number| (number as u32).to_le_bytes());
        self.command(ADD_CHECKSUM, &[file], &[numbers.as_flattened()]);
    }

    fn command(&mut self, number: u32, files: &[&str], operands: &[&[u8]]) {
        let end = self.script.len() + COMMAND;
        self.script.extend(number.to_le_bytes());
        for file in files {
            let mut name = [0; NAME];
            name[..file.len()].copy_from_slice(file.as_bytes());
            self.script.extend(name);
        }
        for operand in operands {
            self.script.extend(*operand);
        }
        self.script.resize(end, 0);
    }
}
