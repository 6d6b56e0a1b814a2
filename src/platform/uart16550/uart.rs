//! What the UART is behind its registers, without its line and its writer.

use std::collections::VecDeque;

use super::{Frame, ModemInputs, ModemOutputs, Uart16550Config, registers::*};
use crate::platform::serial::{Burst, Model, TransmitFifo};

/// The depth of both FIFOs.
pub(super) const DEPTH: usize = 16;

/// A character that was received, with the bits of LSR that belong to it.
pub(super) type Received = (u8, u8);

pub(super) struct Uart {
    // Fixed configuration.
    pub(super) config: Uart16550Config,

    // What is plugged in.
    pub(super) inputs: ModemInputs,

    // What the guest can change.
    pub(super) divisor: u16,
    pub(super) ier: u8,
    pub(super) fcr: u8,
    pub(super) lcr: u8,
    pub(super) mcr: u8,
    pub(super) scr: u8,
    /// The errors in LSR that have not been read: an overrun, and those of characters that came to the top of the FIFO.
    pub(super) errors: u8,
    /// The low half of MSR: what has changed since it was read.
    pub(super) deltas: u8,
    /// The transmitter has run empty, and the guest was not told. Never while something waits to be sent.
    pub(super) transmitter_empty: bool,
    /// The errors of the first have moved to `errors`.
    pub(super) rx: VecDeque<Received>,
    pub(super) tx: TransmitFifo,
}

impl Uart {
    pub(super) fn new(config: Uart16550Config) -> Self {
        Self {
            config,
            inputs: config.modem,
            divisor: DIVISOR,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            errors: 0,
            deltas: 0,
            transmitter_empty: false,
            rx: VecDeque::with_capacity(DEPTH),
            tx: TransmitFifo::new(),
        }
    }

    /// The divisor and the scratch register keep what they have on a master reset (table I), the peer its lines.
    pub(super) fn reset(&mut self) {
        *self = Self {
            inputs: self.inputs,
            divisor: self.divisor,
            scr: self.scr,
            tx: self.tx.replaced_by(&[]),
            ..Self::new(self.config)
        };
    }

