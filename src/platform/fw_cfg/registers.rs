//! What *QEMU Firmware Configuration (fw_cfg) Device* says: registers, keys and formats.

// Offsets of the ports, which are at 0x510 of a PC. The selector has two bytes, of which the data is the second.
pub(super) const PORT_SELECTOR: u64 = 0;
pub(super) const PORT_DATA: u64 = 1;
pub(super) const PORT_DMA: u64 = 4;

// Offsets in memory.
pub(super) const MMIO_DATA: u64 = 0;
pub(super) const MMIO_SELECTOR: u64 = 8;
pub(super) const MMIO_DMA: u64 = 16;

/// Bytes of the data register in memory, and of the address register of DMA.
pub(super) const WIDE: u64 = 8;

/// What the address register of DMA reads as.
pub(super) const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

/// Bit 14 of a selector asks to write.
pub(super) const WRITE: u16 = 1 << 14;
/// Keys of an architecture's own have bit 15.
pub(super) const ARCHITECTURE: u16 = 1 << 15;
/// The first key of a file.
pub(super) const FIRST_FILE: u16 = 0x20;

/// The interfaces that item 1 names.
pub(super) const TRADITIONAL: u32 = 1 << 0;
pub(super) const DMA: u32 = 1 << 1;

/// What a name has room for, with the NUL at its end.
pub(super) const NAME: usize = 56;

/// Bits of a DMA command.
pub(super) mod control {
    pub(in super::super) const ERROR: u32 = 1 << 0;
    pub(in super::super) const READ: u32 = 1 << 1;
    pub(in super::super) const SKIP: u32 = 1 << 2;
    pub(in super::super) const SELECT: u32 = 1 << 3;
    pub(in super::super) const WRITE: u32 = 1 << 4;
    pub(in super::super) const SELECTOR_SHIFT: u32 = 16;
}

/// Bytes of a DMA command: control, length and address, all with the highest byte first.
pub(super) const COMMAND: usize = 16;
