//! Registers of the IOAPIC: offsets and fields, named as in *82093AA I/O Advanced Programmable Interrupt Controller
//! (IOAPIC)*, order number 290566, chapter 3. What later chip sets added is marked so.

/// Size of the region in bytes: one page, so that IOAPICs can stand side by side. Only its start has registers.
pub(super) const REGION_SIZE: u64 = 0x1000;

// Memory-mapped registers, section 3.1.
pub(super) const IOREGSEL: u64 = 0x00;
pub(super) const IOWIN: u64 = 0x10;
/// EOI register: not in the 82093AA, added with version 0x20.
pub(super) const EOI: u64 = 0x40;

// Indices for IOREGSEL, section 3.2.
pub(super) const IOAPICID: u32 = 0x00;
pub(super) const IOAPICVER: u32 = 0x01;
pub(super) const IOAPICARB: u32 = 0x02;
/// The low half of entry 0; its high half is next, then entry 1.
pub(super) const IOREDTBL: u32 = 0x10;

/// IOAPICID and IOAPICARB, sections 3.2.1 and 3.2.3: four bits of ID.
pub(super) const ID_SHIFT: u32 = 24;
pub(super) const ID_MAX: u8 = 0xf;

/// IOAPICVER, section 3.2.2: the first version with an EOI register, and where the last entry's number stands.
pub(super) const VERSION: u32 = 0x20;
pub(super) const MAXIMUM_REDIRECTION_ENTRY_SHIFT: u32 = 16;

// A redirection entry, section 3.2.4.
pub(super) const VECTOR: u64 = 0xff;
pub(super) const DELIVERY_MODE_SHIFT: u32 = 8;
pub(super) const DELIVERY_MODE: u64 = 7 << DELIVERY_MODE_SHIFT;
pub(super) const DESTINATION_MODE: u64 = 1 << 11;
pub(super) const DELIVERY_STATUS: u64 = 1 << 12;
/// Set: the pin is active while it is low.
pub(super) const POLARITY: u64 = 1 << 13;
pub(super) const REMOTE_IRR: u64 = 1 << 14;
/// Set: level-sensitive.
pub(super) const TRIGGER_MODE: u64 = 1 << 15;
pub(super) const MASK: u64 = 1 << 16;
/// Bits 55 to 48, which the 82093AA reserves, are the extended destination ID of later chip sets (Intel ICH and PCH data
/// sheets). Together with the destination they are bits 19 to 4 of the message's address.
pub(super) const DESTINATION_SHIFT: u32 = 48;
pub(super) const DESTINATION: u64 = 0xffff << DESTINATION_SHIFT;
/// In an entry in remappable format: bit 4 of the message's address (VT-d specification, section 5.1.5.1).
pub(super) const REMAPPABLE: u64 = 1 << 48;

pub(super) const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
pub(super) const WRITABLE: u64 =
    VECTOR | DELIVERY_MODE | DESTINATION_MODE | POLARITY | TRIGGER_MODE | MASK | DESTINATION;
/// Out of a reset every entry is masked.
pub(super) const ENTRY_RESET: u64 = MASK;

/// Delivery modes, section 3.2.4, bits 10 to 8. 3 and 6 are reserved.
pub(super) mod delivery {
    pub(in super::super) const FIXED: u64 = 0;
    pub(in super::super) const LOWEST_PRIORITY: u64 = 1;
    pub(in super::super) const RESERVED: [u64; 2] = [3, 6];
}

/// The message that an entry becomes (Intel SDM, volume 3, section 11.11).
pub(super) mod message {
    pub(in super::super) const ADDRESS: u64 = 0xfee0_0000;
    pub(in super::super) const DESTINATION_SHIFT: u32 = 4;
    pub(in super::super) const REDIRECTION_HINT: u64 = 1 << 3;
    pub(in super::super) const DESTINATION_MODE: u64 = 1 << 2;
    pub(in super::super) const LEVEL_ASSERT: u32 = 1 << 14;
    pub(in super::super) const TRIGGER_LEVEL: u32 = 1 << 15;
}
