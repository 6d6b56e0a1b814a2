//! The PL011 as its guest sees it: registers, FIFOs and interrupt sources, without locks and without callbacks.

use std::collections::VecDeque;

use super::{FifoDepth, Frame, ModemInputs, ModemOutputs, Pl011Config, registers::*};
use crate::platform::{
    primecell,
    serial::{Burst, MAX_DEPTH, Model, TransmitFifo},
};

pub(super) struct Uart {
    // Fixed configuration.
    pub(super) config: Pl011Config,

    // What is plugged in.
    pub(super) inputs: ModemInputs,

    // What the guest can change.
    pub(super) ilpr: u8,
    pub(super) ibrd: u16,
    pub(super) fbrd: u8,
    pub(super) lcr_h: u8,
    pub(super) cr: u16,
    pub(super) ifls: u8,
    pub(super) imsc: u16,
    pub(super) ris: u16,
    /// UARTTXINTR was set, and the guest has not read that: what it acknowledges is an earlier one.
    pub(super) tx_unseen: bool,
    pub(super) dmacr: u8,
    pub(super) rsr: u8,
    /// A character was lost, and none has been received since that could tell (section 3.3.1, OE).
    pub(super) overrun: bool,
    /// Characters with their errors, as UARTDR shows them.
    pub(super) rx: VecDeque<u16>,
    pub(super) tx: TransmitFifo,
}

/// What interrupt sources are derived from, as it was before a change.
struct Levels {
    tx_above_trigger: bool,
    modem: ModemInputs,
}

