//! Saved states of the UART.

use super::{
    ModemInputs,
    registers::{fcr, ier, lsr, mcr, msr},
    uart::{DEPTH, Uart},
};

/// The state of a [`Uart16550`](super::Uart16550), as plain data. The line follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart16550State {
    /// The modem lines that the peer drives.
    pub modem: ModemInputs,
    /// The divisor latch.
    pub divisor: u16,
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Scratch register.
    pub scr: u8,
    /// Bits 1 to 4 of the line status register.
    pub errors: u8,
    /// Bits 0 to 3 of the modem status register.
    pub deltas: u8,
    /// The transmitter has run empty, and no read of IIR has told it.
    pub transmitter_empty: bool,
    /// What was received, with the bits of the line status register that belong to each. Those of the first are in
    /// `errors`, or were read.
    pub rx: Vec<(u8, u8)>,
    /// What waits to be sent.
    pub tx: Vec<u8>,
}

/// A [`Uart16550State`] is not one that a UART can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Uart16550StateError {
    /// Bits are set that the register does not have.
    #[error("{register} is {value:#04x}: it has no bits but {mask:#04x}")]
    Bits {
        /// Which one.
        register: &'static str,
        /// What is in the state.
        value: u8,
        /// What can be.
        mask: u8,
    },
    /// The transmitter is said to be empty while something waits to be sent.
    #[error("{len} characters wait to be sent, and the transmitter is said to have run empty")]
    TransmitterEmpty {
        /// How many wait.
        len: usize,
    },
    /// A FIFO holds more than fits.
    #[error("{len} characters in the {fifo} FIFO: there fit {depth} as FCR is")]
    Fifo {
        /// Which one.
        fifo: &'static str,
        /// What is in the state.
        len: usize,
        /// What can be.
        depth: usize,
    },
}

impl Uart {
    pub(super) fn save(&self) -> Uart16550State {
        let Self {
            config: _,
            inputs,
            divisor,
            ier,
            fcr,
            lcr,
            mcr,
            scr,
            errors,
            deltas,
            transmitter_empty,
            rx,
            tx,
        } = self;
        Uart16550State {
            modem: *inputs,
            divisor: *divisor,
            ier: *ier,
            fcr: *fcr,
            lcr: *lcr,
            mcr: *mcr,
            scr: *scr,
            errors: *errors,
            deltas: *deltas,
            transmitter_empty: *transmitter_empty,
            rx: rx.iter().copied().collect(),
            tx: tx.iter().copied().collect(),
        }
    }

    pub(super) fn restore(&mut self, state: &Uart16550State) -> Result<(), Uart16550StateError> {
        let Uart16550State {
            modem,
            divisor,
            ier,
            fcr,
            lcr,
            mcr,
            scr,
            errors,
            deltas,
            transmitter_empty,
            rx,
            tx,
        } = state;
        let fcr_mask = if fcr & fcr::ENABLE != 0 { fcr::KEPT } else { 0 };
        for (register, value, mask) in [
            ("IER", ier, ier::MASK),
            ("FCR", fcr, fcr_mask),
            ("MCR", mcr, mcr::MASK),
            ("LSR", errors, lsr::ERRORS),
            ("MSR", deltas, msr::DELTAS),
        ] {
            if value & !mask != 0 {
                let value = *value;
                return Err(Uart16550StateError::Bits { register, value, mask });
            }
        }
        for (index, (_, errors)) in rx.iter().enumerate() {
            let (register, mask) = if index == 0 {
                ("the status of the first character", 0)
            } else {
                ("the status of a character", lsr::ERRORS & !lsr::OE)
            };
            let value = *errors;
            if value & !mask != 0 {
                return Err(Uart16550StateError::Bits { register, value, mask });
            }
        }
        let depth = if fcr & fcr::ENABLE != 0 { DEPTH } else { 1 };
        for (fifo, len) in [("receive", rx.len()), ("transmit", tx.len())] {
            if len > depth {
                return Err(Uart16550StateError::Fifo { fifo, len, depth });
            }
        }
        if *transmitter_empty && !tx.is_empty() {
            return Err(Uart16550StateError::TransmitterEmpty { len: tx.len() });
        }
        // What is being written now is not in the state.
        self.reset();
        self.inputs = *modem;
        self.divisor = *divisor;
        (self.ier, self.fcr, self.lcr, self.mcr, self.scr) = (*ier, *fcr, *lcr, *mcr, *scr);
        (self.errors, self.deltas, self.transmitter_empty) = (*errors, *deltas, *transmitter_empty);
        self.rx.extend(rx);
        self.tx = self.tx.replaced_by(tx);
        Ok(())
    }
}
