//! The controllers of a PC as their guest is told of them.

use super::{Gsi, PcConfig, TIMER_GSI};
use crate::{
    backends::irqchip::{ioapic, pic, pit},
    description::{Input, Part, Wire},
};

impl From<Gsi> for Input {
    fn from(Gsi(number): Gsi) -> Self {
        Self::Gsi(number)
    }
}

/// IOAPIC, 8259 pair and 8254 as [`Pc::plug`](super::Pc::plug) places them.
pub fn describe(config: &PcConfig) -> [Part; 3] {
    [
        ioapic::describe(&config.ioapic, config.ioapic_address, 0),
        pic::describe(),
        pit::describe(Wire::edge(TIMER_GSI)),
    ]
}
