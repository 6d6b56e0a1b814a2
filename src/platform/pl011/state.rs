//! The state of a PL011 as plain data, and back.

use std::io;

use super::{FifoDepth, ModemInputs, Pl011, registers::*, uart::Uart};
use crate::interrupt::LevelInterrupt;

/// Everything about a [`Pl011`] that its guest can see, as [`Pl011::save`] gives it.
///
/// Registers are named and laid out as in the manual; the order of the characters is that of their arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pl011State {
    /// The depth of the FIFOs, which a restore does not change.
    pub fifo_depth: FifoDepth,
    /// The modem lines as the guest last saw them.
    pub modem: ModemInputs,
    /// UARTILPR.
    pub ilpr: u8,
    /// UARTIBRD.
    pub ibrd: u16,
    /// UARTFBRD.
    pub fbrd: u8,
    /// UARTLCR_H.
    pub lcr_h: u8,
    /// UARTCR.
    pub cr: u16,
    /// UARTIFLS.
    pub ifls: u8,
    /// UARTIMSC.
    pub imsc: u16,
    /// UARTRIS. What waits to be read is an interrupt whether it says so or not.
    pub ris: u16,
    /// UARTTXINTR was set since the guest last read UARTRIS or UARTMIS: its next acknowledgement is of an earlier one.
    pub tx_unseen: bool,
    /// UARTDMACR.
    pub dmacr: u8,
    /// UARTRSR.
    pub rsr: u8,
    /// A character was lost, and the next one received is to carry the overrun error.
    pub overrun: bool,
    /// The receive FIFO: characters with their errors, as UARTDR shows them.
    pub rx: Vec<u16>,
    /// The transmit FIFO.
    pub tx: Vec<u8>,
}

/// A state that no PL011 can be in, or not this one. Nothing was restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Pl011StateError {
    /// The state is of a UART with other FIFOs, which the guest has seen.
    #[error("state of a PL011 with FIFO depth {found:?}, this one has {expected:?}")]
    FifoDepth {
        /// In the state.
        found: FifoDepth,
        /// As this UART is configured.
        expected: FifoDepth,
    },
    /// A register or a character has bits that do not exist.
    #[error("{name} is {value:#x}, only the bits of {mask:#x} exist")]
    Bits {
        /// The register, as in the manual.
        name: &'static str,
        /// Its value in the state.
        value: u16,
        /// The bits that it has.
        mask: u16,
    },
    /// More characters than the FIFO holds, which is one if UARTLCR_H.FEN is clear.
    #[error("{len} characters in the {name} FIFO, which holds {depth}")]
    Overfull {
        /// Receive or transmit.
        name: &'static str,
        /// How many the state has.
        len: usize,
        /// How many fit.
        depth: usize,
    },
    /// UARTRIS has an interrupt whose cause is gone: receive below its level, timeout with nothing to
    /// read, or transmit above its level.
    #[error("UARTRIS is {ris:#x}, but the FIFO levels allow {allowed:#x}")]
    Interrupts {
        /// In the state.
        ris: u16,
        /// The interrupts that can be set.
        allowed: u16,
    },
    /// An interrupt that the guest has not seen is not there.
    #[error("UARTTXINTR is said to be unseen, and UARTRIS is {ris:#x}: it is not set")]
    Unseen {
        /// In the state.
        ris: u16,
    },
}

impl<L: LevelInterrupt, W: io::Write + Send> Pl011<L, W> {
    /// The state now. Take it while no vCPU runs and no [`flush`](Self::flush) is under way: characters that are
    /// being written count as unsent until the writer has returned.
    pub fn save(&self) -> Pl011State {
        self.serial.look(Uart::save)
    }

    /// Puts the UART into `state`, drives the line accordingly, tries to write what is unsent and calls the room
    /// hook if there is room. Tell it the modem lines afterwards, if the peer drives others now.
    ///
    /// # Errors
    /// [`Pl011StateError`] if the state cannot be, and nothing has changed.
    pub fn restore(&self, state: &Pl011State) -> Result<(), Pl011StateError> {
        self.serial.restore(|uart| uart.restore(state))
    }
}

