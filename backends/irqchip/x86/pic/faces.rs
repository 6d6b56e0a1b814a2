//! The ports of the 8259 pair. Each port is a byte: a wider access is one of each byte in turn, from the lowest port on.

use std::{fmt, sync::Arc};

use super::{
    Pic, Shared,
    model::{Model, Which},
    registers::CHIP_PORTS,
};
use crate::bus::BusDevice;

impl Pic {
    /// The two ports of the master: 0x20 and 0x21 in a PC.
    pub fn master(&self) -> ChipPorts {
        self.chip(Which::Master)
    }

    /// The two ports of the slave: 0xa0 and 0xa1 in a PC.
    pub fn slave(&self) -> ChipPorts {
        self.chip(Which::Slave)
    }

    fn chip(&self, which: Which) -> ChipPorts {
        let pic = Arc::clone(&self.shared);
        ChipPorts { pic, which }
    }

    /// ELCR1 and ELCR2, which say which IRQs are level-triggered: 0x4d0 and 0x4d1 in a PC.
    pub fn elcr(&self) -> ElcrPorts {
        let pic = Arc::clone(&self.shared);
        ElcrPorts { pic }
    }
}

/// The ports of one chip.
pub struct ChipPorts {
    pic: Arc<Shared>,
    which: Which,
}

impl ChipPorts {
    /// How many ports.
    pub const SIZE: u64 = CHIP_PORTS;
}

/// Which port each byte of an access belongs to; past the last port there is none.
fn ports(offset: u64, len: usize) -> impl Iterator<Item = (usize, u64)> {
    (0..len).zip(offset..CHIP_PORTS)
}

impl BusDevice for ChipPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.pic.with(|model| {
            for (at, port) in ports(offset, data.len()) {
                data[at] = model.read(self.which, port);
                model.update();
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.pic.with(|model| {
            for (at, port) in ports(offset, data.len()) {
                model.chip(self.which).write(port, data[at]);
                model.update();
            }
        });
    }
}

/// The ports of ELCR1 and ELCR2.
pub struct ElcrPorts {
    pic: Arc<Shared>,
}

impl ElcrPorts {
    /// How many ports.
    pub const SIZE: u64 = 2;

    fn chip(model: &mut Model, port: u64) -> &mut super::chip::Chip {
        model.chip(if port == 0 { Which::Master } else { Which::Slave })
    }
}

impl BusDevice for ElcrPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.pic.with(|model| {
            for (at, port) in ports(offset, data.len()) {
                data[at] = Self::chip(model, port).elcr;
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.pic.with(|model| {
            for (at, port) in ports(offset, data.len()) {
                Self::chip(model, port).write_elcr(data[at]);
            }
        });
    }
}

impl fmt::Debug for ChipPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChipPorts")
            .field("which", &self.which)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ElcrPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElcrPorts").finish_non_exhaustive()
    }
}
