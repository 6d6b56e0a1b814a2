//! Commands, status and query table of a parallel NOR flash: *Common Flash Interface Specification* (JESD68) with Intel's extended
//! command set (0x0001), as in *Intel StrataFlash Memory (J3) Datasheet*.

// Commands.
pub(super) const READ_ARRAY: u8 = 0xff;
pub(super) const READ_ID: u8 = 0x90;
pub(super) const READ_QUERY: u8 = 0x98;
pub(super) const READ_STATUS: u8 = 0x70;
pub(super) const CLEAR_STATUS: u8 = 0x50;
pub(super) const PROGRAM: u8 = 0x40;
pub(super) const PROGRAM_ALTERNATE: u8 = 0x10;
pub(super) const WRITE_TO_BUFFER: u8 = 0xe8;
pub(super) const BLOCK_ERASE: u8 = 0x20;
pub(super) const LOCK_SETUP: u8 = 0x60;
/// What a buffer and a block erase are confirmed with, and what unlocks a block.
pub(super) const CONFIRM: u8 = 0xd0;
pub(super) const LOCK: u8 = 0x01;

/// The status register.
pub(super) mod status {
    pub(in super::super) const READY: u8 = 1 << 7;
    pub(in super::super) const ERASE_ERROR: u8 = 1 << 5;
    pub(in super::super) const PROGRAM_ERROR: u8 = 1 << 4;
    /// The block is locked: here, the flash is.
    pub(in super::super) const LOCKED: u8 = 1 << 1;
    /// Both at once.
    pub(in super::super) const SEQUENCE_ERROR: u8 = ERASE_ERROR | PROGRAM_ERROR;

    pub(in super::super) const ALL: u8 = READY | SEQUENCE_ERROR | LOCKED;
}

/// Intel, and a device of the J3 family.
pub(super) const ID: [u8; 2] = [0x89, 0x18];

/// Bytes of each device's write buffer, as a power of two.
pub(super) const BUFFER_SHIFT: u8 = 11;