impl Uart {
    pub(super) fn save(&self) -> Pl011State {
        let Self {
            config,
            inputs,
            ilpr,
            ibrd,
            fbrd,
            lcr_h,
            cr,
            ifls,
            imsc,
            ris,
            tx_unseen,
            dmacr,
            rsr,
            overrun,
            rx,
            tx,
        } = self;
        Pl011State {
            fifo_depth: config.fifo_depth,
            modem: *inputs,
            ilpr: *ilpr,
            ibrd: *ibrd,
            fbrd: *fbrd,
            lcr_h: *lcr_h,
            cr: *cr,
            ifls: *ifls,
            imsc: *imsc,
            ris: *ris,
            tx_unseen: *tx_unseen,
            dmacr: *dmacr,
            rsr: *rsr,
            overrun: *overrun,
            rx: rx.iter().copied().collect(),
            tx: tx.iter().copied().collect(),
        }
    }

    fn restore(&mut self, state: &Pl011State) -> Result<(), Pl011StateError> {
        let Pl011State {
            fifo_depth,
            modem,
            ilpr,
            ibrd,
            fbrd,
            lcr_h,
            cr,
            ifls,
            imsc,
            ris,
            tx_unseen,
            dmacr,
            rsr,
            overrun,
            rx,
            tx,
        } = state;

        if *fifo_depth != self.config.fifo_depth {
            return Err(Pl011StateError::FifoDepth {
                found: *fifo_depth,
                expected: self.config.fifo_depth,
            });
        }
        bits("UARTFBRD", (*fbrd).into(), fbrd::MASK.into())?;
        bits("UARTCR", *cr, cr::MASK)?;
        bits("UARTIFLS", (*ifls).into(), ifls::MASK.into())?;
        bits("UARTIMSC", *imsc, int::MASK)?;
        bits("UARTRIS", *ris, int::MASK)?;
        bits("UARTDMACR", (*dmacr).into(), dmacr::MASK.into())?;
        bits("UARTRSR", (*rsr).into(), rsr::MASK.into())?;
        rx.iter()
            .try_for_each(|&character| bits("UARTDR", character, dr::MASK))?;

        let mut restored = Self::new(self.config);
        restored.inputs = *modem;
        restored.ilpr = *ilpr;
        restored.ibrd = *ibrd;
        restored.fbrd = *fbrd;
        restored.lcr_h = *lcr_h;
        restored.cr = *cr;
        restored.ifls = *ifls;
        restored.imsc = *imsc;
        restored.ris = *ris;
        restored.tx_unseen = *tx_unseen;
        restored.dmacr = *dmacr;
        restored.rsr = *rsr;
        restored.overrun = *overrun;

        let depth = restored.depth();
        for (name, len) in [("receive", rx.len()), ("transmit", tx.len())] {
            if len > depth {
                return Err(Pl011StateError::Overfull { name, len, depth });
            }
        }
        restored.rx.extend(rx);
        restored.tx = self.tx.replaced_by(tx);

        let allowed = restored.possible_interrupts();
        if ris & !allowed != 0 {
            return Err(Pl011StateError::Interrupts { ris: *ris, allowed });
        }
        if *tx_unseen && ris & int::TX == 0 {
            return Err(Pl011StateError::Unseen { ris: *ris });
        }
        restored.ris |= restored.receive_interrupts();

        *self = restored;
        Ok(())
    }

    /// The raw interrupts that can be set with the FIFOs as they are.
    fn possible_interrupts(&self) -> u16 {
        let mut possible = int::MASK & !(int::RX | int::RT) | self.receive_interrupts();
        if self.tx.len() > self.tx_trigger() {
            possible &= !int::TX;
        }
        possible
    }
}

fn bits(name: &'static str, value: u16, mask: u16) -> Result<(), Pl011StateError> {
    if value & !mask == 0 {
        Ok(())
    } else {
        Err(Pl011StateError::Bits { name, value, mask })
    }
}
