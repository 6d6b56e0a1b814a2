//! What Arm's PrimeCells have in common: a page of 32-bit registers on an APB, and the identification at its end.

/// Bytes of a PrimeCell's register region.
pub(super) const REGION_SIZE: u64 = 0x1000;

/// Where the eight identification registers begin: `PeriphID0` to `PeriphID3`, then `PCellID0` to `PCellID3`.
const IDENTIFICATION: u64 = 0xfe0;

/// `PCellID0` to `PCellID3`, the same for every PrimeCell.
const PCELL_ID: u32 = 0xb105_f00d;

/// The register that an access means, or `None` for an access that reads as zero and writes nothing.
///
/// Registers are 32 bits apart, and the APB has no byte strobes: a narrow access to a register's first byte is an
/// access to the register (drivers do read UARTDR by the byte), one that starts elsewhere or is wider than 32 bits
/// means none.
pub(super) fn register(offset: u64, len: usize) -> Option<u64> {
    (matches!(len, 1 | 2 | 4) && offset.is_multiple_of(4) && offset < REGION_SIZE).then_some(offset)
}

/// The identification register at `offset`, of a PrimeCell whose four `PeriphID` bytes are `periph_id`.
pub(super) fn identification(offset: u64, periph_id: u32) -> Option<u8> {
    let index = usize::try_from(offset.checked_sub(IDENTIFICATION)? / 4).ok()?;
    let [periph, pcell] = [periph_id, PCELL_ID].map(u32::to_le_bytes);
    periph.iter().chain(&pcell).nth(index).copied()
}
