//! Registers of the PL011: offsets, fields and reset values, named as in ARM DDI 0183G, chapter 3.

// Offsets, table 3-1.
pub(super) const UARTDR: u64 = 0x000;
pub(super) const UARTRSR: u64 = 0x004;
pub(super) const UARTFR: u64 = 0x018;
pub(super) const UARTILPR: u64 = 0x020;
pub(super) const UARTIBRD: u64 = 0x024;
pub(super) const UARTFBRD: u64 = 0x028;
pub(super) const UARTLCR_H: u64 = 0x02c;
pub(super) const UARTCR: u64 = 0x030;
pub(super) const UARTIFLS: u64 = 0x034;
pub(super) const UARTIMSC: u64 = 0x038;
pub(super) const UARTRIS: u64 = 0x03c;
pub(super) const UARTMIS: u64 = 0x040;
pub(super) const UARTICR: u64 = 0x044;
pub(super) const UARTDMACR: u64 = 0x048;

/// Data register, section 3.3.1: a character in the receive FIFO carries its errors above its eight bits.
pub(super) mod dr {
    pub const FE: u16 = 1 << 8;
    pub const PE: u16 = 1 << 9;
    pub const BE: u16 = 1 << 10;
    pub const OE: u16 = 1 << 11;
    pub const MASK: u16 = 0xfff;
    /// Where UARTRSR's bits are in UARTDR.
    pub const STATUS_SHIFT: u32 = 8;
}

/// Receive status register, section 3.3.2.
pub(super) mod rsr {
    pub const OE: u8 = 1 << 3;
    pub const MASK: u8 = 0xf;
}

/// Flag register, section 3.3.3.
pub(super) mod fr {
    pub const CTS: u16 = 1 << 0;
    pub const DSR: u16 = 1 << 1;
    pub const DCD: u16 = 1 << 2;
    pub const BUSY: u16 = 1 << 3;
    pub const RXFE: u16 = 1 << 4;
    pub const TXFF: u16 = 1 << 5;
    pub const RXFF: u16 = 1 << 6;
    pub const TXFE: u16 = 1 << 7;
    pub const RI: u16 = 1 << 8;
}

/// Fractional baud rate register, section 3.3.6.
pub(super) mod fbrd {
    pub const MASK: u8 = 0x3f;
}

/// Line control register, section 3.3.7.
pub(super) mod lcr_h {
    pub const BRK: u8 = 1 << 0;
    pub const FEN: u8 = 1 << 4;
}

/// Control register, section 3.3.8.
pub(super) mod cr {
    pub const UARTEN: u16 = 1 << 0;
    pub const LBE: u16 = 1 << 7;
    pub const TXE: u16 = 1 << 8;
    pub const RXE: u16 = 1 << 9;
    pub const DTR: u16 = 1 << 10;
    pub const RTS: u16 = 1 << 11;
    pub const OUT1: u16 = 1 << 12;
    pub const OUT2: u16 = 1 << 13;
    pub const RTSEN: u16 = 1 << 14;
    pub const CTSEN: u16 = 1 << 15;
    /// Bits 6 to 3 are reserved.
    pub const MASK: u16 = 0xff87;
    pub const RESET: u16 = TXE | RXE;
}

/// Interrupt FIFO level select register, section 3.3.9.
pub(super) mod ifls {
    pub const RX_SHIFT: u32 = 3;
    pub const FIELD: u8 = 7;
    pub const MASK: u8 = 0x3f;
    /// Half full, both.
    pub const RESET: u8 = 0x12;
}

/// UARTIMSC, UARTRIS, UARTMIS and UARTICR, sections 3.3.10 to 3.3.13.
pub(super) mod int {
    pub const RI: u16 = 1 << 0;
    pub const CTS: u16 = 1 << 1;
    pub const DCD: u16 = 1 << 2;
    pub const DSR: u16 = 1 << 3;
    pub const RX: u16 = 1 << 4;
    pub const TX: u16 = 1 << 5;
    pub const RT: u16 = 1 << 6;
    pub const FE: u16 = 1 << 7;
    pub const PE: u16 = 1 << 8;
    pub const BE: u16 = 1 << 9;
    pub const OE: u16 = 1 << 10;
    pub const MASK: u16 = 0x7ff;
}

/// DMA control register, section 3.3.14.
pub(super) mod dmacr {
    pub const MASK: u8 = 7;
}

/// UARTPeriphID0 to 3, section 3.3.15: part 0x011 by Arm (0x41), without the revision in bits 23 to 20.
pub(super) const PERIPH_ID: u32 = 0x0004_1011;
