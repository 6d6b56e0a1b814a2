//! What the flash says of itself.

use super::{CfiFlashConfig, registers::BUFFER_SHIFT};

/// A byte of the query table by its index, of one device. Those that are not here are zero.
pub(super) fn query(config: &CfiFlashConfig, blocks: u64, index: u64) -> u8 {
    let lanes = config.lanes();
    let device_size = (blocks * config.block_size / lanes).next_power_of_two();
    let [blocks_low, blocks_high] = (blocks.saturating_sub(1) as u16).to_le_bytes();
    // In units of 256 bytes.
    let [size_low, size_high] = ((config.block_size / lanes / 256) as u16).to_le_bytes();
    match index {
        0x10 => b'Q',
        0x11 => b'R',
        0x12 => b'Y',
        // The primary command set, and where its table is.
        0x13 => 0x01,
        0x15 => 0x31,
        // Supply: 4.5 to 5.5 V, and no other to program.
        0x1b => 0x45,
        0x1c => 0x55,
        // How long it takes at most, as powers of two: microseconds for a word and a buffer, milliseconds for a block, and how many
        // times as much at worst. Here it takes no time.
        0x1f | 0x20 => 0x07,
        0x21 => 0x0a,
        0x23..=0x25 => 0x04,
        0x27 => device_size.trailing_zeros() as u8,
        // Eight bits, or eight and sixteen.
        0x28 => {
            if config.device_width == 1 {
                0
            } else {
                2
            }
        }
        0x2a => BUFFER_SHIFT,
        // One region of blocks.
        0x2c => 1,
        0x2d => blocks_low,
        0x2e => blocks_high,
        0x2f => size_low,
        0x30 => size_high,
        0x31 => b'P',
        0x32 => b'R',
        0x33 => b'I',
        0x34 => b'1',
        0x35 => b'0',
        // One protection register.
        0x3f => 0x01,
        _ => 0,
    }
}