impl Uart {
    pub(super) fn new(config: Pl011Config) -> Self {
        let enabled = if config.enabled { cr::UARTEN } else { 0 };
        Self {
            config,
            inputs: config.modem,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: cr::RESET | enabled,
            ifls: ifls::RESET,
            imsc: 0,
            ris: 0,
            tx_unseen: false,
            dmacr: 0,
            rsr: 0,
            overrun: false,
            rx: VecDeque::with_capacity(MAX_DEPTH),
            tx: TransmitFifo::new(),
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self {
            inputs: self.inputs,
            tx: self.tx.replaced_by(&[]),
            ..Self::new(self.config)
        };
    }

    /// The masked interrupts, section 3.3.12. The line is up while there is any.
    pub(super) fn mis(&self) -> u16 {
        self.ris & self.imsc
    }

    // The guest's face.

    pub(super) fn read(&mut self, offset: u64) -> u16 {
        match offset {
            UARTDR => self.change(|uart| uart.read_data()),
            UARTRSR => self.rsr.into(),
            UARTFR => self.flags(),
            UARTILPR => self.ilpr.into(),
            UARTIBRD => self.ibrd,
            UARTFBRD => self.fbrd.into(),
            UARTLCR_H => self.lcr_h.into(),
            UARTCR => self.cr,
            UARTIFLS => self.ifls.into(),
            UARTIMSC => self.imsc,
            UARTRIS => self.seen(self.ris),
            UARTMIS => self.seen(self.mis()),
            UARTDMACR => self.dmacr.into(),
            _ => primecell::identification(offset, self.config.fifo_depth.periph_id()).map_or(0, u16::from),
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u16) {
        let byte = value as u8;
        self.change(|uart| match offset {
            UARTDR => uart.write_data(byte),
            UARTRSR => uart.rsr = 0,
            UARTILPR => uart.ilpr = byte,
            UARTIBRD => uart.ibrd = value,
            UARTFBRD => uart.fbrd = byte & fbrd::MASK,
            UARTLCR_H => uart.write_line_control(byte),
            UARTCR => uart.cr = value & cr::MASK,
            UARTIFLS => uart.ifls = byte & ifls::MASK,
            UARTIMSC => uart.imsc = value & int::MASK,
            UARTICR => uart.acknowledge(value),
            UARTDMACR => uart.dmacr = byte & dmacr::MASK,
            _ => (),
        });
    }

    /// UARTDR of an empty FIFO is undefined in the manual; here it is zero and leaves UARTRSR alone.
    fn read_data(&mut self) -> u16 {
        let Some(character) = self.rx.pop_front() else { return 0 };
        // An overrun shows in UARTRSR at once and until it is cleared there, whatever is read meanwhile.
        self.rsr = self.rsr & rsr::OE | (character >> dr::STATUS_SHIFT) as u8;
        character
    }

    /// A character that does not fit is lost, as the manual tells drivers to look at TXFF first.
    fn write_data(&mut self, character: u8) {
        if self.tx.len() < self.depth() {
            self.tx.push(character);
        }
    }

    fn write_line_control(&mut self, value: u8) {
        let changed = self.lcr_h ^ value;
        self.lcr_h = value;
        if changed & lcr_h::FEN != 0 {
            self.flush();
        }
        if changed & value & lcr_h::BRK != 0 && self.loops_back() && self.can_receive() {
            self.arrive(Frame::Break);
        }
    }

    /// The guest reads `interrupts`.
    fn seen(&mut self, interrupts: u16) -> u16 {
        self.tx_unseen &= interrupts & int::TX == 0;
        interrupts
    }

    /// Characters leave here before the write that sends them has returned, and from a real UART a good while later: a
    /// handler that writes first and then acknowledges what it had read before is still to hear of them. A second
    /// acknowledgement clears also what nobody reads.
    fn acknowledge(&mut self, interrupts: u16) {
        let newer = if self.tx_unseen { int::TX } else { 0 };
        self.ris &= !interrupts | newer;
        self.tx_unseen &= interrupts & int::TX == 0;
    }

    fn flags(&self) -> u16 {
        let modem = self.modem_lines();
        let depth = self.depth();
        [
            (fr::CTS, modem.cts),
            (fr::DSR, modem.dsr),
            (fr::DCD, modem.dcd),
            (fr::RI, modem.ri),
            (fr::BUSY, !self.tx.is_empty()),
            (fr::TXFE, self.tx.is_empty()),
            (fr::TXFF, self.tx.len() >= depth),
            (fr::RXFE, self.rx.is_empty()),
            (fr::RXFF, self.rx.len() >= depth),
        ]
        .into_iter()
        .fold(0, |flags, (flag, on)| if on { flags | flag } else { flags })
    }

    // The face to the outside.

    /// One frame from a wire that does not wait. Returns whether the guest can read it.
    pub(super) fn receive_frame(&mut self, frame: Frame) -> bool {
        if !self.can_receive() || self.loops_back() {
            return false;
        }
        self.change(|uart| uart.arrive(frame))
    }

    pub(super) fn set_inputs(&mut self, inputs: ModemInputs) {
        self.change(|uart| uart.inputs = inputs);
    }

    pub(super) fn outputs(&self) -> ModemOutputs {
        let flow_control = self.cr & cr::RTSEN != 0;
        ModemOutputs {
            dtr: self.cr & cr::DTR != 0,
            rts: if flow_control {
                self.rx.len() < self.rx_trigger()
            } else {
                self.cr & cr::RTS != 0
            },
            out1: self.cr & cr::OUT1 != 0,
            out2: self.cr & cr::OUT2 != 0,
            sends_break: self.lcr_h & lcr_h::BRK != 0,
        }
    }

    // How it works inside.

    pub(super) fn depth(&self) -> usize {
        if self.lcr_h & lcr_h::FEN != 0 {
            self.config.fifo_depth.characters()
        } else {
            1
        }
    }

    fn loops_back(&self) -> bool {
        self.cr & cr::LBE != 0
    }

    fn can_receive(&self) -> bool {
        let enabled = cr::UARTEN | cr::RXE;
        self.cr & enabled == enabled
    }

    fn can_transmit(&self) -> bool {
        let enabled = cr::UARTEN | cr::TXE;
        self.cr & enabled == enabled && (self.cr & cr::CTSEN == 0 || self.modem_lines().cts)
    }

    /// The modem lines that the guest sees: in loopback they are its own outputs (section 3.3.8, LBE).
    fn modem_lines(&self) -> ModemInputs {
        if !self.loops_back() {
            return self.inputs;
        }
        let outputs = self.outputs();
        ModemInputs {
            cts: outputs.rts,
            dsr: outputs.dtr,
            dcd: outputs.out1,
            ri: outputs.out2,
        }
    }

    /// Empties both FIFOs: nothing was sent and nothing was read.
    fn flush(&mut self) {
        self.rx.clear();
        self.tx.clear();
    }

    fn arrive(&mut self, frame: Frame) -> bool {
        if self.rx.len() >= self.depth() {
            // The shift register is overwritten, the FIFO stays as it is.
            self.overrun = true;
            self.rsr |= rsr::OE;
            self.ris |= int::OE;
            return false;
        }
        let (character, error, interrupt) = match frame {
            Frame::Data(character) => (character, 0, 0),
            Frame::FramingError(character) => (character, dr::FE, int::FE),
            Frame::ParityError(character) => (character, dr::PE, int::PE),
            Frame::Break => (0, dr::BE, int::BE),
        };
        let overrun = if self.overrun { dr::OE } else { 0 };
        self.overrun = false;
        self.ris |= interrupt;
        self.rx.push_back(u16::from(character) | error | overrun);
        true
    }

    /// In loopback the transmitter feeds the receiver. The manual leaves open whether the characters show outside too;
    /// drivers use this to test themselves and expect that they do not. Returns whether any left.
    fn loop_back(&mut self) -> bool {
        let mut transmitted = false;
        while self.loops_back()
            && self.can_transmit()
            && let Some(character) = self.tx.pop()
        {
            transmitted = true;
            if self.can_receive() {
                self.arrive(Frame::Data(character));
            }
        }
        transmitted
    }

    /// The number of characters at which a FIFO is at its trigger level. The three reserved codes act as the highest.
    fn trigger(&self, select: u8) -> usize {
        let depth = self.config.fifo_depth.characters();
        match select & ifls::FIELD {
            0 => depth / 8,
            1 => depth / 4,
            2 => depth / 2,
            3 => depth * 3 / 4,
            _ => depth * 7 / 8,
        }
    }

    pub(super) fn rx_trigger(&self) -> usize {
        if self.lcr_h & lcr_h::FEN != 0 {
            self.trigger(self.ifls >> ifls::RX_SHIFT)
        } else {
            1
        }
    }

    pub(super) fn tx_trigger(&self) -> usize {
        if self.lcr_h & lcr_h::FEN != 0 {
            self.trigger(self.ifls)
        } else {
            0
        }
    }

    fn levels(&self) -> Levels {
        Levels {
            tx_above_trigger: self.tx.len() > self.tx_trigger(),
            modem: self.modem_lines(),
        }
    }

    /// UARTRXINTR while the FIFO is at its level, UARTRTINTR while there is data: both follow the FIFO, and an acknowledgement
    /// takes neither away. On a wire with time, UARTRTINTR is set when no character came for 32 bit times, also after it
    /// was cleared, and what still comes takes the FIFO through its level. Here there are no bit times: whoever brings
    /// characters brings all that there are, before the acknowledgement as well as after, and then waits for room.
    pub(super) fn receive_interrupts(&self) -> u16 {
        let mut interrupts = 0;
        if self.rx.len() >= self.rx_trigger() {
            interrupts |= int::RX;
        }
        if !self.rx.is_empty() {
            interrupts |= int::RT;
        }
        interrupts
    }

    /// Runs `change` and derives from it everything that follows by itself.
    fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        self.change_and_send(|uart| (change(uart), false))
    }

    /// A [`change`](Self::change) that says whether characters have left with it.
    fn change_and_send<T>(&mut self, change: impl FnOnce(&mut Self) -> (T, bool)) -> T {
        let before = self.levels();
        let (result, mut transmitted) = change(self);
        transmitted |= self.loop_back();
        self.update(&before, transmitted);
        result
    }

    /// Derives the raw interrupts from what changed, section 2.8. The error interrupts are set where the error
    /// occurs; all others here.
    fn update(&mut self, before: &Levels, transmitted: bool) {
        let now = self.levels();

        self.ris = self.ris & !(int::RX | int::RT) | self.receive_interrupts();

        // UARTTXINTR: set when characters that leave take the FIFO through its level, not by the level itself, so a
        // driver that unmasks it before it has written anything hears nothing. A FIFO that runs empty counts too:
        // characters leave here as soon as they are written, and a driver that wrote a burst, which a real FIFO
        // would have held, waits for the drop.
        if now.tx_above_trigger {
            self.ris &= !int::TX;
            self.tx_unseen = false;
        } else if transmitted && (before.tx_above_trigger || self.tx.is_empty()) {
            self.ris |= int::TX;
            self.tx_unseen = true;
        }

        // UARTMSINTR: set by each line that changes.
        for (changed, interrupt) in [
            (before.modem.cts != now.modem.cts, int::CTS),
            (before.modem.dsr != now.modem.dsr, int::DSR),
            (before.modem.dcd != now.modem.dcd, int::DCD),
            (before.modem.ri != now.modem.ri, int::RI),
        ] {
            if changed {
                self.ris |= interrupt;
            }
        }
    }
}

impl Model for Uart {
    fn interrupts(&self) -> bool {
        self.mis() != 0
    }

    /// None while the guest has the receiver off or looped back.
    fn room(&self) -> usize {
        if self.can_receive() && !self.loops_back() {
            self.depth() - self.rx.len()
        } else {
            0
        }
    }

    fn receive(&mut self, characters: &[u8]) -> usize {
        let accepted = self.room().min(characters.len());
        self.change(|uart| {
            for &character in &characters[..accepted] {
                uart.arrive(Frame::Data(character));
            }
        });
        accepted
    }

    fn burst(&self) -> Option<Burst> {
        if self.can_transmit() && !self.loops_back() {
            self.tx.burst()
        } else {
            None
        }
    }

    fn transmitted(&mut self, burst: &Burst, count: usize) {
        self.change_and_send(|uart| ((), uart.tx.transmitted(burst, count)));
    }
}

impl FifoDepth {
    pub(super) fn characters(self) -> usize {
        match self {
            Self::Sixteen => 16,
            Self::ThirtyTwo => 32,
        }
    }

    /// The revision in UARTPeriphID2 says which FIFOs there are, and drivers go by it.
    fn periph_id(self) -> u32 {
        let revision = match self {
            Self::Sixteen => 2,
            Self::ThirtyTwo => 3,
        };
        PERIPH_ID | revision << 20
    }
}
