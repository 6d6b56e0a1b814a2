//! Registers of the UART: offsets and fields, named as in *PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs*
//! (National Semiconductor), section 8.

/// RBR and THR; the low byte of the divisor while LCR.DLAB is set.
pub(super) const DATA: u64 = 0;
/// IER; the high byte of the divisor while LCR.DLAB is set.
pub(super) const IER: u64 = 1;
/// IIR to read, FCR to write.
pub(super) const IIR_FCR: u64 = 2;
pub(super) const LCR: u64 = 3;
pub(super) const MCR: u64 = 4;
pub(super) const LSR: u64 = 5;
pub(super) const MSR: u64 = 6;
pub(super) const SCR: u64 = 7;

/// Interrupt enable, section 8.7.
pub(super) mod ier {
    pub(in super::super) const RECEIVED: u8 = 1 << 0;
    pub(in super::super) const TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub(in super::super) const LINE_STATUS: u8 = 1 << 2;
    pub(in super::super) const MODEM_STATUS: u8 = 1 << 3;
    pub(in super::super) const MASK: u8 = 0x0f;
}

/// Interrupt identification, section 8.6 and table IV.
pub(super) mod iir {
    pub(in super::super) const NONE: u8 = 0x01;
    pub(in super::super) const MODEM_STATUS: u8 = 0x00;
    pub(in super::super) const TRANSMITTER_EMPTY: u8 = 0x02;
    pub(in super::super) const RECEIVED: u8 = 0x04;
    pub(in super::super) const TIMEOUT: u8 = 0x0c;
    pub(in super::super) const LINE_STATUS: u8 = 0x06;
    pub(in super::super) const FIFOS_ENABLED: u8 = 0xc0;
}

/// FIFO control, section 8.5.
pub(super) mod fcr {
    pub(in super::super) const ENABLE: u8 = 1 << 0;
    pub(in super::super) const RESET_RX: u8 = 1 << 1;
    pub(in super::super) const RESET_TX: u8 = 1 << 2;
    /// What stays: the two reset bits clear themselves. DMA mode has no pins here.
    pub(in super::super) const KEPT: u8 = 0xc9;
    pub(in super::super) const TRIGGER_SHIFT: u8 = 6;
}

/// Line control, section 8.1.
pub(super) mod lcr {
    pub(in super::super) const BREAK: u8 = 1 << 6;
    pub(in super::super) const DLAB: u8 = 1 << 7;
}

/// Modem control, section 8.8.
pub(super) mod mcr {
    pub(in super::super) const DTR: u8 = 1 << 0;
    pub(in super::super) const RTS: u8 = 1 << 1;
    pub(in super::super) const OUT1: u8 = 1 << 2;
    pub(in super::super) const OUT2: u8 = 1 << 3;
    pub(in super::super) const LOOP: u8 = 1 << 4;
    pub(in super::super) const MASK: u8 = 0x1f;
}

/// Line status, section 8.4.
pub(super) mod lsr {
    pub(in super::super) const DR: u8 = 1 << 0;
    pub(in super::super) const OE: u8 = 1 << 1;
    pub(in super::super) const PE: u8 = 1 << 2;
    pub(in super::super) const FE: u8 = 1 << 3;
    pub(in super::super) const BI: u8 = 1 << 4;
    pub(in super::super) const THRE: u8 = 1 << 5;
    pub(in super::super) const TEMT: u8 = 1 << 6;
    pub(in super::super) const FIFO_ERROR: u8 = 1 << 7;
    pub(in super::super) const ERRORS: u8 = OE | PE | FE | BI;
}

/// Modem status, section 8.9. The low half tells which of the high half has changed.
pub(super) mod msr {
    pub(in super::super) const DCTS: u8 = 1 << 0;
    pub(in super::super) const DDSR: u8 = 1 << 1;
    pub(in super::super) const TERI: u8 = 1 << 2;
    pub(in super::super) const DDCD: u8 = 1 << 3;
    pub(in super::super) const CTS: u8 = 1 << 4;
    pub(in super::super) const DSR: u8 = 1 << 5;
    pub(in super::super) const RI: u8 = 1 << 6;
    pub(in super::super) const DCD: u8 = 1 << 7;
    pub(in super::super) const DELTAS: u8 = 0x0f;
}

/// The divisor for 9600 baud, as firmware leaves it.
pub(super) const DIVISOR: u16 = 12;
