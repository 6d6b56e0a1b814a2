//! The two chips, wired as in a PC.

use super::{chip::Chip, registers::*};

/// Which of the two chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Master,
    Slave,
}

#[derive(Debug)]
pub(super) struct Model {
    // What is plugged in.
    /// How many lines hold each IRQ up.
    pub(super) holders: [u32; 16],
    /// IRQs that were up when the state was saved, and whose devices have not driven them since the restore.
    pub(super) restored_up: u16,

    // What the guest can change.
    pub(super) master: Chip,
    pub(super) slave: Chip,

    /// INT of the slave, as the master has seen it.
    pub(super) slave_int: bool,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            holders: [0; 16],
            restored_up: 0,
            master: Chip::new(true),
            slave: Chip::new(false),
            slave_int: false,
        }
    }

    pub(super) fn reset(&mut self) {
        self.master.reset();
        self.slave.reset();
    }

    pub(super) fn chip(&mut self, which: Which) -> &mut Chip {
        match which {
            Which::Master => &mut self.master,
            Which::Slave => &mut self.slave,
        }
    }

    fn input(&mut self, irq: u8) -> (&mut Chip, u8) {
        let which = if irq < 8 { Which::Master } else { Which::Slave };
        (self.chip(which), irq & 7)
    }

    /// One line more, or one less, holds the IRQ up.
    pub(super) fn hold(&mut self, irq: u8, up: bool) {
        let holders = &mut self.holders[usize::from(irq)];
        if up {
            *holders = holders.saturating_add(1);
            self.restored_up &= !(1 << irq);
        } else {
            *holders = holders.saturating_sub(1);
        }
        let up = *holders != 0 || self.restored_up >> irq & 1 != 0;
        let (chip, input) = self.input(irq);
        chip.set_line(input, up);
    }

    pub(super) fn pulse(&mut self, irq: u8) {
        let (chip, input) = self.input(irq);
        chip.edge(input);
    }

    /// Reads a port of a chip.
    pub(super) fn read(&mut self, which: Which, port: u64) -> u8 {
        let chip = self.chip(which);
        let is_poll = chip.poll;
        let value = chip.read(port);
        if which == Which::Slave && is_poll {
            // The poll has taken what the master had latched; if there is more, it latches that.
            self.master.latched &= !(1 << CASCADE);
            self.slave_int = false;
        }
        value
    }

    /// Where the output is derived, after every change: INTR of the master.
    pub(super) fn update(&mut self) -> bool {
        let slave_int = self.slave.request().is_some();
        if slave_int && !self.slave_int {
            self.master.edge(CASCADE);
        }
        self.slave_int = slave_int;
        self.master.request().is_some()
    }

    /// After a restore: what the slave requests, the master has seen.
    pub(super) fn see_slave(&mut self) {
        self.slave_int = self.slave.request().is_some();
    }

    /// The acknowledge cycle of the pair: the vector of the most urgent request.
    pub(super) fn acknowledge(&mut self) -> u8 {
        match self.master.acknowledge() {
            Some(CASCADE) if !self.master.single => {
                let input = self.slave.acknowledge().unwrap_or(SPURIOUS);
                // INT falls with each cycle, and rises again if there is more.
                self.slave_int = false;
                self.slave.vector(input)
            }
            input => self.master.vector(input.unwrap_or(SPURIOUS)),
        }
    }
}
