//! The PL061 as its guest sees it. Each register has a bit for each pin.

use super::registers::*;
use crate::platform::primecell;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Gpio {
    /// What the outside drives.
    pub(super) inputs: u8,

    // What the guest can change.
    /// What it drives where a pin is an output.
    pub(super) data: u8,
    pub(super) dir: u8,
    pub(super) is: u8,
    pub(super) ibe: u8,
    pub(super) iev: u8,
    pub(super) ie: u8,
    pub(super) afsel: u8,
    /// Edges that were seen and not cleared.
    pub(super) edges: u8,
}

impl Gpio {
    /// The levels of the pins.
    fn pins(&self) -> u8 {
        self.data & self.dir | self.inputs & !self.dir
    }

    /// The levels of the pins that are outputs; the others are down.
    pub(super) fn outputs(&self) -> u8 {
        self.data & self.dir
    }

    /// Where a pin is sensitive to a level, the raw status is whether that is there, and nothing clears it.
    fn ris(&self) -> u8 {
        let levels = !(self.pins() ^ self.iev);
        self.edges & !self.is | levels & self.is
    }

    pub(super) fn mis(&self) -> u8 {
        self.ris() & self.ie
    }

    /// The outside drives pins. An edge is seen on inputs that are sensitive to it.
    pub(super) fn set_inputs(&mut self, pins: u8, up: bool) {
        let was = self.inputs;
        self.inputs = if up { was | pins } else { was & !pins };
        let wanted = self.ibe | !(self.inputs ^ self.iev);
        self.edges |= (was ^ self.inputs) & !self.dir & !self.is & wanted;
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        let bits = match offset {
            0..GPIODATA_END => self.pins() & pins_of(offset),
            GPIODIR => self.dir,
            GPIOIS => self.is,
            GPIOIBE => self.ibe,
            GPIOIEV => self.iev,
            GPIOIE => self.ie,
            GPIORIS => self.ris(),
            GPIOMIS => self.mis(),
            GPIOAFSEL => self.afsel,
            _ => primecell::identification(offset, PERIPH_ID).unwrap_or(0),
        };
        bits.into()
    }

    pub(super) fn write(&mut self, offset: u64, value: u8) {
        match offset {
            // Pins that are inputs keep what they had as outputs.
            0..GPIODATA_END => {
                let pins = pins_of(offset) & self.dir;
                self.data = self.data & !pins | value & pins;
            }
            GPIODIR => self.dir = value,
            GPIOIS => self.is = value,
            GPIOIBE => self.ibe = value,
            GPIOIEV => self.iev = value,
            GPIOIE => self.ie = value,
            GPIOIC => self.edges &= !value,
            GPIOAFSEL => self.afsel = value,
            _ => {}
        }
    }
}

fn pins_of(offset: u64) -> u8 {
    (offset >> 2) as u8
}
