//! The ports of the 8254 and port B. Each port is a byte: a wider access is one of each byte in turn, from the lowest
//! port on.

use std::{fmt, sync::Arc};

use super::{Pit, Shared, registers::PORTS};
use crate::bus::BusDevice;

impl Pit {
    /// The four ports of the 8254: 0x40 to 0x43 in a PC.
    pub fn counters(&self) -> CounterPorts {
        let pit = Arc::clone(&self.shared);
        CounterPorts { pit }
    }

    /// System control port B: 0x61 in a PC. Bit 0 is GATE of counter 2, bit 1 lets its OUT through to the speaker, bit 4
    /// toggles with each refresh of memory, and bit 5 is OUT of counter 2. Bits 2 and 3 keep what is written.
    pub fn port_b(&self) -> PortB {
        let pit = Arc::clone(&self.shared);
        PortB { pit }
    }
}

/// The ports of the 8254.
pub struct CounterPorts {
    pit: Arc<Shared>,
}

impl CounterPorts {
    /// How many ports.
    pub const SIZE: u64 = PORTS;
}

impl BusDevice for CounterPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.pit.change(|model| {
            for (byte, port) in data.iter_mut().zip(offset..PORTS) {
                *byte = model.read(port);
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (byte, port) in data.iter().zip(offset..PORTS) {
            self.pit.change(|model| model.write(port, *byte));
        }
    }
}

/// System control port B.
pub struct PortB {
    pit: Arc<Shared>,
}

impl PortB {
    /// How many ports.
    pub const SIZE: u64 = 1;
}

impl BusDevice for PortB {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.pit.change(|model| model.read_port_b());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(byte)) = (offset, data.first()) {
            self.pit.change(|model| model.write_port_b(*byte));
        }
    }
}

impl fmt::Debug for CounterPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CounterPorts").finish_non_exhaustive()
    }
}

impl fmt::Debug for PortB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortB").finish_non_exhaustive()
    }
}