    /// The most urgent of the enabled causes (table IV).
    fn cause(&self) -> u8 {
        let enabled = |cause| self.ier & cause != 0;
        if enabled(ier::LINE_STATUS) && self.errors != 0 {
            iir::LINE_STATUS
        } else if enabled(ier::RECEIVED) && self.rx.len() >= self.trigger() {
            iir::RECEIVED
        } else if enabled(ier::RECEIVED) && !self.rx.is_empty() {
            // No character for the time of four: whoever brings them brings all that there are, so the wire is idle.
            iir::TIMEOUT
        } else if enabled(ier::TRANSMITTER_EMPTY) && self.transmitter_empty {
            iir::TRANSMITTER_EMPTY
        } else if enabled(ier::MODEM_STATUS) && self.deltas != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    // The guest's face.

    pub(super) fn read(&mut self, offset: u64) -> u8 {
        match offset {
            DATA if self.dlab() => self.divisor.to_le_bytes()[0],
            IER if self.dlab() => self.divisor.to_le_bytes()[1],
            DATA => self.read_data(),
            IER => self.ier,
            IIR_FCR => self.read_identification(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.read_line_status(),
            MSR => self.modem_status() | std::mem::take(&mut self.deltas),
            SCR => self.scr,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u8) {
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.dlab() => self.divisor = u16::from_le_bytes([value, high]),
            IER if self.dlab() => self.divisor = u16::from_le_bytes([low, value]),
            DATA => self.write_data(value),
            IER => {
                let enabled = !self.ier & value;
                self.ier = value & ier::MASK;
                // Told at once, if there is nothing to wait for.
                self.transmitter_empty |= enabled & ier::TRANSMITTER_EMPTY != 0 && self.tx.is_empty();
            }
            IIR_FCR => self.write_fifo_control(value),
            LCR => {
                let broke = !self.lcr & value & lcr::BREAK != 0;
                self.lcr = value;
                if broke && self.loops_back() {
                    self.arrive(Frame::Break);
                }
            }
            MCR => self.with_modem(|uart| uart.mcr = value & mcr::MASK),
            SCR => self.scr = value,
            _ => (),
        }
    }

    fn dlab(&self) -> bool {
        self.lcr & lcr::DLAB != 0
    }

    fn read_data(&mut self) -> u8 {
        let character = self.rx.pop_front().map_or(0, |(character, _)| character);
        self.reveal();
        character
    }

    fn write_data(&mut self, character: u8) {
        if self.loops_back() {
            self.arrive(Frame::Data(character));
            self.transmitter_empty = self.tx.is_empty();
            return;
        }
        // A character too many takes the place of the last one, as in a holding register.
        if self.tx.len() < self.depth() {
            self.tx.push(character);
        } else {
            self.tx.replace_last(character);
        }
        self.transmitter_empty = false;
    }

    /// Reading it takes away the transmitter's cause, if that is what it shows, and no other.
    fn read_identification(&mut self) -> u8 {
        let cause = self.cause();
        if cause == iir::TRANSMITTER_EMPTY {
            self.transmitter_empty = false;
        }
        if self.fifos() {
            cause | iir::FIFOS_ENABLED
        } else {
            cause
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggles = (self.fcr ^ value) & fcr::ENABLE != 0;
        let enabled = value & fcr::ENABLE != 0;
        if toggles || enabled && value & fcr::RESET_RX != 0 {
            self.rx.clear();
        }
        if toggles || enabled && value & fcr::RESET_TX != 0 {
            // The transmitter's interrupt after a switch is immediate ("FIFO interrupt mode operation").
            self.transmitter_empty |= toggles || !self.tx.is_empty();
            self.tx.clear();
        }
        // The other bits are taken only together with the enable bit.
        self.fcr = if enabled { value & fcr::KEPT } else { 0 };
    }

    fn read_line_status(&mut self) -> u8 {
        let mut status = std::mem::take(&mut self.errors);
        if !self.rx.is_empty() {
            status |= lsr::DR;
        }
        if self.tx.is_empty() {
            status |= lsr::THRE | lsr::TEMT;
        }
        if self.fifos()
            && (status & (lsr::PE | lsr::FE | lsr::BI) != 0 || self.rx.iter().any(|(_, errors)| *errors != 0))
        {
            status |= lsr::FIFO_ERROR;
        }
        status
    }

    /// The lines that the guest sees: in loopback they are its own (section 8.8).
    fn modem_status(&self) -> u8 {
        let lines = if self.loops_back() {
            let set = |bit| self.mcr & bit != 0;
            ModemInputs {
                cts: set(mcr::RTS),
                dsr: set(mcr::DTR),
                ri: set(mcr::OUT1),
                dcd: set(mcr::OUT2),
            }
        } else {
            self.inputs
        };
        [
            (lines.cts, msr::CTS),
            (lines.dsr, msr::DSR),
            (lines.ri, msr::RI),
            (lines.dcd, msr::DCD),
        ]
        .into_iter()
        .fold(0, |status, (up, bit)| if up { status | bit } else { status })
    }

    /// Makes a change that may move modem lines, and notes which have moved.
    fn with_modem(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.modem_status();
        change(self);
        let now = self.modem_status();
        for (line, delta) in [(msr::CTS, msr::DCTS), (msr::DSR, msr::DDSR), (msr::DCD, msr::DDCD)] {
            if (before ^ now) & line != 0 {
                self.deltas |= delta;
            }
        }
        // Of the ring indicator, the end counts.
        if before & !now & msr::RI != 0 {
            self.deltas |= msr::TERI;
        }
    }

    // The face to the outside.

    /// One frame from a wire that does not wait. Returns whether it is there and none was lost for it.
    pub(super) fn receive_frame(&mut self, frame: Frame) -> bool {
        !self.loops_back() && self.arrive(frame)
    }

    pub(super) fn set_inputs(&mut self, inputs: ModemInputs) {
        self.with_modem(|uart| uart.inputs = inputs);
    }

    pub(super) fn outputs(&self) -> ModemOutputs {
        // Looped back, the pins are off (section 8.8).
        let set = |bit| self.mcr & (bit | mcr::LOOP) == bit;
        ModemOutputs {
            dtr: set(mcr::DTR),
            rts: set(mcr::RTS),
            out1: set(mcr::OUT1),
            out2: set(mcr::OUT2),
            sends_break: self.lcr & lcr::BREAK != 0 && !self.loops_back(),
        }
    }

    // How it works inside.

    fn fifos(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    pub(super) fn depth(&self) -> usize {
        if self.fifos() { DEPTH } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fifos(), self.fcr >> fcr::TRIGGER_SHIFT) {
            (false, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    fn loops_back(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    fn arrive(&mut self, frame: Frame) -> bool {
        let received = match frame {
            Frame::Data(character) => (character, 0),
            Frame::FramingError(character) => (character, lsr::FE),
            Frame::ParityError(character) => (character, lsr::PE),
            Frame::Break => (0, lsr::BI),
        };
        let fits = self.rx.len() < self.depth();
        if !fits {
            self.errors |= lsr::OE;
            if self.fifos() {
                // It is overwritten in the shift register, the FIFO stays as it is.
                return false;
            }
            self.rx.clear();
        }
        self.rx.push_back(received);
        self.reveal();
        fits
    }

    /// The errors of the character at the top of the FIFO show in LSR.
    fn reveal(&mut self) {
        if let Some((_, errors)) = self.rx.front_mut() {
            self.errors |= std::mem::take(errors);
        }
    }
}

impl Model for Uart {
    /// INTR is up while some enabled cause is pending.
    fn interrupts(&self) -> bool {
        // On a PC the line goes through a gate that OUT2 opens; looped back, the pin is off.
        let gate = mcr::OUT2 | mcr::LOOP;
        let open = !self.config.out2_gates_interrupt || self.mcr & gate == mcr::OUT2;
        open && self.cause() != iir::NONE
    }

    /// None in loopback.
    fn room(&self) -> usize {
        if self.loops_back() {
            0
        } else {
            self.depth().saturating_sub(self.rx.len())
        }
    }

    fn receive(&mut self, characters: &[u8]) -> usize {
        let accepted = self.room().min(characters.len());
        for character in &characters[..accepted] {
            self.arrive(Frame::Data(*character));
        }
        accepted
    }

    fn burst(&self) -> Option<Burst> {
        self.tx.burst()
    }

    fn transmitted(&mut self, burst: &Burst, count: usize) {
        let left = self.tx.transmitted(burst, count);
        self.transmitter_empty |= left && self.tx.is_empty();
    }
}
