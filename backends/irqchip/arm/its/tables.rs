//! The tables of an ITS in guest memory (IHI 0069, 5.2): where an entry is, and what is in it.
//!
//! Nothing is kept of them here but by [`translations`](super::translations), so whatever a guest writes there costs a few
//! reads for each look-up and no more. The guest's address space decides what is memory: all else is a [`Fault::Memory`].

use super::{
    super::gic::memory::{NoMemory, Tables},
    registers::{VALID, baser},
};

/// Size of each entry in bytes: of the device table, the collection table, an interrupt translation table, and of the
/// first level of the former two.
pub(super) const ENTRY: u64 = 8;

/// Why a command, or a message, is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// What it names does not exist, is not mapped, or is out of range.
    Refused,
    /// A table or the command queue is not where memory is.
    Memory,
}

impl From<NoMemory> for Fault {
    fn from(NoMemory: NoMemory) -> Self {
        Self::Memory
    }
}

pub(super) fn read_entry(memory: &dyn Tables, address: u64) -> Result<u64, Fault> {
    let mut bytes = [0; ENTRY as usize];
    memory.read(address, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(super) fn write_entry(memory: &dyn Tables, address: u64, entry: u64) -> Result<(), Fault> {
    Ok(memory.write(address, &entry.to_le_bytes())?)
}

/// Where the way to the entry `id` begins, in the table that a GITS_BASERn describes and whose ids have `id_bits` bits: the
/// address of the entry, or of that of the first level. Refused if the table is not there or has no room for it.
pub(super) fn first_address(table: u64, id_bits: u32, id: u32) -> Result<u64, Fault> {
    let index = match table & baser::INDIRECT {
        0 => id.into(),
        _ => u64::from(id) / entries_of_page(table),
    };
    let offset = index * ENTRY;
    let there = table & VALID != 0 && u64::from(id) >> id_bits == 0 && offset < baser::size(table);
    there.then(|| baser::address(table) + offset).ok_or(Fault::Refused)
}

/// The address of the entry itself. Refused also if the first level has no page for it.
pub(super) fn entry_address(memory: &dyn Tables, table: u64, id_bits: u32, id: u32) -> Result<u64, Fault> {
    let address = first_address(table, id_bits, id)?;
    if table & baser::INDIRECT == 0 {
        return Ok(address);
    }
    let first = read_entry(memory, address)?;
    if first & VALID == 0 {
        return Err(Fault::Refused);
    }
    let page = first & LEVEL_2_ADDRESS & (u64::MAX << baser::page_bits(table));
    Ok(page + u64::from(id) % entries_of_page(table) * ENTRY)
}

/// How many entries fit into a page of a table, of either level.
fn entries_of_page(table: u64) -> u64 {
    (1 << baser::page_bits(table)) / ENTRY
}

/// The address of a page of the second level, bits 51:12, which the page size narrows.
const LEVEL_2_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry of the device table. In memory: Valid in bit 63, bits 51:8 of the table's address in their places, and the
/// number of EventID bits less one in bits 4:0. All other bits are zero, and so is an entry that is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Where its interrupt translation table is, aligned to 256 bytes.
    pub(super) itt: u64,
    /// Bits of EventID, 1 to 32.
    pub(super) event_bits: u32,
}

impl Device {
    pub(super) const ITT: u64 = 0x000f_ffff_ffff_ff00;
    pub(super) const SIZE: u64 = 0x1f;

    pub(super) fn unpack(entry: u64) -> Option<Self> {
        (entry & VALID != 0).then_some(Self {
            itt: entry & Self::ITT,
            event_bits: (entry & Self::SIZE) as u32 + 1,
        })
    }

    pub(super) fn pack(self) -> u64 {
        VALID | self.itt | u64::from(self.event_bits - 1)
    }

    /// The address of the entry of an event.
    pub(super) fn event_address(self, event: u32) -> Result<u64, Fault> {
        let event = u64::from(event);
        match event >> self.event_bits {
            0 => Ok(self.itt + event * ENTRY),
            _ => Err(Fault::Refused),
        }
    }
}

/// An entry of the collection table. In memory: Valid in bit 63, and the processor number in bits 31:16, as in MAPC. All
/// other bits are zero, and so is an entry that is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Collection {
    pub(super) processor: u32,
}

impl Collection {
    const PROCESSOR_SHIFT: u32 = 16;
    /// RDbase, bits 50:16 of a command, is a processor number: 16 bits, as GICR_TYPER has.
    pub(super) fn processor(rdbase: u64) -> u32 {
        (rdbase >> Self::PROCESSOR_SHIFT) as u32 & 0xffff
    }

    pub(super) fn unpack(entry: u64) -> Option<Self> {
        (entry & VALID != 0).then(|| Self {
            processor: Self::processor(entry),
        })
    }

    pub(super) fn pack(self) -> u64 {
        VALID | u64::from(self.processor) << Self::PROCESSOR_SHIFT
    }
}

/// An entry of an interrupt translation table. In memory: Valid in bit 63, the collection in bits 47:32, the INTID in
/// bits 31:0. All other bits are zero, and so is an entry that is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    pub(super) lpi: u32,
    pub(super) collection: u16,
}

impl Translation {
    const COLLECTION_SHIFT: u32 = 32;

    pub(super) fn unpack(entry: u64) -> Option<Self> {
        (entry & VALID != 0).then_some(Self {
            lpi: entry as u32,
            collection: (entry >> Self::COLLECTION_SHIFT) as u16,
        })
    }

    pub(super) fn pack(self) -> u64 {
        VALID | u64::from(self.collection) << Self::COLLECTION_SHIFT | u64::from(self.lpi)
    }
}
