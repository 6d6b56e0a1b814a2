//! What plays the guest: a driver of the 8259 pair, and the CPU that acknowledges.

use devisor::{
    backends::irqchip::pic::{ChipPorts, Irq, LevelLine, Pic},
    bus::BusDevice,
    interrupt::{Interrupt, level_from_fn},
};
use std::sync::{Arc, Mutex};

pub const AEOI: u8 = 1 << 1;
pub const SFNM: u8 = 1 << 4;
pub const EOI: u8 = 0x20;
pub const SPECIFIC_EOI: u8 = 0x60;
pub const ROTATE_ON_EOI: u8 = 0xa0;
pub const ROTATE_ON_SPECIFIC_EOI: u8 = 0xe0;
pub const SET_PRIORITY: u8 = 0xc0;
pub const ROTATE_IN_AEOI: u8 = 0x80;
pub const READ_IRR: u8 = 0x0a;
pub const READ_ISR: u8 = 0x0b;
pub const POLL: u8 = 0x0c;
pub const SPECIAL_MASK: u8 = 0x68;
pub const NO_SPECIAL_MASK: u8 = 0x48;

pub struct Guest {
    pub pic: Pic,
    pub master: ChipPorts,
    pub slave: ChipPorts,
    /// What INTR was told.
    pub heard: Arc<Mutex<Vec<bool>>>,
}

pub fn read(ports: &impl BusDevice, port: u64) -> u8 {
    let mut data = [0];
    ports.read(port, &mut data);
    data[0]
}

pub fn initialize(ports: &impl BusDevice, base: u8, icw4: u8) {
    ports.write(0, &[0x11]);
    for word in [base, 4, 1 | icw4] {
        ports.write(1, &[word]);
    }
}

/// A pair that is not initialized.
pub fn fresh() -> Guest {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let pic = Pic::new(level_from_fn(move |up| {
        log.lock().unwrap().push(up);
        Ok(())
    }));
    let (master, slave) = (pic.master(), pic.slave());
    Guest {
        pic,
        master,
        slave,
        heard,
    }
}

/// One with vectors 0x20 to 0x2f, and ICW4 as given.
pub fn with(icw4: u8) -> Guest {
    let guest = fresh();
    initialize(&guest.master, 0x20, icw4);
    initialize(&guest.slave, 0x28, icw4);
    guest
}

pub fn new() -> Guest {
    with(0)
}

impl Guest {
    pub fn line(&self, irq: u8) -> LevelLine {
        self.pic.level_line(Irq(irq)).unwrap()
    }

    pub fn pulse(&self, irq: u8) {
        self.pic.edge_line(Irq(irq)).unwrap().trigger().unwrap();
    }

    /// The vector, if INTR is up.
    pub fn take(&self) -> Option<u8> {
        self.pic.intr().then(|| self.pic.acknowledge().0)
    }

    pub fn command(&self, word: u8) {
        self.master.write(0, &[word]);
    }

    pub fn irr(&self) -> u8 {
        self.command(READ_IRR);
        read(&self.master, 0)
    }

    pub fn isr(&self) -> u8 {
        self.command(READ_ISR);
        read(&self.master, 0)
    }

    pub fn slave_isr(&self) -> u8 {
        self.slave.write(0, &[READ_ISR]);
        read(&self.slave, 0)
    }

    pub fn level_triggered(&self, irq: u8) {
        let elcr = (1_u16 << irq).to_le_bytes();
        self.pic.elcr().write(0, &elcr);
    }
}
